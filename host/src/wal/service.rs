//! The log thread and the handle others hold of it. The store's writer hands over and goes on; it
//! never waits for a file.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;

use super::projector::Projector;
use super::{Error, HealReport, Result, Retention, Source, file, heal};
use crate::store::{CommitSink, Committed};
use crate::sys::clock::Clock;
use crate::sys::files::FileError;

/// Text that may wait for the thread. What comes beyond it is read from the store later.
const MAX_QUEUED: usize = 16 << 20;
/// How long to wait before a file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long to wait after an archive could not be made; nothing waits for it.
const ARCHIVE_RETRY: Duration = Duration::from_secs(60);
/// Archives are made when nothing was committed for so long: they need the disk for themselves.
const QUIET: Duration = Duration::from_millis(250);
/// Or when so many wait that quiet may never come.
const ARCHIVE_ANYWAY: usize = 1_024;

/// Where the logs are and how long archives stay.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `.kairos/wal`.
    pub dir: PathBuf,
    /// Of archives.
    pub retention: Retention,
}

/// How the log files stand to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Mandates whose file lacks lines that the store has.
    pub behind: usize,
    /// Why.
    pub error: Option<String>,
}

/// The service. Made before the store, which tells it of commits; attached to the store after.
pub struct Wal {
    settings: Settings,
    clock: Arc<dyn Clock>,
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
}

#[derive(Default)]
struct Inner {
    messages: VecDeque<Message>,
    text: usize,
    /// Mandates whose lines were not taken in for want of room.
    overflow: BTreeSet<String>,
    health: Health,
    closed: bool,
}

enum Message {
    Batch(Vec<Committed>),
    Prepare(String, oneshot::Sender<Result<()>>),
    Flush(oneshot::Sender<Health>),
}

impl Wal {
    /// A service without a thread yet: what it hears waits for [`Wal::attach`].
    #[must_use]
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { settings, clock, queue: Arc::default(), thread: Mutex::new(None) })
    }

    /// Heals the files of everything whose lines are in the store, then starts the thread.
    /// Called once, after recovery and before the first cycle; a cycle that recovery handed out must
    /// not go on if its mandate is among [`HealReport::reviewed`]. Blocks; must not be called on an
    /// async runtime's thread.
    ///
    /// # Errors
    /// When the directory or the store cannot be read or written; a single bad file is in the report
    /// instead. The thread runs all the same and tries again until it can; no cycle is prepared
    /// before that.
    pub fn attach(&self, source: Arc<dyn Source>) -> Result<HealReport> {
        let healed = heal(&self.settings.dir, source.as_ref(), self.clock.now());
        if let Err(error) = &healed {
            self.queue.lock().health = Health { behind: 0, error: Some(error.to_string()) };
        }
        let start = Start {
            settings: self.settings.clone(),
            source,
            clock: Arc::clone(&self.clock),
            healed: healed.as_ref().ok().cloned(),
        };
        let queue = Arc::clone(&self.queue);
        let thread = std::thread::Builder::new()
            .name("kairos-wal".to_owned())
            .spawn(move || run(start, &queue))
            .map_err(|error| FileError::new("start a thread for", &self.settings.dir, error))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        healed
    }

    /// Makes sure that a mandate's file is open and holds all that was committed for it. Comes
    /// before the start of a cycle: on an error the cycle must not start, unless
    /// `wal.on_error: continue`.
    ///
    /// # Errors
    /// [`Error::Closed`] also before [`Wal::attach`] and after [`Wal::close`].
    pub async fn prepare(&self, mandate: &str) -> Result<()> {
        self.ask_prepare(mandate)?.await.unwrap_or(Err(Error::Closed))
    }

    /// As [`Wal::prepare`] for a plain thread; must not be called on an async runtime's thread.
    ///
    /// # Errors
    /// As [`Wal::prepare`].
    pub fn prepare_blocking(&self, mandate: &str) -> Result<()> {
        self.ask_prepare(mandate)?.blocking_recv().unwrap_or(Err(Error::Closed))
    }

    /// How the files stand. Costs nothing.
    #[must_use]
    pub fn health(&self) -> Health {
        self.queue.lock().health.clone()
    }

    /// Waits until everything heard so far is in the files, or known to be behind. Must not be
    /// called on an async runtime's thread.
    pub fn flush(&self) -> Health {
        let (tx, rx) = oneshot::channel();
        if self.queue.push(Message::Flush(tx)) {
            rx.blocking_recv().unwrap_or_default()
        } else {
            self.health()
        }
    }

    /// Writes what is queued and ends the thread. What could not be written is healed at the next
    /// start. Never fails, may be called twice; must not be called on an async runtime's thread.
    pub fn close(&self) {
        {
            let mut inner = self.queue.lock();
            inner.closed = true;
            self.queue.wake.notify_all();
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("wal_thread_panicked");
        }
    }

    fn ask_prepare(&self, mandate: &str) -> Result<oneshot::Receiver<Result<()>>> {
        file::path(&self.settings.dir, mandate)?;
        if self.thread.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(Error::Closed);
        }
        let (tx, rx) = oneshot::channel();
        if self.queue.push(Message::Prepare(mandate.to_owned(), tx)) { Ok(rx) } else { Err(Error::Closed) }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.close();
    }
}

impl CommitSink for Wal {
    fn committed(&self, batch: Vec<Committed>) {
        let size: usize = batch
            .iter()
            .map(|part| match part {
                Committed::Lines { lines, .. } => lines.iter().map(|(_, line)| line.len() + 32).sum(),
                Committed::Ended { .. } => 64,
            })
            .sum();
        let mut inner = self.queue.lock();
        if inner.text + size > MAX_QUEUED {
            for part in batch {
                let (Committed::Lines { mandate, .. } | Committed::Ended { mandate }) = part;
                inner.overflow.insert(mandate);
            }
        } else {
            inner.text += size;
            inner.messages.push_back(Message::Batch(batch));
        }
        self.queue.wake.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when the service is closed.
    fn push(&self, message: Message) -> bool {
        let mut inner = self.lock();
        if inner.closed {
            return false;
        }
        inner.messages.push_back(message);
        self.wake.notify_all();
        true
    }

    /// Everything that waits; waits for it at most that long. True when this was the last time.
    fn next(&self, patience: Option<Duration>) -> (Vec<Message>, BTreeSet<String>, bool) {
        let mut inner = self.lock();
        let idle =
            |inner: &mut Inner| inner.messages.is_empty() && inner.overflow.is_empty() && !inner.closed;
        inner = match patience {
            None => self.wake.wait_while(inner, idle).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                self.wake.wait_timeout_while(inner, patience, idle).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        inner.text = 0;
        let messages = std::mem::take(&mut inner.messages).into();
        (messages, std::mem::take(&mut inner.overflow), inner.closed)
    }
}

/// What the thread begins with.
struct Start {
    settings: Settings,
    source: Arc<dyn Source>,
    clock: Arc<dyn Clock>,
    healed: Option<HealReport>,
}

impl Start {
    /// Heals, again and again if need be; `None` when the service was closed before that worked.
    fn projector(self, queue: &Queue) -> Option<Projector> {
        let Self { settings, source, clock, mut healed } = self;
        let mut next_try = clock.monotonic() + RETRY;
        loop {
            if let Some(report) = healed {
                return Some(Projector::new(&settings, source, clock, &report));
            }
            // Lines need not be kept: healing reads everything from the store.
            let (messages, _, closed) = queue.next(Some(RETRY));
            let detail = queue.lock().health.error.clone().unwrap_or_default();
            for message in messages {
                match message {
                    Message::Batch(_) => {}
                    Message::Prepare(_, reply) => {
                        let _ = reply.send(Err(Error::Unready { detail: detail.clone() }));
                    }
                    Message::Flush(reply) => {
                        let _ = reply.send(queue.lock().health.clone());
                    }
                }
            }
            if closed {
                return None;
            }
            if clock.monotonic() >= next_try {
                healed = match heal(&settings.dir, source.as_ref(), clock.now()) {
                    Ok(report) => Some(report),
                    Err(error) => {
                        queue.lock().health.error = Some(error.to_string());
                        None
                    }
                };
                next_try = clock.monotonic() + RETRY;
            }
        }
    }
}

/// The thread: hears, writes, and does the slow things when it is quiet.
fn run(start: Start, queue: &Queue) {
    let clock = Arc::clone(&start.clock);
    let mut failing = start.healed.is_none();
    let Some(mut projector) = start.projector(queue) else { return };
    projector.sweep();
    if failing {
        failing = publish(&projector, queue);
        tracing::info!("wal_write_restored");
    }
    let (mut next_try, mut next_archive) = (Duration::ZERO, Duration::ZERO);
    loop {
        let now = clock.monotonic();
        let patience = match (projector.behind().0 > 0, projector.to_archive() > 0) {
            (_, true) if next_archive <= now => Some(QUIET),
            (true, _) => Some(RETRY),
            (false, true) => Some(next_archive - now),
            (false, false) => None,
        };
        let (messages, overflow, closed) = queue.next(patience);
        let quiet = messages.is_empty();
        for mandate in overflow {
            projector.fall_behind(mandate);
        }
        hear(&mut projector, queue, messages);
        if closed {
            return;
        }
        if projector.behind().0 > 0 && clock.monotonic() >= next_try {
            projector.retry();
            next_try = clock.monotonic() + RETRY;
        }
        let wanted = projector.to_archive() > if quiet { 0 } else { ARCHIVE_ANYWAY };
        if wanted
            && clock.monotonic() >= next_archive
            && let Err(error) = projector.archive_some()
        {
            tracing::warn!(error = %error, "wal_archive_failed");
            next_archive = clock.monotonic() + ARCHIVE_RETRY;
        }
        let now_failing = publish(&projector, queue);
        if failing && !now_failing {
            tracing::info!("wal_write_restored");
        }
        failing = now_failing;
    }
}

/// Writes the batches that came in one go together, and answers in the order of the queue.
fn hear(projector: &mut Projector, queue: &Queue, messages: Vec<Message>) {
    let mut waiting = Vec::new();
    for message in messages {
        match message {
            Message::Batch(mut batch) => waiting.append(&mut batch),
            Message::Prepare(mandate, reply) => {
                projector.take(std::mem::take(&mut waiting));
                // A caller that has gone away needs no answer.
                let _ = reply.send(projector.prepare(&mandate));
            }
            Message::Flush(reply) => {
                projector.take(std::mem::take(&mut waiting));
                projector.retry();
                publish(projector, queue);
                let _ = reply.send(queue.lock().health.clone());
            }
        }
    }
    projector.take(waiting);
}

/// Makes the state visible; true when something is behind.
fn publish(projector: &Projector, queue: &Queue) -> bool {
    let (behind, error) = projector.behind();
    let health = Health { behind, error: error.map(str::to_owned) };
    let mut inner = queue.lock();
    if inner.health != health {
        inner.health = health;
    }
    behind > 0
}
