//! A time zone as a table of offset changes, without knowing where the data came from.
//!
//! The table reaches to the year 2500. Rules repeat with the calendar, every 400 years, so the last
//! 400 years of the table stand for all later ones: exact at any distance, and small.
//!
//! Everything is decided by changes of the *offset*; daylight-saving flags are never looked at.

use super::calendar::{date, split};

/// The Gregorian calendar repeats, weekdays included, after this many seconds (400 years).
pub(super) const PERIOD: i64 = 146_097 * 86_400;

/// Further than any time that is asked for.
const FAR: i64 = 1 << 50;

/// Buckets of the index are 2^24 seconds wide, about half a year: a bucket holds few changes.
const BUCKET_BITS: u32 = 24;

/// One stretch of constant offset: the half-open interval from `start` to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First instant, in Unix seconds.
    pub start: i64,
    /// First instant of the next span.
    pub end: i64,
    /// Local time minus UTC, in seconds.
    pub offset: i64,
    /// Local time at `start` minus the latest local time that any earlier span reached: positive is
    /// a gap of that many seconds, negative means that so many seconds are seen again.
    pub shift: i64,
}

impl Span {
    /// Local time at the span's start.
    #[must_use]
    pub fn open(&self) -> i64 {
        self.start + self.offset
    }

    /// The first local time of this span that no earlier span has reached.
    #[must_use]
    pub fn fresh(&self) -> i64 {
        self.open() - self.shift.min(0)
    }
}

#[derive(Clone, Copy, Debug)]
struct Change {
    at: i64,
    offset: i32,
    shift: i32,
}

/// A time zone. Immutable; share it behind an `Arc`.
#[derive(Clone, Debug)]
pub struct Zone {
    name: Box<str>,
    /// The first entry lies infinitely far back.
    changes: Box<[Change]>,
    /// For each bucket of time since the first real change: the change in force when it begins.
    index: Box<[u16]>,
    /// How many of the last changes repeat every 400 years; none if the zone has settled.
    repeating: usize,
}

impl Zone {
    /// Changes must be given up to this instant, 2500-01-01T00:00:00Z; later ones follow from them.
    pub const HORIZON: i64 = 16_725_225_600;

    /// A zone from its first offset and its changes `(instant, offset from then on)` in order of
    /// time, all in seconds. Changes that keep the offset or lie past [`Zone::HORIZON`] are left out.
    ///
    /// From 2100 to the horizon the changes must follow a yearly rule; all of IANA's data does.
    #[must_use]
    pub fn new(name: &str, first_offset: i32, changes: impl IntoIterator<Item = (i64, i32)>) -> Self {
        let mut table = vec![Change { at: -FAR, offset: first_offset, shift: 0 }];
        // The latest local time reached so far.
        let mut reached = i64::MIN;
        for (at, offset) in changes {
            let last = table[table.len() - 1];
            if at >= Self::HORIZON || at <= last.at || offset == last.offset {
                continue;
            }
            reached = reached.max(at + i64::from(last.offset));
            // Offsets stay within a day or so of each other.
            let shift = (at + i64::from(offset) - reached) as i32;
            table.push(Change { at, offset, shift });
        }
        let repeating = table.iter().filter(|change| change.at >= Self::HORIZON - PERIOD).count();
        let index = build_index(&table);
        Self { name: name.into(), changes: table.into(), index, repeating }
    }

    /// UTC.
    #[must_use]
    pub fn utc() -> Self {
        Self::new("UTC", 0, [])
    }

    /// The IANA name, or whatever name it was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Local time minus UTC at an instant, both in seconds.
    #[must_use]
    pub fn offset_at(&self, at: i64) -> i64 {
        self.span(self.span_at(at)).offset
    }

    /// Number of the span that holds an instant.
    #[inline]
    #[must_use]
    pub fn span_at(&self, at: i64) -> usize {
        let changes = &self.changes;
        let last = changes.len() - 1;
        if at >= changes[last].at {
            return if self.repeating == 0 || at < Self::HORIZON { last } else { self.far_span_at(at) };
        }
        // Here a later change exists, so there are at least two entries.
        let since = at - changes[1].at;
        if since < 0 {
            return 0;
        }
        let mut place = usize::from(self.index[(since >> BUCKET_BITS) as usize]);
        while changes[place + 1].at <= at {
            place += 1;
        }
        place
    }

    #[cold]
    fn far_span_at(&self, at: i64) -> usize {
        let periods = (at - (Self::HORIZON - PERIOD)) / PERIOD;
        // At most some twenty in the years that are ever asked for.
        self.span_at(at - periods * PERIOD) + periods as usize * self.repeating
    }

    /// The span of that number.
    #[inline]
    #[must_use]
    pub fn span(&self, place: usize) -> Span {
        match self.changes.get(place..place + 2) {
            Some([change, next]) => Span {
                start: change.at,
                end: next.at,
                offset: i64::from(change.offset),
                shift: i64::from(change.shift),
            },
            _ => self.far_span(place),
        }
    }

    #[cold]
    fn far_span(&self, place: usize) -> Span {
        let change = self.far_change(place);
        Span {
            start: change.at,
            end: self.far_change(place + 1).at,
            offset: i64::from(change.offset),
            shift: i64::from(change.shift),
        }
    }

    fn far_change(&self, place: usize) -> Change {
        if let Some(change) = self.changes.get(place) {
            return *change;
        }
        if self.repeating == 0 {
            return Change { at: FAR, offset: 0, shift: 0 };
        }
        let over = place - self.changes.len();
        let periods = over / self.repeating + 1;
        let mut change = self.changes[self.changes.len() - self.repeating + over % self.repeating];
        change.at += periods as i64 * PERIOD;
        change
    }

    /// The first instant that shows a local time, in seconds since 1970-01-01 as a clock on the wall
    /// would count; for a time in a gap the end of the gap.
    #[must_use]
    pub fn instant_of(&self, local: i64) -> i64 {
        // Offsets are below two days everywhere, so the search begins before the answer.
        let mut place = self.span_at(local - 2 * 86_400);
        loop {
            let span = self.span(place);
            if local < span.open() {
                return span.start;
            }
            if local - span.offset < span.end {
                return local - span.offset;
            }
            place += 1;
        }
    }

    /// Local time at an instant as `2026-03-29 02:30:00`, for people.
    #[must_use]
    pub fn local_text(&self, at: i64) -> String {
        local_text(at + self.offset_at(at))
    }
}

/// A local time in seconds since 1970-01-01 as `2026-03-29 02:30:00`.
pub(super) fn local_text(local: i64) -> String {
    let (day, second) = split(local);
    let date = date(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{:04}-{:02}-{:02} {hour:02}:{minute:02}:{second:02}", date.year, date.month, date.day)
}

fn build_index(changes: &[Change]) -> Box<[u16]> {
    let (Some(first), Some(last)) = (changes.get(1), changes.last()) else {
        return Box::default();
    };
    let buckets = ((last.at - first.at) >> BUCKET_BITS) + 1;
    let mut place = 1;
    (0..buckets)
        .map(|bucket| {
            let start = first.at + (bucket << BUCKET_BITS);
            while changes.get(place + 1).is_some_and(|next| next.at <= start) {
                place += 1;
            }
            u16::try_from(place).expect("a zone changes a few times a year for some centuries")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_time_has_the_first_instant_that_shows_it() {
        // Forward an hour at 1000000 and back at 9000000.
        let zone = Zone::new("Test", 0, [(1_000_000, 3600), (9_000_000, 0)]);
        assert_eq!(zone.instant_of(999_999), 999_999);
        assert_eq!(zone.instant_of(1_000_000), 1_000_000, "in the gap");
        assert_eq!(zone.instant_of(1_003_600), 1_000_000);
        assert_eq!(zone.instant_of(9_000_000), 8_996_400, "shown twice");
        assert_eq!(zone.instant_of(9_003_600), 9_003_600);
    }

    #[test]
    fn changes_that_change_nothing_are_left_out() {
        let zone = Zone::new("Test", 60, [(10, 60), (20, 0), (30, 0)]);
        assert_eq!(zone.span(0).end, 20);
        assert_eq!(zone.span(1).start, 20);
        assert_eq!(zone.span_at(i64::MAX / 2), 1);
        assert_eq!(zone.offset_at(-5), 60);
        assert_eq!(zone.local_text(0), "1970-01-01 00:01:00");
    }
}
