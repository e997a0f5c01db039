//! What each kind of line says. The reference's keys keep their names and meaning; the others are
//! ours, and the reference ignores them. Together the lines of a mandate tell enough to rebuild
//! its row, its cycles and its usage when the store is gone.

use chrono::{DateTime, SecondsFormat, Utc};
use kairos_plugin_api::Usage;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::PHASES;
use crate::domain::canonical;
use crate::domain::mandate::{CycleStatus, MandateState};
use crate::domain::schedule::MandateBounds;

/// Longest `error_msg`, in characters, as in the reference.
const ERROR_CHARS: usize = 500;

/// Opens a plan: one cycle, from its first attempt on, with the steps it is known to have.
#[derive(Clone, Copy, Debug)]
pub struct PlanCommit<'a> {
    /// The mandate.
    pub mandate: &'a str,
    /// The cycle, from 1.
    pub cycle: u32,
    /// The attempt that opens this plan; later attempts of the same cycle continue it.
    pub attempt: u32,
    /// True lists the five phases, else one step that is the whole cycle.
    pub phases: bool,
    /// The runner's name.
    pub runner: &'a str,
    /// The generation that runs it.
    pub generation: &'a str,
    /// What a rebuilt store needs of the mandate.
    pub origin: PlanOrigin<'a>,
    /// Wall time.
    pub at: DateTime<Utc>,
}

/// The part of a mandate that does not change from cycle to cycle.
#[derive(Clone, Copy, Debug)]
pub struct PlanOrigin<'a> {
    /// `schedule`, `manual` or `backfill`.
    pub kind: &'a str,
    /// Its schedule.
    pub schedule: Option<&'a str>,
    /// When it was due.
    pub nominal_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Its goal.
    pub goal: &'a str,
    /// Its scope.
    pub scope: Option<&'a str>,
    /// The client's own id of the request that made it.
    pub request_id: Option<&'a str>,
    /// Its bounds.
    pub bounds: &'a MandateBounds,
}

/// Adds a step: an effect the runner asked for.
#[derive(Clone, Copy, Debug)]
pub struct Append<'a> {
    /// Its id, see [`effect_step_id`].
    pub step_id: &'a str,
    /// Its plan.
    pub plan_id: &'a str,
    /// Position in the cycle.
    pub step: u32,
    /// `llm`, `tool`, `propose` or `answer`.
    pub kind: &'a str,
    /// The tool's or provider's name.
    pub name: &'a str,
    /// Phase, if the runner named one.
    pub phase: Option<&'a str>,
    /// Idempotency key.
    pub idem_key: &'a str,
    /// Hash of the canonical parameters.
    pub params_hash: &'a str,
    /// Hash of the target before, if there is one.
    pub pre_hash: Option<&'a str>,
    /// Hash of the target after.
    pub expected_post_hash: Option<&'a str>,
    /// True when doing it twice is the same as doing it once.
    pub repeatable: bool,
    /// What was reserved for it; a rebuilt store counts it when no settlement follows.
    pub reserved: Usage,
    /// Day of the ledger.
    pub day: Option<&'a str>,
    /// Wall time.
    pub at: DateTime<Utc>,
}

/// What a step turns into.
#[derive(Clone, Copy, Debug)]
pub enum Transition<'a> {
    /// Waiting again; recovery found that it had not landed.
    Pending,
    /// Begun.
    Executing {
        /// Hash of the target as seen now.
        pre_hash: Option<&'a str>,
    },
    /// Done.
    Completed {
        /// Hash of the target as it is now; the result's hash when there is no target, since the
        /// reference takes a step without one for unfinished.
        post_hash: &'a str,
        /// Hash of the recorded result.
        result_hash: &'a str,
        /// True when recovery found it done.
        recovered: bool,
        /// What that rests on.
        evidence: Option<&'a str>,
        /// What it used, with the day it is booked on.
        usage: Option<(Usage, &'a str)>,
    },
    /// It failed, and the runner was told so.
    Failed {
        /// A constant word.
        error_class: &'a str,
        /// For people; cut at 500 characters.
        error_msg: &'a str,
        /// What it used all the same, with the day it is booked on.
        usage: Option<(Usage, &'a str)>,
    },
    /// For a person.
    NeedsReview {
        /// A constant word.
        reason: &'a str,
        /// What was counted for it, with the day.
        usage: Option<(Usage, &'a str)>,
    },
}

/// Closes a plan.
#[derive(Clone, Copy, Debug)]
pub struct PlanFinalize<'a> {
    /// The plan.
    pub plan_id: &'a str,
    /// The mandate.
    pub mandate: &'a str,
    /// The cycle.
    pub cycle: u32,
    /// The attempt that ended it.
    pub attempt: u32,
    /// How the cycle ended.
    pub status: CycleStatus,
    /// Where the mandate stands now.
    pub state: MandateState,
    /// Why.
    pub reason: Option<&'a str>,
    /// The cycle's total, over all its attempts.
    pub usage: Usage,
    /// The part of it that no step's line carries (notes and claims), by day of the ledger.
    pub unmetered: &'a [(String, Usage)],
    /// The runner's one line.
    pub summary: Option<&'a str>,
    /// What went wrong.
    pub error: Option<&'a str>,
    /// Wall time.
    pub at: DateTime<Utc>,
}

/// Id of the plan that this attempt opened.
#[must_use]
pub fn plan_id(mandate: &str, cycle: u32, attempt: u32) -> String {
    let digest = Sha256::digest(format!("{mandate}|{cycle}|{attempt}").as_bytes());
    format!("plan_{}", hex::encode(&digest[..6]))
}

/// Id of a phase's step, `act_001`; of the one step of a plan without phases for `cycle`.
#[must_use]
pub fn phase_step_id(phase: &str, cycle: u32) -> String {
    format!("{phase}_{cycle:03}")
}

/// Id of an effect's step, `tool_001_004`.
#[must_use]
pub fn effect_step_id(kind: &str, cycle: u32, step: u32) -> String {
    format!("{kind}_{cycle:03}_{step:03}")
}

/// The line that opens a plan.
///
/// Keys of the reference: `op`, `plan_id`, `mandate_id`, `cycle`, `plan_hash` (of `steps`),
/// `steps` (`step_id`, `tool`, `params_hash`, `pre_hash`, `expected_post_hash`), `ts`. Ours:
/// `attempt`, `runner`, `generation`, `origin`, `schedule`, `nominal_at`, `created_at`, `goal`,
/// `scope`, `client_id`, `bounds`.
#[must_use]
pub fn plan_commit(plan: &PlanCommit<'_>) -> Map<String, Value> {
    let id = plan_id(plan.mandate, plan.cycle, plan.attempt);
    let names: &[&str] = if plan.phases { &PHASES } else { &["cycle"] };
    let steps: Vec<Value> = names
        .iter()
        .enumerate()
        .map(|(order, name)| {
            let tool = if plan.phases { format!("ooda.{name}") } else { format!("runner.{}", plan.runner) };
            let params = json!({"phase": name, "order": order, "cycle": plan.cycle, "plan_id": id,
                "mandate_name": plan.origin.schedule.unwrap_or(plan.mandate)});
            // A phase has no target of its own: its effects carry the hashes of the world.
            json!({"step_id": phase_step_id(name, plan.cycle), "tool": tool,
                "params_hash": canonical::hash(&params), "pre_hash": null, "expected_post_hash": null})
        })
        .collect();
    let steps = Value::Array(steps);
    let origin = &plan.origin;
    let mut line = start("plan_commit", plan.at);
    put(&mut line, "plan_id", id);
    put(&mut line, "mandate_id", plan.mandate);
    put(&mut line, "cycle", plan.cycle);
    put(&mut line, "attempt", plan.attempt);
    put(&mut line, "plan_hash", canonical::hash(&steps));
    put(&mut line, "steps", steps);
    put(&mut line, "runner", plan.runner);
    put(&mut line, "generation", plan.generation);
    put(&mut line, "origin", origin.kind);
    put_some(&mut line, "schedule", origin.schedule);
    put_some(&mut line, "nominal_at", origin.nominal_at.map(stamp));
    put(&mut line, "created_at", stamp(origin.created_at));
    put(&mut line, "goal", origin.goal);
    put_some(&mut line, "scope", origin.scope);
    put_some(&mut line, "client_id", origin.request_id);
    put(&mut line, "bounds", serde_json::to_value(origin.bounds).unwrap_or_default());
    line
}

/// The line that adds a step.
///
/// Keys of the reference: `op`, `step_id`, `plan_id`, `idem_key`, `status` (`pending`), `tool`,
/// `params_hash`, `ts`. Ours: `step`, `kind`, `phase`, `pre_hash`, `expected_post_hash`,
/// `repeatable`, `reserved`, `day`.
#[must_use]
pub fn append(step: &Append<'_>) -> Map<String, Value> {
    let mut line = start("append", step.at);
    put(&mut line, "step_id", step.step_id);
    put(&mut line, "plan_id", step.plan_id);
    put(&mut line, "idem_key", step.idem_key);
    put(&mut line, "status", "pending");
    put(&mut line, "tool", step.name);
    put(&mut line, "params_hash", step.params_hash);
    put(&mut line, "step", step.step);
    put(&mut line, "kind", step.kind);
    put_some(&mut line, "phase", step.phase);
    put_some(&mut line, "pre_hash", step.pre_hash);
    put_some(&mut line, "expected_post_hash", step.expected_post_hash);
    put_some(&mut line, "repeatable", step.repeatable.then_some(true));
    if !step.reserved.is_zero() {
        put(&mut line, "reserved", usage_value(step.reserved));
        put_some(&mut line, "day", step.day);
    }
    line
}

/// The line that notes usage which the runner stated while it ran: a step that is completed as it
/// is added. The plan's end counts it again under `unmetered`; until then this line stands for it.
#[must_use]
pub fn stated_usage(
    plan_id: &str,
    step_id: &str,
    usage: Usage,
    day: &str,
    at: DateTime<Utc>,
) -> Map<String, Value> {
    let mut line = start("append", at);
    put(&mut line, "step_id", step_id);
    put(&mut line, "plan_id", plan_id);
    put(&mut line, "status", "completed");
    put(&mut line, "tool", "usage");
    put(&mut line, "kind", "answer");
    put(&mut line, "usage", usage_value(usage));
    put(&mut line, "day", day);
    line
}

/// The line that moves a step, of a phase or an effect, of that plan.
///
/// Keys of the reference: `op`, `step_id`, `status`, then by status `pre_hash`; `post_hash`,
/// `result_hash`, `recovered`, `evidence`; `error_class`, `error_msg`; `reason`; `reset`; `ts`.
/// Ours: `plan_id`, `usage`, `day`.
#[must_use]
pub fn transition(
    plan_id: &str,
    step_id: &str,
    to: &Transition<'_>,
    at: DateTime<Utc>,
) -> Map<String, Value> {
    let mut line = start("transition", at);
    put(&mut line, "step_id", step_id);
    put(&mut line, "plan_id", plan_id);
    let (status, usage) = match *to {
        Transition::Pending => {
            put(&mut line, "reset", true);
            ("pending", None)
        }
        Transition::Executing { pre_hash } => {
            // The reference tells by this key that a step began, so it is never left out.
            put(&mut line, "pre_hash", pre_hash.unwrap_or("none"));
            ("executing", None)
        }
        Transition::Completed { post_hash, result_hash, recovered, evidence, usage } => {
            put(&mut line, "post_hash", post_hash);
            put(&mut line, "result_hash", result_hash);
            put_some(&mut line, "recovered", recovered.then_some(true));
            put_some(&mut line, "evidence", evidence.map(|reason| json!({"reason": reason})));
            ("completed", usage)
        }
        Transition::Failed { error_class, error_msg, usage } => {
            put(&mut line, "error_class", error_class);
            put(&mut line, "error_msg", error_msg.chars().take(ERROR_CHARS).collect::<String>());
            ("failed", usage)
        }
        Transition::NeedsReview { reason, usage } => {
            put(&mut line, "reason", reason);
            ("needs_review", usage)
        }
    };
    put(&mut line, "status", status);
    if let Some((usage, day)) = usage {
        put(&mut line, "usage", usage_value(usage));
        put(&mut line, "day", day);
    }
    line
}

/// The line that closes a plan.
///
/// Keys of the reference: `op`, `plan_id`, `status` (`succeeded`, `failed`, `abandoned`),
/// `reason`, `ts`. Ours: `mandate_id`, `cycle`, `attempt`, `cycle_status`, `state` (of the
/// mandate), `usage`, `unmetered`, `summary`, `error`.
///
/// A cycle that stopped in the middle (paused, interrupted) has no such line: its plan goes on.
#[must_use]
pub fn plan_finalize(end: &PlanFinalize<'_>) -> Map<String, Value> {
    let mut line = start("plan_finalize", end.at);
    put(&mut line, "plan_id", end.plan_id);
    put(&mut line, "mandate_id", end.mandate);
    put(&mut line, "cycle", end.cycle);
    put(&mut line, "attempt", end.attempt);
    let status = match end.status {
        CycleStatus::Ok => "succeeded",
        CycleStatus::Error => "failed",
        CycleStatus::Paused | CycleStatus::Interrupted | CycleStatus::RolledBack => "abandoned",
    };
    put(&mut line, "status", status);
    put(&mut line, "cycle_status", end.status.as_str());
    put(&mut line, "state", end.state.as_str());
    put_some(&mut line, "reason", end.reason);
    put(&mut line, "usage", usage_value(end.usage));
    if !end.unmetered.is_empty() {
        let days: Map<String, Value> =
            end.unmetered.iter().map(|(day, usage)| (day.clone(), usage_value(*usage))).collect();
        put(&mut line, "unmetered", days);
    }
    put_some(&mut line, "summary", end.summary);
    put_some(&mut line, "error", end.error.map(|text| text.chars().take(ERROR_CHARS).collect::<String>()));
    line
}

fn start(op: &str, at: DateTime<Utc>) -> Map<String, Value> {
    let mut line = Map::new();
    put(&mut line, "op", op);
    put(&mut line, "ts", stamp(at));
    line
}

fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn usage_value(usage: Usage) -> Value {
    serde_json::to_value(usage).unwrap_or_default()
}

fn put(line: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    line.insert(key.to_owned(), value.into());
}

fn put_some(line: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        put(line, key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    fn at() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 11, 22, 9, 0, 0).unwrap()
    }

    fn plan(phases: bool) -> Map<String, Value> {
        let bounds = MandateBounds::default();
        plan_commit(&PlanCommit {
            mandate: "20261122T090000Z-daily-0",
            cycle: 1,
            attempt: 1,
            phases,
            runner: "cognitive",
            generation: "abc",
            origin: PlanOrigin {
                kind: "schedule",
                schedule: Some("daily"),
                nominal_at: Some(at()),
                created_at: at(),
                goal: "tidy up",
                scope: None,
                request_id: None,
                bounds: &bounds,
            },
            at: at(),
        })
    }

    #[test]
    fn plan_lists_the_phases_or_one_step() {
        let five = plan(true);
        let ids: Vec<&str> =
            five["steps"].as_array().unwrap().iter().map(|step| step["step_id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["observe_001", "orient_001", "decide_001", "act_001", "reflect_001"]);
        assert_eq!(five["steps"][3]["tool"], "ooda.act");
        assert_eq!(five["plan_hash"], canonical::hash(&five["steps"]));
        let one = plan(false);
        assert_eq!(one["steps"].as_array().unwrap().len(), 1);
        assert_eq!(one["steps"][0]["step_id"], "cycle_001");
        assert_eq!(one["ts"], "2026-11-22T09:00:00.000Z");
    }

    #[test]
    fn a_new_attempt_that_opens_a_plan_opens_another() {
        assert_ne!(plan_id("m", 1, 1), plan_id("m", 1, 2));
        assert_eq!(plan_id("m", 1, 1), plan_id("m", 1, 1));
        assert_eq!(plan_id("m", 1, 1).len(), "plan_".len() + 12);
    }

    #[test]
    fn transitions_carry_the_keys_of_their_status() {
        let done = Transition::Completed {
            post_hash: "sha256-b",
            result_hash: "sha256-r",
            recovered: true,
            evidence: Some("current_state_matches_expected_post"),
            usage: Some((Usage { llm_calls: 1, ..Usage::ZERO }, "2026-11-22")),
        };
        let line = transition("p", "s", &done, at());
        assert_eq!(line["status"], "completed");
        assert_eq!(line["recovered"], true);
        assert_eq!(line["usage"]["llm_calls"], 1);
        assert_eq!(line["day"], "2026-11-22");
        let began = transition("p", "s", &Transition::Executing { pre_hash: None }, at());
        assert_eq!(began["pre_hash"], "none");
        let long = "x".repeat(2000);
        let failed = Transition::Failed { error_class: "denied", error_msg: &long, usage: None };
        assert_eq!(transition("p", "s", &failed, at())["error_msg"].as_str().unwrap().len(), ERROR_CHARS);
    }
}
