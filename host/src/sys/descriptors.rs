//! Descriptors that whoever started this process left open. They are nobody's here: a file or a
//! connection that some shell or service manager forgot must reach neither a worker nor a tool.
//! Standard input, output and errors are not meant.
#![allow(unsafe_code, reason = "close_range has no safe form in the libraries at hand")]

use std::io::{Error, Result};
use std::os::fd::BorrowedFd;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The first that is not a standard one.
const FIRST: libc::c_uint = 3;

/// Keeps them from every program that this process starts.
///
/// # Errors
/// The system's; some may be left as they were then.
pub fn keep_from_programs() -> Result<()> {
    // SAFETY: marks descriptors and closes none, so nobody loses one.
    match unsafe { libc::close_range(FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) } {
        0 => Ok(()),
        // Before Linux 5.11, or under a filter that does not know it.
        _ => mark_one_by_one(),
    }
}

/// Closes them. Only for a process that has just begun and has opened nothing itself.
///
/// # Errors
/// The system's; then a program would still not get them.
pub fn close() -> Result<()> {
    keep_from_programs()?;
    // SAFETY: nothing in this process owns a descriptor yet, by the caller's word.
    match unsafe { libc::close_range(FIRST, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => {
            for number in open()? {
                // SAFETY: as above; the one of the listing is closed already, which is refused.
                unsafe { libc::close(number) };
            }
            Ok(())
        }
    }
}

fn mark_one_by_one() -> Result<()> {
    for number in open()? {
        // SAFETY: only asked and marked; one that is closed meanwhile, as that of the listing is, is
        // refused.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        if let Ok(flags) = fcntl_getfd(descriptor) {
            fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC).map_err(Error::from)?;
        }
    }
    Ok(())
}

fn open() -> Result<Vec<i32>> {
    let listed = std::fs::read_dir("/proc/self/fd")?;
    let numbers = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|number: &i32| number.cast_unsigned() >= FIRST).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsFd as _, AsRawFd as _};

    use super::*;

    #[test]
    fn each_open_descriptor_is_kept_from_programs_also_by_an_old_kernel() {
        let leaked = File::open("/dev/null").unwrap();
        for keep in [keep_from_programs, mark_one_by_one] {
            fcntl_setfd(&leaked, FdFlags::empty()).unwrap();
            assert!(open().unwrap().contains(&leaked.as_raw_fd()));
            keep().unwrap();
            assert_eq!(fcntl_getfd(leaked.as_fd()).unwrap(), FdFlags::CLOEXEC);
        }
    }
}
