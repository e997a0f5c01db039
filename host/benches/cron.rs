//! What cron costs, beside croner in the same run: `cargo bench -p kairos-host --bench cron`.
//!
//! An iteration of the `next` benches asks from 1,000 starting points, so a reading of 30 µs means
//! 30 ns for one. The `million` bench is one core's work after a year's outage.

#![allow(missing_docs, reason = "a benchmark has no users of its items")]

use std::hint::black_box;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use kairos_host::domain::cron::{Cron, Zone};
use kairos_host::domain::schedule::Dst;
use kairos_host::sys::zones::Zones;

const EXPRESSIONS: [&str; 11] = [
    "* * * * *",
    "*/5 * * * *",
    "0 * * * *",
    "0 9 * * *",
    "0 9 * * 1-5",
    "30 2 * * *",
    "0 0 1 * *",
    "0 0 1 1 *",
    "0 0 29 2 *",
    "0 12 13 * 5",
    "15,45 8-18/2 * 3,6,9,12 1-5",
];

/// 2026-01-01T00:00:00Z and a year later.
const YEAR: (i64, i64) = (1_767_225_600, 1_798_761_600);

const STARTS: usize = 1_000;

const SCHEDULES: usize = 1_000_000;

fn main() {
    divan::main();
}

/// A small generator, so that every run asks the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn starts() -> Vec<i64> {
    let mut random = Random(20_261_122);
    (0..STARTS).map(|_| YEAR.0 + random.below(31_536_000) as i64).collect()
}

fn zone(name: &str) -> Arc<Zone> {
    Zones::bundled().get(name).expect("the bundled data has it")
}

fn next(bencher: Bencher<'_, '_>, expression: &str, name: &str) {
    let (cron, zone, starts) = (Cron::parse(expression).expect("it is valid"), zone(name), starts());
    bencher.counter(ItemsCount::new(STARTS)).bench_local(|| {
        for start in &starts {
            black_box(cron.next_after(black_box(&zone), Dst::Cron, *start));
        }
    });
}

#[divan::bench(args = EXPRESSIONS)]
fn next_utc(bencher: Bencher<'_, '_>, expression: &str) {
    next(bencher, expression, "UTC");
}

#[divan::bench(args = EXPRESSIONS)]
fn next_new_york(bencher: Bencher<'_, '_>, expression: &str) {
    next(bencher, expression, "America/New_York");
}

#[divan::bench(args = EXPRESSIONS)]
fn next_paris(bencher: Bencher<'_, '_>, expression: &str) {
    next(bencher, expression, "Europe/Paris");
}

fn croner_next(bencher: Bencher<'_, '_>, expression: &str, name: &str) {
    let cron: croner::Cron = expression.parse().expect("it is valid");
    let zone = jiff::tz::TimeZone::get(name).expect("the bundled data has it");
    let starts: Vec<jiff::Zoned> = starts()
        .into_iter()
        .map(|at| jiff::Timestamp::from_second(at).expect("a year of ours").to_zoned(zone.clone()))
        .collect();
    bencher.counter(ItemsCount::new(STARTS)).bench_local(|| {
        for start in &starts {
            let _ = black_box(cron.find_next_occurrence(start, false));
        }
    });
}

#[divan::bench(args = EXPRESSIONS, sample_count = 20)]
fn croner_next_utc(bencher: Bencher<'_, '_>, expression: &str) {
    croner_next(bencher, expression, "UTC");
}

#[divan::bench(args = EXPRESSIONS, sample_count = 20)]
fn croner_next_paris(bencher: Bencher<'_, '_>, expression: &str) {
    croner_next(bencher, expression, "Europe/Paris");
}

fn count_year(bencher: Bencher<'_, '_>, expression: &str, name: &str) {
    let (cron, zone) = (Cron::parse(expression).expect("it is valid"), zone(name));
    bencher.bench_local(|| {
        let (from, to) = black_box(YEAR);
        black_box(&cron).count(&zone, Dst::Cron, from, to)
    });
}

#[divan::bench(args = EXPRESSIONS)]
fn count_year_utc(bencher: Bencher<'_, '_>, expression: &str) {
    count_year(bencher, expression, "UTC");
}

#[divan::bench(args = EXPRESSIONS)]
fn count_year_paris(bencher: Bencher<'_, '_>, expression: &str) {
    count_year(bencher, expression, "Europe/Paris");
}

/// A million texts as people write them: hourly, every few minutes, daily, weekdays, monthly, yearly.
fn texts() -> Vec<String> {
    let mut random = Random(7);
    (0..SCHEDULES)
        .map(|_| {
            let (minute, hour) = (random.below(60), random.below(24));
            match random.below(6) {
                0 => format!("{minute} * * * *"),
                1 => format!("*/{} * * * *", 2 + random.below(28)),
                2 => format!("{minute} {hour} * * *"),
                3 => format!("{minute} {hour} * * MON-FRI"),
                4 => format!("{minute} {hour} {} * *", 1 + random.below(28)),
                _ => format!("{minute} {hour} {} {} *", 1 + random.below(28), 1 + random.below(12)),
            }
        })
        .collect()
}

/// Read, count what a year's outage missed, and find the next time: a million schedules in four zones.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn million_parsed_counted_and_next(bencher: Bencher<'_, '_>) {
    let texts = texts();
    let zones = ["UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe"].map(zone);
    bencher.counter(ItemsCount::new(SCHEDULES)).bench_local(|| {
        let crons: Vec<Cron> =
            texts.iter().map(|text| Cron::parse(text).expect("all of them are valid")).collect();
        let mut missed = 0;
        let mut due = Vec::with_capacity(SCHEDULES);
        for (place, cron) in crons.iter().enumerate() {
            let zone = &zones[place % 4];
            missed += cron.count(zone, Dst::Cron, YEAR.0, YEAR.1);
            due.push(cron.next_after(zone, Dst::Cron, YEAR.1));
        }
        (missed, due)
    });
}

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| Cron::parse(black_box("15,45 8-18/2 * 3,6,9,12 MON-FRI")));
}

/// What a zone costs when it is asked for first.
#[divan::bench]
fn load_a_zone(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| Zones::bundled().get("Europe/Paris"));
}
