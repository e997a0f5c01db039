//! What a million schedules cost in chronos: `cargo bench -p kairos-host --bench chronos`.
//!
//! `after_an_outage` is everything between parsed texts and the first decision after a year away,
//! on one core: compile all rules, find what each is due, count what all of them missed, and put
//! them in line to catch up. `idle_scan` is a wake-up that has to look at every schedule;
//! `idle_wake` one that knows the next due time, as almost all do.

#![allow(missing_docs, reason = "a benchmark has no users of its items")]

use std::hint::black_box;
use std::sync::Arc;

use divan::Bencher;
use kairos_host::daemon::chronos::Table;
use kairos_host::domain::schedule::{SchedulePolicy, ScheduleSpec};
use kairos_host::sys::zones::Zones;

const SCHEDULES: usize = 1_000_000;
/// 2026-01-01T00:00:00Z and a year later.
const YEAR: (i64, i64) = (1_767_225_600, 1_798_761_600);
const ZONES: [&str; 4] = ["UTC", "Europe/Paris", "America/New_York", "Asia/Tokyo"];

fn main() {
    let (table, _) = Table::compile(specs(), &Zones::bundled(), YEAR.0);
    println!("{} bytes a schedule beyond its own texts, {SCHEDULES} schedules", table.bytes() / SCHEDULES);
    drop(table);
    divan::main();
}

/// A mix of hourly, every few minutes, daily, on weekdays and monthly, over four zones.
fn specs() -> Vec<ScheduleSpec> {
    let zones: Vec<Arc<str>> = ZONES.iter().map(|zone| Arc::from(*zone)).collect();
    let policy = Arc::new(SchedulePolicy::default());
    (0..SCHEDULES)
        .map(|n| {
            let (minute, hour, day) = (n % 60, n / 60 % 24, 1 + n / 1440 % 28);
            let cron = match n % 5 {
                0 => format!("{minute} * * * *"),
                1 => format!("*/{} * * * *", 2 + n % 29),
                2 => format!("{minute} {hour} * * *"),
                3 => format!("{minute} {hour} * * 1-5"),
                _ => format!("{minute} {hour} {day} * *"),
            };
            ScheduleSpec {
                name: format!("job-{n}").into(),
                cron: cron.into(),
                timezone: Arc::clone(&zones[n % zones.len()]),
                goal: "keep the garden".into(),
                policy: Arc::clone(&policy),
            }
        })
        .collect()
}

fn placed(cursor: i64) -> Table {
    let (mut table, rejected) = Table::compile(specs(), &Zones::bundled(), cursor);
    assert!(rejected.is_empty());
    place_all(&mut table, cursor);
    table
}

fn place_all(table: &mut Table, cursor: i64) {
    for index in 0..u32::try_from(table.len()).expect("a million fits") {
        table.place(index, cursor);
    }
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn after_an_outage(bencher: Bencher) {
    let zones = Zones::bundled();
    bencher.with_inputs(specs).bench_local_values(|specs| {
        let (mut table, _) = Table::compile(specs, &zones, YEAR.0);
        place_all(&mut table, YEAR.0);
        let missed = table.backlog(YEAR.1);
        let on_time = table.take_due(YEAR.1);
        black_box((missed, on_time.len()));
        table
    });
}

#[divan::bench(sample_count = 20, sample_size = 1)]
fn idle_scan(bencher: Bencher) {
    let mut table = placed(YEAR.1);
    let soonest = table.soonest().expect("something is due some day");
    let first = (0..).find(|index| due(&table, *index) == soonest).expect("the soonest is somebody's");
    bencher.bench_local(|| {
        // The schedule that was to be first is due later now, so everybody is asked again.
        table.place(first, soonest);
        let next = table.soonest();
        table.place(first, YEAR.1);
        black_box(next)
    });
}

fn due(table: &Table, index: u32) -> i64 {
    use kairos_host::domain::missed::Occurrences;
    table.rule(index).next_after(YEAR.1).unwrap_or(i64::MAX)
}

#[divan::bench]
fn idle_wake(bencher: Bencher) {
    let mut table = placed(YEAR.1);
    bencher.bench_local(|| black_box(table.take_due(YEAR.1)).len());
}

/// One minute of on-time work: some twenty thousand schedules are due.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn busy_minute(bencher: Bencher) {
    bencher.with_inputs(|| placed(YEAR.1)).bench_local_values(|mut table| {
        let due = table.take_due(YEAR.1 + 60);
        for index in &due {
            table.place(*index, YEAR.1 + 60);
        }
        (due.len(), table.soonest(), table)
    });
}
