//! What the lines of one log tell together: plans, their steps, what was used, and where the
//! mandate stands if nothing else is known of it. Reads our lines and the reference's alike.
//!
//! Never invents: a line that does not fit is counted, and a mandate whose effects may have landed
//! goes to a person.

use std::collections::BTreeMap;

use kairos_plugin_api::Usage;
use serde_json::{Map, Value};

use super::{PHASES, Scan, verify};
use crate::domain::mandate::MandateState;
use crate::domain::verdict::{Intent, Kind, RecordedStep, Ruling, Verdict, judge, judge_recorded};

/// Reason of a mandate that was rebuilt from its log and waits to run again.
pub const REBUILT: &str = "rebuilt_from_wal";
/// Reason of one that a person must look at.
pub const UNCERTAIN: &str = "rebuilt_effects_uncertain";
/// Reason of one whose log is damaged.
pub const DAMAGED: &str = "rebuilt_log_damaged";

/// A log, read.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Its plans, in the order of their first line.
    pub plans: Vec<Plan>,
    /// How its bytes stand. What follows the first bad byte is not read.
    pub scan: Scan,
    /// Lines that say nothing we know.
    pub strange: u64,
    /// `ts` of the last line that has one.
    pub last_ts: Option<String>,
}

/// One plan: a cycle from its first attempt to its end.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Its id; `None` for steps that no plan was committed for, as the reference's runner leaves them.
    pub plan_id: Option<String>,
    /// The `plan_commit` line; empty without one.
    pub commit: Map<String, Value>,
    /// Its steps, in the order they are first named.
    pub steps: Vec<Step>,
    /// The `plan_finalize` line, if it has ended.
    pub end: Option<Map<String, Value>>,
    /// `ts` of its first line.
    pub first_ts: Option<String>,
    /// `ts` of its last line.
    pub last_ts: Option<String>,
}

/// One step of a plan.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// What the reference's keys say.
    pub recorded: RecordedStep,
    /// `llm`, `tool`, `propose`, `answer` for an effect; `None` for a phase.
    pub kind: Option<String>,
    /// Doing it twice is harmless.
    pub repeatable: bool,
    /// What each try reserved, and the day it is booked on.
    pub reserved: Option<(String, Usage)>,
    /// What it used, by day.
    pub used: Vec<(String, Usage)>,
    /// A reservation without a settlement: counted as spent.
    open_reservation: bool,
}

impl History {
    /// Reads the good part of a log.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        let scan = verify(bytes);
        let mut history = Self::default();
        for line in bytes[..scan.valid_end].split(|c| *c == b'\n') {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match serde_json::from_slice::<Value>(line) {
                Ok(Value::Object(line)) => history.take(line),
                _ => history.strange += 1,
            }
        }
        history.scan = scan;
        history
    }

    /// Everything that was used, by day of the ledger: never less than was spent.
    #[must_use]
    pub fn usage_by_day(&self) -> BTreeMap<String, Usage> {
        let mut days: BTreeMap<String, Usage> = BTreeMap::new();
        for plan in &self.plans {
            for (day, usage) in plan.used() {
                let sum = days.entry(day).or_default();
                *sum = sum.plus(usage);
            }
        }
        days
    }

    /// Where the mandate stands, and why if that is not its own word.
    #[must_use]
    pub fn standing(&self) -> (MandateState, Option<String>) {
        let review = |reason: &str| (MandateState::Review, Some(reason.to_owned()));
        if self.scan.damage.is_some() || self.strange > 0 {
            return review(DAMAGED);
        }
        let Some(plan) = self.plans.last() else { return review(DAMAGED) };
        let earlier_open =
            self.plans.iter().rev().skip(1).any(|plan| plan.end.is_none() && !plan.is_harmless());
        if earlier_open {
            return review(UNCERTAIN);
        }
        match &plan.end {
            Some(end) => ended(end),
            None if plan.is_complete() => (MandateState::Succeeded, None),
            None if plan.is_harmless() => (MandateState::Queued, Some(REBUILT.to_owned())),
            None => review(UNCERTAIN),
        }
    }

    fn take(&mut self, line: Map<String, Value>) {
        let ts = text(&line, "ts");
        let Some(at) = self.apply(&line) else {
            self.strange += 1;
            return;
        };
        let plan = &mut self.plans[at];
        if plan.first_ts.is_none() {
            plan.first_ts.clone_from(&ts);
        }
        if ts.is_some() {
            plan.last_ts.clone_from(&ts);
            self.last_ts = ts;
        }
    }

    /// Applies a line; gives the plan it belongs to.
    fn apply(&mut self, line: &Map<String, Value>) -> Option<usize> {
        match line.get("op").and_then(Value::as_str)? {
            "plan_commit" => Some(self.commit(line)),
            "append" => {
                let at = self.plan_of(line, None);
                let step = self.plans[at].step(&text(line, "step_id")?);
                step.append(line);
                Some(at)
            }
            "transition" => {
                let id = text(line, "step_id")?;
                let at = self.plan_of(line, Some(&id));
                self.plans[at].step(&id).turn(line);
                Some(at)
            }
            "plan_finalize" => {
                let at = self.plan_of(line, None);
                self.plans[at].end = Some(line.clone());
                Some(at)
            }
            _ => None,
        }
    }

    fn commit(&mut self, line: &Map<String, Value>) -> usize {
        let listed = line.get("steps").and_then(Value::as_array).cloned().unwrap_or_default();
        let steps = listed.iter().filter_map(Value::as_object).filter_map(|listed| {
            let recorded = RecordedStep {
                step_id: text(listed, "step_id")?,
                tool: text(listed, "tool"),
                params_hash: text(listed, "params_hash"),
                pre_hash: text(listed, "pre_hash"),
                expected_post_hash: text(listed, "expected_post_hash"),
                ..RecordedStep::default()
            };
            Some(Step { recorded, ..Step::default() })
        });
        let plan_id = text(line, "plan_id");
        let plan = Plan { plan_id, commit: line.clone(), steps: steps.collect(), ..Plan::default() };
        // Committed again after a start that was given back: later lines are the later plan's.
        self.plans.push(plan);
        self.plans.len() - 1
    }

    /// The plan a line names; else, the latest that has that step; else one made up for such lines.
    fn plan_of(&mut self, line: &Map<String, Value>, step: Option<&str>) -> usize {
        let named = text(line, "plan_id");
        let found = match (&named, step) {
            (Some(named), _) => self.plans.iter().rposition(|plan| plan.plan_id.as_ref() == Some(named)),
            (None, Some(step)) => self
                .plans
                .iter()
                .rposition(|plan| plan.steps.iter().any(|known| known.recorded.step_id == step)),
            (None, None) => None,
        };
        let orphan = || self.plans.iter().rposition(|plan| plan.plan_id.is_none() && named.is_none());
        found.or_else(orphan).unwrap_or_else(|| {
            self.plans.push(Plan { plan_id: named, ..Plan::default() });
            self.plans.len() - 1
        })
    }
}

impl Plan {
    /// The cycle it is of: stated, or read from the ids of its steps.
    #[must_use]
    pub fn cycle(&self) -> u32 {
        let stated = self.commit.get("cycle").or_else(|| self.end.as_ref()?.get("cycle"));
        let stated = stated.and_then(Value::as_u64).and_then(|cycle| u32::try_from(cycle).ok());
        let from_ids = || {
            let ids = self.steps.iter().filter_map(|step| step.recorded.step_id.split('_').nth(1));
            ids.filter_map(|cycle| cycle.parse().ok()).max()
        };
        stated.or_else(from_ids).unwrap_or(1)
    }

    /// Each step that has no result, with what is to be done about it.
    #[must_use]
    pub fn verdicts(&self) -> Vec<(&Step, Verdict)> {
        let open = self.steps.iter().filter(|step| step.is_open());
        open.map(|step| (step, self.verdict(step))).collect()
    }

    /// True when beginning the cycle anew does no harm: nothing outside changed, or may have.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        self.steps.iter().all(|step| {
            if step.recorded.status.as_deref() == Some("needs_review") {
                return false;
            }
            let ours = !self.is_reference();
            match (step.is_open(), step.acts(ours)) {
                (true, acts) if acts || !ours => self.verdict(step).ruling == Ruling::SafeToRetry,
                (false, true) => step.repeatable || step.recorded.status.as_deref() == Some("failed"),
                _ => true,
            }
        })
    }

    /// True when it ran to its last phase although nobody wrote that it ended, as the reference's
    /// runner leaves its cycles.
    fn is_complete(&self) -> bool {
        let last = |step: &Step| {
            step.recorded.step_id.starts_with("reflect_")
                && step.recorded.status.as_deref() == Some("completed")
        };
        self.is_reference() && self.steps.iter().any(last) && !self.steps.iter().any(Step::is_open)
    }

    /// What was used in it, by day.
    pub fn used(&self) -> impl Iterator<Item = (String, Usage)> + '_ {
        // What a runner stated is counted by the plan's end, once it has one.
        let counted = |step: &&Step| self.end.is_none() || step.kind.as_deref() != Some("answer");
        let steps = self.steps.iter().filter(counted).flat_map(Step::spent);
        let rest = self.end.as_ref().and_then(|end| end.get("unmetered")).and_then(Value::as_object);
        let rest = rest.into_iter().flatten().map(|(day, amount)| (day.clone(), usage(Some(amount))));
        steps.chain(rest)
    }

    /// Written by the reference: it knows no generations.
    fn is_reference(&self) -> bool {
        !self.commit.contains_key("generation")
    }

    fn verdict(&self, step: &Step) -> Verdict {
        let kind = match step.kind.as_deref() {
            Some("llm") => Kind::Llm,
            Some("propose") => Kind::Propose,
            Some("answer") => Kind::Answer,
            Some(_) => Kind::Tool,
            None => return judge_recorded(&step.recorded, None, None),
        };
        let intent = Intent {
            kind,
            name: step.recorded.tool.as_deref().unwrap_or_default(),
            pre_hash: step.recorded.pre_hash.as_deref(),
            post_hash: step.recorded.expected_post_hash.as_deref(),
            repeatable: step.repeatable,
        };
        judge(&intent, None)
    }

    fn step(&mut self, id: &str) -> &mut Step {
        let at = self.steps.iter().rposition(|step| step.recorded.step_id == id).unwrap_or_else(|| {
            let recorded = RecordedStep { step_id: id.to_owned(), ..RecordedStep::default() };
            self.steps.push(Step { recorded, ..Step::default() });
            self.steps.len() - 1
        });
        &mut self.steps[at]
    }
}

impl Step {
    /// Neither done, nor failed, nor given up.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.recorded.status.as_deref(), Some("completed" | "failed" | "abandoned"))
    }

    /// True when it may change something outside. A phase of ours never does, its effects do; of
    /// the reference's phases only those known to look and think do not.
    fn acts(&self, ours: bool) -> bool {
        match self.kind.as_deref() {
            Some("llm" | "propose" | "answer") => false,
            Some(_) => true,
            None if ours => false,
            None => {
                let phase = self.recorded.step_id.split('_').next().unwrap_or_default();
                !PHASES.contains(&phase) || phase == "act"
            }
        }
    }

    fn append(&mut self, line: &Map<String, Value>) {
        let recorded = &mut self.recorded;
        recorded.status = text(line, "status").or_else(|| Some("pending".to_owned()));
        for (key, into) in [
            ("idem_key", &mut recorded.idem_key),
            ("tool", &mut recorded.tool),
            ("params_hash", &mut recorded.params_hash),
            ("pre_hash", &mut recorded.pre_hash),
            ("expected_post_hash", &mut recorded.expected_post_hash),
            ("kind", &mut self.kind),
        ] {
            if let Some(value) = text(line, key) {
                *into = Some(value);
            }
        }
        self.repeatable = line.get("repeatable").and_then(Value::as_bool).unwrap_or(false);
        let reserved = usage(line.get("reserved"));
        if !reserved.is_zero() {
            self.reserved = Some((text(line, "day").unwrap_or_default(), reserved));
        }
        if let Some(amount) = line.get("usage") {
            self.used.push((text(line, "day").unwrap_or_default(), usage(Some(amount))));
        }
    }

    fn turn(&mut self, line: &Map<String, Value>) {
        let recorded = &mut self.recorded;
        for (key, into) in [
            ("status", &mut recorded.status),
            ("pre_hash", &mut recorded.observed_pre_hash),
            ("post_hash", &mut recorded.post_hash),
            ("result_hash", &mut recorded.result_hash),
        ] {
            if let Some(value) = text(line, key) {
                *into = Some(value);
            }
        }
        let stated = line.get("usage").map(|amount| usage(Some(amount)));
        match recorded.status.as_deref() {
            Some("executing") if stated.is_none() => {
                // Begun again although the former try was never settled: that one counts in full.
                self.give_up();
                self.open_reservation = true;
            }
            Some("pending") => self.recorded.observed_pre_hash = None,
            _ => {}
        }
        if let Some(amount) = stated {
            self.open_reservation = false;
            self.used.push((text(line, "day").unwrap_or_default(), amount));
        }
    }

    fn give_up(&mut self) {
        if self.open_reservation
            && let Some(reserved) = &self.reserved
        {
            self.used.push(reserved.clone());
        }
        self.open_reservation = false;
    }

    fn spent(&self) -> impl Iterator<Item = (String, Usage)> + '_ {
        let unknown = self.reserved.clone().filter(|_| self.open_reservation);
        self.used.iter().cloned().chain(unknown)
    }
}

/// The state that a plan's end states; the reference states only how the plan ended.
fn ended(end: &Map<String, Value>) -> (MandateState, Option<String>) {
    let reason = text(end, "reason");
    match text(end, "state").as_deref().map(MandateState::parse) {
        Some(Some(MandateState::Running)) => (MandateState::Queued, Some(REBUILT.to_owned())),
        Some(Some(state)) => (state, reason),
        Some(None) => (MandateState::Review, Some(UNCERTAIN.to_owned())),
        None => match text(end, "status").as_deref() {
            Some("succeeded") => (MandateState::Succeeded, reason),
            Some("failed") => (MandateState::Failed, reason),
            Some("abandoned") => (MandateState::Cancelled, reason),
            _ => (MandateState::Review, Some(UNCERTAIN.to_owned())),
        },
    }
}

fn text(line: &Map<String, Value>, key: &str) -> Option<String> {
    line.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn usage(value: Option<&Value>) -> Usage {
    value.and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
