//! Matching on one endless local time line, as if offsets never changed. Times are local seconds
//! since 1970-01-01; the sibling modules map them to instants.

use super::calendar::{DAY, Date, date, first_day, is_leap, month_length, split, weekday};
use super::{AND_DAYS, Cron, WEEKLY};

impl Cron {
    /// The matching days of a month whose first day has this weekday; bit 1 is the first.
    #[inline]
    fn days_of(&self, year: i32, month: u32, first_weekday: u32) -> u32 {
        // The week's pattern, repeated over six weeks and turned to the first day's weekday.
        let weeks = u64::from(self.weekdays) * 0x8_1020_4081;
        let by_weekday = (weeks >> first_weekday << 1) as u32;
        let days = if self.flags & AND_DAYS != 0 { self.days & by_weekday } else { self.days | by_weekday };
        // Bits 1 to the month's length.
        days & (u32::MAX >> (31 - month_length(year, month))) & !1
    }

    #[inline]
    fn has_month(&self, month: u32) -> bool {
        self.months >> month & 1 == 1
    }

    /// The matching days of the month that `date` is in, where `day` is the same day as a number.
    #[inline]
    fn days_around(&self, date: Date, day: i32) -> u32 {
        if self.has_month(date.month) {
            self.days_of(date.year, date.month, weekday(day + 1 - date.day as i32))
        } else {
            0
        }
    }

    /// The week's pattern twice and a little more, from Sunday on.
    #[inline]
    fn fortnight(&self) -> u32 {
        u32::from(self.weekdays) * 0x4081
    }

    #[inline]
    fn first_second(&self) -> u32 {
        self.hours.trailing_zeros() * 3600
            + self.minutes.trailing_zeros() * 60
            + self.seconds.trailing_zeros()
    }

    #[inline]
    fn last_second(&self) -> u32 {
        self.hours.ilog2() * 3600 + self.minutes.ilog2() * 60 + self.seconds.ilog2()
    }

    /// The first matching second of a day that is not before `from`.
    #[inline]
    fn second_from(&self, from: u32) -> Option<u32> {
        let (hour, minute, second) = (from / 3600, from / 60 % 60, from % 60);
        if self.hours >> hour & 1 == 1 {
            if self.minutes >> minute & 1 == 1 {
                let seconds = self.seconds >> second;
                if seconds != 0 {
                    return Some(from + seconds.trailing_zeros());
                }
            }
            let minutes = self.minutes & (!1 << minute);
            if minutes != 0 {
                return Some(hour * 3600 + minutes.trailing_zeros() * 60 + self.seconds.trailing_zeros());
            }
        }
        let hours = self.hours & (!1 << hour);
        if hours == 0 {
            return None;
        }
        Some(
            hours.trailing_zeros() * 3600
                + self.minutes.trailing_zeros() * 60
                + self.seconds.trailing_zeros(),
        )
    }

    /// The last matching second of a day that is not after `to`.
    #[inline]
    fn second_until(&self, to: u32) -> Option<u32> {
        let (hour, minute, second) = (to / 3600, to / 60 % 60, to % 60);
        if self.hours >> hour & 1 == 1 {
            if self.minutes >> minute & 1 == 1 {
                let seconds = self.seconds & (u64::MAX >> (63 - second));
                if seconds != 0 {
                    return Some(to - second + seconds.ilog2());
                }
            }
            let minutes = self.minutes & !(u64::MAX << minute);
            if minutes != 0 {
                return Some(hour * 3600 + minutes.ilog2() * 60 + self.seconds.ilog2());
            }
        }
        let hours = self.hours & !(u32::MAX << hour);
        if hours == 0 {
            return None;
        }
        Some(hours.ilog2() * 3600 + self.minutes.ilog2() * 60 + self.seconds.ilog2())
    }

    /// The first matching local time that is not before `from`.
    ///
    /// Ends within 40 years: what never matches was refused when the expression was read.
    #[inline]
    pub(super) fn local_from(&self, from: i64) -> i64 {
        let (day, second) = split(from);
        if self.flags & WEEKLY != 0 {
            return self.weekly_from(day, second);
        }
        let now = date(day);
        let days = self.days_around(now, day);
        if days >> now.day & 1 == 1
            && let Some(second) = self.second_from(second)
        {
            return i64::from(day) * DAY + i64::from(second);
        }
        let later = days & (!1 << now.day);
        let found = if later != 0 {
            day + (later.trailing_zeros() - now.day) as i32
        } else {
            self.day_in_later_month(now.year, now.month)
        };
        i64::from(found) * DAY + i64::from(self.first_second())
    }

    #[inline]
    fn weekly_from(&self, day: i32, second: u32) -> i64 {
        let ahead = self.fortnight() >> weekday(day);
        if ahead & 1 == 1
            && let Some(second) = self.second_from(second)
        {
            return i64::from(day) * DAY + i64::from(second);
        }
        let found = day + 1 + (ahead >> 1).trailing_zeros() as i32;
        i64::from(found) * DAY + i64::from(self.first_second())
    }

    fn day_in_later_month(&self, mut year: i32, mut month: u32) -> i32 {
        loop {
            let later = u32::from(self.months) & (!1 << month);
            if later != 0 {
                month = later.trailing_zeros();
            } else {
                year += 1;
                month = self.months.trailing_zeros();
            }
            let first = first_day(year, month);
            let days = self.days_of(year, month, weekday(first));
            if days != 0 {
                return first + days.trailing_zeros() as i32 - 1;
            }
        }
    }

    /// The last matching local time that is not after `to`. Ends within 40 years.
    #[inline]
    pub(super) fn local_until(&self, to: i64) -> i64 {
        let (day, second) = split(to);
        if self.flags & WEEKLY != 0 {
            return self.weekly_until(day, second);
        }
        let now = date(day);
        let days = self.days_around(now, day);
        if days >> now.day & 1 == 1
            && let Some(second) = self.second_until(second)
        {
            return i64::from(day) * DAY + i64::from(second);
        }
        let earlier = days & !(u32::MAX << now.day);
        let found = if earlier != 0 {
            day - (now.day - earlier.ilog2()) as i32
        } else {
            self.day_in_earlier_month(now.year, now.month)
        };
        i64::from(found) * DAY + i64::from(self.last_second())
    }

    #[inline]
    fn weekly_until(&self, day: i32, second: u32) -> i64 {
        // Bit 7 is the day itself, the seven below it are those before.
        let back = self.fortnight() >> weekday(day);
        if back >> 7 & 1 == 1
            && let Some(second) = self.second_until(second)
        {
            return i64::from(day) * DAY + i64::from(second);
        }
        let found = day - (7 - (back & 0x7f).ilog2()) as i32;
        i64::from(found) * DAY + i64::from(self.last_second())
    }

    fn day_in_earlier_month(&self, mut year: i32, mut month: u32) -> i32 {
        loop {
            let earlier = u32::from(self.months) & !(u32::MAX << month);
            if earlier != 0 {
                month = earlier.ilog2();
            } else {
                year -= 1;
                month = self.months.ilog2();
            }
            let first = first_day(year, month);
            let days = self.days_of(year, month, weekday(first));
            if days != 0 {
                return first + days.ilog2() as i32 - 1;
            }
        }
    }

    /// How many matching local times lie in `from..to`; the negative of `to..from` if `to` is smaller.
    #[inline]
    pub(super) fn local_count(&self, from: i64, to: i64) -> i64 {
        if from <= to { self.count_forward(from, to) } else { -self.count_forward(to, from) }
    }

    fn count_forward(&self, from: i64, to: i64) -> i64 {
        let (first, first_second) = split(from);
        let (last, last_second) = split(to);
        // The days from the first up to the last, and whether each of these two matches.
        let (days, first_matches, last_matches) = if self.flags & WEEKLY != 0 {
            let ahead = self.fortnight() >> weekday(first);
            let days = (last - first) as u32;
            let matching =
                days / 7 * self.weekdays.count_ones() + (ahead & !(u32::MAX << (days % 7))).count_ones();
            (matching, ahead & 1 == 1, ahead >> (days % 7) & 1 == 1)
        } else {
            let (start, end) = (date(first), date(last));
            let start_days = self.days_around(start, first);
            if first == last {
                let matches = start_days >> start.day & 1 == 1;
                (0, matches, matches)
            } else {
                let end_days = self.days_around(end, last);
                let matching = self.count_days(start, start_days, end, end_days);
                (matching, start_days >> start.day & 1 == 1, end_days >> end.day & 1 == 1)
            }
        };
        let mut total = i64::from(days) * i64::from(self.hours.count_ones() * u32::from(self.per_hour));
        if first_matches {
            total -= i64::from(self.seconds_below(first_second));
        }
        if last_matches {
            total += i64::from(self.seconds_below(last_second));
        }
        total
    }

    /// Matches of a matching day before its second `end`.
    #[inline]
    fn seconds_below(&self, end: u32) -> u32 {
        let (hour, minute, second) = (end / 3600, end / 60 % 60, end % 60);
        let mut total = (self.hours & !(u32::MAX << hour)).count_ones() * u32::from(self.per_hour);
        if self.hours >> hour & 1 == 1 {
            let per_minute = if self.has_seconds() { self.seconds.count_ones() } else { 1 };
            total += (self.minutes & !(u64::MAX << minute)).count_ones() * per_minute;
            if self.minutes >> minute & 1 == 1 {
                total += (self.seconds & !(u64::MAX << second)).count_ones();
            }
        }
        total
    }

    /// Matching days from `start` up to but without `end`, given the masks of their months.
    fn count_days(&self, start: Date, start_days: u32, end: Date, end_days: u32) -> u32 {
        let head = start_days & (u32::MAX << start.day);
        let tail = end_days & !(u32::MAX << end.day);
        if (start.year, start.month) == (end.year, end.month) {
            return (head & tail).count_ones();
        }
        let between = if start.year == end.year {
            self.count_months(start.year, start.month + 1, end.month)
        } else {
            self.count_months(start.year, start.month + 1, 13)
                + self.count_years(start.year + 1, end.year)
                + self.count_months(end.year, 1, end.month)
        };
        head.count_ones() + between + tail.count_ones()
    }

    /// Matching days of the months `from..to` of a year.
    fn count_months(&self, year: i32, from: u32, to: u32) -> u32 {
        if from >= to {
            return 0;
        }
        let mut first_weekday = weekday(first_day(year, from));
        let mut total = 0;
        for month in from..to {
            if self.has_month(month) {
                total += self.days_of(year, month, first_weekday).count_ones();
            }
            first_weekday += month_length(year, month) - 28;
            if first_weekday >= 7 {
                first_weekday -= 7;
            }
        }
        total
    }

    /// Matching days of the years `from..to`. There are only fourteen different years.
    fn count_years(&self, from: i32, to: i32) -> u32 {
        let mut known = [None; 14];
        (from..to)
            .map(|year| {
                let kind = 2 * weekday(first_day(year, 1)) + u32::from(is_leap(year));
                *known[kind as usize].get_or_insert_with(|| self.count_months(year, 1, 13))
            })
            .sum()
    }
}
