//! What a restart makes of a version that was swapped in: one that cannot be loaded, one that killed
//! the daemon, one whose errors were counted before, one that could not begin its cycles before.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;
use std::path::Path;

use anyhow::Result;
use kairos_tests::Root;
use kairos_tests::swaps::*;
use serde_json::{Value, json};

/// A trial that ends by failures and people only.
const LONG_TRIAL: &str =
    "swap: {canary_cycles: 1000, canary_time: 1h, canary_error_rate: 0, drain_timeout: 20s}";

fn distrust(root: &Root, sha256: &Value) {
    root.json(&["plugin", "trust", "--remove", sha256.as_str().unwrap()]);
}

fn summary(row: &Value) -> &str {
    last_cycle(row)["summary"].as_str().unwrap_or_default()
}

#[test]
fn a_version_on_trial_that_cannot_be_loaded_after_a_restart_gives_its_place_back() -> Result<()> {
    let root = isolated("plain", LONG_TRIAL, "process");
    let mut daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    let view = swapped(&root, &trusted(&root, "b"));
    distrust(&root, &view["generation"]);
    daemon.kill()?;
    let _daemon = root.start()?;
    let slot = serving(&root);
    assert_eq!((&slot["state"], &slot["generation"]), (&json!("active"), &view["from"]), "{slot}");
    assert_eq!(states(&root), ["rolled_back", "active"]);
    assert_eq!(run(&root, &["prompt=hello"])?, "plain after 2", "with its state as it was at the flip");
    let history = root.json(&["plugin", "history", "v"]);
    let reason = history[0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("it could not be loaded when the daemon started: "), "{history}");
    Ok(())
}

#[test]
fn a_version_past_its_trial_that_cannot_be_loaded_is_named_and_can_be_replaced_or_taken_back() -> Result<()> {
    let root = isolated("plain", NO_TRIAL, "process");
    let mut daemon = root.start()?;
    let view = swapped(&root, &trusted(&root, "b"));
    wait_states(&root, &["active", "retired"])?;
    distrust(&root, &view["generation"]);
    daemon.kill()?;
    let mut daemon = root.start()?;
    let slot = serving(&root);
    assert_eq!((&slot["state"], &slot["code"]), (&json!("unavailable"), &json!("untrusted")), "{slot}");
    let (reason, remedy) = (slot["reason"].as_str().unwrap(), slot["remedy"].as_str().unwrap());
    assert!(reason.contains(view["generation"].as_str().unwrap()), "{slot}");
    assert!(!reason.contains(configured(&root).to_str().unwrap()), "{slot}");
    assert!(remedy.contains("kairos plugin rollback v"), "{slot}");
    // Another version from the empty slot, and at the next start, too.
    let third = swapped(&root, &trusted(&root, "c"));
    assert_eq!(run(&root, &[])?, "c after 1");
    wait_states(&root, &["active", "retired", "retired"])?;
    assert_eq!(daemon.stop()?, 0);
    distrust(&root, &third["generation"]);
    let _daemon = root.start()?;
    assert_eq!(serving(&root)["state"], "unavailable");
    // And back to what can be had: the one before cannot, since nobody trusts it any more.
    let ran = root.cli(&["plugin", "rollback", "v", "--json"]);
    assert!(ran.code == 1 && ran.stderr.contains("untrusted"), "{} {}", ran.stdout, ran.stderr);
    trust(&root, Path::new(view["source"].as_str().unwrap()));
    root.json(&["plugin", "rollback", "v"]);
    assert_eq!(serving(&root)["generation"], view["generation"]);
    assert!(run(&root, &[])?.starts_with("b after"));
    Ok(())
}

/// A root whose daemon a version on trial has killed, the swap to that, and the mandate that it ran.
fn died_on_trial() -> Result<(Root, Value, String)> {
    let root = root("plain", LONG_TRIAL);
    let mut daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    let view = swapped(&root, &trusted(&root, "traps-abort"));
    let id = root.add("work", &["trap=true", "prompt=hello"]);
    assert!(daemon.wait()?.code().is_none(), "by a signal");
    Ok((root, view, id))
}

#[test]
fn a_version_on_trial_that_kills_the_daemon_is_rolled_back_by_the_next_start() -> Result<()> {
    let (root, view, id) = died_on_trial()?;
    let _daemon = root.start()?;
    let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_eq!((&row["state"], summary(&row)), (&json!("succeeded"), "plain after 2"), "{row}");
    assert_eq!(row["cycles"][0]["status"], "interrupted", "{row}");
    assert_eq!(serving(&root)["generation"], view["from"]);
    assert_eq!(states(&root), ["rolled_back", "active"]);
    Ok(())
}

/// As if a mandate had been running in so many boots that died that the next one is the last.
fn close_to_its_crash_limit(root: &Root, id: &str) -> Result<()> {
    let store = rusqlite::Connection::open(root.file("state/store.db"))?;
    assert_eq!(store.execute("UPDATE mandate SET deaths=57 WHERE id=?1 AND state='running'", [id])?, 1);
    store.close().map_err(|(_, error)| error)?;
    Ok(())
}

#[test]
fn a_mandate_that_comes_to_its_crash_limit_on_a_version_that_is_rolled_back_is_run_again() -> Result<()> {
    let (root, view, id) = died_on_trial()?;
    close_to_its_crash_limit(&root, &id)?;
    let mut daemon = root.start()?;
    let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_eq!((&row["state"], summary(&row)), (&json!("succeeded"), "plain after 2"), "{row}");
    assert_eq!(row["cycles"][0]["status"], "rolled_back", "{row}");
    assert_eq!(serving(&root)["generation"], view["from"]);
    assert_eq!(states(&root), ["rolled_back", "active"]);
    // Where no version on trial is to blame, a person looks as ever.
    let gate = root.aside().join("gate");
    let second = root.add("work", &[&format!("gate={}", json!(gate.display().to_string()))]);
    root.wait_state(&second, &["running"])?;
    daemon.kill()?;
    close_to_its_crash_limit(&root, &second)?;
    let _daemon = root.start()?;
    let row = root.wait_state(&second, &["succeeded", "failed", "review"])?;
    assert_eq!((&row["state"], &row["reason"]), (&json!("review"), &json!("crash_loop")), "{row}");
    Ok(())
}

#[test]
fn cycles_that_a_version_on_trial_could_not_begin_count_across_restarts() -> Result<()> {
    let settings = "swap: {canary_cycles: 20, canary_time: 1h, canary_error_rate: 0.05, drain_timeout: 20s}";
    let (root, broken) = breakable(settings);
    let mut daemon = root.start()?;
    run(&root, &[])?;
    let view = swapped(&root, &trusted(&root, "breaks"));
    let errors = || serving(&root)["swap"]["canary"]["errors"].clone();
    let (first, gate) = occupied(&root)?;
    fs::write(&broken, "")?;
    let waits = root.add("work", &[]);
    root.wait_for("a cycle that could not begin", || (errors() == 1).then_some(()))?;
    daemon.kill()?;
    fs::write(&gate, "")?;
    fs::remove_file(&broken)?;
    let _daemon = root.start()?;
    assert_eq!(errors(), 1, "what could not begin before is not forgotten");
    for id in [first, waits] {
        assert_eq!(root.wait_state(&id, &["succeeded", "failed", "review"])?["state"], "succeeded");
    }
    assert_eq!(serving(&root)["generation"], view["generation"], "one in twenty may");
    Ok(())
}

#[test]
fn errors_of_a_version_on_trial_count_across_restarts() -> Result<()> {
    let settings = "swap: {canary_cycles: 10, canary_error_rate: 0.1, drain_timeout: 20s}";
    let root = isolated("plain", settings, "process");
    let mut daemon = root.start()?;
    run(&root, &[])?;
    let view = swapped(&root, &trusted(&root, "traps-fail"));
    let first = root.add("work", &["trap=true"]);
    root.wait_for("an error", || {
        let row = root.json(&["mandate", "show", &first]);
        row["cycles"].as_array().is_some_and(|cycles| cycles[0]["status"] == "error").then_some(())
    })?;
    daemon.kill()?;
    // Its second error is one too many; the mandate's own next try is that already.
    let _daemon = root.start()?;
    wait_states(&root, &["rolled_back", "active"])?;
    assert_eq!(serving(&root)["generation"], view["from"]);
    let history = root.json(&["plugin", "history", "v"]);
    assert!(history[0]["reason"].as_str().unwrap().starts_with("2 of its 2 cycles"), "{history}");
    assert_eq!(root.wait_state(&first, &["succeeded", "failed", "review"])?["state"], "succeeded");
    Ok(())
}

/// What `config check` finds, and the verdict of `doctor` on the runner that it finds it of.
fn checked(root: &Root, exit: i32) -> (Value, Value) {
    let ran = root.cli(&["config", "check", "--json"]);
    assert_eq!(ran.code, exit, "{} {}", ran.stdout, ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let doctor: Value = serde_json::from_str(&root.cli(&["doctor", "--json"]).stdout).unwrap();
    let rows = doctor["checks"].as_array().unwrap().clone();
    let of_runner = |row: &&Value| row["name"] == "runner" && row["verdict"] != "ok";
    let verdict = rows.iter().find(of_runner).map_or(Value::Null, |row| row["verdict"].clone());
    (report["problems"].clone(), verdict)
}

#[test]
fn a_check_says_what_serves_in_place_of_a_configured_file_that_is_gone() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let mut daemon = root.start()?;
    let view = swapped(&root, &trusted(&root, "b"));
    wait_states(&root, &["active", "retired"])?;
    assert_eq!(checked(&root, 0), (json!([]), Value::Null), "nothing is wrong");
    fs::remove_file(configured(&root))?;
    let sha256 = view["generation"].as_str().unwrap();
    let says = |problems: &Value| {
        let problem = &problems[0];
        assert_eq!(
            (&problem["level"], &problem["code"]),
            (&json!("warning"), &json!("not_found")),
            "{problem}"
        );
        let message = problem["message"].as_str().unwrap();
        let serves =
            format!("version 0.1.0 ({}), which was swapped in, serves after the next start", &sha256[..12]);
        assert!(message.contains(&serves), "{message}");
        assert_eq!(problems.as_array().unwrap().len(), 1, "{problems}");
    };
    let (problems, verdict) = checked(&root, 0);
    says(&problems);
    assert_eq!(verdict, "warn");
    assert_eq!(daemon.stop()?, 0);
    says(&checked(&root, 0).0);
    let mut daemon = root.start()?;
    assert_eq!(serving(&root)["generation"], sha256, "and so it is");
    assert_eq!(daemon.stop()?, 0);
    // Without the kept copy nothing could serve.
    fs::remove_file(root.file(&format!("state/plugins/{sha256}.so")))?;
    let (problems, verdict) = checked(&root, 2);
    assert_eq!((&problems[0]["level"], &problems[0]["code"]), (&json!("error"), &json!("generation_gone")));
    assert_eq!(verdict, "fail");
    let _daemon = root.start()?;
    assert_eq!(serving(&root)["code"], "generation_gone");
    Ok(())
}

#[test]
fn a_check_says_which_version_comes_back_when_the_one_on_trial_cannot_be_loaded() -> Result<()> {
    let root = isolated("plain", LONG_TRIAL, "process");
    let mut daemon = root.start()?;
    let view = swapped(&root, &trusted(&root, "b"));
    assert_eq!(daemon.stop()?, 0);
    distrust(&root, &view["generation"]);
    let (problems, verdict) = checked(&root, 0);
    let problem = &problems[0];
    assert_eq!((&problem["level"], &problem["code"]), (&json!("warning"), &json!("untrusted")), "{problem}");
    let message = problem["message"].as_str().unwrap();
    let short = &view["from"].as_str().unwrap()[..12];
    let serves = format!("version 0.1.0 ({short}), which stands by for the version on trial, serves");
    assert!(message.contains(&serves), "{message}");
    assert_eq!(verdict, "warn");
    let _daemon = root.start()?;
    assert_eq!(serving(&root)["generation"], view["from"], "and so it is");
    Ok(())
}
