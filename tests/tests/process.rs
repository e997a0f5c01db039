//! The daemon as a process: its lock, its signals, what it tells the service manager, and what it
//! does not do while nothing is due.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use kairos_tests::{Root, plugin};
use rustix::process::Signal;
use serde_json::{Value, json};

const BEATING: &str = "heartbeat: {interval: 0.1}";

/// A root with a second runner, which can be told not to listen.
fn with_deaf_runner(more: &str) -> Root {
    let root = Root::new();
    let text = format!(
        "default_runner: deaf\nrunners:\n  deaf: {{plugin: {:?}, isolation: in_process}}\n{more}\n",
        plugin("hostile_runner").display().to_string()
    );
    root.write("config/daemon.yml", &text);
    root
}

#[test]
fn a_second_daemon_ends_with_1_and_names_the_first() -> Result<()> {
    let root = Root::new();
    let daemon = root.start()?;
    let second = root.cli(&["run", "--json"]);
    assert_eq!(second.code, 1, "{second:?}");
    let error: Value = serde_json::from_str(second.stderr.trim())?;
    assert_eq!(error["error"]["code"], "locked");
    let pid = daemon.pid().as_raw_nonzero().to_string();
    assert!(error["error"]["message"].as_str().unwrap().contains(&pid), "{error} names {pid}");
    assert_eq!(root.json(&["status"])["state"], "running");
    Ok(())
}

#[test]
fn term_ends_an_idle_daemon_with_0_and_a_last_beat() -> Result<()> {
    let root = Root::new();
    let mut daemon = root.start()?;
    let pid = json!(daemon.pid().as_raw_nonzero().get());
    root.wait_for("the first beat", || (root.beat()["pid"] == pid).then_some(()))?;
    assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
    assert_eq!(root.beat()["state"], "stopped");
    assert!(!root.file("run/kairos.sock").exists());
    let status = root.json(&["status"]);
    assert_eq!((&status["state"], &status["pid"]), (&json!("stopped"), &Value::Null));
    Ok(())
}

#[test]
fn a_running_cycle_is_interrupted_by_a_stop_and_goes_on_after_it() -> Result<()> {
    let root = Root::new().daemon_yml("graceful_timeout: 20");
    let mut daemon = root.start()?;
    let id = root.add("long", &["sleep_ms=600000", "phases=true"]);
    root.wait_state(&id, &["running"])?;
    assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
    let shown = root.json(&["mandate", "show", &id]);
    assert_eq!(shown["state"], "queued");
    assert_eq!(shown["cycles"][0]["status"], "interrupted");
    assert_eq!(root.logged("daemon_cycle_interrupted").len(), 1);
    let mut daemon = root.start()?;
    let shown = root.wait_state(&id, &["running"])?;
    assert_eq!(shown["cycles"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(root.cli(&["mandate", "stop", &id]).code, 0);
    root.wait_state(&id, &["cancelled"])?;
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}

#[test]
fn a_runner_that_does_not_listen_ends_the_daemon_with_9_and_loses_nothing() -> Result<()> {
    let root = with_deaf_runner("graceful_timeout: 0.2");
    let mut daemon = root.start()?;
    let id = root.add("deaf", &["fault=deaf"]);
    root.wait_state(&id, &["running"])?;
    assert_eq!(daemon.stop()?, 9, "{}", daemon.stderr());
    let shown = root.json(&["mandate", "show", &id]);
    assert_eq!((&shown["state"], &shown["cycles"][0]["status"]), (&json!("queued"), &json!("interrupted")));
    Ok(())
}

#[test]
fn a_second_signal_ends_the_daemon_at_once_with_130() -> Result<()> {
    let root = with_deaf_runner("graceful_timeout: 600");
    let mut daemon = root.start()?;
    let id = root.add("deaf", &["fault=deaf"]);
    root.wait_state(&id, &["running"])?;
    daemon.signal(Signal::INT)?;
    root.wait_for("the drain", || (root.beat()["state"] == "draining").then_some(()))?;
    daemon.signal(Signal::TERM)?;
    assert_eq!(daemon.wait()?.code(), Some(130), "{}", daemon.stderr());
    // The store was not closed in order; what was begun is still known.
    assert_eq!(root.json(&["mandate", "show", &id])["state"], "running");
    Ok(())
}

#[test]
fn a_reload_keeps_the_old_configuration_when_the_new_one_is_bad() -> Result<()> {
    let root = Root::new().daemon_yml("tick_interval: 7");
    let daemon = root.start()?;
    root.set_daemon_yml("tick_interval: soon\nbudget: {daily_calls: 3}");
    daemon.signal(Signal::HUP)?;
    let details = root.wait_logged("daemon_config_reload_failed")?;
    assert!(details.to_string().contains(".kairos/config/daemon.yml:4:"), "{details}");
    assert_eq!(root.json(&["status"])["tick_interval"], 7.0);
    assert_eq!(root.json(&["budget", "show"])["limits"]["calls"], 10_000);
    let refused = root.cli(&["reload", "--json"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    let error: Value = serde_json::from_str(refused.stderr.trim())?;
    assert_eq!(error["error"]["code"], "config_invalid");

    root.set_daemon_yml("tick_interval: 8\nbudget: {daily_calls: 3}\nattach: {port: 9999}");
    let done = root.json(&["reload"]);
    assert_eq!(done["reload"]["applied"], json!(["tick_interval", "budget.daily_calls"]), "{done}");
    assert_eq!(done["reload"]["needs_restart"], json!(["attach.port"]));
    assert_eq!(root.json(&["status"])["tick_interval"], 8.0);
    assert_eq!(root.json(&["budget", "show"])["limits"]["calls"], 3);
    Ok(())
}

#[test]
fn usr1_writes_the_status_into_the_log() -> Result<()> {
    let root = Root::new();
    let daemon = root.start()?;
    daemon.signal(Signal::USR1)?;
    let details = root.wait_logged("daemon_status")?;
    assert!(details.to_string().contains("queue_depth"), "{details}");
    Ok(())
}

#[test]
fn stop_waits_until_the_daemon_has_ended() -> Result<()> {
    let root = Root::new();
    let mut daemon = root.start()?;
    let stopped = root.json(&["stop"]);
    assert_eq!(stopped["pid"], json!(daemon.pid().as_raw_nonzero().get()));
    assert_eq!(daemon.wait()?.code(), Some(0));
    assert_eq!(root.cli(&["stop"]).code, 7);
    Ok(())
}

#[test]
fn a_root_whose_path_is_too_long_for_a_socket_works() -> Result<()> {
    let root = Root::named(&"deep/".repeat(30));
    let runtime = root.aside().join("runtime");
    let root = root.env("XDG_RUNTIME_DIR", runtime.to_str().unwrap());
    let mut daemon = root.start()?;
    assert_eq!(root.json(&["status"])["state"], "running");
    let id = root.add("far away", &[]);
    root.wait_state(&id, &["succeeded"])?;
    let endpoint: Value = serde_json::from_slice(&fs::read(root.file("run/endpoint.json"))?)?;
    assert!(Path::new(endpoint["socket"].as_str().unwrap()).starts_with(&runtime), "{endpoint}");
    assert_eq!(root.cli(&["stop"]).code, 0);
    assert_eq!(daemon.wait()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_changed_pid_path_hides_the_daemon_from_nobody() -> Result<()> {
    let root = Root::new().daemon_yml("pid_path: .kairos/run/other.pid");
    let mut daemon = root.start()?;
    let text = fs::read_to_string(root.file("run/other.pid"))?;
    assert!(text.starts_with(&daemon.pid().as_raw_nonzero().to_string()), "{text}");
    assert_eq!(root.json(&["status"])["state"], "running");
    root.set_daemon_yml("pid_path: .kairos/run/third.pid");
    assert_eq!(root.cli(&["run"]).code, 1, "another path lets no second daemon in");
    assert_eq!(root.json(&["status"])["state"], "running");
    assert_eq!(root.cli(&["stop"]).code, 0);
    assert_eq!(daemon.wait()?.code(), Some(0));
    root.set_daemon_yml("pid_path: .kairos/run/./daemon.pid");
    assert_eq!(root.start()?.stop()?, 0, "the same file under another spelling is one lock");
    Ok(())
}

#[test]
fn the_service_manager_hears_ready_reloading_watchdog_and_stopping() -> Result<()> {
    let root = Root::new().env("WATCHDOG_USEC", "200000");
    let mut daemon = root.start()?;
    daemon.wait_said("WATCHDOG=1")?;
    daemon.signal(Signal::HUP)?;
    daemon.wait_said("RELOADING=1")?;
    daemon.wait_said("READY=1")?;
    daemon.wait_said("WATCHDOG=1")?;
    daemon.signal(Signal::TERM)?;
    daemon.wait_said("STOPPING=1")?;
    assert_eq!(daemon.wait()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_bad_daemon_yml_ends_the_start_with_2_and_names_every_line() {
    let root = Root::new().daemon_yml("tick_intervall: 3\nbudget:\n  daily_calls: many");
    let ran = root.cli(&["run"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    for place in [".kairos/config/daemon.yml:4:1", ".kairos/config/daemon.yml:6:16"] {
        assert!(ran.stderr.contains(place), "{place} in {}", ran.stderr);
    }
    assert!(!root.file("state/store.db").exists());
}

#[test]
fn a_bad_schedule_is_set_aside_and_the_others_run() -> Result<()> {
    let root = Root::new().schedules_yml(
        "schedules:\n  - {name: bad, cron: '61 * * * *', mandate: {goal: never}}\n  - {name: good, cron: '* * * * * *', mandate: {goal: now}}\n",
    );
    let _daemon = root.start()?;
    root.wait_for("the good schedule", || {
        let list = root.json(&["mandate", "list", "--schedule", "good", "--state", "succeeded"]);
        (!list.as_array()?.is_empty()).then_some(())
    })?;
    assert_eq!(root.json(&["status"])["schedules_quarantined"], json!(["bad"]));
    let bad = root.json(&["schedule", "show", "bad"]);
    assert_eq!(bad["state"], "quarantined");
    assert!(bad["problems"][0].as_str().unwrap().contains("schedules.yml:2:"), "{bad}");
    Ok(())
}

#[test]
fn a_long_cycle_delays_neither_another_schedule_nor_the_heartbeat() -> Result<()> {
    let root = Root::new()
        .daemon_yml(&format!("max_concurrent_cycles: 2\n{BEATING}"))
        .schedules_yml("schedules: [{name: quick, cron: '* * * * * *', mandate: {goal: quick}}]");
    let _daemon = root.start()?;
    let long = root.add("long", &["sleep_ms=600000"]);
    let begun = root.wait_state(&long, &["running"])?["created_at"].as_str().unwrap().to_owned();
    let beat = root.beat()["ts"].clone();
    root.wait_for("two quick ones", || {
        let args = ["mandate", "list", "--schedule", "quick", "--state", "succeeded", "--since", &begun];
        (root.json(&args).as_array()?.len() >= 2).then_some(())
    })?;
    assert_ne!(root.beat()["ts"], beat);
    root.wait_for("a beat that shows it", || {
        let active = root.beat()["active_mandate_id"].clone();
        (active == json!(long)).then_some(())
    })?;
    assert_eq!(root.json(&["mandate", "show", &long])["state"], "running");
    Ok(())
}

#[test]
fn schedules_fire_into_the_queue_while_the_only_slot_is_taken() -> Result<()> {
    let root =
        Root::new().schedules_yml("schedules: [{name: quick, cron: '* * * * * *', mandate: {goal: quick}}]");
    let _daemon = root.start()?;
    let long = root.add("long", &["sleep_ms=600000"]);
    root.wait_state(&long, &["running"])?;
    root.wait_for("two in the queue", || {
        (root.json(&["status"])["queue_depth"].as_u64()? >= 2).then_some(())
    })?;
    assert_eq!(root.json(&["mandate", "show", &long])["state"], "running");
    Ok(())
}

/// Every file below, with its size and the time of its last change.
fn files(dir: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else if let Ok(meta) = entry.metadata() {
            found.insert(entry.path(), (meta.len(), meta.modified().unwrap()));
        }
    }
    found
}

fn beats(root: &Root, n: usize) -> Result<()> {
    let mut last = root.beat()["ts"].clone();
    for _ in 0..n {
        last = root.wait_for("a beat", || {
            let ts = root.beat()["ts"].clone();
            (ts != last && !ts.is_null()).then_some(ts)
        })?;
    }
    Ok(())
}

#[test]
fn an_idle_daemon_writes_nothing_but_heartbeats() -> Result<()> {
    let root = Root::new()
        .daemon_yml(&format!("tick_interval: 0.05\n{BEATING}"))
        .schedules_yml("schedules: [{name: yearly, cron: '0 0 29 2 *', mandate: {goal: rare}}]");
    let _daemon = root.start()?;
    let id = root.add("something to book", &["llm_calls=1"]);
    root.wait_state(&id, &["succeeded"])?;
    // Views follow within a second, archives of logs at once.
    beats(&root, 15)?;
    let quiet = || {
        let mut all = files(&root.file(""));
        all.retain(|path, _| !path.to_string_lossy().contains("heartbeat.json"));
        all
    };
    let before = quiet();
    assert!(before.contains_key(&root.file("state/store.db")));
    beats(&root, 15)?;
    assert_eq!(quiet(), before);
    Ok(())
}

#[test]
fn an_idle_daemon_sleeps() -> Result<()> {
    let root = Root::new()
        .daemon_yml("tick_interval: 3600\nheartbeat: {interval: 3600}")
        .schedules_yml("schedules: [{name: yearly, cron: '0 0 29 2 *', mandate: {goal: rare}}]");
    let daemon = root.start()?;
    let pid = daemon.pid().as_raw_nonzero().get();
    let switches = || -> u64 {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let texts = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
        let counts = |text: String| -> u64 {
            let lines = text.lines().filter_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            lines.map(|number| number.trim().parse::<u64>().unwrap()).sum()
        };
        texts.map(counts).sum()
    };
    // The window that is measured; not a wait for something to happen. What begins with the start
    // may still end in the first ones, a poller would be awake in every one.
    let awake = (0..4).map(|_| {
        let before = switches();
        std::thread::sleep(Duration::from_millis(700));
        switches() - before
    });
    let least = awake.min().unwrap();
    assert!(least <= 2, "{least} wake-ups in 700 ms");
    Ok(())
}
