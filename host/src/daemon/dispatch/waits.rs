//! Mandates whose runner is not there: they stay queued, say why, and the runner is tried again
//! for as long as something waits for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};

use chrono::{DateTime, Utc};

use super::Inner;
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
                let offer = RunnerOffer { generation: identity.generation, phases: identity.phases };
                Some((status.name, offer))
            })
            .collect();
        *self.offers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(offers);
    }

    /// Runners that could do nothing now, with the reasons.
    pub(super) fn unfit(&self) -> BTreeMap<String, String> {
        let services = Arc::clone(&*self.services.read().unwrap_or_else(PoisonError::into_inner));
        services.unfit()
    }

    /// What is offered without those.
    pub(super) fn offers_now(&self, unfit: &BTreeMap<String, String>) -> Arc<HashMap<String, RunnerOffer>> {
        let offers = Arc::clone(&self.offers.read().unwrap_or_else(PoisonError::into_inner));
        if unfit.keys().all(|runner| !offers.contains_key(runner)) {
            return offers;
        }
        let fit = offers.iter().filter(|(runner, _)| !unfit.contains_key(*runner));
        Arc::new(fit.map(|(runner, offer)| (runner.clone(), offer.clone())).collect())
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
            let unfit = inner.unfit();
            let missing = inner.missing_runners(&unfit)?;
            // Looking whether a program is there by now costs nothing; loading a plugin does.
            let cheap = missing.keys().all(|runner| unfit.contains_key(runner));
            Ok((missing, cheap))
        });
        let (missing, cheap) = read.await.unwrap_or(Err(store::Error::Closed))?;
        let changes: Vec<(String, Option<String>)> = {
            let mut table = self.table();
            let gone = table.waits.keys().filter(|name| !missing.contains_key(*name)).cloned();
            let gone: Vec<_> = gone.map(|name| (name, None)).collect();
            let new = missing.iter().filter(|(name, why)| table.waits.get(*name) != Some(why));
            let new: Vec<_> = new.map(|(name, why)| (name.clone(), Some(why.clone()))).collect();
            table.waits.clone_from(&missing);
            table.cheap_to_retry = cheap;
            match (missing.is_empty(), &table.retry_runners) {
                (true, _) => table.retry_runners = None,
                (false, None) => table.retry_runners_later(self.parts.clock.monotonic()),
                (false, Some(_)) => {}
            }
            gone.into_iter().chain(new).collect()
        };
        for (runner, why) in changes {
            if let Some(reason) = &why {
                tracing::warn!(runner, reason, "daemon_runner_unavailable");
            }
            self.parts.store.note_wait(runner, why).await?;
            self.touch();
        }
        Ok(())
    }

    /// Runners that queued mandates ask for and that are not offered, with the reason. Blocks.
    fn missing_runners(
        &self,
        unfit: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, store::Error> {
        let offers = self.offers_now(unfit);
        if self.parts.store.counts()?.queued == 0 {
            return Ok(BTreeMap::new());
        }
        let filter =
            MandateFilter { states: vec![MandateState::Queued], limit: LOOK_AT, ..MandateFilter::default() };
        let mut missing = BTreeMap::new();
        for row in self.parts.store.mandates(&filter)? {
            if !offers.contains_key(&row.runner) && !missing.contains_key(&row.runner) {
                let why = match (self.held(&row.runner), self.parts.runners.current(&row.runner)) {
                    (_, Err(error)) => error.told(),
                    (Some(why), Ok(_)) => why,
                    (None, Ok(_)) => match unfit.get(&row.runner) {
                        Some(why) => why.clone(),
                        None => continue,
                    },
                };
                missing.insert(row.runner, why);
            }
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
        trouble.extend(self.table().waits.clone());
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
        let names: Vec<String> = {
            let mut table = self.table();
            table.retry_runners_later(self.parts.clock.monotonic());
            table.waits.keys().cloned().collect()
        };
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            let runners = Arc::clone(&inner.parts.runners);
            // Loading reads files and runs constructors.
            let looked = Arc::clone(&inner);
            let tried = tokio::task::spawn_blocking(move || {
                let unfit = looked.unfit();
                let there = |name: &&String| runners.retry(name).is_ok() && !unfit.contains_key(*name);
                names.iter().filter(there).count()
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
