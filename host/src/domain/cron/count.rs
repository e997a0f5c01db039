//! How many occurrences a window holds, in time that depends on its months and offset changes and
//! never on the occurrences themselves.
//!
//! Local matches are counted as if local time ran through; then each offset change inside the window
//! is put right: what a gap left out, what an overlap showed again.

use super::Cron;
use super::zone::Zone;

impl Cron {
    /// Occurrences of the literal rule from `first` to `last`, both included.
    pub(super) fn count_literal(&self, zone: &Zone, first: i64, last: i64) -> i64 {
        let mut place = zone.span_at(first);
        let mut span = zone.span(place);
        let start = first + span.offset;
        let mut correction = 0;
        while span.end <= last {
            let reached = span.end + span.offset;
            place += 1;
            span = zone.span(place);
            correction += self.local_count(span.open(), reached);
        }
        self.local_count(start, last + 1 + span.offset) + correction
    }

    /// Occurrences of the fixed rule from `first` to `last`, both included.
    pub(super) fn count_fixed(&self, zone: &Zone, first: i64, last: i64) -> i64 {
        let mut place = zone.span_at(first);
        let mut span = zone.span(place);
        let mut correction = 0;
        let start = if first == span.start && span.shift > 0 {
            correction += self.gap_correction(span.open() - span.shift, span.open());
            span.open() - span.shift
        } else {
            (first + span.offset).max(span.fresh())
        };
        while span.end <= last {
            place += 1;
            span = zone.span(place);
            if span.shift > 0 {
                correction += self.gap_correction(span.open() - span.shift, span.open());
            }
        }
        let end = (last + 1 + span.offset).max(span.fresh());
        self.local_count(start, end) + correction
    }

    /// The matches of a gap `from..to` become one occurrence at its end, or none of their own if
    /// the end matches as well.
    fn gap_correction(&self, from: i64, to: i64) -> i64 {
        let lost = self.local_count(from, to);
        if lost == 0 {
            return 0;
        }
        1 - self.local_count(to, to + 1) - lost
    }
}
