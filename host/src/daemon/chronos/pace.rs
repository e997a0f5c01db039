//! How fast a backlog may be caught up, and what the clock does meanwhile. Both look at
//! monotonic time; the wall clock alone can be set to anything.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};

/// A jump of the wall clock beyond this is a step, not a correction. Seconds (cronie's bound).
pub(super) const STEP: i64 = 3 * 3600;
/// The stretch that the catch-up limit counts over.
const MINUTE: Duration = Duration::from_secs(60);
/// After a refused commit nothing is tried for this long.
const HOLD: Duration = Duration::from_secs(1);

/// At most so many catch-up fires in any minute, so that a restart never bursts the budget.
#[derive(Debug)]
pub(super) struct Pace {
    per_minute: u32,
    recent: VecDeque<Duration>,
    hold_until: Option<Duration>,
}

impl Pace {
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute: per_minute.max(1), recent: VecDeque::new(), hold_until: None }
    }

    /// A reload may change the limit; what was used stays used.
    pub fn set_limit(&mut self, per_minute: u32) {
        self.per_minute = per_minute.max(1);
    }

    /// How many may be made now.
    pub fn allowance(&mut self, now: Duration) -> u32 {
        while self.recent.front().is_some_and(|made| *made + MINUTE <= now) {
            self.recent.pop_front();
        }
        self.per_minute.saturating_sub(u32::try_from(self.recent.len()).unwrap_or(u32::MAX))
    }

    /// So many were made.
    pub fn took(&mut self, count: u32, now: Duration) {
        self.recent.extend((0..count).map(|_| now));
    }

    /// How long until one more may be made.
    pub fn next_turn(&mut self, now: Duration) -> Duration {
        if self.allowance(now) > 0 {
            return Duration::ZERO;
        }
        let over = self.recent.len() - self.per_minute as usize;
        (self.recent[over] + MINUTE).saturating_sub(now)
    }

    /// The store refused: wait a little.
    pub fn hold(&mut self, now: Duration) {
        self.hold_until = Some(now + HOLD);
    }

    /// The store took something.
    pub fn go_on(&mut self) {
        self.hold_until = None;
    }

    /// How long to wait after a refusal.
    pub fn held(&self, now: Duration) -> Duration {
        self.hold_until.map_or(Duration::ZERO, |until| until.saturating_sub(now))
    }
}

/// Compares the two clocks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch(Option<(DateTime<Utc>, Duration)>);

/// What the wall clock did since it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It went on.
    None,
    /// It went back by so many seconds more than time passed, which may be few.
    Back(i64),
    /// It jumped ahead by more than [`STEP`]; a host that slept looks the same.
    Forward(i64),
}

impl Watch {
    /// What happened since the last [`Watch::note`].
    pub fn look(self, wall: DateTime<Utc>, monotonic: Duration) -> Step {
        let Some((last_wall, last_monotonic)) = self.0 else { return Step::None };
        let passed = i64::try_from(monotonic.saturating_sub(last_monotonic).as_secs()).unwrap_or(i64::MAX);
        let drift = (wall - last_wall).num_seconds().saturating_sub(passed);
        if drift > STEP {
            Step::Forward(drift)
        } else if wall < last_wall || drift < -STEP {
            Step::Back(-drift)
        } else {
            Step::None
        }
    }

    /// Remembers both.
    pub fn note(&mut self, wall: DateTime<Utc>, monotonic: Duration) {
        self.0 = Some((wall, monotonic));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn never_more_than_the_limit_in_any_minute() {
        let mut pace = Pace::new(3);
        assert_eq!(pace.allowance(s(0)), 3);
        pace.took(2, s(0));
        pace.took(1, s(10));
        assert_eq!((pace.allowance(s(59)), pace.next_turn(s(59))), (0, s(1)));
        assert_eq!((pace.allowance(s(60)), pace.next_turn(s(60))), (2, s(0)));
        pace.took(2, s(60));
        assert_eq!(pace.next_turn(s(60)), s(10));
        pace.set_limit(1);
        assert_eq!((pace.allowance(s(70)), pace.next_turn(s(70))), (0, s(50)));
    }

    #[test]
    fn a_limit_of_zero_still_makes_progress() {
        assert_eq!(Pace::new(0).allowance(s(0)), 1);
    }

    #[test]
    fn steps_are_told_from_time_that_passed() {
        let start = DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(20_000);
        let mut watch = Watch::default();
        assert_eq!(watch.look(start, s(0)), Step::None);
        watch.note(start, s(0));
        assert_eq!(watch.look(start + TimeDelta::days(30), s(30 * 86_400)), Step::None);
        assert_eq!(watch.look(start + TimeDelta::hours(3), s(0)), Step::None);
        assert_eq!(watch.look(start + TimeDelta::hours(4), s(0)), Step::Forward(4 * 3600));
        assert_eq!(watch.look(start - TimeDelta::minutes(5), s(60)), Step::Back(360));
        assert_eq!(watch.look(start + TimeDelta::hours(1), s(5 * 3600)), Step::Back(4 * 3600));
    }
}
