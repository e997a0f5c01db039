//! A runner that makes calls as fast as it can, of every kind, and heeds no answer: whoever else
//! wants something of the daemon gets it meanwhile, the schedules fire, and a stop is a stop.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use anyhow::{Context, Result};
use kairos_tests::{Root, c_plugin, plugin};
use serde_json::Value;

/// What the fixture can do, and how often it does it.
const FLOODS: [(&str, u32); 16] = [
    ("phase", 5_000),
    ("two_phases", 20_000),
    ("now", 3_000),
    ("random", 1_000),
    ("usage", 1_000),
    ("llm", 1_000),
    ("tool", 1_000),
    ("big_tool", 100),
    ("propose", 1_000),
    ("progress", 10_000),
    ("state_get", 10_000),
    ("state_put", 10_000),
    ("big_state", 100),
    ("unknown", 5_000),
    ("log", 20_000),
    ("should_stop", 20_000),
];

fn root(more: &str) -> Root {
    let root = Root::named("root");
    let flood = c_plugin::compiled("tests/fixtures/flood.c", "flood", root.aside());
    let text = format!(
        "default_runner: flood\nmax_concurrent_cycles: 2\nrunners:\n  \
         flood: {{plugin: {:?}, isolation: sandbox, stop_grace: 1s}}\n  stub: {{plugin: {:?}, isolation: process}}\n{more}",
        flood.display().to_string(),
        plugin("stub").display().to_string(),
    );
    root.write("config/daemon.yml", &text);
    root
}

fn flood(root: &Root, kind: &str, calls: u64) -> String {
    root.add("flood", &[&format!("flood={kind}"), &format!("calls={calls}")])
}

/// The mandate has begun its cycle.
fn wait_running(root: &Root, id: &str) -> Result<Value> {
    root.wait_state(id, &["running", "succeeded", "failed"])
}

/// Times for which the schedule has fired.
fn fired(root: &Root) -> Vec<String> {
    let mandates = root.json(&["mandate", "list"]);
    let of_schedule = mandates.as_array().unwrap().iter().filter(|mandate| mandate["schedule"] == "pulse");
    of_schedule.filter_map(|mandate| mandate["nominal_at"].as_str().map(str::to_owned)).collect()
}

/// Somebody else's mandate is taken and runs to its end.
fn check_others_are_served(root: &Root, while_what: &str) -> Result<()> {
    let other = root.json(&["mandate", "add", "beside", "--runner", "stub"]);
    let other = other["id"].as_str().context("an id")?.to_owned();
    let shown = root.wait_state(&other, &["succeeded", "failed"])?;
    assert_eq!(shown["state"], "succeeded", "{while_what}: {shown:#}");
    Ok(())
}

#[test]
fn flood_of_any_call_holds_up_nobody_and_is_over_with_its_cycle() -> Result<()> {
    let root = root("");
    let mut daemon = root.start()?;
    for (kind, calls) in FLOODS {
        let id = flood(&root, kind, u64::from(calls));
        wait_running(&root, &id)?;
        check_others_are_served(&root, kind)?;
        let shown = root.wait_state(&id, &["succeeded", "failed", "review"])?;
        assert_eq!(shown["state"], "succeeded", "{kind}: {shown:#}");
        assert_eq!(shown["cycles"].as_array().unwrap().len(), 1, "{kind}: {shown:#}");
    }
    assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
    Ok(())
}

#[test]
fn schedules_fire_and_deadlines_and_stops_hold_while_a_flood_has_no_end() -> Result<()> {
    let root = root("graceful_timeout: 1\n").schedules_yml(
        "schedules:\n  - {name: pulse, cron: \"* * * * * *\", runner: stub, concurrency: allow, mandate: {goal: beat}}\n",
    );
    let mut daemon = root.start()?;
    for kind in ["phase", "two_phases", "now", "usage"] {
        let id = flood(&root, kind, 1 << 40);
        assert_eq!(wait_running(&root, &id)?["state"], "running", "{kind}");
        check_others_are_served(&root, kind)?;
        let before = fired(&root).len();
        root.wait_for("the schedule to fire", || (fired(&root).len() > before + 1).then_some(()))?;
        assert_eq!(root.json(&["mandate", "show", &id])["state"], "running", "{kind}: it floods on");
        // A person's stop ends it, though it heeds nothing.
        assert_eq!(root.cli(&["mandate", "stop", &id]).code, 0, "{kind}");
        root.wait_state(&id, &["cancelled"])?;
    }
    let last = flood(&root, "now", 1 << 40);
    assert_eq!(wait_running(&root, &last)?["state"], "running");
    let code = daemon.stop()?;
    assert!([0, 9].contains(&code), "{code}: {}", daemon.stderr());
    // What was cut off is there, and goes on from its record with the next daemon.
    assert!(
        ["queued", "running"].contains(&root.json(&["mandate", "show", &last])["state"].as_str().unwrap())
    );
    let fired = fired(&root);
    let once: std::collections::BTreeSet<&String> = fired.iter().collect();
    assert_eq!(once.len(), fired.len(), "none fired twice: {fired:?}");
    Ok(())
}

#[test]
fn deadline_ends_a_flood_that_heeds_nothing() -> Result<()> {
    let root = root("");
    let text = std::fs::read_to_string(root.file("config/daemon.yml"))?;
    root.write("config/daemon.yml", &text.replace("stop_grace: 1s", "stop_grace: 1s, deadline: 2s"));
    let mut daemon = root.start()?;
    let id = flood(&root, "usage", 1 << 40);
    let shown = root.wait_state(&id, &["failed"])?;
    for cycle in shown["cycles"].as_array().unwrap() {
        assert_eq!(cycle["status"], "error", "{shown:#}");
        assert!(cycle["error"].as_str().unwrap_or_default().contains("deadline"), "{shown:#}");
        // No more is recorded, and counted, than a cycle may.
        assert!(cycle["usage"]["input_tokens"].as_u64().unwrap() <= 10_000, "{shown:#}");
    }
    assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
    Ok(())
}

#[test]
fn summary_without_end_is_cut_and_says_so() -> Result<()> {
    let root = root("");
    let mut daemon = root.start()?;
    let id = flood(&root, "words", 0);
    let shown = root.wait_state(&id, &["succeeded", "failed"])?;
    assert_eq!(shown["state"], "succeeded");
    let summary = shown["cycles"][0]["summary"].as_str().context("a summary")?;
    assert!(summary.len() < (64 << 10) + 100, "{} bytes", summary.len());
    assert!(summary.ends_with("[cut, 3145728 bytes in all]"), "{}", &summary[summary.len() - 60..]);
    assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
    Ok(())
}
