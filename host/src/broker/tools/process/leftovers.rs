//! Ends processes that a step left behind. A step's processes carry its key in their environment,
//! and a mark of the run; one that left the group, or that outlived the daemon, is found by it. Must
//! never touch a process that does not carry the very value.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

/// The variable that carries a step's key: the same on every attempt.
pub const STEP: &str = "KAIROS_STEP";
/// The variable that tells one run of a step from another one.
pub const RUN: &str = "KAIROS_RUN";
/// Most of an environment that is read, in bytes.
const ENVIRON_MAX: u64 = 1 << 20;
/// Rounds, because one that is about to be ended can start another one.
const ROUNDS: usize = 20;

/// Kills every process whose environment has this; says how many were found.
pub fn end(variable: &str, value: &str) -> usize {
    let mark = format!("{variable}={value}");
    let mut ended = 0;
    for _ in 0..ROUNDS {
        let found = marked(&mark);
        if found.is_empty() {
            break;
        }
        for process in &found {
            // One that has ended meanwhile is what was wanted.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        ended += found.len();
    }
    ended
}

fn marked(mark: &str) -> Vec<OwnedFd> {
    let Ok(entries) = fs::read_dir("/proc") else { return vec![] };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|raw| {
        let pid = Pid::from_raw(raw).filter(|pid| *pid != getpid())?;
        // Held before it is looked at, so that the number cannot have become another process.
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let mut environ = vec![];
        fs::File::open(format!("/proc/{raw}/environ"))
            .ok()?
            .take(ENVIRON_MAX)
            .read_to_end(&mut environ)
            .ok()?;
        environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()).then_some(process)
    })
    .collect()
}
