//! What `config check` and `doctor` say of runners before a daemon starts is what the daemon that
//! starts says of them: the same code, the same remedy, at the line of daemon.yml to change.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kairos_tests::hostile::{hostile_bytes, hostile_c, patched};
use kairos_tests::variant::bytes_of;
use kairos_tests::{Root, plugin};
use serde_json::Value;

/// The runner, its entry, the code, the key that is to be changed.
const BAD: [(&str, &str, &str, &str); 15] = [
    ("gone", "plugin: ./gone.so", "not_found", "plugin"),
    ("nameless", "plugin: no-such-runner", "not_found", "plugin"),
    ("empty", "plugin: ./empty.so", "empty", "plugin"),
    ("folder", "plugin: ./folder.so", "is_a_directory", "plugin"),
    ("circle", "plugin: ./circle.so", "symlink_loop", "plugin"),
    ("script", "plugin: ./script.so", "not_elf", "plugin"),
    ("half", "plugin: ./half.so", "truncated", "plugin"),
    ("major", "plugin: ./major.so", "wrong_major", "plugin"),
    ("types", "plugin: ./types.so", "layout_mismatch", "plugin"),
    ("crashes", "plugin: ./crashes.so", "crashed", "plugin"),
    ("stray", "plugin: ./stray.so, isolation: process", "untrusted", "isolation"),
    ("within", "plugin: ./stray.so, isolation: in_process", "untrusted", "isolation"),
    ("signed", "plugin: ./signed.so, isolation: process", "signature_unreadable", "isolation"),
    ("granted", "plugin: ./granted.so, grants: {read: [in]}", "bad_grant", "grants"),
    ("unwell", "plugin: ./unwell.so, isolation: in_process", "probe_failed", "plugin"),
];

fn lay_out(root: &Root) -> String {
    let at = |name: &str| root.path().join(format!("{name}.so"));
    let stub = fs::read(plugin("stub")).unwrap();
    fs::write(at("empty"), b"").unwrap();
    fs::create_dir(at("folder")).unwrap();
    std::os::unix::fs::symlink(at("circle"), at("circle")).unwrap();
    fs::write(at("script"), b"#!/bin/sh\n").unwrap();
    fs::write(at("half"), &stub[..stub.len() / 2]).unwrap();
    fs::write(at("major"), patched(stub.clone(), "\"api\":\"1.0.0\"", "\"api\":\"2.0.0\"")).unwrap();
    fs::copy(plugin("hostile_layout"), at("types")).unwrap();
    fs::rename(hostile_c(root.aside(), "made", &["CONSTRUCTOR", "DO_SEGFAULT"]), at("crashes")).unwrap();
    // Another content than the stub beside the executable.
    fs::write(at("stray"), hostile_bytes(&[])).unwrap();
    fs::write(at("signed"), hostile_bytes(&["UNDEFINED"])).unwrap();
    fs::write(root.path().join("signed.so.sig"), "no signature").unwrap();
    fs::copy(plugin("hostile_escape"), at("granted")).unwrap();
    fs::write(at("unwell"), bytes_of("unwell", 0)).unwrap();
    assert_eq!(root.cli(&["plugin", "trust", at("unwell").to_str().unwrap()]).code, 0);
    let entries = BAD.map(|(name, entry, ..)| format!("  {name}: {{{entry}}}\n"));
    entries.concat()
}

fn find<'a>(rows: &'a Value, key: &str, wanted: &str) -> &'a Value {
    let rows = rows.as_array().unwrap();
    rows.iter().find(|row| row[key] == wanted).unwrap_or_else(|| panic!("no {key} {wanted}: {rows:#?}"))
}

#[test]
fn a_check_says_of_each_runner_what_the_start_will_say() {
    let root = Root::new();
    let entries = lay_out(&root);
    root.set_daemon_yml(&entries);
    let yml = fs::read_to_string(root.file("config/daemon.yml")).unwrap();

    let ran = root.cli(&["config", "check", "--json"]);
    assert_eq!(ran.code, 2, "{} {}", ran.stdout, ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let human = root.cli(&["config", "check"]);
    assert_eq!(human.code, 2);
    let doctor = root.cli(&["doctor", "--json"]);
    assert_eq!(doctor.code, 1, "{}", doctor.stdout);
    let doctor: Value = serde_json::from_str(&doctor.stdout).unwrap();
    let failed: Vec<&str> = doctor["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["verdict"] == "fail")
        .map(|check| check["message"].as_str().unwrap())
        .collect();

    let _daemon = root.start().unwrap();
    let list = root.json(&["plugin", "list"]);
    for (name, _, code, key) in BAD {
        let key = format!("runners.{name}.{key}");
        let problem = find(&report["problems"], "key", &key);
        assert_eq!((&problem["level"], problem["code"].as_str()), (&"error".into(), Some(code)), "{problem}");
        let line =
            yml.lines().position(|line| line.trim_start().starts_with(&format!("{name}:"))).unwrap() + 1;
        assert_eq!(problem["line"], line, "{problem}");
        let place = format!(".kairos/config/daemon.yml:{line}:1: {key}: {code}: ");
        assert!(human.stdout.contains(&place), "{place}\n{}", human.stdout);
        assert!(failed.iter().any(|said| said.contains(&place)), "{place}\n{failed:#?}");
        let row = find(&list, "runner", name);
        assert_eq!((row["state"].as_str(), row["code"].as_str()), (Some("unavailable"), Some(code)), "{row}");
        assert_eq!((&row["reason"], &row["remedy"]), (&problem["message"], &problem["remedy"]), "{name}");
    }
    let errors = report["problems"].as_array().unwrap().iter().filter(|problem| problem["level"] == "error");
    assert_eq!(errors.count(), BAD.len(), "{:#}", report["problems"]);
    assert_eq!(find(&list, "runner", "stub")["state"], "active");
}

#[test]
fn a_check_is_content_with_runners_that_serve_and_warns_of_one_that_says_it_is_unwell() {
    let root = Root::new();
    let (stray, unwell) = (root.path().join("stray.so"), root.path().join("unwell.so"));
    fs::copy(plugin("hostile_runner"), &stray).unwrap();
    fs::write(&unwell, bytes_of("unwell", 0)).unwrap();
    root.set_daemon_yml(
        "  here: {plugin: stub}\n  stray: {plugin: ./stray.so}\n  unwell: {plugin: ./unwell.so}\n",
    );
    let report = root.json(&["config", "check"]);
    assert_eq!((&report["errors"], &report["warnings"]), (&0.into(), &1.into()), "{report:#}");
    let problem = find(&report["problems"], "key", "runners.unwell.plugin");
    assert_eq!(problem["code"], "probe_failed", "{problem}");
    let doctor = root.json(&["doctor"]);
    let said = |runner: &str| {
        let checks = doctor["checks"].as_array().unwrap();
        let named = |check: &&Value| check["message"].as_str().unwrap().contains(&format!("`{runner}`"));
        checks.iter().find(named).unwrap_or_else(|| panic!("{runner}: {doctor:#}")).clone()
    };
    assert_eq!(said("here")["verdict"], "ok");
    assert!(said("here")["message"].as_str().unwrap().contains("process"), "{}", said("here"));
    assert!(said("stray")["message"].as_str().unwrap().contains("sandbox"), "{}", said("stray"));
    let _daemon = root.start().unwrap();
    let list = root.json(&["plugin", "list"]);
    for name in ["stub", "here", "stray", "unwell"] {
        assert_eq!(find(&list, "runner", name)["state"], "active", "{list:#}");
    }
}

#[test]
fn a_check_leaves_nothing_behind_and_needs_no_right_to_write() {
    let root = Root::new();
    let before = listing(root.path());
    for command in [&["config", "check"][..], &["doctor"]] {
        let ran = root.cli(command);
        assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    }
    assert_eq!(listing(root.path()), before);
    let mode = |mode| fs::set_permissions(root.file(""), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    let ran = root.cli(&["config", "check"]);
    mode(0o755);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
}

fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.display().to_string());
        if path.is_dir() {
            found.extend(listing(&path));
        }
    }
    found.sort();
    found
}
