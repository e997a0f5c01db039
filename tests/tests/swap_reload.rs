//! A reload, or a change of trust, that meets a swap or a trial: what serves afterwards is what the
//! configuration and the trust of now want, and no runner is stuck between two versions.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;
use std::path::Path;

use anyhow::Result;
use kairos_tests::Root;
use kairos_tests::swaps::*;
use kairos_tests::variant::version;
use serde_json::{Value, json};

/// A trial that ends by failures and people only.
const LONG_TRIAL: &str =
    "swap: {canary_cycles: 1000, canary_time: 1h, canary_error_rate: 0, drain_timeout: 20s}";

/// Changes daemon.yml and has the daemon take it.
fn edit(root: &Root, from: &str, to: &str) {
    let path = root.file("config/daemon.yml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replace(from, to)).unwrap();
    root.json(&["reload"]);
}

/// A runner that has nothing else to serve it is out of service then, and the exit code says so.
fn distrust(root: &Root, sha256: &Value, exit: i32) {
    root.json(&["plugin", "trust", "--remove", sha256.as_str().unwrap()]);
    let ran = root.cli(&["reload"]);
    assert_eq!(ran.code, exit, "{}", ran.stderr);
}

fn path(file: &Path) -> String {
    file.display().to_string()
}

#[test]
fn a_version_that_comes_back_is_isolated_and_limited_as_the_configuration_says_by_then() -> Result<()> {
    let root = isolated("plain", LONG_TRIAL, "process");
    let _daemon = root.start()?;
    let view = swapped(&root, &trusted(&root, "traps-panic"));
    edit(&root, "isolation: process", "isolation: sandbox");
    assert_eq!(serving(&root)["isolation"], "sandbox");
    run(&root, &["trap=true"])?;
    let slot = serving(&root);
    assert_eq!((&slot["generation"], &slot["isolation"]), (&view["from"], &json!("sandbox")), "{slot}");
    Ok(())
}

#[test]
fn a_version_whose_trust_was_withdrawn_does_not_come_back() -> Result<()> {
    let root = isolated("plain", LONG_TRIAL, "process");
    let _daemon = root.start()?;
    let view = swapped(&root, &trusted(&root, "traps-panic"));
    distrust(&root, &view["from"], 0);
    let ran = root.cli(&["plugin", "rollback", "v", "--json"]);
    assert!(ran.code != 0 && ran.stderr.contains("is not trusted"), "{} {}", ran.stdout, ran.stderr);
    assert_eq!(serving(&root)["generation"], view["generation"], "what serves goes on");
    // What failed serves no more either: nothing does until a person looks.
    let id = root.add("work", &["trap=true"]);
    root.wait_for("an empty slot", || (serving(&root)["code"] == "untrusted").then_some(()))?;
    root.wait_state(&id, &["queued"])?;
    trust(&root, &configured(&root));
    root.json(&["reload"]);
    assert_eq!(root.wait_state(&id, &["succeeded", "failed", "review"])?["state"], "succeeded");
    assert_eq!(serving(&root)["generation"], view["from"]);
    Ok(())
}

#[test]
fn a_reload_while_a_swap_waits_for_a_boundary_ends_the_swap_and_not_the_reload() -> Result<()> {
    let root = isolated("plain", NO_TRIAL, "process");
    let _daemon = root.start()?;
    let gate = root.aside().join("gate");
    let id = root.add("work", &[&format!("gate={}", json!(path(&gate)))]);
    root.wait_state(&id, &["running"])?;
    let next = trusted(&root, "b");
    let begun = root.json(&["plugin", "swap", "v", &path(&next), "--no-wait"]);
    root.wait_for("hand-over", || (serving(&root)["swap"]["stage"] == "handover").then_some(()))?;
    edit(&root, "isolation: process", "isolation: sandbox");
    fs::write(&gate, "").unwrap();
    root.wait_state(&id, &["succeeded"])?;
    root.wait_for("the end of the swap", || serving(&root)["swap"].is_null().then_some(()))?;
    let slot = serving(&root);
    assert_eq!((&slot["generation"], &slot["isolation"]), (&begun["from"], &json!("sandbox")), "{slot}");
    let history = root.json(&["plugin", "history", "v"]);
    let refused = history.as_array().unwrap().iter().find(|row| row["state"] == "refused").unwrap();
    assert!(refused["reason"].as_str().unwrap().starts_with("conflict: "), "{refused}");
    run(&root, &[])?;
    Ok(())
}

#[test]
fn another_configured_file_ends_a_trial_and_the_runner_can_be_swapped_again() -> Result<()> {
    let root = isolated("plain", LONG_TRIAL, "process");
    let _daemon = root.start()?;
    let first = path(&configured(&root));
    swapped(&root, &trusted(&root, "b"));
    let third = trusted(&root, "c");
    edit(&root, &first, &path(&third));
    let slot = serving(&root);
    assert_eq!((&slot["state"], slot["file"].as_str()), (&json!("active"), third.to_str()), "{slot}");
    run(&root, &[])?;
    swapped(&root, &trusted(&root, "d"));
    root.json(&["plugin", "rollback", "v"]);
    assert_eq!(serving(&root)["file"].as_str(), third.to_str());
    run(&root, &[])?;
    Ok(())
}

#[test]
fn a_version_on_trial_that_loses_its_trust_can_be_taken_back() -> Result<()> {
    let root = isolated("plain", LONG_TRIAL, "process");
    let _daemon = root.start()?;
    let view = swapped(&root, &trusted(&root, "b"));
    distrust(&root, &view["generation"], 1);
    assert_eq!(serving(&root)["code"], "untrusted");
    let id = root.add("work", &[]);
    root.json(&["plugin", "rollback", "v"]);
    let slot = serving(&root);
    assert_eq!((&slot["state"], &slot["generation"]), (&json!("active"), &view["from"]), "{slot}");
    root.wait_state(&id, &["succeeded"])?;
    Ok(())
}

#[test]
fn trust_that_ends_counts_also_when_the_configured_file_is_gone() -> Result<()> {
    let root = isolated("plain", NO_TRIAL, "process");
    let _daemon = root.start()?;
    let sha256 = serving(&root)["generation"].clone();
    fs::remove_file(configured(&root)).unwrap();
    root.json(&["reload"]);
    assert_eq!(serving(&root)["generation"], sha256, "a file that is gone is no reason to stop");
    distrust(&root, &sha256, 1);
    let slot = serving(&root);
    assert_eq!(slot["state"], "unavailable", "{slot}");
    Ok(())
}

#[test]
fn the_refusal_of_an_untrusted_candidate_names_the_candidate() -> Result<()> {
    let root = isolated("plain", NO_TRIAL, "process");
    let _daemon = root.start()?;
    let next = version(root.aside(), "b");
    let ran = swap(&root, &next);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    let error: Value = serde_json::from_str(&ran.stderr)?;
    assert_eq!(error["error"]["code"], "untrusted", "{error}");
    let text = error.to_string();
    assert!(text.contains(next.to_str().unwrap()), "{text}");
    assert!(!text.contains(configured(&root).to_str().unwrap()), "{text}");
    Ok(())
}
