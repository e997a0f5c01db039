//! What a worker process costs: its round trips beside a bare ping-pong of two processes over a
//! socket pair in the same run, the start of a worker, and the way from a death to a fresh one.
//!
//! Three round trips of a KiB each way take turns, on the cores that the scheduler likes and then
//! all on one: a blocking write and read against a process that only sends back (bare); a call of
//! a running cycle, from the host's answer to the runner's next request in the host's hands, with
//! all that both do between; a whole cycle, from the mandate to its report, read and judged.
//!
//! Waiting is not to cost the processor anything; the table tells what a waiting worker used.
//!
//! Prints a table and never fails: figures are not tests. The worker is the `kairos` of the same
//! profile: `cargo build --release` first.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::{Pace, PluginStore, RunnerBackend, RunnerError, Worker, WorkerFactory, WorkerSpec};
use kairos_host::sys::priority;
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{CallError, HostCalls, LlmRequest, Mandate};
use kairos_tests::measure::{measure, quantiles};
use kairos_tests::{kairos, plugin};
use serde_json::Value;

/// Bytes each way.
const SIZE: usize = 1024;
/// Makes this program the other end of the ping-pong.
const ECHO: &str = "--echo";

/// Limits of a round trip at the median: of itself, and as a multiple of the bare one.
const LIMIT: Duration = Duration::from_micros(12);
const TIMES: u32 = 2;

fn main() {
    if std::env::args().any(|arg| arg == ECHO) {
        return echo();
    }
    // `cargo test --benches` only wants to know that it runs.
    let quick = !std::env::args().any(|arg| arg == "--bench");
    let (rounds, calls, starts) = if quick { (1, 50, 2) } else { (15, 2000, 60) };
    println!("load average {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    let root = tempfile::tempdir().unwrap();
    let store = PluginStore::new(root.path());
    let kept = |name: &str| {
        let file = PluginFile::open(&plugin(name)).unwrap();
        (store.keep(&file).unwrap(), file)
    };
    let (stub, hostile) = (kept("stub"), kept("hostile_runner"));
    let process = || WorkerSpec::process("stub", stub.0.clone(), &stub.1, &Value::Null);
    let sandbox = || WorkerSpec::sandbox("stub", stub.0.clone(), &stub.1, &Value::Null);
    let calling = || WorkerSpec::process("calling", hostile.0.clone(), &hostile.1, &Value::Null);

    println!("{:<40}{:>12}{:>12}  of bare, limits at p50", "", "p50", "p99");
    aside(|| round_trips("where the scheduler likes", process, calling, rounds, calls));
    let everywhere = rustix::thread::sched_getaffinity(None).unwrap();
    let mut one = rustix::thread::CpuSet::new();
    one.set(rustix::thread::sched_getcpu());
    // Threads and processes that are started from now on are bound likewise.
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    aside(|| round_trips("all on one core", process, calling, rounds, calls));
    rustix::thread::sched_setaffinity(None, &everywhere).unwrap();

    waiting(&calling, if quick { 2 } else { 100 });
    line("spawn to ready, process", starting(starts, process), Duration::from_millis(3));
    line("spawn to ready, sandbox", starting(starts, sandbox), Duration::from_millis(5));
    let (p50, p99) = first(starts, process);
    println!("{:<40}{p50:>12.2?}{p99:>12.2?}", "  the first of a daemon, process");
    deaths(&Arc::new(factory().start(process(), Pace::Usual).unwrap()), starts);
}

/// On a thread of its own, whose turns are nobody else's matter.
fn aside(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap());
}

fn factory() -> WorkerFactory {
    WorkerFactory::new(kairos()).unwrap()
}

/// The three, each with its own worker or process, interleaved, so that what else the machine does
/// touches them alike.
fn round_trips(
    place: &str,
    cycling: impl Fn() -> WorkerSpec,
    calling: impl Fn() -> WorkerSpec,
    rounds: usize,
    calls: usize,
) {
    let (cycling, calling) =
        (factory().start(cycling(), Pace::Usual).unwrap(), factory().start(calling(), Pace::Usual).unwrap());
    // As the threads of the daemon that runners are called on; the other end of the bare pair likewise.
    priority::short_turns().unwrap();
    let mut bare = PingPong::start();
    let (mandate, report) = mandate_of_a_kib(&cycling);
    let host: Arc<dyn HostCalls> = Arc::new(FakeHost::new());
    let (mut floor, mut call, mut cycle) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        floor.extend(measure(calls, || bare.round_trip()));
        call.extend(measure_calls(&calling, calls));
        cycle.extend(measure(calls, || drop(cycling.run_cycle(&mandate, Arc::clone(&host)).unwrap())));
    }
    let floor = quantiles(floor);
    println!("{place}:");
    println!("{:<40}{:>12.2?}{:>12.2?}", "  bare socket pair, blocking", floor.0, floor.1);
    against("  call of a running cycle", quantiles(call), floor.0);
    against(&format!("  whole cycle, report of {report} bytes"), quantiles(cycle), floor.0);
}

/// A mandate of a KiB, and the size of the report that the stub, which repeats its id, makes of it.
fn mandate_of_a_kib(worker: &Worker) -> (Mandate, usize) {
    let mut mandate = Mandate::new("", "");
    let rest = SIZE - serde_json::to_vec(&mandate).unwrap().len();
    mandate.id = "x".repeat(rest);
    let report = worker.run_cycle(&mandate, Arc::new(FakeHost::new())).unwrap();
    (mandate, serde_json::to_vec(&report).unwrap().len())
}

/// One cycle of that many calls and one more: the times between two requests.
fn measure_calls(worker: &Worker, calls: usize) -> Vec<Duration> {
    let asked = call(worker, calls + 1, Duration::ZERO);
    asked.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// One cycle of that many calls, each answered after `pause`: when they came.
fn call(worker: &Worker, calls: usize, pause: Duration) -> Vec<Instant> {
    let empty = serde_json::to_vec(&LlmRequest::user("")).unwrap().len();
    let mandate = Mandate::new("m", "")
        .with_param("fault", "call")
        .with_param("calls", calls)
        .with_param("prompt", "x".repeat(SIZE - empty));
    let host = Arc::new(Desk { answer: vec![b' '; SIZE], pause, asked: Mutex::default() });
    worker.run_cycle(&mandate, Arc::clone(&host) as _).unwrap();
    let asked = std::mem::take(&mut *host.asked.lock().unwrap());
    assert_eq!(asked.len(), calls);
    asked
}

/// A host that answers each request of a KiB with a KiB, in its own time, and remembers when.
struct Desk {
    answer: Vec<u8>,
    pause: Duration,
    asked: Mutex<Vec<Instant>>,
}

impl HostCalls for Desk {
    fn call(&self, _: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        self.asked.lock().unwrap().push(Instant::now());
        assert_eq!(request.len(), SIZE);
        if !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        Ok(self.answer.clone())
    }

    fn should_stop(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn log(&self, _: tracing::Level, _: &str, _: &str, _: &Value) {}
}

/// What waiting costs a worker's processor: with nothing to do, and for that many slow answers.
fn waiting(spec: &impl Fn() -> WorkerSpec, answers: u32) {
    const PAUSE: Duration = Duration::from_millis(10);
    let worker = factory().start(spec(), Pace::Usual).unwrap();
    let Some(pid) = worker_process() else {
        return println!("CPU of a worker that waits: not known, none is found");
    };
    let before = cpu_of(pid);
    std::thread::sleep(PAUSE * answers);
    let begun = cpu_of(pid);
    call(&worker, answers as usize, PAUSE);
    let (idle, slow) = (begun - before, cpu_of(pid) - begun);
    let mut bare = PingPong::start();
    bare.round_trip();
    let begun = cpu_of(bare.child.id());
    for _ in 0..answers {
        std::thread::sleep(PAUSE);
        bare.round_trip();
    }
    let bare = cpu_of(bare.child.id()) - begun;
    println!("{:<40}{idle:>12.2?}", format!("CPU of a worker, idle for {:?}", PAUSE * answers));
    let row = format!("  {answers} calls, answered after {PAUSE:?} each");
    println!("{row:<40}{slow:>12.2?}{:>12}  of bare {bare:.2?}, and three spins of 100.00µs", "");
}

/// The worker that was started last: it has the highest number until numbers begin again.
fn worker_process() -> Option<u32> {
    let number = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let named = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "kairos-worker\n")
    };
    std::fs::read_dir("/proc").unwrap().filter_map(number).filter(named).max()
}

/// Time that all threads of a process have run so far.
fn cpu_of(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let ran = |text: String| text.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok());
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok());
    Duration::from_nanos(stats.filter_map(ran).sum())
}

/// From the wish for one more worker, in a daemon that has some, to one that has loaded its plugin.
fn starting(times: usize, spec: impl Fn() -> WorkerSpec) -> (Duration, Duration) {
    let factory = factory();
    drop(factory.start(spec(), Pace::Usual).unwrap());
    quantiles((0..times).map(|_| start(|| factory.start(spec(), Pace::Usual).unwrap())).collect())
}

/// From nothing, not even the process that workers are forked from.
fn first(times: usize, spec: impl Fn() -> WorkerSpec) -> (Duration, Duration) {
    quantiles((0..times).map(|_| start(|| factory().start(spec(), Pace::Usual).unwrap())).collect())
}

fn start(make: impl Fn() -> Worker) -> Duration {
    let start = Instant::now();
    let worker = make();
    let taken = start.elapsed();
    drop(worker);
    // The former one has ended then, and takes nothing from the next.
    std::thread::sleep(Duration::from_millis(5));
    taken
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

/// A round trip against both limits, told apart: one hangs on the machine, the other less so.
fn against(what: &str, (p50, p99): (Duration, Duration), floor: Duration) {
    let times = p50.as_secs_f64() / floor.as_secs_f64();
    println!(
        "{what:<40}{p50:>12.2?}{p99:>12.2?}  {times:.2}x; {LIMIT:?} {}, {TIMES}x {}",
        verdict(p50 <= LIMIT),
        verdict(p50 <= floor * TIMES)
    );
}

fn verdict(kept: bool) -> &'static str {
    if kept { "kept" } else { "missed" }
}

fn line(what: &str, (p50, p99): (Duration, Duration), limit: Duration) {
    println!("{what:<40}{p50:>12.2?}{p99:>12.2?}  {limit:.2?}, {}", verdict(p50 <= limit));
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
