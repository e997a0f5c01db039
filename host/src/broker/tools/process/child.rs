//! One program from its start to its end: its three pipes, its time, its size, its group. Whatever
//! it does, this comes to an end, and nothing of its group is left. Knows nothing of agents.
//!
//! One thread and one loop; a program that writes megabytes, nothing, or closes its pipes is the
//! same to it. Nobody here waits for a pipe that a stray child keeps open.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::broker::stop::{Interrupt, Patience};
use crate::sys::clock::Clock;
use crate::sys::guardian;

/// Upper bound of one wait: how long a stop can go unnoticed.
const TICK: Duration = Duration::from_millis(50);
/// What is read at once.
const CHUNK: usize = 64 << 10;
/// Reads of one pipe in one round, so that a flood on one does not starve the other.
const READS: usize = 4;
/// How long a guardian may take to end what is below it.
const GUARD: Duration = Duration::from_secs(2);
/// How long a killed process may take to end.
const DEATH: Duration = Duration::from_secs(10);
/// How long the last output is waited for once the program has ended.
const DRAIN: Duration = Duration::from_secs(1);
/// Bytes of standard error that are kept: the last ones.
const ERRORS_KEPT: usize = 64 << 10;

/// The bounds of a run.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long it may take.
    pub time: Duration,
    /// Between asking it to end and killing it.
    pub grace: Duration,
    /// Most it may write, both outputs together, in bytes.
    pub output: usize,
    /// True when it has a guardian, which ends all that it started.
    pub guarded: bool,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// By itself.
    Itself,
    /// Its time was over.
    Time,
    /// It wrote too much.
    Output,
    /// There is too little room left where it may write.
    Room,
    /// Whoever heard it had enough.
    Heard,
    /// The cycle was asked to end.
    Interrupt(Interrupt),
}

/// What there is after a run.
#[derive(Debug)]
pub struct Ran {
    /// Why it ended.
    pub cause: Cause,
    /// How it ended; none when even a kill did not end it.
    pub status: Option<ExitStatus>,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// The last of its standard error.
    pub stderr: Vec<u8>,
    /// Bytes of standard error, with those that were not kept.
    pub stderr_bytes: usize,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Its exit code, if it ended by itself.
    #[must_use]
    pub fn exit(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// The signal that ended it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.and_then(|status| status.signal())
    }
}

/// Hears each whole line of standard output as it comes; false asks for the end.
pub type Hear<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// What is asked and told during a run.
pub struct Hooks<'a> {
    /// Hears of its output.
    pub hear: Hear<'a>,
    /// True when it may write no more; asked at least every [`TICK`].
    pub short: &'a dyn Fn() -> bool,
    /// Called once it has ended, to end what left its group.
    pub strays: &'a dyn Fn(),
}

/// Runs a program to its end.
///
/// # Errors
/// It could not be started; nothing happened.
pub fn run(
    command: &mut Command,
    input: &[u8],
    bounds: Bounds,
    clock: &dyn Clock,
    patience: &Patience<'_>,
    Hooks { hear, short, strays }: Hooks<'_>,
) -> io::Result<Ran> {
    let started = clock.monotonic();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let mut run = match Run::new(&mut child, input, bounds) {
        Ok(run) => run,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    let cause = run.watch(clock, started, patience, hear, short);
    // The leader is not reaped yet, so its number still names its group and nobody else's.
    let _ = kill_process_group(run.group, Signal::KILL);
    strays();
    let status = if run.has_ended(TICK) { child.wait().ok() } else { None };
    run.drain(clock, hear);
    let took = clock.monotonic().saturating_sub(started);
    let Run { stdout, stderr, .. } = run;
    Ok(Ran { cause, status, stdout: stdout.kept, stderr: stderr.kept, stderr_bytes: stderr.bytes, took })
}

struct Pipe<R> {
    source: Option<R>,
    kept: Vec<u8>,
    bytes: usize,
}

struct Run<'i> {
    group: Pid,
    end: OwnedFd,
    stdin: Option<ChildStdin>,
    input: &'i [u8],
    stdout: Pipe<ChildStdout>,
    stderr: Pipe<ChildStderr>,
    /// How much of standard output was heard, and looked through for a line's end.
    heard: usize,
    looked: usize,
    bounds: Bounds,
}

impl<'i> Run<'i> {
    fn new(child: &mut Child, input: &'i [u8], bounds: Bounds) -> io::Result<Self> {
        let group = Pid::from_child(child);
        let end = pidfd_open(group, PidfdFlags::empty())?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pipes = [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self {
            group,
            end,
            stdin,
            input,
            stdout: Pipe { source: stdout, kept: vec![], bytes: 0 },
            stderr: Pipe { source: stderr, kept: vec![], bytes: 0 },
            heard: 0,
            looked: 0,
            bounds,
        })
    }

    fn watch(
        &mut self,
        clock: &dyn Clock,
        started: Duration,
        patience: &Patience<'_>,
        hear: Hear<'_>,
        short: &dyn Fn() -> bool,
    ) -> Cause {
        let (mut cause, mut kill_at, mut give_up_at) = (Cause::Itself, None, None);
        loop {
            let now = clock.monotonic();
            if cause == Cause::Itself {
                cause =
                    if short() { Cause::Room } else { self.reason(now.saturating_sub(started), patience) };
            }
            if cause != Cause::Itself && kill_at.is_none() {
                let _ = kill_process_group(self.group, Signal::TERM);
                // Whoever takes the last of a disk would go on with it.
                kill_at = Some(if cause == Cause::Room { now } else { now + self.bounds.grace });
            }
            if kill_at.is_some_and(|at| now >= at) && give_up_at.is_none() {
                self.kill();
                give_up_at = Some(now + DEATH);
            }
            // A guardian that is killed itself could end nobody any more; it gets its time first.
            if self.bounds.guarded && give_up_at.is_some_and(|at| now + DEATH >= at + GUARD) {
                let _ = kill_process_group(self.group, Signal::KILL);
            }
            if self.round(TICK) || give_up_at.is_some_and(|at| now >= at) {
                return cause;
            }
            if !self.tell(hear) && cause == Cause::Itself {
                cause = Cause::Heard;
            }
        }
    }

    fn kill(&self) {
        let _ = match self.bounds.guarded {
            true => pidfd_send_signal(&self.end, guardian::END_ALL),
            false => kill_process_group(self.group, Signal::KILL),
        };
    }

    fn reason(&self, passed: Duration, patience: &Patience<'_>) -> Cause {
        if let Err(why) = patience.check_urgent() {
            Cause::Interrupt(why)
        } else if self.stdout.bytes + self.stderr.bytes > self.bounds.output {
            Cause::Output
        } else if passed >= self.bounds.time {
            Cause::Time
        } else {
            Cause::Itself
        }
    }

    /// Waits for something to happen, moves bytes, and says whether the program has ended.
    fn round(&mut self, limit: Duration) -> bool {
        let mut fds = vec![PollFd::new(&self.end, PollFlags::IN)];
        let pipes: [(Option<BorrowedFd<'_>>, PollFlags); 3] = [
            (self.stdin.as_ref().map(AsFd::as_fd), PollFlags::OUT),
            (self.stdout.source.as_ref().map(AsFd::as_fd), PollFlags::IN),
            (self.stderr.source.as_ref().map(AsFd::as_fd), PollFlags::IN),
        ];
        for (pipe, flags) in pipes {
            fds.extend(pipe.map(|pipe| PollFd::from_borrowed_fd(pipe, flags)));
        }
        // An interrupted or failed wait is a short round.
        let _ = poll(&mut fds, Some(&timespec(limit)));
        let ended = !fds[0].revents().is_empty();
        drop(fds);
        self.feed();
        self.stdout.take_in(self.bounds.output, Keep::First);
        self.stderr.take_in(ERRORS_KEPT, Keep::Last);
        ended
    }

    fn has_ended(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.end, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&timespec(limit)));
        !fds[0].revents().is_empty()
    }

    fn feed(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        while !self.input.is_empty() {
            match stdin.write(self.input) {
                Ok(written) => self.input = &self.input[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It does not want to know.
                Err(_) => break,
            }
        }
        self.stdin = None;
    }

    fn tell(&mut self, hear: Hear<'_>) -> bool {
        let mut goes_on = true;
        while let Some(more) = self.stdout.kept[self.looked..].iter().position(|byte| *byte == b'\n') {
            let end = self.looked + more;
            goes_on &= hear(&self.stdout.kept[self.heard..end]);
            self.heard = end + 1;
            self.looked = self.heard;
        }
        self.looked = self.stdout.kept.len();
        goes_on
    }

    /// Reads what is still in the pipes, and tells the last line even without its end.
    fn drain(&mut self, clock: &dyn Clock, hear: Hear<'_>) {
        self.stdin = None;
        let until = clock.monotonic() + DRAIN;
        while (self.stdout.source.is_some() || self.stderr.source.is_some()) && clock.monotonic() < until {
            let before = self.stdout.bytes + self.stderr.bytes;
            self.round(Duration::ZERO);
            let moved = self.stdout.bytes + self.stderr.bytes != before;
            let open = self.stdout.source.is_some() || self.stderr.source.is_some();
            if !moved && open {
                // A stray child that is about to be ended holds it, or nothing more comes.
                self.wait_for_pipes();
            }
        }
        self.tell(hear);
        if self.heard < self.stdout.kept.len() {
            hear(&self.stdout.kept[self.heard..]);
            self.heard = self.stdout.kept.len();
        }
    }

    fn wait_for_pipes(&self) {
        let mut fds = vec![];
        fds.extend(self.stdout.source.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        fds.extend(self.stderr.source.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let _ = poll(&mut fds, Some(&timespec(TICK)));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Keep {
    First,
    Last,
}

impl<R: Read> Pipe<R> {
    fn take_in(&mut self, most: usize, keep: Keep) {
        let Some(source) = &mut self.source else { return };
        let mut chunk = [0; CHUNK];
        for _ in 0..READS {
            match source.read(&mut chunk) {
                Ok(0) => {
                    self.source = None;
                    return;
                }
                Ok(read) => {
                    self.bytes += read;
                    let room = match keep {
                        Keep::First => most.saturating_sub(self.kept.len()).min(read),
                        Keep::Last => read,
                    };
                    self.kept.extend_from_slice(&chunk[..room]);
                    if keep == Keep::Last {
                        self.kept.drain(..self.kept.len().saturating_sub(most));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.source = None;
                    return;
                }
            }
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}
