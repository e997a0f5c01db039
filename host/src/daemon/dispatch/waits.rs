//! Mandates whose runner is not there: they stay queued, say why, and the runner is tried again
//! for as long as something waits for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::Inner;
use super::ports::OpenServices;
use crate::domain::mandate::MandateState;
use crate::runner::RunnerStatusError;
use crate::store::{self, MandateFilter, RunnerOffer};

/// A runner that keeps dying is not tried for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// How it died last, or why it could not be started.
    pub why: String,
    /// When it is tried again.
    pub until: DateTime<Utc>,
}

/// What mandates that wait for the same thing have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WaitKey {
    runner: String,
    /// Their parameter `command`.
    command: Option<String>,
}

impl WaitKey {
    fn of(runner: &str, params: &Map<String, Value>) -> Self {
        let command = params.get("command").filter(|command| !command.is_null());
        let text = |command: &Value| command.as_str().map_or_else(|| command.to_string(), str::to_owned);
        Self { runner: runner.to_owned(), command: command.map(text) }
    }
}

/// As the store keeps it: a reader finds a mandate's by the same rule.
impl std::fmt::Display for WaitKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.command {
            Some(command) => write!(f, "{}/{command}", self.runner),
            None => f.write_str(&self.runner),
        }
    }
}

/// Why they wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    why: String,
    /// True when a look at files tells whether they still must.
    cheap: bool,
}

impl std::fmt::Display for HeldBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = self.until.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        write!(f, "held back until {at}, because it keeps dying: {}", self.why)
    }
}

/// Enough to find every runner that something waits for, in all but absurd queues.
const LOOK_AT: usize = 1000;

impl Inner {
    /// Reads what the runners offer now. One that is held back offers nothing.
    pub(super) fn read_offers(&self) {
        let now = self.parts.clock.monotonic();
        let held = |name: &str| self.table().breakers.held(name, now).is_some();
        let offers: HashMap<String, RunnerOffer> = self
            .parts
            .runners
            .status()
            .into_iter()
            .filter_map(|status| {
                let identity = status.identity.filter(|_| status.held.is_none() && !held(&status.name))?;
                let (generation, phases) = (identity.generation, identity.phases);
                let offer = RunnerOffer { generation, phases, commands: None };
                Some((status.name, offer))
            })
            .collect();
        *self.offers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(offers);
    }

    fn open_services(&self) -> Arc<dyn OpenServices> {
        Arc::clone(&*self.services.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runners that could do nothing now, with the reasons.
    pub(super) fn unfit(&self) -> BTreeMap<String, String> {
        self.open_services().unfit()
    }

    /// What is offered, as far as it could do anything now.
    pub(super) fn offers_now(&self) -> Arc<HashMap<String, RunnerOffer>> {
        let offers = Arc::clone(&self.offers.read().unwrap_or_else(PoisonError::into_inner));
        let commands = self.open_services().commands();
        if commands.keys().all(|runner| !offers.contains_key(runner)) {
            return offers;
        }
        let fit = offers.iter().filter_map(|(runner, offer)| {
            let commands = commands.get(runner).cloned();
            let any = commands.as_ref().is_none_or(|commands| !commands.is_empty());
            any.then(|| (runner.clone(), RunnerOffer { commands, ..offer.clone() }))
        });
        Arc::new(fit.collect())
    }

    /// Compares what waits with what is offered and notes in the store why it waits.
    pub(super) fn note_waits(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            if let Err(error) = inner.compare_waits().await {
                tracing::warn!(%error, "daemon_runner_waits_unknown");
            }
        });
    }

    async fn compare_waits(self: &Arc<Self>) -> Result<(), store::Error> {
        let inner = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            // Looking whether a program is there by now costs nothing; loading a plugin does.
            let missing = inner.missing()?;
            let cheap = missing.values().all(|wait| wait.cheap);
            Ok((missing, cheap))
        });
        let (missing, cheap) = read.await.unwrap_or(Err(store::Error::Closed))?;
        let changes: Vec<(WaitKey, Option<String>)> = {
            let mut table = self.table();
            let gone = table.waits.keys().filter(|key| !missing.contains_key(*key)).cloned();
            let gone: Vec<_> = gone.map(|key| (key, None)).collect();
            let new = missing.iter().filter(|(key, wait)| table.waits.get(*key) != Some(wait));
            let new: Vec<_> = new.map(|(key, wait)| (key.clone(), Some(wait.why.clone()))).collect();
            let nothing = missing.is_empty();
            (table.waits, table.cheap_to_retry) = (missing, cheap);
            match (nothing, &table.retry_runners) {
                (true, _) => table.retry_runners = None,
                (false, None) => table.retry_runners_later(self.parts.clock.monotonic()),
                (false, Some(_)) => {}
            }
            gone.into_iter().chain(new).collect()
        };
        for (key, why) in changes {
            if let Some(reason) = &why {
                tracing::warn!(
                    runner = key.runner,
                    command = key.command,
                    reason,
                    "daemon_runner_unavailable"
                );
            }
            self.parts.store.note_wait(key.to_string(), why).await?;
            self.touch();
        }
        Ok(())
    }

    /// Why queued mandates do not start, by what they ask for. Blocks.
    fn missing(&self) -> Result<BTreeMap<WaitKey, Wait>, store::Error> {
        let offers = Arc::clone(&self.offers.read().unwrap_or_else(PoisonError::into_inner));
        if self.parts.store.counts()?.queued == 0 {
            return Ok(BTreeMap::new());
        }
        let filter =
            MandateFilter { states: vec![MandateState::Queued], limit: LOOK_AT, ..MandateFilter::default() };
        let services = self.open_services();
        let mut missing = BTreeMap::new();
        for row in self.parts.store.mandates(&filter)? {
            let key = WaitKey::of(&row.runner, &row.bounds.params);
            if missing.contains_key(&key) {
                continue;
            }
            let served = offers.contains_key(&row.runner);
            let runner = || match (self.held(&row.runner), self.parts.runners.current(&row.runner)) {
                _ if served => None,
                (_, Err(error)) => Some(error.told()),
                (why, Ok(_)) => why,
            };
            let unfit = || services.unfit_for(&row.runner, &row.bounds.params);
            let wait = match runner() {
                Some(why) => Some(Wait { why, cheap: false }),
                None => unfit().map(|why| Wait { why, cheap: true }),
            };
            missing.extend(wait.map(|wait| (key, wait)));
        }
        Ok(missing)
    }

    /// Why a runner that is there is held back, and until when.
    pub(super) fn held_back(&self, runner: &str) -> Option<HeldBack> {
        let now = self.parts.clock.monotonic();
        let (why, until) = self.table().breakers.held(runner, now)?;
        Some(HeldBack { why, until: self.parts.clock.now() + until.saturating_sub(now) })
    }

    /// The same for people.
    fn held(&self, runner: &str) -> Option<String> {
        self.held_back(runner).map(|held| held.to_string())
    }

    /// Runners that cannot serve, with the reason, whether something waits for them or not.
    pub(super) fn runner_trouble(&self) -> BTreeMap<String, String> {
        let mut trouble = self.unfit();
        let waits = self.table().waits.clone();
        trouble.extend(waits.into_iter().map(|(key, wait)| (key.to_string(), wait.why)));
        for status in self.parts.runners.status() {
            let held = || self.held(&status.name);
            let why = status.error.as_ref().map(RunnerStatusError::told).or_else(held).or(status.held);
            if let Some(why) = why {
                trouble.insert(status.name, why);
            }
        }
        trouble
    }

    /// Tries the runners that something waits for once more.
    pub(super) fn retry_runners(self: &Arc<Self>) {
        let waits: Vec<(String, bool)> = {
            let mut table = self.table();
            table.retry_runners_later(self.parts.clock.monotonic());
            table.waits.iter().map(|(key, wait)| (key.runner.clone(), wait.cheap)).collect()
        };
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            let runners = Arc::clone(&inner.parts.runners);
            // Loading reads files and runs constructors.
            let looked = Arc::clone(&inner);
            let tried = tokio::task::spawn_blocking(move || {
                let offered = looked.offers_now();
                let there = |(runner, cheap): &&(String, bool)| {
                    runners.retry(runner).is_ok() && (!cheap || offered.contains_key(runner))
                };
                waits.iter().filter(there).count()
            });
            if tried.await.is_ok_and(|mended| mended > 0) {
                inner.read_offers();
                inner.table().wanted = true;
            }
            inner.note_sandboxes();
            inner.note_waits();
            inner.kick();
        });
    }
}
