//! What a worker process costs: a cycle's round trip beside a bare ping-pong of two processes over
//! a socket pair in the same run, the start of a worker, and the way from a death to a fresh one.
//!
//! Prints a table and never fails: figures are not tests. The worker is the `kairos` of the same
//! profile: `cargo build --release` first.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::{PluginStore, RunnerBackend, RunnerError, Worker, WorkerFactory, WorkerSpec};
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{HostCalls, Mandate};
use kairos_tests::{kairos, plugin};
use serde_json::Value;

/// Bytes each way.
const SIZE: usize = 1024;
/// Makes this program the other end of the ping-pong.
const ECHO: &str = "--echo";

fn main() {
    if std::env::args().any(|arg| arg == ECHO) {
        return echo();
    }
    // `cargo test --benches` only wants to know that it runs.
    let quick = !std::env::args().any(|arg| arg == "--bench");
    let (rounds, calls, starts) = if quick { (1, 50, 2) } else { (9, 3000, 60) };
    println!("load average {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    println!("{:<40}{:>12}{:>12}  limit at p50", "", "p50", "p99");
    let root = tempfile::tempdir().unwrap();
    let store = PluginStore::new(root.path());
    let file = PluginFile::open(&plugin("stub")).unwrap();
    let path = store.keep(&file).unwrap();
    let process = || WorkerSpec::process("stub", path.clone(), &file, &Value::Null);
    let sandbox = || WorkerSpec::sandbox("stub", path.clone(), &file, &Value::Null);

    round_trip(&factory().start(process()).unwrap(), rounds, calls);
    line("spawn to ready, process", starting(starts, process), Duration::from_millis(3));
    line("spawn to ready, sandbox", starting(starts, sandbox), Duration::from_millis(5));
    deaths(&Arc::new(factory().start(process()).unwrap()), starts);
}

fn factory() -> WorkerFactory {
    WorkerFactory::new(kairos()).unwrap()
}

/// A mandate and a report of the stub, which repeats the mandate's id, of a KiB each.
fn round_trip(worker: &Worker, rounds: usize, calls: usize) {
    let mut mandate = Mandate::new("", "");
    let rest = SIZE - serde_json::to_vec(&mandate).unwrap().len();
    mandate.id = "x".repeat(rest);
    let host: Arc<dyn HostCalls> = Arc::new(FakeHost::new());
    let report = serde_json::to_vec(&worker.run_cycle(&mandate, Arc::clone(&host)).unwrap()).unwrap().len();
    let mut bare = PingPong::start();
    let (mut floor, mut full) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // Interleaved, so that what else the machine does touches both alike.
        floor.extend(measure(calls, || bare.round_trip()));
        full.extend(measure(calls, || drop(worker.run_cycle(&mandate, Arc::clone(&host)).unwrap())));
    }
    let floor = quantiles(floor);
    println!("{:<40}{:>12.2?}{:>12.2?}", "bare socket pair, 1 KiB each way", floor.0, floor.1);
    let full = quantiles(full);
    // Two limits, told apart: one hangs on the machine and on what else it does, the other not.
    line(&format!("cycle in a worker, {SIZE} + {report} bytes"), full, Duration::from_micros(12));
    line("the same, against twice the bare pair", full, floor.0 * 2);
}

/// From nothing, not even the supervisor's thread, to a worker that has loaded its plugin.
fn starting(times: usize, spec: impl Fn() -> WorkerSpec) -> (Duration, Duration) {
    let mut taken = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        let worker = factory().start(spec()).unwrap();
        taken.push(start.elapsed());
        drop(worker);
    }
    quantiles(taken)
}

/// From the signal to the death's report, and on to the end of a whole cycle on a fresh worker.
fn deaths(worker: &Arc<Worker>, times: usize) {
    let (mut noticed, mut serving) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let host = FakeHost::new().reply("go");
        let (seen, killed) = (host.clone(), Arc::clone(worker));
        let (send, signalled) = mpsc::channel();
        let killer = std::thread::spawn(move || {
            while seen.steps().is_empty() {
                std::thread::yield_now();
            }
            send.send(Instant::now()).unwrap();
            assert!(killed.kill("m"));
        });
        let endless = Mandate::new("m", "").with_param("prompt", "?").with_param("sleep_ms", 3_600_000);
        assert!(matches!(worker.run_cycle(&endless, Arc::new(host)), Err(RunnerError::Died(_))));
        let dead = Instant::now();
        worker.run_cycle(&Mandate::new("m", ""), Arc::new(FakeHost::new())).unwrap();
        let served = Instant::now();
        let start = signalled.recv().unwrap();
        killer.join().unwrap();
        noticed.push(dead - start);
        serving.push(served - start);
        // The next blank one is ready by then, as in a daemon whose workers do not die all the time.
        std::thread::sleep(Duration::from_millis(20));
    }
    let (p50, p99) = quantiles(noticed);
    println!("{:<40}{p50:>12.2?}{p99:>12.2?}", "killed to noticed");
    line("killed to served by a fresh worker", quantiles(serving), Duration::from_millis(5));
}

fn line(what: &str, (p50, p99): (Duration, Duration), limit: Duration) {
    let verdict = if p50 <= limit { "kept" } else { "missed" };
    println!("{what:<40}{p50:>12.2?}{p99:>12.2?}  {limit:.2?}, {verdict}");
}

fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn measure(calls: usize, mut call: impl FnMut()) -> Vec<Duration> {
    (0..calls)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed()
        })
        .collect()
}

/// Another process that sends back what it gets: the floor of any exchange of frames.
struct PingPong {
    socket: UnixStream,
    child: Child,
}

impl PingPong {
    fn start() -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .arg(ECHO)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        Self { socket, child }
    }

    fn round_trip(&mut self) {
        let mut bytes = [7; SIZE];
        self.socket.write_all(&bytes).unwrap();
        self.socket.read_exact(&mut bytes).unwrap();
    }
}

impl Drop for PingPong {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn echo() {
    let socket = rustix::io::dup(rustix::stdio::stdin()).unwrap();
    let mut socket = UnixStream::from(socket);
    let mut bytes = [0; SIZE];
    while socket.read_exact(&mut bytes).is_ok() {
        socket.write_all(&bytes).unwrap();
    }
}
