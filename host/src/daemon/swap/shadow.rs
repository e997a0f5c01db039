//! Shadow replay: a candidate is run on recorded cycles before it serves, and what comes out is
//! compared with what came out then.
//!
//! A cycle differs when its status, its wish for more, or the number of its effects of a kind is
//! another one, when it claims more usage than then, or when it asks for what nothing recorded
//! answers. Summaries, progress, logs, phases and the words of requests do not count. Cycles that
//! differ are tolerated up to a share; a crash and a hang never are.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use kairos_plugin_api::{CallError, Report, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::view::Refusal;
use crate::broker::shadow::{Effects, ShadowHost, ShadowSeen, told_then};
use crate::runner::{Generation, RunnerError};
use crate::store::RecordedCycle;
use crate::sys::clock::Clock;

/// One in billionths.
const ONE: u64 = 1_000_000_000;

/// How one replayed cycle came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shadowed {
    /// As then.
    Same,
    /// Otherwise.
    Differs,
    /// It asked for what nothing recorded answers.
    Unmatched,
    /// It panicked, died or gave no report.
    Crashed,
    /// It did not end in its time.
    Hung,
}

/// One thing that came out otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// `status`, `more`, `llm_calls`, `tool_calls`, `proposals`, `claims`, `request`, `outcome`.
    pub what: String,
    /// Then.
    pub expected: Value,
    /// Now.
    pub got: Value,
}

/// A cycle that did not come out as then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CycleReport {
    /// Its mandate.
    pub mandate: String,
    /// Its number.
    pub cycle: u32,
    /// How it came out.
    pub outcome: Shadowed,
    /// What was otherwise.
    pub differences: Vec<Difference>,
}

/// What a replay showed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowReport {
    /// Recorded cycles that the candidate was run on.
    pub replayed: u32,
    /// How many did not come out as then.
    pub differing: u32,
    /// How many of them are tolerated.
    pub tolerated: u32,
    /// Those that did not, in order.
    pub cycles: Vec<CycleReport>,
}

impl ShadowReport {
    /// Nothing to complain of, or why the candidate must not serve. Three lines.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        let worst = |outcome| self.cycles.iter().find(|cycle| cycle.outcome == outcome);
        let (code, cycle, what) = if let Some(cycle) = worst(Shadowed::Crashed) {
            ("shadow_crashed", cycle, "crashes on a recorded cycle".to_owned())
        } else if let Some(cycle) = worst(Shadowed::Hung) {
            ("shadow_hung", cycle, "does not end on a recorded cycle".to_owned())
        } else if self.differing > self.tolerated {
            let Self { replayed, differing, tolerated, .. } = self;
            let what = format!("differs on {differing} of {replayed} recorded cycles; {tolerated} may");
            ("shadow_differs", self.cycles.first()?, what)
        } else {
            return None;
        };
        let mut lines = vec![
            format!("the candidate {what}"),
            format!("first: cycle {} of mandate {}", cycle.cycle, cycle.mandate),
        ];
        lines.extend(cycle.differences.first().map(|found| {
            format!("{}: expected {}, got {}", found.what, shown(&found.expected), shown(&found.got))
        }));
        let remedy = if code == "shadow_differs" {
            "`--json` lists every difference; mend the candidate, or raise swap.tolerance"
        } else {
            "`--json` lists every cycle; mend the candidate"
        };
        Some(Refusal::new(code, lines.join("\n")).remedy(remedy))
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

/// How many of `replayed` cycles may differ; `share` is in billionths.
fn tolerated(replayed: u32, share: u64) -> u32 {
    let most = u128::from(replayed) * u128::from(share) / u128::from(ONE);
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// Runs a candidate on recorded cycles, oldest first. It ends at the first crash or hang. `each`
/// hears of the number done so far.
pub async fn replay(
    candidate: &Arc<Generation>,
    mut recorded: Vec<RecordedCycle>,
    limit: Duration,
    share: u64,
    clock: &dyn Clock,
    mut each: impl FnMut(u32),
) -> ShadowReport {
    recorded.reverse();
    let mut report = ShadowReport::default();
    for cycle in &recorded {
        let found = one(candidate, cycle, limit, clock).await;
        report.replayed += 1;
        each(report.replayed);
        if found.outcome == Shadowed::Same {
            continue;
        }
        let fatal = matches!(found.outcome, Shadowed::Crashed | Shadowed::Hung);
        report.differing += 1;
        report.cycles.push(found);
        if fatal {
            break;
        }
    }
    report.tolerated = tolerated(report.replayed, share);
    report
}

/// Ends a replayed cycle that nobody waits for any longer: it took too long, or the swap was given up.
struct Playing<'a> {
    candidate: &'a Generation,
    host: &'a ShadowHost,
    mandate: &'a str,
    over: bool,
}

impl Drop for Playing<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.host.stop();
            // A thread cannot be ended; its process can. Whatever it still asks is answered with a stop.
            let _ = self.candidate.kill(self.mandate);
        }
    }
}

async fn one(
    candidate: &Arc<Generation>,
    cycle: &RecordedCycle,
    limit: Duration,
    clock: &dyn Clock,
) -> CycleReport {
    let deadline = clock.now() + TimeDelta::from_std(limit).unwrap_or(TimeDelta::MAX);
    let host = ShadowHost::new(cycle, deadline);
    let mut answer = candidate.start(cycle.mandate.clone(), Arc::clone(&host) as _);
    let mut playing = Playing { candidate, host: &host, mandate: &cycle.mandate.id, over: false };
    let outcome = tokio::select! {
        biased;
        answer = &mut answer => Some(answer.unwrap_or_else(|_| {
            Err(RunnerError::BadReport("its thread ended without an answer".to_owned()))
        })),
        () = clock.sleep_until(clock.monotonic() + limit) => None,
    };
    playing.over = outcome.is_some();
    drop(playing);
    let (outcome, differences) = compare(cycle, outcome, &host.seen(), limit);
    CycleReport { mandate: cycle.mandate.id.clone(), cycle: cycle.mandate.cycle, outcome, differences }
}

/// What came out otherwise. Pure.
fn compare(
    cycle: &RecordedCycle,
    outcome: Option<Result<Report, RunnerError>>,
    seen: &ShadowSeen,
    limit: Duration,
) -> (Shadowed, Vec<Difference>) {
    let then = &cycle.report;
    let mut found = Differences(Vec::new());
    let report = match outcome {
        None => {
            found.add("outcome", "a report", format!("nothing within {} s", limit.as_secs_f64()));
            return (Shadowed::Hung, found.0);
        }
        Some(Err(RunnerError::Call(error))) => match &seen.unmatched {
            Some(what) => {
                found.add("request", "a recorded one", what.clone());
                return (Shadowed::Unmatched, found.0);
            }
            None => {
                found.add("status", json!(then.status), said(&error));
                return (Shadowed::Differs, found.0);
            }
        },
        Some(Err(error)) => {
            found.add("outcome", "a report", error.to_string());
            return (Shadowed::Crashed, found.0);
        }
        Some(Ok(report)) => report,
    };
    if let Some(what) = &seen.unmatched {
        found.add("request", "a recorded one", what.clone());
        return (Shadowed::Unmatched, found.0);
    }
    let (effects, asked) = (Effects::of(cycle), seen.effects);
    found.compare("status", json!(then.status), json!(report.status));
    found.compare("more", json!(then.more), json!(report.more));
    found.compare("llm_calls", json!(effects.llm), json!(asked.llm));
    found.compare("tool_calls", json!(effects.tool), json!(asked.tool));
    found.compare("proposals", json!(effects.propose), json!(asked.propose));
    // What a cycle counts: the calls that the host made, and what it claims beyond them, in its report
    // or on the way.
    let counted =
        |told: Usage, report: &Report| seen.metered.plus(told.max(report.usage().minus(seen.metered)));
    let (claimed, claims) = (counted(told_then(cycle), then), counted(seen.told, &report));
    if !claims.minus(claimed).is_zero() {
        found.add("claims", json!(claimed), json!(claims));
    }
    let outcome = if found.0.is_empty() { Shadowed::Same } else { Shadowed::Differs };
    (outcome, found.0)
}

fn said(error: &CallError) -> String {
    format!("the error {}: {}", error.code, error.message)
}

struct Differences(Vec<Difference>);

impl Differences {
    fn add(&mut self, what: &str, expected: impl Into<Value>, got: impl Into<Value>) {
        self.0.push(Difference { what: what.to_owned(), expected: expected.into(), got: got.into() });
    }

    fn compare(&mut self, what: &str, expected: Value, got: Value) {
        if expected != got {
            self.add(what, expected, got);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Builtin;
    use crate::store::{StepKind, StepRow, StepState};
    use crate::sys::clock::SystemClock;
    use kairos_plugin_api::{Context, LlmRequest, Mandate};
    use std::collections::HashMap;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn recorded(llm: u32, report: Report) -> RecordedCycle {
        let at = "2026-11-22T09:00:00Z".parse().unwrap();
        let step = |seq| StepRow {
            cycle: 1,
            seq,
            kind: StepKind::Llm,
            name: "canned".into(),
            phase: None,
            state: StepState::Done,
            key: String::new(),
            params_hash: String::new(),
            intent: Value::Null,
            result: Some(json!({"ok": {"text": "yes"}})),
            started_at: at,
            ended_at: Some(at),
        };
        RecordedCycle {
            mandate: Mandate::new("m", "goal"),
            generation: "old".into(),
            started_at: at,
            steps: (1..=llm).map(step).collect(),
            state: HashMap::new(),
            report,
            usage: Usage::ZERO,
        }
    }

    async fn on(
        cycles: Vec<RecordedCycle>,
        limit: Duration,
        share: u64,
        run: impl Fn(&Mandate, &Context) -> Result<Report, CallError> + Send + Sync + 'static,
    ) -> ShadowReport {
        let candidate = Arc::new(Generation::of("trial", Arc::new(Builtin::from_fn("new", run))));
        replay(&candidate, cycles, limit, share, &SystemClock::default(), |_| ()).await
    }

    fn ask(times: u32) -> impl Fn(&Mandate, &Context) -> Result<Report, CallError> + Send + Sync + 'static {
        move |_, ctx| {
            for _ in 0..times {
                ctx.llm(&LlmRequest::user("another prompt"))?;
            }
            Ok(Report::ok().with_summary("other words"))
        }
    }

    #[tokio::test]
    async fn same_effects_and_report_are_the_same_whatever_the_words() {
        let report = on(vec![recorded(2, Report::ok().with_summary("then"))], PATIENCE, 0, ask(2)).await;
        assert_eq!((report.replayed, report.differing), (1, 0));
        assert_eq!(report.refusal(), None);
    }

    #[tokio::test]
    async fn each_kind_of_difference_is_named_with_then_and_now() {
        let error = Report { error: None, ..Report::error("x") };
        let claims = Report { llm_calls: 3, ..Report::ok() };
        for (then, asks, what, outcome) in [
            (error, 1, "status", Shadowed::Differs),
            (Report::ok().with_more(), 1, "more", Shadowed::Differs),
            (Report::ok(), 0, "llm_calls", Shadowed::Differs),
            (Report::ok(), 2, "request", Shadowed::Unmatched),
        ] {
            let report = on(vec![recorded(1, then)], PATIENCE, 0, ask(asks)).await;
            let cycle = &report.cycles[0];
            assert_eq!((cycle.outcome, cycle.differences[0].what.as_str()), (outcome, what));
            assert_eq!(report.refusal().unwrap().code, "shadow_differs");
            assert_eq!(report.refusal().unwrap().message.lines().count(), 3);
        }
        let report = on(vec![recorded(0, Report::ok())], PATIENCE, 0, move |_, _| Ok(claims.clone())).await;
        assert_eq!(report.cycles[0].differences[0].what, "claims");
        let tells = |times| {
            move |_: &Mandate, ctx: &Context| {
                (0..times).try_for_each(|_| ctx.usage(Usage { llm_calls: 250, ..Usage::ZERO }))?;
                Ok(Report::ok())
            }
        };
        let report = on(vec![recorded(0, Report::ok())], PATIENCE, 0, tells(2)).await;
        assert_eq!(report.cycles[0].differences[0].what, "claims");
        assert_eq!(report.cycles[0].differences[0].got["llm_calls"], 500);
        let mut then = recorded(1, Report::ok());
        then.steps[0] = StepRow {
            kind: StepKind::Answer,
            name: "usage".into(),
            result: Some(json!(Usage { llm_calls: 250, ..Usage::ZERO })),
            ..then.steps[0].clone()
        };
        assert_eq!(on(vec![then.clone()], PATIENCE, 0, tells(1)).await.differing, 0, "as then");
        assert_eq!(on(vec![then], PATIENCE, 0, tells(2)).await.differing, 1, "more than then");
        let fewer = Report { llm_calls: 9, ..Report::ok() };
        assert_eq!(on(vec![recorded(0, fewer)], PATIENCE, 0, ask(0)).await.differing, 0, "less is no harm");
    }

    #[tokio::test]
    async fn differences_are_tolerated_up_to_the_share_and_crashes_never() {
        let cycles = || vec![recorded(1, Report::ok()), recorded(1, Report::ok())];
        let half = on(cycles(), PATIENCE, ONE / 2, ask(2)).await;
        assert_eq!((half.differing, half.tolerated), (2, 1));
        assert!(half.refusal().is_some());
        let all = on(cycles(), PATIENCE, ONE, ask(2)).await;
        assert_eq!(all.refusal(), None);
        let crash = on(cycles(), PATIENCE, ONE, |_, _| panic!("oh")).await;
        assert_eq!((crash.replayed, crash.cycles[0].outcome), (1, Shadowed::Crashed));
        assert_eq!(crash.refusal().unwrap().code, "shadow_crashed");
    }

    #[tokio::test]
    async fn a_candidate_that_hangs_is_left_and_refused() {
        let report = on(vec![recorded(0, Report::ok())], Duration::from_millis(50), ONE, |_, ctx| {
            while !ctx.should_stop() {
                std::thread::yield_now();
            }
            Ok(Report::ok())
        })
        .await;
        assert_eq!(report.cycles[0].outcome, Shadowed::Hung);
        assert_eq!(report.refusal().unwrap().code, "shadow_hung");
    }

    #[test]
    fn the_share_is_rounded_down() {
        for (replayed, share, most) in [(10, 0, 0), (10, ONE / 10, 1), (9, ONE / 10, 0), (3, ONE, 3)] {
            assert_eq!(tolerated(replayed, share), most);
        }
    }
}
