//! The processor time that another process has used. Reads only, and needs no right to it.
#![allow(unsafe_code, reason = "the clocks of other processes have no safe form in the libraries at hand")]

use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::process::Pid;

/// Most processes that are looked at below one.
const BELOW_MAX: usize = 1000;

/// What all threads of that process have used, those that ended among them; none when it is gone.
#[must_use]
pub fn of(pid: Pid) -> Option<Duration> {
    let mut clock = MaybeUninit::uninit();
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: both calls fill what they are given when they succeed, and it is read only then.
    let time = unsafe {
        if libc::clock_getcpuclockid(pid.as_raw_nonzero().get(), clock.as_mut_ptr()) != 0
            || libc::clock_gettime(clock.assume_init(), time.as_mut_ptr()) != 0
        {
            return None;
        }
        time.assume_init()
    };
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// What a process and everything below it have used, with what their children used that have ended and
/// were waited for. Of a hundredth of a second; none when the process is gone or the kernel tells no
/// children.
#[must_use]
pub fn of_all_below(pid: Pid) -> Option<Duration> {
    let (mut found, mut todo) = (used(pid)?, children(pid)?);
    let mut seen = 0;
    while let Some(pid) = todo.pop() {
        seen += 1;
        if seen > BELOW_MAX {
            break;
        }
        // One that has ended meanwhile is in its parent's sum.
        found += used(pid).unwrap_or_default();
        todo.extend(children(pid).unwrap_or_default());
    }
    let second = rustix::param::clock_ticks_per_second().max(1);
    Some(
        Duration::from_secs(found / second)
            + Duration::from_secs(found % second) / u32::try_from(second).ok()?,
    )
}

/// The first child of a process that there is now.
#[must_use]
pub fn first_child(pid: Pid) -> Option<Pid> {
    children(pid)?.into_iter().next()
}

fn children(pid: Pid) -> Option<Vec<Pid>> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).ok()?;
    let listed = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("children")));
    let mut found = vec![];
    for listed in listed {
        found.extend(listed.ok()?.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
    }
    Some(found)
}

/// In ticks: of itself and of its children that have ended.
fn used(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name before it may hold anything; the times are the fields 14 to 17.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().skip(11).take(4).map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use rustix::process::{Signal, kill_process_group};

    use super::*;

    #[test]
    fn the_time_of_a_process_grows_with_its_work_and_ends_with_it() {
        let own = rustix::process::getpid();
        let before = of(own).unwrap();
        while of(own).unwrap() < before + Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        child.wait().unwrap();
        assert_eq!(of(pid), None);
    }

    #[test]
    fn the_time_of_all_below_holds_what_runs_there_and_what_has_ended_there() {
        let used = |script: &str| {
            let mut command = std::process::Command::new("sh");
            let mut child = command.args(["-c", script]).process_group(0).spawn().unwrap();
            let pid = Pid::from_child(&child);
            let own = || of(pid).unwrap();
            let until = std::time::Duration::from_millis(50);
            let found = std::iter::repeat_with(|| (of_all_below(pid).unwrap(), own()))
                .find(|(all, _)| *all > until)
                .unwrap();
            // Between two that are over in no time there is none.
            assert!(std::iter::repeat_with(|| first_child(pid)).any(|child| child.is_some()));
            // With all that it started.
            kill_process_group(pid, Signal::KILL).unwrap();
            child.wait().unwrap();
            assert_eq!(of_all_below(pid), None);
            found
        };
        // A child that computes, whose own child sleeps; and children that are over in no time.
        let (all, own) = used("(sleep 1000 & while :; do :; done) & wait");
        assert!(own < all, "{own:?} {all:?}");
        used("while :; do /bin/true; sleep 0; done");
    }
}
