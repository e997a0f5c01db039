//! What a trial must not let pass: a version that cannot begin its cycles, one that is too dear in a
//! short window. And what must not be mistaken: a file that waits for the end of a trial for another
//! one, the version that serves for its candidate.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;

use anyhow::Result;
use kairos_tests::swaps::*;
use kairos_tests::{Daemon, Root, plugin};
use serde_json::Value;

/// Puts a version on trial whose second instance cannot be made, and a mandate that needs it: it must
/// be done by the version before. The mandate as it ended.
fn rolled_back_for_want_of_instances(swap: &str) -> Result<(Root, Daemon, Value)> {
    let (root, broken) = breakable(swap);
    let daemon = root.start()?;
    run(&root, &[])?;
    let view = swapped(&root, &trusted(&root, "breaks"));
    let (holds, gate) = occupied(&root)?;
    fs::write(&broken, "")?;
    let id = root.add("work", &[]);
    let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_eq!(row["state"], "succeeded", "{row}");
    assert_eq!(serving(&root)["generation"], view["from"]);
    assert_eq!(states(&root), ["rolled_back", "active"]);
    fs::write(gate, "")?;
    assert_eq!(root.wait_state(&holds, &["succeeded", "failed", "review"])?["state"], "succeeded");
    Ok((root, daemon, row))
}

#[test]
fn a_version_whose_instances_cannot_be_made_any_more_is_rolled_back() -> Result<()> {
    let settings = "swap: {canary_cycles: 20, canary_error_rate: 0, drain_timeout: 20s}";
    let (root, _daemon, row) = rolled_back_for_want_of_instances(settings)?;
    assert!(last_cycle(&row)["summary"].as_str().unwrap().starts_with("plain after"), "{row}");
    assert!(root.logged("runner_passed_its_trial").is_empty());
    Ok(())
}

#[test]
fn a_trial_whose_time_is_over_while_nothing_can_begin_has_failed() -> Result<()> {
    // No count of errors ends this one.
    let settings = "swap: {canary_cycles: 100, canary_time: 6s, canary_error_rate: 1, drain_timeout: 20s}";
    let (root, _daemon, _) = rolled_back_for_want_of_instances(settings)?;
    let history = root.json(&["plugin", "history", "v"]);
    assert!(history[0]["reason"].as_str().unwrap().starts_with("it cannot begin cycles: "), "{history}");
    Ok(())
}

#[test]
fn a_short_trial_judges_the_cost_by_the_cycles_it_has() -> Result<()> {
    let settings = "swap: {canary_cycles: 1, canary_cost_factor: 2, drain_timeout: 20s}";
    let root = root("plain", settings);
    let _daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    let view = swapped(&root, &trusted(&root, "dear"));
    run(&root, &["prompt=hello", "trap=true"])?;
    wait_states(&root, &["rolled_back", "active"])?;
    assert_eq!(serving(&root)["generation"], view["from"]);
    Ok(())
}

#[test]
fn a_file_that_was_replaced_by_another_plugin_while_it_waited_takes_nobodys_slot() -> Result<()> {
    let settings = "plugins: {watch: drop}\nswap: {canary_cycles: 1000, canary_time: 1h, drain_timeout: 20s}";
    let root = isolated("plain", settings, "process");
    let _daemon = root.start()?;
    root.wait_logged("plugins_watched")?;
    let drop = root.path().join("drop");
    let view = swapped(&root, &trusted(&root, "b"));
    fs::rename(trusted(&root, "c"), drop.join("x.so"))?;
    root.wait_logged("watched_file_waits")?;
    let other = root.aside().join("other.so");
    fs::copy(plugin("stub"), &other)?;
    trust(&root, &other);
    fs::rename(&other, drop.join("x.so"))?;
    root.wait_logged("watched_file_of_nobody")?;
    root.json(&["plugin", "rollback", "v"]);
    root.wait_logged("watched_file_superseded")?;
    assert_eq!(serving(&root)["generation"], view["from"]);
    assert_eq!(states(&root), ["rolled_back", "active"]);
    assert!(root.logged("watched_file_swaps").is_empty());
    Ok(())
}

#[test]
fn a_version_in_service_that_does_not_export_its_state_is_blamed_itself() -> Result<()> {
    let settings = "swap: {shadow_deadline: 2s, canary_cycles: 0, drain_timeout: 20s}";
    let root = isolated("hangs-export", settings, "process");
    let _daemon = root.start()?;
    run(&root, &[])?;
    let ran = swap(&root, &trusted(&root, "b"));
    assert!(ran.code == 1 && ran.stderr.contains("export_failed"), "{}", ran.stderr);
    assert!(ran.stderr.contains("of the version that serves gave no answer"), "{}", ran.stderr);
    assert!(ran.stderr.contains("--cold"), "{}", ran.stderr);
    Ok(())
}
