//! The processor time that another process has used. Reads only, and needs no right to it.
#![allow(unsafe_code, reason = "the clocks of other processes have no safe form in the libraries at hand")]

use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::process::Pid;

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

#[cfg(test)]
mod tests {
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
}
