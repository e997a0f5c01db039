//! Swaps that meet something else: the swap of another runner, a roll back, a reload that removes the
//! runner, trust that ends in the middle. Each comes to an end that is told, and no runner is stuck.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use kairos_tests::swaps::*;
use kairos_tests::{Ran, Root};
use serde_json::{Value, json};

/// Nothing here ends by itself while a test looks.
const PATIENT: &str = "max_concurrent_cycles: 4\n\
    swap: {shadow_deadline: 60s, canary_cycles: 1000, canary_time: 1h, drain_timeout: 300s}";

/// A root with a second runner `w` beside `v`, which can be removed.
fn two(settings: &str) -> Root {
    let root = isolated("plain", settings, "process");
    let entry =
        format!("runners:\n  w: {{plugin: {:?}, isolation: process}}\n", path(&trusted(&root, "plain")));
    let text = fs::read_to_string(root.file("config/daemon.yml")).unwrap();
    let text = text.replace("default_runner: v", "default_runner: w").replace("runners:\n", &entry);
    root.write("config/daemon.yml", &text);
    root
}

fn path(file: &Path) -> String {
    file.display().to_string()
}

/// The slot of a runner as `plugin list` shows it; null when it is not configured.
fn slot(root: &Root, runner: &str) -> Value {
    let list = root.json(&["plugin", "list"]);
    let found = list.as_array().unwrap().iter().find(|row| row["runner"] == runner);
    found.cloned().unwrap_or_default()
}

fn add(root: &Root, runner: &str, params: &[&str]) -> String {
    let params = params.iter().flat_map(|param| ["--param", param]);
    let args: Vec<&str> = ["mandate", "add", "work", "--runner", runner].into_iter().chain(params).collect();
    root.json(&args)["id"].as_str().unwrap().to_owned()
}

/// Runs a mandate to its success on that runner: its summary.
fn run_on(root: &Root, runner: &str) -> Result<String> {
    let id = add(root, runner, &["prompt=hello"]);
    let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_eq!(row["state"], "succeeded", "{row}");
    Ok(last_cycle(&row)["summary"].as_str().unwrap().to_owned())
}

/// A cycle of a runner that runs until its file is there.
fn gated(root: &Root, runner: &str) -> Result<(String, PathBuf)> {
    // One of its own each: a replay of the cycle finds it where it was.
    static MADE: AtomicU32 = AtomicU32::new(0);
    let gate = root.aside().join(format!("gate-{}", MADE.fetch_add(1, Ordering::Relaxed)));
    let id = add(root, runner, &[&format!("gate={}", json!(path(&gate)))]);
    root.wait_state(&id, &["running"])?;
    Ok((id, gate))
}

/// Begins a swap of a runner and waits until it has come to that stage.
fn begin(root: &Root, runner: &str, mode: &str, stage: &str) -> Result<Value> {
    let file = path(&trusted(root, mode));
    let begun = root.json(&["plugin", "swap", runner, &file, "--no-wait"]);
    root.wait_for(stage, || {
        let seen = &slot(root, runner)["swap"];
        (seen["id"] == begun["id"] && seen["stage"] == stage).then_some(())
    })?;
    Ok(begun)
}

/// Takes `v` out of daemon.yml, or puts it back.
fn without_v(root: &Root, text: &str) {
    let left: Vec<&str> = text.lines().filter(|line| !line.starts_with("  v:")).collect();
    root.write("config/daemon.yml", &left.join("\n"));
    root.json(&["reload"]);
    assert!(slot(root, "v").is_null());
}

fn with_v(root: &Root, text: &str) {
    root.write("config/daemon.yml", text);
    root.json(&["reload"]);
}

fn history(root: &Root) -> Value {
    root.json(&["plugin", "history", "v"])
}

fn code(ran: &Ran) -> (i32, String) {
    let error: Value = serde_json::from_str(&ran.stderr).unwrap_or_else(|_| panic!("{ran:?}"));
    (ran.code, error["error"]["code"].as_str().unwrap().to_owned())
}

#[test]
fn swaps_of_two_runners_go_on_side_by_side() -> Result<()> {
    let root = two(PATIENT);
    let _daemon = root.start()?;
    for runner in ["v", "w"] {
        assert_eq!(run_on(&root, runner)?, "plain after 1");
    }
    // One waits for its boundary; the other one passes it.
    let (id, gate) = gated(&root, "v")?;
    begin(&root, "v", "b", "handover")?;
    let file = path(&trusted(&root, "c"));
    assert_eq!(root.json(&["plugin", "swap", "w", &file])["stage"], "canary");
    assert_eq!(run_on(&root, "w")?, "c after 2");
    assert_eq!(slot(&root, "v")["swap"]["stage"], "handover");
    fs::write(&gate, "")?;
    root.wait_for("the other flip", || (slot(&root, "v")["swap"]["stage"] == "canary").then_some(()))?;
    assert_eq!(root.wait_state(&id, &["succeeded", "failed", "review"])?["state"], "succeeded");
    assert_eq!(run_on(&root, "v")?, "b after 3");
    // And back, each by itself.
    root.json(&["plugin", "rollback", "v"]);
    assert!(run_on(&root, "v")?.starts_with("plain after"));
    assert!(run_on(&root, "w")?.starts_with("c after"));
    // Both at the same moment.
    root.json(&["plugin", "rollback", "w"]);
    let files = ["d", "e"].map(|mode| path(&trusted(&root, mode)));
    let stages = std::thread::scope(|scope| {
        let (one, other) = (&files[0], &files[1]);
        let one = scope.spawn(|| root.json(&["plugin", "swap", "v", one])["stage"].clone());
        let other = scope.spawn(|| root.json(&["plugin", "swap", "w", other])["stage"].clone());
        [one.join().unwrap(), other.join().unwrap()]
    });
    assert_eq!(stages, ["canary", "canary"]);
    assert!(run_on(&root, "v")?.starts_with("d after"));
    assert!(run_on(&root, "w")?.starts_with("e after"));
    Ok(())
}

#[test]
fn a_roll_back_while_a_swap_is_under_way_is_a_conflict_and_works_once_that_is_given_up() -> Result<()> {
    let root = two("swap: {shadow_deadline: 60s, canary_cycles: 0, drain_timeout: 300s}");
    let _daemon = root.start()?;
    run_on(&root, "v")?;
    let first = slot(&root, "v")["generation"].clone();
    root.json(&["plugin", "swap", "v", &path(&trusted(&root, "b"))]);
    root.wait_for("the end of its drain", || (history(&root)[1]["state"] == "retired").then_some(()))?;
    let begun = begin(&root, "v", "hangs", "shadow")?;
    let ran = root.cli(&["plugin", "rollback", "v", "--json"]);
    assert_eq!(code(&ran), (5, "conflict".to_owned()), "{ran:?}");
    assert!(ran.stderr.contains(begun["id"].as_str().unwrap()), "{ran:?}");
    assert!(ran.stderr.contains("kairos plugin swap v --abort"), "{ran:?}");
    assert_eq!(slot(&root, "v")["swap"]["stage"], "shadow", "it goes on");
    assert_eq!(root.cli(&["plugin", "swap", "v", "--abort"]).code, 0);
    root.json(&["plugin", "rollback", "v"]);
    assert_eq!(slot(&root, "v")["generation"], first);
    assert!(run_on(&root, "v")?.starts_with("plain after"));
    Ok(())
}

#[test]
fn a_swap_of_a_runner_that_a_reload_removes_can_be_given_up_and_the_runner_comes_back() -> Result<()> {
    let root = two(PATIENT);
    let _daemon = root.start()?;
    run_on(&root, "v")?;
    let text = fs::read_to_string(root.file("config/daemon.yml"))?;
    let before = slot(&root, "v")["generation"].clone();
    for (mode, stage) in [("never-new", "probe"), ("hangs", "shadow"), ("b", "handover")] {
        let (id, gate) = gated(&root, "v")?;
        let begun = begin(&root, "v", mode, stage)?;
        without_v(&root, &text);
        assert_eq!(run_on(&root, "w")?.split(' ').next(), Some("plain"), "{stage}");
        let ran = root.cli(&["plugin", "swap", "v", "--abort", "--json"]);
        assert_eq!(ran.code, 0, "{stage}: {ran:?}");
        fs::write(&gate, "")?;
        assert_eq!(root.wait_state(&id, &["succeeded", "failed", "review"])?["state"], "succeeded");
        let newest = &history(&root)[0];
        assert_eq!(
            (&newest["swap"], &newest["refused"]["code"]),
            (&begun["id"], &json!("aborted")),
            "{newest}"
        );
        with_v(&root, &text);
        assert_eq!(slot(&root, "v")["generation"], before, "{stage}");
        run_on(&root, "v")?;
    }
    // Nothing of it is left to be given up.
    without_v(&root, &text);
    let ran = root.cli(&["plugin", "swap", "v", "--abort", "--json"]);
    assert_eq!(code(&ran), (3, "not_found".to_owned()));
    Ok(())
}

#[test]
fn a_swap_of_a_runner_that_a_reload_removes_ends_by_itself() -> Result<()> {
    let root = two(PATIENT);
    let _daemon = root.start()?;
    run_on(&root, "v")?;
    let text = fs::read_to_string(root.file("config/daemon.yml"))?;
    let before = slot(&root, "v")["generation"].clone();
    for comes_back in [false, true] {
        let (id, gate) = gated(&root, "v")?;
        let begun = begin(&root, "v", "b", "handover")?;
        without_v(&root, &text);
        if comes_back {
            // The entry is the same, and yet another instance serves it.
            with_v(&root, &text);
        }
        fs::write(&gate, "")?;
        assert_eq!(root.wait_state(&id, &["succeeded", "failed", "review"])?["state"], "succeeded");
        root.wait_for("the end of the swap", || {
            let newest = history(&root)[0].clone();
            (newest["swap"] == begun["id"] && newest["state"] == "refused").then_some(())
        })?;
        let expected = if comes_back { "conflict" } else { "unknown_runner" };
        assert_eq!(history(&root)[0]["refused"]["code"], expected);
        with_v(&root, &text);
        assert_eq!(slot(&root, "v")["generation"], before);
        run_on(&root, "v")?;
    }
    Ok(())
}

#[test]
fn a_trial_of_a_runner_that_a_reload_removes_is_over_in_the_history_too() -> Result<()> {
    let root = two(PATIENT);
    let mut daemon = root.start()?;
    run_on(&root, "v")?;
    let text = fs::read_to_string(root.file("config/daemon.yml"))?;
    let first = slot(&root, "v")["generation"].clone();
    let second = root.json(&["plugin", "swap", "v", &path(&trusted(&root, "b"))])["generation"].clone();
    without_v(&root, &text);
    assert_eq!(states(&root), ["active", "retired"], "nothing stands by any more");
    with_v(&root, &text);
    let serves = slot(&root, "v");
    assert_eq!((&serves["generation"], &serves["swap"]), (&second, &Value::Null), "{serves}");
    assert!(run_on(&root, "v")?.starts_with("b after"));
    // A restart finds the same.
    daemon.kill()?;
    let _daemon = root.start()?;
    let serves = slot(&root, "v");
    assert_eq!((&serves["generation"], &serves["swap"]), (&second, &Value::Null), "{serves}");
    root.json(&["plugin", "rollback", "v"]);
    assert_eq!(slot(&root, "v")["generation"], first);
    assert_eq!(states(&root), ["active", "rolled_back", "retired"]);
    Ok(())
}

#[test]
fn a_candidate_whose_trust_ends_before_its_flip_does_not_serve() -> Result<()> {
    let root = two(PATIENT);
    let _daemon = root.start()?;
    run_on(&root, "v")?;
    let before = slot(&root, "v")["generation"].clone();
    for reloads in [false, true] {
        let (id, gate) = gated(&root, "v")?;
        begin(&root, "v", "b", "handover")?;
        let candidate = slot(&root, "v")["swap"]["generation"].as_str().unwrap().to_owned();
        root.json(&["plugin", "trust", "--remove", &candidate]);
        if reloads {
            root.json(&["reload"]);
        }
        fs::write(&gate, "")?;
        root.wait_for("the end of the swap", || slot(&root, "v")["swap"].is_null().then_some(()))?;
        let newest = &history(&root)[0];
        assert_eq!((&newest["state"], &newest["refused"]["code"]), (&json!("refused"), &json!("untrusted")));
        assert_eq!(root.wait_state(&id, &["succeeded", "failed", "review"])?["state"], "succeeded");
        assert_eq!(slot(&root, "v")["generation"], before);
        run_on(&root, "v")?;
    }
    Ok(())
}

#[test]
fn a_swap_from_a_version_whose_trust_has_ended_meanwhile_leaves_a_way_on() -> Result<()> {
    let root = two(PATIENT);
    let _daemon = root.start()?;
    run_on(&root, "v")?;
    let before = slot(&root, "v")["generation"].as_str().unwrap().to_owned();
    let (id, gate) = gated(&root, "v")?;
    begin(&root, "v", "b", "handover")?;
    let file = PathBuf::from(slot(&root, "v")["swap"]["source"].as_str().unwrap());
    root.json(&["plugin", "trust", "--remove", &before]);
    let ran = root.cli(&["reload", "--json"]);
    assert_eq!(code(&ran), (1, "out_of_service".to_owned()));
    assert_eq!(slot(&root, "v")["code"], "untrusted");
    fs::write(&gate, "")?;
    root.wait_state(&id, &["succeeded", "failed", "review", "queued"])?;
    root.wait_for("the end of the swap", || slot(&root, "v")["swap"].is_null().then_some(()))?;
    // The slot was emptied under it; the same file is taken from there.
    let newest = &history(&root)[0];
    assert_eq!(
        (&newest["state"], &newest["refused"]["code"]),
        (&json!("refused"), &json!("conflict")),
        "{newest}"
    );
    assert_ne!(root.json(&["plugin", "swap", "v", &path(&file)])["stage"], "refused");
    assert!(run_on(&root, "v")?.starts_with("b after"));
    Ok(())
}
