//! Files that are no runners, or bad ones. Each has its own code, the process survives, and the
//! runners beside it serve on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kairos_host::runner::manifest::{MAX_SIZE, manifest_of};
use kairos_host::runner::{
    Generation, Isolation, Launcher, LoadError, PluginStore, RunnerConfig, RunnerError, Runners, SearchPath,
};
use kairos_plugin_api::context::method;
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{CallError, Mandate, Report, code};
use kairos_tests::hostile::{checked, patched};
use serde_json::{Value, json};

/// Where cargo puts what tests depend on.
fn built() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn stub_bytes() -> Vec<u8> {
    fs::read(built().join("libstub.so")).unwrap()
}

fn runners(root: &Path, configs: Vec<RunnerConfig>) -> Runners {
    let store = PluginStore::new(root.join(".kairos/plugins/store"));
    Runners::load(configs, Launcher::in_process(SearchPath::new(root, Some(&built()), None), store))
}

fn load(root: &Path, plugin: &str, params: Value) -> Result<Arc<Generation>, LoadError> {
    let config = RunnerConfig { params, ..RunnerConfig::new("bad", plugin) };
    runners(root, vec![config]).current("bad")
}

/// The code of a file with this content, as the daemon and as `plugin check` see it.
fn code_of(bytes: &[u8]) -> &'static str {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("libbad.so");
    fs::write(&path, bytes).unwrap();
    let error = load(root.path(), "./libbad.so", Value::Null).unwrap_err();
    let report = checked(&path);
    assert!(!report.loads);
    assert_eq!(report.errors.iter().map(|error| error.code).collect::<Vec<_>>(), [error.code()]);
    assert!(report.human().lines().count() <= 10, "{}", report.human());
    error.code()
}

fn run(generation: &Generation, host: &FakeHost, params: Value) -> Result<Report, RunnerError> {
    let mut mandate = Mandate::new("m", "g");
    mandate.params = params.as_object().unwrap().clone();
    generation.start(mandate, Arc::new(host.clone())).blocking_recv().unwrap()
}

#[test]
fn contents_that_are_no_plugin_have_their_own_codes() {
    assert_eq!(code_of(b""), "empty");
    assert_eq!(code_of(b"#!/bin/sh\necho hello\n"), "not_elf");
    assert_eq!(code_of(&[0; 4096]), "not_elf");
    // An archive, which is what an rlib is.
    assert_eq!(code_of(b"!<arch>\nlib.rmeta/      0           0     0     644     8         `\n"), "not_elf");
    assert_eq!(code_of(b"\x7fELF"), "truncated");
    let mut other_machine = stub_bytes();
    other_machine[18] ^= 0xff;
    assert_eq!(code_of(&other_machine), "wrong_arch");
    let mut narrow = stub_bytes();
    narrow[4] = 1;
    assert_eq!(code_of(&narrow), "wrong_arch");
    // A program is ELF of the same machine, but nothing to load.
    let mut program = stub_bytes();
    program[16] = 2;
    assert_eq!(code_of(&program), "wrong_arch");
}

#[test]
fn a_file_cut_anywhere_is_refused_before_it_is_mapped() {
    let bytes = stub_bytes();
    let lengths = (1..200).chain((200..bytes.len()).step_by(bytes.len() / 300));
    for length in lengths.chain([bytes.len() - 1]) {
        let error = manifest_of(&bytes[..length]).unwrap_err();
        assert_eq!(error.code(), "truncated", "at {length}: {error}");
    }
    for length in [3, 64, 100_000, bytes.len() - 1] {
        assert_eq!(code_of(&bytes[..length]), "truncated", "at {length}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let root = tempfile::tempdir().unwrap();
    let code = |path: &str| load(root.path(), path, Value::Null).unwrap_err().code();
    assert_eq!(code("missing"), "not_found");
    assert_eq!(code("./missing.so"), "not_found");
    fs::create_dir(root.path().join("dir.so")).unwrap();
    assert_eq!(code("./dir.so"), "is_a_directory");
    let (dir, kind) = (rustix::fs::CWD, rustix::fs::FileType::Fifo);
    rustix::fs::mknodat(dir, root.path().join("fifo.so"), kind, 0o600.into(), 0).unwrap();
    assert_eq!(code("./fifo.so"), "is_a_fifo");
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket.so")).unwrap();
    assert_eq!(code("./socket.so"), "not_a_file");
    assert_eq!(code("/dev/null"), "not_a_file");
    let huge = fs::File::create(root.path().join("huge.so")).unwrap();
    huge.set_len(MAX_SIZE + 1).unwrap();
    assert_eq!(code("./huge.so"), "too_large");
}

#[test]
fn shared_objects_that_are_no_fitting_runner_have_their_own_codes() {
    // A Rust dylib of another kind: a macro that the compiler loaded.
    let mut files = fs::read_dir(built()).unwrap().map(|entry| entry.unwrap().path());
    let is_macro = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "so") && path.to_string_lossy().contains("libserde_derive-")
    };
    let other = files.find(is_macro).unwrap();
    assert_eq!(code_of(&fs::read(other).unwrap()), "no_manifest");
    let stub = stub_bytes;
    assert_eq!(code_of(&patched(stub(), "{\"schema\":1,", "[\"schema\":1,")), "bad_manifest");
    assert_eq!(code_of(&patched(stub(), "\"name\":\"stub\"", "\"name\":\"s/ub\"")), "bad_manifest");
    assert_eq!(code_of(&patched(stub(), "\"api\":\"1.0.0\"", "\"api\":\"2.0.0\"")), "wrong_major");
    assert_eq!(code_of(&patched(stub(), "\"api\":\"1.0.0\"", "\"api\":\"new!!\"")), "bad_manifest");
    let symbol = "_1as_0lib_1header_0root_bmodule_bloader";
    let renamed = "_1as_0lib_1header_0root_bmodule_bnothing";
    assert_eq!(code_of(&patched(stub(), symbol, &renamed[..symbol.len()])), "not_a_runner");
    assert_eq!(code_of(&patched(stub(), "libc.so.6", "libq.so.6")), "load_failed");
}

#[test]
fn a_plugin_of_other_types_is_refused_in_three_lines() {
    let report = checked(&built().join("libhostile_layout.so"));
    assert_eq!(report.errors[0].code, "layout_mismatch");
    assert_eq!(report.errors[0].message.lines().count(), 3, "{}", report.errors[0].message);
    assert!(report.errors[0].message.contains("plugin-api 1."), "{}", report.errors[0].message);
    assert!(report.human().lines().count() <= 10, "{}", report.human());
    assert_eq!(code_of(&fs::read(built().join("libhostile_layout.so")).unwrap()), "layout_mismatch");
    assert_eq!(code_of(&fs::read(built().join("libhostile_no_layout.so")).unwrap()), "no_layout");
}

#[test]
fn a_plugin_that_aborts_on_panic_is_for_processes_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("libbad.so");
    fs::write(&path, patched(stub_bytes(), "\"panic\":\"unwind\"", "\"panic\":\"abort\" ")).unwrap();
    assert_eq!(load(root.path(), "./libbad.so", Value::Null).unwrap_err().code(), "panic_abort");
    let report = checked(&path);
    assert!(report.loads && report.notes[0].contains("cannot run in_process"), "{report:?}");
}

#[test]
fn a_good_plugin_passes_the_check() {
    let report = checked(&built().join("libstub.so"));
    assert!(report.loads, "{report:?}");
    assert_eq!(report.abi.as_deref(), Some("rust 1.0.0"));
    assert_eq!((report.name.as_deref(), report.version.as_deref()), (Some("stub"), Some("1.0.0")));
    assert!(report.human().contains("wants    llm, tool"), "{}", report.human());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["loads"], &json["errors"]), (&json!(true), &json!([])));
}

#[test]
fn panics_while_loading_and_constructing_are_told_apart() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(load(root.path(), "hostile-load", Value::Null).unwrap_err().code(), "panic_in_load");
    let fault = |fault: &str| load(root.path(), "hostile-runner", json!({"fault": fault}));
    let error = fault("panic_in_new").unwrap_err();
    assert_eq!(error.code(), "panic_in_new");
    assert!(error.to_string().contains("no instance of me at tests/hostile/runner"), "{error}");
    let error = fault("refuse").unwrap_err();
    assert_eq!(error.code(), "setup_refused");
    assert!(error.to_string().contains("params.fault says to refuse"), "{error}");
    // The same file serves well when it is asked to.
    run(&fault("none").unwrap(), &FakeHost::new(), json!({})).unwrap();
}

#[test]
fn panics_of_drop_and_of_payloads_stay_in_the_plugin() {
    let root = tempfile::tempdir().unwrap();
    let generation = load(root.path(), "hostile-runner", json!({"fault": "panic_in_drop"})).unwrap();
    for _ in 0..2 {
        let outcome = run(&generation, &FakeHost::new(), json!({"fault": "payload"}));
        assert!(matches!(outcome, Err(RunnerError::Panic(_))), "{outcome:?}");
        run(&generation, &FakeHost::new(), json!({})).unwrap();
    }
    drop(generation);
}

/// Of this process, in KiB: what cannot be given back to the system.
fn anonymous_memory() -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The default hook prints a backtrace and keeps the symbols it read, some 31 MiB per image.
#[test]
fn a_panic_prints_nothing_and_keeps_no_symbols() {
    const CHILD: &str = "KAIROS_TEST_PANIC_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_panic_prints_nothing_and_keeps_no_symbols", "--nocapture"])
            .env(CHILD, "1")
            .env("RUST_BACKTRACE", "1")
            .output()
            .unwrap();
        let talk = String::from_utf8_lossy(&child.stderr).into_owned();
        assert!(child.status.success(), "{talk}");
        assert!(!talk.contains("asked to"), "{talk}");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let generation = load(root.path(), "hostile-runner", Value::Null).unwrap();
    run(&generation, &FakeHost::new(), json!({})).unwrap();
    let before = anonymous_memory();
    let host = FakeHost::new();
    run(&generation, &host, json!({"fault": "panic"})).unwrap_err();
    let grown = anonymous_memory().saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB");
    let logs = host.logs();
    assert!(logs.iter().any(|line| line.target == "panic" && line.message.contains("asked to")), "{logs:?}");
}

#[test]
fn what_is_no_report_is_a_bad_report() {
    let root = tempfile::tempdir().unwrap();
    let fault = |fault: &str| load(root.path(), "hostile-runner", json!({"fault": fault})).unwrap();
    match run(&fault("bad_report"), &FakeHost::new(), json!({})) {
        Err(RunnerError::BadReport(text)) => assert!(text.contains("splendid"), "{text}"),
        other => panic!("{other:?}"),
    }
    match run(&fault("bad_error"), &FakeHost::new(), json!({})) {
        Err(RunnerError::Call(error)) => assert_eq!(error.code, code::FAILED),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_parked_cycle_is_parked_even_if_the_author_unwraps_or_swallows_it() {
    let root = tempfile::tempdir().unwrap();
    let generation = load(root.path(), "hostile-runner", Value::Null).unwrap();
    for fault in ["unwrap", "swallow"] {
        let parked = CallError::new(code::PAUSED, "waits for the budget");
        let host = FakeHost::new().fail_at(method::LLM, 1, parked);
        match run(&generation, &host, json!({"fault": fault})) {
            Err(RunnerError::Call(error)) => assert_eq!(error.code, code::PAUSED, "{fault}"),
            other => panic!("{fault}: {other:?}"),
        }
        // The instance that panicked was replaced.
        run(&generation, &FakeHost::new(), json!({})).unwrap();
    }
}

#[test]
fn an_isolation_that_is_not_there_is_refused_and_never_downgraded() {
    let root = tempfile::tempdir().unwrap();
    for isolation in [Isolation::Process, Isolation::Sandbox] {
        let config = RunnerConfig { isolation: Some(isolation), ..RunnerConfig::new("r", "stub") };
        let error = runners(root.path(), vec![config]).current("r").unwrap_err();
        assert_eq!(error.code(), "isolation_unavailable");
        assert!(error.to_string().contains(&isolation.to_string()), "{error}");
    }
}

#[test]
fn a_bad_runner_disturbs_nobody_and_can_be_mended() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("libmine.so");
    fs::write(&path, "soon a plugin").unwrap();
    let configs = vec![RunnerConfig::new("good", "stub"), RunnerConfig::new("mine", "./libmine.so")];
    let runners = runners(root.path(), configs);
    run(&runners.current("good").unwrap(), &FakeHost::new(), json!({})).unwrap();
    assert_eq!(runners.current("other").unwrap_err().code(), "unknown_runner");
    let status = serde_json::to_value(runners.status()).unwrap();
    assert_eq!(status[0]["identity"]["name"], json!("stub"));
    assert_eq!((&status[1]["name"], &status[1]["error"]["code"]), (&json!("mine"), &json!("not_elf")));
    assert_eq!(runners.retry("mine").unwrap_err().code(), "not_elf");
    fs::write(&path, stub_bytes()).unwrap();
    run(&runners.retry("mine").unwrap(), &FakeHost::new(), json!({})).unwrap();
    assert!(runners.current("mine").is_ok());
    assert!(runners.leaked().images >= 1);
}

#[test]
fn an_open_cycle_gets_the_generation_that_began_it() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("libmine.so");
    fs::write(&path, stub_bytes()).unwrap();
    let configs = || vec![RunnerConfig::new("mine", "./libmine.so")];
    let began = runners(root.path(), configs()).current("mine").unwrap().identity().clone();
    // The file is exchanged while the daemon is down.
    fs::write(&path, patched(stub_bytes(), "\"version\":\"1.0.0\"", "\"version\":\"1.0.9\"")).unwrap();
    let runners = runners(root.path(), configs());
    let current = runners.current("mine").unwrap();
    assert_eq!(current.identity().version, "1.0.9");
    let pinned = runners.pinned("mine", &began.generation).unwrap();
    assert_eq!(pinned.identity(), &began);
    run(&pinned, &FakeHost::new(), json!({})).unwrap();
    assert!(Arc::ptr_eq(&pinned, &runners.pinned("mine", &began.generation).unwrap()));
    runners.unpin("mine", &began.generation);
    // A kept file that was tampered with is no generation any more, nor is a made-up name.
    let kept = PluginStore::new(root.path().join(".kairos/plugins/store")).path_of(&began.generation);
    fs::remove_file(&kept).unwrap();
    fs::write(&kept, "something else").unwrap();
    assert_eq!(runners.pinned("mine", &began.generation).unwrap_err().code(), "generation_gone");
    assert_eq!(runners.pinned("mine", "../../etc/passwd").unwrap_err().code(), "generation_gone");
}
