//! What a durable cycle costs: `cargo bench -p kairos-host --bench cycles`.
//!
//! A real store on a real disk, the real dispatch, and a runner that does nothing. For each
//! number of slots: cycles per second, commits (each one sync) per cycle, and beside them what
//! the disk can sync per second, measured just before in the same directory. A mandate is added
//! beforehand, so its first cycle costs its claim and its finish, and with a claim that rides on
//! the finish before it only the latter.

#![allow(missing_docs, reason = "a benchmark has no users of its items")]
#![allow(clippy::disallowed_methods, reason = "it measures real time on a real disk")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kairos_host::broker::Broker;
use kairos_host::broker::llm::Providers;
use kairos_host::broker::policy::Policy;
use kairos_host::broker::tools::Tools;
use kairos_host::daemon::dispatch::{Dispatch, Parts, Settings};
use kairos_host::daemon::wallet::Wallet;
use kairos_host::domain::schedule::{MandateBounds, Overlap};
use kairos_host::runner::{Builtin, Launcher, PluginStore, Runners, SearchPath};
use kairos_host::store::{NewMandate, OpenOptions, Origin, Pending, RecoverRequest, SqliteStore, Store};
use kairos_host::sys::clock::{Clock, SystemClock};
use kairos_host::sys::entropy::SystemEntropy;
use kairos_plugin_api::Report;

const RUNNER: &str = "nothing";
const SLOTS: [usize; 3] = [1, 8, 64];
/// So many mandates a measurement, and a tenth of it when cargo only tests that this runs.
const MANDATES: usize = 2_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mandates = if std::env::args().any(|arg| arg == "--bench") { MANDATES } else { MANDATES / 10 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!(
        "{:>5} {:>12} {:>16} {:>18} {:>10}",
        "slots", "cycles/s", "commits/cycle", "fdatasync/s alone", "ratio"
    );
    for slots in SLOTS {
        let dir = here()?;
        let syncs = sync_rate(dir.path())?;
        let (took, commits) = runtime.block_on(measure(dir.path().join("store.db"), slots, mandates))?;
        let rate = mandates as f64 / took.as_secs_f64();
        let each = commits as f64 / mandates as f64;
        println!("{slots:>5} {rate:>12.0} {each:>16.2} {syncs:>18.0} {:>10.2}", rate / syncs);
    }
    Ok(())
}

/// Beside the build's files and not in the temporary directory, which may be memory.
fn here() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR"))
}

/// How often a page can be appended and synced in a second.
fn sync_rate(dir: &Path) -> std::io::Result<f64> {
    let mut file = std::fs::File::create(dir.join("sync"))?;
    let begun = Instant::now();
    let mut syncs = 0;
    while begun.elapsed() < Duration::from_secs(1) {
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        syncs += 1;
    }
    Ok(f64::from(syncs) / begun.elapsed().as_secs_f64())
}

async fn measure(
    path: PathBuf,
    slots: usize,
    mandates: usize,
) -> Result<(Duration, u64), kairos_host::store::Error> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let sqlite = SqliteStore::open(OpenOptions { path, ..OpenOptions::default() })?;
    let store: Arc<dyn Store> = Arc::new(sqlite);
    store.recover(RecoverRequest { now: clock.now() }).await?;
    // All at once, so that they share a few commits.
    let added: Vec<Pending<_>> = (0..mandates).map(|n| store.add(mandate(n, &*clock))).collect();
    for pending in added {
        pending.await?;
    }
    let dispatch = Dispatch::new(parts(&store, &clock), Settings { slots, ..Settings::default() });
    let mut changes = dispatch.changes();
    let before = store.stats().commits;
    let begun = Instant::now();
    dispatch.start(Vec::new());
    loop {
        let _ = changes.changed().await;
        // Only when nothing runs is it worth a look at the queue.
        if dispatch.active_mandate_id().is_none() {
            let counts = store.counts()?;
            if counts.queued == 0 && counts.running.is_empty() {
                break;
            }
        }
    }
    let took = begun.elapsed();
    let commits = store.stats().commits - before;
    dispatch.drain(Duration::from_secs(5)).await;
    store.close().await?;
    Ok((took, commits))
}

fn parts(store: &Arc<dyn Store>, clock: &Arc<dyn Clock>) -> Parts {
    let nowhere = Path::new("/nonexistent/kairos");
    let runners = Runners::new(Launcher::in_process(
        SearchPath::new(nowhere, None, None),
        PluginStore::new(nowhere.join("plugins")),
    ));
    runners.insert(RUNNER, Arc::new(Builtin::from_fn(RUNNER, |_, _| Ok(Report::ok()))));
    let wallet = Arc::new(Wallet::disabled());
    let (budget, time) = (Arc::clone(&wallet), Arc::clone(clock));
    let broker = Arc::new(Broker {
        store: Arc::clone(store),
        clock: Arc::clone(clock),
        entropy: Arc::new(SystemEntropy),
        gate: Arc::new(move || budget.day_and_limits(time.now())),
        providers: Providers::default(),
        tools: Tools::default(),
        policy: Policy::default(),
    });
    Parts {
        clock: Arc::clone(clock),
        store: Arc::clone(store),
        runners: Arc::new(runners),
        services: Arc::new(broker),
        log: None,
        wallet,
    }
}

fn mandate(number: usize, clock: &dyn Clock) -> NewMandate {
    NewMandate {
        id: format!("m{number}"),
        origin: Origin::Manual,
        request_id: None,
        schedule: None,
        nominal: None,
        goal: "nothing".to_owned(),
        runner: RUNNER.to_owned(),
        scope: None,
        overlap: Overlap::default(),
        bounds: MandateBounds::default(),
        again: false,
        now: clock.now(),
    }
}
