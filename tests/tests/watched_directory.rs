//! The directory that `plugins.watch` names comes, goes and is replaced under a real daemon: it is
//! watched again as soon as it is there, nothing in it is missed, nothing is tried for ever, and
//! while it is not watched everybody can see that.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test writes plain files")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use kairos_tests::swaps::*;
use kairos_tests::{Root, fixture};
use rustix::process::{Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;

/// A root, what lies beside it, and a directory there that it watches.
fn watching(dir: &str) -> (Root, Beside, PathBuf) {
    let beside = Beside(tempfile::tempdir().unwrap());
    let dir = beside.at(dir);
    let root = root("plain", &format!("{NO_TRIAL}\nplugins: {{watch: {:?}}}", dir.display().to_string()));
    (root, beside, dir)
}

struct Beside(tempfile::TempDir);

impl Beside {
    /// A path in it, through no link.
    fn at(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }
}

/// A directory with a trusted version in it.
fn release(root: &Root, dir: &Path, mode: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::rename(trusted(root, mode), dir.join("v.so")).unwrap();
}

fn wait_watched(root: &Root, directory: &Path) -> Result<Value> {
    root.wait_for("the directory to be watched", || {
        let seen = root.json(&["status"])["plugins_watch"].clone();
        (seen["watched"] == true && seen["directory"] == directory.display().to_string()).then_some(seen)
    })
}

fn wait_unwatched(root: &Root) -> Result<Value> {
    root.wait_for("the directory not to be watched", || {
        let seen = root.json(&["status"])["plugins_watch"].clone();
        (seen["watched"] == false).then_some(seen)
    })
}

/// Waits until that version serves.
fn wait_serves(root: &Root, mode: &str) -> Result<()> {
    root.wait_for(mode, || {
        (serving(root)["version"].is_string() && run(root, &[]).ok()?.starts_with(mode)).then_some(())
    })
}

#[test]
fn a_directory_that_is_absent_at_the_start_is_told_and_its_files_are_taken_once_it_is_there() -> Result<()> {
    let (root, beside, dir) = watching("app/deep/incoming");
    let check = root.json(&["config", "check"]);
    let said = check["problems"].to_string();
    assert!(
        check["warnings"] == 1 && said.contains("plugins.watch") && said.contains("\"absent\""),
        "{check}"
    );
    let _daemon = root.start()?;
    let seen = wait_unwatched(&root)?;
    assert_eq!((seen["path"].as_str(), seen["code"].as_str()), (dir.to_str(), Some("absent")));
    assert!(
        seen["why"].as_str().unwrap().contains("app does not exist") && seen["since"].is_string(),
        "{seen}"
    );
    let text = root.cli(&["status"]).stdout;
    assert!(text.contains("plugins.watch: ") && text.contains("incoming, not watched since "), "{text}");
    let doctor = root.cli(&["doctor", "--json"]).stdout;
    let doctor: Value = serde_json::from_str(&doctor).unwrap();
    let found = doctor["checks"].as_array().unwrap().iter().find(|check| check["name"] == "plugins_watch");
    assert_eq!(found.unwrap()["verdict"], "warn", "{doctor}");
    // All of it at once, with a file in it.
    release(&root, &beside.at("staged/deep/incoming"), "b");
    fs::rename(beside.at("staged"), beside.at("app"))?;
    wait_serves(&root, "b after")?;
    wait_watched(&root, &dir)?;
    assert!(!root.json(&["status"])["reasons"].to_string().contains("plugins.watch"));
    assert_eq!(root.json(&["config", "check"])["warnings"], 0);
    assert_eq!((root.events("plugins_not_watched")?.len(), root.events("plugins_watched")?.len()), (1, 1));
    Ok(())
}

#[test]
fn a_directory_that_is_removed_and_made_again_is_watched_again_and_told_once() -> Result<()> {
    let (root, _beside, dir) = watching("incoming");
    fs::create_dir(&dir)?;
    let _daemon = root.start()?;
    wait_watched(&root, &dir)?;
    fs::remove_dir(&dir)?;
    wait_unwatched(&root)?;
    // Of other things that come and go beside it nobody says a word.
    for _ in 0..50 {
        fs::create_dir(dir.with_extension("other"))?;
        fs::remove_dir(dir.with_extension("other"))?;
    }
    fs::create_dir(&dir)?;
    fs::rename(trusted(&root, "b"), dir.join("b.so"))?;
    wait_serves(&root, "b after")?;
    // Renamed away, and another one in its place.
    release(&root, &dir.with_extension("new"), "c");
    fs::rename(&dir, dir.with_extension("old"))?;
    fs::rename(dir.with_extension("new"), &dir)?;
    wait_serves(&root, "c after")?;
    assert_eq!(root.logged("plugins_not_watched").len(), 1);
    // And what comes by an event is taken there, too.
    fs::rename(trusted(&root, "d"), dir.join("d.so"))?;
    wait_serves(&root, "d after")?;
    assert_eq!(states(&root), ["active", "retired", "retired", "retired"]);
    Ok(())
}

#[test]
fn a_link_that_is_switched_deploys_and_what_was_refused_is_not_tried_again() -> Result<()> {
    let (root, beside, dir) = watching("current");
    let at = |n: u32| beside.at(&format!("releases/{n}"));
    let switch = |n: u32| {
        let next = beside.at("next");
        symlink(format!("releases/{n}"), &next).unwrap();
        fs::rename(next, &dir).unwrap();
    };
    for (n, mode) in [(1, "first"), (2, "b"), (3, "refuses")] {
        release(&root, &at(n), mode);
    }
    switch(1);
    let _daemon = root.start()?;
    wait_watched(&root, &at(1))?;
    switch(2);
    wait_serves(&root, "b after")?;
    // What lay there at the start was left alone.
    assert_eq!(states(&root), ["active", "retired"]);
    switch(3);
    wait_states(&root, &["refused", "active", "retired"])?;
    switch(2);
    wait_watched(&root, &at(2))?;
    root.wait_logged("watched_file_serves_already")?;
    switch(3);
    root.wait_logged("watched_file_barred")?;
    wait_watched(&root, &at(3))?;
    // Back to the release of the start: a version that nobody found bad.
    switch(1);
    wait_serves(&root, "first after")?;
    assert_eq!(states(&root), ["active", "refused", "retired", "retired"]);
    assert_eq!(root.logged("plugins_not_watched").len(), 0);
    Ok(())
}

#[test]
fn of_several_versions_that_come_with_a_directory_only_the_newest_serves() -> Result<()> {
    let (root, beside, dir) = watching("incoming");
    let _daemon = root.start()?;
    wait_unwatched(&root)?;
    let staged = beside.at("staged");
    fs::create_dir(&staged)?;
    for (age, mode) in [(30, "b"), (10, "newest"), (20, "c")] {
        let file = staged.join(format!("{mode}.so"));
        fs::rename(trusted(&root, mode), &file)?;
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        fs::File::options().append(true).open(file)?.set_modified(then)?;
    }
    fs::rename(&staged, &dir)?;
    wait_serves(&root, "newest after")?;
    assert_eq!(states(&root), ["active", "retired"]);
    assert_eq!(root.logged("watched_file_older").len(), 2);
    Ok(())
}

#[test]
fn a_file_that_is_still_written_when_its_directory_comes_is_taken_when_it_is_complete() -> Result<()> {
    let (root, beside, dir) = watching("incoming");
    let _daemon = root.start()?;
    wait_unwatched(&root)?;
    let staged = beside.at("staged");
    fs::create_dir(&staged)?;
    let whole = fs::read(trusted(&root, "b"))?;
    let mut file = fs::File::create(staged.join("b.so"))?;
    let (first, rest) = whole.split_at(5000);
    std::io::Write::write_all(&mut file, first)?;
    fs::rename(&staged, &dir)?;
    root.wait_logged("watched_file_waits")?;
    std::io::Write::write_all(&mut file, rest)?;
    drop(file);
    wait_serves(&root, "b after")?;
    Ok(())
}

#[test]
fn what_came_while_the_kernel_dropped_events_is_found_by_a_look() -> Result<()> {
    let (root, _beside, dir) = watching("incoming");
    fs::create_dir(&dir)?;
    let daemon = root.start()?;
    wait_watched(&root, &dir)?;
    let kept: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")?.trim().parse()?;
    let next = trusted(&root, "b");
    kill_process(daemon.pid(), Signal::STOP)?;
    waitpid(Some(daemon.pid()), WaitOptions::UNTRACED)?;
    // Equal events in a row are one, so they are made by turns; none of them is a plugin's.
    for n in 0..=kept {
        drop(fs::File::create(dir.join(["one", "other"][n % 2]))?);
    }
    fs::rename(next, dir.join("b.so"))?;
    kill_process(daemon.pid(), Signal::CONT)?;
    wait_serves(&root, "b after")?;
    // Said at most once; not at all, when something else had it look before it came to the loss.
    assert!(root.logged("plugins_events_lost").len() <= 1);
    Ok(())
}

#[test]
fn a_system_without_room_for_inotify_is_told_and_tried_again_by_itself() -> Result<()> {
    let (root, beside, dir) = watching("incoming");
    let program = fixture("few_watches", &beside.at(""));
    if !Command::new(&program).args(["start", "--", "/bin/true"]).status()?.success() {
        let demanded = std::env::var("KAIROS_SANDBOX").is_ok_and(|demanded| demanded == "full");
        assert!(!demanded, "nobody may have a namespace here");
        println!("NOT TESTED: nobody may have a namespace here");
        return Ok(());
    }
    release(&root, &dir, "lay-there");
    let next = trusted(&root, "b");
    let root = root.by(&program, &["start"]);
    let daemon = root.start()?;
    let set = |what: &str, most: u32| {
        let pid = daemon.pid().as_raw_nonzero().to_string();
        assert!(
            Command::new(&program).args(["set", &pid, what, &most.to_string()]).status().unwrap().success()
        );
    };
    let told = |word: &str| {
        root.wait_for(word, || {
            let seen = root.json(&["status"])["plugins_watch"].clone();
            (seen["code"] == "inotify_limit" && seen["why"].as_str()?.contains(word)).then_some(())
        })
    };
    told("max_user_instances")?;
    set("watches", 0);
    set("instances", 8);
    told("max_user_watches")?;
    // It comes while nobody can see it, and what lay there at the start is left alone as ever.
    fs::rename(next, dir.join("b.so"))?;
    set("watches", 100);
    wait_serves(&root, "b after")?;
    wait_watched(&root, &dir)?;
    assert_eq!(states(&root), ["active", "retired"]);
    assert_eq!(root.logged("plugins_not_watched").len(), 1);
    Ok(())
}
