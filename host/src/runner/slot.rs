//! The configured runners, each in its slot, and the generations that serve them.
//!
//! A slot whose file cannot be had keeps the reason and can be tried again; it never disturbs
//! the others. A generation is one loaded version of a file, named by its sha256: a cycle that
//! one began is continued by that one, from the plugin store if need be. Nothing here blocks on
//! a runner, and no lock is held while one is called.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde::Serialize;

use super::generation::Generation;
use super::launch::{Launcher, Pace, RunnerConfig};
use super::load_error::LoadError;
use super::manifest::PluginFile;
use super::pool::Pool;
use super::swap::{FlipFigures, Flips, Pins};
use super::{Isolation, RunnerBackend, RunnerIdentity, library};
use crate::sys::sandbox::{Level, Reached};

/// What is known of one slot.
#[derive(Clone, Debug, Serialize)]
pub struct RunnerStatus {
    /// Its key in the configuration.
    pub name: String,
    /// The plugin it names; none for a builtin.
    pub plugin: Option<String>,
    /// Who serves it, when somebody does.
    pub identity: Option<RunnerIdentity>,
    /// How far it is kept apart from the daemon, when somebody serves.
    pub isolation: Option<Isolation>,
    /// Why nobody does.
    pub error: Option<RunnerStatusError>,
    /// How far whoever serves is confined, or would have been by a machine that can do less than is
    /// demanded; none outside of a sandbox.
    pub sandbox: Option<Reached>,
    /// Why nothing may begin on it for a moment: its state is being handed over.
    pub held: Option<String>,
    /// The entry that the configuration has for it by now, where that was not put in force.
    pub not_taken: Option<NotTaken>,
}

/// A new entry of a runner that is not in force, since its file may not take the place of what serves.
/// That goes on, as its former entry says.
#[derive(Clone, Debug, Serialize)]
pub struct NotTaken {
    /// The runner.
    pub runner: String,
    /// What the entry names.
    pub plugin: String,
    /// Where that is, when there is something.
    pub file: Option<PathBuf>,
    /// Of its content, when it is a plugin.
    pub sha256: Option<String>,
    /// Name and version from its manifest.
    #[serde(skip)]
    pub identity: Option<(String, String)>,
    /// True when it was tried, and not only looked at.
    #[serde(skip)]
    pub tried: bool,
    /// What is wrong with it.
    pub error: RunnerStatusError,
}

impl NotTaken {
    /// In one sentence, for people.
    #[must_use]
    pub fn told(&self) -> String {
        let Self { runner, plugin, error, .. } = self;
        format!("runner {runner}: {plugin} is not taken: {}; what served before goes on", error.told())
    }
}

/// Why a slot is empty.
#[derive(Clone, Debug, Serialize)]
pub struct RunnerStatusError {
    /// The stable word.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// Every place that was looked at, when nothing was found.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub looked: Vec<PathBuf>,
}

impl RunnerStatusError {
    /// Message and remedy in one line, for places that have no second one.
    #[must_use]
    pub fn told(&self) -> String {
        format!("{}; {}", self.message, self.remedy)
    }
}

impl From<&LoadError> for RunnerStatusError {
    fn from(error: &LoadError) -> Self {
        Self {
            code: error.code(),
            message: error.to_string(),
            remedy: error.remedy().into_owned(),
            looked: error.looked().to_vec(),
        }
    }
}

pub(super) struct Slot {
    pub(super) config: Option<RunnerConfig>,
    pub(super) pool: Arc<Pool>,
    pub(super) current: Result<Arc<Generation>, LoadError>,
    /// Generations that only open cycles still need, by sha256.
    pub(super) pinned: BTreeMap<String, Arc<Generation>>,
    /// See [`RunnerStatus::held`].
    pub(super) held: Option<String>,
    /// See [`RunnerStatus::not_taken`].
    not_taken: Option<NotTaken>,
}

impl Slot {
    fn new(
        config: Option<RunnerConfig>,
        pool: Arc<Pool>,
        current: Result<Arc<Generation>, LoadError>,
    ) -> Self {
        Self { config, pool, current, pinned: BTreeMap::new(), held: None, not_taken: None }
    }
}

/// All runners of a daemon. Shared; every method may be called from any thread.
pub struct Runners {
    pub(super) launcher: Launcher,
    slots: RwLock<BTreeMap<String, Slot>>,
    /// What swaps have put in place of configured files.
    pub(super) pins: RwLock<Pins>,
    pub(super) flips: Flips,
}

impl Runners {
    /// A registry without runners.
    #[must_use]
    pub fn new(launcher: Launcher) -> Self {
        Self { launcher, slots: RwLock::default(), pins: RwLock::default(), flips: Flips::default() }
    }

    /// A registry with these runners. One that cannot be loaded is there with its reason.
    #[must_use]
    pub fn load(configs: Vec<RunnerConfig>, launcher: Launcher) -> Self {
        let runners = Self::new(launcher);
        runners.configure(configs);
        runners
    }

    /// Makes the configured runners these. Slots whose entry did not change keep what they have,
    /// builtins stay, and cycles under way finish on the generation they hold. Another file than the
    /// one that serves is tried first: gives the entries whose file may not take its place.
    pub fn configure(&self, configs: Vec<RunnerConfig>) -> Vec<NotTaken> {
        let names: Vec<String> = configs.iter().map(|config| config.name.clone()).collect();
        let mut not_taken = Vec::new();
        for config in configs {
            let same =
                self.read().get(&config.name).is_some_and(|slot| slot.config.as_ref() == Some(&config));
            if same {
                // Its file may have been mended meanwhile; one that serves is left alone.
                let _ = self.retry(&config.name);
                self.note_not_taken(&config.name, None);
                continue;
            }
            let pool = Arc::new(Pool::new(&config.name));
            match self.load_in_place(&config, &pool) {
                Ok(current) => {
                    let name = config.name.clone();
                    self.write().insert(name, Slot::new(Some(config), pool, current));
                }
                Err(refused) => {
                    self.note_not_taken(&config.name, Some((*refused).clone()));
                    not_taken.push(*refused);
                }
            }
        }
        self.write().retain(|name, slot| slot.config.is_none() || names.contains(name));
        not_taken
    }

    /// What is to be in the slot of a new entry. Where that is another file than the one that serves, it
    /// must have come through a trial and a load.
    fn load_in_place(
        &self,
        config: &RunnerConfig,
        pool: &Arc<Pool>,
    ) -> Result<Result<Arc<Generation>, LoadError>, Box<NotTaken>> {
        // Also where a pin has something in store: the operator has just named this very file.
        let found = self.launcher.find(&config.plugin).and_then(|_| self.file_of(config));
        let is_in_use = match (self.current(&config.name), &found) {
            (Err(_), _) => return Ok(self.load_current(config, pool, None)),
            (Ok(serves), Ok(plugin)) => plugin.sha256 == serves.identity().generation,
            (Ok(_), Err(_)) => false,
        };
        if is_in_use {
            return Ok(self.load_current(config, pool, None));
        }
        let mut tried = false;
        let plugin = found.as_ref().ok();
        let come_through = |plugin: &PluginFile| {
            self.isolation_for(config, plugin)?;
            tried = true;
            self.on_trial(config, plugin, Pace::Usual)?;
            self.load_current(config, pool, None)
        };
        match found.as_ref().map_err(Clone::clone).and_then(come_through) {
            Ok(current) => Ok(Ok(current)),
            Err(error) => Err(Box::new(NotTaken {
                runner: config.name.clone(),
                plugin: config.plugin.clone(),
                file: plugin.and_then(|plugin| plugin.origin.clone()),
                sha256: plugin.map(|plugin| plugin.sha256.clone()),
                identity: plugin
                    .map(|plugin| (plugin.manifest.name.clone(), plugin.manifest.version.clone())),
                tried,
                error: RunnerStatusError::from(&error),
            })),
        }
    }

    fn note_not_taken(&self, name: &str, not_taken: Option<NotTaken>) {
        if let Some(refused) = &not_taken {
            let RunnerStatusError { code, message, remedy, .. } = &refused.error;
            tracing::warn!(runner = name, plugin = %refused.plugin, code, why = message, remedy, "runner_entry_not_taken");
        }
        if let Some(slot) = self.write().get_mut(name) {
            slot.not_taken = not_taken;
        }
    }

    /// Puts a runner of this program in a slot.
    pub fn insert(&self, name: &str, backend: Arc<dyn RunnerBackend>) {
        self.insert_with_deadline(name, backend, None);
    }

    /// As [`Runners::insert`], with a time for each cycle.
    pub fn insert_with_deadline(
        &self,
        name: &str,
        backend: Arc<dyn RunnerBackend>,
        deadline: Option<Duration>,
    ) {
        let pool = Arc::new(Pool::new(name));
        let current = Ok(Arc::new(Generation::new(backend, Arc::clone(&pool), deadline)));
        self.write().insert(name.to_owned(), Slot::new(None, pool, current));
    }

    /// The generation that new cycles of this runner begin on.
    ///
    /// # Errors
    /// Why there is none.
    pub fn current(&self, name: &str) -> Result<Arc<Generation>, LoadError> {
        match self.read().get(name) {
            Some(slot) => slot.current.clone(),
            None => Err(LoadError::UnknownRunner(name.to_owned())),
        }
    }

    /// The generation of that sha256, for a cycle it began. Loads it from the store if it is not
    /// the current one; may take the time of a load then.
    ///
    /// # Errors
    /// `generation_gone`, or why it cannot be loaded any more.
    pub fn pinned(&self, name: &str, sha256: &str) -> Result<Arc<Generation>, LoadError> {
        let (config, pool) = {
            let slots = self.read();
            let slot = slots.get(name).ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
            if let Ok(current) = &slot.current
                && current.identity().generation == sha256
            {
                return Ok(Arc::clone(current));
            }
            if let Some(generation) = slot.pinned.get(sha256) {
                return Ok(Arc::clone(generation));
            }
            (slot.config.clone(), Arc::clone(&slot.pool))
        };
        let config = config.ok_or_else(|| LoadError::GenerationGone(sha256.to_owned()))?;
        let plugin = self.launcher.open(sha256)?;
        let loaded = Arc::new(self.load_file(&config, &pool, &plugin, Pace::Usual)?);
        match self.write().get_mut(name) {
            // Of two threads that loaded it at once, both serve; the image is the same.
            Some(slot) => Ok(Arc::clone(slot.pinned.entry(sha256.to_owned()).or_insert(loaded))),
            None => Ok(loaded),
        }
    }

    /// Gives up a generation that no open cycle needs any more.
    pub fn unpin(&self, name: &str, sha256: &str) {
        if let Some(slot) = self.write().get_mut(name) {
            slot.pinned.remove(sha256);
        }
    }

    /// Tries an unavailable runner again, after its file or its parameters may have been mended.
    ///
    /// # Errors
    /// Why it still cannot be had.
    pub fn retry(&self, name: &str) -> Result<Arc<Generation>, LoadError> {
        let (config, pool, before) = {
            let slots = self.read();
            let slot = slots.get(name).ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
            match (&slot.current, &slot.config) {
                (Ok(current), _) => return Ok(Arc::clone(current)),
                (Err(error), None) => return Err(error.clone()),
                (Err(error), Some(config)) => (config.clone(), Arc::clone(&slot.pool), error.clone()),
            }
        };
        let current = self.load_current(&config, &pool, Some(&before));
        if let Some(slot) = self.write().get_mut(name)
            && slot.config.as_ref() == Some(&config)
        {
            slot.current = current.clone();
        }
        current
    }

    /// All slots by name.
    #[must_use]
    pub fn status(&self) -> Vec<RunnerStatus> {
        let status = |(name, slot): (&String, &Slot)| RunnerStatus {
            name: name.clone(),
            plugin: slot.config.as_ref().map(|config| config.plugin.clone()),
            identity: slot.current.as_ref().ok().map(|current| current.identity().clone()),
            isolation: slot.current.as_ref().ok().map(|current| current.backend().isolation()),
            error: slot.current.as_ref().err().map(|error| self.empty(name, error)),
            sandbox: sandbox_of(slot),
            held: slot.held.clone(),
            not_taken: slot.not_taken.clone(),
        };
        self.read().iter().map(status).collect()
    }

    /// Why a slot is empty. What was swapped in need not be mended to be rid of it.
    fn empty(&self, name: &str, error: &LoadError) -> RunnerStatusError {
        let mut told = RunnerStatusError::from(error);
        let swapped_in = {
            let pins = self.pins.read().unwrap_or_else(PoisonError::into_inner);
            pins.swapped_in(name).map(ToOwned::to_owned)
        };
        if let Some(sha256) = swapped_in {
            let short: String = sha256.chars().take(12).collect();
            told.message = format!("version {short}, which was swapped in: {}", told.message);
            told.remedy =
                format!("{}; or `kairos plugin rollback {name}`, or swap another file in", told.remedy);
        }
        told
    }

    /// Runners that are not there, or confined less than they could be: each with why, for people.
    #[must_use]
    pub fn degraded(&self) -> Vec<(String, String)> {
        let why = |(name, slot): (&String, &Slot)| {
            let text = match (&slot.current, &slot.not_taken) {
                (Err(error), _) => format!("runner {name}: {}", error.told()),
                (Ok(_), Some(refused)) => refused.told(),
                (Ok(current), None) => {
                    let reached =
                        current.backend().sandbox().filter(|reached| reached.level < Level::Full)?;
                    format!("the sandbox of runner {name} is {reached}")
                }
            };
            Some((name.clone(), text))
        };
        self.read().iter().filter_map(why).collect()
    }

    /// How long the flips of swaps held the slots.
    #[must_use]
    pub fn flips(&self) -> FlipFigures {
        self.flips.figures()
    }

    /// The images that this process can never give back.
    #[must_use]
    pub fn leaked(&self) -> library::Leaked {
        library::leaked()
    }

    /// Says how it went, unless it went as `before`: what waits for a runner has it tried again and
    /// again, and that is no news.
    pub(super) fn load_current(
        &self,
        config: &RunnerConfig,
        pool: &Arc<Pool>,
        before: Option<&LoadError>,
    ) -> Result<Arc<Generation>, LoadError> {
        let loaded =
            self.file_of(config).and_then(|plugin| self.load_file(config, pool, &plugin, Pace::Usual));
        match &loaded {
            Ok(generation) => {
                let identity = generation.identity();
                tracing::info!(runner = %config.name, plugin = %identity.name, version = %identity.version,
                    generation = %identity.generation, isolation = %generation.backend().isolation(),
                    "runner_loaded");
            }
            Err(error) if before == Some(error) => {}
            Err(error) => {
                tracing::warn!(runner = %config.name, plugin = %config.plugin, code = error.code(), %error,
                    remedy = %error.remedy(), "runner_unavailable");
            }
        }
        loaded.map(Arc::new)
    }

    pub(super) fn load_file(
        &self,
        config: &RunnerConfig,
        pool: &Arc<Pool>,
        plugin: &PluginFile,
        pace: Pace,
    ) -> Result<Generation, LoadError> {
        let backend = self.launcher.launch(config, plugin, pace)?;
        let generation = Generation::new(backend, Arc::clone(pool), config.deadline);
        Ok(generation.with_stop_grace(config.stop_grace))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Slot>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`RunnerStatus::sandbox`].
fn sandbox_of(slot: &Slot) -> Option<Reached> {
    match &slot.current {
        Ok(current) => current.backend().sandbox(),
        Err(error) => error.sandbox().cloned(),
    }
}
