//! The trial of a version that has just taken its slot: what counts against it, and when it is
//! over. Pure; the clock and the store are the caller's.

use kairos_plugin_api::{Usage, code};
use serde_json::{Value, json};

use super::Settings;
use crate::daemon::dispatch::Verdict;
use crate::domain::mandate::{CycleEnd, CycleStatus};
use crate::store::{EndedCycle, RecordedCycle};

/// One in billionths.
const ONE: u128 = 1_000_000_000;
/// Cycles before usage is compared while a trial goes on; one expensive cycle says nothing then.
const COST_AFTER: u32 = 3;
/// What a cycle may always use, so that a version that used nothing can have a successor that does.
const COST_FLOOR: Usage =
    Usage { llm_calls: 1, input_tokens: 1000, output_tokens: 1000, cost_nano_usd: 1_000_000 };

/// What a cycle's end says about its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// It did its work, or was parked by the host.
    Well,
    /// It reported an error.
    Error,
    /// Something that a version in service never does.
    Fatal(&'static str),
    /// Nothing: somebody stopped it, or only a person can tell.
    Nothing,
}

impl Counts {
    /// What that end says.
    #[must_use]
    pub fn of(verdict: &Verdict) -> Self {
        match verdict.end {
            CycleEnd::Done
            | CycleEnd::More
            | CycleEnd::Checkpoint
            | CycleEnd::BudgetPause
            | CycleEnd::ApprovalPause => Self::Well,
            CycleEnd::Interrupted | CycleEnd::Cancelled | CycleEnd::Review | CycleEnd::RolledBack => {
                Self::Nothing
            }
            CycleEnd::Died => Self::Fatal("its worker died"),
            CycleEnd::Error => match verdict.reason.as_deref() {
                Some(code::PANIC) => Self::Fatal("it panicked"),
                Some(code::DEADLINE) => Self::Fatal("it missed the deadline of a cycle"),
                Some(code::BAD_REPORT) => Self::Fatal("it gave a report that cannot be read"),
                // The daemon's own fault.
                Some("host_panic") => Self::Nothing,
                _ => Self::Error,
            },
        }
    }
}

/// What follows for the trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes on.
    GoOn,
    /// It has served its time.
    Pass,
    /// The former version gets its place back.
    RollBack(String),
}

/// The books of a trial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    cycles: u32,
    errors: u32,
    used: Usage,
    /// Mean usage of the recorded cycles; none when nothing was recorded.
    baseline: Option<Usage>,
}

impl Counters {
    /// Empty books, beside what the recorded cycles used on average.
    #[must_use]
    pub fn new(recorded: &[RecordedCycle]) -> Self {
        let count = u64::try_from(recorded.len()).unwrap_or(u64::MAX);
        let sum = recorded.iter().fold(Usage::ZERO, |sum, cycle| sum.plus(cycle.usage));
        let baseline = (count > 0).then(|| Usage {
            llm_calls: sum.llm_calls.div_ceil(count),
            input_tokens: sum.input_tokens.div_ceil(count),
            output_tokens: sum.output_tokens.div_ceil(count),
            cost_nano_usd: sum.cost_nano_usd.div_ceil(count),
        });
        Self { baseline, ..Self::default() }
    }

    /// The books of a trial that goes on after a start, and what they say by now: of the cycles that it
    /// has ended, and of those that it could not begin.
    #[must_use]
    pub fn of(
        recorded: &[RecordedCycle],
        ended: &[EndedCycle],
        not_begun: u32,
        settings: &Settings,
    ) -> (Self, Decision) {
        let mut counters = Self::new(recorded);
        let mut decision = Decision::GoOn;
        // First what cost nothing, so that nothing looks dearer on the way than it is in the end.
        let not_begun = std::iter::repeat_n((Counts::Error, Usage::ZERO), not_begun as usize);
        let ended = ended.iter().map(|cycle| {
            let counts = match cycle.status {
                CycleStatus::Ok | CycleStatus::Paused => Counts::Well,
                CycleStatus::Error => Counts::Error,
                CycleStatus::Interrupted | CycleStatus::RolledBack => Counts::Nothing,
            };
            (counts, cycle.usage)
        });
        for (counts, usage) in not_begun.chain(ended) {
            decision = counters.book(counts, usage, settings);
            if let Decision::RollBack(_) = decision {
                break;
            }
        }
        (counters, decision)
    }

    /// Books the end of a cycle.
    pub fn book(&mut self, counts: Counts, usage: Usage, settings: &Settings) -> Decision {
        match counts {
            Counts::Nothing => return Decision::GoOn,
            Counts::Well => {}
            Counts::Error => self.errors += 1,
            Counts::Fatal(why) => return Decision::RollBack(why.to_owned()),
        }
        self.cycles += 1;
        self.used = self.used.plus(usage);
        let allowed = u128::from(settings.canary_cycles) * u128::from(settings.canary_error_rate) / ONE;
        if u128::from(self.errors) > allowed {
            return Decision::RollBack(format!(
                "{} of its {} cycles reported an error or could not begin; {allowed} of {} may",
                self.errors, self.cycles, settings.canary_cycles
            ));
        }
        let over = self.cycles >= settings.canary_cycles;
        if (over || self.cycles >= COST_AFTER)
            && let Some(why) = self.at_its_end(settings)
        {
            return Decision::RollBack(why);
        }
        if over { Decision::Pass } else { Decision::GoOn }
    }

    /// Why it must not pass once its window is over: it was too dear, by as many cycles as there were.
    #[must_use]
    pub fn at_its_end(&self, settings: &Settings) -> Option<String> {
        let baseline = self.baseline?.max(COST_FLOOR);
        let factor = settings.canary_cost_factor;
        if self.cycles == 0 {
            return None;
        }
        let tokens = |usage: Usage| usage.input_tokens.saturating_add(usage.output_tokens);
        let fields = [
            ("LLM calls", self.used.llm_calls, baseline.llm_calls),
            ("tokens", tokens(self.used), tokens(baseline)),
            ("nano-dollars", self.used.cost_nano_usd, baseline.cost_nano_usd),
        ];
        fields.into_iter().find_map(|(name, used, usual)| {
            let (used, usual) = (u128::from(used), u128::from(usual));
            (used * ONE > usual * u128::from(self.cycles) * u128::from(factor)).then(|| {
                let mean = used / u128::from(self.cycles);
                format!("its cycles use {mean} {name} on average; {usual} is usual")
            })
        })
    }

    /// For people.
    #[must_use]
    pub fn view(&self, settings: &Settings) -> Value {
        json!({
            "cycles": self.cycles,
            "of": settings.canary_cycles,
            "errors": self.errors,
            "used": self.used,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kairos_plugin_api::{Mandate, Report};
    use std::collections::HashMap;

    fn settings() -> Settings {
        Settings { canary_cycles: 10, canary_error_rate: 100_000_000, ..Settings::default() }
    }

    fn verdict(end: CycleEnd, reason: Option<&str>) -> Verdict {
        Verdict { end, reason: reason.map(ToOwned::to_owned), error: None }
    }

    fn recorded(calls: u64) -> RecordedCycle {
        RecordedCycle {
            mandate: Mandate::new("m", "goal"),
            generation: "old".into(),
            started_at: "2026-11-22T09:00:00Z".parse().unwrap(),
            steps: Vec::new(),
            state: HashMap::new(),
            report: Report::ok(),
            usage: calls_of(calls),
        }
    }

    fn calls_of(calls: u64) -> Usage {
        Usage { llm_calls: calls, ..Usage::ZERO }
    }

    #[test]
    fn ends_count_as_the_table_says() {
        use CycleEnd as E;
        for (end, reason, counts) in [
            (E::Done, None, Counts::Well),
            (E::More, None, Counts::Well),
            (E::BudgetPause, None, Counts::Well),
            (E::Interrupted, None, Counts::Nothing),
            (E::Cancelled, None, Counts::Nothing),
            (E::Review, Some("diverged"), Counts::Nothing),
            (E::Error, None, Counts::Error),
            (E::Error, Some("failed"), Counts::Error),
            (E::Error, Some("host_panic"), Counts::Nothing),
        ] {
            assert_eq!(Counts::of(&verdict(end, reason)), counts, "{end:?} {reason:?}");
        }
        assert!(matches!(Counts::of(&verdict(E::Died, None)), Counts::Fatal(_)));
        for reason in ["panic", "deadline", "bad_report"] {
            let counts = Counts::of(&verdict(E::Error, Some(reason)));
            assert!(matches!(counts, Counts::Fatal(_)), "{reason}");
        }
    }

    #[test]
    fn errors_up_to_the_rate_pass_and_one_more_rolls_back() {
        let mut counters = Counters::default();
        assert_eq!(counters.book(Counts::Error, Usage::ZERO, &settings()), Decision::GoOn);
        for _ in 0..8 {
            assert_eq!(counters.book(Counts::Well, Usage::ZERO, &settings()), Decision::GoOn);
        }
        assert_eq!(counters.clone().book(Counts::Well, Usage::ZERO, &settings()), Decision::Pass);
        let last = counters.book(Counts::Error, Usage::ZERO, &settings());
        assert_eq!(
            last,
            Decision::RollBack(
                "2 of its 10 cycles reported an error or could not begin; 1 of 10 may".to_owned()
            )
        );
    }

    #[test]
    fn books_of_a_trial_that_goes_on_count_what_could_not_begin() {
        let ended = |status| EndedCycle { status, usage: Usage::ZERO };
        let of = |ended: &[EndedCycle], not_begun| Counters::of(&[], ended, not_begun, &settings());
        let (counters, decision) = of(&[ended(CycleStatus::Ok)], 1);
        assert_eq!((counters.cycles, counters.errors, decision), (2, 1, Decision::GoOn));
        assert_eq!(of(&[], 1).1, Decision::GoOn);
        for (cycles, not_begun) in [(&[][..], 2), (&[ended(CycleStatus::Error)], 1)] {
            assert!(matches!(of(cycles, not_begun).1, Decision::RollBack(_)), "{not_begun}");
        }
    }

    #[test]
    fn one_fatal_end_is_enough_and_what_says_nothing_does_not_count() {
        let mut counters = Counters::default();
        for _ in 0..50 {
            assert_eq!(counters.book(Counts::Nothing, calls_of(99), &settings()), Decision::GoOn);
        }
        let fatal = counters.book(Counts::Fatal("it panicked"), Usage::ZERO, &settings());
        assert_eq!(fatal, Decision::RollBack("it panicked".to_owned()));
    }

    #[test]
    fn usage_beyond_the_factor_rolls_back_after_some_cycles() {
        let mut counters = Counters::new(&[recorded(2), recorded(4)]);
        for _ in 0..COST_AFTER - 1 {
            assert_eq!(counters.book(Counts::Well, calls_of(7), &settings()), Decision::GoOn);
        }
        let last = counters.book(Counts::Well, calls_of(7), &settings());
        assert_eq!(last, Decision::RollBack("its cycles use 7 LLM calls on average; 3 is usual".to_owned()));
        let mut within = Counters::new(&[recorded(3)]);
        let mut unknown = Counters::new(&[]);
        for _ in 0..5 {
            assert_eq!(within.book(Counts::Well, calls_of(6), &settings()), Decision::GoOn);
            assert_eq!(unknown.book(Counts::Well, calls_of(1000), &settings()), Decision::GoOn);
        }
    }
}
