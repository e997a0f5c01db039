//! What a daemon's mandates notice of swaps: versions replaced under full load, with every stage of a
//! swap, and the time from the end of each cycle to the end of the next one of the same mandate, while
//! swaps follow one another without pause and while there are none.
//!
//! As many mandates as there are cores run without end, each cycle with a call of a scripted LLM, all
//! of it durable. Stretches with swaps and without take turns. Prints a table and never fails.
//!
//! `cargo build --release && cargo bench -p kairos-tests --bench swap_callers`: the daemon is the
//! `kairos` of that build. `KAIROS_SWAPS` sets the swaps in each isolation.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kairos_tests::measure::quantiles;
use kairos_tests::variant::version;
use kairos_tests::{Root, swaps};
use rusqlite::{Connection, OpenFlags};

/// Sets how many swaps there are in each isolation.
const SWAPS: &str = "KAIROS_SWAPS";
/// Swaps in each, if nobody says how many.
const SOME: usize = 200;
/// The load without swaps, in all rounds together.
const ALONE: Duration = Duration::from_secs(20);
/// Turns of the load without swaps and with them.
const ROUNDS: usize = 10;

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let bench = std::env::args().any(|arg| arg == "--bench");
    let asked = std::env::var(SWAPS).ok().and_then(|text| text.parse().ok());
    let (rounds, count, alone) =
        if bench { (ROUNDS, asked.unwrap_or(SOME), ALONE) } else { (1, 1, Duration::from_secs(1)) };
    println!("load average {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    for isolation in ["process", "sandbox", "in_process"] {
        under_load(isolation, rounds, count, alone);
    }
    println!("load average {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
}

/// Microseconds since the epoch, as the store has them.
fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn under_load(isolation: &str, rounds: usize, count: usize, alone: Duration) {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let settings = format!("{}\nmax_concurrent_cycles: {cores}", swaps::NO_TRIAL);
    let root = swaps::isolated("plain", &settings, isolation);
    let candidates: Vec<PathBuf> = (0..count).map(|_| version(root.aside(), "plain")).collect();
    // Whoever builds a version has done so, and trusts it, before the swap.
    candidates.iter().for_each(|file| swaps::trust(&root, file));
    let mut daemon = root.start().unwrap();
    for _ in 0..cores {
        root.json(&[
            "mandate",
            "add",
            "work",
            "--max-cycles",
            "1000000",
            "--param",
            "more=true",
            "--param",
            "prompt=hello",
        ]);
    }
    // What is replayed before each flip.
    thread::sleep(alone / 10);
    let (mut swapping, mut took) = (vec![], Duration::ZERO);
    let begun = now();
    for round in 0..rounds {
        thread::sleep(alone / u32::try_from(rounds).unwrap());
        let (from, since) = (now(), Instant::now());
        for file in &candidates[count * round / rounds..count * (round + 1) / rounds] {
            swaps::swapped(&root, file);
        }
        took += since.elapsed();
        swapping.push(from..now());
    }
    let ended = now();
    let flips = root.json(&["status"])["swaps"]["flips"].clone();
    daemon.stop().unwrap();

    let (mut with, mut without) = (vec![], vec![]);
    for (from, to) in cycles(&root).into_iter().filter(|(from, to)| begun <= *from && *to <= ended) {
        let time = Duration::from_micros(u64::try_from(to - from).unwrap_or_default());
        if swapping.iter().any(|stretch| stretch.contains(&from) && stretch.contains(&to)) {
            with.push(time);
        } else if !swapping.iter().any(|stretch| stretch.contains(&from) || stretch.contains(&to)) {
            without.push(time);
        }
    }
    let (cycles, rate) = (with.len() + without.len(), count as f64 / took.as_secs_f64());
    println!(
        "-- {isolation}: {count} swaps, {rate:.1} a second, under {cores} mandates without pause, {cycles} cycles"
    );
    println!("flips {}, held at p99 {} ns", flips["count"], flips["held_p99_ns"]);
    let (with, without) = (quantiles(with), quantiles(without));
    for (name, with, without) in [("p50", with.0, without.0), ("p99", with.1, without.1)] {
        let times = with.as_secs_f64() / without.as_secs_f64();
        println!("cycle to cycle, {name:<20}{times:>6.2} x ({with:.1?}, {without:.1?} without)");
    }
    let verdict = if with.1.as_secs_f64() <= 1.5 * without.1.as_secs_f64() { "met" } else { "MISSED" };
    println!("callers' p99 at most 1.5 x: {verdict}");
}

/// When cycles of the same mandate that follow one another ended.
fn cycles(root: &Root) -> Vec<(i64, i64)> {
    let store =
        Connection::open_with_flags(root.file("state/store.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut ends = store
        .prepare(
            "SELECT lag(ended) OVER (PARTITION BY mandate ORDER BY cycle, attempt), ended FROM cycle \
             WHERE ended IS NOT NULL",
        )
        .unwrap();
    let rows = ends.query_map([], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).filter_map(|(from, to)| Some((from?, to))).collect()
}
