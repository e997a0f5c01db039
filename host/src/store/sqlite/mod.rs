//! The store on SQLite: one file, one writing connection on a thread of its own, readers beside it.
//!
//! ```text
//! Store method -> closure -> writer thread: one commit for all that wait -> sink -> Pending
//!              -> reader:    one look at what is committed
//! ```

mod add;
mod claim;
mod commands;
mod fail;
mod finish;
mod fire;
mod generations;
mod ledger;
mod lines;
pub mod maintenance;
mod open;
mod queue;
mod read;
mod recent;
mod recover;
mod row;
mod schedules;
mod schema;
mod steps;
mod txn;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use rusqlite::Connection;

use self::fail::Res;
use self::txn::Txn;
use self::writer::{Figures, Message, Request, Writer};
use super::*;

/// Readers that are kept open; more are opened when more look at once.
const READERS_KEPT: usize = 4;

/// How to open a store.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// The file; its directory is made if it is missing.
    pub path: PathBuf,
    /// Hears of every commit.
    pub sink: Option<Arc<dyn CommitSink>>,
}

/// The store. Cheap to clone; the last clone that goes without a close leaves the file as a crash would.
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    /// `None` in memory.
    path: Option<PathBuf>,
    /// `None` when opened for reading only.
    writer: Option<Sender<Message>>,
    readers: Mutex<Vec<Connection>>,
    figures: Arc<Figures>,
    /// The process before this one did not close the store.
    unclean: AtomicBool,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file for writing; the caller holds the lock of its directory.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Newer`], [`Error::ReadOnly`], [`Error::Full`]. The file is never replaced.
    pub fn open(options: OpenOptions) -> Result<Self> {
        let opened = open::write(&options.path)?;
        let unclean = !opened.clean && !opened.new;
        Self::serve(opened.conn, Some(options.path), options.sink, unclean)
    }

    /// A store in memory that works alike, for simulation and tests.
    ///
    /// # Errors
    /// Only when memory or threads are short.
    pub fn in_memory() -> Result<Self> {
        Self::in_memory_with(None)
    }

    /// As [`SqliteStore::in_memory`], with a sink.
    ///
    /// # Errors
    /// As there.
    pub fn in_memory_with(sink: Option<Arc<dyn CommitSink>>) -> Result<Self> {
        Self::serve(open::memory()?, None, sink, false)
    }

    /// Opens the file for looking only, beside a daemon or without one. Requests that write are
    /// answered with [`Error::Closed`].
    ///
    /// # Errors
    /// As [`SqliteStore::open`]; [`Error::NotFound`] when there is no file.
    pub fn read_only(path: &Path) -> Result<Self> {
        let reader = open::read(path)?;
        Ok(Self(Arc::new(Inner {
            path: Some(path.to_owned()),
            writer: None,
            readers: Mutex::new(vec![reader]),
            figures: Arc::default(),
            unclean: AtomicBool::new(false),
        })))
    }

    fn serve(
        conn: Connection,
        path: Option<PathBuf>,
        sink: Option<Arc<dyn CommitSink>>,
        unclean: bool,
    ) -> Result<Self> {
        // Unbounded on purpose: whoever asks waits for the answer, so the callers bound it.
        let (sender, inbox) = channel();
        let figures = Arc::new(Figures::default());
        let shown = path.clone().unwrap_or_else(|| "memory".into());
        let writer = Writer::new(conn, path.clone(), inbox, sink, Arc::clone(&figures))
            .map_err(|error| open::to_error(error.into(), &shown))?;
        std::thread::Builder::new()
            .name("kairos-store".to_owned())
            .spawn(move || writer.serve())
            .map_err(|error| Error::Conflict(format!("no thread for the store: {error}")))?;
        Ok(Self(Arc::new(Inner {
            path,
            writer: Some(sender),
            readers: Mutex::new(Vec::new()),
            figures,
            unclean: AtomicBool::new(unclean),
        })))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// True when the process before this one did not close the store: the caller should have
    /// [`SqliteStore::full_check`] run in the background.
    #[must_use]
    pub fn was_unclean(&self) -> bool {
        self.0.unclean.load(Ordering::Relaxed)
    }

    /// Looks for damage in the whole file, on a reader of its own. Blocks, for long on a large one.
    ///
    /// # Errors
    /// [`Error::Damaged`] with what was found.
    pub fn full_check(path: &Path) -> Result<()> {
        open::full_check(path)
    }

    /// Ends the writer as a crash would: what was acknowledged stays, lazy requests that still
    /// wait are lost. Every handle answers [`Error::Closed`] from then on. Gives a store on the
    /// same data, not recovered yet; for simulation.
    ///
    /// # Errors
    /// [`Error::Closed`] when it is closed already.
    pub fn crash(&self, sink: Option<Arc<dyn CommitSink>>) -> Result<Self> {
        let (give, taken) = channel();
        self.send(Message::Crash(give))?;
        let conn = taken.recv().map_err(|_| Error::Closed)?;
        match &self.0.path {
            None => Self::serve(conn, None, sink, true),
            Some(path) => {
                drop(conn);
                Self::open(OpenOptions { path: path.clone(), sink })
            }
        }
    }

    fn send(&self, message: Message) -> Result<()> {
        let writer = self.0.writer.as_ref().ok_or(Error::Closed)?;
        writer.send(message).map_err(|_| Error::Closed)
    }

    /// Runs work in a transaction of the writer. Work that does much is split: a request should
    /// stay under 10 ms, or everybody waits.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Txn<'_>) -> Res<T> + Send + 'static,
    ) -> Pending<T> {
        self.request(work, false)
    }

    fn request<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Txn<'_>) -> Res<T> + Send + 'static,
        lazy: bool,
    ) -> Pending<T> {
        let (promise, pending) = Pending::pair();
        // When the writer is gone the promise is dropped with the message, and answers `Closed`.
        let _ = self.send(Message::Work { job: Box::new(Request::new(work, promise)), lazy });
        pending
    }

    /// Looks at what is committed.
    pub(crate) fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> Res<T> + Send + 'static,
    ) -> Result<T> {
        let Some(path) = &self.0.path else {
            let (give, taken) = channel();
            self.send(Message::Look(Box::new(move |conn| {
                // Whoever asked is waiting for it.
                let _ = give.send(look(conn));
            })))?;
            let answer = taken.recv().map_err(|_| Error::Closed)?;
            return answer.map_err(|fail| open::to_error(fail, Path::new("memory")));
        };
        let kept = self.0.readers.lock().expect("no reader panics while it holds the list").pop();
        let conn = kept.map_or_else(|| open::read(path), Ok)?;
        let answer = look(&conn);
        let mut readers = self.0.readers.lock().expect("no reader panics while it holds the list");
        if readers.len() < READERS_KEPT {
            readers.push(conn);
        }
        drop(readers);
        answer.map_err(|fail| open::to_error(fail, path))
    }
}

impl Store for SqliteStore {
    fn recover(&self, request: RecoverRequest) -> Pending<Recovered> {
        let unclean = self.was_unclean();
        self.run(move |txn| recover::recover(txn, &request, unclean))
    }

    fn close(&self) -> Pending<()> {
        let (promise, pending) = Pending::pair();
        let _ = self.send(Message::Close(promise));
        pending
    }

    fn adopt(&self, adopt: Vec<Adopt>) -> Pending<()> {
        self.run(move |txn| schedules::adopt(txn, &adopt))
    }

    fn fire(&self, request: FireRequest) -> Pending<FireOutcome> {
        self.run(move |txn| fire::fire(txn, &request))
    }

    fn pause_schedule(&self, pause: PauseSchedule) -> Pending<()> {
        self.run(move |txn| schedules::pause(txn, pause))
    }

    fn resume_schedule(&self, resume: ResumeSchedule) -> Pending<()> {
        self.run(move |txn| schedules::resume(txn, &resume))
    }

    fn skip_next(&self, schedule: String, nominal: DateTime<Utc>) -> Pending<()> {
        self.run(move |txn| schedules::skip_next(txn, &schedule, nominal))
    }

    fn event(&self, event: NewEvent) -> Pending<()> {
        self.run(move |txn| {
            let about = txn::About { schedule: event.schedule.as_deref(), mandate: event.mandate.as_deref() };
            txn.event(event.at, event.kind, about, event.details)
        })
    }

    fn add(&self, mandate: NewMandate) -> Pending<Added> {
        self.run(move |txn| add::add(txn, &mandate))
    }

    fn claim(&self, request: ClaimRequest) -> Pending<ClaimOutcome> {
        self.run(move |txn| claim::claim(txn, &request))
    }

    fn unstart(&self, mandate: String, cycle: u32, attempt: u32, reason: String) -> Pending<()> {
        self.run(move |txn| finish::unstart(txn, &mandate, cycle, attempt, reason))
    }

    fn note_wait(&self, runner: String, reason: Option<String>) -> Pending<()> {
        self.run(move |txn| commands::note_wait(txn, &runner, reason.as_deref()))
    }

    fn finish(&self, request: FinishRequest) -> Pending<Finished> {
        self.run(move |txn| finish::finish(txn, &request))
    }

    fn command(&self, id: String, command: MandateCommand, now: DateTime<Utc>) -> Pending<Commanded> {
        self.run(move |txn| commands::command(txn, &id, &command, now))
    }

    fn begin_step(&self, step: BeginStep) -> Pending<BegunStep> {
        self.run(move |txn| steps::begin(txn, &step))
    }

    fn settle_step(&self, step: SettleStep) -> Pending<()> {
        self.request(move |txn| steps::settle(txn, &step), true)
    }

    fn note(&self, note: CycleNote) -> Pending<()> {
        self.request(move |txn| steps::note(txn, &note), true)
    }

    fn day(&self, day: &str) -> Result<DayTotals> {
        let day = day.to_owned();
        self.look(move |conn| read::day(conn, &day))
    }

    fn schedules(&self) -> Result<Vec<ScheduleState>> {
        self.look(read::schedules)
    }

    fn schedule(&self, name: &str) -> Result<Option<ScheduleState>> {
        let name = name.to_owned();
        self.look(move |conn| Ok(schedules::find(conn, &name)?.map(|known| known.state)))
    }

    fn settled_ahead(&self) -> Result<Vec<(String, DateTime<Utc>)>> {
        self.look(schedules::settled_ahead)
    }

    fn mandates(&self, filter: &MandateFilter) -> Result<Vec<MandateRow>> {
        let filter = filter.clone();
        self.look(move |conn| read::mandates(conn, &filter))
    }

    fn mandate(&self, id: &str) -> Result<MandateRow> {
        let id = id.to_owned();
        self.look(move |conn| read::mandate(conn, &id))
    }

    fn cycles(&self, id: &str) -> Result<Vec<CycleRow>> {
        let id = id.to_owned();
        self.look(move |conn| read::cycles(conn, &id))
    }

    fn steps(&self, id: &str) -> Result<Vec<StepRow>> {
        let id = id.to_owned();
        self.look(move |conn| read::steps(conn, &id))
    }

    fn occurrence(&self, schedule: &str, nominal: DateTime<Utc>) -> Result<OccurrenceRow> {
        let schedule = schedule.to_owned();
        self.look(move |conn| read::occurrence(conn, &schedule, nominal))
    }

    fn occurrences(&self, schedule: &str, limit: usize) -> Result<Vec<OccurrenceRow>> {
        let schedule = schedule.to_owned();
        self.look(move |conn| read::occurrences(conn, &schedule, limit))
    }

    fn wal_lines(&self, id: &str, from: u64) -> Result<Vec<String>> {
        let id = id.to_owned();
        self.look(move |conn| read::wal_lines(conn, &id, from))
    }

    fn wal_heads(&self, open_only: bool) -> Result<Vec<WalHead>> {
        self.look(move |conn| read::wal_heads(conn, open_only))
    }

    fn counts(&self) -> Result<Counts> {
        self.look(read::counts)
    }

    fn events(&self, after: i64, limit: usize) -> Result<Vec<EventRow>> {
        self.look(move |conn| read::events(conn, after, limit))
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            commits: self.0.figures.commits.load(Ordering::Relaxed),
            requests: self.0.figures.requests.load(Ordering::Relaxed),
        }
    }
}
