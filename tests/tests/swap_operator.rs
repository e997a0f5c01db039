//! What an operator sees of the runners' versions and does about them: lists, history, status, taking
//! one back, and files and trust that changed behind the daemon's back.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use kairos_tests::swaps::*;
use kairos_tests::variant::version;
use kairos_tests::{Root, plugin};
use serde_json::Value;

/// Puts a version in the place of the configured file in one step, as an installer does.
fn install(root: &Root, file: &Path) {
    fs::rename(file, configured(root)).unwrap();
}

/// What a reload says that it noticed.
fn reload(root: &Root) -> Vec<String> {
    let reload = root.json(&["reload"])["reload"].clone();
    reload["noticed"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

fn reasons(root: &Root) -> String {
    root.json(&["status"])["reasons"].to_string()
}

#[test]
fn the_list_shows_what_serves_and_what_is_configured() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let _daemon = root.start()?;
    let slot = serving(&root);
    assert_eq!(slot["configured"]["serves"], true, "{slot}");
    assert_eq!(slot["file"].as_str().map(PathBuf::from), Some(configured(&root)), "{slot}");
    let next = trusted(&root, "b");
    let view = swapped(&root, &next);
    let slot = serving(&root);
    assert_eq!((&slot["state"], &slot["generation"]), (&"active".into(), &view["generation"]), "{slot}");
    assert_eq!(slot["file"].as_str(), next.to_str(), "{slot}");
    assert_eq!(
        (&slot["configured"]["serves"], &slot["configured"]["generation"]),
        (&false.into(), &view["from"])
    );
    let text = root.cli(&["plugin", "list"]).stdout;
    assert!(text.contains(next.to_str().unwrap()) && text.contains("not serving"), "{text}");
    Ok(())
}

#[test]
fn another_plugin_takes_a_runners_place_only_when_that_is_meant() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let _daemon = root.start()?;
    let before = serving(&root);
    let file = root.aside().join("libother.so");
    fs::copy(plugin("stub"), &file)?;
    trust(&root, &file);
    let file = file.to_str().unwrap();
    let ran = root.cli(&["plugin", "swap", "v", file, "--json"]);
    let error: Value = serde_json::from_str(&ran.stderr)?;
    assert_eq!((ran.code, &error["error"]["code"]), (1, &"other_plugin".into()), "{error}");
    let known = before["name"].as_str().unwrap();
    let (message, remedy) = (error["error"]["message"].to_string(), error["error"]["remedy"].to_string());
    assert!(message.contains(known) && message.contains("plugin stub"), "{message}");
    assert!(remedy.contains(&format!("kairos plugin swap v {file} --other-plugin")), "{remedy}");
    assert_eq!(serving(&root)["generation"], before["generation"]);
    let history = root.json(&["plugin", "history", "v"]);
    let refused = history.as_array().unwrap().iter().find(|life| life["state"] == "refused").unwrap();
    assert_eq!(
        (&refused["refused"]["stage"], &refused["name"]),
        (&"keep".into(), &"stub".into()),
        "{history}"
    );
    // Meant, it comes in, and the way back needs no word.
    root.json(&["plugin", "swap", "v", file, "--other-plugin", "--cold"]);
    assert_eq!(serving(&root)["name"], "stub");
    root.json(&["plugin", "rollback", "v"]);
    root.wait_for("the version before", || {
        (serving(&root)["generation"] == before["generation"]).then_some(())
    })
}

#[test]
fn taking_a_version_back_is_told_by_who_did_it() -> Result<()> {
    let root = root("plain", "swap: {canary_cycles: 1, drain_timeout: 20s}");
    let _daemon = root.start()?;
    run(&root, &[])?;
    swapped(&root, &trusted(&root, "b"));
    root.json(&["plugin", "rollback", "v", "--reason", "too slow"]);
    let history = root.json(&["plugin", "history", "v"]);
    assert_eq!(history[0]["reason"], "taken back by the operator: too slow");
    assert_eq!(history[1]["reason"], "the version after it was taken back by the operator: too slow");
    // And after the trial.
    swapped(&root, &trusted(&root, "c"));
    run(&root, &[])?;
    wait_states(&root, &["active", "rolled_back", "retired"])?;
    root.json(&["plugin", "rollback", "v"]);
    let history = root.json(&["plugin", "history", "v"]);
    assert_eq!(history[0]["reason"], "the version after it was taken back by the operator");
    assert_eq!(history[1]["reason"], "taken back by the operator");
    assert!(!history.to_string().contains("trial failed"), "{history}");
    Ok(())
}

#[test]
fn a_runner_that_keeps_dying_reads_held_back_and_one_that_is_missing_is_told_at_once() -> Result<()> {
    let root = isolated("traps-abort", NO_TRIAL, "process");
    let config = root.file("config/daemon.yml");
    let text = fs::read_to_string(&config).unwrap();
    let more = text.replace("runners:\n", "runners:\n  w: {plugin: ./missing.so}\n");
    fs::write(&config, more).unwrap();
    let _daemon = root.start()?;
    assert!(
        reasons(&root).contains("runner w: there is no file"),
        "though nothing waits for it: {}",
        reasons(&root)
    );
    let text = root.cli(&["status"]).stdout;
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
    assert!(line("swaps").contains("none under way, 0 done"), "{text}");
    assert!(!line("swaps").contains('{') && !line("sandbox").contains('{'), "{text}");
    for _ in 0..6 {
        let _ = root.add("die", &["trap=true"]);
    }
    let of_v = || {
        let list = root.json(&["plugin", "list"]);
        list.as_array().unwrap().iter().find(|slot| slot["runner"] == "v").cloned().unwrap()
    };
    let slot: Value =
        root.wait_for("v is held back", || Some(of_v()).filter(|slot| slot["state"] == "held_back"))?;
    assert!(slot["held_until"].is_string() && slot["code"] == "held_back", "{slot}");
    assert!(slot["reason"].as_str().unwrap().contains("keeps dying"), "{slot}");
    root.wait_for("status says so", || reasons(&root).contains("runner v: held back until").then_some(()))
}

#[test]
fn a_reload_swaps_a_replaced_file_in_and_leaves_one_alone_that_was_refused() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let mut daemon = root.start()?;
    run(&root, &["prompt=hello"])?;
    assert_eq!(reload(&root), Vec::<String>::new());
    install(&root, &trusted(&root, "b"));
    let said = reload(&root);
    // The trust list grew, and the file is another one.
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("trust: 1 plugin added"), "{said:?}");
    assert!(said[1].starts_with("runner v: ") && said[1].contains("swap-"), "{said:?}");
    wait_states(&root, &["active", "retired"])?;
    assert!(run(&root, &["prompt=hello"])?.starts_with("b after"));
    assert_eq!(serving(&root)["configured"]["serves"], true);
    // A bad one goes through the same checks, and what serves goes on.
    let good = serving(&root)["generation"].clone();
    install(&root, &trusted(&root, "fails"));
    assert!(reload(&root)[1].contains("swap-"));
    wait_states(&root, &["refused", "active", "retired"])?;
    assert!(run(&root, &["prompt=hello"])?.starts_with("b after"));
    let said = reload(&root);
    assert!(said.len() == 1 && said[0].contains("kairos plugin swap v"), "{said:?}");
    // Not even a start lets it serve by itself.
    daemon.stop()?;
    let _daemon = root.start()?;
    assert_eq!(serving(&root)["generation"], good);
    assert!(run(&root, &["prompt=hello"])?.starts_with("b after"));
    Ok(())
}

#[test]
fn a_reload_takes_trust_and_its_end_at_their_word() -> Result<()> {
    let root = Root::new();
    let file = version(root.aside(), "plain");
    root.write("config/daemon.yml", &format!("default_runner: v\nrunners:\n  v: {{plugin: {file:?}}}\n"));
    let _daemon = root.start()?;
    assert_eq!(serving(&root)["isolation"], "sandbox");
    trust(&root, &file);
    let said = reload(&root);
    assert!(said[1].contains("isolation process"), "{said:?}");
    assert_eq!(serving(&root)["isolation"], "process");
    run(&root, &[])?;
    let sha256 = serving(&root)["generation"].as_str().unwrap().to_owned();
    root.json(&["plugin", "trust", "--remove", &sha256]);
    let said = reload(&root);
    assert!(said[0].starts_with("trust: 1 plugin removed") && said[1].contains("sandbox"), "{said:?}");
    assert_eq!(serving(&root)["isolation"], "sandbox");
    run(&root, &[])?;
    Ok(())
}

#[test]
fn the_history_reads_by_time_newest_first() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let _daemon = root.start()?;
    for mode in ["b", "unwell", "c"] {
        let _ = swap(&root, &trusted(&root, mode));
    }
    wait_states(&root, &["active", "refused", "retired", "retired"])?;
    let text = root.cli(&["plugin", "history", "v"]).stdout;
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("SINCE"), "{text}");
    let since: Vec<chrono::DateTime<chrono::Utc>> =
        lines.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
    assert_eq!(since.len(), 4, "{text}");
    assert!(since.is_sorted_by(|newer, older| newer >= older), "{text}");
    Ok(())
}

#[test]
fn what_became_of_the_configured_file_is_named() -> Result<()> {
    let root = root("plain", NO_TRIAL);
    let _daemon = root.start()?;
    let word = || {
        let text = root.cli(&["plugin", "list"]).stdout;
        (serving(&root)["configured"]["code"].clone(), text)
    };
    assert!(word().0.is_null());
    fs::write(configured(&root).with_extension("tmp"), "")?;
    install(&root, &configured(&root).with_extension("tmp"));
    let (code, text) = word();
    assert_eq!(code, "empty");
    assert!(text.contains("not taken (empty)") && !text.contains("not there"), "{text}");
    fs::remove_file(configured(&root))?;
    let (code, text) = word();
    assert_eq!(code, "not_found");
    assert!(text.contains("not there"), "{text}");
    run(&root, &[])?;
    Ok(())
}

#[test]
fn whatever_takes_a_plugins_name_in_a_watched_directory_is_told_or_taken() -> Result<()> {
    let root = root("plain", &format!("{NO_TRIAL}\nplugins: {{watch: incoming}}"));
    let _daemon = root.start()?;
    root.wait_logged("plugins_watched")?;
    let dir = root.path().join("incoming");
    fs::create_dir(dir.join("directory.so"))?;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo.so"), kind, 0o600.into(), 0)?;
    fs::create_dir(root.aside().join("moved.so"))?;
    fs::rename(root.aside().join("moved.so"), dir.join("moved.so"))?;
    for (name, code) in
        [("directory.so", "is_a_directory"), ("fifo.so", "is_a_fifo"), ("moved.so", "is_a_directory")]
    {
        let told = |record: &Value| {
            record["details"]["path"].as_str().unwrap().ends_with(name) && record["details"]["code"] == code
        };
        root.wait_for(name, || root.logged("watched_file_bad").iter().any(told).then_some(()))?;
    }
    assert!(root.logged("watched_file_waits").is_empty());
    // A link is complete when it is made.
    let next = trusted(&root, "b");
    std::os::unix::fs::symlink(&next, dir.join("linked.so"))?;
    root.wait_for("the linked version", || {
        (serving(&root)["version"] == "0.1.0" && serving(&root)["file"] == dir.join("linked.so").to_str()?)
            .then_some(())
    })?;
    assert!(run(&root, &[])?.starts_with("b after"));
    Ok(())
}
