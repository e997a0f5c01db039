//! The oracle: every second or minute of a window is looked at, one after the other, with sets of
//! values instead of masks and with none of the core's code but the zone's offsets.
//!
//! `PROPTEST_CASES` sets how many cases are tried.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, LazyLock};

use chrono::{DateTime, Datelike, NaiveDate};
use kairos_host::domain::cron::{Cron, Zone};
use kairos_host::domain::schedule::Dst;
use kairos_host::sys::zones::Zones;
use proptest::prelude::*;

/// Zones with whole-hour, half-hour, midnight, negative and calendar-day changes.
const NAMES: [&str; 20] = [
    "America/New_York",
    "Europe/Paris",
    "UTC",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Europe/Dublin",
    "Africa/Casablanca",
    "Atlantic/Azores",
    "America/Havana",
    "America/Santiago",
    "Asia/Beirut",
    "Antarctica/Troll",
    "Asia/Kolkata",
    "Asia/Gaza",
    "America/Scoresbysund",
    "Pacific/Kwajalein",
    "Africa/Monrovia",
    "America/St_Johns",
    "Asia/Pyongyang",
];

static ZONES: LazyLock<Vec<Arc<Zone>>> = LazyLock::new(|| {
    let zones = Zones::bundled();
    NAMES.iter().map(|name| zones.get(name).unwrap()).collect()
});

/// One item of a field's list.
#[derive(Clone, Debug)]
enum Item {
    Star(Option<u32>),
    Value(u32),
    Range(u32, u32, Option<u32>),
}

/// A field: its items and its range.
#[derive(Clone, Debug)]
struct Spec {
    items: Vec<Item>,
    low: u32,
    high: u32,
}

impl Spec {
    fn values(&self) -> BTreeSet<u32> {
        let mut values = BTreeSet::new();
        for item in &self.items {
            let (first, last, step) = match *item {
                Item::Star(step) => (self.low, self.high, step.unwrap_or(1)),
                Item::Value(value) => (value, value, 1),
                Item::Range(first, last, step) => (first, last, step.unwrap_or(1)),
            };
            let mut value = first;
            while value <= last {
                values.insert(value);
                value += step;
            }
        }
        values
    }

    fn starred(&self) -> bool {
        matches!(self.items[0], Item::Star(_))
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = |step: &Option<u32>| step.map(|step| format!("/{step}")).unwrap_or_default();
        let items: Vec<String> = self
            .items
            .iter()
            .map(|item| match item {
                Item::Star(step) => format!("*{}", slash(step)),
                Item::Value(value) => value.to_string(),
                Item::Range(first, last, step) => format!("{first}-{last}{}", slash(step)),
            })
            .collect();
        f.write_str(&items.join(","))
    }
}

/// A field of values `low..=high`, starred with the given weight against 10.
fn spec(low: u32, high: u32, star: u32) -> impl Strategy<Value = Spec> {
    let most = (high - low).min(12);
    let item = prop_oneof![
        4 => (low..=high).prop_map(Item::Value),
        2 => (low..=high, low..=high, proptest::option::of(1..=most))
            .prop_map(|(one, other, step)| Item::Range(one.min(other), one.max(other), step)),
    ];
    let star = star.max(1);
    prop_oneof![
        star => Just(vec![Item::Star(None)]),
        2 => (1..=most).prop_map(|step| vec![Item::Star(Some(step))]),
        1 => item.clone().prop_map(|item| vec![Item::Star(Some(7)), item]),
        8 => proptest::collection::vec(item, 1..3),
    ]
    .prop_map(move |items| Spec { items, low, high })
}

#[derive(Clone, Debug)]
struct Expression {
    seconds: Option<Spec>,
    minute: Spec,
    hour: Spec,
    dom: Spec,
    month: Spec,
    dow: Spec,
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(seconds) = &self.seconds {
            write!(f, "{seconds} ")?;
        }
        write!(f, "{} {} {} {} {}", self.minute, self.hour, self.dom, self.month, self.dow)
    }
}

fn expression() -> impl Strategy<Value = Expression> {
    (
        prop_oneof![4 => Just(None), 1 => spec(0, 59, 2).prop_map(Some)],
        spec(0, 59, 3),
        // Changes happen at night, so most hours are early ones.
        prop_oneof![2 => spec(0, 23, 6), 2 => spec(0, 3, 1).prop_map(night)],
        spec(1, 31, 20),
        spec(1, 12, 30),
        spec(0, 7, 20),
    )
        .prop_map(|(seconds, minute, hour, dom, month, dow)| Expression {
            seconds,
            minute,
            hour,
            dom,
            month,
            dow,
        })
}

/// Keeps the values of an early hour, while stars mean the whole day again.
fn night(mut hour: Spec) -> Spec {
    hour.high = 23;
    hour
}

/// The sets of an expression and its two rules.
struct Naive {
    seconds: BTreeSet<u32>,
    minutes: BTreeSet<u32>,
    hours: BTreeSet<u32>,
    days: BTreeSet<u32>,
    months: BTreeSet<u32>,
    weekdays: BTreeSet<u32>,
    both_days: bool,
    fixed: bool,
    step: i64,
}

impl Naive {
    fn new(expression: &Expression) -> Self {
        let weekdays = expression.dow.values().into_iter().map(|day| day % 7).collect();
        Self {
            seconds: expression.seconds.as_ref().map_or_else(|| BTreeSet::from([0]), Spec::values),
            minutes: expression.minute.values(),
            hours: expression.hour.values(),
            days: expression.dom.values(),
            months: expression.month.values(),
            weekdays,
            both_days: expression.dom.starred() || expression.dow.starred(),
            fixed: !expression.minute.starred() && !expression.hour.starred(),
            step: if expression.seconds.is_some() { 1 } else { 60 },
        }
    }

    fn matches(&self, local: i64) -> bool {
        let second = u32::try_from(local.rem_euclid(86_400)).unwrap();
        self.minutes.contains(&(second / 60 % 60))
            && self.hours.contains(&(second / 3600))
            && self.seconds.contains(&(second % 60))
            && self.matches_day(DateTime::from_timestamp(local, 0).unwrap().date_naive())
    }

    fn matches_day(&self, date: NaiveDate) -> bool {
        let dom = self.days.contains(&date.day());
        let dow = self.weekdays.contains(&date.weekday().num_days_from_sunday());
        let day = if self.both_days { dom && dow } else { dom || dow };
        day && self.months.contains(&date.month())
    }

    /// Every occurrence of `(from, to]`, by looking at each local time around the window.
    fn occurrences(&self, zone: &Zone, dst: Dst, from: i64, to: i64) -> BTreeSet<i64> {
        let margin = 2 * 86_400;
        let mut spans = Vec::new();
        let mut place = zone.span_at(from - margin);
        loop {
            let span = zone.span(place);
            spans.push((span.start, span.end, span.offset));
            if span.end > to + margin {
                break;
            }
            place += 1;
        }
        let low = from + spans.iter().map(|span| span.2).min().unwrap() - margin / 2;
        let high = to + spans.iter().map(|span| span.2).max().unwrap() + margin / 2;
        let mut found = BTreeSet::new();
        let mut local = low - low.rem_euclid(self.step);
        while local <= high {
            if self.matches(local) {
                let shown: Vec<i64> = spans
                    .iter()
                    .filter(|(start, end, offset)| (*start..*end).contains(&(local - offset)))
                    .map(|(_, _, offset)| local - offset)
                    .collect();
                if dst == Dst::Literal || !self.fixed {
                    found.extend(shown);
                } else if let Some(first) = shown.iter().min() {
                    found.insert(*first);
                } else {
                    // In a gap: the first instant whose local time is later.
                    let end = spans.iter().find(|(start, _, offset)| start + offset > local).unwrap();
                    found.insert(end.0);
                }
            }
            local += self.step;
        }
        found.into_iter().filter(|at| *at > from && *at <= to).collect()
    }
}

/// A window: of a zone, near one of its changes or anywhere, some hours long.
#[derive(Clone, Debug)]
struct Window {
    zone: usize,
    change: u32,
    away: i64,
    anywhere: Option<i64>,
    length: i64,
    literal: bool,
}

fn window() -> impl Strategy<Value = Window> {
    (
        0..NAMES.len(),
        any::<u32>(),
        prop_oneof![3 => -10_800..10_800i64, 1 => -200_000..100_000i64],
        // Sometimes any time from 1880 to the year 7000.
        prop_oneof![5 => Just(None), 1 => (-2_840_000_000..158_000_000_000i64).prop_map(Some)],
        prop_oneof![1 => 0..7_200i64, 3 => 0..260_000i64],
        any::<bool>(),
    )
        .prop_map(|(zone, change, away, anywhere, length, literal)| Window {
            zone,
            change,
            away,
            anywhere,
            length,
            literal,
        })
}

impl Window {
    /// The start of the window.
    fn from(&self, zone: &Zone) -> i64 {
        if let Some(at) = self.anywhere {
            return at;
        }
        // Changes of the table, and a few after its end.
        let first = zone.span_at(-2_500_000_000) + 1;
        let last = zone.span_at(17_500_000_000);
        if first > last {
            return 1_700_000_000 + self.away;
        }
        // Half of them between 1970 and 2040, where rules change most.
        let (first, last) = if self.change.is_multiple_of(2) {
            (zone.span_at(0).max(first), zone.span_at(2_208_988_800).max(first))
        } else {
            (first, last)
        };
        let place = first + (self.change as usize / 2) % (last - first + 1);
        zone.span(place).start + self.away
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn next_prev_and_count_agree_with_brute_force(expression in expression(), window in window()) {
        let text = expression.to_string();
        // What can never fire is refused; the table of cases looks at that.
        let Ok(cron) = Cron::parse(&text) else { return Ok(()) };
        let zone = &ZONES[window.zone];
        let dst = if window.literal { Dst::Literal } else { Dst::Cron };
        let from = window.from(zone);
        let to = from + if cron.has_seconds() { window.length / 20 } else { window.length };
        let expected: Vec<i64> =
            Naive::new(&expression).occurrences(zone, dst, from, to).into_iter().collect();
        let place = format!("{text:?} {} {dst:?} ({from}, {to}]", zone.name());

        prop_assert_eq!(cron.count(zone, dst, from, to), expected.len() as u64, "count {}", place);
        let mut at = from;
        for expected in &expected {
            let next = cron.next_after(zone, dst, at);
            prop_assert_eq!(next, Some(*expected), "next after {} {}", at, place);
            at = *expected;
        }
        let next = cron.next_after(zone, dst, at);
        prop_assert!(next.is_none_or(|next| next > to), "next {:?} after {} {}", next, at, place);
        let mut at = to;
        for expected in expected.iter().rev() {
            let prev = cron.prev_at_or_before(zone, dst, at);
            prop_assert_eq!(prev, Some(*expected), "prev of {} {}", at, place);
            at = *expected - 1;
        }
        let prev = cron.prev_at_or_before(zone, dst, at);
        prop_assert!(prev.is_none_or(|prev| prev <= from), "prev {:?} of {} {}", prev, at, place);
    }

    #[test]
    fn counts_of_long_windows_agree_with_stepping_through_them(
        expression in expression(), window in window(), years in 1..60i64,
    ) {
        let Ok(cron) = Cron::parse(&expression.to_string()) else { return Ok(()) };
        let zone = &ZONES[window.zone];
        let dst = if window.literal { Dst::Literal } else { Dst::Cron };
        let from = window.from(zone);
        // As far as a bounded number of steps leads.
        let limit = from + years * 31_557_000 + window.length;
        let mut at = from;
        let mut steps = 0;
        while steps < 3_000 && let Some(next) = cron.next_after(zone, dst, at).filter(|next| *next <= limit) {
            at = next;
            steps += 1;
        }
        let to = if steps < 3_000 { limit } else { at };
        prop_assert_eq!(
            cron.count(zone, dst, from, to), steps,
            "{:?} {} {:?} ({}, {}]", expression.to_string(), zone.name(), dst, from, to
        );
        // Counts of adjoining windows add up.
        let middle = from + (to - from) / 3;
        prop_assert_eq!(cron.count(zone, dst, from, middle) + cron.count(zone, dst, middle, to), steps);
    }
}
