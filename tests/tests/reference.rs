//! A root of the reference is taken over on the first start, once, and nothing it spent or began is
//! forgotten; a store that is lost is never taken for a first start.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::fs;
use std::path::{Path, PathBuf};

use kairos_tests::Root;
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/reference")
}

/// The golden root, with the stub as runner and its budget as of today.
fn taken() -> Root {
    let text = |name: &str| fs::read_to_string(golden().join(name)).unwrap();
    let root = Root::new().daemon_yml(&text("daemon.yml")).schedules_yml(&text("schedules.yml"));
    let today = chrono::Utc::now().format("%Y-%m-%d").to_string();
    root.write("state/budget.json", &text("budget.json").replace("2026-11-21", &today));
    root.write("chronos_state.yml", &text("chronos_state.yml"));
    fs::create_dir_all(root.file("wal")).unwrap();
    for entry in fs::read_dir(golden().join("wal")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), root.file("wal").join(entry.file_name())).unwrap();
    }
    root
}

fn ids(root: &Root, state: &str) -> Vec<String> {
    let rows = root.json(&["mandate", "list", "--state", state]);
    let mut ids: Vec<String> =
        rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    ids.sort_unstable();
    ids
}

fn calls(root: &Root) -> Value {
    root.json(&["budget", "show"])["spent"]["calls"].clone()
}

#[test]
fn files_of_the_reference_are_taken_over_once() {
    let root = taken();
    for _ in 0..2 {
        assert_eq!(ids(&root, "queued"), ["inbox_watch"]);
        assert_eq!(
            ids(&root, "review"),
            ["bad_middle", "needs_eyes", "repo_tidy", "reset_once", "torn_tail"]
        );
        assert_eq!(ids(&root, "succeeded"), ["daily_summary", "nightly_build"]);
        assert_eq!(ids(&root, "cancelled"), ["gave_up"]);
        assert_eq!(calls(&root), 127);
    }
    let shown = root.json(&["mandate", "show", "inbox_watch"]);
    assert_eq!(shown["goal"], "Look at the inbox");
    assert_eq!(shown["schedule"], "inbox_watch");
    // The bad bytes are kept, and every log is sound now.
    let kept = |name: &str| root.file("wal").join(name).exists();
    assert!(kept("bad_middle.wal.jsonl.corrupt-1") || kept("bad_middle.wal.jsonl.cut-1"));
    assert!(kept("torn_tail.wal.jsonl.cut-1"));
    assert_eq!(root.json(&["wal", "verify"])["fine"], true);
}

#[test]
fn a_damaged_budget_without_a_store_stops_the_start() {
    let root = taken();
    root.write("state/budget.json", "{\"date\":\"2026-11-21\",\"llm_ca");
    let ran = root.cli(&["mandate", "list"]);
    assert_eq!(ran.code, 8, "{}", ran.stderr);
    assert!(ran.stderr.contains("budget.json") && ran.stderr.contains("remedy"), "{}", ran.stderr);
    assert_eq!(root.cli(&["mandate", "list"]).code, 8, "the next start is a first one again");
    assert_eq!(fs::read(root.file("state/budget.json")).unwrap(), b"{\"date\":\"2026-11-21\",\"llm_ca");
}

#[test]
fn a_lost_store_is_not_a_first_start() {
    let root = Root::new();
    let id = root.json(&["mandate", "add", "tidy"])["id"].as_str().unwrap().to_owned();
    let ran = root.cli(&["run", "--once"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for name in ["store.db", "store.db-wal", "store.db-shm", "store.db.clean"] {
        let _ = fs::remove_file(root.file("state").join(name));
    }
    let ran = root.cli(&["mandate", "list"]);
    assert_eq!(ran.code, 8, "{id}: {}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("--from-wal"), "{}", ran.stderr);
    let back = root.cli(&["recover", "--from-wal", "--json"]);
    assert_eq!(back.code, 0, "{}", back.stderr);
    assert_eq!(ids(&root, "succeeded"), [id]);
}
