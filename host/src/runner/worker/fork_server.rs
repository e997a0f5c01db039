//! One process that every worker is forked from. It has done what the start of any of them has in
//! common, mapping and relocating the program, which is most of what a start takes; it maps no
//! plugin and talks with nobody but the thread that started it.
//!
//! ```text
//! supervisor -- three descriptors --> fork server        forks a sibling of itself:
//!            <-- number or error ---                     the worker is the daemon's child
//! ```

use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
    sockopt,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal, setpgid};

use super::entry::COMMAND;
use crate::sys::sibling;

/// What a worker gets: its frames, its hints, its output.
const GIFTS: usize = 3;

/// Time for an answer. A fork takes a quarter of a millisecond; a process of a trial waits for an
/// idle moment of the machine.
const ANSWER_TIME: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// The fork server as the thread holds it that starts workers: it must live as long as they, since
/// the kernel ends them with it. The process is started when it is first needed.
pub(super) struct ForkServer {
    program: PathBuf,
    running: Option<Running>,
}

struct Running {
    child: Child,
    socket: OwnedFd,
    pidfd: OwnedFd,
    /// Somebody hears of its end.
    watched: bool,
}

impl ForkServer {
    /// Workers that are `program worker`.
    pub fn new(program: PathBuf) -> Self {
        Self { program, running: None }
    }

    /// A new worker with these descriptors, in a process group of its own: its number, which is
    /// valid until the worker has been waited for. A server that is gone is replaced.
    ///
    /// # Errors
    /// The system's.
    pub fn fork(&mut self, gifts: [BorrowedFd<'_>; GIFTS]) -> Result<Pid> {
        if let Some(running) = &self.running
            && let Some(answer) = running.ask(gifts)
        {
            return answer;
        }
        self.running = None;
        let running = self.running.insert(Running::start(&self.program)?);
        running.ask(gifts).unwrap_or_else(|| Err(Error::other("it ended before it answered")))
    }

    /// The process behind it, once for each: readable when it has ended, which is to be told with
    /// [`ForkServer::bury`].
    pub fn unwatched(&mut self) -> Option<BorrowedFd<'_>> {
        let running = self.running.as_mut().filter(|running| !running.watched)?;
        running.watched = true;
        Some(running.pidfd.as_fd())
    }

    /// Lets go of a process that has ended. The next worker that is wanted gets another one.
    pub fn bury(&mut self) {
        if let Some(running) = &mut self.running
            && matches!(running.child.try_wait(), Ok(Some(_)))
        {
            self.running = None;
        }
    }
}

impl Running {
    /// Nothing runs between fork and exec, so that the C library can use its fast path: with a
    /// large daemon the other one takes fifty milliseconds.
    fn start(program: &PathBuf) -> Result<Self> {
        let (socket, its_socket) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(program);
        command.arg0("kairos").arg(COMMAND).env_clear().current_dir("/").process_group(0);
        let mut child = command.stdin(Stdio::from(its_socket)).stdout(Stdio::null()).spawn()?;
        // Nobody else waits for it: the number is its own.
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Self { child, socket, pidfd, watched: false })
    }

    /// None when it is of no use any more.
    fn ask(&self, gifts: [BorrowedFd<'_>; GIFTS]) -> Option<Result<Pid>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GIFTS))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        along.push(SendAncillaryMessage::ScmRights(&gifts));
        sendmsg(&self.socket, &[IoSlice::new(&[0])], &mut along, SendFlags::NOSIGNAL).ok()?;
        while let Err(Errno::INTR) = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&ANSWER_TIME))
        {
        }
        let mut answer = [0; 4];
        let (_, came) = recv(&self.socket, &mut answer, RecvFlags::DONTWAIT).ok()?;
        let number = (came == answer.len()).then(|| i32::from_ne_bytes(answer))?;
        Some(match Pid::from_raw(number) {
            Some(pid) if number > 0 => Ok(pid),
            _ => Err(Error::from_raw_os_error(-number)),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A worker's ends of what the supervisor gave it.
pub(super) struct Gifts {
    pub data: OwnedFd,
    pub control: OwnedFd,
    pub output: OwnedFd,
}

/// Lives as the fork server until the supervisor hangs up, in the middle of anything: none then. Returns
/// in each worker.
///
/// # Errors
/// When somebody started it by hand.
pub(super) fn serve() -> Result<Option<Gifts>> {
    let socket = fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    if sockopt::socket_type(&socket)? != SocketType::SEQPACKET {
        return Err(Error::from(ErrorKind::InvalidInput));
    }
    // Workers find the null device as their input.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    loop {
        let Some(gifts) = next(&socket)? else { return Ok(None) };
        let answer = match sibling::fork() {
            Ok(None) => {
                setpgid(None, None)?;
                // Whatever happens to the daemon, or to the sockets: a worker does not outlive it.
                // A daemon that is gone already has closed the socket, which the first read finds.
                set_parent_process_death_signal(Some(Signal::KILL))?;
                return Ok(Some(gifts));
            }
            Ok(Some(pid)) => pid.as_raw_nonzero().get(),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EAGAIN),
        };
        drop(gifts);
        match send(&socket, &answer.to_ne_bytes(), SendFlags::NOSIGNAL) {
            Err(error) if has_hung_up(error) => return Ok(None),
            sent => sent?,
        };
    }
}

/// How a socket says that the other end is closed, with an answer in it that nobody has read or a
/// question that nobody waits for any more.
fn has_hung_up(error: Errno) -> bool {
    matches!(error, Errno::CONNRESET | Errno::PIPE)
}

fn next(socket: &OwnedFd) -> Result<Option<Gifts>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GIFTS))];
    let mut along = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0];
    let came = loop {
        match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut word)], &mut along, RecvFlags::CMSG_CLOEXEC)
        {
            Err(Errno::INTR) => {}
            Err(error) if has_hung_up(error) => return Ok(None),
            came => break came?,
        }
    };
    if came.bytes == 0 {
        return Ok(None);
    }
    let mut given = along.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(given) => Some(given),
        _ => None,
    });
    let mut given = given.next().into_iter().flatten();
    match (given.next(), given.next(), given.next()) {
        (Some(data), Some(control), Some(output)) => Ok(Some(Gifts { data, control, output })),
        // A process that has no room for descriptors gets fewer.
        _ => Err(Error::from_raw_os_error(libc::EMFILE)),
    }
}
