//! The few system calls of the sandbox that have no safe form in the libraries at hand. Nothing
//! else of the sandbox may be unsafe.
#![allow(unsafe_code, reason = "unshare, prctl options and a signal disposition are plain system calls")]

use std::io;

use rustix::thread::UnshareFlags;

/// Moves this process into new namespaces.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: unsafe only for flags that split what threads share; of those the new user
    // namespace is the one used here, and the process has one thread (the caller has looked).
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// A `prctl` whose arguments are plain numbers.
pub(super) fn prctl(option: i32, argument: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: none of the options used here takes a pointer, so no memory is touched.
    match unsafe { libc::prctl(option, argument, zero, zero, zero) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What becomes of every mount below `/`.
#[derive(Clone, Copy)]
pub(super) enum Mounted {
    /// It neither follows what others do to it nor tells them.
    Private,
    /// Nothing on it can be changed.
    ReadOnly,
}

/// Changes the mounts of this process's namespace. Linux 5.12.
pub(super) fn set_mounts(how: Mounted) -> io::Result<()> {
    let mut attributes = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    match how {
        Mounted::Private => attributes.propagation = libc::MS_PRIVATE,
        Mounted::ReadOnly => attributes.attr_set = libc::MOUNT_ATTR_RDONLY,
    }
    // SAFETY: the path ends with a null byte, and the structure lives through the call and has the
    // size that is said.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A write past the limit of a file's size becomes an error; otherwise it ends the process.
pub(super) fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal installs no handler, and nothing else here disposes of this one.
    let former = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    assert!(former != libc::SIG_ERR, "SIGXFSZ can be ignored");
}
