//! Versions of runners replaced while a real daemon works: what is refused, what is rolled back,
//! what is handed over, and that no cycle is lost on the way.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;

use anyhow::Result;
use kairos_tests::plugin;
use kairos_tests::swaps::*;
use kairos_tests::variant::{bytes_of, version};

#[test]
fn a_swap_puts_the_new_version_in_its_place_and_history_says_so() -> Result<()> {
    let root = root("plain", QUICK);
    let mut daemon = root.start()?;
    assert!(run(&root, &["prompt=hello"])?.starts_with("plain after"));
    let before = serving(&root)["generation"].clone();
    let view = swapped(&root, &trusted(&root, "better"));
    assert_eq!((view["stage"].as_str(), view["shadow"]["replayed"].as_u64()), (Some("canary"), Some(1)));
    assert_eq!(view["from"], before);
    assert_eq!(serving(&root)["generation"], view["generation"]);
    assert_eq!(serving(&root)["swap"]["stage"], "canary");
    for _ in 0..3 {
        assert!(run(&root, &["prompt=hello"])?.starts_with("better after"));
    }
    wait_states(&root, &["active", "retired"])?;
    let history = root.json(&["plugin", "history", "v"]);
    let trail: Vec<_> = history[0]["trail"].as_array().unwrap().iter().map(|entry| &entry["state"]).collect();
    assert_eq!(trail, ["candidate", "probed", "standby", "active"]);
    // It is what the next start serves, though the configuration still names the other file.
    daemon.stop()?;
    let _daemon = root.start()?;
    assert_eq!(serving(&root)["generation"], view["generation"]);
    assert!(run(&root, &[])?.starts_with("better after"));
    Ok(())
}

#[test]
fn each_bad_candidate_is_refused_by_its_word_while_the_old_version_serves() -> Result<()> {
    let root = root("plain", "swap: {shadow_deadline: 2s, canary_cycles: 0}");
    let _daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    let before = serving(&root)["generation"].clone();
    let empty = root.aside().join("empty.so");
    fs::write(&empty, "").unwrap();
    let text = root.aside().join("text.so");
    fs::write(&text, "no library").unwrap();
    let cut = root.aside().join("cut.so");
    fs::write(&cut, &bytes_of("plain", 0)[..5000]).unwrap();
    let mut cases = vec![
        (root.aside().join("missing.so"), "not_found"),
        (empty, "empty"),
        (text, "not_elf"),
        (cut, "truncated"),
        (trusted(&root, "refuses"), "setup_refused"),
        (trusted(&root, "unwell"), "probe_failed"),
        (trusted(&root, "crashes"), "shadow_crashed"),
        (trusted(&root, "hangs"), "shadow_hung"),
        (trusted(&root, "fails"), "shadow_differs"),
    ];
    cases.push((trusted(&root, "differs"), "shadow_differs"));
    for (file, code) in cases {
        let (found, view) = refused(&root, &file);
        assert_eq!(found, code, "{} {view}", file.display());
        assert_eq!(serving(&root)["generation"], before);
        assert_eq!(view["stage"], "refused");
        assert!(view["refusal"]["message"].as_str().unwrap().lines().count() <= 3, "{view}");
        assert!(run(&root, &["prompt=hello"])?.starts_with("plain after"), "{code}");
    }
    // What differs is said for each cycle: here it asked for more than was recorded.
    assert_eq!(refused(&root, &version(root.aside(), "b")).0, "untrusted");
    let (_, view) = refused(&root, &trusted(&root, "differs"));
    let found = &view["shadow"]["cycles"][0];
    assert_eq!(
        (&found["outcome"], &found["differences"][0]["what"]),
        (&"unmatched".into(), &"request".into())
    );
    let history = root.json(&["plugin", "history", "v"]);
    let refused: Vec<_> =
        history.as_array().unwrap().iter().filter(|row| row["state"] == "refused").collect();
    assert_eq!(refused.len(), 12, "each of them: {history}");
    assert!(refused.iter().all(|row| row["reason"].as_str().unwrap().contains(':')));
    Ok(())
}

#[test]
fn a_canary_that_fails_gives_its_place_back_and_its_mandate_succeeds_on_the_old_version() -> Result<()> {
    for mode in ["traps-panic", "traps-fail"] {
        let root = root("plain", QUICK);
        let _daemon = root.start()?;
        run(&root, &["prompt=hello"])?;
        let before = serving(&root)["generation"].clone();
        swapped(&root, &trusted(&root, mode));
        let id = root.add("work", &["trap=true", "prompt=hello"]);
        let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
        assert_eq!(row["state"], "succeeded", "{row}");
        let cycles = row["cycles"].as_array().unwrap();
        assert_eq!(cycles.len(), 2, "{row}");
        assert_eq!((&cycles[0]["status"], &cycles[1]["status"]), (&"rolled_back".into(), &"ok".into()));
        // What the failed attempt paid stays booked.
        assert_eq!(cycles[0]["usage"]["llm_calls"], 1);
        assert!(last_cycle(&row)["summary"].as_str().unwrap().starts_with("plain after"));
        assert_eq!(serving(&root)["generation"], before);
        assert_eq!(states(&root), ["rolled_back", "active"]);
        assert!(run(&root, &["trap=true"])?.starts_with("plain after"));
    }
    Ok(())
}

#[test]
fn a_canary_whose_worker_dies_is_rolled_back_and_its_mandate_succeeds_on_the_old_worker() -> Result<()> {
    let root = isolated("plain", QUICK, "process");
    let _daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    swapped(&root, &trusted(&root, "traps-abort"));
    let id = root.add("work", &["trap=true"]);
    let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    assert_eq!(row["state"], "succeeded", "{row}");
    assert_eq!(row["cycles"][0]["status"], "rolled_back");
    assert_eq!(last_cycle(&row)["summary"], "plain after 2", "with its own state");
    assert_eq!(states(&root), ["rolled_back", "active"]);
    // Nothing of a version in a worker stays in the daemon.
    assert_eq!(root.json(&["status"])["swaps"]["images"], 0);
    Ok(())
}

#[test]
fn a_canary_that_costs_too_much_is_rolled_back_and_its_work_stays_done() -> Result<()> {
    let root = root("plain", "swap: {canary_cycles: 5, canary_error_rate: 0}");
    let _daemon = root.start()?;
    run(&root, &[])?;
    swapped(&root, &trusted(&root, "dear"));
    for _ in 0..3 {
        assert!(run(&root, &["trap=true"])?.starts_with("dear after"));
    }
    wait_states(&root, &["rolled_back", "active"])?;
    let history = root.json(&["plugin", "history", "v"]);
    assert!(history[0]["reason"].as_str().unwrap().contains("LLM calls on average"), "{history}");
    Ok(())
}

#[test]
fn a_canary_that_changed_something_before_it_failed_leaves_the_mandate_to_a_person() -> Result<()> {
    let root = root("plain", QUICK);
    let _daemon = root.start()?;
    run(&root, &[])?;
    fs::write(root.path().join("note.txt"), "old\n").unwrap();
    swapped(&root, &trusted(&root, "traps-panic"));
    let tool = r#"tool={"name": "fs.edit", "args": {"path": "note.txt", "old": "old", "new": "new"}}"#;
    let id = root.add("work", &["trap=true", tool]);
    let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    let text = fs::read_to_string(root.path().join("note.txt")).unwrap();
    assert_eq!((row["state"].as_str(), text.as_str()), (Some("review"), "new\n"), "{row}");
    assert_eq!(row["reason"], "rolled_back_after_act");
    Ok(())
}

#[test]
fn state_is_handed_over_at_a_boundary_and_what_cannot_be_read_is_refused_unless_cold() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let _daemon = root.start()?;
    for _ in 0..3 {
        run(&root, &[])?;
    }
    let view = swapped(&root, &trusted(&root, "other-state"));
    assert_eq!(view["handover"], "variant/1");
    assert_eq!(run(&root, &[])?, "other-state after 4");
    // It keeps state of a schema that nobody lists.
    let next = trusted(&root, "plain");
    assert_eq!(refused(&root, &next).0, "state_unreadable");
    assert_eq!(run(&root, &[])?, "other-state after 5");
    let ran = root.cli(&["plugin", "swap", "v", &next.display().to_string(), "--cold", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(run(&root, &[])?, "plain after 1");
    // What its own manifest does not list is no state at all.
    assert_eq!(swapped(&root, &trusted(&root, "unlisted-state"))["handover"], "variant/1");
    assert_eq!(refused(&root, &next).0, "export_failed");
    Ok(())
}

#[test]
fn a_person_takes_a_version_back_during_its_trial_and_after_it() -> Result<()> {
    let root = root("plain", "swap: {canary_cycles: 1, drain_timeout: 20s}");
    let _daemon = root.start()?;
    run(&root, &[])?;
    assert_eq!(root.cli(&["plugin", "rollback", "v"]).code, 3, "nothing served before");
    let first = serving(&root)["generation"].clone();
    swapped(&root, &trusted(&root, "b"));
    // A second swap waits for the end of the trial.
    assert_eq!(swap(&root, &trusted(&root, "c")).code, 5);
    assert_eq!(root.json(&["plugin", "rollback", "v"])["stage"], "rolled_back");
    assert_eq!(serving(&root)["generation"], first);
    let second = swapped(&root, &trusted(&root, "d"));
    run(&root, &[])?;
    wait_states(&root, &["active", "rolled_back", "retired"])?;
    let back = root.json(&["plugin", "rollback", "v"]);
    assert_eq!((&back["generation"], &back["from"]), (&first, &second["generation"]));
    assert!(run(&root, &[])?.starts_with("plain after"));
    assert_eq!(states(&root), ["active", "rolled_back", "rolled_back", "retired"]);
    Ok(())
}

#[test]
fn an_open_cycle_finishes_where_it_began_while_the_next_begins_on_the_new_version() -> Result<()> {
    let root = root("plain", &format!("max_concurrent_cycles: 2\n{NO_TRIAL}"));
    let _daemon = root.start()?;
    let slow = root.add("slow", &["sleep_ms=1500"]);
    root.wait_state(&slow, &["running"])?;
    let next = trusted(&root, "b");
    let ran = root.cli(&["plugin", "swap", "v", &next.display().to_string(), "--cold", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(run(&root, &[])?.starts_with("b after"));
    let row = root.wait_state(&slow, &["succeeded", "failed", "review"])?;
    assert_eq!(row["cycles"].as_array().unwrap().len(), 1, "{row}");
    assert!(last_cycle(&row)["summary"].as_str().unwrap().starts_with("plain after"));
    wait_states(&root, &["active", "retired"])
}

#[test]
fn another_configured_file_ends_what_was_swapped_in() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let mut daemon = root.start()?;
    run(&root, &[])?;
    swapped(&root, &trusted(&root, "b"));
    assert!(run(&root, &[])?.starts_with("b after"));
    daemon.stop()?;
    let text = fs::read_to_string(root.file("config/daemon.yml")).unwrap();
    let third = trusted(&root, "c");
    let line = text.lines().find(|line| line.contains("plugin:")).unwrap();
    let other = format!("  v: {{plugin: {:?}, isolation: in_process}}", third.display().to_string());
    root.write("config/daemon.yml", &text.replace(line, &other));
    let _daemon = root.start()?;
    assert!(run(&root, &[])?.starts_with("c after"));
    assert_eq!(states(&root), ["active", "retired", "retired"]);
    Ok(())
}

#[test]
fn a_file_that_appears_in_the_watched_directory_swaps_by_itself_and_a_bad_one_does_no_harm() -> Result<()> {
    let root = root("plain", &format!("plugins: {{watch: drop}}\n{NO_TRIAL}"));
    let _daemon = root.start()?;
    root.wait_logged("plugins_watched")?;
    let drop = root.path().join("drop");
    fs::write(drop.join("bad.so"), "no library").unwrap();
    root.wait_logged("watched_file_bad")?;
    // One that is begun is not touched before it is closed, and the log says so.
    let slow = fs::File::create(drop.join("slow.so")).unwrap();
    let slow_waits = |line: &serde_json::Value| line.to_string().contains("slow.so");
    root.wait_for("word of it", || root.logged("watched_file_waits").iter().any(slow_waits).then_some(()))?;
    fs::remove_file(drop.join("slow.so")).unwrap();
    std::mem::drop(slow);
    fs::write(drop.join(".hidden.so"), bytes_of("hidden", 1)).unwrap();
    fs::write(drop.join("notes.txt"), "nothing").unwrap();
    let complete = trusted(&root, "b");
    fs::rename(&complete, drop.join("b.so")).unwrap();
    wait_states(&root, &["active", "retired"])?;
    assert!(run(&root, &[])?.starts_with("b after"));
    // Written in place: complete when it is closed.
    let third = root.aside().join("third.so");
    fs::write(&third, bytes_of("c", 7)).unwrap();
    trust(&root, &third);
    fs::write(drop.join("c.so"), bytes_of("c", 7)).unwrap();
    wait_states(&root, &["active", "retired", "retired"])?;
    assert!(run(&root, &[])?.starts_with("c after"));
    let bad = root.logged("watched_file_bad");
    let of_bad = bad.iter().filter(|line| line.to_string().contains("bad.so"));
    assert_eq!(of_bad.count(), 1, "reported once: {bad:?}");
    Ok(())
}

#[test]
fn swaps_in_process_end_at_the_cap_of_what_stays_mapped() -> Result<()> {
    let size = fs::metadata(plugin("variant_runner")).unwrap().len();
    // Room for one that was replaced, not for two.
    let mib = (size + size / 2).div_ceil(1 << 20);
    let root = root("plain", &format!("swap: {{canary_cycles: 0, max_leaked: {mib}}}"));
    let _daemon = root.start()?;
    swapped(&root, &trusted(&root, "b"));
    let (code, view) = refused(&root, &trusted(&root, "c"));
    assert_eq!(code, "leak_cap");
    assert!(view["refusal"]["remedy"].as_str().unwrap().contains("restart"));
    let swaps = root.json(&["status"])["swaps"].clone();
    assert_eq!(swaps["images"], 2, "{swaps}");
    assert_eq!(swaps["flips"]["count"], 1);
    assert!(run(&root, &[])?.starts_with("b after"));
    Ok(())
}

#[test]
fn swaps_under_load_keep_every_cycle() -> Result<()> {
    swaps_under_load("in_process", 40, 6)
}

#[test]
fn swaps_of_workers_under_load_keep_every_cycle_and_leave_nothing_behind() -> Result<()> {
    swaps_under_load("process", 16, 4)
}

fn swaps_under_load(isolation: &str, mandates: usize, swaps: usize) -> Result<()> {
    let root = isolated("plain", &format!("max_concurrent_cycles: 4\n{NO_TRIAL}"), isolation);
    let _daemon = root.start()?;
    let ids: Vec<String> =
        (0..mandates).map(|_| root.add("work", &["sleep_ms=20", "more=true", "prompt=hello"])).collect();
    for round in 0..swaps {
        let file = trusted(&root, &format!("v{round}")).display().to_string();
        let ran = root.cli(&["plugin", "swap", "v", &file, "--json"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    for id in &ids {
        let row = root.wait_state(id, &["succeeded", "failed", "review", "cancelled"])?;
        assert_eq!(
            (row["state"].as_str(), row["reason"].as_str()),
            (Some("succeeded"), Some("max_cycles")),
            "{row}"
        );
        let cycles = row["cycles"].as_array().unwrap();
        assert_eq!(cycles.len(), 10, "none lost, none twice: {row}");
        assert!(
            cycles.iter().all(|cycle| cycle["status"] == "ok" && cycle["usage"]["llm_calls"] == 1),
            "{row}"
        );
    }
    let ran = run(&root, &[])?;
    let images = root.json(&["status"])["swaps"]["images"].clone();
    if isolation == "process" {
        // Cycles that run at once have a process each, so that no count is of all of them.
        assert!(ran.starts_with(&format!("v{} after", swaps - 1)), "{ran}");
        assert_eq!(images, 0);
    } else {
        // The count went from hand to hand: no cycle was forgotten between two versions.
        assert_eq!(ran, format!("v{} after {}", swaps - 1, mandates * 10 + 1));
        assert_eq!(images, swaps + 1);
    }
    Ok(())
}

#[test]
fn commands_need_a_daemon_and_history_does_not() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let mut daemon = root.start()?;
    swapped(&root, &trusted(&root, "b"));
    wait_states(&root, &["active", "retired"])?;
    assert_eq!(root.cli(&["plugin", "swap", "other", "x.so"]).code, 3);
    daemon.stop()?;
    assert_eq!(root.cli(&["plugin", "swap", "v", "x.so"]).code, 7);
    assert_eq!(root.cli(&["plugin", "rollback", "v"]).code, 7);
    assert_eq!(states(&root), ["active", "retired"]);
    assert_eq!(root.cli(&["plugin", "history", "other"]).code, 3);
    Ok(())
}
