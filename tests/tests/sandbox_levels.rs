//! Machines that can confine a runner less than they should: whatever a kernel lacks is named, with
//! the reason, wherever a person looks; too little starts nothing and burns no mandate; and nothing
//! that a runner says makes its sandbox better than it is. What a kernel lacks is taken away by a
//! filter of system calls over everything that is started (`fixtures/without.c`).

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::fs;
use std::process::{Command, Stdio};

use kairos_host::sys::sandbox::{Level, Reached};
use kairos_tests::hostile::{hostile_c, without};
use kairos_tests::{Root, kairos, plugin};
use serde_json::{Value, json};

/// What is taken away, the level that is left, a layer that is missing then, a word of the reason.
const LACKS: [(&str, &str, &str, &str); 6] = [
    ("landlock=3", "partial", "scopes", "the kernel has Landlock 3, this needs 6"),
    ("landlock", "none", "files", "the kernel has no Landlock"),
    ("userns", "partial", "user_namespace", "unshare: Operation not permitted"),
    ("namespaces", "partial", "network_namespace", "unshare: Operation not permitted"),
    ("mdwe", "partial", "exec_gain", "prctl: Invalid argument"),
    ("seccomp", "none", "system_calls", "not implemented"),
];

/// Something confined beside the default runner.
const CONFINED: &str = "  confined: {plugin: PLUGIN, isolation: sandbox}";

fn confined() -> String {
    CONFINED.replace("PLUGIN", &json!(plugin("stub")).to_string())
}

/// A root on a machine that lacks this.
fn lacking(what: &str, yml: &str) -> Root {
    let root = Root::new().daemon_yml(yml);
    let program = without(root.aside());
    root.by(&program, &[what])
}

/// What this machine has before anything is taken away.
fn own() -> Level {
    let probe = Command::new(kairos()).args(["confine", "--probe"]).output().unwrap();
    let reached: Reached = serde_json::from_slice(&probe.stdout).unwrap();
    println!("this machine's own sandbox: {reached}");
    reached.level
}

/// The lines of [`LACKS`] that this machine can play. One that is watched by such a filter itself, as
/// some containers are, cannot be made to tell another version of Landlock.
fn playable() -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
    let dir = tempfile::tempdir().unwrap();
    let program = without(dir.path());
    let plays =
        |what: &str| Command::new(&program).args([what, "--", "/bin/true"]).status().unwrap().success();
    let (plays, not): (Vec<_>, Vec<_>) = LACKS.into_iter().partition(|lack| plays(lack.0));
    println!("cannot be played here: {not:?}");
    assert!(plays.len() >= LACKS.len() - 1);
    plays
}

/// The row of one runner.
fn listed(root: &Root, runner: &str) -> Value {
    let list = root.json(&["plugin", "list"]);
    list.as_array().unwrap().iter().find(|row| row["runner"] == runner).unwrap().clone()
}

fn mandate(root: &Root, runner: &str) -> String {
    let added = root.json(&["mandate", "add", "be confined", "--runner", runner]);
    added["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_probe_names_each_layer_that_a_kernel_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let (program, own) = (without(dir.path()), own());
    for (what, level, layer, reason) in playable() {
        let mut command = Command::new(&program);
        command.args([what, "--"]).arg(kairos()).args(["confine", "--probe"]).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        let reached: Reached = serde_json::from_slice(&output.stdout).unwrap();
        assert!(own < Level::Full || reached.level.word() == level, "{what}: {reached}");
        let missing = reached.missing().find(|missing| missing.name == layer);
        assert!(missing.is_some_and(|missing| missing.reason.contains(reason)), "{what}: {reached}");
        // The system's word for it, once.
        assert!(
            reached.missing().all(|missing| missing.reason.matches("os error").count() <= 1),
            "{reached}"
        );
    }
}

#[test]
fn a_runner_in_a_lesser_sandbox_serves_and_everybody_is_told() {
    if own() == Level::None {
        return println!("nothing is served in a sandbox here");
    }
    for (what, level, layer, reason) in playable().into_iter().filter(|lack| lack.1 == "partial").take(3) {
        let root = lacking(what, &confined());
        let mut daemon = root.start().unwrap();
        let id = mandate(&root, "confined");
        assert_eq!(root.wait_state(&id, &["succeeded", "failed", "review"]).unwrap()["state"], "succeeded");
        // For scripts.
        let row = listed(&root, "confined");
        assert_eq!((&row["state"], &row["sandbox"]), (&json!("active"), &json!(level)), "{row}");
        let status = root.json(&["status"]);
        assert_eq!(status["sandbox"], json!({"confined": level}));
        // For people: which layer, and why.
        let missing = row["sandbox_missing"].as_array().unwrap();
        let named = |list: &[Value]| {
            list.iter().any(|one| one["layer"] == layer && one["reason"].as_str().unwrap().contains(reason))
        };
        assert!(named(missing), "{what}: {row}");
        let told = |text: &str| text.contains(level) && text.contains(layer) && text.contains(reason);
        assert!(
            status["reasons"].as_array().unwrap().iter().any(|why| told(why.as_str().unwrap())),
            "{status}"
        );
        // As it happens: one event and one line in the log, however many cycles there were.
        let events = root.events("runner_sandbox_degraded").unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!((&events[0]["runner"], &events[0]["level"]), (&json!("confined"), &json!(level)));
        assert_eq!(events[0]["serves"], true);
        assert!(named(events[0]["missing"].as_array().unwrap()), "{events:?}");
        let logged = root.logged("runner_sandbox_degraded");
        assert!(logged.len() == 1 && told(&logged[0].to_string()), "{logged:?}");
        // Of the machine, by the doctor: a warning, since it was not demanded.
        let doctor: Value = serde_json::from_str(&root.cli(&["doctor", "--json"]).stdout).unwrap();
        let check =
            doctor["checks"].as_array().unwrap().iter().find(|check| check["name"] == "sandbox").unwrap();
        assert_eq!(check["verdict"], "warn", "{check}");
        assert!(told(check["message"].as_str().unwrap()) && check["remedy"].is_string(), "{check}");
        assert_eq!(daemon.stop().unwrap(), 0);
    }
}

#[test]
fn a_runner_without_a_sandbox_is_refused_and_its_mandates_are_held() {
    for (what, _, layer, reason) in playable().into_iter().filter(|lack| lack.1 == "none") {
        let root = lacking(what, &confined());
        let mut daemon = root.start().unwrap();
        let id = mandate(&root, "confined");
        let waits = root.wait_logged("daemon_runner_unavailable").unwrap();
        let told = |text: &str| text.contains("none") && text.contains(layer) && text.contains(reason);
        assert!(told(waits["reason"].as_str().unwrap()), "{waits}");
        let row = listed(&root, "confined");
        assert_eq!(
            (&row["state"], &row["code"]),
            (&json!("unavailable"), &json!("sandbox_unavailable")),
            "{row}"
        );
        assert!(told(row["reason"].as_str().unwrap()), "{row}");
        assert!(row["remedy"].as_str().unwrap().contains("kairos doctor"), "{row}");
        assert_eq!(root.json(&["status"])["sandbox"], json!({"confined": "none"}));
        let events = root.events("runner_sandbox_degraded").unwrap();
        assert_eq!(
            (events.len(), &events[0]["level"], &events[0]["serves"]),
            (1, &json!("none"), &json!(false))
        );
        // Held, not burned; and the runner beside it serves.
        let served = root.add("serve on", &[]);
        assert_eq!(root.wait_state(&served, &["succeeded", "failed"]).unwrap()["state"], "succeeded");
        let held = root.wait_state(&id, &["queued"]).unwrap();
        assert_eq!(held["cycles"], json!([]), "{held}");
        assert!(told(held["reason"].as_str().unwrap()), "{held}");
        let doctor = root.cli(&["doctor", "--json"]);
        assert_eq!(doctor.code, 1);
        assert_eq!(daemon.stop().unwrap(), 0);
    }
}

#[test]
fn a_demanded_full_sandbox_holds_mandates_until_the_demand_is_given_up() {
    let demand = |level: &str| format!("{}\nsandbox: {{require: {level}}}", confined());
    if own() == Level::None {
        return println!("nothing is served in a sandbox here");
    }
    let root = lacking("userns", &demand("full"));
    let mut daemon = root.start().unwrap();
    let id = mandate(&root, "confined");
    root.wait_logged("daemon_runner_unavailable").unwrap();
    let held = root.wait_state(&id, &["queued"]).unwrap();
    let reason = held["reason"].as_str().unwrap();
    for word in ["partial", "full is demanded", "user_namespace", "sandbox.require: partial"] {
        assert!(reason.contains(word), "{reason}");
    }
    let row = listed(&root, "confined");
    assert_eq!((&row["code"], &row["sandbox"]), (&json!("sandbox_unavailable"), &json!("partial")), "{row}");
    assert!(row["remedy"].as_str().unwrap().contains("sandbox.require: partial"), "{row}");
    // The retries of a runner that something waits for are no news.
    assert_eq!(root.logged("runner_unavailable").len(), 1);
    root.set_daemon_yml(&demand("partial"));
    root.json(&["reload"]);
    let done = root.wait_state(&id, &["succeeded", "failed", "review"]).unwrap();
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["cycles"].as_array().unwrap().len(), 1, "{done}");
    assert_eq!(listed(&root, "confined")["sandbox"], "partial");
    assert_eq!(daemon.stop().unwrap(), 0);
}

#[test]
fn a_swap_on_a_machine_without_a_sandbox_is_refused_with_what_to_do() {
    let root = lacking("landlock", "  mine: {plugin: ./libmine.so}");
    let file = root.path().join("libmine.so");
    fs::copy(plugin("stub"), &file).unwrap();
    // Trusted, it runs unconfined and needs no sandbox.
    root.json(&["plugin", "trust", file.to_str().unwrap()]);
    let mut daemon = root.start().unwrap();
    assert_eq!(listed(&root, "mine")["isolation"], "process");
    let other = plugin("variant_runner");
    let copy = root.aside().join("libother.so");
    fs::copy(&other, &copy).unwrap();
    let ran = root.cli(&["plugin", "swap", "mine", copy.to_str().unwrap(), "--other-plugin", "--json"]);
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    assert!(
        ran.stderr.contains("sandbox_unavailable") && ran.stderr.contains("kairos doctor"),
        "{}",
        ran.stderr
    );
    assert_eq!(listed(&root, "mine")["state"], "active");
    assert_eq!(daemon.stop().unwrap(), 0);
}

#[test]
fn what_a_plugin_says_of_its_sandbox_is_not_believed() {
    let claims = r#"CLAIM="schema":1,"name":"hostile","version":"1.0.0","api":"1.0.0","abi":"c""#;
    if own() == Level::None {
        return println!("nothing is mapped in a sandbox here");
    }
    let root = lacking("userns", "  forged: {plugin: ./libforged.so, isolation: sandbox}");
    for (misdeed, code) in [("DO_FORGE_LEVEL", Some("crashed")), ("DO_FORGE_READY", None)] {
        // In the worker's name, as soon as it is mapped: a full sandbox, another name and version.
        let forged = hostile_c(root.aside(), "forged", &["FORGE", "CONSTRUCTOR", misdeed, claims]);
        fs::rename(forged, root.path().join("libforged.so")).unwrap();
        let mut daemon = root.start().unwrap();
        let row = listed(&root, "forged");
        assert_eq!(row["code"].as_str(), code, "{row}");
        if code.is_none() {
            // It goes as loaded until somebody asks it for something, but under its own name only.
            assert_eq!((&row["sandbox"], &row["name"]), (&json!("partial"), &json!("hostile")), "{row}");
            assert_eq!(root.json(&["status"])["sandbox"]["forged"], "partial");
            let id = mandate(&root, "forged");
            let ended = root.wait_state(&id, &["review", "failed", "succeeded"]).unwrap();
            assert_eq!(ended["state"], "review", "{ended}");
        }
        let events = root.events("runner_sandbox_degraded").unwrap();
        assert!(events.iter().all(|event| event["level"] == "partial"), "{events:?}");
        assert_eq!(daemon.stop().unwrap(), 0);
    }
}
