//! The one thread that writes. It drains everything that waits into one transaction, each request
//! in its own savepoint so that one failure fails alone, and answers only after the commit has
//! returned.
//!
//! ```text
//! requests -> [ BEGIN  sp(request) sp(request) ...  COMMIT ] -> sink -> answers
//! ```
//!
//! It must never acknowledge anything after a commit or sync that failed: it retires.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use rusqlite::Connection;

use super::fail::{Fail, Res, Severity, classify};
use super::open;
use super::txn::Txn;
use crate::store::{CommitSink, Committed, Error, LAZY_FLUSH, Promise, Result};
use crate::sys::clock::{Clock, SystemClock};

/// Most requests of one commit; what waits beyond them goes into the next.
const MAX_BATCH: usize = 256;
/// A transaction that has worked this long takes no further request in.
const MAX_WORK: Duration = Duration::from_millis(5);
/// Pages in the log after which it is written back when nothing waits: 4 MiB.
const CHECKPOINT_PAGES: i32 = 1_000;
/// Pages in the log after which it is written back even while requests wait: 32 MiB.
const CHECKPOINT_NOW: i32 = 8_000;

/// How long the closing write back waits for readers; a stop must not.
const GIVES_WAY: Duration = Duration::from_millis(20);

/// What reaches the thread.
pub enum Message {
    /// Work for a transaction; lazy work waits for other work, at most [`LAZY_FLUSH`].
    Work {
        /// The work.
        job: Box<dyn Job>,
        /// May it wait?
        lazy: bool,
    },
    /// A look at what is committed; only a store in memory reads this way.
    Look(Box<dyn FnOnce(&Connection) + Send>),
    /// Everything queued is made durable, then the thread ends.
    Close(Promise<()>),
    /// The thread ends on the spot, as in a crash, and gives what was committed.
    Crash(Sender<Connection>),
}

/// The work of one request.
pub trait Job: Send {
    /// Does it inside a savepoint.
    fn run(&mut self, txn: &mut Txn<'_>) -> Res<()>;
    /// Answers, after the commit or its failure.
    fn answer(self: Box<Self>, committed: Result<()>);
}

/// A closure and the promise it answers.
pub struct Request<T, F> {
    work: Option<F>,
    done: Option<T>,
    promise: Promise<T>,
}

impl<T, F> Request<T, F> {
    /// Work whose value the promise is kept with.
    pub fn new(work: F, promise: Promise<T>) -> Self {
        Self { work: Some(work), done: None, promise }
    }
}

impl<T: Send, F: FnOnce(&mut Txn<'_>) -> Res<T> + Send> Job for Request<T, F> {
    fn run(&mut self, txn: &mut Txn<'_>) -> Res<()> {
        if let Some(work) = self.work.take() {
            self.done = Some(work(txn)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        let Self { done, promise, .. } = *self;
        promise.keep(committed.and_then(|()| done.ok_or(Error::Closed)));
    }
}

/// Figures shared with the store's handle.
#[derive(Debug, Default)]
pub struct Figures {
    /// Transactions committed that wrote something.
    pub commits: AtomicU64,
    /// Requests in them.
    pub requests: AtomicU64,
}

/// The thread's own things.
pub struct Writer {
    conn: Connection,
    /// `None` for a store in memory.
    path: Option<PathBuf>,
    inbox: Receiver<Message>,
    sink: Option<Arc<dyn CommitSink>>,
    figures: Arc<Figures>,
    clock: SystemClock,
    lazy: Vec<Box<dyn Job>>,
    lazy_since: Duration,
    log_pages: Arc<AtomicI32>,
    /// The last write back did not go well; said once, not with every commit.
    checkpoint_fails: bool,
    /// Set once the bytes on disk are in doubt; every later request gets it.
    retired: Option<Error>,
}

impl Writer {
    /// Takes over a connection that has been opened and checked.
    pub fn new(
        mut conn: Connection,
        path: Option<PathBuf>,
        inbox: Receiver<Message>,
        sink: Option<Arc<dyn CommitSink>>,
        figures: Arc<Figures>,
    ) -> rusqlite::Result<Self> {
        let log_pages = Arc::new(AtomicI32::new(0));
        let seen = Arc::clone(&log_pages);
        conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
            seen.store(pages, Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Self {
            conn,
            path,
            inbox,
            sink,
            figures,
            clock: SystemClock::default(),
            lazy: Vec::new(),
            lazy_since: Duration::ZERO,
            log_pages,
            checkpoint_fails: false,
            retired: None,
        })
    }

    /// Serves until it is closed or every handle is gone. Handles that go without a close leave
    /// the store as a crash would: what was acknowledged is there, lazy work that still waits is not.
    pub fn serve(mut self) {
        let mut left = None;
        loop {
            let next = match left.take() {
                Some(message) => Ok(message),
                None => self.wait(),
            };
            match next {
                Ok(Message::Work { job, lazy: true }) => {
                    if self.lazy.is_empty() {
                        self.lazy_since = self.clock.monotonic();
                    }
                    self.lazy.push(job);
                }
                Ok(Message::Work { job, lazy: false }) => left = self.commit(Some(job)),
                Ok(Message::Look(look)) => look(&self.conn),
                Ok(Message::Close(promise)) => {
                    if !self.lazy.is_empty() {
                        // What came in since goes the way of all that comes after a close.
                        let _ = self.commit(None);
                    }
                    promise.keep(self.close());
                    return;
                }
                Ok(Message::Crash(give)) => {
                    // Nobody waits for it: the connection is dropped, as after a real crash.
                    let _ = give.send(self.conn);
                    return;
                }
                Err(RecvTimeoutError::Timeout) => left = self.commit(None),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The next message; while lazy work waits, only as long as it may.
    fn wait(&self) -> std::result::Result<Message, RecvTimeoutError> {
        if self.lazy.is_empty() {
            return self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected);
        }
        let waited = self.clock.monotonic().saturating_sub(self.lazy_since);
        self.inbox.recv_timeout(LAZY_FLUSH.saturating_sub(waited))
    }

    /// One transaction: what is lazy, then `first`, then whatever has arrived. Gives back a message
    /// that is no work and came in between.
    fn commit(&mut self, first: Option<Box<dyn Job>>) -> Option<Message> {
        if let Some(error) = &self.retired {
            let error = error.clone();
            let jobs: Vec<_> = self.lazy.drain(..).chain(first).collect();
            jobs.into_iter().for_each(|job| job.answer(Err(error.clone())));
            return None;
        }
        let begun = self.clock.monotonic();
        let mut batch = Batch::default();
        let mut left = None;
        let changes = self.conn.total_changes();
        let outcome = self.conn.prepare_cached("BEGIN IMMEDIATE").and_then(|mut begin| begin.execute([]));
        let mut trouble = outcome.err();
        let mut waiting = std::mem::take(&mut self.lazy);
        waiting.extend(first);
        if trouble.is_none() {
            for job in waiting.drain(..) {
                batch.run(&self.conn, job, &mut trouble);
            }
        }
        batch.unstarted.append(&mut waiting);
        while trouble.is_none()
            && batch.jobs.len() < MAX_BATCH
            && self.clock.monotonic().saturating_sub(begun) < MAX_WORK
        {
            match self.inbox.try_recv() {
                Ok(Message::Work { job, .. }) => batch.run(&self.conn, job, &mut trouble),
                Ok(other) => {
                    left = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        if trouble.is_none() {
            let outcome = self.conn.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
            trouble = outcome.err();
        }
        match trouble {
            None => self.committed(batch, self.conn.total_changes() != changes),
            Some(error) => self.failed(batch, &error),
        }
        left
    }

    fn committed(&mut self, batch: Batch, wrote: bool) {
        let requests = batch.jobs.len() as u64;
        self.figures.requests.fetch_add(requests, Ordering::Relaxed);
        if wrote {
            self.figures.commits.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(sink) = &self.sink
            && !batch.out.is_empty()
        {
            sink.committed(batch.out);
        }
        for (job, outcome) in batch.jobs {
            job.answer(outcome);
        }
        let pages = self.log_pages.load(Ordering::Relaxed);
        if pages >= CHECKPOINT_NOW || (pages >= CHECKPOINT_PAGES && self.lazy.is_empty()) {
            self.checkpoint("PASSIVE");
        }
    }

    fn failed(&mut self, batch: Batch, error: &rusqlite::Error) {
        if !self.conn.is_autocommit() {
            // If even this fails, the next BEGIN says so and its requests are refused.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
        let (severity, error) = self.classify(error);
        if severity == Severity::Doubt {
            self.retired = Some(error.clone());
        }
        for (job, _) in batch.jobs {
            job.answer(Err(error.clone()));
        }
        for job in batch.unstarted {
            job.answer(Err(error.clone()));
        }
    }

    fn classify(&self, error: &rusqlite::Error) -> (Severity, Error) {
        let path = self.path.clone().unwrap_or_else(|| "memory".into());
        classify(error, &path, || open::is_full(&path))
    }

    /// Writes the log back into the file. A reader that holds it up is no error: the next one
    /// succeeds. Any failed write or sync is.
    fn checkpoint(&mut self, mode: &str) {
        self.log_pages.store(0, Ordering::Relaxed);
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        match self.conn.query_row(&sql, [], |row| row.get::<_, i64>(0)) {
            Ok(_) => self.checkpoint_fails = false,
            Err(error) => {
                let (severity, error) = self.classify(&error);
                if !std::mem::replace(&mut self.checkpoint_fails, true) {
                    tracing::error!(error = %error, "store_checkpoint_failed");
                }
                if severity == Severity::Doubt {
                    self.retired = Some(error);
                }
            }
        }
    }

    fn close(&mut self) -> Result<()> {
        if let Some(error) = &self.retired {
            return Err(error.clone());
        }
        let Some(path) = self.path.clone() else { return Ok(()) };
        // A reader in the middle of its look leaves the log where it is; the next start uses it.
        let gives_way = self.conn.busy_timeout(GIVES_WAY);
        gives_way.map_err(|error| self.classify(&error).1)?;
        self.checkpoint("TRUNCATE");
        match &self.retired {
            Some(error) => Err(error.clone()),
            None => open::mark_clean(&path),
        }
    }
}

/// The requests of one transaction.
#[derive(Default)]
struct Batch {
    jobs: Vec<(Box<dyn Job>, Result<()>)>,
    unstarted: Vec<Box<dyn Job>>,
    out: Vec<Committed>,
}

impl Batch {
    /// Runs one request so that it fails alone. Sets `trouble` when the transaction as a whole is lost.
    ///
    /// The first one needs no savepoint: nothing is lost if the whole transaction begins again. That
    /// spares a lone request the copies of pages a savepoint keeps, which go to a file when they are many.
    fn run(&mut self, conn: &Connection, mut job: Box<dyn Job>, trouble: &mut Option<rusqlite::Error>) {
        if trouble.is_some() {
            self.unstarted.push(job);
            return;
        }
        let first = self.jobs.is_empty();
        let mut txn = Txn::new(conn);
        let outcome = if first { Ok(()) } else { statement(conn, "SAVEPOINT request").map_err(Fail::Sql) };
        let ended = match outcome.and_then(|()| job.run(&mut txn)) {
            Ok(()) if first => Ok(Ok(())),
            Ok(()) => statement(conn, "RELEASE request").map(|()| Ok(())),
            Err(fail) => undo(conn, fail, first),
        };
        match ended {
            Ok(Ok(())) => {
                self.out.append(&mut txn.out);
                self.jobs.push((job, Ok(())));
            }
            Ok(Err(error)) => self.jobs.push((job, Err(error))),
            Err(error) => {
                self.unstarted.push(job);
                *trouble = Some(error);
            }
        }
    }
}

/// Takes back what a request did. An engine error that concerns the file, or that has undone the
/// whole transaction, is handed on; everything else is the request's own.
fn undo(conn: &Connection, fail: Fail, first: bool) -> rusqlite::Result<Result<()>> {
    let own = match fail {
        Fail::Store(error) => error,
        Fail::Sql(error) if conn.is_autocommit() => return Err(error),
        Fail::Sql(error) => match classify(&error, "".as_ref(), || true) {
            (Severity::Refused, Error::Conflict(detail)) => Error::Conflict(detail),
            (Severity::Refused, Error::Damaged { detail, .. }) => Error::Conflict(detail),
            _ => return Err(error),
        },
    };
    if first {
        statement(conn, "ROLLBACK")?;
        statement(conn, "BEGIN IMMEDIATE")?;
    } else {
        statement(conn, "ROLLBACK TO request")?;
        statement(conn, "RELEASE request")?;
    }
    Ok(Err(own))
}

fn statement(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(|_| ())
}
