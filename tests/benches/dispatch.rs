//! What it costs to hand a cycle to a runner in this process and get its report, without any
//! durability, beside a bare ping-pong of two threads over channels in the same run.
//!
//! It lives here because it loads the stub plugin, which the host must not know.
//! Target: at most 1.5 times the ping-pong plus 2 us, at the median.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::sync::{Arc, mpsc};
use std::time::Duration;

use kairos_host::runner::{Builtin, Generation, Launcher, PluginStore, RunnerConfig, Runners, SearchPath};
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{HostCalls, Mandate, Report};
use kairos_tests::measure::{measure, quantiles};

const ROUNDS: usize = 9;
const CALLS: usize = 4000;

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let quick = !std::env::args().any(|arg| arg == "--bench");
    let (rounds, calls) = if quick { (1, 100) } else { (ROUNDS, CALLS) };

    let root = tempfile::tempdir().unwrap();
    let exe = std::env::current_exe().unwrap();
    let search = SearchPath::new(root.path(), exe.parent(), None);
    let store = PluginStore::new(root.path().join("store"));
    let runners = Runners::load(vec![RunnerConfig::new("stub", "stub")], Launcher::in_process(search, store));
    let plugin = runners.current("stub").unwrap();
    let builtin = Generation::of("builtin", Arc::new(Builtin::from_fn("builtin", |_, _| Ok(Report::ok()))));

    let mut mandate = Mandate::new("20260101T000000Z-bench-0", "");
    let rest = 1024 - serde_json::to_vec(&mandate).unwrap().len();
    mandate.goal = "x".repeat(rest);
    assert_eq!(serde_json::to_vec(&mandate).unwrap().len(), 1024);
    let host: Arc<dyn HostCalls> = Arc::new(FakeHost::new());

    let mut figures = [Vec::new(), Vec::new(), Vec::new()];
    let mut ping = PingPong::new();
    for _ in 0..rounds {
        // Interleaved, so that what else the machine does touches all of them alike.
        figures[0].extend(measure(calls, || ping.round_trip()));
        figures[1].extend(measure(calls, || dispatch(&builtin, &mandate, &host)));
        figures[2].extend(measure(calls, || dispatch(&plugin, &mandate, &host)));
    }
    let [ping, builtin, plugin] = figures.map(quantiles);
    println!("{:<28}{:>12}{:>12}", "", "p50", "p99");
    for (name, (p50, p99)) in
        [("channel ping-pong", ping), ("builtin dispatch", builtin), ("plugin dispatch", plugin)]
    {
        println!("{name:<28}{p50:>12.2?}{p99:>12.2?}");
    }
    let target = ping.0.mul_f64(1.5) + Duration::from_micros(2);
    let verdict = if plugin.0 <= target { "met" } else { "missed" };
    println!("plugin dispatch of a 1 KiB mandate at p50: target {target:.2?}, {verdict}");
}

fn dispatch(generation: &Generation, mandate: &Mandate, host: &Arc<dyn HostCalls>) {
    let outcome = generation.start(mandate.clone(), Arc::clone(host));
    outcome.blocking_recv().unwrap().unwrap();
}

/// Two threads and two channels: the floor of any hand-over.
struct PingPong {
    there: mpsc::Sender<u64>,
    back: mpsc::Receiver<u64>,
    sent: u64,
}

impl PingPong {
    fn new() -> Self {
        let (there, requests) = mpsc::channel();
        let (answers, back) = mpsc::channel();
        std::thread::spawn(move || {
            while let Ok(number) = requests.recv() {
                if answers.send(number).is_err() {
                    break;
                }
            }
        });
        Self { there, back, sent: 0 }
    }

    fn round_trip(&mut self) {
        self.sent += 1;
        self.there.send(self.sent).unwrap();
        assert_eq!(self.back.recv().unwrap(), self.sent);
    }
}
