//! What readers of the store get: rows and counts as they stand. Plain data.

use chrono::{DateTime, Utc};
use kairos_plugin_api::Usage;
use serde::Serialize;
use serde_json::Value;

use super::types::{Origin, StepKind, StepState};
use crate::domain::mandate::{CycleStatus, MandateState};
use crate::domain::schedule::MandateBounds;

/// One mandate as the store has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MandateRow {
    /// Its id.
    pub id: String,
    /// Its schedule.
    pub schedule: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
    /// Its runner.
    pub runner: String,
    /// Its goal.
    pub goal: String,
    /// Its scope.
    pub scope: Option<String>,
    /// Where it stands.
    pub state: MandateState,
    /// Why.
    pub reason: Option<String>,
    /// When it was due.
    pub nominal_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Earliest start.
    pub not_before: Option<DateTime<Utc>>,
    /// Number of its current or last cycle; 0 before the first.
    pub cycle: u32,
    /// Bounds.
    pub bounds: MandateBounds,
}

/// Which mandates.
#[derive(Clone, Debug, Default)]
pub struct MandateFilter {
    /// Only these states.
    pub states: Vec<MandateState>,
    /// Only of this schedule.
    pub schedule: Option<String>,
    /// Created at or after.
    pub since: Option<DateTime<Utc>>,
    /// Created before.
    pub until: Option<DateTime<Utc>>,
    /// At most so many; 0 means all.
    pub limit: usize,
}

/// One attempt of a cycle.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CycleRow {
    /// Number, from 1.
    pub cycle: u32,
    /// Try, from 1.
    pub attempt: u32,
    /// Its runner.
    pub runner: String,
    /// The generation that ran it.
    pub generation: String,
    /// How it ended; none while it runs.
    pub status: Option<CycleStatus>,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// What was booked on it.
    pub usage: Usage,
    /// The runner's one line.
    pub summary: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// One step of a cycle.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRow {
    /// Which cycle.
    pub cycle: u32,
    /// Position in it.
    pub seq: u32,
    /// Kind.
    pub kind: StepKind,
    /// Name.
    pub name: String,
    /// Phase.
    pub phase: Option<String>,
    /// Where it stands.
    pub state: StepState,
    /// Idempotency key.
    pub key: String,
    /// Hash of the parameters.
    pub params_hash: String,
    /// See [`BeginStep::intent`](super::BeginStep::intent).
    pub intent: Value,
    /// The recorded answer.
    pub result: Option<Value>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When its result came.
    pub ended_at: Option<DateTime<Utc>>,
}

/// One run of occurrences of equal outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OccurrenceRow {
    /// Its schedule.
    pub schedule: String,
    /// First nominal time.
    pub from: DateTime<Utc>,
    /// Last nominal time.
    pub to: DateTime<Utc>,
    /// How many.
    pub count: u64,
    /// `fired` or `missed`.
    pub outcome: String,
    /// Reason of a miss.
    pub reason: Option<String>,
    /// The mandate of a fire.
    pub mandate: Option<String>,
    /// When this was decided.
    pub decided_at: DateTime<Utc>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventRow {
    /// Grows without gaps being promised.
    pub id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// A constant name, `mandate_started` for example.
    pub kind: String,
    /// Its schedule.
    pub schedule: Option<String>,
    /// Its mandate.
    pub mandate: Option<String>,
    /// The rest.
    pub details: Value,
}

/// A glance at the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Waiting in the queue.
    pub queued: u64,
    /// Running, longest first.
    pub running: Vec<String>,
    /// Waiting for something else than a slot.
    pub paused: u64,
    /// Waiting for a person.
    pub review: u64,
}

/// What the store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// Transactions committed.
    pub commits: u64,
    /// Requests in them.
    pub requests: u64,
}
