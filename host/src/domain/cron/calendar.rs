//! Days to dates and back, in the proleptic Gregorian calendar, for the years that [`super`] covers.
//!
//! The conversions multiply and shift instead of dividing by uneven month lengths: years begin in
//! March, so that the leap day is the last one, and a month's length follows from a linear function.

/// Seconds of a day.
pub(super) const DAY: i64 = 86_400;

/// Whole 400-year cycles that are added so that everything inside is positive.
const CYCLES: i32 = 26;
/// Days from 1 March of the shifted year zero to 1970-01-01.
const SHIFT: i32 = 719_468 + 146_097 * CYCLES;

/// A date: year, month 1-12, day 1-31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub year: i32,
    pub month: u32,
    pub day: u32,
}

/// The date of a day counted from 1970-01-01.
#[inline]
pub(super) fn date(days: i32) -> Date {
    let shifted = (days + SHIFT) as u32;
    let quarter_days = 4 * shifted + 3;
    let century = quarter_days / 146_097;
    let of_century = 4 * (quarter_days % 146_097 / 4) + 3;
    // The product's upper half is the year of the century, its lower half tells the day of the year.
    let product = 2_939_745 * u64::from(of_century);
    let year_of_century = (product >> 32) as u32;
    let day_of_year = (product as u32) / 2_939_745 / 4;
    let linear = 2_141 * day_of_year + 197_913;
    let after_december = u32::from(day_of_year >= 306);
    let year = (100 * century + year_of_century + after_december) as i32 - 400 * CYCLES;
    Date { year, month: (linear >> 16) - 12 * after_december, day: (linear & 0xffff) / 2_141 + 1 }
}

/// The day, counted from 1970-01-01, of the first of a month.
#[inline]
pub(super) fn first_day(year: i32, month: u32) -> i32 {
    let early = u32::from(month <= 2);
    let year = (year + 400 * CYCLES) as u32 - early;
    let month = month + 12 * early;
    let century = year / 100;
    let of_year = (979 * month - 2_919) / 32;
    (1_461 * year / 4 - century + century / 4 + of_year) as i32 - SHIFT
}

/// Weekday of a day counted from 1970-01-01, Sunday 0.
#[inline]
pub(super) fn weekday(days: i32) -> u32 {
    // 1970-01-01 was a Thursday; the shift keeps the sum positive and is a multiple of 7.
    (days + 4 + 7 * 1_000_000) as u32 % 7
}

/// Whether the year has a 29 February.
#[inline]
pub(super) fn is_leap(year: i32) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days of a month.
#[inline]
pub(super) fn month_length(year: i32, month: u32) -> u32 {
    if month == 2 { 28 + u32::from(is_leap(year)) } else { 30 | (month ^ (month >> 3)) & 1 }
}

/// Splits seconds into whole days since 1970-01-01 and the second of the day.
#[inline]
pub(super) fn split(seconds: i64) -> (i32, u32) {
    // Both fit: callers keep to the years that this module covers.
    let day = seconds.div_euclid(DAY);
    (day as i32, (seconds - day * DAY) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{Datelike, NaiveDate};

    #[test]
    fn dates_agree_with_chrono_over_all_covered_years() {
        let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        // Every day of a few centuries, and a stride that is coprime to all cycles elsewhere.
        let near = -80_000..220_000;
        let far = (-4_370_000..2_932_000).step_by(97);
        for days in near.chain(far) {
            let expected = epoch + chrono::Duration::days(i64::from(days));
            let got = date(days);
            assert_eq!(
                (got.year, got.month, got.day),
                (expected.year(), expected.month(), expected.day()),
                "day {days}"
            );
            assert_eq!(weekday(days), expected.weekday().num_days_from_sunday(), "day {days}");
            assert_eq!(first_day(got.year, got.month), days - got.day as i32 + 1, "day {days}");
        }
    }

    #[test]
    fn month_lengths_follow_the_leap_rule() {
        for year in [1900, 2000, 2023, 2024, 2100, -4] {
            for month in 1..=12 {
                let next = if month == 12 { first_day(year + 1, 1) } else { first_day(year, month + 1) };
                let length = (next - first_day(year, month)) as u32;
                assert_eq!(month_length(year, month), length, "{year}-{month}");
            }
        }
    }
}
