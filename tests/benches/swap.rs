//! Versions of a runner replaced under full load, in process and in workers: every cycle counted,
//! the time of the flip, what callers notice, what stays in memory.
//!
//! Two parts. The first drives the registry itself: threads run short cycles without pause on
//! whatever serves, one for each core, while candidates are tried in a worker, prepared and flipped
//! one after the other; no shadow, no hand-over, no canary. Stretches with swaps and without take
//! turns. It is repeated with five swaps a second (`paced`), and with one core left to the swaps
//! (`free_core`). The second part swaps through a daemon with all of its stages and audits the root.
//! Prints a table and never fails.
//!
//! `cargo build --release && cargo bench -p kairos-tests --bench swap`: the worker is the `kairos` of
//! that build. Parts can be named: `-- process in_process paced free_core daemon`. `KAIROS_SWAPS` sets the
//! swaps of each run of the first part.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use kairos_host::runner::{
    Generation, Isolation, Launcher, Pace, PluginFile, PluginStore, RunnerConfig, Runners, SearchPath,
    WorkerFactory,
};
use kairos_host::sys::clock::SystemClock;
use kairos_host::sys::priority;
use kairos_plugin_api::Mandate;
use kairos_plugin_api::testing::FakeHost;
use kairos_tests::audit::{Expected, audit};
use kairos_tests::variant::{bytes_of, version};
use kairos_tests::{PATIENCE, Root, kairos};

/// Sets how many swaps there are in each run of the registry.
const SWAPS: &str = "KAIROS_SWAPS";
/// A bad candidate is offered with every so manieth swap.
const BAD_EVERY: u32 = 25;
/// Swaps before memory is read first: what is made once has been made by then.
const WARM: u32 = 50;
/// The load without swaps, in all rounds together.
const ALONE: Duration = Duration::from_secs(20);
/// Turns of the load without swaps and with them.
const ROUNDS: u32 = 20;
/// Between two swaps that are not back to back: far more often than anybody swaps.
const PACE: Duration = Duration::from_millis(200);
/// Swaps of the daemon in each isolation.
const WHOLE: usize = 40;
/// Cycles of each mandate of the daemon's load.
const CYCLES: i64 = 10;
/// Memory that stays for each version in process, as documented.
const IMAGE: f64 = 88.0;

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let bench = std::env::args().any(|arg| arg == "--bench");
    let parts: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|asked| asked == part);
    let asked = std::env::var(SWAPS).ok().and_then(|text| text.parse().ok());
    let swaps = asked.unwrap_or(if bench { 1000 } else { 2 });
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let alone = if bench { ALONE } else { Duration::from_millis(100) };
    let begun = Instant::now();
    println!("load average {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    println!("{:<44}{:>34}  limit", "", "measured");
    // In process last: its images stay, and would hide what workers leave.
    for isolation in [Isolation::Process, Isolation::InProcess] {
        if wanted(&isolation.to_string()) {
            registry(isolation, swaps, Duration::ZERO, cores, alone);
        }
        if wanted("paced") {
            registry(isolation, swaps, PACE, cores, alone);
        }
        if wanted("free_core") && cores > 1 {
            registry(isolation, (swaps / 4).max(2), Duration::ZERO, cores - 1, alone / 4);
        }
    }
    for isolation in ["process", "in_process"] {
        if wanted("daemon") {
            daemon(isolation, if bench { WHOLE } else { 1 });
        }
    }
    println!("took {:.0?}", begun.elapsed());
    println!("load average {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
}

/// A line of the table; `None` where nothing is promised.
fn line(what: &str, measured: &str, limit: &str, met: Option<bool>) {
    let verdict = match met {
        None => "",
        Some(true) => ", met",
        Some(false) => ", MISSED",
    };
    println!("{what:<44}{measured:>34}  {limit}{verdict}");
}

/// Times in steps of a hundredth, in a fixed room: what is measured must not grow this process.
struct Times(Vec<u64>);

impl Times {
    fn new() -> Self {
        Self(vec![0; 4096])
    }

    fn add(&mut self, time: Duration) {
        let step = (time.as_nanos().max(1) as f64).log2() * 69.66;
        self.0[(step as usize).min(4095)] += 1;
    }

    fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, more)| *sum += more);
    }

    fn at(&self, share: f64) -> Duration {
        let mut left = (self.0.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let step = self.0.iter().position(|count| {
            left = left.saturating_sub(*count);
            left == 0
        });
        Duration::from_nanos(((step.unwrap_or(0) as f64 + 0.5) / 69.66).exp2() as u64)
    }
}

/// What the callers of one load saw: without swaps and with them.
struct Seen {
    begun: u64,
    lost: u64,
    doubled: u64,
    alone: Times,
    swapped: Times,
}

impl Seen {
    fn none() -> Self {
        Self { begun: 0, lost: 0, doubled: 0, alone: Times::new(), swapped: Times::new() }
    }
}

/// Callers without pause. They run through both halves of each round, with swaps and without.
struct Load {
    stop: Arc<AtomicBool>,
    swapping: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Seen>>,
}

impl Load {
    fn start(runners: &Arc<Runners>, callers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let swapping = Arc::new(AtomicBool::new(false));
        let caller = |number| {
            let (stop, swapping) = (Arc::clone(&stop), Arc::clone(&swapping));
            let runners = Arc::clone(runners);
            thread::spawn(move || {
                // As a thread of the daemon that waits for a cycle.
                priority::short_turns().unwrap();
                call(&runners, &stop, &swapping, &format!("caller-{number}"))
            })
        };
        Self { callers: (0..callers).map(caller).collect(), stop, swapping }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        let mut sum = Seen::none();
        for caller in self.callers {
            let seen = caller.join().unwrap();
            sum.begun += seen.begun;
            sum.lost += seen.lost;
            sum.doubled += seen.doubled;
            sum.alone.join(&seen.alone);
            sum.swapped.join(&seen.swapped);
        }
        sum
    }
}

/// Runs cycles, each with an id and a host of its own that counts how often it began, until asked
/// to stop. A generation is held until its cycle has ended, as the dispatch does it.
fn call(runners: &Runners, stop: &AtomicBool, swapping: &AtomicBool, name: &str) -> Seen {
    let mut seen = Seen::none();
    while !stop.load(Ordering::SeqCst) {
        seen.begun += 1;
        let id = format!("{name}-{}", seen.begun);
        let mandate = Mandate::new(id, "").with_param("prompt", "?");
        let host = FakeHost::new().reply("so be it");
        let times = if swapping.load(Ordering::SeqCst) { &mut seen.swapped } else { &mut seen.alone };
        let asked = Instant::now();
        let generation = runners.current("v").unwrap();
        let ended = generation.start(mandate, Arc::new(host.clone())).blocking_recv();
        times.add(asked.elapsed());
        let began = host.steps().len();
        if began == 0 || !matches!(ended, Ok(Ok(_))) {
            seen.lost += 1;
        }
        if began > 1 {
            seen.doubled += 1;
        }
    }
    seen
}

/// The registry with one runner and what its swaps come to.
struct Swapper {
    isolation: Isolation,
    /// Time from one swap to the next, at least.
    every: Duration,
    runners: Arc<Runners>,
    config: RunnerConfig,
    dir: tempfile::TempDir,
    made: u32,
    clock: SystemClock,
    prepared: Times,
    /// Cycles that retired versions say they ran.
    ran: u64,
    bad: u32,
    refused: u32,
}

impl Swapper {
    fn new(isolation: Isolation, every: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = version(dir.path(), "plain").display().to_string();
        let config = RunnerConfig { isolation: Some(isolation), ..RunnerConfig::new("v", first) };
        let search = SearchPath::new(dir.path(), None, None);
        let store = PluginStore::new(dir.path().join("store"));
        let launcher = Launcher::with_workers(search, store, WorkerFactory::new(kairos()).unwrap());
        let runners = Arc::new(Runners::load(vec![config.clone()], launcher));
        runners.current("v").unwrap();
        Self {
            isolation,
            every,
            runners,
            config,
            dir,
            made: 1 << 20,
            clock: SystemClock::default(),
            prepared: Times::new(),
            ran: 0,
            bad: 0,
            refused: 0,
        }
    }

    /// A file as an operator would name it, tried and prepared as the daemon does it.
    fn prepare(&mut self, bytes: &[u8]) -> Result<Arc<Generation>, String> {
        let path = self.dir.path().join("candidate.so");
        priority::at_leisure(|| fs::write(&path, bytes).unwrap());
        let plugin = priority::at_leisure(|| PluginFile::open(&path)).map_err(|error| error.to_string())?;
        self.runners.keep(&plugin).unwrap();
        let trial = self.runners.on_trial(&self.config, &plugin, Pace::Background);
        drop(trial.map_err(|error| error.to_string())?);
        let next = self.runners.prepare("v", &plugin).map_err(|error| error.to_string())?;
        // As many processes as serve now, so that no cycle waits for one to be loaded.
        let count = self.runners.current("v").unwrap().instances();
        next.warm(count).map_err(|error| error.to_string())?;
        Ok(next)
    }

    /// Made where nobody waits for it: somebody's build is no part of a swap.
    fn next(&mut self, mode: &str) -> Vec<u8> {
        self.made += 1;
        let made = self.made;
        priority::at_leisure(|| bytes_of(mode, made))
    }

    fn swaps(&mut self, count: u32) {
        for number in 1..=count {
            let begun = Instant::now();
            let bytes = self.next("plain");
            let next = self.prepare(&bytes).unwrap();
            self.prepared.add(begun.elapsed());
            let from = self.runners.current("v").unwrap();
            let former = self.runners.flip("v", &from, next, None, &self.clock).unwrap();
            drop(from);
            self.retire(&former);
            thread::sleep(self.every.saturating_sub(begun.elapsed()));
            if number % BAD_EVERY == 0 {
                self.offer_bad();
            }
        }
    }

    /// Waits until the last cycle has let go of it, and asks how many it ran.
    fn retire(&mut self, former: &Arc<Generation>) {
        former.begin_drain();
        self.runners.unpin("v", &former.identity().generation);
        let begun = Instant::now();
        while Arc::strong_count(former) > 1 {
            assert!(begun.elapsed() < PATIENCE, "a cycle does not end");
            thread::sleep(Duration::from_micros(100));
        }
        self.ran += counted(former);
        if self.isolation == Isolation::Process {
            // As housekeeping does it. What is mapped needs its room on disk in any case.
            let needed = self.runners.current("v").unwrap().identity().generation.clone();
            self.runners.prune_kept(SystemTime::now(), |sha256| sha256 == needed).unwrap();
        }
    }

    fn offer_bad(&mut self) {
        let modes = ["unwell", "refuses", "cut", "text"];
        let mode = modes[self.bad as usize % modes.len()];
        self.bad += 1;
        let bytes = match mode {
            "cut" => self.next("plain")[..5000].to_vec(),
            "text" => b"no library".to_vec(),
            mode => self.next(mode),
        };
        let before = self.runners.current("v").unwrap();
        let refused = self.prepare(&bytes).is_err();
        let serves = Arc::ptr_eq(&before, &self.runners.current("v").unwrap());
        self.refused += u32::from(refused && serves);
    }
}

/// How many cycles all instances of a version ran.
fn counted(generation: &Generation) -> u64 {
    let states = generation.hand_over().unwrap();
    states.0.iter().map(|each| each.state.data["ran"].as_u64().unwrap()).sum()
}

/// The first part in one isolation.
fn registry(isolation: Isolation, swaps: u32, every: Duration, callers: usize, alone: Duration) {
    let pace = if every.is_zero() { "back to back".to_owned() } else { format!("{every:?} apart") };
    println!("-- {isolation}, {swaps} swaps of the registry, {pace}, under {callers} callers without pause");
    let mut swapper = Swapper::new(isolation, every);
    let load = Load::start(&swapper.runners, callers);
    let warm = WARM.min(swaps / 2);
    swapper.swaps(warm);
    let before = memory();
    let workers = workers_at_most(usize::MAX);
    let mut took = Duration::ZERO;
    // Both halves of a round follow one another, so that a machine that is busy now and idle then
    // does not tell them apart.
    for round in 1..=ROUNDS {
        thread::sleep(alone / ROUNDS);
        let begun = Instant::now();
        load.swapping.store(true, Ordering::SeqCst);
        let left = swaps - warm;
        swapper.swaps(left * round / ROUNDS - left * (round - 1) / ROUNDS);
        load.swapping.store(false, Ordering::SeqCst);
        took += begun.elapsed();
        eprintln!("   round {round} of {ROUNDS}: swaps took {:.1?}", begun.elapsed());
    }
    let after = memory();
    let seen = load.end();
    let serves = swapper.runners.current("v").unwrap();
    let ran = swapper.ran + counted(&serves);
    drop(serves);

    let pace = format!("{:.0}/s, {} cycles in all", f64::from(swaps - warm) / took.as_secs_f64(), seen.begun);
    line("swaps", &pace, "", None);
    let faults = format!("{} / {} of {}", seen.lost, seen.doubled, seen.begun);
    line("cycles lost / doubled, by id", &faults, "0 / 0", Some(seen.lost + seen.doubled == 0));
    line("cycles, as the versions counted them", &ran.to_string(), "the same", Some(ran == seen.begun));
    let bad = format!("{} of {}", swapper.refused, swapper.bad);
    line("bad candidates refused, old one serves", &bad, "all", Some(swapper.refused == swapper.bad));
    let flips = swapper.runners.flips();
    let ns = Duration::from_nanos;
    let held = format!(
        "{:.1?} (p50 {:.1?}, max {:.1?})",
        ns(flips.held_p99_ns),
        ns(flips.held_p50_ns),
        ns(flips.held_max_ns)
    );
    line("flip's critical section, p99", &held, "1 ms", Some(flips.held_p99_ns <= 1_000_000));
    line("wait for it, p99", &format!("{:.1?}", ns(flips.waited_p99_ns)), "", None);
    let (p50, p99) = (swapper.prepared.at(0.5), swapper.prepared.at(0.99));
    line("preparation, p50 / p99", &format!("{p50:.1?} / {p99:.1?}"), "", None);
    times_of(&seen);
    // A few swaps tell nothing of what each of them leaves.
    if every.is_zero() {
        left_behind(&swapper, f64::from(swaps - warm), (before, after), workers);
    }
}

fn times_of(seen: &Seen) {
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let (with, without) = (seen.swapped.at(share), seen.alone.at(share));
        let times = with.as_secs_f64() / without.as_secs_f64();
        let measured = format!("{times:.2} x ({with:.1?}, {without:.1?} without)");
        if name == "p99" {
            line("callers' p99", &measured, "1.5 x", Some(times <= 1.5));
        } else {
            line(&format!("callers' {name}"), &measured, "", None);
        }
    }
}

fn left_behind(swapper: &Swapper, swaps: f64, (before, after): (Memory, Memory), workers: usize) {
    let grown = after.own - before.own;
    let each = grown / swaps;
    let own = format!("{each:+.1} KiB a swap ({grown:+.0} in all)");
    if swapper.isolation == Isolation::InProcess {
        line("memory of its own", &own, "88 KiB a swap", Some(each <= IMAGE));
    } else {
        // What the allocator keeps ready moves by some pages; growth is what comes with each swap.
        line("memory of its own", &own, "0: below a page a swap", Some(each < 4.0));
        let now = workers_at_most(workers);
        line(
            "worker processes, before and after",
            &format!("{workers}, {now}"),
            "no more",
            Some(now <= workers),
        );
    }
    let file = (after.file - before.file) / swaps;
    line("clean pages of files", &format!("{file:+.1} KiB a swap"), "", None);
}

/// Of this process, in KiB.
#[derive(Clone, Copy)]
struct Memory {
    own: f64,
    file: f64,
}

fn memory() -> Memory {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let kib = |key: &str| -> f64 {
        let text = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        text.trim().trim_end_matches(" kB").parse().unwrap()
    };
    Memory { own: kib("RssAnon:"), file: kib("RssFile:") }
}

/// Processes of this one, as soon as they are that few; retired workers have a moment to end.
fn workers_at_most(most: usize) -> usize {
    let begun = Instant::now();
    loop {
        let now = workers();
        if now <= most || begun.elapsed() > Duration::from_secs(10) {
            return now;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn workers() -> usize {
    let own = std::process::id().to_string();
    let child = |path: &Path| {
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or_default();
        rest.split_whitespace().nth(1) == Some(&own)
    };
    fs::read_dir("/proc").unwrap().flatten().filter(|entry| child(&entry.path())).count()
}

/// The second part: every stage, a store, a journal, and an audit of what they say at the end.
fn daemon(isolation: &str, swaps: usize) {
    println!("-- {isolation}, {swaps} swaps through a daemon: kept, probed, replayed, handed over, flipped");
    let root = Root::new();
    let trusted = |mode: &str| {
        let file = version(root.aside(), mode).display().to_string();
        root.json(&["plugin", "trust", &file]);
        file
    };
    let first = trusted("plain");
    let text = format!(
        "default_runner: v\nmax_concurrent_cycles: 4\nswap: {{canary_cycles: 0, drain_timeout: 60s}}\n\
         runners:\n  v: {{plugin: {first:?}, isolation: {isolation}}}\n\
         llm:\n  providers:\n    canned: {{kind: scripted, file: .kairos/config/replies.yml}}\n"
    );
    root.write("config/daemon.yml", &text);
    root.write("config/replies.yml", "cycle: true\nreplies:\n  - {text: so be it}\n");
    let mut daemon = root.start().unwrap();
    let mut expected = Expected::default();
    expected.cycles.insert("work".to_owned(), CYCLES);
    let mandates = swaps.max(4);
    let mut add = |count: usize| {
        for _ in 0..count {
            let id = root.add("work", &["sleep_ms=20", "more=true", "prompt=hello"]);
            expected.acknowledged.insert(id);
        }
    };
    add(mandates / 2);
    let (mut times, mut refused, mut bad) = (Times::new(), 0, 0);
    for number in 1..=swaps {
        let file = trusted("plain");
        let begun = Instant::now();
        let ran = root.cli(&["plugin", "swap", "v", &file, "--json"]);
        times.add(begun.elapsed());
        assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
        if number % 10 == 0 {
            bad += 1;
            let ran = root.cli(&["plugin", "swap", "v", &trusted("crashes"), "--json"]);
            refused += usize::from(ran.code == 1 && ran.stderr.contains("shadow_crashed"));
        }
        add(1);
    }
    let flips = root.json(&["status"])["swaps"]["flips"].clone();
    let ids: Vec<String> = expected.acknowledged.iter().cloned().collect();
    for id in &ids {
        root.wait_state(id, &["succeeded", "failed", "review", "cancelled"]).unwrap();
    }
    daemon.stop().unwrap();
    let found = audit(&root.file(""), &expected).unwrap();
    let cycles = ids.len() as i64 * CYCLES;
    line(
        "faults found by the audit",
        &format!("{} in {cycles} cycles", found.len()),
        "0",
        Some(found.is_empty()),
    );
    found.iter().take(5).for_each(|fault| println!("   {fault}"));
    line(
        "bad candidates refused after the replay",
        &format!("{refused} of {bad}"),
        "all",
        Some(refused == bad),
    );
    let p99 = flips["held_p99_ns"].as_u64().unwrap();
    let held = format!("{:.1?} of {}", Duration::from_nanos(p99), flips["count"]);
    line("flip's critical section, p99", &held, "1 ms", Some(p99 <= 1_000_000));
    let (p50, p99) = (times.at(0.5), times.at(0.99));
    line("a swap with its command, p50 / p99", &format!("{p50:.1?} / {p99:.1?}"), "", None);
}
