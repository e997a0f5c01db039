//! Everything a runner can do to its own process, and what becomes of the daemon (nothing), of the
//! mandate (it goes on from its record on a fresh worker), and of what people are told.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;
use kairos_tests::{Daemon, Root, plugin};
use rustix::process::Signal;
use serde_json::{Value, json};

/// One scripted reply to whatever is asked; the second call of a cycle would find none.
const REPLIES: &str = "replies:\n  - text: fine\n";

fn root(more: &str) -> Root {
    let root = Root::new();
    root.write("config/replies.yml", REPLIES);
    let hostile = plugin("hostile_runner").display().to_string();
    let text = format!(
        "default_runner: hostile\nrunners:\n  hostile: {{plugin: {hostile:?}, isolation: process, {more}}}\n\
         llm:\n  default: canned\n  providers:\n    canned: {{kind: scripted, file: .kairos/config/replies.yml}}\n"
    );
    root.write("config/daemon.yml", &text);
    root
}

/// Processes whose parent is the daemon.
fn children(daemon: &Daemon) -> BTreeSet<i32> {
    let parent = daemon.pid().as_raw_nonzero().get();
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.filter(|pid| status(*pid).is_some_and(|(state, ppid)| ppid == parent && state != 'Z')).collect()
}

/// State and parent of a process.
fn status(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut after = stat.rsplit_once(')')?.1.split_whitespace();
    Some((after.next()?.chars().next()?, after.next()?.parse().ok()?))
}

/// The processes that the runner named.
fn named(root: &Root) -> Vec<i32> {
    let lines = root.logged("runner_log");
    let pid = |line: &Value| line["details"]["line"].as_str()?.strip_prefix("child ")?.parse().ok();
    lines.iter().filter_map(pid).collect()
}

fn gone(pid: i32) -> bool {
    status(pid).is_none_or(|(state, _)| state == 'Z')
}

/// Does the misdeed in the first attempt: the mandate must succeed in the second, what was paid for
/// must not be paid for again, and the death must be told in these words.
fn check_survived(fault: &[&str], more: &str, told: &str) -> Result<Value> {
    let root = root(more);
    let mut daemon = root.start()?;
    let params = [fault, &["once=true", "pay=true", "phase=true"]].concat();
    let id = root.add("go wrong", &params);
    let shown = root.wait_state(&id, &["succeeded", "failed", "review", "cancelled"])?;
    assert_eq!(shown["state"], "succeeded", "{fault:?}: {shown:#}");
    let cycles = shown["cycles"].as_array().unwrap();
    assert_eq!(cycles.len(), 2, "{fault:?}: {shown:#}");
    assert_eq!(
        (&cycles[0]["status"], &cycles[1]["status"]),
        (&json!("interrupted"), &json!("ok")),
        "{shown:#}"
    );
    let error = cycles[0]["error"].as_str().unwrap_or_default();
    assert!(error.contains(told) && error.contains("in phase act"), "{fault:?}: {error:?}");
    assert_eq!(root.json(&["budget", "show"])["spent"]["calls"], 1, "{fault:?}: paid once");
    let died = root.wait_logged("runner_died")?;
    assert_eq!((&died["runner"], &died["mandate"]), (&json!("hostile"), &json!(id)), "{died}");
    assert_eq!((&died["cycle"], &died["phase"]), (&json!(1), &json!("act")), "{died}");
    assert!(died["generation"].as_str().is_some_and(|generation| generation.len() == 64), "{died}");
    assert_eq!(root.json(&["status"])["state"], "running");
    assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
    Ok(died)
}

#[test]
fn segmentation_fault_costs_one_worker() -> Result<()> {
    let died = check_survived(&["fault=segv"], "", "worker killed by signal 11 (SIGSEGV)")?;
    assert_eq!((&died["signal"], died.get("exit_code")), (&json!(11), None), "{died}");
    Ok(())
}

#[test]
fn abort_costs_one_worker() -> Result<()> {
    check_survived(&["fault=abort"], "", "worker killed by signal 6 (SIGABRT)").map(drop)
}

#[test]
fn stack_overflow_costs_one_worker() -> Result<()> {
    check_survived(&["fault=overflow"], "", "worker killed by signal").map(drop)
}

#[test]
fn exit_costs_one_worker() -> Result<()> {
    let died = check_survived(&["fault=exit"], "", "worker exited with code 7")?;
    assert_eq!(died["exit_code"], 7, "{died}");
    Ok(())
}

#[test]
fn hunger_for_memory_costs_one_worker() -> Result<()> {
    check_survived(&["fault=hunger"], "", "worker killed by signal 6 (SIGABRT)").map(drop)
}

#[test]
fn closed_socket_of_a_worker_that_lives_on_costs_that_worker() -> Result<()> {
    check_survived(&["fault=hang_up"], "", "worker closed its connection").map(drop)
}

#[test]
fn forged_frames_cost_one_worker() -> Result<()> {
    for (bytes, told) in [
        ("bytes=long", "worker broke the protocol: a frame of 4294967295 bytes"),
        ("bytes=kind", "worker broke the protocol: a frame of the unknown kind 200"),
        ("bytes=place", "worker broke the protocol: a frame Ready that does not belong there"),
        ("bytes=call", "worker broke the protocol: a frame Call with an unreadable payload"),
        ("bytes=cut", "worker broke the protocol: the stream ended in the middle of a frame"),
    ] {
        check_survived(&["fault=forge", bytes], "", told)?;
    }
    Ok(())
}

#[test]
fn children_of_a_worker_end_with_it_whatever_their_session() -> Result<()> {
    // By its own death, and by the host's hand.
    for (fault, more) in [("fault=children", ""), ("fault=children-loop", "deadline: 2s, stop_grace: 0s")] {
        let root = root(more);
        let _daemon = root.start()?;
        let id = root.add("multiply", &[fault, "once=true"]);
        root.wait_state(&id, &["succeeded"])?;
        let children = named(&root);
        assert_eq!(children.len(), 12, "{:#?}", root.logged("runner_log"));
        root.wait_for("their end", || children.iter().all(|pid| gone(*pid)).then_some(()))?;
    }
    Ok(())
}

#[test]
fn children_of_a_worker_end_with_a_daemon_that_is_killed() -> Result<()> {
    let root = root("");
    let mut daemon = root.start()?;
    let _endless = root.add("multiply", &["fault=children-loop"]);
    root.wait_for("its children", || (named(&root).len() == 12).then_some(()))?;
    let children = named(&root);
    daemon.kill()?;
    root.wait_for("their end", || children.iter().all(|pid| gone(*pid)).then_some(()))
}

#[test]
fn memory_of_a_worker_ends_where_the_configuration_says() -> Result<()> {
    let measured = |isolation: &str, more: &str| -> Result<u64> {
        let root = root(more);
        let text = fs::read_to_string(root.file("config/daemon.yml")).unwrap();
        root.write(
            "config/daemon.yml",
            &text.replace("isolation: process", &format!("isolation: {isolation}")),
        );
        let _daemon = root.start()?;
        let shown =
            root.wait_state(&root.add("measure", &["fault=measure"]), &["succeeded", "failed", "review"])?;
        Ok(shown["cycles"][0]["summary"].as_str().unwrap_or_else(|| panic!("{shown:#}")).parse().unwrap())
    };
    for isolation in ["process", "sandbox"] {
        let mib = measured(isolation, "memory: 256MiB")?;
        assert!((128..256).contains(&mib), "{isolation}: {mib} MiB of 256");
    }
    let mib = measured("sandbox", "")?;
    assert!((256..512).contains(&mib), "{mib} MiB of 512");
    assert_eq!(measured("process", "")?, 1024, "4 GiB, of which it takes no more");
    Ok(())
}

#[test]
fn a_cycle_that_was_asked_to_end_has_the_configured_time_for_it() -> Result<()> {
    // Far longer than a kill takes, and far shorter than the other one's grace.
    for (grace, late_ms, survives) in [("0s", 40_000, false), ("50s", 100, true)] {
        let root = root(&format!("deadline: 1s, stop_grace: {grace}"));
        let _daemon = root.start()?;
        let late = format!("late_ms={late_ms}");
        let id = root.add("take your time", &["fault=late", &late, "once=true"]);
        let shown = root.wait_state(&id, &["succeeded", "failed", "review"])?;
        assert_eq!(shown["state"], "succeeded", "{grace}: {shown:#}");
        let worker = named(&root);
        assert_eq!((worker.len(), gone(worker[0])), (1, !survives), "{grace}: {worker:?}");
    }
    Ok(())
}

#[test]
fn a_loop_without_end_is_killed_at_its_deadline_and_is_an_error_of_the_cycle() -> Result<()> {
    let root = root("deadline: 1s");
    let mut daemon = root.start()?;
    let id = root.add("spin", &["fault=loop", "once=true"]);
    let shown = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let first = &shown["cycles"][0];
    assert_eq!(
        (&first["status"], &first["error"]),
        (&json!("error"), &json!("the cycle's deadline has passed"))
    );
    assert!(root.logged("runner_died").is_empty(), "the host did it");
    assert!(root.logged("runner_stuck").is_empty(), "nothing is left behind");
    assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
    Ok(())
}

#[test]
fn a_flood_of_output_fills_no_log_and_holds_nobody_up() -> Result<()> {
    let root = root("");
    let mut daemon = root.start()?;
    let id = root.add("talk", &["fault=print"]);
    let shown = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_eq!(
        (&shown["state"], shown["cycles"].as_array().unwrap().len()),
        (&json!("succeeded"), 1),
        "{shown:#}"
    );
    let said = root.wait_logged("runner_output")?;
    assert_eq!((&said["runner"], &said["line"]), (&json!("hostile"), &json!("all work and no play")));
    assert_eq!(daemon.stop()?, 0);
    let size = fs::metadata(root.file("logs/kairos.log"))?.len();
    assert!(size < 1 << 20, "{size} bytes of log for 32 MiB of output");
    Ok(())
}

#[test]
fn an_answer_that_is_too_large_is_an_error_of_the_cycle() -> Result<()> {
    let root = root("");
    let _daemon = root.start()?;
    let id = root.add("boast", &["fault=huge", "once=true"]);
    let shown = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_eq!(shown["state"], "succeeded", "{shown:#}");
    let error = shown["cycles"][0]["error"].as_str().unwrap();
    assert!(error.contains("bad report: an answer of") && error.contains("at most"), "{error}");
    Ok(())
}

#[test]
fn calls_from_many_threads_are_all_answered() -> Result<()> {
    let root = root("");
    let _daemon = root.start()?;
    let id = root.add("talk at once", &["fault=threads"]);
    root.wait_state(&id, &["succeeded"])?;
    let logged = root.logged("runner_log");
    let done = |n: usize| logged.iter().any(|line| line["details"]["line"] == format!("thread {n} is done"));
    assert!((0..8).all(done), "{logged:#?}");
    Ok(())
}

#[test]
fn third_death_sends_a_mandate_to_review_and_the_runner_is_held_back() -> Result<()> {
    let root = root("");
    let mut daemon = root.start()?;
    let ids = [root.add("die", &["fault=abort"]), root.add("die as well", &["fault=exit"])];
    let first = root.wait_state(&ids[0], &["review"])?;
    assert_eq!(
        (&first["reason"], first["cycles"].as_array().unwrap().len()),
        (&json!("crash_loop"), 3),
        "{first:#}"
    );
    // Two deaths of the second make five.
    let held = root.wait_logged("runner_held_back")?;
    assert_eq!((&held["runner"], &held["wait_s"]), (&json!("hostile"), &json!(5)), "{held}");
    let waits = root.wait_logged("daemon_runner_unavailable")?;
    let reason = waits["reason"].as_str().unwrap();
    assert!(reason.contains("held back until") && reason.contains("exited with code 7"), "{reason}");
    // After its time it is tried again.
    let second = root.wait_state(&ids[1], &["review"])?;
    assert_eq!(second["reason"], "crash_loop");
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}

#[test]
fn workers_end_with_a_daemon_that_is_killed() -> Result<()> {
    let root = root("");
    let mut daemon = root.start()?;
    let id = root.add("spin", &["fault=loop", "phase=true"]);
    root.wait_state(&id, &["running"])?;
    let workers = root.wait_for("workers", || Some(children(&daemon)).filter(|found| found.len() >= 2))?;
    daemon.kill()?;
    root.wait_for("their end", || workers.iter().all(|pid| gone(*pid)).then_some(()))?;
    Ok(())
}

#[test]
fn an_idle_worker_that_was_killed_is_replaced_unnoticed() -> Result<()> {
    let root = root("");
    let mut daemon = root.start()?;
    let workers = root.wait_for("workers", || Some(children(&daemon)).filter(|found| !found.is_empty()))?;
    for pid in workers {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, Signal::KILL)?;
    }
    let id = root.add("go on", &[]);
    let shown = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_eq!(
        (&shown["state"], shown["cycles"].as_array().unwrap().len()),
        (&json!("succeeded"), 1),
        "{shown:#}"
    );
    assert_eq!(root.json(&["plugin", "list"])[0]["isolation"], "process");
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}
