//! How urgent the kernel takes a thread's work. Only ever lowered here. Without a privilege a policy
//! that was lowered cannot be raised again, so that is for threads and processes that are thrown away;
//! short turns cost nobody anything.
#![allow(unsafe_code, reason = "scheduling attributes have no safe form in the libraries at hand")]

use std::io;

/// Lets this thread, and every thread and process that it starts from now on, run only where nobody
/// else wants to: whatever else becomes ready takes the core from it at once.
///
/// # Errors
/// The system's; the thread is as urgent as before then.
pub fn only_when_idle() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: no pointer is involved; 0 is the calling thread.
    let present = unsafe { libc::sched_getscheduler(0) };
    // What was said of children cannot be taken back, and means nothing for this policy.
    let flag = if present < 0 { 0 } else { present & libc::SCHED_RESET_ON_FORK };
    // SAFETY: the pointer leads to a local that outlives the call, which only reads it; 0 is the
    // calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE | flag, &raw const param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Does that where nobody else wants to run, on a thread of its own, and waits for it. A sandbox
/// refuses the thread its yielding; then it is done as any other work.
pub fn at_leisure<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let _ = only_when_idle();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Turns of a thread that others wait for, in nanoseconds; the shortest that the kernel grants.
const SHORT_TURN_NS: u64 = 100_000;

/// `SCHED_FLAG_RESET_ON_FORK`: children get the usual turns. The kernel lets nobody without a privilege
/// take it back.
const RESET_ON_FORK: u64 = 1;

/// The kernel's `struct sched_attr`, as of its first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Lets this thread, and none that it starts, hold a core for short turns only: what others wait for is
/// this thread, and what a runner starts is to be as on any other day. Its share of the core stays the
/// same, and it gets it sooner: what becomes ready with a short turn takes the core from whoever has a
/// longer one, which would otherwise be held until the next tick, milliseconds later. A kernel before
/// 6.12 knows no such thing and takes no notice.
///
/// # Errors
/// The system's; turns are as long as before then.
pub fn short_turns() -> io::Result<()> {
    let mut known = attributes(0)?;
    known.runtime = SHORT_TURN_NS;
    known.flags |= RESET_ON_FORK;
    let none: libc::c_long = 0;
    // SAFETY: the kernel reads as many bytes as `size` says, which is the size of the local; 0 is the
    // calling thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, none, &raw const known, none) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Of a thread by its number; 0 is the calling one.
fn attributes(thread: u32) -> io::Result<Attributes> {
    let mut found = Attributes::default();
    let (none, size): (libc::c_long, libc::c_long) = (0, size_of::<Attributes>() as libc::c_long);
    let thread = libc::c_long::from(thread);
    // SAFETY: the kernel writes at most `size` bytes, which is the size of the local.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &raw mut found, size, none) } {
        0 => Ok(found),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field 41 of a thread's `stat` is its policy.
    fn policy(path: &str) -> i32 {
        let stat = std::fs::read_to_string(path).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[38].parse().unwrap()
    }

    #[test]
    fn short_turns_change_neither_policy_nor_niceness() {
        let kept = std::thread::spawn(|| {
            let before = attributes(0).unwrap();
            short_turns().unwrap();
            (before, attributes(0).unwrap())
        });
        let (before, after) = kept.join().unwrap();
        assert_eq!((before.policy, before.nice), (after.policy, after.nice));
        // An older kernel says nothing of turns.
        assert!([0, SHORT_TURN_NS].contains(&after.runtime), "{after:?}");
    }

    #[test]
    fn what_a_thread_of_short_turns_starts_has_the_usual_ones_and_it_can_still_yield() {
        let seen = std::thread::spawn(|| {
            let before = attributes(0).unwrap();
            short_turns().unwrap();
            let thread = std::thread::spawn(|| attributes(0).unwrap()).join().unwrap();
            let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            let process = attributes(child.id()).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            only_when_idle().unwrap();
            (before, thread, process, policy("/proc/thread-self/stat"))
        });
        let (before, thread, process, policy) = seen.join().unwrap();
        for child in [thread, process] {
            let same = |of: &Attributes| (of.policy, of.nice, of.runtime, of.flags);
            assert_eq!(same(&child), same(&before));
        }
        assert_eq!(policy, libc::SCHED_IDLE);
    }

    #[test]
    fn work_at_leisure_yields_and_gives_its_result_or_its_panic() {
        assert_eq!(at_leisure(|| policy("/proc/thread-self/stat")), libc::SCHED_IDLE);
        assert_eq!(policy("/proc/thread-self/stat"), libc::SCHED_OTHER);
        assert!(std::panic::catch_unwind(|| at_leisure(|| panic!("as asked"))).is_err());
    }

    #[test]
    fn a_thread_that_yields_takes_its_children_along_and_nobody_else() {
        let own = "/proc/thread-self/stat";
        let child = std::thread::spawn(move || {
            only_when_idle().unwrap();
            let child = std::thread::spawn(move || policy(own)).join().unwrap();
            (policy(own), child)
        });
        assert_eq!(child.join().unwrap(), (libc::SCHED_IDLE, libc::SCHED_IDLE));
        assert_eq!(policy(own), libc::SCHED_OTHER);
    }
}
