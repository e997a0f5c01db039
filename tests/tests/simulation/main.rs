//! The deciding rules, chronos and the store through a year of everything that can go wrong:
//! outages, crashes between any two commits, clocks that are set, edits and commands. A run
//! depends on its seed alone; `KAIROS_SIM_SEEDS=A..B` runs others, `KAIROS_SIM_DAYS` longer ones.
#![expect(clippy::disallowed_methods, reason = "a test reads its own knobs from the environment")]

mod check;
mod faulty;
#[path = "../../../host/tests/seed_support/reads.rs"]
mod reads;
mod slots;
mod world;

use std::time::Duration;

use faulty::Sabotage;
use world::{Figures, World};

const DAY: Duration = Duration::from_secs(86_400);
/// Schedules of one simulation: enough to meet in scopes and slots, few enough to be quick.
const SCHEDULES: usize = 6;

fn simulate(seed: u64, days: u32, sabotage: Option<Sabotage>) -> Result<Figures, String> {
    let mut world = World::new(seed, SCHEDULES, sabotage);
    world.live(DAY * days);
    world.settle();
    if world.wrong.is_empty() { Ok(world.figures) } else { Err(world.report()) }
}

fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("KAIROS_SIM_SEEDS") else { return default };
    let (from, to) = text.split_once("..").expect("KAIROS_SIM_SEEDS reads like 100..200");
    let number = |text: &str| text.parse().expect("KAIROS_SIM_SEEDS holds numbers");
    number(from)..number(to)
}

fn days(default: u32) -> u32 {
    let knob = std::env::var("KAIROS_SIM_DAYS");
    knob.map_or(default, |text| text.parse().expect("KAIROS_SIM_DAYS is a number"))
}

/// Runs them side by side; gives every failure with its seed.
fn simulate_all(seeds: std::ops::Range<u64>, days: u32) -> Vec<Figures> {
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(4);
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let results = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let result = std::panic::catch_unwind(|| simulate(seed, days, None))
                        .unwrap_or_else(|_| Err("it panicked, see above".to_owned()));
                    results.lock().expect("no holder panics").push((seed, result));
                }
            });
        }
    });
    let results = results.into_inner().expect("no holder panics");
    let failures: Vec<String> = results
        .iter()
        .filter_map(|(seed, result)| result.as_ref().err().map(|why| format!("seed {seed}:\n{why}")))
        .collect();
    assert!(failures.is_empty(), "{} of {} failed\n{}", failures.len(), results.len(), failures.join("\n"));
    results.into_iter().filter_map(|(_, result)| result.ok()).collect()
}

#[test]
fn a_year_of_trouble_loses_no_occurrence_and_doubles_none() {
    let all = simulate_all(seeds(1..3), days(365));
    for figures in &all {
        println!("{figures:?}");
        assert!(figures.fired > 300 && figures.cycles > 300, "too quiet to mean anything: {figures:?}");
        assert!(figures.missed > 50 && figures.crashes > 20 && figures.commands > 100, "{figures:?}");
    }
}

#[test]
fn many_short_lives_hold_the_same() {
    let all = simulate_all(seeds(100..116), days(20));
    let set_backs: usize = all.iter().map(|figures| figures.set_backs).sum();
    assert!(set_backs > 0, "no clock was ever set back far enough to matter");
}

/// Some seed shows it, and what it shows reads like `expect`.
#[track_caller]
fn flags(sabotage: Sabotage, expect: &[&str]) {
    for seed in 900..910 {
        if let Err(report) = simulate(seed, 60, Some(sabotage)) {
            assert!(
                expect.iter().any(|expect| report.contains(expect)),
                "{sabotage:?}, seed {seed}:\n{report}"
            );
            return;
        }
    }
    panic!("{sabotage:?} went unseen");
}

#[test]
fn a_store_that_forgets_missed_occurrences_is_flagged() {
    flags(Sabotage::ForgetsMissed, &["occurrences and"]);
}

#[test]
fn a_store_that_forgets_fires_is_flagged() {
    flags(Sabotage::ForgetsFires, &["occurrences and"]);
}

#[test]
fn a_store_that_fires_twice_is_flagged() {
    flags(Sabotage::FiresTwice, &["no occurrence of its rule", "of one occurrence"]);
}

#[test]
fn a_store_that_books_twice_is_flagged() {
    flags(Sabotage::BooksTwice, &["the ledger says"]);
}
