//! The process that workers are forked from: that it can be lost, and that it never outlives its daemon.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;

use anyhow::Result;
use kairos_tests::{Daemon, Root, plugin};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Children of the daemon with that name, as the kernel tells it.
fn children(daemon: &Daemon, name: &str) -> Vec<i32> {
    let parent = daemon.pid().as_raw_nonzero().get().to_string();
    let is = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((before, after)) = stat.rsplit_once(')') else { return false };
        let mut after = after.split_whitespace();
        before.ends_with(&format!("({name}"))
            && after.next() != Some("Z")
            && after.next() == Some(parent.as_str())
    };
    let processes = fs::read_dir("/proc").unwrap();
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(is).collect()
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn root() -> Root {
    let root = Root::new();
    let hostile = plugin("hostile_runner").display().to_string();
    root.write(
        "config/daemon.yml",
        &format!("max_concurrent_cycles: 2\ndefault_runner: hostile\nrunners:\n  hostile: {{plugin: {hostile:?}, isolation: process}}\n"),
    );
    root
}

#[test]
fn fork_server_that_is_killed_is_replaced_and_no_running_cycle_notices() -> Result<()> {
    let root = root();
    let mut daemon = root.start()?;
    let id = root.add("go on for ever", &["fault=loop"]);
    root.wait_state(&id, &["running"])?;
    let only = |found: Vec<i32>| (found.len() == 1).then(|| found[0]);
    let first = root.wait_for("a fork server", || only(children(&daemon, "kairos-workers")))?;
    kill(first);
    // Every worker that is kept ready goes too, so that the next cycle needs one more.
    let serving = children(&daemon, "kairos-worker");
    serving.iter().for_each(|pid| kill(*pid));
    let other = root.add("run beside it", &[]);
    root.wait_state(&other, &["succeeded"])?;
    let second = root.wait_for("another one", || only(children(&daemon, "kairos-workers")))?;
    assert_ne!(first, second);
    let shown = root.json(&["mandate", "show", &id]);
    assert_eq!((&shown["state"], shown["cycles"].as_array().unwrap().len()), (&json!("running"), 1));
    daemon.kill()
}

#[test]
fn fork_server_ends_with_its_daemon_however_that_ends() -> Result<()> {
    let root = root();
    for killed in [false, true] {
        let mut daemon = root.start()?;
        let found = root.wait_for("a fork server", || children(&daemon, "kairos-workers").pop())?;
        if killed {
            daemon.kill()?;
        } else {
            assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
        }
        root.wait_for("its end", || (!fs::exists(format!("/proc/{found}")).unwrap()).then_some(()))?;
    }
    Ok(())
}
