//! Cron: an expression denotes a set of instants; this module reads expressions and finds the next
//! and the previous instant of the set, and counts those of a window in closed form.
//!
//! ```text
//! text --parse--> Cron (bit masks) --local--> local times --next, count + Zone--> instants
//! ```
//!
//! The dialect is cronie's: five fields, or six when the first is seconds; names, lists, ranges and
//! steps; both day fields together mean AND if one of them starts with `*`, else OR. A *fixed-time*
//! expression is one whose minute and hour fields both do not start with `*`. With [`Dst::Cron`] a
//! fixed time that a clock change skips fires at the end of the gap, and one that comes twice fires
//! the first time; everything else, and everything with [`Dst::Literal`], fires whenever the local
//! time matches.
//!
//! Pure: no clock, no zone files (a [`Zone`] is handed in), and never a loop over occurrences or an
//! unbounded search. Years -9999 to 9999; instants are whole Unix seconds.

mod calendar;
mod count;
mod error;
mod explain;
mod field;
mod lint;
mod local;
mod next;
mod parse;
mod zone;

use chrono::{DateTime, Utc};

pub use error::{CronError, CronErrorKind};
pub use field::Field;
pub use zone::{Span, Zone};

use super::schedule::Dst;

/// First and last instant that is ever looked at: the years -9999 to 9999.
const MIN_TIME: i64 = -377_705_116_800;
const MAX_TIME: i64 = 253_402_300_799;

/// Flag: a day must match the day of month AND the day of week.
const AND_DAYS: u8 = 1;
/// Flag: neither minute nor hour starts with a star.
const FIXED_TIME: u8 = 2;
/// Flag: written with six fields.
const WITH_SECONDS: u8 = 4;
/// Flag: only the weekday decides whether a day matches, if anything does.
const WEEKLY: u8 = 8;

/// A cron expression, compiled: one bit for each value that matches. Small and `Copy`, because a
/// daemon may hold a million of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cron {
    seconds: u64,
    minutes: u64,
    hours: u32,
    days: u32,
    months: u16,
    /// Matches of an hour that matches.
    per_hour: u16,
    weekdays: u8,
    flags: u8,
}

impl Cron {
    /// Reads an expression.
    ///
    /// # Errors
    /// Says what is wrong, where, what is allowed and, where there is one, the way to write it.
    /// An expression that no date can ever match is an error too.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        parse::parse(text)
    }

    /// Whether the expression has six fields.
    #[must_use]
    pub fn has_seconds(&self) -> bool {
        self.flags & WITH_SECONDS != 0
    }

    /// Whether neither the minute nor the hour field starts with `*`; what it means is told above.
    #[must_use]
    pub fn is_fixed_time(&self) -> bool {
        self.flags & FIXED_TIME != 0
    }

    fn counts_once(&self, dst: Dst) -> bool {
        dst == Dst::Cron && self.is_fixed_time()
    }

    /// The first occurrence after `from`. `None` past the year 9999, and for expressions all of
    /// whose times a zone's clock changes leave out.
    #[must_use]
    #[inline]
    pub fn next_after(&self, zone: &Zone, dst: Dst, from: i64) -> Option<i64> {
        if from >= MAX_TIME {
            return None;
        }
        let at = from.max(MIN_TIME - 1) + 1;
        let next =
            if self.counts_once(dst) { self.next_fixed(zone, at) } else { self.next_literal(zone, at) };
        next.filter(|next| *next <= MAX_TIME)
    }

    /// The last occurrence that is not after `at`.
    #[must_use]
    #[inline]
    pub fn prev_at_or_before(&self, zone: &Zone, dst: Dst, at: i64) -> Option<i64> {
        if at < MIN_TIME {
            return None;
        }
        let at = at.min(MAX_TIME);
        let prev =
            if self.counts_once(dst) { self.prev_fixed(zone, at) } else { self.prev_literal(zone, at) };
        prev.filter(|prev| *prev >= MIN_TIME)
    }

    /// How many occurrences lie in the window `(from, to]`. The cost grows with the window's months
    /// and clock changes, not with the occurrences.
    #[must_use]
    pub fn count(&self, zone: &Zone, dst: Dst, from_exclusive: i64, to_inclusive: i64) -> u64 {
        let first = from_exclusive.clamp(MIN_TIME - 1, MAX_TIME) + 1;
        let last = to_inclusive.min(MAX_TIME);
        if last < first {
            return 0;
        }
        let count = if self.counts_once(dst) {
            self.count_fixed(zone, first, last)
        } else {
            self.count_literal(zone, first, last)
        };
        u64::try_from(count).expect("a window holds no negative number of occurrences")
    }

    /// [`Cron::next_after`] for chrono's times. A fraction of a second in `from` is after its second.
    #[must_use]
    pub fn next(&self, zone: &Zone, dst: Dst, from_exclusive: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.next_after(zone, dst, from_exclusive.timestamp()).and_then(time)
    }

    /// [`Cron::prev_at_or_before`] for chrono's times.
    #[must_use]
    pub fn prev(&self, zone: &Zone, dst: Dst, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.prev_at_or_before(zone, dst, at.timestamp()).and_then(time)
    }

    /// [`Cron::count`] for chrono's times.
    #[must_use]
    pub fn count_between(
        &self,
        zone: &Zone,
        dst: Dst,
        from_exclusive: DateTime<Utc>,
        to_inclusive: DateTime<Utc>,
    ) -> u64 {
        self.count(zone, dst, from_exclusive.timestamp(), to_inclusive.timestamp())
    }
}

/// Unix seconds as chrono's time; every second of the covered years has one.
fn time(seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(seconds, 0)
}
