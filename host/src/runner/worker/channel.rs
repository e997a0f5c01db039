//! The daemon's end of a worker's socket: whole frames, and never a wait without a look at the
//! process behind it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::frame::{Decoder, Frame, FrameError};
use super::spin::{Crowd, Spin};
use crate::sys::clock::{Clock, SystemClock};

/// Why no frame came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The other end is closed.
    Closed,
    /// The process has ended.
    Ended,
    /// It broke the rules.
    Broken(FrameError),
    /// It did not answer in time.
    Late,
}

/// The socket, in frames.
pub struct Channel {
    socket: OwnedFd,
    decoder: Decoder,
    spin: Spin,
    clock: SystemClock,
}

impl Channel {
    /// Frames over `socket`.
    pub fn new(socket: OwnedFd, clock: SystemClock, crowd: Arc<Crowd>) -> Self {
        Self { socket, decoder: Decoder::default(), spin: Spin::here(crowd), clock }
    }

    /// How long spinning is known to be of no use.
    pub fn crowded(&self) -> Duration {
        self.spin.crowd().left(self.clock.monotonic())
    }

    /// Writes a frame's bytes. A worker that does not read is waited for while it lives.
    pub fn send(
        &mut self,
        mut bytes: &[u8],
        process: impl AsFd,
        until: Option<Duration>,
    ) -> Result<(), Trouble> {
        self.spin.expect();
        loop {
            match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, &process, until)?,
                Err(Errno::INTR) => {}
                // There may be frames to read that say why.
                Err(_) => return Err(Trouble::Closed),
            }
        }
    }

    /// The next frame. What the process wrote before it died is still given.
    pub fn receive(&mut self, process: impl AsFd, until: Option<Duration>) -> Result<Frame, Trouble> {
        let mut ended = false;
        loop {
            if let Some(frame) = self.decoder.take().map_err(Trouble::Broken)? {
                return Ok(frame);
            }
            let room = self.decoder.room();
            let mut look = || match recv(&self.socket, &mut *room, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => None,
                come => Some(come),
            };
            let come = if ended { look() } else { self.spin.look(&self.clock, look) };
            match come {
                Some(Ok((_, 0))) if self.decoder.is_empty() => return Err(Trouble::Closed),
                Some(Ok((_, 0))) => return Err(Trouble::Broken(FrameError::Cut)),
                Some(Ok((_, came))) => self.decoder.came(came),
                Some(Err(Errno::INTR)) => {}
                Some(Err(_)) => return Err(Trouble::Closed),
                None if ended => return Err(Trouble::Ended),
                None => ended = self.sleep(&process, until)?,
            }
        }
    }

    /// Waits until there is something to read; true when the process has ended.
    fn sleep(&mut self, process: &impl AsFd, until: Option<Duration>) -> Result<bool, Trouble> {
        let asleep = self.clock.monotonic();
        let ended = match self.wait(PollFlags::IN, process, until) {
            Ok(()) => false,
            Err(Trouble::Ended) => true,
            Err(other) => return Err(other),
        };
        self.spin.slept(self.clock.monotonic().saturating_sub(asleep));
        Ok(ended)
    }

    /// Waits until the socket is ready, the process has ended, or the time is over.
    fn wait(&self, ready: PollFlags, process: &impl AsFd, until: Option<Duration>) -> Result<(), Trouble> {
        let mut fds = [PollFd::new(&self.socket, ready), PollFd::new(process, PollFlags::IN)];
        let left = until.map(|until| until.saturating_sub(self.clock.monotonic()));
        let timeout = left.map(|left| Timespec::try_from(left).expect("no wait lasts for ages"));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => Err(Trouble::Late),
            Ok(_) if !fds[0].revents().is_empty() => Ok(()),
            Ok(_) => Err(Trouble::Ended),
            Err(Errno::INTR) => Ok(()),
            // Out of memory: nothing can be said of the worker any more.
            Err(_) => Err(Trouble::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::worker::frame::{Kind, encode};
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// A channel, its other end, and a process that lives on.
    fn channel() -> (Channel, UnixStream, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let alive = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        (Channel::new(ours.into(), SystemClock::default(), Arc::default()), theirs, alive)
    }

    fn answer(id: u64) -> Vec<u8> {
        encode(Kind::Answer, id, &[&vec![7; 1 + 37 * id as usize]]).unwrap()
    }

    #[test]
    fn answers_are_received_whole_whether_they_come_at_once_or_late_or_in_pieces() {
        let (mut channel, mut theirs, alive) = channel();
        let answering = std::thread::spawn(move || {
            let mut question = [0; 1];
            for id in 0..200 {
                theirs.read_exact(&mut question).unwrap();
                let bytes = answer(id);
                // From no time at all to far beyond any spin.
                for piece in bytes.chunks(bytes.len() / (1 + id as usize % 3) + 1) {
                    std::thread::sleep(Duration::from_micros(id % 4 * id));
                    theirs.write_all(piece).unwrap();
                }
            }
        });
        for id in 0..200 {
            channel.send(&[0], &alive, None).unwrap();
            let frame = channel.receive(&alive, None).unwrap();
            assert_eq!((frame.id, frame.payload.len()), (id, 1 + 37 * id as usize));
        }
        answering.join().unwrap();
        assert_eq!(channel.receive(&alive, None), Err(Trouble::Closed));
    }

    #[test]
    fn what_never_comes_is_late_and_what_ends_in_mid_frame_is_cut() {
        let (mut channel, mut theirs, alive) = channel();
        channel.send(&[0], &alive, None).unwrap();
        let soon = channel.clock.monotonic() + Duration::from_millis(5);
        assert_eq!(channel.receive(&alive, Some(soon)), Err(Trouble::Late));
        theirs.write_all(&answer(1)).unwrap();
        theirs.write_all(&answer(2)[..20]).unwrap();
        // One that closes with something unread has reset the connection instead.
        theirs.read_exact(&mut [0]).unwrap();
        drop(theirs);
        assert_eq!(channel.receive(&alive, None).unwrap().id, 1);
        assert_eq!(channel.receive(&alive, None), Err(Trouble::Broken(FrameError::Cut)));
    }

    #[test]
    fn words_of_a_process_that_has_ended_are_heard_before_its_end_is_told() {
        let (mut channel, mut theirs, _) = channel();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        child.wait().unwrap();
        theirs.write_all(&answer(1)).unwrap();
        channel.send(&[0], &ended, None).unwrap();
        assert_eq!(channel.receive(&ended, None).unwrap().id, 1);
        // Somebody else holds its end of the socket, as a child that it left behind would.
        assert_eq!(channel.receive(&ended, None), Err(Trouble::Ended));
        drop(theirs);
    }
}
