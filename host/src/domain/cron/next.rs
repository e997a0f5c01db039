//! From instants to the neighbouring occurrence, forward and back, across offset changes.
//!
//! Two rules. *Literal*: an instant is an occurrence when its local time matches. *Fixed*: each
//! matching local time counts once, in the first span that shows it; one that no span shows, because
//! it lies in a gap, counts at the end of the gap.

use super::zone::{PERIOD, Zone};
use super::{Cron, MAX_TIME, MIN_TIME};

impl Cron {
    /// First instant of the fixed rule that is not before `at`.
    pub(super) fn next_fixed(&self, zone: &Zone, at: i64) -> Option<i64> {
        let mut place = zone.span_at(at);
        let mut span = zone.span(place);
        // A gap that ends exactly at `at` still belongs to the question.
        let from = if at == span.start && span.shift > 0 {
            span.open() - span.shift
        } else {
            (at + span.offset).max(span.fresh())
        };
        // Fresh local times follow each other without holes or repeats, so one search is enough.
        let local = self.local_from(from);
        loop {
            if local < span.open() {
                return Some(span.start);
            }
            if local - span.offset < span.end {
                return Some(local - span.offset);
            }
            if span.end > MAX_TIME {
                return None;
            }
            place += 1;
            span = zone.span(place);
        }
    }

    /// First instant of the literal rule that is not before `at`; `None` if there is none in 400
    /// years, after which everything repeats.
    pub(super) fn next_literal(&self, zone: &Zone, at: i64) -> Option<i64> {
        let limit = MAX_TIME.min(at + PERIOD + PERIOD / 4);
        let mut place = zone.span_at(at);
        let mut span = zone.span(place);
        let mut from = at + span.offset;
        let mut local = self.local_from(from);
        loop {
            if local - span.offset < span.end {
                return Some(local - span.offset);
            }
            if span.end > limit {
                return None;
            }
            place += 1;
            span = zone.span(place);
            // Search again when the match was lost in a gap, or local time fell behind the search.
            if local < span.open() || span.open() < from {
                from = span.open();
                local = self.local_from(from);
            }
        }
    }

    /// Last instant of the fixed rule that is not after `at`.
    pub(super) fn prev_fixed(&self, zone: &Zone, at: i64) -> Option<i64> {
        let mut place = zone.span_at(at);
        let mut span = zone.span(place);
        // In a repeated stretch, everything up to its end has been seen before.
        let local = self.local_until(if at + span.offset < span.fresh() {
            span.fresh() - 1
        } else {
            at + span.offset
        });
        loop {
            if local >= span.fresh() && local < span.end + span.offset {
                return Some(local - span.offset);
            }
            if span.shift > 0 && local >= span.open() - span.shift {
                return Some(span.start);
            }
            if place == 0 || span.start < MIN_TIME {
                return None;
            }
            place -= 1;
            span = zone.span(place);
        }
    }

    /// Last instant of the literal rule that is not after `at`; `None` if there is none in 400 years.
    pub(super) fn prev_literal(&self, zone: &Zone, at: i64) -> Option<i64> {
        let limit = MIN_TIME.max(at - PERIOD - PERIOD / 4);
        let mut place = zone.span_at(at);
        let mut span = zone.span(place);
        let mut to = at + span.offset;
        let mut local = self.local_until(to);
        loop {
            if local >= span.open() {
                return Some(local - span.offset);
            }
            if place == 0 || span.start < limit {
                return None;
            }
            place -= 1;
            span = zone.span(place);
            let last = span.end + span.offset - 1;
            if local > last || last > to {
                to = last;
                local = self.local_until(to);
            }
        }
    }
}
