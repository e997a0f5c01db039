//! The daemon's end of a worker's socket: whole frames, and never a wait without a look at the
//! process behind it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::frame::{Decoder, Frame, FrameError};
use super::spin::Spin;
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
    pub fn new(socket: OwnedFd, clock: SystemClock) -> Self {
        Self { socket, decoder: Decoder::default(), spin: Spin::default(), clock }
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
