//! A schedule: a rule that denotes a set of nominal times, and what to do with each of them.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What happens to occurrences that were missed while nobody looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissedPolicy {
    /// Fire the latest once; the others are recorded as `skip`.
    #[default]
    Skip,
    /// Fire the latest once; the others are recorded as `coalesced`.
    CatchUpOnce,
    /// Fire the latest `max_catch_up_runs`, oldest first, each with its own nominal time;
    /// the others are recorded as `cap`, or all but the latest as `stale`.
    CatchUpBounded,
}

/// What happens when an occurrence fires while its overlap key is busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Wait in line, at most [`QUEUE_CAP`] of one key.
    #[default]
    Queue,
    /// Keep the first that waits, drop later ones.
    QueueOne,
    /// Drop it when one of the key runs or waits.
    Reject,
    /// Start now beside its own schedule if the scope is free, else wait.
    Allow,
    /// The reference's `allow`: to the front of the line unless one of the key runs.
    AllowQueued,
    /// Cancel the one that runs or waits and start after it has ended.
    Replace,
}

/// Most mandates of one overlap key that may wait; beyond it an occurrence ends `queue_full`.
pub const QUEUE_CAP: u32 = 100;

/// How daylight-saving changes are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dst {
    /// cronie's rules: fixed times in a gap move to its end, repeated times fire once.
    #[default]
    Cron,
    /// Literal matching: a time in a gap is lost, a repeated time fires twice.
    Literal,
}

/// What an occurrence does when the day's budget is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBudget {
    /// Wait in the queue until there is budget.
    #[default]
    Hold,
    /// End as `missed`, reason `budget`.
    Skip,
}

/// The goal of a mandate and its bounds, apart from the goal text itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MandateBounds {
    /// Cycles after which the mandate ends.
    pub max_cycles: u32,
    /// Cycles between checkpoints.
    pub checkpoint_every: Option<u32>,
    /// `low` or `medium`.
    pub risk_budget: Option<String>,
    /// Narrows what may be done.
    pub allowed_actions: Option<Vec<String>>,
    /// Narrows what may be looked at.
    pub observe_policies: Option<Vec<String>>,
    /// Free parameters for the runner.
    pub params: Map<String, Value>,
}

impl Default for MandateBounds {
    fn default() -> Self {
        Self {
            max_cycles: 10,
            checkpoint_every: None,
            risk_budget: None,
            allowed_actions: None,
            observe_policies: None,
            params: Map::new(),
        }
    }
}

/// Everything of a schedule that many schedules have in common; equal ones share one allocation.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulePolicy {
    /// False: known, never fires; its occurrences are recorded as `paused`.
    pub enabled: bool,
    /// Mandates of one scope never run at the same time.
    pub project_scope: Option<String>,
    /// Which runner; the configuration's default when absent.
    pub runner: Option<String>,
    /// See [`MissedPolicy`].
    pub missed_policy: MissedPolicy,
    /// For `catch_up_bounded`: most runs of one catch-up.
    pub max_catch_up_runs: u32,
    /// For `catch_up_bounded`: if the oldest missed one is older, only the latest fires.
    pub stale_after: Duration,
    /// Occurrences older than this never fire; reason `deadline`.
    pub start_deadline: Option<Duration>,
    /// See [`Overlap`].
    pub concurrency: Overlap,
    /// Upper bound of the deterministic delay after the nominal time.
    pub jitter: Duration,
    /// See [`Dst`].
    pub dst: Dst,
    /// See [`OnBudget`].
    pub on_budget: OnBudget,
    /// Pause the schedule after this many mandates in a row ended `failed`.
    pub pause_after_failures: Option<u32>,
    /// Bounds of its mandates.
    pub bounds: MandateBounds,
}

impl Default for SchedulePolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            project_scope: None,
            runner: None,
            missed_policy: MissedPolicy::default(),
            max_catch_up_runs: 5,
            stale_after: Duration::from_secs(48 * 3600),
            start_deadline: None,
            concurrency: Overlap::default(),
            jitter: Duration::ZERO,
            dst: Dst::default(),
            on_budget: OnBudget::default(),
            pause_after_failures: None,
            bounds: MandateBounds::default(),
        }
    }
}

/// One schedule, checked: its cron expression parses and its zone exists.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleSpec {
    /// Unique among the schedules of a daemon; any text without NUL, at most 10 KiB.
    pub name: Arc<str>,
    /// The cron expression as written.
    pub cron: Box<str>,
    /// IANA zone name as written.
    pub timezone: Arc<str>,
    /// What its mandates are to reach.
    pub goal: Box<str>,
    /// The rest.
    pub policy: Arc<SchedulePolicy>,
}

impl ScheduleSpec {
    /// The overlap key: the project scope, else the schedule itself.
    #[must_use]
    pub fn overlap_key(&self) -> String {
        overlap_key(self.policy.project_scope.as_deref(), Some(&self.name))
            .expect("a schedule always has a name")
    }

    /// Identity of the rule itself: a change of it re-anchors the cursor, a change of anything else does not.
    #[must_use]
    pub fn rule_id(&self) -> String {
        format!("{}|{}|{:?}", self.cron, self.timezone, self.policy.dst)
    }
}

/// The overlap key of a mandate: its scope, else its schedule; a manual mandate without scope has none.
#[must_use]
pub fn overlap_key(scope: Option<&str>, schedule: Option<&str>) -> Option<String> {
    match (scope, schedule) {
        (Some(scope), _) => Some(format!("scope:{scope}")),
        (None, Some(schedule)) => Some(format!("schedule:{schedule}")),
        (None, None) => None,
    }
}
