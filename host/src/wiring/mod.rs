//! The wiring: Kairos as a library. A program names its schedules and whatever else it wants of
//! budget, heartbeat, attach server, write-ahead log, cycle runner, usage accumulator and clock,
//! and gets a wired daemon that it drives by hand ([`Wired::tick`], [`Wired::run_one_cycle`]) or
//! lets run ([`Wired::run`]). Everything optional has the seed's default. Runs on any tokio
//! runtime with time enabled, a current-thread one too: what answers a runner never needs it.
//!
//! Unlike the binary it runs without a runner (each cycle is then `ok` and uses nothing) and keeps
//! its store in memory unless it is given a file.

mod runner;
mod wired;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use runner::{CycleRunner, RUNNER, RunnerFailure, UsageAccumulator};
pub use wired::{EmbeddedMandate, Wired};

use kairos_plugin_api::{Context, Mandate};
use serde_json::Value;

use crate::broker::{Broker, llm::Providers, policy::Policy, tools::Tools};
use crate::daemon::attach_server::{self, AttachServer};
use crate::daemon::chronos::{Chronos, Loaded, Rejected, ScheduleSet, Seams};
use crate::daemon::dispatch::{self, Dispatch};
use crate::daemon::engine::{self, Engine};
use crate::daemon::heartbeat::{self, Heartbeat};
use crate::daemon::mailbox::{self, Phase};
use crate::daemon::wallet::Wallet;
use crate::runner::{Launcher, PluginStore, Runners, SearchPath};
use crate::store::{self, CommitSink, Limits, OpenOptions, RecoverRequest, SqliteStore, Store};
use crate::sys::clock::{Clock, SystemClock};
use crate::sys::entropy::{Entropy, SystemEntropy};
use crate::sys::zones::{ZoneError, Zones};
use crate::wal::{self, Wal};

/// Time that running cycles get when the wiring is taken down; the reference's figure.
pub const GRACEFUL_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a wiring could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The store cannot be opened or recovered.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The write-ahead log's directory cannot be used.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// The budget's zone does not exist.
    #[error("budget: {0}")]
    Zone(#[from] ZoneError),
    /// Schedules that cannot be taken in.
    #[error("{}", rejected(.0))]
    Schedules(Vec<Rejected>),
    /// A task of the wiring itself panicked.
    #[error("the wiring failed: {0}")]
    Host(String),
}

/// A day's budget.
#[derive(Clone, Debug)]
pub struct Budget {
    /// The limits.
    pub limits: Limits,
    /// IANA zone whose midnight turns the day.
    pub timezone: String,
}

impl Budget {
    /// So many LLM calls a day, the day being UTC: the seed's budget.
    #[must_use]
    pub fn daily_calls(limit: u64) -> Self {
        let limits = Limits { calls: Some(limit), ..Limits::default() };
        Self { limits, timezone: "UTC".to_owned() }
    }
}

/// What is to be wired. Only the schedules are required.
pub struct Wiring {
    schedules: ScheduleSet,
    store: Option<PathBuf>,
    budget: Option<Budget>,
    heartbeat: Option<PathBuf>,
    heartbeat_interval: Duration,
    attach_server: Option<Arc<dyn AttachServer>>,
    wal_dir: Option<PathBuf>,
    on_log_error: dispatch::OnLogError,
    cycle_runner: Option<Arc<CycleRunner>>,
    usage_accumulator: UsageAccumulator,
    clock: Option<Arc<dyn Clock>>,
    graceful_timeout: Duration,
}

impl Wiring {
    /// A wiring of these schedules and nothing else: no budget, no heartbeat, no log, no runner.
    #[must_use]
    pub fn new(schedules: ScheduleSet) -> Self {
        Self {
            schedules,
            store: None,
            budget: None,
            heartbeat: None,
            heartbeat_interval: heartbeat::DEFAULT_INTERVAL,
            attach_server: None,
            wal_dir: None,
            on_log_error: dispatch::OnLogError::default(),
            cycle_runner: None,
            usage_accumulator: UsageAccumulator::default(),
            clock: None,
            graceful_timeout: GRACEFUL_TIMEOUT,
        }
    }

    /// Keeps everything in this file instead of in memory, so that it survives the process.
    #[must_use]
    pub fn store(mut self, file: impl Into<PathBuf>) -> Self {
        self.store = Some(file.into());
        self
    }

    /// Holds work back when the day's limits are reached.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Beats into this file; its directory must exist.
    #[must_use]
    pub fn heartbeat(mut self, file: impl Into<PathBuf>) -> Self {
        self.heartbeat = Some(file.into());
        self
    }

    /// Time between two beats; 10 s unless set.
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = interval;
        self
    }

    /// Is started with the wiring, unless it is already, and stopped with it.
    #[must_use]
    pub fn attach_server(mut self, server: Arc<dyn AttachServer>) -> Self {
        self.attach_server = Some(server);
        self
    }

    /// Writes a log file for each mandate into this directory. A cycle whose log cannot be
    /// written does not start.
    #[must_use]
    pub fn wal_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.wal_dir = Some(dir.into());
        self
    }

    /// Cycles whose log cannot be written run without it, as in the seed.
    #[must_use]
    pub fn run_without_log_on_error(mut self) -> Self {
        self.on_log_error = dispatch::OnLogError::Continue;
        self
    }

    /// Runs the cycles. See the rules for what it returns in [`RunnerFailure`]'s module.
    #[must_use]
    pub fn cycle_runner<F>(self, run: F) -> Self
    where
        F: Fn(&Mandate) -> Result<Value, RunnerFailure> + Send + Sync + 'static,
    {
        self.cycle_runner_with_context(move |mandate, _| run(mandate))
    }

    /// As [`Wiring::cycle_runner`], for one that calls the host: phases, usage, state, the time.
    #[must_use]
    pub fn cycle_runner_with_context<F>(mut self, run: F) -> Self
    where
        F: Fn(&Mandate, &Context) -> Result<Value, RunnerFailure> + Send + Sync + 'static,
    {
        self.cycle_runner = Some(Arc::new(run));
        self
    }

    /// Is read when a cycle has no result, so that what it used until then is booked.
    #[must_use]
    pub fn usage_accumulator(mut self, accumulator: UsageAccumulator) -> Self {
        self.usage_accumulator = accumulator;
        self
    }

    /// Time; the system's unless set.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Time that running cycles get when the wiring is taken down.
    #[must_use]
    pub fn graceful_timeout(mut self, timeout: Duration) -> Self {
        self.graceful_timeout = timeout;
        self
    }

    /// Wires it: opens and recovers the store, takes the schedules in, starts the attach server.
    /// An attach server that does not start is logged and left out.
    ///
    /// # Errors
    /// See [`WireError`]; nothing is left running then.
    pub async fn wire(self) -> Result<Wired, WireError> {
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock::default()));
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let zones = Arc::new(Zones::default());
        let wallet = Arc::new(match self.budget {
            None => Wallet::disabled(),
            Some(budget) => Wallet::new(budget.limits, zones.get(&budget.timezone)?),
        });
        let log = self.wal_dir.map(|dir| {
            Wal::new(wal::Settings { dir, retention: wal::Retention::default() }, Arc::clone(&clock))
        });
        let (store, recovered) = open(self.store, log.clone(), &*clock).await?;
        let seams = Seams {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            zones,
        };
        let chronos = Arc::new(Chronos::new(seams));
        take_in(&chronos, self.schedules).await?;

        let runners = Arc::new(no_plugins());
        runners.insert(RUNNER, Arc::new(runner::builtin(self.cycle_runner, self.usage_accumulator)));
        let broker = broker(&store, &clock, &entropy, &wallet);
        let parts = dispatch::Parts {
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            runners,
            services: Arc::new(broker),
            log: log.clone().map(|log| log as _),
            wallet: Arc::clone(&wallet),
        };
        let settings =
            dispatch::Settings { on_log_error: self.on_log_error, ..dispatch::Settings::default() };
        let dispatch = Dispatch::new(parts, settings);
        dispatch.begin(recovered.running);

        let (mailbox, mut inbox) = mailbox::mailbox();
        let heartbeat = self.heartbeat.map(|file| Arc::new(Heartbeat::new(file, Arc::clone(&clock))));
        let engine = Engine::new(engine::Parts {
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            chronos,
            dispatch,
            heartbeat,
            phase: mailbox.watch_phase(),
        });
        engine.set_timings(engine::DEFAULT_TICK, self.heartbeat_interval);
        inbox.enter(Phase::Running);
        if let Some(server) = &self.attach_server {
            start_server(&**server);
        }
        Ok(Wired::new(wired::Made {
            engine,
            store,
            wallet,
            clock,
            attach_server: self.attach_server,
            log,
            mailbox,
            inbox,
            graceful_timeout: self.graceful_timeout,
        }))
    }
}

async fn open(
    file: Option<PathBuf>,
    log: Option<Arc<Wal>>,
    clock: &dyn Clock,
) -> Result<(Arc<dyn Store>, store::Recovered), WireError> {
    let now = clock.now();
    let sink = log.clone().map(|log| log as Arc<dyn CommitSink>);
    let opened = tokio::task::spawn_blocking(move || match file {
        Some(path) => SqliteStore::open(OpenOptions { path, sink }),
        None => SqliteStore::in_memory_with(sink),
    });
    let store = opened.await.map_err(|panic| WireError::Host(panic.to_string()))??;
    let recovered = store.recover(RecoverRequest { now }).await?;
    if let Some(log) = log {
        let source = Arc::new(store.clone());
        let attached = tokio::task::spawn_blocking(move || log.attach(source));
        let report = attached.await.map_err(|panic| WireError::Host(panic.to_string()))??;
        tracing::debug!(?report, "wal_attached");
    }
    Ok((Arc::new(store), recovered))
}

async fn take_in(chronos: &Chronos, mut set: ScheduleSet) -> Result<(), WireError> {
    set.default_runner.get_or_insert_with(|| RUNNER.to_owned());
    let Loaded { rejected, .. } = chronos.load(set).await?;
    if rejected.is_empty() { Ok(()) } else { Err(WireError::Schedules(rejected)) }
}

/// A registry that knows no plugin and looks for none.
fn no_plugins() -> Runners {
    let nowhere = PathBuf::from("/nonexistent/kairos");
    Runners::new(Launcher::in_process(
        SearchPath::new(&nowhere, None, None),
        PluginStore::new(nowhere.join("plugins")),
    ))
}

/// A broker without language models and tools: a cycle runner of this program makes its own calls.
fn broker(
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    wallet: &Arc<Wallet>,
) -> Arc<Broker> {
    let (wallet, time) = (Arc::clone(wallet), Arc::clone(clock));
    Arc::new(Broker {
        store: Arc::clone(store),
        clock: Arc::clone(clock),
        entropy: Arc::clone(entropy),
        gate: Arc::new(move || wallet.day_and_limits(time.now())),
        providers: Providers::default(),
        tools: Tools::default(),
        policy: Policy::default(),
    })
}

fn start_server(server: &dyn AttachServer) {
    if attach_server::is_started(server) {
        return;
    }
    if let Err(error) = server.start() {
        tracing::error!(error = %error, "attach_server_start_failed");
    }
}

fn rejected(list: &[Rejected]) -> String {
    let each: Vec<String> =
        list.iter().map(|rejected| format!("schedule {:?}: {}", rejected.name, rejected.cause)).collect();
    each.join("; ")
}
