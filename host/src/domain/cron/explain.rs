//! An expression in plain English, made from what it matches and not from how it was written.

use super::field::{MONTHS, WEEKDAYS};
use super::parse::{ALL_DAYS, ALL_MONTHS, ALL_WEEKDAYS, join};
use super::{AND_DAYS, Cron};

/// Up to so many times of day are listed one by one.
const LISTED_TIMES: usize = 6;

const ALL_SIXTY: u64 = (1 << 60) - 1;
const ALL_HOURS: u32 = (1 << 24) - 1;

impl Cron {
    /// One sentence that says when it fires, such as `At 09:00 on Monday to Friday.`
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = format!("{} {}{}.", self.times(), self.day_phrase(), self.month_phrase());
        text[..1].make_ascii_uppercase();
        text
    }

    /// Whether each of the two day fields leaves days out.
    pub(super) fn day_limits(&self) -> (bool, bool) {
        (self.days != ALL_DAYS, self.weekdays != ALL_WEEKDAYS)
    }

    /// Whether every hour matches.
    pub(super) fn every_hour(&self) -> bool {
        self.hours == ALL_HOURS
    }

    fn times(&self) -> String {
        let hours = values(self.hours.into());
        let minutes = values(self.minutes);
        let seconds = values(self.seconds);
        if hours.len() * minutes.len() * seconds.len() <= LISTED_TIMES {
            let mut times = Vec::new();
            for hour in &hours {
                for minute in &minutes {
                    for second in &seconds {
                        times.push(if self.has_seconds() {
                            format!("{hour:02}:{minute:02}:{second:02}")
                        } else {
                            format!("{hour:02}:{minute:02}")
                        });
                    }
                }
            }
            return format!("at {}", join(&times, "and"));
        }
        if self.seconds == 1 {
            let text = every_or_at(self.minutes, "minute");
            let every = text.starts_with("every");
            return text + &self.hour_phrase(&hours, every);
        }
        let mut text = every_or_at(self.seconds, "second");
        let mut every = true;
        if self.minutes != ALL_SIXTY {
            let step = step(self.minutes, 60);
            every = step.is_some();
            text += " in ";
            text += &match step {
                Some(step) => format!("every {} minute", ordinal(step)),
                None => named_list("minute", &minutes),
            };
        } else if !text.starts_with("every") {
            text += " of every minute";
        }
        text + &self.hour_phrase(&hours, every)
    }

    fn hour_phrase(&self, hours: &[u32], every: bool) -> String {
        let (first, last) = (hours[0], hours[hours.len() - 1]);
        if self.every_hour() {
            return if every { String::new() } else { " of every hour".to_owned() };
        }
        if let Some(step) = step(self.hours.into(), 24) {
            return format!(" of every {} hour from 00:00", ordinal(step));
        }
        if hours.len() as u32 == last - first + 1 {
            return format!(" from {first:02}:00 to {last:02}:59");
        }
        let hours: Vec<String> = hours.iter().map(|hour| format!("{hour:02}")).collect();
        format!(" in the hours {}", join(&hours, "and"))
    }

    fn day_phrase(&self) -> String {
        let month_days = || format!("{} of the month", named_list("day", &values(self.days.into())));
        let weekdays = || {
            // Told from Monday on, so that a weekend stays together.
            let monday_first = (u64::from(self.weekdays) >> 1) | (u64::from(self.weekdays) & 1) << 6;
            let name = |day: u32| WEEKDAYS[(day as usize + 1) % 7].to_owned();
            join(&runs(&values(monday_first), name), "and")
        };
        let both = self.flags & AND_DAYS != 0;
        match self.day_limits() {
            (false, false) => "every day".to_owned(),
            (true, false) => format!("on {}", month_days()),
            (false, true) => format!("on {}", weekdays()),
            (true, true) if both => format!("on {}, if it is {}", month_days(), weekdays()),
            (true, true) => format!("on {} and on every {}", month_days(), weekdays()),
        }
    }

    fn month_phrase(&self) -> String {
        if self.months == ALL_MONTHS {
            return String::new();
        }
        let name = |month: u32| MONTHS[month as usize - 1].to_owned();
        format!(" in {}", join(&runs(&values(self.months.into()), name), "and"))
    }
}

fn values(mask: u64) -> Vec<u32> {
    (0..u64::BITS).filter(|bit| mask >> bit & 1 == 1).collect()
}

/// The step of a mask that starts at zero and goes on evenly to the end of its `size` values.
fn step(mask: u64, size: u32) -> Option<u32> {
    let values = values(mask);
    let [0, step, ..] = values[..] else { return None };
    let even = (0..size).step_by(step as usize).eq(values.iter().copied());
    (step > 1 && even).then_some(step)
}

fn every_or_at(mask: u64, unit: &str) -> String {
    if mask == ALL_SIXTY {
        return format!("every {unit}");
    }
    match step(mask, 60) {
        Some(step) if 60 % step == 0 => format!("every {step} {unit}s"),
        _ => format!("at {}", named_list(unit, &values(mask))),
    }
}

/// `day 13`, `days 1 to 7 and 15`.
fn named_list(unit: &str, values: &[u32]) -> String {
    let plural = if values.len() == 1 { "" } else { "s" };
    format!("{unit}{plural} {}", join(&runs(values, |value| value.to_string()), "and"))
}

/// Puts three and more neighbours together as `a to b`.
fn runs(values: &[u32], name: impl Fn(u32) -> String) -> Vec<String> {
    values
        .chunk_by(|one, next| one + 1 == *next)
        .flat_map(|run| match run {
            [first, _, .., last] => vec![format!("{} to {}", name(*first), name(*last))],
            short => short.iter().map(|value| name(*value)).collect(),
        })
        .collect()
}

fn ordinal(number: u32) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expected: &str) {
        assert_eq!(Cron::parse(expression).unwrap().explain(), expected, "{expression}");
    }

    #[test]
    fn expressions_read_as_english() {
        check("* * * * *", "Every minute every day.");
        check("*/5 * * * *", "Every 5 minutes every day.");
        check("0 9 * * 1-5", "At 09:00 on Monday to Friday.");
        check("0,30 2 * * *", "At 02:00 and 02:30 every day.");
        check("0 * * * *", "At minute 0 of every hour every day.");
        check("*/7 * * * *", "At minutes 0, 7, 14, 21, 28, 35, 42, 49 and 56 of every hour every day.");
        check("30 */2 * * *", "At minute 30 of every 2nd hour from 00:00 every day.");
        check("*/15 8-18 * * *", "Every 15 minutes from 08:00 to 18:59 every day.");
        check("5 1,3,5,7,9,11,14 * * *", "At minute 5 in the hours 01, 03, 05, 07, 09, 11 and 14 every day.");
        check("0 12 13 * 5", "At 12:00 on day 13 of the month and on every Friday.");
        check("0 0 */10 * 1", "At 00:00 on days 1, 11, 21 and 31 of the month, if it is Monday.");
        check("0 0 1-31 * 1", "At 00:00 every day.");
        check("0 0 1 1,7-9 *", "At 00:00 on day 1 of the month in January and July to September.");
        check("0 0 * * 6,0", "At 00:00 on Saturday and Sunday.");
        check("@yearly", "At 00:00 on day 1 of the month in January.");
    }

    #[test]
    fn seconds_are_told_only_in_six_fields() {
        check("*/10 * * * * *", "Every 10 seconds every day.");
        check("0 30 9 * * *", "At 09:30:00 every day.");
        check("*/2 */5 * * * *", "Every 2 seconds in every 5th minute every day.");
        check("5 * * * * *", "At second 5 of every minute every day.");
        check("* 30 2 * * *", "Every second in minute 30 from 02:00 to 02:59 every day.");
    }
}
