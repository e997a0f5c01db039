//! What a confined runner has seen of one schedule, no other may see: a process of it serves the
//! schedule it began with and no other. Without a sandbox processes are shared, so this can fail.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use kairos_tests::c_plugin::compiled;
use kairos_tests::{Root, plugin};
use serde_json::json;

const SCHEDULES: &str = "schedules:
  - {name: first, cron: '0 0 1 1 *', runner: counts, mandate: {goal: count}}
  - {name: second, cron: '0 0 1 1 *', runner: counts, mandate: {goal: count}}
";

/// What the runner, which counts its cycles in memory, says of each mandate in turn.
fn counted(isolation: &str, order: &[&str]) -> Vec<String> {
    let plugin = json!(plugin("variant_runner"));
    let root = Root::new()
        .daemon_yml(&format!("  counts: {{plugin: {plugin}, isolation: {isolation}}}"))
        .schedules_yml(SCHEDULES);
    let mut daemon = root.start().unwrap();
    let one = |by: &&str| {
        let id = match *by {
            "by hand" => root.json(&["mandate", "add", "count", "--runner", "counts"])["id"].clone(),
            schedule => {
                let fired = root.json(&["schedule", "trigger", schedule]);
                fired["id"].as_str().map_or_else(|| fired["mandate"].clone(), |id| json!(id))
            }
        };
        let id = id.as_str().unwrap().to_owned();
        let shown = root.wait_state(&id, &["succeeded", "failed", "review"]).unwrap();
        assert_eq!(shown["state"], "succeeded", "{shown}");
        shown["cycles"][0]["summary"].as_str().unwrap().to_owned()
    };
    let said = order.iter().map(one).collect();
    assert_eq!(daemon.stop().unwrap(), 0);
    said
}

const ORDER: [&str; 7] = ["first", "first", "second", "first", "second", "by hand", "by hand"];

#[test]
fn a_sandboxed_process_is_reused_by_the_same_schedule_only() {
    let said = counted("sandbox", &ORDER);
    let after = |counts: [u32; 7]| counts.map(|count| format!("plain after {count}")).to_vec();
    assert_eq!(said, after([1, 2, 1, 3, 2, 1, 1]), "{ORDER:?}");
    // Nothing of it without a sandbox: there the count of one is the count of all.
    assert_eq!(counted("process", &ORDER), after([1, 2, 3, 4, 5, 6, 7]));
}

/// Runs the runner that burns twice, with these parameters: each time its process ends, and nothing is
/// left that burns.
fn ends_for_working_on(isolation: &str, params: &str) {
    let aside = tempfile::tempdir().unwrap();
    let plugin = json!(compiled("tests/fixtures/burns.c", "burns", aside.path()));
    let schedules = SCHEDULES.replace("goal: count", &format!("goal: count, params: {params}"));
    let root = Root::new()
        .daemon_yml(&format!("  counts: {{plugin: {plugin}, isolation: {isolation}}}"))
        .schedules_yml(&schedules);
    let trusted = root.cli(&["plugin", "trust", plugin.as_str().unwrap(), "--yes"]);
    assert_eq!(trusted.code, 0, "{}", trusted.stderr);
    let mut daemon = root.start().unwrap();
    for round in 0..2 {
        let fired = root.json(&["schedule", "trigger", "first"]);
        let id = fired["id"].as_str().or(fired["mandate"].as_str()).unwrap().to_owned();
        let shown = root.wait_state(&id, &["succeeded", "failed", "review"]).unwrap();
        assert_eq!(shown["state"], "succeeded", "{isolation} {params}: {shown}");
        const ENDED: &str = "runner_worker_ended_for_working_on";
        let ended = root.wait_for(ENDED, || root.logged(ENDED).get(round).cloned()).unwrap();
        assert_eq!(ended["details"]["runner"], "counts", "{ended}");
        let process = format!("/proc/{}", ended["details"]["pid"]);
        root.wait_for("its end", || (!Path::new(&process).exists()).then_some(())).unwrap();
    }
    assert_eq!(daemon.stop().unwrap(), 0);
}

#[test]
fn a_worker_that_works_on_after_its_cycle_is_ended_and_the_next_cycle_gets_another() {
    for isolation in ["sandbox", "process"] {
        ends_for_working_on(isolation, "{}");
    }
}

#[test]
fn a_worker_whose_child_works_on_after_its_cycle_is_ended_with_it() {
    ends_for_working_on("process", "{child: true}");
}
