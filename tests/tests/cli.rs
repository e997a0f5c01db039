//! The command line as scripts see it: the shapes of `--json`, exit codes, and that every command
//! works whether or not a daemon runs.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use anyhow::Result;
use kairos_tests::{Ran, Root, kairos, plugin};
use serde_json::{Value, json};

/// The error of a failed command, which must be JSON on stderr, with this exit code.
fn error(root: &Root, args: &[&str], code: i32) -> Value {
    let Ran { code: found, stdout, stderr } = root.cli(&[args, &["--json"]].concat());
    assert_eq!(found, code, "{args:?}: {stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    let value: Value =
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{args:?}: {error}: {stderr} {stdout}"));
    assert!(value["error"]["code"].is_string() && value["error"]["message"].is_string(), "{args:?}: {value}");
    value["error"].clone()
}

fn has(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no {key} in {value}");
    }
}

const SCHEDULES: &str = "\
# Written by a person.
schedules:
  - name: daily # the usual
    cron: '0 9 * * *'
    timezone: Europe/Paris
    mandate: {goal: report, params: {llm_calls: 1}}
  # and one more
  - name: often
    cron: '* 3 1 2 *'
    mandate: {goal: look}
";

const USAGE: [&str; 4] = ["calls", "input_tokens", "output_tokens", "usd"];

/// The commands that only look; the same with and without a daemon.
fn look(root: &Root, state: &str) {
    let status = root.json(&["status"]);
    assert_eq!(status["state"], state);
    has(&status, &["pid", "tick_count", "mailbox_size", "started_at", "shutdown_requested", "tick_interval"]);
    has(&status, &["queue_depth", "active_mandate_id", "active_mandate_ids", "last_cycle_at", "version"]);

    let budget = root.json(&["budget", "show"]);
    has(&budget, &["day", "timezone", "exceeded"]);
    has(&budget["limits"], &["calls", "tokens", "usd"]);
    has(&budget["spent"], &USAGE);
    has(&budget["reserved"], &USAGE);

    let list = root.json(&["schedule", "list"]);
    let names: Vec<&Value> = list.as_array().unwrap().iter().map(|view| &view["name"]).collect();
    assert_eq!(names, ["daily", "often"]);
    assert_eq!(root.json(&["schedule", "show", "daily"])["name"], "daily");
    let next = root.json(&["schedule", "next", "often", "-n", "3"]);
    assert_eq!(next.as_array().unwrap().len(), 3, "{next}");
    has(&next[0], &["schedule", "nominal_at", "local"]);
    let next = root.json(&["schedule", "next", "-n", "2"]);
    assert_eq!(next.as_array().unwrap().len(), 4);

    let plugins = root.json(&["plugin", "list"]);
    assert_eq!(plugins[0]["runner"], "stub");
    assert_eq!(root.json(&["wal", "verify"])["fine"], true);
    assert_eq!(root.json(&["config", "check"])["ok"], true);
    assert!(root.json(&["config", "dump"])["keys"].is_array());
    assert!(root.json(&["mandate", "list"]).is_array());
    assert!(root.json(&["doctor"]).is_object() || root.json(&["doctor"]).is_array());

    assert_eq!(error(root, &["mandate", "show", "nothing"], 3)["code"], "not_found");
    for verb in ["stop", "retry", "resume"] {
        error(root, &["mandate", verb, "nothing"], 3);
    }
    error(root, &["mandate", "resolve", "nothing", "--done", "--note", "n"], 3);
    error(root, &["schedule", "show", "nothing"], 3);
    error(root, &["schedule", "next", "nothing"], 3);
    for verb in ["pause", "resume", "trigger", "skip-next"] {
        error(root, &["schedule", verb, "nothing"], 3);
    }
    error(root, &["schedule", "remove", "nothing"], 3);
    error(root, &["schedule", "edit", "nothing", "--goal", "g"], 3);
    error(root, &["why", "nothing", "2026-11-22T09:00:00Z"], 3);
    error(root, &["wal", "show", "nothing"], 3);
    error(root, &["mandate", "list", "--state", "asleep"], 2);
    error(root, &["mandate", "add", "  "], 2);
    error(root, &["mandate", "add", "g", "--runner", "nobody"], 2);
    error(root, &["schedule", "pause", "daily", "--until", "2001-01-01"], 2);
    error(root, &["why", "daily", "yesterday-ish"], 2);
}

/// Schedules are held back, pushed on, and their past is made up for.
fn steer(root: &Root) {
    root.json(&["schedule", "pause", "often", "--note", "noise"]);
    assert_eq!(root.json(&["schedule", "show", "often"])["state"], "paused");
    root.json(&["schedule", "resume", "often"]);
    assert_ne!(root.json(&["schedule", "show", "often"])["state"], "paused");

    let next = root.json(&["schedule", "next", "often", "-n", "2"]);
    root.json(&["schedule", "skip-next", "often"]);
    let after = root.json(&["schedule", "next", "often", "-n", "1"]);
    assert_eq!(after[0]["nominal_at"], next[1]["nominal_at"], "the next one is left out");

    let fired = root.json(&["schedule", "trigger", "daily", "--request-id", "r"]);
    let again = root.json(&["schedule", "trigger", "daily", "--request-id", "r"]);
    assert_eq!(fired["id"], again["id"], "{fired} {again}");

    let days = ["--from", "2026-01-01", "--to", "2026-01-03T12:00:00Z"];
    let counted = root.json(&[&["schedule", "backfill", "daily", "--dry-run"], &days[..]].concat());
    assert_eq!(counted["count"], 3, "{counted}");
    let made = root.json(&[&["schedule", "backfill", "daily"], &days[..]].concat());
    assert_eq!(made["created"].as_array().unwrap().len(), 3, "{made}");
    let made = root.json(&[&["schedule", "backfill", "daily"], &days[..]].concat());
    assert_eq!(made["created"], json!([]), "{made}");
    assert_eq!(made["occupied"].as_array().unwrap().len(), 3, "{made}");
    let many = ["schedule", "backfill", "often", "--from", "2026-01-01", "--to", "2026-03-01"];
    assert_eq!(error(root, &many, 5)["code"], "confirm");
    let why = root.json(&["why", "daily", "2026-01-02T08:00:00Z"]);
    has(&why, &["schedule", "nominal_at", "outcome", "reason", "from", "to", "count"]);
    assert_eq!(why["mandate"]["schedule"], "daily");
}

#[test]
fn every_command_works_without_a_daemon() {
    let root = Root::new().schedules_yml(SCHEDULES);
    look(&root, "stopped");
    steer(&root);
    for command in ["stop", "reload"] {
        assert_eq!(error(&root, &[command], 7)["code"], "daemon_down");
    }
    error(&root, &["logs"], 3);
    let id = root.add("later", &[]);
    assert_eq!(root.json(&["mandate", "show", &id])["state"], "queued");
    error(&root, &["mandate", "resume", &id], 5);
    error(&root, &["mandate", "retry", &id], 5);
    assert_eq!(root.json(&["mandate", "stop", &id, "--note", "no"])["state"], "cancelled");
    error(&root, &["mandate", "stop", &id], 5);
    let again = root.json(&["mandate", "retry", &id]);
    assert_eq!(again["state"], "queued", "{again}");
}

#[test]
fn every_command_works_with_a_daemon() -> Result<()> {
    let root = Root::new().schedules_yml(SCHEDULES);
    let _daemon = root.start()?;
    look(&root, "running");
    steer(&root);
    let reload = root.json(&["reload"]);
    has(&reload["reload"], &["applied", "needs_restart", "problems"]);
    let log = root.cli(&["logs", "-n", "500", "--json"]);
    assert!(log.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(log.stdout.contains("\"daemon_started\""), "{}", log.stdout);
    Ok(())
}

#[test]
fn a_mandate_is_shown_with_all_that_became_of_it() -> Result<()> {
    let root = Root::new();
    let _daemon = root.start()?;
    let before = root.json(&["budget", "show"])["spent"]["calls"].as_u64().unwrap();
    let add = ["mandate", "add", "a goal", "--request-id", "mine", "--max-cycles", "2", "--scope", "s"];
    let params = ["--param", "llm_calls=2", "--param", "input_tokens=5", "--param", "more=true"];
    let added = root.json(&[&add[..], &params[..]].concat());
    let id = added["id"].as_str().unwrap();
    assert_eq!(root.json(&[&add[..], &params[..]].concat())["id"], id, "one request is one mandate");
    let shown = root.wait_state(id, &["succeeded"])?;
    has(
        &shown,
        &["id", "schedule", "runner", "goal", "state", "reason", "nominal_at", "created_at", "ended_at"],
    );
    assert_eq!((&shown["goal"], &shown["runner"]), (&json!("a goal"), &json!("stub")));
    assert_eq!(shown["reason"], "max_cycles");
    assert_eq!(shown["cycles"].as_array().unwrap().len(), 2, "{shown}");
    let cycle = &shown["cycles"][0];
    has(cycle, &["cycle", "attempt", "runner", "generation", "status", "started_at", "ended_at", "usage"]);
    has(cycle, &["error"]);
    assert_eq!(
        cycle["usage"],
        json!({"llm_calls": 2, "input_tokens": 5, "output_tokens": 0, "cost_usd": 0.0})
    );
    assert_eq!(root.json(&["budget", "show"])["spent"]["calls"], before + 4);

    let list = root.json(&["mandate", "list", "--state", "succeeded"]);
    assert_eq!(list.as_array().unwrap().len(), 1);
    has(
        &list[0],
        &["id", "schedule", "runner", "goal", "state", "reason", "nominal_at", "created_at", "ended_at"],
    );
    assert_eq!(root.json(&["mandate", "list", "--state", "queued,running"]), json!([]));
    assert_eq!(root.json(&["mandate", "list", "--until", "2020-01-01"]), json!([]));
    assert_eq!(root.json(&["mandate", "list", "--since", "1h"]).as_array().unwrap().len(), 1);

    let lines = root.json(&["wal", "show", id]);
    assert!(lines.as_array().unwrap().iter().any(|line| line["record"]["op"] == "plan_commit"), "{lines}");
    assert_eq!(root.json(&["wal", "verify", id])["fine"], true);
    let beside = root.cli(&["mandate", "show", id]);
    assert!(beside.code == 0 && beside.stdout.contains("max_cycles"), "{beside:?}");
    Ok(())
}

#[test]
fn two_errors_in_a_row_fail_a_mandate_and_a_pause_waits_for_a_person() -> Result<()> {
    let root = Root::new();
    let _daemon = root.start()?;
    let bad = root.add("bad", &["status=error"]);
    let shown = root.wait_state(&bad, &["failed"])?;
    assert_eq!(shown["cycles"].as_array().unwrap().len(), 2, "{shown}");
    assert!(shown["cycles"][0]["error"].is_string(), "{shown}");
    let paused = root.add("waits", &["status=paused"]);
    root.wait_state(&paused, &["paused_checkpoint"])?;
    error(&root, &["mandate", "retry", &paused], 5);
    error(&root, &["mandate", "resolve", &paused, "--done", "--note", "n"], 5);
    assert_eq!(root.json(&["mandate", "resume", &paused])["id"], paused.as_str());
    root.wait_for("a second pause", || {
        let shown = root.json(&["mandate", "show", &paused]);
        (shown["state"] == "paused_checkpoint" && shown["cycles"].as_array()?.len() == 2).then_some(())
    })
}

#[test]
fn edits_of_schedules_keep_comments_and_reach_the_daemon() -> Result<()> {
    let root = Root::new().schedules_yml(SCHEDULES);
    let _daemon = root.start()?;
    let added =
        root.json(&["schedule", "add", "new", "0 0 * * *", "--goal", "g", "--timezone", "Asia/Tokyo"]);
    assert_eq!(added["schedule"], "new");
    assert_eq!(added["next"].as_array().unwrap().len(), 5, "{added}");
    assert_eq!(error(&root, &["schedule", "add", "new", "0 0 * * *", "--goal", "g"], 5)["code"], "exists");
    assert_eq!(error(&root, &["schedule", "add", "odd", "99 0 * * *", "--goal", "g"], 2)["code"], "invalid");
    root.json(&["schedule", "edit", "daily", "--cron", "30 9 * * *", "--param", "llm_calls=2"]);
    let show = root.json(&["schedule", "next", "daily", "-n", "1"]);
    assert!(show[0]["local"].as_str().unwrap().contains("09:30"), "{show}");
    root.json(&["schedule", "remove", "often", "--dry-run"]);
    root.json(&["schedule", "remove", "often"]);
    error(&root, &["schedule", "show", "often"], 3);
    let text = fs::read_to_string(root.file("config/schedules.yml"))?;
    for kept in ["# Written by a person.", "name: daily # the usual", "30 9 * * *", "Asia/Tokyo"] {
        assert!(text.contains(kept), "{kept:?} in {text}");
    }
    assert!(!text.contains("often"), "{text}");
    Ok(())
}

#[test]
fn odd_names_of_schedules_work_end_to_end() -> Result<()> {
    let long = "n".repeat(10 << 10);
    let names = ["a/b/../c", "..", ".", "with space", "dots.and%2Fescapes", "🦀 snow ❄", "#x: {y}", &long];
    let root = Root::new()
        .schedules_yml("schedules:\n  - {name: \"nul\\0inside\", cron: '0 0 1 1 *', mandate: {goal: g}}\n");
    let mut daemon = root.start()?;
    let mut ids = vec![];
    for name in names {
        root.json(&["schedule", "add", name, "0 0 1 1 *", "--goal", "g", "--param", "phases=true"]);
        ids.push(root.json(&["schedule", "trigger", name])["id"].as_str().unwrap().to_owned());
    }
    for (id, name) in ids.iter().zip(names) {
        let shown = root.wait_state(id, &["succeeded"])?;
        assert_eq!(shown["schedule"], name);
        assert!(id.len() < 200 && !id.contains(['/', ' ']), "{id}");
        assert!(!root.json(&["wal", "show", id]).as_array().unwrap().is_empty());
    }
    assert_eq!(root.json(&["status"])["schedules_quarantined"], json!(["schedules[0]"]));
    let mut listed: Vec<String> = root
        .json(&["schedule", "list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|view| view["name"].as_str().unwrap().to_owned())
        .collect();
    // A name with a NUL is no name: that one is set aside by its place.
    listed.retain(|name| name != "schedules[0]");
    listed.sort();
    let mut wanted = names.to_vec();
    wanted.sort_unstable();
    assert!(listed == wanted, "{} names", listed.len());
    root.json(&["schedule", "remove", ".."]);
    root.json(&["schedule", "remove", &long]);
    error(&root, &["schedule", "show", ".."], 3);
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}

#[test]
fn once_does_what_is_due_and_ends_with_6_when_the_budget_holds_something() -> Result<()> {
    let root = Root::new();
    let done = root.add("done", &["llm_calls=3"]);
    let ran = root.json(&["run", "--once"]);
    assert_eq!((&ran["cycles"], &ran["budget"], &ran["waiting"]), (&json!(1), &json!(false), &json!([])));
    assert_eq!(root.json(&["mandate", "show", &done])["state"], "succeeded");
    root.set_daemon_yml("budget: {daily_calls: 3}");
    let held = root.add("held", &[]);
    let ran = root.cli(&["run", "--once", "--json"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    let view: Value = serde_json::from_str(&ran.stdout)?;
    assert_eq!((&view["cycles"], &view["waiting"][0]["id"]), (&json!(0), &json!(held)));
    assert!(view["waiting"][0]["reason"].as_str().is_some_and(|reason| reason.contains("budget")), "{view}");
    Ok(())
}

#[test]
fn wrong_use_ends_with_2_and_says_so_in_json() {
    let root = Root::new();
    error(&root, &["frobnicate"], 2);
    error(&root, &["mandate", "show"], 2);
    error(&root, &["mandate", "add", "g", "--param", "novalue"], 2);
    error(&root, &["mandate", "resolve", "x", "--note", "n"], 2);
    error(&root, &["cron", "next", "* * *"], 2);
    error(&root, &["cron", "next", "* * * * *", "--tz", "Mars/Olympus"], 2);
    error(&root, &["schedule", "edit", "x"], 2);
}

#[test]
fn cron_needs_no_root() {
    let root = Root::new();
    let from = ["--from", "2026-11-22T00:00:00Z"];
    let next =
        root.json(&[&["cron", "next", "0 9 * * *", "--tz", "Europe/Paris", "-n", "2"], &from[..]].concat());
    assert_eq!(next["occurrences"], json!(["2026-11-22T08:00:00Z", "2026-11-23T08:00:00Z"]), "{next}");
    assert_eq!((&next["expr"], &next["timezone"]), (&json!("0 9 * * *"), &json!("Europe/Paris")));
    let to = ["--to", "2026-11-23T00:00:00Z", "--tz", "UTC"];
    let count = root.json(&[&["cron", "count", "*/15 * * * *"], &from[..], &to[..]].concat());
    assert_eq!(count["count"], 96);
    assert_eq!(root.cli(&["cron", "explain", "0 9 * * 1-5"]).code, 0);
}

#[test]
fn a_plugin_is_checked_without_a_daemon() {
    let root = Root::new();
    let stub = plugin("stub");
    let good = root.json(&["plugin", "check", stub.to_str().unwrap()]);
    assert_eq!((&good["loads"], &good["name"], &good["errors"]), (&json!(true), &json!("stub"), &json!([])));
    has(&good, &["abi", "version"]);
    root.write("garbage.so", "not a library");
    let path = root.file("garbage.so");
    let bad = root.cli(&["plugin", "check", path.to_str().unwrap(), "--json"]);
    assert_eq!(bad.code, 1);
    let view: Value = serde_json::from_str(&bad.stdout).unwrap();
    assert_eq!((&view["loads"], &view["errors"][0]["code"]), (&json!(false), &json!("not_elf")));
}

#[test]
fn scripts_and_pages_are_printed() {
    let root = Root::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(root.cli(&["completions", shell]).stdout.contains("kairos"));
    }
    assert!(root.cli(&["man"]).stdout.contains(".TH kairos"));
    let pages = root.aside().join("pages");
    assert_eq!(root.cli(&["man", pages.to_str().unwrap()]).code, 0);
    assert!(pages.join("kairos-mandate-add.1").is_file());
    assert!(root.cli(&["--version"]).stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_new_root_is_made_and_checked() {
    let root = Root::new();
    let dir = root.aside().join("fresh");
    let made = root.cli(&["init", dir.to_str().unwrap()]);
    assert_eq!(made.code, 0, "{made:?}");
    assert!(dir.join(".kairos/config/daemon.yml").is_file());
}

#[test]
fn a_new_root_is_made_where_the_command_or_the_environment_names_one() {
    let root = Root::new();
    let at = |name: &str| root.aside().join(name);
    let cwd = at("here");
    std::fs::create_dir(&cwd).unwrap();
    let init = |args: &[&str], env: Option<&str>| {
        let mut command = Command::new(kairos());
        command.args(args).arg("init").current_dir(&cwd).env_remove("KAIROS_ROOT");
        if let Some(env) = env {
            command.env("KAIROS_ROOT", env);
        }
        command.output().unwrap()
    };
    for (name, args, env) in [
        ("by-option", &["--root", "../by-option"][..], Some("../not-this")),
        ("by-variable", &[][..], Some("../by-variable")),
    ] {
        let made = init(args, env);
        assert!(made.status.success(), "{made:?}");
        assert!(at(name).join(".kairos/config/daemon.yml").is_file());
        assert_eq!((cwd.join(".kairos").exists(), at("not-this").exists()), (false, false));
    }
    assert!(init(&[], None).status.success() && cwd.join(".kairos").is_dir());
}

#[test]
fn a_backup_goes_through_links_and_pipes_and_takes_no_name_from_them() {
    let root = Root::new();
    let mut daemon = root.start().unwrap();
    let at = |name: &str| root.aside().join(name);
    std::os::unix::fs::symlink("copy.db", at("link.db")).unwrap();
    assert_eq!(root.cli(&["backup", at("link.db").to_str().unwrap()]).code, 0);
    assert!(std::fs::symlink_metadata(at("link.db")).unwrap().is_symlink());
    let copy = std::fs::read(at("copy.db")).unwrap();
    std::os::unix::fs::symlink("/proc/self/fd/1", at("stdout")).unwrap();
    let mut backup = Command::new(kairos());
    backup.args(["backup", at("stdout").to_str().unwrap(), "--root"]).arg(root.path());
    let said = backup.output().unwrap();
    assert!(said.status.success() && said.stdout.starts_with(b"SQLite format 3\0"), "{}", said.status);
    assert_eq!(said.stdout.len() % 512, 0, "nothing but the copy");
    assert!(copy.starts_with(b"SQLite format 3\0"));
    assert!(std::fs::symlink_metadata(at("stdout")).unwrap().is_symlink());
    assert_eq!(daemon.stop().unwrap(), 0);
}

/// Runs a command whose reader closes its end after `lines` lines: how it ended, and what it said.
fn read_by_head(root: &Root, args: &[&str], lines: usize) -> (Option<i32>, String) {
    let mut command = Command::new(kairos());
    command.args(args).arg("--root").arg(root.path()).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..lines {
        let mut line = String::new();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "{args:?} said too little");
    }
    drop(stdout);
    let ended = root.wait_for("its end", || child.try_wait().unwrap());
    if ended.is_err() {
        child.kill().unwrap();
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

#[test]
fn a_reader_that_has_seen_enough_ends_every_command_without_a_word() {
    let root = Root::new().schedules_yml(SCHEDULES);
    let mut daemon = root.start().unwrap();
    for args in [
        &["cron", "next", "* * * * *", "-n", "100000"][..],
        &["cron", "next", "* * * * *", "-n", "100000", "--json"],
        &["completions", "zsh"],
        &["man"],
        &["config", "dump"],
        &["status"],
        &["schedule", "list", "--json"],
        &["logs", "-n", "1"],
        &["--help"],
        &["cron", "next", "--help"],
    ] {
        let lines = usize::from(args.contains(&"100000") && !args.contains(&"--json"));
        assert_eq!(read_by_head(&root, args, lines), (Some(0), String::new()), "{args:?}");
    }
    // What would go on for ever ends at once, not with the next line, which may never come.
    assert_eq!(read_by_head(&root, &["logs", "-f", "-n", "1"], 1), (Some(0), String::new()));
    // Trouble is still said, by the exit code at least.
    assert_eq!(read_by_head(&root, &["cron", "next", "nonsense"], 0).0, Some(2));
    assert_eq!(daemon.stop().unwrap(), 0);
}
