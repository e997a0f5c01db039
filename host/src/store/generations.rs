//! What the store keeps of runners' generations: their lives, and the recorded cycles that a
//! candidate is tried on. Plain data, and the requests that change and read it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kairos_plugin_api::{Mandate, Report, Usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Pending, Result, StepRow};
use crate::domain::generation::{GenerationEvent, GenerationState};
use crate::domain::handover::HandOver;
use crate::domain::mandate::{CycleStatus, MandateState};

/// Recorded cycles that are kept of each runner; older ones are forgotten with each that comes.
pub const RECENT_MAX: usize = 64;

/// Who lives in a slot, and how it came there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Life {
    /// The slot: the runner's key in the configuration.
    pub runner: String,
    /// Of its file; names the generation. Like the four after it empty for a refused file of which it was
    /// not known.
    #[serde(serialize_with = "known")]
    pub sha256: String,
    /// From its manifest.
    #[serde(serialize_with = "known")]
    pub name: String,
    /// From its manifest.
    #[serde(serialize_with = "known")]
    pub version: String,
    /// `rust`, `c`, `builtin`.
    #[serde(serialize_with = "known")]
    pub abi: String,
    /// `in_process`, `process`, `sandbox`.
    #[serde(serialize_with = "known")]
    pub isolation: String,
    /// The swap that brings it; none for one that the configuration names.
    pub swap: Option<String>,
    /// sha256 of the file that the configuration names at this time.
    pub configured: Option<String>,
    /// Where its file came from, as somebody named it.
    pub source: Option<String>,
}

/// Why a candidate never served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Where it stood: `keep`, `probe`, `shadow`, `standby`, `handover`, `flip`.
    pub stage: String,
    /// The constant word.
    pub code: String,
    /// For people, at most three lines.
    pub message: String,
}

/// A file that was refused before there was anything to keep of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRefusal {
    /// The slot.
    pub runner: String,
    /// Where the file was, as somebody named it.
    pub source: String,
    /// Of its content, where it could be read.
    pub sha256: Option<String>,
    /// Name and version from its manifest, where there was one.
    pub identity: Option<(String, String)>,
    /// The swap that brought it; none where the configuration named it.
    pub swap: Option<String>,
    /// Why.
    pub refused: Refused,
    /// Wall time.
    pub at: DateTime<Utc>,
}

/// One step of a generation's life.
#[derive(Clone, Debug)]
pub struct GenerationMove {
    /// Which row.
    pub n: i64,
    /// What happens to it.
    pub event: GenerationEvent,
    /// Why, for people; none keeps the reason it has.
    pub reason: Option<String>,
    /// True opens its trial; any other move ends one.
    pub canary: bool,
    /// What is known of it from now on; none keeps what is there.
    pub details: Option<Value>,
    /// The states its predecessor gave it.
    pub handover: Option<HandOver>,
    /// Why it is refused, where it is.
    pub refused: Option<Refused>,
}

impl GenerationMove {
    /// A step and its reason.
    #[must_use]
    pub fn new(n: i64, event: GenerationEvent, reason: Option<String>) -> Self {
        Self { n, event, reason, canary: false, details: None, handover: None, refused: None }
    }
}

/// A state and when it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailEntry {
    /// Where it stood.
    pub state: GenerationState,
    /// Since when.
    pub at: DateTime<Utc>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One life of a version in a slot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationRow {
    /// Number in the store; grows with time.
    pub n: i64,
    /// Who.
    #[serde(flatten)]
    pub life: Life,
    /// Where it stands.
    pub state: GenerationState,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Why.
    pub reason: Option<String>,
    /// Why it never served, where it was refused.
    pub refused: Option<Refused>,
    /// True while it is on trial.
    pub canary: bool,
    /// The states it went through, oldest first.
    pub trail: Vec<TrailEntry>,
    /// What its replay showed, and what its trial has counted that no cycle tells.
    pub details: Value,
    /// The states its predecessor gave it.
    #[serde(skip)]
    pub handover: Option<HandOver>,
}

impl GenerationRow {
    /// Cycles that it could not begin while it was on trial.
    #[must_use]
    pub fn not_begun(&self) -> u32 {
        self.details["not_begun"].as_u64().and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
    }
}

/// What is not known is null in JSON.
fn known<S: serde::Serializer>(text: &str, to: S) -> std::result::Result<S::Ok, S::Error> {
    if text.is_empty() { to.serialize_none() } else { to.serialize_str(text) }
}

/// A cycle that ended with a report, with all that its runner saw.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedCycle {
    /// As it was handed out.
    pub mandate: Mandate,
    /// The generation that ran it.
    pub generation: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// Its steps with their results, in order.
    pub steps: Vec<StepRow>,
    /// The runner's state as of its start.
    pub state: HashMap<String, Value>,
    /// What the runner said at its end.
    pub report: Report,
    /// What was booked on it.
    pub usage: Usage,
}

/// How a cycle of a generation ended, for the books of its trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedCycle {
    /// How.
    pub status: CycleStatus,
    /// What its attempt used.
    pub usage: Usage,
}

/// The part of the store that runners' generations live in. As for the other requests: any thread,
/// one short transaction each.
pub trait GenerationStore: Send + Sync + 'static {
    /// Begins the life of a candidate: its number.
    fn add_generation(&self, life: Life, at: DateTime<Utc>) -> Pending<i64>;
    /// Records a file that was refused before there was anything to keep of it: its number.
    fn refuse_file(&self, new: NewRefusal) -> Pending<i64>;
    /// Makes the generation that the configuration put in a slot its active one. Of the same sha256
    /// as the active one that is known: nothing changes. Else everything open in that slot ends
    /// first, for `reason`. Gives its number.
    fn adopt_generation(&self, life: Life, reason: String, at: DateTime<Utc>) -> Pending<i64>;
    /// Moves generations on, all of them in one commit or none.
    fn move_generations(&self, moves: Vec<GenerationMove>, at: DateTime<Utc>) -> Pending<()>;
    /// After a start: what never served is withdrawn, what drained is retired; active ones stay, and
    /// so do those that wait for the end of a successor's trial. Gives what is open then.
    fn recover_generations(&self, at: DateTime<Utc>) -> Pending<Vec<GenerationRow>>;
    /// Lives in a slot, or in all, newest first; 0 means all of them.
    fn generations(&self, runner: Option<&str>, limit: usize) -> Result<Vec<GenerationRow>>;
    /// The last cycles of a runner that ended with a report, newest first.
    fn recent_cycles(&self, runner: &str, limit: usize) -> Result<Vec<RecordedCycle>>;
    /// The attempts that a generation began in a slot since that time and that have ended, in their
    /// order. Looks at the mandates that are open or have ended since then, at no history.
    fn ended_cycles(&self, runner: &str, sha256: &str, since: DateTime<Utc>) -> Result<Vec<EndedCycle>>;
    /// Counts a cycle that a version on trial could not begin, see [`GenerationRow::not_begun`].
    /// Of one that is not on trial (any more) nothing is counted.
    fn note_not_begun(&self, n: i64) -> Pending<()>;
    /// Mandates that came to their crash limit at a start, with a cycle of that generation that was
    /// begun or continued since that time. They are in review.
    fn crash_looped(&self, runner: &str, sha256: &str, since: DateTime<Utc>) -> Result<Vec<String>>;
    /// Takes the last death off such a mandate, since it was that of a version which has failed its
    /// trial: it begins its cycle afresh, before all others. If a tool of it changed something, it
    /// stays in review, `rolled_back_after_act`. Gives where it stands.
    fn run_crash_looped_again(
        &self,
        mandate: String,
        why: String,
        at: DateTime<Utc>,
    ) -> Pending<MandateState>;
    /// Every generation that an open mandate or a slot may still need, and the last few of each slot.
    fn needed_generations(&self) -> Result<Vec<String>>;
}
