//! The states of several instances across swaps, rollbacks and a killed daemon, with real workers: the
//! counts that instances keep add up to the cycles that ran, and no schedule sees another's.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use kairos_tests::Root;
use kairos_tests::variant::version;
use serde_json::Value;

const ENDS: &[&str] = &["succeeded", "failed", "review", "cancelled"];

/// A root whose runner is a version in workers, two of which may run at once. A trial lasts until it
/// is ended.
fn root(isolation: &str) -> Root {
    let root = Root::new();
    let first = file(&root, "plain", isolation);
    let text = format!(
        "default_runner: v\nmax_concurrent_cycles: 2\n\
         runners:\n  v: {{plugin: {:?}, isolation: {isolation}, deadline: 60s}}\n\
         llm:\n  providers:\n    canned: {{kind: scripted, file: .kairos/config/replies.yml}}\n\
         swap: {{shadow_deadline: 30s, canary_cycles: 1000, canary_error_rate: 0, drain_timeout: 30s}}\n",
        first.display().to_string()
    );
    root.write("config/daemon.yml", &text);
    root.write("config/replies.yml", "cycle: true\nreplies:\n  - {text: so be it}\n");
    let schedule = |name: &str| {
        format!("  - {{name: {name}, cron: \"0 0 1 1 *\", missed_policy: skip, mandate: {{goal: work}}}}\n")
    };
    root.write("config/schedules.yml", &format!("schedules:\n{}{}", schedule("a"), schedule("b")));
    root
}

/// Another version; in a sandbox it needs nobody's trust.
fn file(root: &Root, mode: &str, isolation: &str) -> PathBuf {
    let file = version(root.aside(), mode);
    if isolation != "sandbox" {
        let ran = root.cli(&["plugin", "trust", &file.display().to_string()]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    file
}

fn swap(root: &Root, mode: &str, isolation: &str) -> Value {
    let file = file(root, mode, isolation).display().to_string();
    let ran = root.cli(&["plugin", "swap", "v", &file, "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn roll_back(root: &Root) {
    assert_eq!(root.json(&["plugin", "rollback", "v"])["stage"], "rolled_back");
}

/// What the last cycle of a mandate said when it had succeeded.
fn said(root: &Root, id: &str) -> Result<String> {
    let row = root.wait_state(id, ENDS)?;
    ensure!(row["state"] == "succeeded", "{row}");
    let last = row["cycles"].as_array().unwrap().last().unwrap();
    Ok(last["summary"].as_str().unwrap_or_default().to_owned())
}

fn of_schedule(root: &Root, schedule: &str) -> Result<String> {
    let fired = root.json(&["schedule", "trigger", schedule]);
    said(root, fired["id"].as_str().unwrap_or_else(|| panic!("{fired}")))
}

/// Runs two cycles that are under way at the same time, so each in an instance of its own.
fn both(root: &Root, round: u32) -> Result<[String; 2]> {
    let gate = root.aside().join(format!("gate-{round}"));
    let gated = format!("gate={}", Value::from(gate.display().to_string()));
    let ids = [(); 2].map(|()| root.add("work", &["prompt=go", &gated]));
    for id in &ids {
        // Its call is paid for: it runs, and stands before the gate.
        root.wait_for("a cycle before the gate", || {
            let shown = root.json(&["mandate", "show", id]);
            (shown["cycles"][0]["usage"]["llm_calls"] == 1).then_some(())
        })?;
    }
    fs::write(&gate, "").unwrap();
    let mut both = [said(root, &ids[0])?, said(root, &ids[1])?];
    both.sort();
    Ok(both)
}

#[test]
fn two_workers_keep_their_counts_across_swaps_rollbacks_and_a_killed_daemon() -> Result<()> {
    let root = root("process");
    let mut daemon = root.start()?;
    assert_eq!(both(&root, 1)?, ["plain after 1", "plain after 1"]);
    assert_eq!(swap(&root, "b", "process")["handover"], "2 of variant/1");
    assert_eq!(both(&root, 2)?, ["b after 2", "b after 2"]);
    // A person takes it back: its cycles are not forgotten.
    roll_back(&root);
    assert_eq!(both(&root, 3)?, ["plain after 3", "plain after 3"]);
    // It fails: what it made of the states is not to be trusted, they are as at the flip.
    swap(&root, "traps-panic", "process");
    assert_eq!(both(&root, 4)?, ["traps-panic after 4", "traps-panic after 4"]);
    assert_eq!(said(&root, &root.add("work", &["trap=true"]))?, "plain after 4");
    assert_eq!(both(&root, 5)?, ["plain after 4", "plain after 5"]);
    // Killed after the flip: both versions come back with what was handed over.
    assert_eq!(swap(&root, "c", "process")["handover"], "2 of variant/1");
    daemon.kill()?;
    let _daemon = root.start()?;
    assert_eq!(both(&root, 6)?, ["c after 5", "c after 6"]);
    roll_back(&root);
    assert_eq!(both(&root, 7)?, ["plain after 6", "plain after 7"]);
    Ok(())
}

#[test]
fn each_schedule_gets_its_own_state_in_a_sandbox_and_nobody_elses() -> Result<()> {
    let root = root("sandbox");
    let mut daemon = root.start()?;
    for n in 1..=3 {
        assert_eq!(of_schedule(&root, "a")?, format!("plain after {n}"));
    }
    assert_eq!(of_schedule(&root, "b")?, "plain after 1");
    assert_eq!(swap(&root, "b", "sandbox")["handover"], "2 of variant/1");
    assert_eq!(
        (of_schedule(&root, "b")?, of_schedule(&root, "a")?),
        ("b after 2".into(), "b after 4".into())
    );
    // Mandates without a schedule have nothing in common, and nothing with a schedule.
    for _ in 0..2 {
        assert_eq!(said(&root, &root.add("work", &[]))?, "b after 1");
    }
    roll_back(&root);
    assert_eq!(of_schedule(&root, "a")?, "plain after 5");
    assert_eq!(of_schedule(&root, "b")?, "plain after 3");
    // Killed after the flip: handed over by schedule all the same.
    swap(&root, "c", "sandbox");
    daemon.kill()?;
    let _daemon = root.start()?;
    assert_eq!(
        (of_schedule(&root, "b")?, of_schedule(&root, "a")?),
        ("c after 4".into(), "c after 6".into())
    );
    roll_back(&root);
    assert_eq!(
        (of_schedule(&root, "a")?, of_schedule(&root, "b")?),
        ("plain after 7".into(), "plain after 5".into())
    );
    Ok(())
}
