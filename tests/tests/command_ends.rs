//! How an agent ends: by its time, by a person, by the daemon's stop and by its death; and that
//! nothing of it is left, whatever it did.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use kairos_tests::office::{Office, last_cycle, lives};
use kairos_tests::{Daemon, Root, kairos, plugin};
use rustix::process::Signal;

const HANGS: &str =
    "echo $$ >pid; (trap '' TERM; echo $BASHPID >child; sleep 1000) & trap '' TERM; sleep 1000; wait";

#[test]
fn an_agent_that_hangs_is_ended_with_its_children() -> Result<()> {
    let office = Office::new(HANGS, "timeout: 0.5\nmax_calls: 3");
    let _daemon = office.root.start()?;
    let id = office.root.add("hang", &[]);
    let shown = office.end(&id)?;
    assert_eq!(shown["state"], "failed", "{shown}");
    assert!(last_cycle(&shown)["error"].to_string().contains("timeout"), "{shown}");
    assert!(!lives(&office.wait_file("pid")?) && !lives(&office.wait_file("child")?));
    assert_eq!(office.spent()["calls"], 6, "two tries, each counted as reserved");
    Ok(())
}

/// Starts a mandate whose agent hangs, and kills the daemon under it.
fn die_in_the_middle(office: &Office) -> Result<(String, Daemon)> {
    let mut daemon = office.root.start()?;
    let id = office.root.add("in the middle", &[]);
    let (pid, child) = (office.wait_file("pid")?, office.wait_file("child")?);
    assert!(lives(&pid));
    daemon.kill()?;
    // They go with the daemon, not when it comes back.
    office.root.wait_for("their end", || (!lives(&pid) && !lives(&child)).then_some(()))?;
    fs::write(office.work("survived"), "")?;
    let daemon = office.root.start()?;
    Ok((id, daemon))
}

#[test]
fn a_run_that_the_daemons_death_cut_short_is_for_a_person_and_counted() -> Result<()> {
    let office = Office::new(&format!("[ -e survived ] && exit 0; {HANGS}"), "max_calls: 3");
    let (id, _daemon) = die_in_the_middle(&office)?;
    let shown = office.end(&id)?;
    assert_eq!(shown["state"], "review", "{shown}");
    assert_eq!(office.spent()["calls"], 3, "what it may have spent");
    assert_eq!(office.root.json(&["budget", "show"])["reserved"]["calls"], 0);
    // A person says that it may run again.
    let resolved = office.root.cli(&["mandate", "resolve", &id, "--redo", "--note", "looked at it"]);
    assert_eq!(resolved.code, 0, "{}", resolved.stderr);
    assert_eq!(office.end(&id)?["state"], "succeeded");
    Ok(())
}

#[test]
fn a_run_that_may_be_repeated_is_repeated_after_the_daemons_death() -> Result<()> {
    let script = format!("if [ -e survived ]; then echo again >again; exit 0; fi; {HANGS}");
    let office = Office::new(&script, "max_calls: 3\nretry: safe");
    let (id, _daemon) = die_in_the_middle(&office)?;
    assert_eq!(office.end(&id)?["state"], "succeeded");
    assert_eq!(office.wait_file("again")?, "again\n");
    assert_eq!(office.spent()["calls"], 6, "the run that was cut short counts, too");
    Ok(())
}

#[test]
fn a_stop_lets_the_agent_finish_within_the_graceful_timeout() -> Result<()> {
    let script = "echo $$ >>pid; until [ -e go ]; do sleep 0.02; done";
    let office = Office::new(script, "");
    let mut daemon = office.root.start()?;
    let id = office.root.add("finish", &[]);
    office.wait_file("pid")?;
    daemon.signal(Signal::TERM)?;
    daemon.wait_said("STOPPING=1")?;
    fs::write(office.work("go"), "")?;
    assert_eq!(daemon.wait()?.code(), Some(0), "{}", daemon.stderr());
    assert_eq!(office.root.json(&["mandate", "show", &id])["state"], "succeeded");
    assert_eq!(fs::read_to_string(office.work("pid"))?.lines().count(), 1, "it ran once");
    Ok(())
}

#[test]
fn a_stop_that_cannot_wait_takes_the_agent_along_and_leaves_its_step_open() -> Result<()> {
    let script = format!("if [ -e survived ]; then exit 0; fi; {HANGS}");
    let office = Office::within(Root::named("root"), &script, "retry: safe", "graceful_timeout: 0.1");
    let mut daemon = office.root.start()?;
    let id = office.root.add("stop me", &[]);
    let (pid, child) = (office.wait_file("pid")?, office.wait_file("child")?);
    assert_eq!(daemon.stop()?, 9, "{}", daemon.stderr());
    office.root.wait_for("their end", || (!lives(&pid) && !lives(&child)).then_some(()))?;
    fs::write(office.work("survived"), "")?;
    let _daemon = office.root.start()?;
    assert_eq!(office.end(&id)?["state"], "succeeded");
    Ok(())
}

#[test]
fn a_person_who_cancels_ends_the_agent_at_once() -> Result<()> {
    let office = Office::new(HANGS, "max_calls: 3");
    let _daemon = office.root.start()?;
    let id = office.root.add("cancel me", &[]);
    let (pid, child) = (office.wait_file("pid")?, office.wait_file("child")?);
    let cancelled = office.root.cli(&["mandate", "stop", &id]);
    assert_eq!(cancelled.code, 0, "{}", cancelled.stderr);
    office.root.wait_state(&id, &["cancelled"])?;
    office.root.wait_for("their end", || (!lives(&pid) && !lives(&child)).then_some(()))?;
    assert_eq!(office.spent()["calls"], 3, "what it may have spent");
    Ok(())
}

/// Three processes that want to stay: one in a session of its own, one that nobody waits for any more,
/// one without the marks by which leftovers are found.
const STAYS: &str = "for name in a b c; do case $name in \
    a) setsid sh -c 'trap \"\" TERM HUP; echo $$ >a; sleep 1000';; \
    b) (setsid sh -c 'echo $$ >b; exec sleep 1000' &) & wait $!;; \
    c) env -i PATH=\"$PATH\" setsid sh -c 'echo $$ >c; exec sleep 1000';; esac & done; \
    echo $$ >pid; trap '' TERM; while :; do sleep 1; done";

fn all_of(office: &Office) -> Result<Vec<String>> {
    ["pid", "a", "b", "c"].iter().map(|name| office.wait_file(name)).collect()
}

#[test]
fn nothing_an_agent_started_outlives_the_daemon() -> Result<()> {
    for more in ["", "sandbox: off"] {
        let office = Office::new(STAYS, more);
        if more == "sandbox: off" {
            let text = fs::read_to_string(office.root.file("config/daemon.yml"))?;
            let text: Vec<&str> = text.lines().filter(|line| !line.trim().starts_with("write:")).collect();
            office.root.write("config/daemon.yml", &text.join("\n"));
        }
        let mut daemon = office.root.start()?;
        let _ = office.root.add("stay", &[]);
        let pids = all_of(&office)?;
        assert!(pids.iter().all(|pid| lives(pid)), "{pids:?}");
        daemon.kill()?;
        office.root.wait_for("their end", || (!pids.iter().any(|pid| lives(pid))).then_some(()))?;
    }
    Ok(())
}

#[test]
fn nothing_an_agent_started_outlives_its_run() -> Result<()> {
    let script = STAYS.replace(
        "trap '' TERM; while :; do sleep 1; done",
        "until [ -s a -a -s b -a -s c ]; do sleep 0.02; done",
    );
    let office = Office::new(&script, "");
    let _daemon = office.root.start()?;
    let id = office.root.add("start and go", &[]);
    assert_eq!(office.end(&id)?["state"], "succeeded");
    let pids = all_of(&office)?;
    assert!(!pids.iter().any(|pid| lives(pid)), "{pids:?}");
    Ok(())
}

#[test]
fn nothing_an_agent_of_an_ordinary_user_started_outlives_the_daemon() -> Result<()> {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        println!("not root: the other tests are an ordinary user's already");
        return Ok(());
    }
    let base = Root::named("root");
    let dir = base.aside().to_owned();
    let bin = dir.join("bin");
    fs::create_dir(&bin)?;
    for file in [kairos(), plugin("command"), plugin("stub")] {
        fs::copy(&file, bin.join(file.file_name().unwrap()))?;
    }
    // `by` gives it `--` and the program's path, which lies where nobody else may look.
    let as_nobody = bin.join("as-nobody");
    let text = format!(
        "#!/bin/sh\nshift 2\nexec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups {}/kairos \"$@\"\n",
        bin.display()
    );
    fs::write(&as_nobody, text)?;
    let office = Office::within(base.by(&as_nobody, &[]), STAYS, "", "");
    let text = fs::read_to_string(office.root.file("config/daemon.yml"))?;
    let here = |library| plugin(library).parent().unwrap().display().to_string();
    office.root.write("config/daemon.yml", &text.replace(&here("command"), &bin.display().to_string()));
    // What the harness watches must be there, and the daemon's, before it starts.
    for name in ["run", "state", "wal", "logs"] {
        fs::create_dir_all(office.root.file(name))?;
    }
    for entry in walk(&dir) {
        std::os::unix::fs::lchown(&entry, Some(NOBODY), Some(NOBODY))?;
        fs::set_permissions(&entry, fs::Permissions::from_mode(0o755))?;
    }
    let mut daemon = office.root.spawn(&[])?;
    let added = office.root.wait_for("an answer", || {
        Some(office.root.cli(&["mandate", "add", "stay"])).filter(|ran| ran.code == 0)
    });
    added?;
    let pids = all_of(&office)?;
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{}", pids[0].trim()))?);
    assert_eq!(owner, NOBODY);
    daemon.kill()?;
    office.root.wait_for("their end", || (!pids.iter().any(|pid| lives(pid))).then_some(()))
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(walk(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}
