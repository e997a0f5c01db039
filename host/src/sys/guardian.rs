//! A process that stays behind when this one goes on as its child, and ends whatever is left when
//! that child has ended: also what left the process group or the session, since orphans below it
//! become its own children. It runs no foreign code, and ends as the child did.
//!
//! ```text
//! daemon --pidfd--> guardian --> worker --> whatever it starts
//! ```
#![allow(unsafe_code, reason = "fork and signal masks have no safe form in the libraries at hand")]

use std::io::{Error, Result};
use std::mem::MaybeUninit;

use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process,
    set_child_subreaper, set_parent_process_death_signal, setpgid, setrlimit, wait,
};

/// Ends a guardian in order: its child, then what is left below it. It cannot be mistaken for a fault.
pub const END: Signal = Signal::TERM;

/// The same for one that [`accompanied`] a program: that one hears ordinary signals itself.
pub const END_ALL: Signal = Signal::USR1;

/// Time for processes that were killed to be gone; one that is stuck in the kernel is left.
const SWEEP_TIME: libc::timespec = libc::timespec { tv_sec: 1, tv_nsec: 0 };

/// Goes on in a child, in a process group of its own, that ends with its guardian. Only for a
/// process with one thread, which keeps nothing that two processes must not share.
///
/// # Errors
/// The system's; then there is no guardian.
pub fn guarded() -> Result<()> {
    let guardian = getpid();
    set_child_subreaper(Some(guardian))?;
    let former = block(waited(END).as_ptr())?;
    part(guardian, &former, None, END)?;
    setpgid(None, None)?;
    Ok(())
}

/// Goes on in a child that stays in the process group: what is sent to that reaches the child and
/// all it starts, while the guardian minds only [`END_ALL`] and the end of `parent`, which started
/// this process. When the child has ended, nothing of what it started is left. Same terms as
/// [`guarded`].
///
/// # Errors
/// The system's; then there is no guardian.
pub fn accompanied(parent: Pid) -> Result<()> {
    let guardian = getpid();
    set_child_subreaper(Some(guardian))?;
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the set, which has room.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    let former = block(all.as_ptr())?;
    part(guardian, &former, Some(parent), END_ALL)
}

/// Parts into the guardian, which never comes back from here, and the child, which does.
fn part(guardian: Pid, former: &libc::sigset_t, parent: Option<Pid>, end: Signal) -> Result<()> {
    // SAFETY: there is one thread, so the child finds every lock as this thread left it.
    match unsafe { libc::fork() } {
        -1 => {
            let error = Error::last_os_error();
            restore(former);
            Err(error)
        }
        0 => {
            restore(former);
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() != Some(guardian) {
                // It is gone already, and nobody would end this one.
                std::process::exit(1);
            }
            Ok(())
        }
        child => {
            let child = Pid::from_raw(child).expect("a child has a number");
            end_as(watch(child, parent, end))
        }
    }
}

/// Blocks these signals: what was blocked before.
fn block(signals: *const libc::sigset_t) -> Result<libc::sigset_t> {
    let mut former = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid for the call, which fills the former one when it succeeds.
    match unsafe { libc::sigprocmask(libc::SIG_BLOCK, signals, former.as_mut_ptr()) } {
        // SAFETY: filled.
        0 => Ok(unsafe { former.assume_init() }),
        _ => Err(Error::last_os_error()),
    }
}

fn restore(former: &libc::sigset_t) {
    // SAFETY: a valid set; the former one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, former, std::ptr::null_mut()) };
}

fn waited(end: Signal) -> MaybeUninit<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is initialised by the first call, and both signals exist.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), end.as_raw());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
    }
    set
}

/// The next of the waited signals; none after the limit.
fn next_signal(end: Signal, limit: Option<&libc::timespec>) -> Option<i32> {
    let limit = limit.map_or(std::ptr::null(), std::ptr::from_ref);
    loop {
        // SAFETY: the set is valid, nothing is asked of the signal but its number, and a null limit
        // means none.
        match unsafe { libc::sigtimedwait(waited(end).as_ptr(), std::ptr::null_mut(), limit) } {
            -1 if Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            -1 => return None,
            signal => return Some(signal),
        }
    }
}

/// The life of a guardian: how its child ended. Everything below it is gone then.
fn watch(child: Pid, parent: Option<Pid>, end: Signal) -> WaitStatus {
    let _ = rustix::thread::set_name(c"kairos-guardian");
    // The daemon's end is an order to end all, too.
    let _ = set_parent_process_death_signal(Some(end));
    if parent.is_some_and(|parent| getppid() != Some(parent)) {
        let _ = kill_process(child, Signal::KILL);
    }
    // The sockets are the child's alone: whoever holds the other ends must see them closed.
    // SAFETY: nothing in this process uses a descriptor from here on.
    unsafe { libc::close_range(0, libc::c_uint::MAX, 0) };
    let status = loop {
        if next_signal(end, None) == Some(end.as_raw()) {
            let _ = kill_process(child, Signal::KILL);
        }
        if let Some(status) = reap(child) {
            break status;
        }
    };
    // Those that die leave their own children here, until there are none.
    while sweep() && next_signal(end, Some(&SWEEP_TIME)).is_some() {}
    status
}

/// Takes what has ended: the status of the child, if it is among that.
fn reap(child: Pid) -> Option<WaitStatus> {
    let mut found = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == child {
            found = Some(status);
        }
    }
    found
}

/// Kills every child there is now. False when there is none any more.
fn sweep() -> bool {
    for pid in children() {
        let _ = kill_process(pid, Signal::KILL);
    }
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn children() -> Vec<Pid> {
    let listed = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Ends this process the way that status says, so that whoever waits for it learns what happened.
fn end_as(status: WaitStatus) -> ! {
    if let Some(signal) = status.terminating_signal() {
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
        // SAFETY: the default disposition runs no code of this process; a mask without signals is
        // valid, and so is ending this way.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            let mut none = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
            libc::kill(libc::getpid(), signal);
        }
    }
    // SAFETY: ends the process and runs nothing that was registered for its end.
    unsafe { libc::_exit(status.exit_status().unwrap_or(1)) }
}
