//! One worker process as the daemon holds it: by its pidfd, never by a number that may have
//! become somebody else's.
//!
//! Its number is used only to end the group of whatever it started, and only while the process
//! itself has not been waited for: until then the number cannot be given to anybody.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, pidfd_send_signal, waitid,
};

use super::channel::{Channel, Trouble};
use super::fork_server::ForkServer;
use super::frame::{Kind, encode};
use super::spin::Crowd;
use crate::runner::Death;
use crate::runner::death::describe;
use crate::sys::clock::SystemClock;
use crate::sys::{guardian, processor_time};

/// Time for a process that was killed, or that closed its socket, to be gone. Killing takes a
/// third of a millisecond; more than this means a machine in trouble.
const END_GRACE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Time for a guardian to end what is below it. It needs a millisecond.
const GUARD_GRACE: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

/// Time for a process that closed its socket to end by itself: an exit closes it first.
const EXIT_GRACE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// By this signal.
    pub signal: Option<i32>,
    /// Else with this code.
    pub code: Option<i32>,
}

/// What can be done to a worker from any thread, while another one talks with it.
pub struct Handle {
    pidfd: OwnedFd,
    pid: Pid,
    control: OwnedFd,
    by_host: AtomicBool,
    /// True when the process is a guardian, and the worker is below it.
    guarded: AtomicBool,
    /// The worker below its guardian, once it was looked for.
    worker: OnceLock<Pid>,
    exit: Mutex<Option<Exit>>,
}

/// One worker process, for the thread that talks with it. Dropped, it is killed.
pub struct Process {
    /// For the other threads.
    pub handle: Arc<Handle>,
    /// Its frames.
    pub channel: Channel,
    /// The name under which its output is logged; set once it has one.
    pub label: Arc<OnceLock<String>>,
    /// The last id used.
    pub last_id: u64,
}

/// A started worker and the end of the pipe that its output comes through.
pub struct Started {
    /// The process.
    pub process: Process,
    /// Nonblocking.
    pub output: OwnedFd,
}

impl Process {
    /// Starts a worker.
    ///
    /// # Errors
    /// The system's.
    pub fn spawn(server: &mut ForkServer, clock: SystemClock, crowd: Arc<Crowd>) -> std::io::Result<Started> {
        let pair = || socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair()?;
        let (control, its_control) = pair()?;
        let (output, its_output) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let pid = server.fork([theirs.as_fd(), its_control.as_fd(), its_output.as_fd()])?;
        // Nobody waits for this child but we, below: the number is still its own.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let handle = Handle {
            pidfd,
            pid,
            control,
            by_host: AtomicBool::new(false),
            guarded: AtomicBool::new(false),
            worker: OnceLock::new(),
            exit: Mutex::new(None),
        };
        let process = Self {
            handle: Arc::new(handle),
            channel: Channel::new(ours, clock, crowd),
            label: Arc::default(),
            last_id: 0,
        };
        Ok(Started { process, output })
    }

    /// A fresh id for a question.
    pub fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Makes sure that it is gone, and says how: after `trouble` with it, in that phase.
    pub fn bury(&self, trouble: &Trouble, phase: Option<String>) -> Death {
        let handle = &self.handle;
        let by_itself = match trouble {
            Trouble::Ended => true,
            Trouble::Closed => handle.ends_within(EXIT_GRACE),
            Trouble::Broken(_) | Trouble::Late => handle.has_ended(),
        };
        let by_host = handle.by_host.load(Ordering::Acquire);
        let exit = handle.end();
        let how = match trouble {
            _ if by_host => "worker was killed by the host".to_owned(),
            Trouble::Broken(error) => format!("worker broke the protocol: {error}"),
            Trouble::Late => "worker did not answer in time".to_owned(),
            Trouble::Closed if !by_itself => "worker closed its connection".to_owned(),
            Trouble::Closed | Trouble::Ended => describe(exit.signal, exit.code),
        };
        // A signal of ours, after it broke the rules, is not how it died.
        let exit = if by_itself || by_host { exit } else { Exit { signal: None, code: None } };
        Death { how, signal: exit.signal, exit_code: exit.code, phase, by_host }
    }
}

impl Handle {
    /// Its number, for people.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// What it has used.
    pub fn processor_time(&self) -> Option<Duration> {
        if !self.guarded.load(Ordering::Acquire) {
            return processor_time::of(self.pid);
        }
        // The guardian has no child before the worker, and ends with it: until then the number is its own.
        let worker = match self.worker.get() {
            Some(worker) => *worker,
            None => {
                let first = processor_time::first_child(self.pid)?;
                *self.worker.get_or_init(|| first)
            }
        };
        processor_time::of(worker)
    }

    /// What it has used with all that it started; none in a sandbox, where nothing can be started.
    pub fn processor_time_below(&self) -> Option<Duration> {
        match self.guarded.load(Ordering::Acquire) {
            true => processor_time::of_all_below(self.pid),
            false => None,
        }
    }

    /// Asks it to look whether it should stop.
    pub fn nudge(&self) {
        self.tell(Kind::Nudge);
    }

    /// Tells it that no new cycle will come.
    pub fn drain(&self) {
        self.tell(Kind::Drain);
    }

    /// Control frames are hints; one that finds the socket full or closed is not missed.
    fn tell(&self, kind: Kind) {
        let frame = encode(kind, 0, &[]).expect("an empty payload fits");
        let _ = send(&self.control, &frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Lets it end by itself: both sockets must be closed for that.
    pub fn hang_up(&self) {
        let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
    }

    /// Says that from its load on it has a guardian, which ends all that it started.
    pub fn is_guarded(&self) {
        self.guarded.store(true, Ordering::Release);
    }

    /// Ends it at once, by the host's decision.
    pub fn kill(&self) {
        self.by_host.store(true, Ordering::Release);
        let exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_none() {
            self.kill_all();
        }
    }

    /// True when the process has ended, whoever has noticed.
    pub fn has_ended(&self) -> bool {
        self.ends_within(Timespec::default())
    }

    fn ends_within(&self, limit: Timespec) -> bool {
        loop {
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&limit)) {
                Err(Errno::INTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Ends it and all it started, and waits for it: how it ended. Doing it again changes nothing.
    pub fn end(&self) -> Exit {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = *exit {
            return exit;
        }
        self.kill_all();
        if self.guarded.load(Ordering::Acquire) && !self.ends_within(GUARD_GRACE) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        self.ends_within(END_GRACE);
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        let status = status.ok().flatten();
        *exit.insert(Exit {
            signal: status.as_ref().and_then(rustix::process::WaitIdStatus::terminating_signal),
            code: status.as_ref().and_then(rustix::process::WaitIdStatus::exit_status),
        })
    }

    /// To be called while it has not been waited for.
    fn kill_all(&self) {
        // Already gone is fine.
        if self.guarded.load(Ordering::Acquire) {
            let _ = pidfd_send_signal(&self.pidfd, guardian::END);
            return;
        }
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}

impl AsFd for Handle {
    /// The pidfd, for waiting.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end();
    }
}
