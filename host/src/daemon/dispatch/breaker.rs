//! Holds back runners whose processes keep dying, so that a broken plugin takes neither the
//! machine's time nor one mandate after the other. No clock of its own.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// So many deaths without a cycle that came through, within [`WINDOW`], hold a runner back.
const DEATHS: usize = 5;
/// See [`DEATHS`].
const WINDOW: Duration = Duration::from_secs(60);
/// First and longest time that a runner is held back; it doubles each time.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// The breakers of all runners, by name. Times are monotonic.
#[derive(Debug, Default)]
pub(super) struct Breakers(BTreeMap<String, Breaker>);

#[derive(Debug, Default)]
struct Breaker {
    deaths: VecDeque<Duration>,
    last: String,
    /// The last time it was held back for, until a cycle comes through.
    wait: Option<Duration>,
    until: Option<Duration>,
}

impl Breakers {
    /// Its process died. Gives for how long the runner is held back, when it is.
    pub(super) fn died(&mut self, runner: &str, how: &str, now: Duration) -> Option<Duration> {
        let breaker = self.0.entry(runner.to_owned()).or_default();
        how.clone_into(&mut breaker.last);
        breaker.deaths.push_back(now);
        while breaker.deaths.front().is_some_and(|at| now.saturating_sub(*at) > WINDOW) {
            breaker.deaths.pop_front();
        }
        // One that was let try again has one try.
        if breaker.wait.is_none() && breaker.deaths.len() < DEATHS {
            return None;
        }
        Some(breaker.hold(now))
    }

    /// It could not even be started.
    pub(super) fn unavailable(&mut self, runner: &str, why: &str, now: Duration) -> Duration {
        let breaker = self.0.entry(runner.to_owned()).or_default();
        why.clone_into(&mut breaker.last);
        breaker.hold(now)
    }

    /// A cycle of it came through. True when it had been held back before.
    pub(super) fn served(&mut self, runner: &str) -> bool {
        self.0.remove(runner).is_some_and(|breaker| breaker.wait.is_some())
    }

    /// Something else serves that runner from now on.
    pub(super) fn forget(&mut self, runner: &str) {
        self.0.remove(runner);
    }

    /// Why it was held back last, if nothing has come through since then.
    pub(super) fn trouble(&self, runner: &str) -> Option<&str> {
        self.0.get(runner).filter(|breaker| breaker.wait.is_some()).map(|breaker| breaker.last.as_str())
    }

    /// Why it is held back at `now`, for people, and until when.
    pub(super) fn held(&self, runner: &str, now: Duration) -> Option<(String, Duration)> {
        let breaker = self.0.get(runner)?;
        let until = breaker.until.filter(|until| *until > now)?;
        Some((breaker.last.clone(), until))
    }

    /// Lets those try again whose time has come; true when there were any.
    pub(super) fn release(&mut self, now: Duration) -> bool {
        let mut any = false;
        for breaker in self.0.values_mut().filter(|breaker| breaker.until.is_some_and(|until| until <= now)) {
            breaker.until = None;
            any = true;
        }
        any
    }

    /// When [`Breakers::release`] has something to do.
    pub(super) fn next(&self) -> Option<Duration> {
        self.0.values().filter_map(|breaker| breaker.until).min()
    }
}

impl Breaker {
    fn hold(&mut self, now: Duration) -> Duration {
        // Those that were under way together count as one try.
        if let Some(until) = self.until.filter(|until| *until > now) {
            return until.saturating_sub(now);
        }
        let wait = self.wait.map_or(BACK_OFF.0, |wait| (wait * 2).min(BACK_OFF.1));
        (self.wait, self.until) = (Some(wait), Some(now + wait));
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn fifth_death_in_a_minute_holds_and_each_further_one_holds_longer() {
        let mut breakers = Breakers::default();
        for n in 0..4 {
            assert_eq!(breakers.died("r", "x", SECOND * n), None);
        }
        assert_eq!(breakers.died("r", "worker killed", SECOND * 4), Some(SECOND * 5));
        assert_eq!(breakers.held("r", SECOND * 4), Some(("worker killed".to_owned(), SECOND * 9)));
        assert_eq!(breakers.next(), Some(SECOND * 9));
        assert!(!breakers.release(SECOND * 8) && breakers.release(SECOND * 9));
        assert_eq!((breakers.held("r", SECOND * 9), breakers.next()), (None, None));
        let mut now = SECOND * 1000;
        for wait in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(breakers.died("r", "x", now), Some(SECOND * wait), "one try, long after");
            assert_eq!(breakers.died("r", "x", now + SECOND), Some(SECOND * (wait - 1)), "of the same try");
            now += SECOND * wait;
            assert!(breakers.release(now));
        }
        assert!(breakers.served("r"));
        assert_eq!(breakers.died("r", "x", now), None, "it begins afresh");
    }

    #[test]
    fn rare_deaths_and_those_between_good_cycles_hold_nothing() {
        let mut breakers = Breakers::default();
        for n in 0..100 {
            assert_eq!(breakers.died("rare", "x", SECOND * 16 * n), None);
            assert_eq!(breakers.died("mixed", "x", SECOND * n), None);
            assert!(!breakers.served("mixed"));
        }
        assert_eq!(breakers.unavailable("none", "no memory", SECOND), SECOND * 5, "at once");
        assert!(breakers.held("other", SECOND).is_none());
    }
}
