//! What the daemon costs: durable cycles per second beside what the disk can do, the commits and
//! syncs behind them, and the life of the process: start, memory when idle, stop.
//!
//! Prints a table and never fails: figures are not tests (the counts are held by
//! `tests/commits.rs`). The process is the `kairos` of the same profile: `cargo build --release`
//! first. Syncs are counted by strace where there is one, in a child of this program.
//! `-- cycles` and `-- process` print one half.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kairos_tests::rig::{Plan, Rig};
use kairos_tests::{Root, target_dir};
use rustix::process::Signal;

/// What the measured records of a cycle come to; the append beside which cycles are shown.
const RECORD: usize = 231;
/// Time for each row of cycles, and for the disk's own rate.
const ROW: Duration = Duration::from_secs(4);
/// Cycles of each mandate where later cycles are measured.
const LATER: u32 = 20;
/// The same under strace, which makes each of them slow: `(at once, cycles)`.
const TRACED: [(usize, u32); 2] = [(1, 20), (64, 2)];
/// Starts and stops.
const STARTS: usize = 20;
/// How long a daemon is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(2);
/// Asks a child for one minute of one plan, under strace.
const CHILD: &str = "KAIROS_BENCH_SYNCS";
/// The files whose sync starts and ends what is counted.
const MARKS: [&str; 2] = ["mark-begin", "mark-end"];

fn main() {
    if let Ok(plan) = std::env::var(CHILD) {
        return one_minute(&plan);
    }
    // `cargo test --benches` only wants to know that it runs.
    let asked = |what: &str| std::env::args().any(|arg| arg == what);
    let quick = !asked("--bench");
    println!("load average {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    println!("{:<44}{:>26}  {:<34}", "", "measured", "target or limit");
    if !asked("process") {
        cycles(if quick { Duration::ZERO } else { ROW });
    }
    if !asked("cycles") {
        process(if quick { 1 } else { STARTS });
    }
    println!("load average {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
}

/// A line of the table; `None` where nothing is promised.
fn line(what: &str, measured: &str, limit: &str, kept: Option<bool>) {
    let verdict = match kept {
        None => "",
        Some(true) => "ok",
        Some(false) => "MISSED",
    };
    println!("{what:<44}{measured:>26}  {limit:<34}{verdict}");
}

/// Cycles and syncs.
fn cycles(row: Duration) {
    let floor = appends(row / 2);
    line("append 231 bytes + fdatasync, 1 thread", &format!("{floor:.0}/s"), "", None);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for (kind, cycles) in [("fired, 1 cycle", 1), ("of 20 a mandate", LATER)] {
        let mut alone = f64::MAX;
        for concurrency in [1, 8, 64] {
            let seen = runtime.block_on(rounds(Plan::new(concurrency, cycles), row));
            line(
                &format!("durable cycles, {kind}, {concurrency} at once"),
                &format!("{:.0}/s = {:.2} x fdatasync", seen.rate, seen.rate / floor),
                "",
                None,
            );
            let name = "  commits a cycle";
            let measured = format!("{:.3}", seen.per_cycle);
            if concurrency == 1 {
                alone = seen.per_cycle;
                let due = f64::from(cycles + 1) / f64::from(cycles);
                line(name, &measured, &format!("{due:.3} exactly"), Some((alone - due).abs() < 1e-9));
            } else {
                line(name, &measured, &format!("fewer than {alone:.3}"), Some(seen.per_cycle < alone));
            }
        }
    }
    for (concurrency, cycles) in TRACED {
        let what = format!("syncs of the store a commit, {concurrency} at once");
        match syncs(concurrency, cycles) {
            Ok(Some((syncs, commits))) => {
                let each = syncs as f64 / commits as f64;
                // Besides its own sync a commit pays its part of writing the log back.
                line(&what, &format!("{each:.3} ({syncs}/{commits})"), "<= 1.25", Some(each <= 1.25));
            }
            Ok(None) => line(&what, "no strace here", "", None),
            Err(error) => line(&what, &format!("not counted: {error}"), "", None),
        }
    }
}

/// Appends to a file where the store of a rig would lie, for as long: syncs a second.
fn appends(time: Duration) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let mut file = fs::File::create(dir.path().join("appended")).unwrap();
    let record = [b'x'; RECORD];
    let mut done = 0_u32;
    let begun = Instant::now();
    while done < 10 || begun.elapsed() < time {
        file.write_all(&record).unwrap();
        file.sync_data().unwrap();
        done += 1;
    }
    f64::from(done) / begun.elapsed().as_secs_f64()
}

struct Seen {
    rate: f64,
    per_cycle: f64,
}

/// Minute after minute of a plan, for as long.
async fn rounds(plan: Plan, time: Duration) -> Seen {
    let rig = Rig::new(plan).await.unwrap();
    if !time.is_zero() {
        // The first minute loads and grows what the others find.
        rig.minute().await.unwrap();
    }
    let (mut ran, mut commits) = (0, 0);
    let begun = Instant::now();
    while ran == 0 || begun.elapsed() < time {
        let (cycles, did) = rig.minute().await.unwrap();
        ran += cycles;
        commits += did.commits;
    }
    let took = begun.elapsed();
    rig.close().await.unwrap();
    Seen { rate: ran as f64 / took.as_secs_f64(), per_cycle: commits as f64 / ran as f64 }
}

/// Runs this program under strace for one minute of a plan: syncs of the store's files, and the
/// commits they were for. None without a strace.
fn syncs(concurrency: usize, cycles: u32) -> anyhow::Result<Option<(u64, u64)>> {
    let dir = tempfile::tempdir()?;
    let trace = dir.path().join("trace.txt");
    let child = Command::new("strace")
        .args(["-f", "-qq", "-y", "-e", "trace=fsync,fdatasync", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe()?)
        .env(CHILD, format!("{concurrency} {cycles}"))
        .stderr(Stdio::piped())
        .output();
    let output = match child {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let commits = String::from_utf8(output.stdout)?.trim().parse()?;
    let trace = fs::read_to_string(trace)?;
    // A call that another thread's interrupts is shown twice; the resumed half names no file.
    let counted = trace
        .lines()
        .skip_while(|line| !line.contains(MARKS[0]))
        .take_while(|line| !line.contains(MARKS[1]))
        .filter(|line| line.contains("store.db"))
        .count();
    Ok(Some((counted as u64, commits)))
}

/// The child's part: what is between the marks is counted.
fn one_minute(plan: &str) {
    let numbers: Vec<u32> = plan.split(' ').map(|number| number.parse().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let rig = Rig::new(Plan::new(numbers[0] as usize, numbers[1])).await.unwrap();
        rig.minute().await.unwrap();
        mark(rig.path(), MARKS[0]);
        let (_, did) = rig.minute().await.unwrap();
        mark(rig.path(), MARKS[1]);
        println!("{}", did.commits);
        rig.close().await.unwrap();
    });
}

fn mark(dir: &Path, name: &str) {
    fs::File::create(dir.join(name)).unwrap().sync_all().unwrap();
}

/// Start, memory and stop of the program itself.
fn process(starts: usize) {
    let program = target_dir().join("kairos");
    if !program.is_file() {
        println!("{} is missing: run `cargo build --release` first", program.display());
        return;
    }
    if let Err(error) = root().start() {
        println!("{} does not start, is it up to date? {error}", program.display());
        return;
    }
    let fresh = timed(starts, |_| {
        let root = root();
        let begun = Instant::now();
        let mut daemon = root.start().unwrap();
        let took = begun.elapsed();
        daemon.stop().unwrap();
        took
    });
    limit("start to ready on a new root, p50", fresh, 50);
    let root = root();
    root.start().unwrap().stop().unwrap();
    let mut stops = Vec::new();
    let again = timed(starts, |_| {
        let begun = Instant::now();
        let mut daemon = root.start().unwrap();
        let took = begun.elapsed();
        let begun = Instant::now();
        daemon.stop().unwrap();
        stops.push(begun.elapsed());
        took
    });
    limit("start to ready, p50", again, 50);
    stops.sort_unstable();
    limit("SIGTERM to exit when idle, p50", (stops[stops.len() / 2], stops[stops.len() - 1]), 100);

    let daemon = root.start().unwrap();
    std::thread::sleep(IDLE);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let kib = |key: &str| -> f64 {
        let text = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        text.trim().trim_end_matches(" kB").parse::<f64>().unwrap()
    };
    let resident = kib("VmRSS:") * 1024.0 / 1e6;
    let own = kib("RssAnon:") * 1024.0 / 1e6;
    let measured = format!("{resident:.1} MB, {own:.1} its own");
    line("resident when idle, after 2 s", &measured, "<= 25 MB", Some(resident <= 25.0));
    daemon.signal(Signal::TERM).unwrap();
}

/// A root with one schedule that does not fire while it is measured.
fn root() -> Root {
    Root::new().schedules_yml(
        "schedules:\n  - {name: nightly, cron: '0 3 29 2 *', timezone: Europe/Berlin, mandate: {goal: tidy up}}\n",
    )
}

/// Median and longest.
fn timed(times: usize, run: impl FnMut(usize) -> Duration) -> (Duration, Duration) {
    let mut all: Vec<_> = (0..times).map(run).collect();
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() - 1])
}

fn limit(what: &str, (median, longest): (Duration, Duration), limit_ms: u64) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    line(
        what,
        &format!("{:.1} ms (max {:.1})", ms(median), ms(longest)),
        &format!("<= {limit_ms} ms"),
        Some(median <= Duration::from_millis(limit_ms)),
    );
}
