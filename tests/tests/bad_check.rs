//! `kairos plugin check` on every kind of bad file: one code for each, at most ten lines, what to do
//! about it, and the three-line difference where types do not fit. Nothing of it harms the command.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kairos_tests::c_plugin::compile;
use kairos_tests::hostile::{hostile_bytes, hostile_c, patched};
use kairos_tests::variant::bytes_of;
use kairos_tests::{Root, plugin, target_dir};
use serde_json::Value;

type Make = fn(&Path);

fn stub() -> Vec<u8> {
    fs::read(plugin("stub")).unwrap()
}

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

fn with(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = stub();
    change(&mut bytes);
    put(path, &bytes);
}

fn of(path: &Path, library: &str) {
    fs::copy(plugin(library), path).unwrap();
}

fn in_c(path: &Path, fault: &str) {
    compile("tests/fixtures/faults.c", &[fault], path);
}

fn hostile(path: &Path, defines: &[&str]) {
    fs::rename(hostile_c(path.parent().unwrap(), "made", defines), path).unwrap();
}

/// A Rust dylib of another kind: a macro that the compiler loaded.
fn of_a_macro(path: &Path) {
    let mut files = fs::read_dir(target_dir().join("deps")).unwrap().map(|entry| entry.unwrap().path());
    let is_macro = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "so") && path.to_string_lossy().contains("libserde_derive-")
    };
    fs::copy(files.find(is_macro).unwrap(), path).unwrap();
}

/// What is there, how it is made, its code, a word of the message.
const BAD: [(&str, Make, &str, &str); 26] = [
    ("nothing", |_| (), "not_found", "there is no file"),
    ("a file without a byte", |at| put(at, b""), "empty", "is empty"),
    ("half a file", |at| with(at, |bytes| bytes.truncate(bytes.len() / 2)), "truncated", "end of the file"),
    ("a file cut in its magic", |at| put(at, b"\x7fE"), "truncated", "no header"),
    // Sections of a size that no section has.
    ("damaged headers", |at| with(at, |bytes| bytes[58] = 7), "damaged", "damaged"),
    ("a directory", |at| fs::create_dir(at).unwrap(), "is_a_directory", "a directory"),
    (
        "a fifo",
        |at| rustix::fs::mknodat(rustix::fs::CWD, at, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap(),
        "is_a_fifo",
        "a fifo",
    ),
    ("a socket", |at| drop(std::os::unix::net::UnixListener::bind(at).unwrap()), "not_a_file", "a socket"),
    ("a link to itself", |at| std::os::unix::fs::symlink(at, at).unwrap(), "symlink_loop", "leads to itself"),
    ("1 GiB", |at| fs::File::create(at).unwrap().set_len(1 << 30).unwrap(), "too_large", "1073741824"),
    ("a script", |at| put(at, b"#!/bin/sh\necho hello\n"), "not_elf", "not an ELF file"),
    ("another machine's", |at| with(at, |bytes| bytes[18] ^= 0xff), "wrong_arch", "another machine"),
    ("a Rust dylib that is no runner", of_a_macro, "no_manifest", "no manifest"),
    (
        "a manifest of garbage",
        |at| put(at, &patched(stub(), "{\"schema\":1,", "[\"schema\":1,")),
        "bad_manifest",
        "bad manifest",
    ),
    ("a manifest that lies", |at| in_c(at, "OTHER_MANIFEST"), "manifest_lies", "something else than"),
    (
        "another major version",
        |at| put(at, &patched(stub(), "\"api\":\"1.0.0\"", "\"api\":\"2.0.0\"")),
        "wrong_major",
        "plugin-api 2.0.0",
    ),
    (
        "no root symbol",
        |at| put(at, &patched(stub(), "header_0root_bmodule_bloader", "header_0root_bmodule_bnobody")),
        "not_a_runner",
        "exports no runner",
    ),
    ("no table that can be used", |at| in_c(at, "NO_RUN"), "bad_table", "run_cycle is NULL"),
    ("other types", |at| of(at, "hostile_layout"), "layout_mismatch", "its types do not fit"),
    ("unsafe_no_layout_constant", |at| of(at, "hostile_no_layout"), "no_layout", "no type layout"),
    ("an undefined symbol", |at| hostile(at, &["UNDEFINED"]), "load_failed", "nobody_defines_this"),
    ("a constructor that crashes", |at| hostile(at, &["CONSTRUCTOR", "DO_SEGFAULT"]), "crashed", "SIGSEGV"),
    ("a root module that panics", |at| of(at, "hostile_load"), "panic_in_load", "panicked"),
    ("a probe that fails", |at| put(at, &bytes_of("unwell", 0)), "probe_failed", "does not feel well"),
    ("two manifests", two_manifests, "bad_manifest", "several sections"),
    ("a manifest of 10 MiB", |at| put(at, &hostile_bytes(&["HUGE"])), "bad_manifest", "are too many"),
];

fn two_manifests(at: &Path) {
    put(at, &patched(hostile_bytes(&["TWICE"]), ".kairos.manifesu", ".kairos.manifest"));
}

#[test]
fn every_kind_of_bad_file_has_a_code_of_its_own_and_at_most_ten_lines() {
    let root = Root::new();
    let mut kinds = BTreeMap::new();
    for (number, (what, make, code, word)) in BAD.into_iter().enumerate() {
        let dir = root.aside().join(format!("case-{number}"));
        fs::create_dir(&dir).unwrap();
        let file = dir.join("libbad.so");
        make(&file);
        let shown = file.to_str().unwrap();
        let ran = root.cli(&["plugin", "check", shown, "--json"]);
        assert_eq!(ran.code, 1, "{what}: {} {}", ran.stdout, ran.stderr);
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(report["loads"], false, "{what}: {report}");
        let errors = report["errors"].as_array().unwrap();
        assert_eq!((errors.len(), errors[0]["code"].as_str()), (1, Some(code)), "{what}: {report}");
        let (message, remedy) =
            (errors[0]["message"].as_str().unwrap(), errors[0]["remedy"].as_str().unwrap());
        assert!(message.contains(word), "{what}: {message}");
        assert!(remedy.len() > 10 && !remedy.contains('\n'), "{what}: {remedy}");
        // The failure on stderr says the same.
        let failure: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(
            (&failure["error"]["code"], &failure["error"]["remedy"]),
            (&errors[0]["code"], &errors[0]["remedy"])
        );

        let ran = root.cli(&["plugin", "check", shown]);
        let text = &ran.stdout;
        assert_eq!(ran.code, 1, "{what}");
        assert!(text.lines().count() <= 10, "{what}:\n{text}");
        assert!(text.contains(&format!("error    {code}: ")), "{what}:\n{text}");
        assert!(text.contains(&format!("remedy   {remedy}")), "{what}:\n{text}");
        let lines = message.lines().count();
        assert_eq!(lines, if code == "layout_mismatch" { 3 } else { 1 }, "{what}: {message}");
        assert!(message.lines().all(|line| text.contains(line)), "{what}:\n{text}");
        kinds.entry(code).or_insert_with(Vec::new).push(what);
    }
    let shared: Vec<_> = kinds.iter().filter(|(_, kinds)| kinds.len() > 1).map(|(code, _)| *code).collect();
    assert_eq!(shared, ["bad_manifest", "truncated"], "{kinds:?}");
}

#[test]
fn a_file_that_loads_with_a_reserve_says_so_in_ten_lines() {
    let root = Root::new();
    let file = root.aside().join("libaborts.so");
    put(&file, &patched(stub(), "\"panic\":\"unwind\"", "\"panic\":\"abort\" "));
    let ran = root.cli(&["plugin", "check", file.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.lines().count() <= 10 && ran.stdout.contains("cannot run in_process"),
        "{}",
        ran.stdout
    );
    // One of the next minor version, with more in each of its types, is taken as it is.
    let newer = root.json(&["plugin", "check", plugin("mutant_newer").to_str().unwrap()]);
    assert_eq!((&newer["loads"], &newer["abi"]), (&Value::Bool(true), &Value::from("rust 1.1.0")), "{newer}");
}

#[test]
fn what_is_nowhere_is_told_in_one_line_and_every_place_on_demand() {
    let root = Root::new().daemon_yml("  gone: {plugin: not-there}");
    let ran = root.cli(&["plugin", "check", "not-there"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.lines().count() <= 3 && ran.stdout.contains("libnot_there.so"), "{}", ran.stdout);
    let more = root.cli(&["plugin", "check", "not-there", "-v"]);
    let places = more.stdout.lines().filter(|line| line.starts_with("looked   ")).count();
    assert!(places >= 6, "{}", more.stdout);
    let ran = root.cli(&["plugin", "check", "not-there", "--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["errors"][0]["looked"].as_array().unwrap().len(), places, "{report}");

    // A daemon with such a runner: short in the list, in the reason and in the log, and once there.
    let mut daemon = root.start().unwrap();
    let added = root.json(&["mandate", "add", "wait", "--runner", "gone"]);
    let waits = root.wait_logged("daemon_runner_unavailable").unwrap();
    let reason = waits["reason"].as_str().unwrap();
    assert!(reason.len() < 300 && reason.contains(".kairos/plugins"), "{reason}");
    let list = root.json(&["plugin", "list"]);
    let row = list.as_array().unwrap().iter().find(|row| row["runner"] == "gone").unwrap();
    assert_eq!(row["looked"].as_array().unwrap().len(), places - 1, "{row}");
    assert!(!row["reason"].as_str().unwrap().contains(row["looked"][0].as_str().unwrap()), "{row}");
    root.json(&["reload"]);
    root.json(&["reload"]);
    assert_eq!(root.logged("runner_unavailable").len(), 1, "the same again is no news");
    // Another fault is.
    root.write("plugins/libnot_there.so", "text");
    root.json(&["reload"]);
    root.json(&["reload"]);
    let codes: Vec<_> =
        root.logged("runner_unavailable").iter().map(|line| line["details"]["code"].clone()).collect();
    assert_eq!(codes, ["not_found", "not_elf"]);
    let held = root.json(&["mandate", "show", added["id"].as_str().unwrap()]);
    assert_eq!(held["state"], "queued");
    assert_eq!(daemon.stop().unwrap(), 0);
}
