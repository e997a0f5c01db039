//! The daemon's durable path without its process: a store on disk, chronos, dispatch, the broker
//! and the stub loaded as a plugin, put together as boot does it, with a clock turned by hand and
//! the store's figures in reach. It counts; it must never decide anything itself.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use kairos_host::broker::Broker;
use kairos_host::broker::llm::{Price, ProviderKind, ProviderSpec, Providers, ScriptSource};
use kairos_host::broker::policy::Policy;
use kairos_host::broker::tools::{Tools, Workspace};
use kairos_host::daemon::chronos::{Chronos, ScheduleSet, Seams};
use kairos_host::daemon::dispatch::{self, Dispatch};
use kairos_host::daemon::{engine, wallet::Wallet};
use kairos_host::domain::schedule::{MandateBounds, SchedulePolicy, ScheduleSpec};
use kairos_host::runner::{Isolation, Launcher, PluginStore, RunnerConfig, Runners, SearchPath};
use kairos_host::store::{Limits, OpenOptions, RecoverRequest, SqliteStore, Store, StoreStats};
use kairos_host::sys::clock::{Clock, ManualClock};
use kairos_host::sys::entropy::{Entropy, SystemEntropy};
use kairos_host::sys::zones::Zones;
use kairos_host::wal::{self, Wal};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{PATIENCE, plugin};

/// So many calls that no benchmark reaches them; the ledger is consulted all the same.
const PLENTY: u64 = 1 << 40;

/// What the mandates of a rig do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Cycles that may run at once, and schedules that fire each minute.
    pub concurrency: usize,
    /// Cycles of each mandate.
    pub cycles: u32,
    /// The stub's script, without `more`.
    pub params: Value,
}

impl Plan {
    /// So many schedules and slots, so many cycles a mandate, without effects.
    #[must_use]
    pub fn new(concurrency: usize, cycles: u32) -> Self {
        Self { concurrency, cycles, params: json!({}) }
    }

    /// The same with what each cycle does.
    #[must_use]
    pub fn with(self, params: Value) -> Self {
        Self { params, ..self }
    }
}

/// See the module.
pub struct Rig {
    /// The commit point, on disk.
    pub store: SqliteStore,
    plan: Plan,
    clock: ManualClock,
    chronos: Arc<Chronos>,
    dispatch: Dispatch,
    log: Arc<Wal>,
    /// Removed at the end.
    dir: TempDir,
}

impl Rig {
    /// Puts it together; its schedules fire when [`Rig::minute`] turns the clock.
    ///
    /// # Errors
    /// Whatever goes wrong on the way.
    pub async fn new(plan: Plan) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("note.txt"), "what the stub's tool reads\n")?;
        let start: DateTime<Utc> = "2026-11-22T09:00:30Z".parse()?;
        let clock = ManualClock::at(start);
        let time: Arc<dyn Clock> = Arc::new(clock.clone());
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let settings =
            wal::Settings { dir: dir.path().join(".kairos/wal"), retention: wal::Retention::default() };
        fs::create_dir_all(&settings.dir)?;
        let log = Wal::new(settings, Arc::clone(&time));
        let options = OpenOptions {
            path: dir.path().join(".kairos/state/store.db"),
            sink: Some(Arc::clone(&log) as _),
        };
        let store = SqliteStore::open(options)?;
        store.recover(RecoverRequest { now: start }).await?;
        log.attach(Arc::new(store.clone()))?;
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let zones = Arc::new(Zones::default());
        let limits = Limits { calls: Some(PLENTY), ..Limits::default() };
        let wallet = Arc::new(Wallet::new(limits, zones.get("UTC")?));
        let seams = Seams {
            store: Arc::clone(&shared),
            clock: Arc::clone(&time),
            entropy: Arc::clone(&entropy),
            zones,
        };
        let chronos = Arc::new(Chronos::new(seams));
        let parts = dispatch::Parts {
            clock: Arc::clone(&time),
            store: Arc::clone(&shared),
            runners: Arc::new(runners(dir.path())?),
            services: Arc::new(broker(dir.path(), &shared, &time, &entropy, &wallet)?),
            log: Some(Arc::clone(&log) as _),
            wallet,
        };
        let slots = dispatch::Settings { slots: plan.concurrency, ..dispatch::Settings::default() };
        let dispatch = Dispatch::new(parts, slots);
        engine::connect(&dispatch, &chronos);
        let loaded = chronos.load(schedules(&plan)).await?;
        ensure!(loaded.rejected.is_empty(), "the schedules are sound: {:?}", loaded.rejected.len());
        dispatch.begin(Vec::new());
        Ok(Self { store, plan, clock, chronos, dispatch, log, dir })
    }

    /// Where it lives.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Turns the clock to the next minute, in which every schedule fires, and waits until all that
    /// fired has ended: how many cycles that was and what the store did for them.
    ///
    /// # Errors
    /// The store's, or a mandate that did not end in time.
    pub async fn minute(&self) -> Result<(u64, StoreStats)> {
        let before = self.store.stats();
        let mut changes = self.dispatch.changes();
        self.clock.advance(Duration::from_secs(60));
        let fired = self.chronos.tick(self.clock.now(), &self.dispatch).await?;
        ensure!(fired.fired.len() == self.plan.concurrency, "{} fired", fired.fired.len());
        let all_ended = async {
            loop {
                // An end is recorded before it is told.
                if self.dispatch.active_mandate_ids().is_empty() {
                    let counts = self.store.counts()?;
                    if counts.queued == 0 && counts.running.is_empty() {
                        ensure!(counts.paused + counts.review == 0, "a mandate did not end: {counts:?}");
                        return Ok(());
                    }
                }
                changes.changed().await.context("the dispatch is gone")?;
            }
        };
        tokio::time::timeout(PATIENCE, all_ended).await.unwrap_or_else(|_| {
            bail!("the cycles did not end in time: {:?}, {:?}", self.store.counts(), self.dispatch.reasons())
        })?;
        let after = self.store.stats();
        let done = StoreStats {
            commits: after.commits - before.commits,
            requests: after.requests - before.requests,
        };
        Ok((self.plan.concurrency as u64 * u64::from(self.plan.cycles), done))
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// The store's.
    pub async fn close(self) -> Result<()> {
        self.dispatch.drain(PATIENCE).await;
        let log = Arc::clone(&self.log);
        tokio::task::spawn_blocking(move || log.close()).await?;
        Ok(self.store.close().await?)
    }
}

fn schedules(plan: &Plan) -> ScheduleSet {
    let mut params = plan.params.as_object().cloned().unwrap_or_default();
    params.insert("more".to_owned(), Value::Bool(plan.cycles > 1));
    // The stub always asks for more; the mandate's bound ends it.
    let bounds = MandateBounds { max_cycles: plan.cycles, params, ..MandateBounds::default() };
    let policy =
        Arc::new(SchedulePolicy { runner: Some("stub".into()), bounds, ..SchedulePolicy::default() });
    let spec = |number| ScheduleSpec {
        name: format!("every-minute-{number}").into(),
        cron: "* * * * *".into(),
        timezone: "UTC".into(),
        goal: "show what a cycle costs".into(),
        policy: Arc::clone(&policy),
    };
    ScheduleSet { specs: (0..plan.concurrency).map(spec).collect(), ..ScheduleSet::default() }
}

fn runners(root: &Path) -> Result<Runners> {
    let search = SearchPath::new(root, None, None);
    let file = plugin("stub").display().to_string();
    let stub = RunnerConfig { isolation: Some(Isolation::InProcess), ..RunnerConfig::new("stub", file) };
    let runners = Runners::load(
        vec![stub],
        Launcher::in_process(search, PluginStore::new(root.join(".kairos/plugins/store"))),
    );
    runners.current("stub")?;
    Ok(runners)
}

fn broker(
    root: &Path,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    wallet: &Arc<Wallet>,
) -> Result<Arc<Broker>> {
    let script = json!({"cycle": true, "replies": [{"text": "so be it"}]});
    let canned = ProviderSpec {
        name: "canned".to_owned(),
        kind: ProviderKind::Scripted(ScriptSource { file: None, value: script, lines: Vec::new() }),
        model: None,
        max_tokens: None,
        price: Some(Price::default()),
    };
    let providers = Providers::build(Some("canned".to_owned()), &[canned])
        .map_err(|errors| anyhow::anyhow!("the script is sound: {errors:?}"))?;
    let (wallet, time) = (Arc::clone(wallet), Arc::clone(clock));
    Ok(Arc::new(Broker {
        store: Arc::clone(store),
        clock: Arc::clone(clock),
        entropy: Arc::clone(entropy),
        gate: Arc::new(move || wallet.day_and_limits(time.now())),
        providers,
        tools: Tools::builtin(&Workspace::open(root)?),
        policy: Policy::default(),
    }))
}
