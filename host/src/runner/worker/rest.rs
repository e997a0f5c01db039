//! Whether a worker rests while it has nothing to do. A plugin may have started threads, and what they
//! use after its cycle nobody has asked for. Only sums; whoever looks acts on it.

use std::time::Duration;

/// Once for each look: freeing what a cycle used, and looking for the next one before it sleeps.
const EACH_LOOK: Duration = Duration::from_millis(5);

/// And this part of the time it rests, for threads that wake now and then.
const SHARE: u32 = 20;

/// Less than this in all is nothing.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Rest that was as it should be pays for so much only, not for a burst an hour later.
const WINDOW: Duration = Duration::from_secs(10);

/// The rests of one worker, of which its cycles are no part.
#[derive(Default)]
pub(super) struct Rest {
    /// The last look of this rest: when, and the processor time used by then.
    last: Option<(Duration, Duration)>,
    length: Duration,
    used: Duration,
}

impl Rest {
    /// Begins a rest or goes on with it: true when too much was used in it. `used` is the processor
    /// time of the whole process, none where the system does not tell.
    pub fn look(&mut self, now: Duration, used: Option<Duration>) -> bool {
        let Some(used) = used else { return false };
        let Some((then, before)) = self.last.replace((now, used)) else { return false };
        self.length += now.saturating_sub(then);
        self.used += used.saturating_sub(before).saturating_sub(EACH_LOOK);
        let burns = self.used > AT_ONCE + self.length / SHARE;
        if self.length > WINDOW && !burns {
            (self.length, self.used) = Default::default();
        }
        burns
    }

    /// It is given something to do.
    pub fn ends(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks each `every`, of which `share` percent are used: whether it is ever found.
    fn found(every: Duration, share: u32, cycles: bool) -> bool {
        let mut rest = Rest::default();
        (0..400).any(|round| {
            let found = rest.look(every * round, Some(every * round * share / 100));
            if cycles && round % 2 == 1 {
                rest.ends();
            }
            found
        })
    }

    #[test]
    fn who_works_on_is_found_whatever_comes_between() {
        for cycles in [false, true] {
            for every in [SECOND / 20, SECOND, SECOND * 5] {
                assert!(found(every, 100, cycles) && found(every, 50, cycles), "{every:?} {cycles}");
                assert!(!found(every, 4, cycles) && !found(every, 0, cycles), "{every:?} {cycles}");
            }
        }
    }

    #[test]
    fn cycles_are_no_part_of_it_nor_is_what_each_leaves_to_do() {
        let mut rest = Rest::default();
        let (mut now, mut used) = (SECOND, SECOND);
        for _ in 0..10_000 {
            assert!(!rest.look(now, Some(used)), "a rest begins");
            (now, used) = (now + SECOND / 10_000, used + SECOND / 10_000);
            assert!(!rest.look(now, Some(used)), "it looked for the next cycle");
            rest.ends();
            (now, used) = (now + SECOND, used + SECOND);
        }
        assert!(!rest.look(now, None) && !rest.look(now + SECOND, None), "nothing is known");
    }

    #[test]
    fn a_long_rest_pays_for_no_burst() {
        let mut rest = Rest::default();
        for round in 0..1000 {
            assert!(!rest.look(SECOND * 5 * round, Some(Duration::ZERO)));
        }
        assert!(rest.look(SECOND * 5 * 1000, Some(SECOND * 2)));
    }
}
