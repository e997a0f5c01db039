//! What becomes of the occurrences between a schedule's cursor and now: which fire, which are
//! missed and why, which wait. Pure, and the only place where this is decided: the live daemon,
//! a restart after a year and the simulation all ask here.
//!
//! ```text
//! cursor          now-deadline           first fire     last fire  now
//!   |--- deadline ---|--- skip, cap, stale ---|-- fires ---|        |
//! ```
//!
//! Every occurrence of the window gets exactly one outcome or stays after the new cursor. The
//! cost follows what fires, never what was missed.

use std::time::Duration;

use super::cron::{Cron, Zone};
use super::schedule::{Dst, MissedPolicy, SchedulePolicy};

/// A window whose oldest occurrence is at most this old is on time: no outage, just a wake-up
/// that took its while. Seconds.
pub const GRACE: i64 = 60;

/// Reasons of occurrences that this module does not let fire.
pub mod reason {
    /// The policy fires the latest only.
    pub const SKIP: &str = "skip";
    /// The policy fires the latest for all of them.
    pub const COALESCED: &str = "coalesced";
    /// More than `max_catch_up_runs`.
    pub const CAP: &str = "cap";
    /// The oldest is older than `stale_after`.
    pub const STALE: &str = "stale";
    /// Older than `start_deadline`.
    pub const DEADLINE: &str = "deadline";
    /// The schedule was paused or disabled, or a person left this one out.
    pub const PAUSED: &str = "paused";
    /// The rule was changed or taken away.
    pub const EDITED: &str = "edited";
}

/// A set of instants in Unix seconds, as a schedule denotes it.
pub trait Occurrences {
    /// The first one after `from`.
    fn next_after(&self, from: i64) -> Option<i64>;
    /// The last one that is not after `at`.
    fn prev_at_or_before(&self, at: i64) -> Option<i64>;
    /// How many lie in `(from, to]`.
    fn count(&self, from_exclusive: i64, to_inclusive: i64) -> u64;
}

/// A compiled rule: an expression read in a zone.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// The expression.
    pub cron: &'a Cron,
    /// The zone.
    pub zone: &'a Zone,
    /// How clock changes are read.
    pub dst: Dst,
}

impl Occurrences for Rule<'_> {
    fn next_after(&self, from: i64) -> Option<i64> {
        self.cron.next_after(self.zone, self.dst, from)
    }
    fn prev_at_or_before(&self, at: i64) -> Option<i64> {
        self.cron.prev_at_or_before(self.zone, self.dst, at)
    }
    fn count(&self, from_exclusive: i64, to_inclusive: i64) -> u64 {
        self.cron.count(self.zone, self.dst, from_exclusive, to_inclusive)
    }
}

/// What is to be decided about.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Occurrences up to here have their outcome.
    pub cursor: i64,
    /// Wall time.
    pub now: i64,
    /// Nominal times that a person left out; sorted.
    pub skip: &'a [i64],
    /// Nominal times after the cursor that have their outcome already, because the clock was
    /// set back after they fired; sorted.
    pub settled: &'a [i64],
    /// [`identity`] of the schedule, for its jitter.
    pub identity: u64,
    /// How many catch-up fires may be made now.
    pub allowance: u32,
}

/// An occurrence that fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedFire {
    /// Its nominal time.
    pub nominal: i64,
    /// It must not start earlier than this after its nominal time.
    pub delay: Duration,
    /// True when it makes up for missed ones.
    pub catch_up: bool,
}

/// A run of occurrences that do not fire, for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedMiss {
    /// First nominal time.
    pub from: i64,
    /// Last nominal time.
    pub to: i64,
    /// How many.
    pub count: u64,
    /// Why.
    pub reason: &'static str,
}

/// The decision about one window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The new cursor; never before the old one.
    pub cursor: i64,
    /// What fires, oldest first.
    pub fires: Vec<PlannedFire>,
    /// What does not; runs are disjoint, ordered, and hold no fire.
    pub missed: Vec<PlannedMiss>,
    /// True when due occurrences stay after the new cursor, for want of allowance.
    pub waiting: bool,
}

impl Verdict {
    /// How many of the allowance it uses.
    #[must_use]
    pub fn catch_ups(&self) -> u32 {
        u32::try_from(self.fires.iter().filter(|fire| fire.catch_up).count()).unwrap_or(u32::MAX)
    }

    /// True when there is something to record.
    #[must_use]
    pub fn records(&self) -> bool {
        !self.fires.is_empty() || !self.missed.is_empty()
    }
}

/// Decides about the occurrences in `(cursor, now]`.
#[must_use]
pub fn decide(set: &impl Occurrences, policy: &SchedulePolicy, window: &Window<'_>) -> Verdict {
    let Window { cursor, now, .. } = *window;
    if now <= cursor {
        return Verdict { cursor, ..Verdict::default() };
    }
    let holes = Holes::of(set, window);
    let live_from =
        policy.start_deadline.map_or(cursor, |deadline| cursor.max(now.saturating_sub(secs(deadline))));
    let mut verdict = Verdict { cursor: now, ..Verdict::default() };

    let Some(oldest) = holes.next(set, live_from, now) else {
        holes.record(set, cursor, now, reason::DEADLINE, &mut verdict.missed);
        return verdict;
    };
    let (fires, other) = choose(set, policy, &holes, now, live_from, oldest);
    let catch_up = now - oldest > GRACE;
    let granted = if catch_up { fires.len().min(window.allowance as usize) } else { fires.len() };
    let Some(last) = granted.checked_sub(1).map(|last| fires[last]) else {
        return Verdict { cursor, waiting: true, ..Verdict::default() };
    };
    if granted < fires.len() {
        verdict.cursor = last;
        verdict.waiting = true;
    }

    holes.record(set, cursor, live_from, reason::DEADLINE, &mut verdict.missed);
    let mut from = live_from;
    for &nominal in &fires[..granted] {
        holes.record(set, from, nominal - 1, other, &mut verdict.missed);
        let delay = if catch_up { Duration::ZERO } else { jitter(set, policy, window.identity, nominal) };
        verdict.fires.push(PlannedFire { nominal, delay, catch_up });
        from = nominal;
    }
    holes.record(set, from, verdict.cursor, other, &mut verdict.missed);
    verdict
}

/// All occurrences of `(from, to]` as missed for one reason: a pause that ends, a rule that changed.
#[must_use]
pub fn all_missed(
    set: &impl Occurrences,
    from_exclusive: i64,
    to_inclusive: i64,
    settled: &[i64],
    reason: &'static str,
) -> Vec<PlannedMiss> {
    let mut missed = Vec::new();
    if from_exclusive < to_inclusive {
        let window = Window {
            cursor: from_exclusive,
            now: to_inclusive,
            skip: &[],
            settled,
            identity: 0,
            allowance: 0,
        };
        Holes::of(set, &window).record(set, from_exclusive, to_inclusive, reason, &mut missed);
    }
    missed
}

/// Identity of a schedule: FNV-1a of its name, the same on every machine and in every version.
#[must_use]
pub fn identity(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// Which nominal times fire, oldest first, and the reason of those before and between them.
fn choose(
    set: &impl Occurrences,
    policy: &SchedulePolicy,
    holes: &Holes,
    now: i64,
    live_from: i64,
    oldest: i64,
) -> (Vec<i64>, &'static str) {
    let stale = now.saturating_sub(oldest) > secs(policy.stale_after);
    let (most, other) = match policy.missed_policy {
        MissedPolicy::Skip => (1, reason::SKIP),
        MissedPolicy::CatchUpOnce => (1, reason::COALESCED),
        MissedPolicy::CatchUpBounded if stale => (1, reason::STALE),
        MissedPolicy::CatchUpBounded => (policy.max_catch_up_runs.max(1), reason::CAP),
    };
    let mut fires = Vec::new();
    let mut at = now;
    while fires.len() < most as usize {
        let Some(nominal) = holes.prev(set, at, live_from) else { break };
        fires.push(nominal);
        at = nominal - 1;
    }
    fires.reverse();
    (fires, other)
}

/// The delay of one occurrence: spread over the jitter, but never past the next occurrence.
fn jitter(set: &impl Occurrences, policy: &SchedulePolicy, identity: u64, nominal: i64) -> Duration {
    let mut bound = u64::try_from(policy.jitter.as_millis()).unwrap_or(u64::MAX);
    if bound == 0 {
        return Duration::ZERO;
    }
    if let Some(next) = set.next_after(nominal) {
        bound = bound.min(next.saturating_sub(nominal).unsigned_abs().saturating_mul(1000));
    }
    Duration::from_millis(mix(identity ^ mix(nominal.cast_unsigned())) % bound)
}

/// The finisher of splitmix64: every bit of the input moves every bit of the output.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn secs(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Occurrences of a window that stand apart from the policy: left out by a person, or settled.
struct Holes(Vec<(i64, Option<&'static str>)>);

impl Holes {
    fn of(set: &impl Occurrences, window: &Window<'_>) -> Self {
        let inside = |at: &i64| *at > window.cursor && *at <= window.now;
        let settled = window.settled.iter().filter(|at| inside(at)).map(|at| (*at, None));
        let skip = window.skip.iter().filter(|at| inside(at) && !window.settled.contains(at));
        let mut holes: Vec<_> = settled.chain(skip.map(|at| (*at, Some(reason::PAUSED)))).collect();
        holes.retain(|(at, _)| set.count(at - 1, *at) == 1);
        holes.sort_unstable_by_key(|(at, _)| *at);
        holes.dedup_by_key(|(at, _)| *at);
        Self(holes)
    }

    fn contains(&self, at: i64) -> bool {
        self.0.binary_search_by_key(&at, |(hole, _)| *hole).is_ok()
    }

    /// The first occurrence in `(from, to]` that the policy decides about.
    fn next(&self, set: &impl Occurrences, mut from: i64, to: i64) -> Option<i64> {
        loop {
            let at = set.next_after(from).filter(|at| *at <= to)?;
            if !self.contains(at) {
                return Some(at);
            }
            from = at;
        }
    }

    /// The last occurrence in `(from, at]` that the policy decides about.
    fn prev(&self, set: &impl Occurrences, mut at: i64, from: i64) -> Option<i64> {
        loop {
            let found = set.prev_at_or_before(at).filter(|found| *found > from)?;
            if !self.contains(found) {
                return Some(found);
            }
            at = found - 1;
        }
    }

    /// Records the occurrences of `(from, to]`, cut at the holes.
    fn record(
        &self,
        set: &impl Occurrences,
        mut from: i64,
        to: i64,
        reason: &'static str,
        missed: &mut Vec<PlannedMiss>,
    ) {
        let start = from;
        for &(at, own) in self.0.iter().filter(|(at, _)| *at > start && *at <= to) {
            push_run(set, from, at - 1, reason, missed);
            if let Some(own) = own {
                missed.push(PlannedMiss { from: at, to: at, count: 1, reason: own });
            }
            from = at;
        }
        push_run(set, from, to, reason, missed);
    }
}

fn push_run(set: &impl Occurrences, from: i64, to: i64, reason: &'static str, missed: &mut Vec<PlannedMiss>) {
    let count = set.count(from, to);
    if count == 0 {
        return;
    }
    let first = set.next_after(from).expect("a window that counts has a first");
    let last = set.prev_at_or_before(to).expect("a window that counts has a last");
    missed.push(PlannedMiss { from: first, to: last, count, reason });
}

#[cfg(test)]
#[path = "missed_tests.rs"]
mod tests;
