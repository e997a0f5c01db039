//! Golden runners: one source, built against plugin-api 1.0 by several compilers, loaded and run
//! side by side in one process. `.ci/golden` builds them all and demands all; a plain `cargo
//! test` runs what it can build by itself, one rustc's and C's, and says aloud what it did not cover.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the suite is told by the environment where its files are")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};

use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::{PluginStore, RunnerBackend, RunnerError, map};
use kairos_plugin_api::abi::API_VERSION;
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{Mandate, Status, code};
use kairos_tests::c_plugin::compiled;
use kairos_tests::plugin;
use serde_json::json;

/// By this compiler, by another rustc, and one in C.
const ALL: [&str; 3] = ["current", "rustc-web", "gcc"];

/// The golden files by name; `made` is where this machine's own may be put.
fn files(made: &Path) -> BTreeMap<String, PathBuf> {
    let Some(dir) = std::env::var_os("KAIROS_GOLDEN_DIR") else {
        let in_c = compiled("tests/fixtures/conformance.c", "gcc", made);
        return [("current".to_owned(), plugin("stub")), ("gcc".to_owned(), in_c)].into();
    };
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some());
    paths.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path)).collect()
}

/// The golden runners that a host of that version of the plugin API must take: of every compiler,
/// and one built from the source of each minor that was released before it.
fn demanded(api: &str) -> Vec<String> {
    let minor: u32 = api.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap();
    let released = (0..minor).map(|minor| format!("api-1.{minor}"));
    ALL.into_iter().map(str::to_owned).chain(released).collect()
}

struct Golden {
    name: String,
    rustc: String,
    backend: Box<dyn RunnerBackend>,
}

/// What a passing run did not look at: an error where all is demanded, else a line that is seen without
/// `--nocapture`, too.
fn look_what_is_absent(files: &BTreeMap<String, PathBuf>) {
    let absent: Vec<String> =
        demanded(API_VERSION).into_iter().filter(|name| !files.contains_key(name)).collect();
    if absent.is_empty() {
        return;
    }
    let all = std::env::var_os("KAIROS_GOLDEN").is_some_and(|demand| demand == "all");
    assert!(!all, "golden runners are demanded and absent: {absent:?}");
    // What a test prints by the macros is kept from whoever runs it.
    let line =
        format!("NOT COVERED by golden_runners: {absent:?}; `.ci/golden` builds them and demands all\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// All of them, mapped into this process.
fn load(root: &Path) -> Vec<Golden> {
    let files = files(root);
    look_what_is_absent(&files);
    let store = PluginStore::new(root.join("store"));
    let load = |(name, path): (String, PathBuf)| {
        let file = PluginFile::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let kept = store.keep(&file).unwrap();
        let home = Arc::new(FakeHost::new());
        let backend = map(&kept, &file.sha256, &file.manifest, &Setup::new(json!({})), home);
        let backend = backend.unwrap_or_else(|error| panic!("{name}: {error}"));
        Golden { name, rustc: file.manifest.rustc, backend }
    };
    files.into_iter().map(load).collect()
}

/// One cycle with effects, the answers its own.
fn cycle(golden: &Golden, round: usize) {
    let name = &golden.name;
    let (id, line) = (format!("{name}-{round}"), format!("line {round}"));
    let host = FakeHost::new().reply(&line).tool_reply("fs.read", json!({"content": line}));
    let mandate = Mandate::new(&id, "be golden")
        .with_param("phases", true)
        .with_param("prompt", line.as_str())
        .with_param("tool", json!({"name": "fs.read", "args": {"path": line}}))
        .with_param("input_tokens", round);
    let report = golden.backend.run_cycle(&mandate, Arc::new(host.clone()));
    let report = report.unwrap_or_else(|error| panic!("{id}: {error}"));
    assert_eq!((report.status, report.input_tokens), (Status::Ok, round as u64), "{id}");
    assert_eq!(report.summary, Some(format!("cycle 1 of {id}")));
    assert_eq!(host.phases().len(), 5, "{id}");
    let steps = host.steps();
    assert_eq!(steps[0].request["messages"][0]["content"], json!(line), "{id}");
    assert_eq!(steps[1].request["args"]["path"], json!(line), "{id}");
}

/// A panic in one is its own; C has none, and reports an error of its own instead.
fn fault(golden: &Golden) {
    let mandate = Mandate::new("m", "fail").with_param("panic", true);
    match golden.backend.run_cycle(&mandate, Arc::new(FakeHost::new())) {
        Err(RunnerError::Panic(text)) => assert!(text.contains("the mandate asked for a panic"), "{text}"),
        Err(RunnerError::Call(error)) if golden.backend.identity().abi == "c" => {
            assert_eq!(error.code, code::INVALID, "{error}");
        }
        other => panic!("{}: {other:?}", golden.name),
    }
}

#[test]
fn the_golden_runners_there_are_run_side_by_side_in_one_process() {
    const THREADS: usize = 2;
    let root = tempfile::tempdir().unwrap();
    let goldens = load(root.path());
    assert!(goldens.len() >= 2, "side by side takes two");
    let generations: BTreeSet<&str> =
        goldens.iter().map(|golden| golden.backend.identity().generation.as_str()).collect();
    assert_eq!(generations.len(), goldens.len(), "each is a library of its own");
    let together = Barrier::new(goldens.len() * THREADS);
    std::thread::scope(|scope| {
        for golden in &goldens {
            for thread in 0..THREADS {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    for round in 0..25 {
                        cycle(golden, thread * 100 + round);
                        if round % 10 == 9 {
                            fault(golden);
                        }
                    }
                });
            }
        }
    });
    for golden in &goldens {
        golden.backend.probe().unwrap();
        golden.backend.begin_drain();
        println!("{}: {} {}", golden.name, golden.backend.identity().abi, golden.rustc);
    }
}

#[test]
fn each_golden_runner_says_which_compiler_built_it() {
    let made = tempfile::tempdir().unwrap();
    let files = files(made.path());
    let rustc = |name: &str| PluginFile::open(&files[name]).unwrap().manifest.rustc;
    assert!(rustc("current").starts_with("rustc "), "{}", rustc("current"));
    assert_eq!(rustc("gcc"), "", "C has no rustc");
    if files.contains_key("rustc-web") {
        assert!(rustc("rustc-web").starts_with("rustc "), "{}", rustc("rustc-web"));
        assert_ne!(rustc("rustc-web"), rustc("current"), "the other compiler is another one");
    } else {
        look_what_is_absent(&files);
    }
}

#[test]
fn a_later_minor_is_not_released_without_the_golden_runners_of_those_before_it() {
    assert_eq!(demanded("1.0.0"), ALL);
    assert_eq!(demanded("1.2.5")[ALL.len()..], ["api-1.0", "api-1.1"]);
}
