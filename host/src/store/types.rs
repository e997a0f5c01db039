//! What is asked of the store and what it answers; what readers get is in `rows`. Plain data.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kairos_plugin_api::{Mandate, Report, Usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::rows::StepRow;
pub use crate::domain::budget::{BudgetBlock, DayTotals, Limits};
use crate::domain::mandate::{CycleEnd, MandateState};
use crate::domain::schedule::{MandateBounds, Overlap, ScheduleSpec};

/// A settled step or note waits at most this long for a commit to ride on.
pub const LAZY_FLUSH: Duration = Duration::from_millis(50);
/// A mandate that ran in so many consecutive boots that died goes to review, reason `crash_loop`.
pub const CRASH_LOOP_BOOTS: u32 = crate::domain::mandate::CRASH_LOOP / crate::domain::mandate::BOOT_DEATH;

/// The day of the ledger and its limits, as the caller's clock and configuration have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetGate {
    /// `YYYY-MM-DD` in the budget's zone.
    pub day: String,
    /// The limits.
    pub limits: Limits,
}

/// What the store needs to know of a runner to start a cycle on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerOffer {
    /// The generation that new cycles start on.
    pub generation: String,
    /// True plans five phase steps, else one step.
    pub phases: bool,
    /// Values of the mandates' parameter `command` that can be served now, the empty text for none;
    /// absent when the runner takes every mandate.
    pub commands: Option<Vec<String>>,
}

/// Runners that can take work now, by name.
pub type Offers = Arc<HashMap<String, RunnerOffer>>;

/// Asks for work.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// Wall time.
    pub now: DateTime<Utc>,
    /// Most cycles to start.
    pub max: usize,
    /// Day and limits; none means no budget is kept.
    pub gate: Option<BudgetGate>,
    /// Mandates of other runners wait.
    pub offers: Offers,
}

/// What was started.
#[derive(Clone, Debug, Default)]
pub struct ClaimOutcome {
    /// Cycles to run now, in queue order.
    pub claimed: Vec<ClaimedCycle>,
    /// Set when the budget held work back.
    pub blocked: Option<BudgetBlock>,
    /// When the next queued mandate becomes ready that is not ready yet.
    pub next_ready: Option<DateTime<Utc>>,
}

/// One cycle that a slot owns from now on. Also what recovery hands back.
#[derive(Clone, Debug)]
pub struct ClaimedCycle {
    /// As the runner will see it: id, cycle, attempt and all.
    pub mandate: Mandate,
    /// Name of the runner.
    pub runner: String,
    /// The generation that began this cycle and must continue it.
    pub generation: String,
    /// Steps recorded so far, in order: to be replayed.
    pub steps: Vec<StepRow>,
    /// The runner's state as of the cycle's start.
    pub state: HashMap<String, Value>,
    /// Usage already booked on this cycle by earlier attempts.
    pub booked: Usage,
}

/// An evaluation of one schedule over `(expect_cursor, cursor]`.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The rule; overlap policy, key, runner and bounds are read from it.
    pub spec: ScheduleSpec,
    /// The stored cursor this was computed from.
    pub expect_cursor: DateTime<Utc>,
    /// The cursor after it.
    pub cursor: DateTime<Utc>,
    /// What fires, oldest first.
    pub fires: Vec<Fire>,
    /// What does not, and why.
    pub missed: Vec<MissedRun>,
}

/// One occurrence that fires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fire {
    /// Its nominal time.
    pub nominal: DateTime<Utc>,
    /// Earliest start: nominal plus jitter.
    pub not_before: DateTime<Utc>,
    /// True when it makes up for missed ones.
    pub catch_up: bool,
}

/// A run of occurrences with one outcome other than firing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissedRun {
    /// First nominal time of the run.
    pub from: DateTime<Utc>,
    /// Last nominal time of the run.
    pub to: DateTime<Utc>,
    /// How many.
    pub count: u64,
    /// `skip | coalesced | cap | stale | deadline | overlap | queue_full | budget | paused | edited`.
    pub reason: &'static str,
}

/// Records evaluations.
#[derive(Clone, Debug)]
pub struct FireRequest {
    /// Wall time: the actual time of the fires.
    pub now: DateTime<Utc>,
    /// At most a few hundred; the caller splits.
    pub evaluations: Vec<Evaluation>,
    /// Start cycles in the same commit.
    pub claim: Option<ClaimRequest>,
    /// For `on_budget: skip`, also when nothing is claimed.
    pub gate: Option<BudgetGate>,
}

/// What became of them.
#[derive(Clone, Debug, Default)]
pub struct FireOutcome {
    /// New mandates: (schedule, mandate id, nominal).
    pub fired: Vec<(String, String, DateTime<Utc>)>,
    /// Occurrences that were dropped in the transaction: (schedule, nominal, reason).
    pub dropped: Vec<(String, DateTime<Utc>, &'static str)>,
    /// Running mandates that a `replace` asks to stop.
    pub cancel: Vec<String>,
    /// Schedules whose stored cursor was another; read it again.
    pub stale: Vec<String>,
    /// What the claim started.
    pub claim: ClaimOutcome,
}

/// A schedule to register.
#[derive(Clone, Debug)]
pub struct Adopt {
    /// Its name.
    pub name: String,
    /// [`ScheduleSpec::rule_id`].
    pub rule: String,
    /// Cursor from now on.
    pub cursor: DateTime<Utc>,
    /// Occurrences of the former rule that end here.
    pub missed: Vec<MissedRun>,
}

/// What is known of a schedule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScheduleState {
    /// Its name.
    pub name: String,
    /// The rule that the cursor belongs to.
    pub rule: String,
    /// Occurrences up to here have their outcome.
    pub cursor: DateTime<Utc>,
    /// Nominal time of the last fire.
    pub last_nominal: Option<DateTime<Utc>>,
    /// When it was fired.
    pub last_fired: Option<DateTime<Utc>>,
    /// Set while paused.
    pub pause: Option<Pause>,
    /// Nominal times that are to be left out.
    pub skip: Vec<DateTime<Utc>>,
    /// Mandates in a row that ended `failed`.
    pub failures: u32,
}

/// A pause of a schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pause {
    /// Since when.
    pub since: DateTime<Utc>,
    /// Ends by itself then.
    pub until: Option<DateTime<Utc>>,
    /// Why, for people.
    pub note: Option<String>,
    /// Who: `operator`, `failures`, `config` (`enabled: false`).
    pub by: String,
}

/// Pauses a schedule.
#[derive(Clone, Debug)]
pub struct PauseSchedule {
    /// Which.
    pub name: String,
    /// The pause.
    pub pause: Pause,
}

/// Ends a pause.
#[derive(Clone, Debug)]
pub struct ResumeSchedule {
    /// Which.
    pub name: String,
    /// Cursor from now on.
    pub cursor: DateTime<Utc>,
    /// The occurrences of the pause.
    pub missed: Vec<MissedRun>,
}

/// Where a mandate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A schedule fired it.
    Schedule,
    /// Somebody made it.
    Manual,
    /// A backfill of a schedule's past.
    Backfill,
}

/// A mandate made by hand, by a trigger or by a backfill.
#[derive(Clone, Debug)]
pub struct NewMandate {
    /// Made by the caller, see [`crate::domain::ids`]; a backfill's is derived in the store with the first free ordinal.
    pub id: String,
    /// Where it comes from.
    pub origin: Origin,
    /// The client's own id for this request, unique.
    pub request_id: Option<String>,
    /// Its schedule, for a trigger or backfill.
    pub schedule: Option<String>,
    /// Its nominal time.
    pub nominal: Option<DateTime<Utc>>,
    /// The goal.
    pub goal: String,
    /// Which runner.
    pub runner: String,
    /// Scope.
    pub scope: Option<String>,
    /// Overlap policy to apply; manual ones without a key never overlap.
    pub overlap: Overlap,
    /// Bounds.
    pub bounds: MandateBounds,
    /// A backfill of an occurrence that already has a mandate is refused unless this is set.
    pub again: bool,
    /// Wall time.
    pub now: DateTime<Utc>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// Its id.
    pub id: String,
    /// False when the client's request id was already known.
    pub created: bool,
    /// Running mandates that a `replace` asks to stop.
    pub cancel: Vec<String>,
}

/// Ends a cycle.
#[derive(Clone, Debug)]
pub struct FinishRequest {
    /// Which.
    pub mandate: String,
    /// Which cycle.
    pub cycle: u32,
    /// Which attempt.
    pub attempt: u32,
    /// Wall time.
    pub now: DateTime<Utc>,
    /// Day of the ledger for what is claimed here.
    pub day: String,
    /// How it ended.
    pub end: CycleEnd,
    /// More precise than the end alone: `crash_loop`, `diverged`, `deadline`.
    pub reason: Option<String>,
    /// The runner's report, if it gave one.
    pub report: Option<Report>,
    /// What went wrong.
    pub error: Option<String>,
    /// What the runner claims beyond what was metered and noted.
    pub claimed: Usage,
    /// The runner's state changes.
    pub state_puts: HashMap<String, Value>,
    /// Pause the schedule after so many failures in a row.
    pub pause_after_failures: Option<u32>,
    /// Start the next cycles in the same commit.
    pub claim: Option<ClaimRequest>,
}

/// What follows.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Where the mandate stands.
    pub state: MandateState,
    /// Why.
    pub reason: Option<String>,
    /// The cycle's total.
    pub usage: Usage,
    /// The schedule that was paused for its failures.
    pub auto_paused: Option<String>,
    /// What the claim started.
    pub claim: ClaimOutcome,
}

/// A person's command on a mandate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MandateCommand {
    /// Stop it: a waiting one ends `cancelled`, a running one is marked and asked to stop.
    Stop {
        /// Why.
        note: Option<String>,
    },
    /// Run an ended one again from its first cycle, as a new attempt.
    Retry,
    /// Let a paused one go on.
    Resume,
    /// End a paused one: a person said no to its proposal.
    Deny {
        /// Why.
        note: Option<String>,
    },
    /// End a paused one: its proposal ran out.
    Expire,
    /// End a review.
    Resolve {
        /// How.
        verdict: Resolution,
        /// Why; required.
        note: String,
    },
}

/// How a person ends a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It was done.
    Done,
    /// Do the step under review again, whatever the world says: it and all after it are forgotten.
    Redo,
    /// It failed.
    Fail,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commanded {
    /// Where it stands now.
    pub state: MandateState,
    /// True when a running cycle must be asked to stop.
    pub stop_running: bool,
}

/// The kind of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// An LLM call.
    Llm,
    /// A tool call.
    Tool,
    /// A proposal.
    Propose,
    /// An answer that is only recorded: `now`, `random`.
    Answer,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Its intent is committed, its result is not.
    Executing,
    /// Its result is recorded (a refusal of the tool is a result too).
    Done,
    /// Nobody can tell what happened; only a person can.
    NeedsReview,
}

/// Commits an effect's intent.
#[derive(Clone, Debug)]
pub struct BeginStep {
    /// Which mandate.
    pub mandate: String,
    /// Which cycle.
    pub cycle: u32,
    /// Which attempt.
    pub attempt: u32,
    /// Position in the cycle, from 1, over all kinds.
    pub seq: u32,
    /// Kind.
    pub kind: StepKind,
    /// Name: the tool's, or the provider's.
    pub name: String,
    /// Phase it belongs to, if the runner named one.
    pub phase: Option<String>,
    /// Idempotency key: hash of mandate, step and canonical parameters.
    pub key: String,
    /// `sha256-` of the canonical parameters.
    pub params_hash: String,
    /// What recovery needs to judge and redo it: parameters, target, pre and post hash. No secrets.
    pub intent: Value,
    /// What to reserve; checked against the gate in the same commit.
    pub reserve: Usage,
    /// Day and limits; none means no budget is kept.
    pub gate: Option<BudgetGate>,
    /// Wall time.
    pub now: DateTime<Utc>,
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum BegunStep {
    /// Do it.
    Begun,
    /// The budget does not allow it; nothing was recorded.
    Exhausted(BudgetBlock),
}

/// Records a step's result.
#[derive(Clone, Debug)]
pub struct SettleStep {
    /// Which mandate.
    pub mandate: String,
    /// Which cycle.
    pub cycle: u32,
    /// Which attempt; a straggler of an earlier one only corrects its usage.
    pub attempt: u32,
    /// Which step.
    pub seq: u32,
    /// `Done` or `NeedsReview`; or `Executing` when the effect was given up before it had a result
    /// (a cancelled call): its usage is booked and the step stays open, to be begun again.
    pub state: StepState,
    /// The JSON answer the runner sees, errors included.
    pub result: Value,
    /// Real usage; the reservation is released. `None` books the reservation as `unknown`.
    pub usage: Option<Usage>,
    /// True when recovery found the effect already landed.
    pub recovered: bool,
    /// Wall time.
    pub now: DateTime<Utc>,
}

/// Something of a running cycle that is recorded without a commit of its own.
#[derive(Clone, Debug)]
pub struct CycleNote {
    /// Which mandate.
    pub mandate: String,
    /// Which cycle.
    pub cycle: u32,
    /// Which attempt.
    pub attempt: u32,
    /// Wall time.
    pub now: DateTime<Utc>,
    /// What.
    pub what: NoteKind,
}

/// Kinds of notes.
#[derive(Clone, Debug)]
pub enum NoteKind {
    /// A phase begins; the one before it, if any, is completed. A re-run may announce a phase
    /// again that was already noted: nothing changes then.
    Phase(String),
    /// Usage that the host did not meter, with the ledger's day.
    Usage {
        /// How much.
        delta: Usage,
        /// Day of the ledger.
        day: String,
        /// Position in the cycle: the delta is also recorded as a finished step of kind `answer`,
        /// named `usage`, whose result is the delta, so that a re-run does not book it twice.
        /// `None` books only: the attempt had already ended.
        seq: Option<u32>,
    },
    /// An answer that a re-run must see again, recorded as a finished step of kind `answer`.
    Answer {
        /// Position in the cycle.
        seq: u32,
        /// `now`, `random`, or the name of an effect that was refused before it began.
        name: String,
        /// The answer, kept as the step's result.
        value: Value,
    },
}

/// Boot.
#[derive(Clone, Debug)]
pub struct RecoverRequest {
    /// Wall time.
    pub now: DateTime<Utc>,
}

/// What boot found.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// True when the last stop was not a clean one.
    pub unclean: bool,
    /// Mandates that were running, to be continued now; their attempt number has gone up.
    pub running: Vec<ClaimedCycle>,
    /// Calls whose outcome nobody knows; they are counted as spent.
    pub unknown_calls: u64,
    /// Mandates sent to review for crashing again and again.
    pub crash_loops: Vec<String>,
}

/// An event to be recorded by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// When.
    pub at: DateTime<Utc>,
    /// A constant name, `clock_stepped_back` for example.
    pub kind: &'static str,
    /// Its schedule.
    pub schedule: Option<String>,
    /// Its mandate.
    pub mandate: Option<String>,
    /// The rest.
    pub details: Value,
}
