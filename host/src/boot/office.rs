//! Who configured the daemon: reads the configuration again, tells the status, and answers what
//! the control plane asks.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::brokers::Brokers;
use super::fitness::{self, Fitness};
use super::reload::Trusted;
use super::{broker, dispatch_settings, limits, reload, runner_configs, schedule_set, slots, swaps};
use crate::attach::{BudgetView, Source};
use crate::boot::settings::Settings;
use crate::config::{DaemonConfig, Diff, Env, Level, Quarantined};
use crate::daemon::chronos::{Chronos, Loaded};
use crate::daemon::dispatch::Dispatch;
use crate::daemon::heartbeat::Pulse;
use crate::daemon::lifecycle;
use crate::daemon::mailbox::{Mailbox, Part, Phase, Reloaded, RunnerNews};
use crate::daemon::swap::{self, Swaps};
use crate::daemon::vitals::Vitals;
use crate::daemon::wallet::Wallet;
use crate::domain::budget;
use crate::runner::{NotTaken, Runners};
use crate::store::{DayTotals, GenerationRow, GenerationStore, SqliteStore, Store, views};
use crate::sys::clock::Clock;
use crate::sys::entropy::Entropy;
use crate::wal::Wal;

/// Schedules beyond which `chronos_state.yml` is not published.
const PUBLISHED_SCHEDULES_MAX: usize = 10_000;

/// What it looks after.
pub struct Parts {
    /// As read last.
    pub settings: Settings,
    /// The environment.
    pub env: Env,
    /// When the daemon was put together.
    pub started: DateTime<Utc>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// The commit point.
    pub store: SqliteStore,
    /// Log files.
    pub log: Arc<Wal>,
    /// Schedules.
    pub chronos: Arc<Chronos>,
    /// Cycles.
    pub dispatch: Dispatch,
    /// How the daemon is.
    pub vitals: Arc<Vitals>,
    /// For a reload.
    pub heartbeat_interval: watch::Sender<Duration>,
    /// Runners.
    pub runners: Arc<Runners>,
    /// What replaces them.
    pub swaps: Swaps,
    /// Limits.
    pub wallet: Arc<Wallet>,
    /// Language models and tools.
    pub brokers: Arc<Brokers>,
    /// For its length and phase.
    pub mailbox: Mailbox,
    /// False for a command without a daemon.
    pub daemon: bool,
}

/// See the module.
pub struct Office {
    parts: Parts,
    /// The configuration in force.
    config: Mutex<DaemonConfig>,
    quarantined: Mutex<Vec<Quarantined>>,
    published: Mutex<Published>,
    /// As of the start or the last reload.
    trusted: Mutex<Trusted>,
}

#[derive(Default)]
struct Published {
    budget: String,
    chronos: String,
}

impl Office {
    /// Looks after these.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let config = Mutex::new(parts.settings.config.clone());
        let trusted = Mutex::new(Trusted::read(&parts.settings.paths.trust_json));
        Self { parts, config, quarantined: Mutex::default(), published: Mutex::default(), trusted }
    }

    /// Reads schedules.yml and hands it to chronos. Bad schedules are set aside, the others run.
    ///
    /// # Errors
    /// The store's. A file that cannot be read at all is an error at boot.
    pub async fn take_schedules_in(&self) -> anyhow::Result<()> {
        let file = self.parts.settings.schedules()?;
        for problem in &file.full_report().problems {
            tracing::warn!(%problem, "chronos_schedule_problem");
        }
        self.load(file).await?;
        Ok(())
    }

    async fn load(&self, file: crate::config::SchedulesFile) -> crate::store::Result<Loaded> {
        let quarantined = file.quarantined.clone();
        let set = schedule_set(&self.config(), file);
        let loaded = self.parts.chronos.load(set).await?;
        for rejected in &loaded.rejected {
            tracing::warn!(schedule = %rejected.name, reason = %rejected.cause, "chronos_schedule_rejected");
        }
        *lock(&self.quarantined) = quarantined;
        Ok(loaded)
    }

    fn config(&self) -> DaemonConfig {
        lock(&self.config).clone()
    }

    /// Where the control plane's socket belongs.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.parts.settings.paths.socket(&self.parts.env)
    }

    /// Where it is said where that is.
    #[must_use]
    pub fn endpoint_file(&self) -> PathBuf {
        self.parts.settings.paths.endpoint_json.clone()
    }

    /// What background work needs.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Where beats come from.
    #[must_use]
    pub fn pulse(&self) -> Arc<dyn Pulse> {
        Arc::clone(&self.parts.vitals) as _
    }

    /// Days that ended mandates are kept.
    #[must_use]
    pub fn retention_days(&self) -> u32 {
        self.config().store_retention_days
    }

    /// The directory whose new plugins are swapped in, and whether it is the daemon's to make.
    #[must_use]
    pub fn watched_plugins(&self) -> Option<(PathBuf, bool)> {
        self.config().watched_plugins(&self.parts.settings.paths.root)
    }

    /// Removes kept plugins that nothing open needs and that nobody has used for a day: how many.
    ///
    /// # Errors
    /// The store's, or a file that cannot be removed.
    pub fn prune_plugins(&self) -> anyhow::Result<usize> {
        let needed: std::collections::BTreeSet<String> =
            self.parts.store.needed_generations()?.into_iter().collect();
        let serves = self.parts.runners.status().into_iter().filter_map(|status| status.identity);
        let serves: Vec<String> = serves.map(|identity| identity.generation).collect();
        let used_before = std::time::SystemTime::from(self.parts.clock.now() - chrono::TimeDelta::days(1));
        let keep = |sha256: &str| needed.contains(sha256) || serves.iter().any(|serves| serves == sha256);
        Ok(self.parts.runners.prune_kept(used_before, keep)?)
    }

    /// Writes the views of the reference's format where they have changed: the budget's, and with
    /// `schedules` theirs. Blocks for the files.
    pub fn publish_views(&self, schedules: bool) {
        let now = self.parts.clock.now();
        let paths = &self.parts.settings.paths;
        let day = self.parts.wallet.day(now);
        let totals = self.parts.store.day(&day);
        let budget =
            totals.map(|totals| views::budget_json(&day, &totals, self.parts.wallet.limits().as_ref()));
        let mut published = lock(&self.published);
        match budget {
            Ok(text) if text != published.budget => match views::publish_budget(&paths.budget_json, &text) {
                Ok(()) => published.budget = text,
                Err(error) => tracing::warn!(%error, "view_not_published"),
            },
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "view_not_read"),
        }
        let chronos = &self.parts.chronos;
        if !schedules || chronos.len() > PUBLISHED_SCHEDULES_MAX {
            return;
        }
        match self.parts.store.schedules() {
            Ok(states) => {
                let text = views::chronos_state_yml(&states, &mut |name| next_of(chronos, name, now));
                if text != published.chronos {
                    match views::publish_chronos(&paths.chronos_state, &text) {
                        Ok(()) => published.chronos = text,
                        Err(error) => tracing::warn!(%error, "view_not_published"),
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "view_not_read"),
        }
    }

    async fn reload_now(&self) -> Reloaded {
        let settings = Settings::load_with(
            self.parts.settings.paths.clone(),
            &self.parts.env,
            Arc::clone(&self.parts.settings.zones),
        );
        let mut done = Reloaded::default();
        let served = reload::served(&self.parts.runners);
        done.daemon_yml = match settings {
            Err(error) => done.refused(&error),
            Ok(settings) => {
                done.warnings.extend(settings.warnings.problems.iter().map(ToString::to_string));
                match self.apply(&settings).await {
                    Ok((diff, not_taken)) => {
                        let changed = diff.took_effect.len() + diff.needs_restart.len() > 0;
                        (done.applied, done.needs_restart) = (diff.took_effect, diff.needs_restart);
                        done.noticed = self.notice().await;
                        match (not_taken.is_empty(), changed) {
                            (false, _) => self.not_taken(&not_taken, &mut done),
                            (true, true) => Part::InEffect,
                            (true, false) => Part::Unchanged,
                        }
                    }
                    Err(error) => done.refused(&error),
                }
            }
        };
        done.runners.extend(reload::out_of_service(&self.parts.runners, &served));
        // Bad daemon.yml leaves it as it was; the schedules are a file of their own.
        done.schedules_yml = match self.parts.settings.schedules() {
            Err(error) => done.refused(&error),
            Ok(file) => self.reload_schedules(file, &mut done).await,
        };
        done
    }

    /// Tells of entries that were not put in force.
    fn not_taken(&self, not_taken: &[NotTaken], done: &mut Reloaded) -> Part {
        for entry in not_taken {
            let key = DaemonConfig::key_of(&["runners", &entry.runner]);
            done.applied.retain(|applied| *applied != key && !applied.starts_with(&format!("{key}.")));
            done.problems.push(entry.told());
            done.runners.push(RunnerNews {
                runner: entry.runner.clone(),
                serves: true,
                code: entry.error.code.to_owned(),
                message: entry.error.message.clone(),
                remedy: entry.error.remedy.clone(),
            });
        }
        Part::InPart
    }

    async fn reload_schedules(&self, file: crate::config::SchedulesFile, done: &mut Reloaded) -> Part {
        for problem in file.full_report().problems {
            let said = problem.to_string();
            let list = if problem.level == Level::Error { &mut done.problems } else { &mut done.warnings };
            list.push(said);
        }
        done.quarantined = file.quarantined.iter().map(|bad| bad.name.clone()).collect();
        let loaded = match self.load(file).await {
            Ok(loaded) => loaded,
            Err(error) => return done.refused(&error),
        };
        for rejected in &loaded.rejected {
            done.problems.push(format!("schedule {:?}: {}", rejected.name, rejected.cause));
            done.quarantined.push(rejected.name.to_string());
        }
        let changed = loaded.adopted + loaded.removed > 0;
        if changed {
            done.applied.push("schedules".to_owned());
        }
        match (done.quarantined.is_empty(), changed) {
            (false, _) => Part::InPart,
            (true, true) => Part::InEffect,
            (true, false) => Part::Unchanged,
        }
    }

    /// Ends programs that still run for cycles which the daemon gave up.
    pub fn end_programs(&self) {
        self.parts.brokers.live.end_all();
    }

    /// Puts a new configuration in force, all of it that can be.
    async fn apply(&self, settings: &Settings) -> anyhow::Result<(Diff, Vec<NotTaken>)> {
        let parts = &self.parts;
        let config = &settings.config;
        let zone = settings.zones.get(&config.budget.timezone)?;
        let store: Arc<dyn Store> = Arc::new(parts.store.clone());
        // Whatever can fail comes before anything is changed.
        let broker = broker(
            settings,
            &parts.env,
            &store,
            &parts.clock,
            &parts.entropy,
            &parts.wallet,
            &parts.brokers.live,
        )?;
        let diff = DaemonConfig::diff(&self.config(), config);
        parts.wallet.set(Some(limits(config)), zone);
        parts.brokers.set(broker, Fitness::of(config, &settings.paths, &parts.env));
        parts.heartbeat_interval.send_replace(config.heartbeat_interval);
        parts.dispatch.configure(dispatch_settings(config));
        let (runners, configs) = (Arc::clone(&parts.runners), runner_configs(config, &parts.env));
        parts.swaps.configure(swaps::settings(config));
        let (generations, now) = (parts.store.clone(), parts.clock.now());
        let adopted = tokio::task::spawn_blocking(move || {
            let not_taken = runners.configure(configs);
            swap::adopt(&runners, &generations, now)?;
            swap::refuse_entries(&not_taken, &generations, now)?;
            Ok::<_, crate::store::Error>(not_taken)
        });
        let adopted = adopted.await?;
        parts.swaps.configured_anew().await;
        parts.dispatch.runners_changed();
        let not_taken = adopted?;
        *lock(&self.config) = config.clone();
        Ok((diff, not_taken))
    }

    /// What happened to the files that the configuration names.
    async fn notice(&self) -> Vec<String> {
        let trusted = Trusted::read(&self.parts.settings.paths.trust_json);
        let mut said: Vec<String> = trusted.since(&lock(&self.trusted)).into_iter().collect();
        *lock(&self.trusted) = trusted;
        let (runners, swaps) = (Arc::clone(&self.parts.runners), self.parts.swaps.clone());
        match tokio::task::spawn_blocking(move || reload::look(&runners, &swaps)).await {
            Ok(found) => said.extend(found),
            Err(error) => tracing::error!(%error, "daemon_reload_look_failed"),
        }
        self.parts.dispatch.runners_changed();
        said
    }

    fn totals(&self, now: DateTime<Utc>) -> DayTotals {
        self.parts.store.day(&self.parts.wallet.day(now)).unwrap_or_default()
    }

    fn exceeded(&self) -> bool {
        let totals = self.totals(self.parts.clock.now());
        self.parts.wallet.limits().is_some_and(|limits| budget::exceeded(&limits, &totals).is_some())
    }
}

impl lifecycle::Office for Office {
    fn reload(&self) -> Pin<Box<dyn Future<Output = Reloaded> + Send + '_>> {
        Box::pin(self.reload_now())
    }

    fn status(&self) -> Value {
        Source::status(self)
    }

    fn line(&self) -> String {
        let beat = self.parts.vitals.beat();
        let budget = if self.exceeded() { ", budget used up" } else { "" };
        format!(
            "{}: {} running, {} queued{budget}",
            beat.state,
            beat.active_mandate_ids.len(),
            beat.queue_depth
        )
    }

    fn graceful_timeout(&self) -> Duration {
        self.config().graceful_timeout
    }

    fn tick_interval(&self) -> Duration {
        self.config().tick_interval
    }
}

impl Source for Office {
    fn status(&self) -> Value {
        let mut beat = self.parts.vitals.beat();
        beat.reasons.extend(self.parts.swaps.unwatched());
        let config = self.config();
        let phase = self.parts.mailbox.phase();
        let zones = self.parts.settings.zones.data();
        let state = if self.parts.daemon { phase.as_str() } else { Phase::Stopped.as_str() };
        let quarantined: Vec<String> = lock(&self.quarantined).iter().map(|bad| bad.name.clone()).collect();
        let slots = self.parts.runners.status();
        let sandboxes: serde_json::Map<String, Value> = slots
            .iter()
            .filter_map(|slot| Some((slot.name.clone(), json!(slot.sandbox.as_ref()?.level))))
            .collect();
        json!({
            "state": state,
            "pid": self.parts.daemon.then(std::process::id),
            "tick_count": beat.tick_count,
            "mailbox_size": self.parts.mailbox.len(),
            "started_at": self.parts.daemon.then(|| time(self.parts.started)),
            "shutdown_requested": matches!(phase, Phase::Draining | Phase::Stopped),
            "tick_interval": config.tick_interval.as_secs_f64(),
            "graceful_timeout": config.graceful_timeout.as_secs_f64(),
            "queue_depth": beat.queue_depth,
            "active_mandate_id": beat.active_mandate_id,
            "active_mandate_ids": beat.active_mandate_ids,
            "sandbox": sandboxes,
            "last_cycle_at": beat.last_cycle_at.map(time),
            "version": env!("CARGO_PKG_VERSION"),
            "root": self.parts.settings.paths.root.display().to_string(),
            "schedules": self.parts.chronos.len(),
            "schedules_quarantined": quarantined,
            "budget_exceeded": self.exceeded(),
            "reasons": beat.reasons,
            "zone_data": zones.version,
            "swaps": self.parts.daemon.then(|| self.parts.swaps.status()),
            "plugins_watch": self.parts.swaps.watched(),
        })
    }

    fn schedules(&self, now: DateTime<Utc>, next: usize) -> Vec<Value> {
        let mut views = self.parts.chronos.list(now, next);
        for bad in lock(&self.quarantined).iter() {
            let problems: Vec<String> = bad.problems.iter().map(ToString::to_string).collect();
            views.push(json!({"name": bad.name, "state": "quarantined", "problems": problems, "next": []}));
        }
        views
    }

    fn schedule(&self, name: &str, now: DateTime<Utc>, next: usize) -> Option<Value> {
        match self.parts.chronos.show(name, now, next) {
            Ok(Some(view)) => Some(view),
            Ok(None) => self.schedules(now, 0).into_iter().find(|view| view["name"] == name),
            Err(error) => {
                tracing::error!(%error, "schedule_not_read");
                None
            }
        }
    }

    fn backfill_count(&self, name: &str, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<u64> {
        self.parts.chronos.backfill_count(name, from, to)
    }

    fn why_unrecorded(&self, name: &str, nominal: DateTime<Utc>) -> String {
        self.parts.chronos.why_unrecorded(name, nominal)
    }

    fn budget(&self, now: DateTime<Utc>) -> BudgetView {
        BudgetView {
            day: self.parts.wallet.day(now),
            timezone: self.config().budget.timezone,
            limits: self.parts.wallet.limits().unwrap_or_default(),
        }
    }

    fn seen(&self, mandate: &str) -> Value {
        self.parts.brokers.seen(mandate).map_or(Value::Null, |seen| json!(seen))
    }

    fn plugins(&self) -> Vec<Value> {
        slots::views(&self.parts, &self.config())
    }

    fn commands(&self) -> Vec<Value> {
        fitness::told(&self.config(), &self.parts.settings.paths, &self.parts.env)
    }

    fn swaps(&self) -> Option<Swaps> {
        self.parts.daemon.then(|| self.parts.swaps.clone())
    }

    fn held(&self, runner: &str) -> Option<String> {
        self.parts.runners.held(runner)
    }

    fn generations(&self, runner: Option<&str>, limit: usize) -> crate::store::Result<Vec<GenerationRow>> {
        self.parts.store.generations(runner, limit)
    }

    fn default_runner(&self) -> String {
        self.config().default_runner
    }

    fn has_runner(&self, name: &str) -> bool {
        self.config().runners.contains_key(name)
    }

    fn prune(&self, before: DateTime<Utc>, dry_run: bool) -> crate::store::Result<Value> {
        Ok(json!(self.parts.store.prune(before, dry_run, &mut |_, _| {})?))
    }
}

fn next_of(chronos: &Chronos, name: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    chronos.upcoming(name, now, 1).into_iter().next().map(|fire| fire.at)
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
