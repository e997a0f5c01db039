//! Swaps that are given up before their flip: by a person, by a stop of the daemon, by its death. What
//! served goes on, nothing is barred, and whoever waits is told why.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files and starts programs")]

use std::fs;
use std::path::Path;

use anyhow::Result;
use kairos_tests::swaps::*;
use kairos_tests::{Ran, Root};
use serde_json::{Value, json};

/// A version in that mode stays at that stage until somebody ends it.
const STAYS: [(&str, &str); 4] =
    [("never-new", "probe"), ("hangs", "shadow"), ("never-standby", "standby"), ("b", "handover")];
/// Nothing here ends by itself while a test looks.
const PATIENT: &str = "max_concurrent_cycles: 1\n\
    swap: {shadow_deadline: 60s, canary_cycles: 1000, canary_time: 1h, drain_timeout: 300s}";

fn abort(root: &Root) -> Ran {
    root.cli(&["plugin", "swap", "v", "--abort", "--json"])
}

fn error(ran: &Ran) -> Value {
    let error: Value = serde_json::from_str(&ran.stderr).unwrap_or_else(|_| panic!("{ran:?}"));
    error["error"].clone()
}

/// A mandate that runs until the file is there, or somebody asks it to end.
fn gated(root: &Root, gate: &Path) -> Result<String> {
    let id = root.add("work", &[&format!("gate={}", json!(gate.display().to_string()))]);
    root.wait_state(&id, &["running"])?;
    Ok(id)
}

#[test]
fn a_stop_gives_a_swap_up_at_whatever_stage_it_is() -> Result<()> {
    let root = root("plain", PATIENT);
    let gate = root.aside().join("gate");
    let mut daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    let before = serving(&root)["generation"].clone();
    let id = gated(&root, &gate)?;
    for (mode, stage) in STAYS {
        let begun = begun_to(&root, mode, stage)?;
        assert_eq!(daemon.stop()?, 0, "{stage}");
        // Seen without a daemon: as the one that stopped has left it.
        let history = root.json(&["plugin", "history", "v"]);
        let refused = &history[0];
        assert_eq!((&refused["swap"], &refused["state"]), (&begun["id"], &json!("refused")), "{history}");
        assert_eq!(
            (&refused["refused"]["stage"], &refused["refused"]["code"]),
            (&json!(stage), &json!("stopping"))
        );
        assert!(root.logged("runner_swapped").is_empty(), "{stage}");
        daemon = root.start()?;
        assert_eq!(serving(&root)["generation"], before, "{stage}");
        root.wait_state(&id, &["running"])?;
    }
    fs::write(&gate, "")?;
    let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert!(last_cycle(&row)["summary"].as_str().unwrap().starts_with("plain after"), "{row}");
    // What was given up is not held against the file.
    let again = configured_twin(&root)?;
    assert_eq!(again["stage"], "canary", "{again}");
    Ok(())
}

/// The last file that was given up, swapped in now.
fn configured_twin(root: &Root) -> Result<Value> {
    let history = root.json(&["plugin", "history", "v"]);
    let file = history[0]["source"].as_str().unwrap().to_owned();
    Ok(swapped(root, Path::new(&file)))
}

#[test]
fn a_person_gives_a_swap_up_at_each_stage_before_the_flip() -> Result<()> {
    let root = root("plain", PATIENT);
    let gate = root.aside().join("gate");
    let _daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    let before = serving(&root)["generation"].clone();
    let id = gated(&root, &gate)?;
    for (mode, stage) in STAYS {
        let begun = begun_to(&root, mode, stage)?;
        let ran = abort(&root);
        assert_eq!(ran.code, 0, "{stage}: {}", ran.stderr);
        let view: Value = serde_json::from_str(&ran.stdout)?;
        assert_eq!((&view["id"], &view["stage"]), (&begun["id"], &json!("refused")), "{view}");
        assert_eq!(view["refusal"]["code"], "aborted");
        let newest = root.json(&["plugin", "history", "v", "--limit", "1"])[0].clone();
        assert_eq!(
            (&newest["state"], &newest["refused"]["stage"], &newest["refused"]["code"]),
            (&json!("refused"), &json!(stage), &json!("aborted")),
            "{newest}"
        );
        assert_eq!(serving(&root)["generation"], before, "{stage}");
        assert!(serving(&root)["swap"].is_null());
    }
    // Once nothing is under way, that is said.
    let ran = abort(&root);
    assert_eq!((ran.code, &error(&ran)["code"]), (3, &json!("no_swap")), "{}", ran.stderr);
    let ran = root.cli(&["plugin", "swap", "nobody", "--abort", "--json"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    fs::write(&gate, "")?;
    assert_eq!(root.wait_state(&id, &["succeeded", "failed", "review"])?["state"], "succeeded");
    // What serves on trial is taken back, not given up.
    assert_eq!(configured_twin(&root)?["stage"], "canary");
    let ran = abort(&root);
    assert_eq!((ran.code, &error(&ran)["code"]), (5, &json!("conflict")), "{}", ran.stderr);
    assert_eq!(error(&ran)["remedy"], "kairos plugin rollback v");
    Ok(())
}

#[test]
fn who_asks_for_the_swap_is_told_that_another_person_gave_it_up() -> Result<()> {
    let root = root("plain", PATIENT);
    let _daemon = root.start()?;
    let gate = root.aside().join("gate");
    let _id = gated(&root, &gate)?;
    let next = trusted(&root, "b");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| swap(&root, &next));
        root.wait_for("hand-over", || (serving(&root)["swap"]["stage"] == "handover").then_some(())).unwrap();
        // Two at once: either is answered, and the swap ends once.
        let both =
            [scope.spawn(|| abort(&root)), scope.spawn(|| abort(&root))].map(|one| one.join().unwrap());
        assert!(both.iter().any(|ran| ran.code == 0), "{both:?}");
        assert!(both.iter().all(|ran| ran.code == 0 || error(ran)["code"] == "no_swap"), "{both:?}");
        let ran = asked.join().unwrap();
        assert_eq!((ran.code, &error(&ran)["code"]), (1, &json!("aborted")), "{ran:?}");
    });
    assert_eq!(states(&root), ["refused", "active"]);
    Ok(())
}

/// Waits until somebody stands at the door: its process.
fn at_the_door(root: &Root, door: &Path) -> Result<u32> {
    let seen = door.with_extension("pid");
    root.wait_for("somebody at the door", || fs::read_to_string(&seen).ok()?.parse().ok())
}

fn is_given_up(root: &Root) {
    let ran = abort(root);
    assert_eq!(ran.code, 0, "{ran:?}");
    let view: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&view["stage"], &view["refusal"]["code"]), (&json!("refused"), &json!("aborted")), "{view}");
    assert!(serving(root)["swap"].is_null());
}

#[test]
fn a_swap_is_given_up_in_the_middle_of_an_export_and_cycles_wait_for_its_return() -> Result<()> {
    for isolation in ["process", "in_process"] {
        let settings = "swap: {shadow_deadline: 60s, canary_cycles: 0, drain_timeout: 300s}";
        let (root, door) = with_file("waits-export", settings, isolation, "door");
        let _daemon = root.start()?;
        run(&root, &[])?;
        begun_to(&root, "b", "handover")?;
        at_the_door(&root, &door)?;
        is_given_up(&root);
        // Its instance is in the middle of a call: what begins now would not see its state.
        let waits = root.add("work", &[]);
        let row = root.json(&["mandate", "show", &waits]);
        let reason = row["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("has answered export_state of swap-"), "{row}");
        // The next swap waits for the same return, and has the state whole.
        let file = trusted(&root, "c").display().to_string();
        let next = root.json(&["plugin", "swap", "v", &file, "--no-wait"]);
        root.wait_for("hand-over", || (serving(&root)["swap"]["stage"] == "handover").then_some(()))?;
        fs::write(&door, "")?;
        wait_states(&root, &["active", "refused", "retired"])?;
        assert_eq!(serving(&root)["generation"], root.json(&["plugin", "history", "v"])[0]["sha256"]);
        let row = root.wait_state(&waits, &["succeeded", "failed", "review"])?;
        assert_eq!(last_cycle(&row)["summary"], "c after 2", "{isolation} {next}: {row}");
    }
    Ok(())
}

#[test]
fn a_swap_is_given_up_in_the_middle_of_an_import_and_what_serves_goes_on_at_once() -> Result<()> {
    for isolation in ["process", "in_process"] {
        let settings = "swap: {shadow_deadline: 60s, canary_cycles: 0, drain_timeout: 300s}";
        let (root, door) = with_file("plain", settings, isolation, "door");
        let _daemon = root.start()?;
        run(&root, &[])?;
        begun_to(&root, "waits-import", "handover")?;
        let pid = at_the_door(&root, &door)?;
        is_given_up(&root);
        if isolation == "process" {
            let gone = || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(());
            root.wait_for("the candidate's end", gone)?;
        }
        assert_eq!(run(&root, &[])?, "plain after 2", "{isolation}");
        assert!(swapped(&root, &trusted(&root, "b"))["stage"] != "refused");
        assert_eq!(run(&root, &[])?, "b after 3", "{isolation}");
    }
    Ok(())
}

#[test]
fn who_waits_for_a_swap_is_told_of_the_stop() -> Result<()> {
    let root = root("plain", PATIENT);
    let mut daemon = root.start()?;
    let _id = gated(&root, &root.aside().join("gate"))?;
    let next = trusted(&root, "b");
    let ran = std::thread::scope(|scope| {
        let asked = scope.spawn(|| swap(&root, &next));
        root.wait_for("hand-over", || (serving(&root)["swap"]["stage"] == "handover").then_some(())).unwrap();
        assert_eq!(daemon.stop().unwrap(), 0);
        asked.join().unwrap()
    });
    // A daemon that has ended before its answer was read has ended all the same.
    let told = (ran.code, error(&ran)["code"].as_str().unwrap().to_owned());
    assert!([(1, "stopping".to_owned()), (7, "daemon_ended".to_owned())].contains(&told), "{ran:?}");
    assert!(ran.stderr.contains("next start"), "{ran:?}");
    assert_eq!(states(&root), ["refused", "active"]);
    Ok(())
}

#[test]
fn while_cycles_wait_for_a_hand_over_status_and_mandate_say_so() -> Result<()> {
    let root = root("plain", PATIENT);
    let _daemon = root.start()?;
    let gate = root.aside().join("gate");
    let first = gated(&root, &gate)?;
    let begun = begun_to(&root, "b", "handover")?;
    let waits = root.add("next", &[]);
    let status = root.json(&["status"]);
    let open = &status["swaps"]["under_way"][0];
    assert_eq!(
        (&open["runner"], &open["id"], &open["stage"]),
        (&json!("v"), &begun["id"], &json!("handover")),
        "{status}"
    );
    let since = |of: &Value| of.as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert!(since(&open["since"]) >= since(&open["started_at"]), "{open}");
    let reasons = status["reasons"].to_string();
    assert!(reasons.contains("runner v: new cycles wait while swap"), "{reasons}");
    let text = root.cli(&["status"]).stdout;
    assert!(text.contains("under way: v at handover since "), "{text}");
    let row = root.json(&["mandate", "show", &waits]);
    let reason = row["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(begun["id"].as_str().unwrap()), "{row}");
    assert!(reason.contains("kairos plugin swap v --abort"), "{row}");
    assert!(root.cli(&["mandate", "list"]).stdout.contains("new cycles wait"));
    // What it says helps.
    assert_eq!(abort(&root).code, 0);
    assert!(root.json(&["mandate", "show", &waits])["reason"].is_null());
    assert!(!root.json(&["status"])["reasons"].to_string().contains("wait"));
    fs::write(&gate, "")?;
    for id in [first, waits] {
        assert_eq!(root.wait_state(&id, &["succeeded", "failed", "review"])?["state"], "succeeded");
    }
    Ok(())
}

#[test]
fn a_command_whose_daemon_dies_says_what_decides_and_where_to_look() -> Result<()> {
    let root = root("plain", PATIENT);
    let mut daemon = root.start()?;
    let _id = gated(&root, &root.aside().join("gate"))?;
    let next = trusted(&root, "b").display().to_string();
    let (text, json) = std::thread::scope(|scope| {
        let follow = |more: &'static [&'static str]| {
            let (root, next) = (&root, &next);
            move || root.cli(&[&["plugin", "swap", "v", next], more].concat())
        };
        let asked = scope.spawn(follow(&["--json"]));
        root.wait_for("hand-over", || (serving(&root)["swap"]["stage"] == "handover").then_some(())).unwrap();
        daemon.kill().unwrap();
        let json = asked.join().unwrap();
        daemon = root.start().unwrap();
        root.wait_for("a cycle", || (!root.json(&["status"])["active_mandate_id"].is_null()).then_some(()))
            .unwrap();
        let asked = scope.spawn(follow(&[]));
        root.wait_for("hand-over", || (serving(&root)["swap"]["stage"] == "handover").then_some(())).unwrap();
        daemon.kill().unwrap();
        (asked.join().unwrap(), json)
    });
    assert_eq!((json.code, &error(&json)["code"]), (7, &json!("daemon_ended")), "{json:?}");
    for said in [&json.stderr, &text.stderr] {
        assert!(said.contains("was at handover") && said.contains("next start"), "{said}");
        assert!(said.contains("kairos run") && said.contains("kairos plugin history v"), "{said}");
    }
    assert_eq!(text.code, 7);
    // And it is so.
    assert_eq!(root.json(&["plugin", "history", "v"])[2]["state"], "active");
    Ok(())
}
