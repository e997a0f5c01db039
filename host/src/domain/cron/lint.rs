//! What is allowed and yet may surprise: told when a schedule is added, never a reason to refuse it.

use chrono::{DateTime, Utc};

use super::calendar::{date, split};
use super::zone::{PERIOD, Span, Zone, local_text};
use super::{AND_DAYS, Cron, Dst};

/// How far ahead clock changes are looked at.
const YEAR: i64 = 366 * 86_400;

impl Cron {
    /// Warnings, each one sentence: both day fields under a star, leap days, times that a clock
    /// change of the next year leaves out or doubles, expressions that never fire in this zone.
    #[must_use]
    pub fn warnings(&self, zone: &Zone, dst: Dst, now: DateTime<Utc>) -> Vec<String> {
        let now = now.timestamp();
        let mut warnings = Vec::new();
        let next = self.next_after(zone, dst, now);
        if next.is_none() && now < super::MAX_TIME - PERIOD {
            warnings.push(format!("it never fires in {}: clock changes skip each of its times", zone.name()));
        }
        if self.flags & AND_DAYS != 0 && self.day_limits() == (true, true) {
            warnings.push(
                "day of month and day of week are both limited and one of them starts with *, so a day \
                 has to match both; without the star either would be enough"
                    .to_owned(),
            );
        }
        if self.flags & AND_DAYS != 0 && self.days.trailing_zeros() == 29 && self.months == 1 << 2 {
            let when = next.map(|next| format!("; next on {}", date_text(next + zone.offset_at(next))));
            warnings.push(format!("it fires only on 29 February{}", when.unwrap_or_default()));
        }
        let mut place = zone.span_at(now) + 1;
        let mut span = zone.span(place - 1);
        while span.end <= now + YEAR {
            span = zone.span(place);
            warnings.extend(self.at_change(zone, dst, span));
            place += 1;
        }
        warnings
    }

    /// What the clock change at the start of a span does to this expression.
    fn at_change(&self, zone: &Zone, dst: Dst, span: Span) -> Option<String> {
        let open = span.open();
        if span.shift > 0 {
            let first = self.local_from(open - span.shift);
            if first >= open {
                return None;
            }
            return if self.counts_once(dst) {
                let to = time_text(open);
                Some(format!(
                    "{} does not exist on {}, it fires at {to}",
                    time_text(first),
                    day_in(zone, first)
                ))
            } else if self.every_hour() {
                // Those who fire in every hour expect nothing of one that is not there.
                None
            } else {
                Some(format!(
                    "{} does not exist on {} and does not fire",
                    time_text(first),
                    day_in(zone, first)
                ))
            };
        }
        if dst == Dst::Literal && self.is_fixed_time() {
            let first = self.local_from(open);
            if first < span.fresh() {
                return Some(format!(
                    "{} comes twice on {} and fires twice",
                    time_text(first),
                    day_in(zone, first)
                ));
            }
        }
        None
    }
}

fn day_in(zone: &Zone, local: i64) -> String {
    format!("{} in {}", date_text(local), zone.name())
}

fn date_text(local: i64) -> String {
    let date = date(split(local).0);
    format!("{:04}-{:02}-{:02}", date.year, date.month, date.day)
}

/// The time of day, seconds only where there are some.
fn time_text(local: i64) -> String {
    let text = local_text(local);
    let time = &text[text.len() - 8..];
    time.strip_suffix(":00").unwrap_or(time).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paris from 2026 to 2028: an hour forward in March, back in October.
    fn paris() -> Zone {
        let changes = [(1_774_746_000, 7200), (1_792_890_000, 3600), (1_806_195_600, 7200)];
        Zone::new("Europe/Paris", 3600, changes)
    }

    fn check(expression: &str, dst: Dst, expected: &[&str]) {
        // 2026-06-01
        let now = DateTime::from_timestamp(1_780_272_000, 0).unwrap();
        assert_eq!(Cron::parse(expression).unwrap().warnings(&paris(), dst, now), expected, "{expression}");
    }

    #[test]
    fn ordinary_expressions_have_no_warnings() {
        for expression in ["0 9 * * 1-5", "* * * * *", "*/15 * * * *", "0 12 13 * 5", "30 1 * * *"] {
            check(expression, Dst::Cron, &[]);
        }
        check("30 * * * *", Dst::Literal, &[]);
    }

    #[test]
    fn a_time_in_next_years_gap_is_told() {
        let moved = "02:30 does not exist on 2027-03-28 in Europe/Paris, it fires at 03:00";
        check("30 2 * * *", Dst::Cron, &[moved]);
        let lost = "02:30 does not exist on 2027-03-28 in Europe/Paris and does not fire";
        check("30 */2 * * *", Dst::Cron, &[lost]);
        let twice = "02:30 comes twice on 2026-10-25 in Europe/Paris and fires twice";
        check("30 2 * * *", Dst::Literal, &[twice, lost]);
    }

    #[test]
    fn both_day_fields_under_a_star_and_leap_days_are_told() {
        let both = "day of month and day of week are both limited and one of them starts with *, so a \
                    day has to match both; without the star either would be enough";
        check("0 12 */2 * 1", Dst::Cron, &[both]);
        check("0 12 29 2 *", Dst::Cron, &["it fires only on 29 February; next on 2028-02-29"]);
    }

    #[test]
    fn an_expression_that_lies_in_every_years_gap_is_told() {
        // The rule of New York, for ever: second Sunday of March to first Sunday of November.
        let zone = zone_with_march_gap();
        let now = DateTime::from_timestamp(1_780_272_000, 0).unwrap();
        let cron = Cron::parse("*/30 2 8-14 3 */7").unwrap();
        assert_eq!(cron.next_after(&zone, Dst::Cron, now.timestamp()), None);
        assert_eq!(cron.prev_at_or_before(&zone, Dst::Cron, 4_102_444_800), None);
        assert_eq!(cron.count(&zone, Dst::Cron, 0, i64::MAX), 0);
        let warnings = cron.warnings(&zone, Dst::Cron, now);
        assert!(warnings[0].starts_with("it never fires in Test/March"), "{warnings:?}");
    }

    fn zone_with_march_gap() -> Zone {
        let march = Cron::parse("0 2 8-14 3 */7").unwrap();
        let november = Cron::parse("0 2 1-7 11 */7").unwrap();
        let mut changes = Vec::new();
        let mut local = -74_000_000_000;
        while local < Zone::HORIZON {
            local = march.local_from(local);
            changes.push((local, 3600));
            local = november.local_from(local);
            changes.push((local - 3600, 0));
        }
        Zone::new("Test/March", 0, changes)
    }
}
