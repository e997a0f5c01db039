//! The store: the only commit point of the daemon. Cursors, mandates, the queue, steps with
//! their results, usage, the day ledger, events and the text of every WAL line change together
//! or not at all.
//!
//! Everything here is plain synchronous code on one named writer thread that drains all waiting
//! requests into one commit. Callers get a [`Pending`], which async code awaits and runner
//! threads wait for. Every operation is one short transaction, so that another engine can
//! implement the trait; nothing authoritative lives in memory.

mod generations;
mod pending;
mod rows;
mod sink;
mod sqlite;
mod types;
pub mod views;

pub use generations::*;
pub use pending::{Pending, Promise};
pub use rows::*;
pub use sink::{CommitSink, Committed, WalHead};
pub use sqlite::{OpenOptions, SqliteStore, maintenance};
pub use types::*;

use chrono::{DateTime, Utc};

/// What can go wrong, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No space or quota left; nothing changed, the request can be made again later.
    #[error("{path}: disk full or quota reached; free some space, work waits until then")]
    Full {
        /// The store's file.
        path: String,
    },
    /// The directory or file cannot be written; nothing changed.
    #[error("{path}: not writable ({detail})")]
    ReadOnly {
        /// The store's file.
        path: String,
        /// The system's words.
        detail: String,
    },
    /// A commit or sync failed: what was acknowledged before stands, nothing is accepted any more.
    #[error("{path}: sync failed ({detail}); the daemon stops, the next start checks the store")]
    SyncFailed {
        /// The store's file.
        path: String,
        /// The system's words.
        detail: String,
    },
    /// The file is not a sound store.
    #[error("{path}: store damaged ({detail}); {remedy}")]
    Damaged {
        /// The store's file.
        path: String,
        /// What was found.
        detail: String,
        /// What to do.
        remedy: String,
    },
    /// The file was written by a newer version.
    #[error("{path}: store schema {found} is newer than {known}; use a newer kairos")]
    Newer {
        /// The store's file.
        path: String,
        /// Its schema.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// No such mandate, schedule or occurrence.
    #[error("{kind} {name:?} not found")]
    NotFound {
        /// `mandate`, `schedule`, `occurrence`.
        kind: &'static str,
        /// What was asked for.
        name: String,
    },
    /// The state of the thing does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The request itself makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The writer is gone: it was closed, or retired after a failed sync.
    #[error("store is closed")]
    Closed,
}

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

/// The commit point. All methods may be called from any thread; those that give a [`Pending`]
/// return at once.
pub trait Store: Send + Sync + 'static {
    // --- boot and shutdown -------------------------------------------------------------

    /// Boot is recovery: open reservations become `unknown` and are counted, each running
    /// mandate is handed back to be continued from its first step without a result, and one
    /// that ran in [`CRASH_LOOP_BOOTS`] boots that died goes to review.
    fn recover(&self, request: RecoverRequest) -> Pending<Recovered>;
    /// Marks the stop as clean and closes the writer after everything queued is durable.
    fn close(&self) -> Pending<()>;

    // --- schedules -----------------------------------------------------------------------

    /// Registers schedules that are new, or whose rule changed, with the cursor the caller decided on.
    /// A cursor before the stored one (the clock was set back) takes missed runs that end after it
    /// back; what is left of a run across it comes in [`Adopt::missed`]. Fires stay.
    fn adopt(&self, schedules: Vec<Adopt>) -> Pending<()>;
    /// Records evaluations: cursors, occurrences, mandates, and, in the same commit, the start
    /// of cycles if `claim` is given. An evaluation whose `expect_cursor` is not the stored one, or whose
    /// schedule is paused, is left out and reported as stale. A fire whose occurrence has a mandate
    /// already is left out in silence. Times to be skipped that the new cursor has passed are forgotten.
    fn fire(&self, request: FireRequest) -> Pending<FireOutcome>;
    /// Pauses a schedule. Its occurrences are recorded as `paused` when it goes on.
    fn pause_schedule(&self, pause: PauseSchedule) -> Pending<()>;
    /// Ends a pause: the caller gives the new cursor and what was missed.
    fn resume_schedule(&self, resume: ResumeSchedule) -> Pending<()>;
    /// Leaves out exactly one nominal time; reason `paused`.
    fn skip_next(&self, schedule: String, nominal: DateTime<Utc>) -> Pending<()>;

    /// Records an event that no other change of the store brings along.
    fn event(&self, event: NewEvent) -> Pending<()>;

    // --- mandates --------------------------------------------------------------------------

    /// Makes one by hand (also trigger and backfill). The same client request id gives the same mandate.
    fn add(&self, mandate: NewMandate) -> Pending<Added>;
    /// Starts what may start: in queue order, one per overlap key, within the budget.
    fn claim(&self, request: ClaimRequest) -> Pending<ClaimOutcome>;
    /// Gives a claimed cycle back as if it had not started; the mandate waits with that reason.
    fn unstart(&self, mandate: String, cycle: u32, attempt: u32, reason: String) -> Pending<()>;
    /// Sets the reason why queued mandates of a runner wait; written only when it changes.
    fn note_wait(&self, runner: String, reason: Option<String>) -> Pending<()>;
    /// Ends a cycle: usage, state, what follows, and, in the same commit, the start of the next ones.
    fn finish(&self, request: FinishRequest) -> Pending<Finished>;
    /// A person's command on one mandate.
    fn command(&self, id: String, command: MandateCommand, now: DateTime<Utc>) -> Pending<Commanded>;

    // --- steps of a running cycle -----------------------------------------------------------

    /// Commits a step's intent and reservation. A step that is there already without a result is
    /// begun again, with a fresh reservation. All earlier settles of any mandate are part of this commit or an earlier one.
    fn begin_step(&self, step: BeginStep) -> Pending<BegunStep>;
    /// Hands in a step's result. Lazy: durable with the next commit, within [`LAZY_FLUSH`] at the latest.
    fn settle_step(&self, step: SettleStep) -> Pending<()>;
    /// Hands in a note of a running cycle: a phase transition, usage delta, answer of `now`. Lazy likewise.
    fn note(&self, note: CycleNote) -> Pending<()>;
    /// Answers when everything that was handed in before has been answered, lazy requests included;
    /// writes nothing itself.
    fn flush(&self) -> Pending<()> {
        self.note_wait(String::new(), None)
    }

    // --- reading (its own read-only connection; no snapshot is held past the call) ----------

    /// Reserved and spent of one day.
    fn day(&self, day: &str) -> Result<DayTotals>;
    /// State of every schedule ever seen.
    fn schedules(&self) -> Result<Vec<ScheduleState>>;
    /// State of one schedule, if it was ever seen.
    fn schedule(&self, name: &str) -> Result<Option<ScheduleState>>;
    /// Nominal times that fired and lie after their schedule's cursor, because the clock was set
    /// back since. Costs nothing unless a cursor ever went back.
    fn settled_ahead(&self) -> Result<Vec<(String, DateTime<Utc>)>>;
    /// Mandates that match, newest first unless the filter says otherwise.
    fn mandates(&self, filter: &MandateFilter) -> Result<Vec<MandateRow>>;
    /// One mandate.
    fn mandate(&self, id: &str) -> Result<MandateRow>;
    /// Its cycles, oldest first, one row an attempt.
    fn cycles(&self, id: &str) -> Result<Vec<CycleRow>>;
    /// Its steps, oldest first.
    fn steps(&self, id: &str) -> Result<Vec<StepRow>>;
    /// The outcome of one occurrence.
    fn occurrence(&self, schedule: &str, nominal: DateTime<Utc>) -> Result<OccurrenceRow>;
    /// Outcomes of a schedule, newest first.
    fn occurrences(&self, schedule: &str, limit: usize) -> Result<Vec<OccurrenceRow>>;
    /// The WAL lines of a mandate, with their newlines left off, from sequence number `from`.
    fn wal_lines(&self, id: &str, from: u64) -> Result<Vec<String>>;
    /// Where the log of each mandate stands, of the open ones only if asked.
    fn wal_heads(&self, open_only: bool) -> Result<Vec<WalHead>>;
    /// How many are queued and which run, the longest running first.
    fn counts(&self) -> Result<Counts>;
    /// Events after `after`, oldest first.
    fn events(&self, after: i64, limit: usize) -> Result<Vec<EventRow>>;
    /// Commits and syncs since the store was opened.
    fn stats(&self) -> StoreStats;
}
