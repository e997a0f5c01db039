//! What a call across each ABI costs over a direct call, all in one run: from the host into a
//! library, and from a runner back to the host. Medians of many loops on one core; what else the
//! machine does touches all rows alike, since they take turns.
//!
//! Target: at most 5 ns over the direct call of its direction.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use chrono::{DateTime, Utc};
use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::{Builtin, PluginStore, RunnerBackend, library, map};
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::{CallError, HostCalls, Mandate, Report};
use kairos_tests::c_plugin::compiled;
use serde_json::{Value, json};

const ROUNDS: usize = 61;
const CALLS: u64 = 200_000;
const LIMIT: f64 = 5.0;

/// A host that only answers; and the direct callee of the other direction.
#[derive(Default)]
struct Host(AtomicU64);

impl HostCalls for Host {
    fn call(&self, _: &str, _: &[u8]) -> Result<Vec<u8>, CallError> {
        Ok(b"{}".to_vec())
    }

    fn should_stop(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn log(&self, _: tracing::Level, _: &str, _: &str, _: &Value) {}
}

#[inline(never)]
extern "C" fn direct(of: &AtomicU64) -> u64 {
    of.load(Ordering::Relaxed)
}

/// A row: its name, the row it is compared with, and a loop of that many calls.
struct Row {
    name: &'static str,
    base: Option<&'static str>,
    run: Box<dyn Fn(u64)>,
    nanos: Vec<f64>,
}

fn row(name: &'static str, base: Option<&'static str>, run: impl Fn(u64) + 'static) -> Row {
    Row { name, base, run: Box::new(run), nanos: Vec::new() }
}

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let quick = !std::env::args().any(|arg| arg == "--bench");
    let (rounds, calls) = if quick { (1, 1000) } else { (ROUNDS, CALLS) };
    pin();
    let root = tempfile::tempdir().unwrap();
    let mut rows = into_libraries(root.path());
    rows.extend(back_to_the_host(root.path()));
    for _ in 0..rounds {
        for row in &mut rows {
            let begun = Instant::now();
            (row.run)(calls);
            row.nanos.push(begun.elapsed().as_secs_f64() * 1e9 / calls as f64);
        }
    }
    println!("{:<44}{:>10}{:>10}", "ns a call, median", "", "over");
    let mut met = true;
    let medians: Vec<(&str, f64)> = rows.iter().map(|row| (row.name, median(&row.nanos))).collect();
    for (row, (_, nanos)) in rows.iter().zip(&medians) {
        let base = row.base.map(|base| medians.iter().find(|(name, _)| *name == base).unwrap().1);
        let over = base.map(|base| nanos - base);
        met &= over.is_none_or(|over| over <= LIMIT);
        println!(
            "{:<44}{nanos:>10.2}{:>10}",
            row.name,
            over.map_or(String::new(), |over| format!("{over:+.2}"))
        );
    }
    println!("at most {LIMIT} ns over a direct call: {}", if met { "met" } else { "missed" });
}

/// The host calls something of a plugin.
///
/// Figure: what a call costs over a direct one; the program says whether the limit is met.
fn into_libraries(root: &Path) -> Vec<Row> {
    const BASE: Option<&str> = Some("direct call");
    let count = AtomicU64::new(0);
    let callee: extern "C" fn(&AtomicU64) -> u64 = black_box(direct);
    let stub = PluginFile::open(&kairos_tests::plugin("stub")).unwrap();
    let kept = PluginStore::new(root.join("store")).keep(&stub).unwrap();
    let module = library::load(&kept, &stub.manifest).unwrap();
    let object = mutant_newer::Host(Arc::new(Other)).boxed();
    let in_c = in_c(root);
    vec![
        row("direct call", None, move |calls| {
            for _ in 0..calls {
                black_box(callee(black_box(&count)));
            }
        }),
        row("Rust ABI, function of the root module", BASE, move |calls| {
            for _ in 0..calls {
                black_box(black_box(module).manifest()());
            }
        }),
        row("Rust ABI, method of an object", BASE, move |calls| {
            for _ in 0..calls {
                black_box(mutant_newer::abi::HostCtx_TO::should_stop(black_box(&object)));
            }
        }),
        row("C ABI, function of the table", BASE, move |calls| {
            for _ in 0..calls {
                black_box(&in_c).cancel();
            }
        }),
    ]
}

/// A host behind a trait object of the Rust ABI.
struct Other;

impl mutant_newer::HostCalls for Other {
    fn call(&self, _: &str, _: &[u8]) -> Result<Vec<u8>, mutant_newer::CallError> {
        Ok(Vec::new())
    }

    fn should_stop(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn log(&self, _: tracing::Level, _: &str, _: &str, _: &Value) {}
}

/// A runner asks `should_stop` of its cycle's host.
fn back_to_the_host(root: &Path) -> Vec<Row> {
    const BASE: Option<&str> = Some("to the host, linked in");
    let linked = Builtin::from_fn("linked", |mandate, ctx| {
        let asks = mandate.params["asks"].as_u64().unwrap();
        Ok(Report { more: (0..asks).any(|_| ctx.should_stop()), ..Report::ok() })
    });
    let path = kairos_tests::plugin("hostile_runner");
    let in_rust = loaded(&path, &root.join("store"));
    let cycle = |backend: Box<dyn RunnerBackend>| {
        move |calls: u64| {
            let mandate = Mandate::new("m", "").with_param("fault", "ask").with_param("asks", calls);
            assert!(!backend.run_cycle(&mandate, Arc::new(Host::default())).unwrap().more);
        }
    };
    vec![
        row("to the host, linked in", None, cycle(Box::new(linked))),
        row("to the host, Rust ABI", BASE, cycle(in_rust)),
        row("to the host, C ABI", BASE, cycle(in_c(root))),
    ]
}

fn in_c(root: &Path) -> Box<dyn RunnerBackend> {
    loaded(&compiled("tests/fixtures/faults.c", "faults", root), &root.join("store"))
}

fn loaded(path: &Path, store: &Path) -> Box<dyn RunnerBackend> {
    let file = PluginFile::open(path).unwrap();
    let kept = PluginStore::new(store).keep(&file).unwrap();
    map(&kept, &file.sha256, &file.manifest, &Setup::new(json!({})), Arc::new(Host::default())).unwrap()
}

/// Keeps this thread on the core it is on.
fn pin() {
    let mut set = rustix::thread::CpuSet::new();
    set.set(rustix::thread::sched_getcpu());
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        println!("not pinned: {error}");
    }
}

fn median(nanos: &[f64]) -> f64 {
    let mut sorted = nanos.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
