//! Forks a child that is not this process's own but its parent's: whoever started this process can
//! wait for the child, and is its parent in all that the kernel asks.
#![allow(unsafe_code, reason = "clone with flags has no safe form in the libraries at hand")]

use std::io::{Error, Result};
use std::ptr;

use rustix::process::Pid;

/// `PR_GET_TID_ADDRESS`: where the C library keeps the number of this thread.
const GET_TID_ADDRESS: libc::c_int = 40;

/// Forks: none in the child, in the parent its number. Only for a process with one thread.
///
/// # Errors
/// The system's; then there is no child.
pub fn fork() -> Result<Option<Pid>> {
    let mut flags = libc::CLONE_PARENT | libc::SIGCHLD;
    let own_number = tid_address();
    if !own_number.is_null() {
        // As `fork` of the C library does it, which otherwise goes on with its parent's number.
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    let (flags, none) = (libc::c_long::from(flags), ptr::null_mut::<libc::c_void>());
    // SAFETY: without a stack and with nothing shared this is a fork; there is one thread, so the
    // child finds every lock as this thread left it. The last two stand in the other order on some
    // architectures, and the kernel takes notice of the first of them only.
    match unsafe { libc::syscall(libc::SYS_clone, flags, none, none, own_number, own_number) } {
        -1 => Err(Error::last_os_error()),
        child => Ok(Pid::from_raw(i32::try_from(child).expect("numbers of processes are small"))),
    }
}

/// Null where the kernel does not tell; only locks that lend their priority would notice.
fn tid_address() -> *mut libc::c_void {
    let mut address = ptr::null_mut();
    // SAFETY: the kernel writes a pointer to the place of one, and nothing when it fails.
    unsafe { libc::prctl(GET_TID_ADDRESS, &raw mut address) };
    address
}
