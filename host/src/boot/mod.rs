//! Boot: from checked settings to a running daemon, in one order. Lock, store, recovery, logs healed,
//! runners, schedules, control plane, ready. Boot is recovery; there is no other entry. It may
//! be killed anywhere, any number of times.

mod background;
mod brokers;
mod commands;
pub mod fitness;
mod last_end;
mod office;
mod once;
pub mod plugins;
mod providers;
pub mod rehearsal;
mod reload;
pub mod settings;
mod slots;
mod swaps;
mod takeover;
pub mod watched;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use tokio::sync::watch;

use crate::attach::{self, ControlPlane, SocketServer};
use crate::boot::settings::Settings;
use crate::broker::Broker;
use crate::broker::policy::Policy;
use crate::broker::tools::process::Live;
use crate::broker::tools::{Tools, Workspace};
use crate::config::{DaemonConfig, Env, Paths, WalOnError};
use crate::daemon::chronos::{Chronos, ScheduleSet, Seams};
use crate::daemon::dispatch::{self, Dispatch, OnLogError};
use crate::daemon::engine;
use crate::daemon::heartbeat::Heartbeat;
use crate::daemon::lifecycle::{End, Lifecycle};
use crate::daemon::mailbox;
use crate::daemon::service_manager::ServiceManager;
use crate::daemon::signals::Signals;
use crate::daemon::swap;
use crate::daemon::vitals::Vitals;
use crate::daemon::wallet::Wallet;
use crate::daemon::work::Hands;
use crate::exit::{Failure, code};
use crate::runner::{Isolation, RunnerConfig};
use crate::store::{
    CommitSink, Limits, OpenOptions, RecoverRequest, Recovered, SqliteStore, Store, maintenance,
};
use crate::sys::clock::Clock;
use crate::sys::entropy::{Entropy, SystemEntropy};
use crate::sys::files;
use crate::sys::lock::{FileSystemKind, RootLock, file_system};
use crate::wal::{self, Wal};

use brokers::Brokers;
use fitness::Fitness;
pub use last_end::LastEnd;
pub use office::Office;
pub use once::{Left, Once};
pub use takeover::beside;

/// Shortest patience with the store after a stop, until what it was handed is in it. What is not is done again by the
/// next start, as after a crash.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Longest wait for the heartbeat to say that the daemon has stopped.
const LAST_BEAT: Duration = Duration::from_secs(1);

/// Everything of a daemon, put together and not yet running.
pub struct Daemon {
    lifecycle: Lifecycle,
    office: Arc<Office>,
    store: SqliteStore,
    log: Arc<Wal>,
    plane: ControlPlane,
    recovered: Option<Recovered>,
    heartbeat: Arc<Heartbeat>,
    interval: watch::Receiver<Duration>,
    /// Held until the very end.
    lock: RootLock,
}

/// How a daemon, or a command that acts as one, is put together.
pub struct Options {
    /// The root's lock, taken.
    pub lock: RootLock,
    /// The environment.
    pub env: Env,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// False for a command: nothing is recovered and nothing runs.
    pub daemon: bool,
}

impl Daemon {
    /// Puts it together. Nothing is claimed yet.
    ///
    /// # Errors
    /// The store is damaged or cannot be written, or a runner's replies cannot be read.
    pub async fn assemble(settings: Settings, options: Options) -> anyhow::Result<Self> {
        let Options { lock, env, clock, daemon } = options;
        let started = clock.now();
        prepare_dirs(&settings.paths)?;
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let log = log(&settings, &clock);
        let (store, mut recovered) = open(&settings, &log, started, daemon).await?;
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let wallet = Arc::new(wallet(&settings)?);
        let brokers = brokers(&settings, &env, &shared, &clock, &entropy, &wallet)?;
        let (runners, open) = swaps::load(&settings, &env, &store, started, daemon).await?;
        let parts = dispatch::Parts {
            clock: Arc::clone(&clock),
            store: Arc::clone(&shared),
            runners: Arc::clone(&runners),
            services: Arc::clone(&brokers) as _,
            log: Some(Arc::clone(&log) as _),
            wallet: Arc::clone(&wallet),
        };
        let Works { chronos, dispatch, swaps, mailbox, inbox, vitals, ticks } =
            Works::new(&settings, parts, &store, &entropy);
        swaps.resume(open, recovered.as_mut()).await;
        let (heartbeat_interval, interval) = watch::channel(settings.config.heartbeat_interval);
        let heartbeat = Arc::new(Heartbeat::new(&settings.paths.heartbeat_json, Arc::clone(&clock)));
        let office = Arc::new(Office::new(office::Parts {
            settings,
            env,
            started,
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            store: store.clone(),
            log: Arc::clone(&log),
            chronos: Arc::clone(&chronos),
            dispatch: dispatch.clone(),
            vitals,
            heartbeat_interval,
            runners,
            swaps: swaps.clone(),
            wallet,
            brokers,
            mailbox: mailbox.clone(),
            daemon,
        }));
        office.take_schedules_in().await?;
        let plane = ControlPlane {
            store: Arc::clone(&shared),
            mailbox,
            source: Arc::clone(&office) as _,
            clock: Arc::clone(&clock),
            entropy,
        };
        let lifecycle = Lifecycle {
            chronos,
            dispatch,
            swaps,
            store: shared,
            clock,
            inbox,
            office: Arc::clone(&office) as _,
            ticks,
            manager: ServiceManager::connect(),
        };
        Ok(Self { lifecycle, office, store, log, plane, recovered, heartbeat, interval, lock })
    }

    /// The control plane of a command that runs without a daemon: commands are carried out by a task
    /// of this runtime, until the router is dropped.
    #[must_use = "the guard closes the store"]
    pub fn serve_locally(self) -> (axum::Router, LocalGuard) {
        let Self { lifecycle, store, log, plane, lock, .. } = self;
        let Lifecycle { chronos, dispatch, store: shared, clock, mut inbox, .. } = lifecycle;
        inbox.enter(mailbox::Phase::Running);
        let task = tokio::spawn(async move {
            while let Some(command) = inbox.next().await {
                match command {
                    mailbox::Command::Work(work) => {
                        let hands = Hands {
                            store: &*shared,
                            chronos: &chronos,
                            dispatch: Some(&dispatch),
                            clock: &*clock,
                        };
                        hands.carry_out(work).await;
                    }
                    other => other.refuse(mailbox::CommandError::Stopped),
                }
            }
        });
        (attach::router(plane), LocalGuard { task, store, log, lock })
    }

    /// Runs it until somebody asks for the end.
    ///
    /// # Errors
    /// The socket cannot be served, or the store cannot be closed.
    pub async fn run(self, signals: &mut Signals) -> anyhow::Result<End> {
        let Self { lifecycle, office, store, log, plane, recovered, heartbeat, interval, lock } = self;
        let phase = plane.mailbox.watch_phase();
        let server = serve(&office, plane)?;
        lifecycle.dispatch.start(recovered.map(|recovered| recovered.running).unwrap_or_default());
        let beats = tokio::spawn(heartbeat.run(office.pulse(), interval, phase));
        let background = background::start(&office);
        let end = lifecycle.run(signals).await;
        office.end_programs();
        if matches!(end, End::SecondSignal) {
            return Ok(end);
        }
        background.stop().await;
        server.stop().await;
        // The last beat says `stopped`; a disk that hangs must not keep the process.
        let _ = tokio::time::timeout(LAST_BEAT, beats).await;
        office.publish_views(true);
        let cut_off = if let End::GraceExceeded(left) = &end { left.as_slice() } else { &[] };
        LastEnd::note(&office.parts().settings.paths.last_end, cut_off);
        let patience = crate::daemon::lifecycle::Office::graceful_timeout(&*office).max(LAST_WRITES);
        let Ok(closed) = tokio::time::timeout(patience, close(store, log)).await else {
            tracing::error!("daemon_store_not_closed_in_time");
            // Its thread still writes: the root is free when the process is gone, not before.
            std::mem::forget(lock);
            return Ok(if matches!(end, End::Clean) { End::GraceExceeded(Vec::new()) } else { end });
        };
        closed?;
        drop(lock);
        Ok(end)
    }
}

impl Daemon {
    /// Does one pass, one cycle after another.
    ///
    /// # Errors
    /// The store's.
    pub async fn run_once(self, signals: &mut Signals) -> anyhow::Result<Once> {
        let Self { mut lifecycle, office, store, log, recovered, lock, .. } = self;
        let done = once::run(&mut lifecycle, recovered, signals).await?;
        office.publish_views(true);
        close(store, log).await?;
        drop(lock);
        Ok(done)
    }
}

/// What a local control plane stands on. To be closed when the command is done.
pub struct LocalGuard {
    task: tokio::task::JoinHandle<()>,
    store: SqliteStore,
    log: Arc<Wal>,
    lock: RootLock,
}

impl LocalGuard {
    /// Closes the store and lets go of the root.
    ///
    /// # Errors
    /// The store's.
    pub async fn close(self) -> anyhow::Result<()> {
        self.task.abort();
        close(self.store, self.log).await?;
        drop(self.lock);
        Ok(())
    }
}

async fn close(store: SqliteStore, log: Arc<Wal>) -> anyhow::Result<()> {
    let closed = store.close().await;
    tokio::task::spawn_blocking(move || log.close()).await?;
    match closed {
        // A writer that has retired said why when it did.
        Ok(()) | Err(crate::store::Error::Closed) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What turns time into cycles, and what is told to it.
struct Works {
    chronos: Arc<Chronos>,
    dispatch: Dispatch,
    swaps: swap::Swaps,
    mailbox: mailbox::Mailbox,
    inbox: mailbox::Inbox,
    vitals: Arc<Vitals>,
    ticks: Arc<AtomicU64>,
}

impl Works {
    fn new(
        settings: &Settings,
        parts: dispatch::Parts,
        store: &SqliteStore,
        entropy: &Arc<dyn Entropy>,
    ) -> Self {
        let (clock, shared) = (Arc::clone(&parts.clock), Arc::clone(&parts.store));
        let runners = Arc::clone(&parts.runners);
        let chronos = Arc::new(Chronos::new(Seams {
            store: Arc::clone(&shared),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(entropy),
            zones: Arc::clone(&settings.zones),
        }));
        let dispatch = Dispatch::new(parts, dispatch_settings(&settings.config));
        let swap_parts = swap::Parts {
            clock: Arc::clone(&clock),
            entropy: Arc::clone(entropy),
            generations: Arc::new(store.clone()),
            store: Arc::clone(&shared),
            runners,
            dispatch: dispatch.clone(),
        };
        let swaps = swaps::swaps(&settings.config, swap_parts);
        engine::connect(&dispatch, &chronos);
        let (mailbox, inbox) = mailbox::mailbox();
        let ticks = Arc::new(AtomicU64::new(0));
        let (phase, told) = (mailbox.watch_phase(), Arc::clone(&ticks));
        let vitals = Arc::new(Vitals::new(clock, shared, dispatch.clone(), phase, told));
        Self { chronos, dispatch, swaps, mailbox, inbox, vitals, ticks }
    }
}

/// The write-ahead logs, kept as long as configured.
fn log(settings: &Settings, clock: &Arc<dyn Clock>) -> Arc<Wal> {
    let retention = wal::Retention {
        max_age: Duration::from_secs(u64::from(settings.config.wal.retention_days) * 86_400),
        ..wal::Retention::default()
    };
    Wal::new(wal::Settings { dir: settings.wal_dir(), retention }, Arc::clone(clock))
}

/// The services of cycles.
fn brokers(
    settings: &Settings,
    env: &Env,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    wallet: &Arc<Wallet>,
) -> anyhow::Result<Arc<Brokers>> {
    let live = Arc::new(Live::default());
    let broker = broker(settings, env, store, clock, entropy, wallet, &live)?;
    let fitness = Fitness::of(&settings.config, &settings.paths, env);
    Ok(Arc::new(Brokers::new(broker, fitness, live)))
}

fn prepare_dirs(paths: &Paths) -> anyhow::Result<()> {
    for dir in [&paths.state, &paths.run, &paths.wal, &paths.logs] {
        files::create_dirs(dir)?;
    }
    commands::sweep(paths);
    let system = file_system(&paths.state)?;
    if system.kind == FileSystemKind::Network {
        return Err(Failure::new(
            code::FAILED,
            "network_file_system",
            format!(
                "{} lies on {}, where locks and syncs cannot be trusted",
                paths.show(&paths.state),
                system.name
            ),
        )
        .remedy("put the root on a local disk")
        .into());
    }
    Ok(())
}

async fn open(
    settings: &Settings,
    log: &Arc<Wal>,
    now: DateTime<Utc>,
    daemon: bool,
) -> anyhow::Result<(SqliteStore, Option<Recovered>)> {
    let path = settings.paths.store_db.clone();
    maintenance::check_first_start(&path, &settings.wal_dir())?;
    let sink = Arc::clone(log) as Arc<dyn CommitSink>;
    let store =
        tokio::task::spawn_blocking(move || SqliteStore::open(OpenOptions { path, sink: Some(sink) }))
            .await??;
    takeover::take_over(settings, &store, now).await?;
    let mut recovered = if daemon { Some(store.recover(RecoverRequest { now }).await?) } else { None };
    if let Some(recovered) = &recovered {
        report(recovered);
    }
    let (source, log) = (Arc::new(store.clone()), Arc::clone(log));
    let healed = tokio::task::spawn_blocking(move || log.attach(source)).await?;
    match healed {
        Ok(report) => {
            tracing::debug!(?report, "wal_healed");
            // Their logs tell another story than the store: a person looks before anything goes on.
            if let Some(recovered) = &mut recovered {
                let reviewed: Vec<&str> = report.reviewed().collect();
                recovered.running.retain(|cycle| !reviewed.contains(&cycle.mandate.id.as_str()));
            }
        }
        // Cycles ask for their log before they start, so none runs without; looking still works, and
        // the log is tried again until it can be written.
        Err(error) => tracing::error!(%error, "wal_unavailable"),
    }
    Ok((store, recovered))
}

fn report(recovered: &Recovered) {
    if recovered.unclean || !recovered.running.is_empty() {
        tracing::info!(
            unclean = recovered.unclean,
            continued = recovered.running.len(),
            unknown_calls = recovered.unknown_calls,
            "wal_recovery_complete"
        );
    }
    for mandate in &recovered.crash_loops {
        tracing::error!(%mandate, "mandate_crash_loop");
    }
}

fn wallet(settings: &Settings) -> anyhow::Result<Wallet> {
    let zone = settings.zones.get(&settings.config.budget.timezone)?;
    Ok(Wallet::new(limits(&settings.config), zone))
}

fn limits(config: &DaemonConfig) -> Limits {
    Limits {
        calls: config.budget.daily_calls,
        tokens: config.budget.daily_tokens,
        nano_usd: config.budget.daily_usd_nano,
    }
}

fn dispatch_settings(config: &DaemonConfig) -> dispatch::Settings {
    dispatch::Settings {
        slots: config.max_concurrent_cycles as usize,
        on_log_error: match config.wal.on_error {
            WalOnError::Refuse => OnLogError::Refuse,
            WalOnError::Continue => OnLogError::Continue,
        },
        ..dispatch::Settings::default()
    }
}

fn broker(
    settings: &Settings,
    env: &Env,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    wallet: &Arc<Wallet>,
    live: &Arc<Live>,
) -> anyhow::Result<Arc<Broker>> {
    let (wallet, time) = (Arc::clone(wallet), Arc::clone(clock));
    let mut tools = Tools::builtin(&Workspace::open(&settings.paths.root)?);
    tools.add(Arc::new(commands::build(settings, env, clock, live)));
    let root = settings.paths.root.canonicalize()?;
    let kept = settings.config.kept().into_iter().filter_map(|path| {
        let full = root.join(path);
        full.canonicalize().unwrap_or(full).strip_prefix(&root).map(std::path::Path::to_owned).ok()
    });
    Ok(Arc::new(Broker {
        store: Arc::clone(store),
        clock: Arc::clone(clock),
        entropy: Arc::clone(entropy),
        gate: Arc::new(move || wallet.day_and_limits(time.now())),
        providers: providers::build(settings)?,
        tools,
        policy: Policy::keeping(kept),
    }))
}

fn runner_configs(config: &DaemonConfig, env: &Env) -> Vec<RunnerConfig> {
    let isolation = |asked: crate::config::Isolation| match asked {
        crate::config::Isolation::InProcess => Isolation::InProcess,
        crate::config::Isolation::Process => Isolation::Process,
        crate::config::Isolation::Sandbox => Isolation::Sandbox,
    };
    let changeable = commands::changeable(config, env);
    config
        .runners
        .iter()
        .map(|(name, runner)| RunnerConfig {
            isolation: runner.isolation.map(isolation),
            deadline: Some(runner.deadline),
            stop_grace: Some(runner.stop_grace),
            memory: runner.memory,
            params: runner.params.clone().into(),
            grants: commands::at_home(&runner.grants, env),
            kept: config.kept(),
            changeable: changeable.clone(),
            require: config.sandbox_require,
            ..RunnerConfig::new(name, &runner.plugin)
        })
        .collect()
}

fn schedule_set(config: &DaemonConfig, file: crate::config::SchedulesFile) -> ScheduleSet {
    ScheduleSet {
        specs: file.schedules,
        kept: file.quarantined.iter().map(|bad| bad.name.clone()).collect(),
        default_runner: Some(config.default_runner.clone()),
        max_catch_up_per_minute: Some(config.max_catch_up_per_minute),
    }
}

fn serve(office: &Office, plane: ControlPlane) -> anyhow::Result<SocketServer> {
    let socket = office.socket();
    Paths::prepare_socket_dir(&socket)?;
    let listener = attach::bind(&socket)?;
    let endpoint = json!({"socket": socket.display().to_string(), "pid": std::process::id()});
    files::replace(&office.endpoint_file(), endpoint.to_string().as_bytes(), files::SHARED)?;
    Ok(SocketServer::start(socket, listener, attach::router(plane)))
}
