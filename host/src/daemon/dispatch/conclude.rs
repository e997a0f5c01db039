//! What a cycle's outcome means. Pure: no clock, no store; every rule is a row of the test's table.

use kairos_plugin_api::context::limit::TEXT_MAX;
use kairos_plugin_api::{Report, Status, code};

use crate::broker::Imposed;
use crate::domain::mandate::CycleEnd;
use crate::domain::talk::shortened;
use crate::runner::RunnerError;

/// Longest reason that is kept, in bytes; some are an error's code.
const REASON_MAX: usize = 128;

/// Who asked a running cycle to end. More than one may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// A person, or a replacing occurrence.
    pub cancel: bool,
    /// The daemon ends.
    pub shutdown: bool,
    /// Its time is over.
    pub deadline: bool,
    /// Nobody waits for it any longer.
    pub abandon: bool,
}

impl Stops {
    /// True when anybody asked.
    #[must_use]
    pub fn any(self) -> bool {
        self.cancel || self.shutdown || self.deadline || self.abandon
    }
}

/// What came back from the runner.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A report.
    Report(Report),
    /// No report.
    Failed(RunnerError),
    /// Nothing in the time it was given; the thread is left to itself.
    Abandoned,
}

/// All that matters beside the outcome.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Who asked it to end.
    pub stops: Stops,
    /// The host's own answer that ended the attempt; it counts whatever the runner made of it.
    pub imposed: Option<Imposed>,
    /// The runner looked and was told to end.
    pub saw_stop: bool,
    /// It is code of the embedding program, whose word about a shutdown of its own is good.
    pub builtin: bool,
}

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How the cycle ended.
    pub end: CycleEnd,
    /// More precise than the end, where it is not obvious.
    pub reason: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Verdict {
    fn plain(end: CycleEnd) -> Self {
        Self { end, reason: None, error: None }
    }

    /// With texts as long as texts may be: they may be a runner's.
    #[must_use]
    pub(super) fn shortened(self) -> Self {
        Self {
            end: self.end,
            reason: self.reason.map(|reason| shortened(reason, REASON_MAX)),
            error: self.error.map(|error| shortened(error, TEXT_MAX)),
        }
    }

    fn error(reason: &str, error: impl Into<String>) -> Self {
        Self { end: CycleEnd::Error, reason: Some(reason.to_owned()), error: Some(error.into()) }
    }
}

/// Maps an outcome to an end. A person's stop wins over everything but work that is done and a
/// record that does not match; a host's answer wins over the runner's.
#[must_use]
pub fn conclude(outcome: &Outcome, seen: &Seen) -> Verdict {
    let verdict = match &seen.imposed {
        Some(why) => imposed(why, seen),
        None => returned(outcome, seen),
    };
    match verdict.end {
        CycleEnd::Done | CycleEnd::Review => verdict,
        _ if seen.stops.cancel => Verdict { end: CycleEnd::Cancelled, reason: None, ..verdict },
        _ => verdict,
    }
}

/// The verdict of what the host imposed.
fn imposed(why: &Imposed, seen: &Seen) -> Verdict {
    match why {
        Imposed::Stopped => stopped(seen),
        // The services may have seen it before whoever waits for the report did.
        Imposed::Deadline => stopped(&Seen { stops: Stops { deadline: true, ..seen.stops }, ..seen.clone() }),
        Imposed::Store(_) | Imposed::Budget(_) | Imposed::Diverged { .. } | Imposed::Review { .. } => {
            Verdict {
                end: why.end(),
                reason: why.reason().map(ToOwned::to_owned),
                error: (!matches!(why, Imposed::Budget(_))).then(|| why.answer().message),
            }
        }
    }
}

fn returned(outcome: &Outcome, seen: &Seen) -> Verdict {
    match outcome {
        Outcome::Report(report) => match report.status {
            Status::Ok if report.more => Verdict::plain(CycleEnd::More),
            Status::Ok => Verdict::plain(CycleEnd::Done),
            Status::Paused => Verdict::plain(CycleEnd::Checkpoint),
            // It saw that it should end and said so in its own way.
            Status::Error if seen.saw_stop && seen.stops.any() => stopped(seen),
            Status::Error => Verdict {
                end: CycleEnd::Error,
                reason: None,
                error: Some(report.error.clone().unwrap_or_else(|| "the runner reported an error".into())),
            },
        },
        Outcome::Failed(RunnerError::Call(error)) => match error.code.as_str() {
            code::STOPPED | code::DEADLINE => stopped(seen),
            code::PAUSED => Verdict::plain(CycleEnd::Checkpoint),
            other => Verdict::error(other, error.message.clone()),
        },
        Outcome::Failed(error @ RunnerError::Panic(_)) => Verdict::error(code::PANIC, error.to_string()),
        Outcome::Failed(error @ RunnerError::BadReport(_)) => {
            Verdict::error(code::BAD_REPORT, error.to_string())
        }
        // The host's own doing: the same as if it had been left to itself.
        Outcome::Failed(RunnerError::Died(death)) if death.by_host && !seen.stops.any() => {
            Verdict::plain(CycleEnd::Interrupted)
        }
        Outcome::Failed(RunnerError::Died(death)) if death.by_host || seen.stops.deadline => stopped(seen),
        Outcome::Failed(error @ (RunnerError::Died(_) | RunnerError::Unavailable(_))) => {
            Verdict { end: CycleEnd::Died, reason: None, error: Some(error.to_string()) }
        }
        Outcome::Abandoned => stopped(seen),
    }
}

/// An attempt that ended because it was asked to, or says so.
fn stopped(seen: &Seen) -> Verdict {
    if seen.stops.deadline {
        return Verdict::error(code::DEADLINE, "the cycle's deadline has passed");
    }
    if seen.stops.any() || seen.builtin {
        return Verdict::plain(CycleEnd::Interrupted);
    }
    // Taking its word would run it again at once, for ever.
    Verdict::error(code::STOPPED, "the runner says it was stopped, but nobody asked it to")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Death;
    use crate::store::{self, BudgetBlock};
    use kairos_plugin_api::testing::FakeHost;
    use kairos_plugin_api::{CallError, Mandate};

    const NONE: Stops = Stops { cancel: false, shutdown: false, deadline: false, abandon: false };
    const CANCEL: Stops = Stops { cancel: true, ..NONE };
    const SHUTDOWN: Stops = Stops { shutdown: true, ..NONE };
    const DEADLINE: Stops = Stops { deadline: true, ..NONE };

    fn report(status: Status, more: bool) -> Outcome {
        Outcome::Report(Report { status, more, ..Report::ok() })
    }

    fn failed(code: &str) -> Outcome {
        Outcome::Failed(RunnerError::Call(CallError::new(code, "x")))
    }

    fn died(by_host: bool) -> Outcome {
        Outcome::Failed(RunnerError::Died(Death { by_host, ..Death::without_process("x") }))
    }

    fn check(outcome: &Outcome, stops: Stops, imposed: Option<Imposed>, end: CycleEnd, reason: Option<&str>) {
        let seen = Seen { stops, imposed, ..Seen::default() };
        let verdict = conclude(outcome, &seen);
        assert_eq!((verdict.end, verdict.reason.as_deref()), (end, reason), "{outcome:?} {seen:?}");
    }

    fn budget() -> Option<Imposed> {
        let block = BudgetBlock { limit_kind: "calls", limit: 1, used: 1, calls: 1 };
        Some(Imposed::Budget(block))
    }

    fn diverged() -> Option<Imposed> {
        Some(Imposed::Diverged { seq: 1, detail: serde_json::Value::Null })
    }

    fn review() -> Option<Imposed> {
        Some(Imposed::Review { seq: 1, reason: "world_changed".into(), detail: String::new() })
    }

    #[test]
    fn each_outcome_has_its_end() {
        use CycleEnd as E;
        use Status as S;
        let rows = [
            (report(S::Ok, false), NONE, None, E::Done, None),
            (report(S::Ok, true), NONE, None, E::More, None),
            (report(S::Paused, false), NONE, None, E::Checkpoint, None),
            (report(S::Error, false), NONE, None, E::Error, None),
            // Work that is done is done, whoever asked for what.
            (report(S::Ok, false), CANCEL, None, E::Done, None),
            (report(S::Ok, false), DEADLINE, None, E::Done, None),
            (report(S::Ok, true), CANCEL, None, E::Cancelled, None),
            (report(S::Ok, true), SHUTDOWN, None, E::More, None),
            (report(S::Paused, false), CANCEL, None, E::Cancelled, None),
            (report(S::Error, false), CANCEL, None, E::Cancelled, None),
            (report(S::Error, false), SHUTDOWN, None, E::Error, None),
            // The host's answers win over what the runner made of them.
            (report(S::Ok, false), NONE, budget(), E::BudgetPause, None),
            (report(S::Ok, false), NONE, diverged(), E::Review, Some("diverged")),
            (report(S::Ok, false), CANCEL, diverged(), E::Review, Some("diverged")),
            (failed(code::PAUSED), NONE, review(), E::Review, Some("world_changed")),
            (failed(code::BUDGET_EXHAUSTED), CANCEL, budget(), E::Cancelled, None),
            (report(S::Ok, false), SHUTDOWN, Some(Imposed::Stopped), E::Interrupted, None),
            (report(S::Ok, false), CANCEL, Some(Imposed::Stopped), E::Cancelled, None),
            (report(S::Ok, false), NONE, Some(Imposed::Deadline), E::Error, Some("deadline")),
            (
                failed(code::STOPPED),
                NONE,
                Some(Imposed::Store(store::Error::Closed)),
                E::Interrupted,
                Some("store"),
            ),
            // A host's word in the runner's mouth is only an error.
            (failed(code::BUDGET_EXHAUSTED), NONE, None, E::Error, Some("budget_exhausted")),
            (failed(code::DIVERGED), NONE, None, E::Error, Some("diverged")),
            (failed(code::PAUSED), NONE, None, E::Checkpoint, None),
            (failed(code::STOPPED), SHUTDOWN, None, E::Interrupted, None),
            (failed(code::STOPPED), CANCEL, None, E::Cancelled, None),
            (failed(code::STOPPED), DEADLINE, None, E::Error, Some("deadline")),
            (failed(code::STOPPED), NONE, None, E::Error, Some("stopped")),
            (Outcome::Failed(RunnerError::Panic("x".into())), NONE, None, E::Error, Some("panic")),
            (Outcome::Failed(RunnerError::BadReport("x".into())), NONE, None, E::Error, Some("bad_report")),
            // A death is no error of the runner's, unless it was the host's own doing.
            (died(false), NONE, None, E::Died, None),
            (died(false), SHUTDOWN, None, E::Died, None),
            (died(false), CANCEL, None, E::Cancelled, None),
            (died(false), DEADLINE, None, E::Error, Some("deadline")),
            (died(false), NONE, budget(), E::BudgetPause, None),
            (died(false), NONE, diverged(), E::Review, Some("diverged")),
            (died(true), NONE, None, E::Interrupted, None),
            (died(true), SHUTDOWN, None, E::Interrupted, None),
            (died(true), CANCEL, None, E::Cancelled, None),
            (died(true), DEADLINE, None, E::Error, Some("deadline")),
            (Outcome::Failed(RunnerError::Unavailable("x".into())), NONE, None, E::Died, None),
            (Outcome::Abandoned, DEADLINE, None, E::Error, Some("deadline")),
            (Outcome::Abandoned, SHUTDOWN, None, E::Interrupted, None),
            (Outcome::Abandoned, CANCEL, None, E::Cancelled, None),
            (Outcome::Abandoned, Stops { shutdown: true, ..DEADLINE }, None, E::Error, Some("deadline")),
        ];
        for (outcome, stops, imposed, end, reason) in rows {
            check(&outcome, stops, imposed, end, reason);
        }
    }

    #[test]
    fn error_after_a_seen_stop_is_an_interruption() {
        let seen = Seen { stops: SHUTDOWN, saw_stop: true, ..Seen::default() };
        assert_eq!(conclude(&report(Status::Error, false), &seen).end, CycleEnd::Interrupted);
    }

    #[test]
    fn program_that_embeds_may_say_by_itself_that_it_shuts_down() {
        let seen = Seen { builtin: true, ..Seen::default() };
        assert_eq!(conclude(&failed(code::STOPPED), &seen).end, CycleEnd::Interrupted);
    }

    /// What the scripted host runs after this: which cycle, and whether from its record.
    fn fake_goes_on(outcome: &Result<Report, CallError>, imposed: Option<&str>, stops: Stops) -> (u32, bool) {
        let mandate = Mandate::new("m", "g");
        let mut host = FakeHost::new();
        if stops.deadline {
            host = host.clone().deadline(host.now());
        }
        if let Some(code) = imposed {
            host = host.fail_at("llm", 1, CallError::new(code, "x"));
        }
        let _ = host.attempt(&mandate, |calls| {
            calls.call("now", b"{}").unwrap();
            if stops.shutdown {
                host.stop();
            }
            if imposed.is_some() {
                calls.call("llm", b"{}").unwrap_err();
            }
            outcome.clone()
        });
        let next = host.next(&mandate);
        let mut kept = false;
        let _ = host.attempt(&next, |_| {
            kept = !host.steps().is_empty();
            Ok(Report::ok())
        });
        (next.cycle, kept)
    }

    /// Whether the scripted host of the plugin-api goes on after an outcome as this table does.
    #[test]
    fn authors_fake_host_goes_on_as_the_daemon_does() {
        use crate::domain::mandate::{AfterCycle as A, after_cycle};

        let error = |code: &str| Err(CallError::new(code, "x"));
        let outcomes = [
            Ok(Report::ok()),
            Ok(Report::ok().with_more()),
            Ok(Report::paused("x")),
            Ok(Report::error("x")),
            error(code::STOPPED),
            error(code::DEADLINE),
            error(code::PAUSED),
            error(code::BUDGET_EXHAUSTED),
            error(code::FAILED),
            error(code::PANIC),
            error("of_a_later_version"),
        ];
        let imposed = [
            (None, NONE),
            (None, SHUTDOWN),
            (None, DEADLINE),
            (Some((code::STOPPED, Imposed::Stopped)), SHUTDOWN),
            (Some((code::DEADLINE, Imposed::Deadline)), DEADLINE),
            (budget().map(|why| (code::BUDGET_EXHAUSTED, why)), NONE),
            (diverged().map(|why| (code::DIVERGED, why)), NONE),
            (review().map(|why| (code::PAUSED, why)), NONE),
        ];
        for (why, stops) in &imposed {
            for outcome in &outcomes {
                let goes_on = fake_goes_on(outcome, why.as_ref().map(|(code, _)| *code), *stops);
                let seen =
                    Seen { stops: *stops, imposed: why.clone().map(|(_, why)| why), ..Seen::default() };
                let returned = match outcome.clone() {
                    Ok(report) => Outcome::Report(report),
                    Err(error) => Outcome::Failed(RunnerError::Call(error)),
                };
                let end = conclude(&returned, &seen).end;
                let expected = match after_cycle(end, 1, 10, 0, 0) {
                    A::SameCycle | A::PauseBudget | A::Review => (1, true),
                    A::RetryCycle => (1, false),
                    A::Succeed | A::NextCycle | A::PauseCheckpoint => (2, false),
                    other => panic!("{other:?} after one cycle"),
                };
                assert_eq!(goes_on, expected, "{outcome:?} {seen:?}");
            }
        }
    }
}
