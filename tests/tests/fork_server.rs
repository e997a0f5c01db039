//! The process that workers are forked from: that it can be lost, and that it never outlives its daemon.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use anyhow::Result;
use kairos_tests::{Daemon, Root, kairos, plugin};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};
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
fn fork_server_that_is_killed_is_taken_away_though_nobody_needs_another() -> Result<()> {
    let root = root();
    let mut daemon = root.start()?;
    // It has tried the configured plugins, and now there is nothing to do.
    root.wait_for("a fork server", || children(&daemon, "kairos-workers").pop())?;
    let servers = children(&daemon, "kairos-workers");
    servers.iter().for_each(|pid| kill(*pid));
    for pid in servers {
        root.wait_for("the end of its zombie", || {
            (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(())
        })?;
    }
    let id = root.add("go on", &[]);
    root.wait_state(&id, &["succeeded"])?;
    root.wait_for("another one", || children(&daemon, "kairos-workers").pop())?;
    assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
    Ok(())
}

#[test]
fn fork_server_that_is_left_alone_in_the_middle_of_a_start_says_nothing() -> Result<()> {
    for answered in [true, false] {
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut server = Command::new(kairos());
        server.arg("worker").stdin(Stdio::from(its)).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut server = server.spawn()?;
        let gift = fs::File::open("/dev/null")?;
        let gifts = [gift.as_fd(), gift.as_fd(), gift.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        along.push(SendAncillaryMessage::ScmRights(&gifts));
        sendmsg(&ours, &[IoSlice::new(&[0])], &mut along, SendFlags::NOSIGNAL)?;
        if answered {
            let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
            assert_eq!(poll(&mut [PollFd::new(&ours, PollFlags::IN)], Some(&patience))?, 1, "no answer");
        }
        // What it has answered is not read, or its answer finds nobody.
        drop(ours);
        let mut said = String::new();
        server.stderr.take().unwrap().read_to_string(&mut said)?;
        assert_eq!((server.wait()?.code(), said.as_str()), (Some(0), ""), "answered: {answered}");
    }
    // What is no fork server is still told so.
    let by_hand = Command::new(kairos()).arg("worker").stdin(Stdio::null()).output()?;
    let said = String::from_utf8(by_hand.stderr)?;
    assert!(by_hand.status.code() == Some(2) && said.contains("started by the daemon"), "{said}");
    Ok(())
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
