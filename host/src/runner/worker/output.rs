//! What a worker prints. Its standard output and error are one pipe, always read, so that a
//! printing runner is never held up; lines go to the daemon's log within a ration, and what is
//! beyond it is counted and thrown away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::io::{Errno, read};

use crate::domain::talk::Talk;

/// Lines that may come at once.
const BURST: f64 = 60.0;
/// Lines a second in the long run: 20 MiB of log a day at the very most, for each worker that prints without end.
const RATE: f64 = 1.0;
/// Longest line, in bytes; the rest of it counts as left out.
const LINE_MAX: usize = 2 << 10;
/// Read at once, before other workers have their turn.
const CHUNK: usize = 64 << 10;

/// The reading end of one worker's output.
pub struct Output {
    pipe: OwnedFd,
    pid: i32,
    label: Arc<OnceLock<String>>,
    line: Vec<u8>,
    ration: Talk,
}

/// Whether there will be more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// There may be.
    Later,
    /// All writers are gone.
    Never,
}

impl Output {
    /// Output of the worker `pid`, to be logged under the name that `label` gets.
    pub fn new(pipe: OwnedFd, pid: i32, label: Arc<OnceLock<String>>) -> Self {
        Self { pipe, pid, label, line: Vec::new(), ration: Talk::limited(BURST, RATE) }
    }

    /// Reads once.
    pub fn pump(&mut self, now: Duration) -> More {
        let mut chunk = [0; CHUNK];
        match read(&self.pipe, &mut chunk) {
            Ok(0) => More::Never,
            Ok(came) => {
                self.take(&chunk[..came], now);
                More::Later
            }
            Err(Errno::AGAIN | Errno::INTR) => More::Later,
            Err(_) => More::Never,
        }
    }

    /// Reads what is left of a worker that has ended. A child of it that escaped may go on writing;
    /// a pipe's fill is all that is read.
    pub fn last_words(&mut self, now: Duration) {
        let mut chunk = [0; CHUNK];
        if let Ok(came) = read(&self.pipe, &mut chunk) {
            self.take(&chunk[..came], now);
        }
        if !self.line.is_empty() {
            self.say(now);
        }
        let dropped = self.ration.take_dropped();
        if dropped > 0 {
            let runner = self.label.get().map_or("", String::as_str);
            tracing::warn!(runner, pid = self.pid, dropped, "runner_output_left_out");
        }
    }

    fn take(&mut self, bytes: &[u8], now: Duration) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.say(now);
            }
        }
    }

    fn say(&mut self, now: Duration) {
        if let Some(dropped) = self.ration.admit(now) {
            let text = String::from_utf8_lossy(&self.line);
            let line = text.trim_end();
            if !line.is_empty() {
                let runner = self.label.get().map_or("", String::as_str);
                tracing::info!(runner, pid = self.pid, line, dropped, "runner_output");
            }
        }
        self.line.clear();
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn a_flood_is_read_whole_and_said_in_part() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut output = Output::new(reader, 1, Arc::default());
        let block = b"y\n".repeat(2048);
        for _ in 0..100 {
            assert_eq!(rustix::io::write(&writer, &block), Ok(block.len()));
            assert_eq!(output.pump(Duration::ZERO), More::Later);
        }
        assert_eq!(output.ration.take_dropped(), 100 * 2048 - 60);
        assert_eq!(output.pump(Duration::ZERO), More::Later, "nothing came");
        drop(writer);
        assert_eq!(output.pump(Duration::ZERO), More::Never);
        output.last_words(Duration::ZERO);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut output = Output::new(reader, 1, Arc::default());
        for _ in 0..50 {
            assert_eq!(rustix::io::write(&writer, &[b'x'; 4096]), Ok(4096));
            output.pump(Duration::ZERO);
        }
        assert_eq!(output.line.len(), LINE_MAX);
        assert!(output.line.capacity() <= 2 * LINE_MAX);
    }
}
