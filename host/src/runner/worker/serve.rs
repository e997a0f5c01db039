//! The worker's side of the frames: the runner's calls go out, one at a time, and the thread that
//! asked reads the answer itself. Another thread listens for hints on a socket of its own, so
//! that a runner that computes can be nudged, and a daemon that is gone is noticed.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use kairos_plugin_api::{CallError, code};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use serde_json::Value;

use super::client::NO_DEADLINE;
use super::frame::{Decoder, Frame, FrameError, HEAD, Kind, MAX_PAYLOAD, encode};
use super::protocol::{LogLine, error_to_wire, level_number};
use super::spin::Spin;
use crate::runner::{HostCalls, RunnerBackend, RunnerError, encoded, method};
use crate::sys::clock::{Clock, SystemClock};
use crate::sys::priority;

/// A runner that looks whether it should stop gets the last answer again for so long, so that one
/// that looks in a tight loop does not spend its time on asking. A nudge ends it.
const STOP_STALE: Duration = Duration::from_millis(10);

/// Time for a runner to be dropped when the daemon has hung up.
const LEAVE_GRACE: Duration = Duration::from_secs(1);

/// Longest text of a log line, in bytes; the host cuts further.
const LOG_MAX: usize = 64 << 10;

/// Calls of which one can be under way; the host answers `busy` to a second one.
const EFFECTS: [&str; 6] =
    [method::LLM, method::TOOL, method::PROPOSE, method::USAGE, method::NOW, method::RANDOM];

/// The socket to the daemon, for all threads of the worker.
pub struct Wire {
    write: Mutex<UnixStream>,
    /// Whoever holds it may ask, and reads until it is answered.
    turn: Mutex<Reader>,
    next: AtomicU64,
    /// Counts the hints to look whether to stop.
    nudges: AtomicU64,
    clock: SystemClock,
}

struct Reader {
    socket: UnixStream,
    decoder: Decoder,
    spin: Spin,
    clock: SystemClock,
}

impl Reader {
    fn new(socket: UnixStream, clock: SystemClock) -> Self {
        Self { socket, decoder: Decoder::default(), spin: Spin::here(Arc::default()), clock }
    }

    /// The next frame; none when the daemon has hung up.
    fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.take().map_err(Error::other)? {
                return Ok(Some(frame));
            }
            match self.read() {
                Ok(0) if self.decoder.is_empty() => return Ok(None),
                Ok(0) => return Err(Error::other(FrameError::Cut)),
                Ok(came) => self.decoder.came(came),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Another word for hung up, when something of ours had not been read.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn read(&mut self) -> Result<usize> {
        let room = self.decoder.room();
        let come =
            self.spin.look(&self.clock, || match recv(&self.socket, &mut *room, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => None,
                come => Some(come),
            });
        if let Some(come) = come {
            return come.map(|(_, came)| came).map_err(Error::from);
        }
        let asleep = self.clock.monotonic();
        let came = self.socket.read(room);
        self.spin.slept(self.clock.monotonic().saturating_sub(asleep));
        came
    }
}

impl Wire {
    /// Frames over that socket.
    pub fn new(socket: UnixStream) -> Self {
        let write = socket.try_clone().expect("a descriptor more can be had at the start");
        let clock = SystemClock::default();
        Self {
            write: Mutex::new(write),
            turn: Mutex::new(Reader::new(socket, clock)),
            next: AtomicU64::new(1),
            nudges: AtomicU64::new(0),
            clock,
        }
    }

    /// The first thing that the daemon wants, or none when it has hung up.
    pub fn first_request(&self) -> Result<Option<Frame>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    /// Does not spin for so long.
    pub fn calm(&self, time: Duration) {
        let reader = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        reader.spin.crowd().calm(self.clock.monotonic(), time);
    }

    /// What it wants next, now that it has been answered: a busy daemon says so at once.
    fn next_request(&self) -> Result<Option<Frame>> {
        let mut reader = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        reader.spin.expect();
        reader.next()
    }

    /// Writes one frame.
    pub fn send(&self, kind: Kind, id: u64, parts: &[&[u8]]) -> Result<()> {
        let frame = encode(kind, id, parts).map_err(Error::other)?;
        self.write.lock().unwrap_or_else(PoisonError::into_inner).write_all(&frame)
    }

    /// Asks the daemon and waits for its answer, unless `ended` says that nobody listens any more.
    fn ask(&self, kind: Kind, parts: &[&[u8]], ended: &AtomicBool) -> Result<Option<Frame>> {
        let mut reader = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.ask_in_turn(&mut reader, kind, parts, ended)
    }

    fn ask_in_turn(
        &self,
        reader: &mut Reader,
        kind: Kind,
        parts: &[&[u8]],
        ended: &AtomicBool,
    ) -> Result<Option<Frame>> {
        if ended.load(Ordering::Acquire) {
            return Ok(None);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.send(kind, id, parts)?;
        reader.spin.expect();
        match reader.next()? {
            Some(frame) if frame.id == id => Ok(Some(frame)),
            Some(frame) => Err(Error::other(FrameError::OutOfPlace(frame.kind))),
            None => Ok(None),
        }
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        let line = LogLine {
            level: level_number(level),
            target: cut(target).to_owned(),
            message: cut(message).to_owned(),
            fields: fields.clone(),
        };
        let Ok(mut payload) = serde_json::to_vec(&line) else { return };
        if payload.len() > LOG_MAX * 4 {
            let fields = Value::from("left out: too large");
            payload = serde_json::to_vec(&LogLine { fields, ..line }).unwrap_or_default();
        }
        // A line that cannot be written any more has nobody who would miss it.
        let _ = self.send(Kind::Log, 0, &[&payload]);
    }
}

fn cut(text: &str) -> &str {
    if text.len() <= LOG_MAX {
        return text;
    }
    let end = (0..=LOG_MAX).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// Serves requests until the daemon hangs up.
pub fn serve(wire: &Arc<Wire>, backend: &dyn RunnerBackend) -> Result<()> {
    while let Some(frame) = wire.next_request()? {
        let outcome = match frame.kind {
            Kind::Run => run_cycle(wire, backend, &frame.payload),
            Kind::Probe => backend.probe().map(|()| Vec::new()),
            Kind::Export => backend.export_state().and_then(|state| encoded(&state)),
            Kind::Import => serde_json::from_slice(&frame.payload)
                .map_err(|error| RunnerError::Call(error.into()))
                .and_then(|state| backend.import_state(state))
                .map(|()| Vec::new()),
            other => return Err(Error::other(FrameError::OutOfPlace(other))),
        };
        reply(wire, frame.id, outcome)?;
    }
    Ok(())
}

fn run_cycle(
    wire: &Arc<Wire>,
    backend: &dyn RunnerBackend,
    payload: &[u8],
) -> std::result::Result<Vec<u8>, RunnerError> {
    let bad = |what: String| RunnerError::Call(CallError::invalid(what));
    let (deadline, mandate) =
        payload.split_first_chunk::<8>().ok_or_else(|| bad("a mandate without a deadline".to_owned()))?;
    let deadline = i64::from_le_bytes(*deadline);
    let host = Arc::new(CycleHost {
        wire: Arc::clone(wire),
        deadline: Some(deadline).filter(|deadline| *deadline != NO_DEADLINE),
        effect: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        stopped: AtomicBool::new(false),
        asked: Mutex::new(None),
    });
    // The bytes are the runner's to read and to write; the daemon judges what comes out.
    let outcome = backend.run_cycle_json(mandate, Arc::clone(&host) as _);
    // Threads that outlive their cycle have nobody to talk to.
    host.ended.store(true, Ordering::Release);
    outcome
}

fn reply(wire: &Wire, id: u64, outcome: std::result::Result<Vec<u8>, RunnerError>) -> Result<()> {
    let outcome = match outcome {
        Ok(bytes) if bytes.len() > MAX_PAYLOAD => Err(too_large("an answer", bytes.len())),
        other => other,
    };
    match outcome {
        Ok(bytes) => wire.send(Kind::Done, id, &[&bytes]),
        Err(error) => {
            let mut bytes = serde_json::to_vec(&error_to_wire(error))?;
            if bytes.len() > MAX_PAYLOAD {
                bytes = serde_json::to_vec(&error_to_wire(too_large("an error", bytes.len())))?;
            }
            wire.send(Kind::Failed, id, &[&bytes])
        }
    }
}

fn too_large(what: &str, size: usize) -> RunnerError {
    RunnerError::BadReport(format!("{what} of {size} bytes; at most {MAX_PAYLOAD} are taken"))
}

/// The host of one cycle, at the other end of the wire.
struct CycleHost {
    wire: Arc<Wire>,
    deadline: Option<i64>,
    /// True while an effect is under way.
    effect: AtomicBool,
    ended: AtomicBool,
    stopped: AtomicBool,
    /// When the daemon was asked last whether to stop, and after how many nudges.
    asked: Mutex<Option<(Duration, u64)>>,
}

/// Holds the right to make an effect.
struct Effect<'a>(&'a AtomicBool);

impl Drop for Effect<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl HostCalls for CycleHost {
    fn call(&self, name: &str, request: &[u8]) -> std::result::Result<Vec<u8>, CallError> {
        // The daemon would see a second one only when it has answered the first.
        let _effect = if EFFECTS.contains(&name) {
            if self.effect.swap(true, Ordering::AcqRel) {
                return Err(CallError::new(code::BUSY, "another effect of this cycle is under way"));
            }
            Some(Effect(&self.effect))
        } else {
            None
        };
        let length = u8::try_from(name.len()).map_err(|_| method::unknown(name))?;
        if HEAD + 1 + name.len() + request.len() > MAX_PAYLOAD {
            return Err(CallError::invalid(format!("a request has at most {MAX_PAYLOAD} bytes")));
        }
        let answer = self.wire.ask(Kind::Call, &[&[length], name.as_bytes(), request], &self.ended);
        match answer {
            Ok(Some(Frame { kind: Kind::Answer, payload, .. })) => Ok(payload),
            Ok(Some(Frame { kind: Kind::Refusal, payload, .. })) => Err(serde_json::from_slice(&payload)
                .unwrap_or_else(|error| CallError::failed(format!("the host's error: {error}")))),
            Ok(Some(frame)) => Err(CallError::failed(FrameError::OutOfPlace(frame.kind).to_string())),
            Ok(None) => Err(CallError::new(code::STOPPED, "the cycle has ended")),
            Err(error) => Err(CallError::new(code::STOPPED, format!("the host cannot be reached: {error}"))),
        }
    }

    fn should_stop(&self) -> bool {
        if self.stopped.load(Ordering::Acquire) || self.ended.load(Ordering::Acquire) {
            return true;
        }
        let nudges = self.wire.nudges.load(Ordering::Acquire);
        let now = self.wire.clock.monotonic();
        let fresh = |asked: &Option<(Duration, u64)>| {
            asked.is_some_and(|(at, after)| after == nudges && now.saturating_sub(at) < STOP_STALE)
        };
        let Ok(mut asked) = self.asked.try_lock() else { return false };
        if fresh(&asked) {
            return false;
        }
        // While a call is under way the daemon ends it when the cycle should stop; then it is asked.
        let Ok(mut reader) = self.wire.turn.try_lock() else { return false };
        *asked = Some((now, nudges));
        let stop = match self.wire.ask_in_turn(&mut reader, Kind::Ask, &[], &self.ended) {
            Ok(Some(frame)) => frame.kind != Kind::Stopping || frame.payload != [0],
            // Nobody is there for whom to go on.
            Ok(None) | Err(_) => true,
        };
        self.stopped.fetch_or(stop, Ordering::AcqRel);
        stop
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_millis(self.deadline?)
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        self.wire.log(level, target, message, fields);
    }
}

/// The host outside of cycles: there is a log and nothing else.
pub struct Home(Arc<Wire>);

impl Home {
    /// At the other end of that wire.
    pub fn new(wire: Arc<Wire>) -> Self {
        Self(wire)
    }
}

impl HostCalls for Home {
    fn call(&self, method: &str, _: &[u8]) -> std::result::Result<Vec<u8>, CallError> {
        Err(CallError::invalid(format!("{method} is for a running cycle")))
    }

    fn should_stop(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        self.0.log(level, target, message, fields);
    }
}

/// Listens for hints.
pub struct Ear;

impl Ear {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's.
    pub fn listen(control: UnixStream, backend: Arc<dyn RunnerBackend>, wire: Arc<Wire>) -> Result<()> {
        let mut reader = Reader::new(control, wire.clock);
        let listen = move || {
            while let Ok(Some(frame)) = reader.next() {
                match frame.kind {
                    Kind::Nudge => {
                        wire.nudges.fetch_add(1, Ordering::AcqRel);
                        backend.cancel();
                    }
                    Kind::Drain => backend.begin_drain(),
                    _ => break,
                }
            }
            // The daemon has hung up. Between cycles the other thread sees it, too, and drops the
            // runner in peace; one that still computes is not waited for.
            drop(backend);
            // The last of its threads takes the process down, which nobody waits for.
            let _ = priority::only_when_idle();
            std::thread::sleep(LEAVE_GRACE);
            std::process::abort();
        };
        std::thread::Builder::new().name("kairos-ear".to_owned()).spawn(listen)?;
        Ok(())
    }
}
