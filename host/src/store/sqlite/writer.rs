//! The one thread that writes. It drains what waits into one transaction, each request in its own
//! savepoint so that one failure fails alone, and answers only after the commit has returned.
//! Requests are served in the order in which they came, lazy ones too; a transaction is bounded in
//! number and time, so that what is behind a crowd waits for no more than the crowd itself.
//!
//! ```text
//! requests -> [ BEGIN  sp(request) sp(request) ...  COMMIT ] -> sink -> answers
//! ```
//!
//! It must never acknowledge anything after a commit or sync that failed: it retires.

use std::collections::VecDeque;
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

/// Work that has arrived.
struct Waiting {
    job: Box<dyn Job>,
    lazy: bool,
}

/// What is to be done next.
enum Gathered {
    /// A transaction.
    Due,
    Look(Box<dyn FnOnce(&Connection) + Send>),
    Close(Promise<()>),
    Crash(Sender<Connection>),
    /// Every handle is gone.
    Gone,
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
    /// What has arrived and is in no transaction yet, in order.
    waiting: VecDeque<Waiting>,
    /// When the lazy work of `waiting` must be committed at the latest; zero when somebody waits for it.
    due: Duration,
    /// What is no work and was met by a transaction that took in what had arrived.
    left: Option<Message>,
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
            waiting: VecDeque::new(),
            due: Duration::ZERO,
            left: None,
            log_pages,
            checkpoint_fails: false,
            retired: None,
        })
    }

    /// Serves until it is closed or every handle is gone. Handles that go without a close leave
    /// the store as a crash would: what was acknowledged is there, lazy work that still waits is not.
    pub fn serve(mut self) {
        loop {
            match self.gather() {
                Gathered::Due => {
                    self.commit(true);
                }
                Gathered::Gone => return,
                Gathered::Look(look) => {
                    self.commit_before(false);
                    look(&self.conn);
                }
                Gathered::Close(promise) => {
                    // What comes in from now on goes the way of all that comes after a close.
                    self.commit_before(true);
                    promise.keep(self.close());
                    return;
                }
                Gathered::Crash(give) => {
                    self.commit_before(false);
                    // Nobody waits for it: the connection is dropped, as after a real crash.
                    let _ = give.send(self.conn);
                    return;
                }
            }
        }
    }

    /// Commits what has arrived and somebody waits for; what is only lazy may wait on, unless it is
    /// wanted `all`.
    fn commit_before(&mut self, all: bool) {
        let urgent = self.waiting.iter().rposition(|waiting| !waiting.lazy);
        let mut left = if all { self.waiting.len() } else { urgent.map_or(0, |last| last + 1) };
        while left > 0 {
            left = left.saturating_sub(self.commit(false));
        }
    }

    /// Takes in what arrives until something is to be done.
    fn gather(&mut self) -> Gathered {
        loop {
            let next = if let Some(left) = self.left.take() {
                Ok(left)
            } else if self.waiting.is_empty() {
                self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                // Its time comes also when new work keeps arriving.
                let time = self.due.saturating_sub(self.clock.monotonic());
                if time.is_zero() || self.waiting.len() >= MAX_BATCH {
                    return Gathered::Due;
                }
                self.inbox.recv_timeout(time)
            };
            match next {
                Ok(Message::Work { job, lazy }) => self.admit(job, lazy),
                Ok(Message::Look(look)) => return Gathered::Look(look),
                Ok(Message::Close(promise)) => return Gathered::Close(promise),
                Ok(Message::Crash(give)) => return Gathered::Crash(give),
                Err(RecvTimeoutError::Timeout) => return Gathered::Due,
                Err(RecvTimeoutError::Disconnected) => return Gathered::Gone,
            }
        }
    }

    fn admit(&mut self, job: Box<dyn Job>, lazy: bool) {
        if !lazy {
            self.due = Duration::ZERO;
        } else if self.waiting.is_empty() {
            self.due = self.clock.monotonic() + LAZY_FLUSH;
        }
        self.waiting.push_back(Waiting { job, lazy });
    }

    /// One transaction: what waits, then whatever has arrived if `also_new`, as far as the bounds
    /// go. Gives the number of requests that were answered.
    fn commit(&mut self, also_new: bool) -> usize {
        if let Some(error) = &self.retired {
            let answered = self.waiting.len();
            self.waiting.drain(..).for_each(|waiting| waiting.job.answer(Err(error.clone())));
            return answered;
        }
        let begun = self.clock.monotonic();
        let mut batch = Batch::default();
        let changes = self.conn.total_changes();
        let outcome = self.conn.prepare_cached("BEGIN IMMEDIATE").and_then(|mut begin| begin.execute([]));
        let mut trouble = outcome.err();
        while trouble.is_none()
            && batch.jobs.len() < MAX_BATCH
            && (batch.jobs.is_empty() || self.clock.monotonic().saturating_sub(begun) < MAX_WORK)
        {
            let job = match self.waiting.pop_front() {
                Some(waiting) => waiting.job,
                None if !also_new => break,
                None => match self.inbox.try_recv() {
                    Ok(Message::Work { job, .. }) => job,
                    Ok(other) => {
                        self.left = Some(other);
                        break;
                    }
                    Err(_) => break,
                },
            };
            batch.run(&self.conn, job, &mut trouble);
        }
        if trouble.is_none() {
            let outcome = self.conn.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
            trouble = outcome.err();
        }
        let answered = match trouble {
            None => self.committed(batch, self.conn.total_changes() != changes),
            Some(error) => {
                // What could not even begin would fare no better, and must not be tried for ever.
                batch.unstarted.extend(self.waiting.drain(..).map(|waiting| waiting.job));
                self.failed(batch, &error)
            }
        };
        // What is left waited before this one began.
        self.due = Duration::ZERO;
        answered
    }

    fn committed(&mut self, batch: Batch, wrote: bool) -> usize {
        let requests = batch.jobs.len();
        self.figures.requests.fetch_add(requests as u64, Ordering::Relaxed);
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
        if pages >= CHECKPOINT_NOW || (pages >= CHECKPOINT_PAGES && self.waiting.is_empty()) {
            self.checkpoint("PASSIVE");
        }
        requests
    }

    fn failed(&mut self, batch: Batch, error: &rusqlite::Error) -> usize {
        let requests = batch.jobs.len() + batch.unstarted.len();
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
        requests
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
