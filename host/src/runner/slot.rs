//! The configured runners, each in its slot, and the generations that serve them.
//!
//! A slot whose file cannot be had keeps the reason and can be tried again; it never disturbs
//! the others. A generation is one loaded version of a file, named by its sha256: a cycle that
//! one began is continued by that one, from the plugin store if need be. Nothing here blocks on
//! a runner, and no lock is held while one is called.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use kairos_plugin_api::{Mandate, Report, State};
use serde::Serialize;
use tokio::sync::oneshot;

use super::launch::{Launcher, RunnerConfig};
use super::load_error::LoadError;
use super::manifest::PluginFile;
use super::pool::Pool;
use super::{HostCalls, Isolation, RunnerBackend, RunnerError, RunnerIdentity, library, panic_text};
use crate::sys::sandbox::{Level, Reached};

/// One loaded version of a runner. Cycles hold it; it is dropped when the last one is done.
pub struct Generation {
    identity: RunnerIdentity,
    backend: Arc<dyn RunnerBackend>,
    pool: Arc<Pool>,
    deadline: Option<Duration>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Generation {
    /// A generation of its own, outside of any slot.
    #[must_use]
    pub fn of(name: &str, backend: Arc<dyn RunnerBackend>) -> Self {
        Self::new(backend, Arc::new(Pool::new(name)), None)
    }

    fn new(backend: Arc<dyn RunnerBackend>, pool: Arc<Pool>, deadline: Option<Duration>) -> Self {
        Self { identity: backend.identity().clone(), backend, pool, deadline }
    }

    /// Who runs.
    #[must_use]
    pub fn identity(&self) -> &RunnerIdentity {
        &self.identity
    }

    /// The configured time for one cycle.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Runs one cycle on a thread of the slot and sends the outcome. Does not block. Dropping the
    /// receiver does not stop the runner: it is stopped by `should_stop` of `host`, with
    /// [`Self::cancel`] as a nudge. An error of the receiver means that the thread died.
    pub fn start(
        &self,
        mandate: Mandate,
        host: Arc<dyn HostCalls>,
    ) -> oneshot::Receiver<Result<Report, RunnerError>> {
        let (send, receive) = oneshot::channel();
        let backend = Arc::clone(&self.backend);
        let cycle = move || {
            // Backends catch the runner's panics; this is for a panic of a backend.
            catch_unwind(AssertUnwindSafe(|| backend.run_cycle(&mandate, host)))
                .unwrap_or_else(|payload| Err(RunnerError::Panic(panic_text(&*payload))))
        };
        match self.pool.thread() {
            // A caller that no longer listens has decided the cycle's fate already.
            Ok(thread) => thread.run(cycle, |outcome| drop(send.send(outcome))),
            Err(error) => drop(send.send(Err(no_thread(&error)))),
        }
        receive
    }

    /// Nudges running cycles to look at `should_stop`.
    pub fn cancel(&self) {
        self.backend.cancel();
    }

    /// Ends the cycle of this mandate for good. False when it runs on a thread, which cannot be ended.
    #[must_use]
    pub fn kill(&self, mandate: &str) -> bool {
        self.backend.kill(mandate)
    }

    /// Says that no new cycle will come.
    pub fn begin_drain(&self) {
        self.backend.begin_drain();
    }

    /// The state for a successor. Blocks on foreign code.
    ///
    /// # Errors
    /// The runner's.
    pub fn export_state(&self) -> Result<Option<State>, RunnerError> {
        self.backend.export_state()
    }

    /// Hands a predecessor's state over. Blocks on foreign code.
    ///
    /// # Errors
    /// The runner's.
    pub fn import_state(&self, state: State) -> Result<(), RunnerError> {
        self.backend.import_state(state)
    }

    /// Asks the runner whether it could work. Blocks on foreign code.
    ///
    /// # Errors
    /// The runner's.
    pub fn probe(&self) -> Result<(), RunnerError> {
        self.backend.probe()
    }
}

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
    /// How far whoever serves is confined; none outside of a sandbox.
    pub sandbox: Option<Reached>,
}

/// Why a slot is empty.
#[derive(Clone, Debug, Serialize)]
pub struct RunnerStatusError {
    /// The stable word.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

struct Slot {
    config: Option<RunnerConfig>,
    pool: Arc<Pool>,
    current: Result<Arc<Generation>, LoadError>,
    /// Generations that only open cycles still need, by sha256.
    pinned: BTreeMap<String, Arc<Generation>>,
}

/// All runners of a daemon. Shared; every method may be called from any thread.
pub struct Runners {
    launcher: Launcher,
    slots: RwLock<BTreeMap<String, Slot>>,
}

impl Runners {
    /// A registry without runners.
    #[must_use]
    pub fn new(launcher: Launcher) -> Self {
        Self { launcher, slots: RwLock::new(BTreeMap::new()) }
    }

    /// A registry with these runners. One that cannot be loaded is there with its reason.
    #[must_use]
    pub fn load(configs: Vec<RunnerConfig>, launcher: Launcher) -> Self {
        let runners = Self::new(launcher);
        runners.configure(configs);
        runners
    }

    /// Makes the configured runners these. Slots whose entry did not change keep what they have,
    /// builtins stay, and cycles under way finish on the generation they hold.
    pub fn configure(&self, configs: Vec<RunnerConfig>) {
        let names: Vec<String> = configs.iter().map(|config| config.name.clone()).collect();
        for config in configs {
            let same =
                self.read().get(&config.name).is_some_and(|slot| slot.config.as_ref() == Some(&config));
            if same {
                // Its file may have been mended meanwhile; one that serves is left alone.
                let _ = self.retry(&config.name);
                continue;
            }
            let pool = Arc::new(Pool::new(&config.name));
            let current = self.load_current(&config, &pool);
            let name = config.name.clone();
            let pinned = BTreeMap::new();
            self.write().insert(name, Slot { config: Some(config), pool, current, pinned });
        }
        self.write().retain(|name, slot| slot.config.is_none() || names.contains(name));
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
        self.write().insert(name.to_owned(), Slot { config: None, pool, current, pinned: BTreeMap::new() });
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
                && current.identity.generation == sha256
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
        let loaded = Arc::new(self.load_file(&config, &pool, &plugin)?);
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
        let (config, pool) = {
            let slots = self.read();
            let slot = slots.get(name).ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
            match (&slot.current, &slot.config) {
                (Ok(current), _) => return Ok(Arc::clone(current)),
                (Err(error), None) => return Err(error.clone()),
                (Err(_), Some(config)) => (config.clone(), Arc::clone(&slot.pool)),
            }
        };
        let current = self.load_current(&config, &pool);
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
            identity: slot.current.as_ref().ok().map(|current| current.identity.clone()),
            isolation: slot.current.as_ref().ok().map(|current| current.backend.isolation()),
            error: slot
                .current
                .as_ref()
                .err()
                .map(|error| RunnerStatusError { code: error.code(), message: error.to_string() }),
            sandbox: slot.current.as_ref().ok().and_then(|current| current.backend.sandbox().cloned()),
        };
        self.read().iter().map(status).collect()
    }

    /// Which runners are confined less than they could be, for people.
    #[must_use]
    pub fn degraded(&self) -> Vec<String> {
        let slots = self.read();
        let current = slots.iter().filter_map(|(name, slot)| Some((name, slot.current.as_ref().ok()?)));
        current
            .filter_map(|(name, generation)| Some((name, generation.backend.sandbox()?)))
            .filter(|(_, reached)| reached.level < Level::Full)
            .map(|(name, reached)| format!("the sandbox of runner {name} is {reached}"))
            .collect()
    }

    /// The images that this process can never give back.
    #[must_use]
    pub fn leaked(&self) -> library::Leaked {
        library::leaked()
    }

    fn load_current(&self, config: &RunnerConfig, pool: &Arc<Pool>) -> Result<Arc<Generation>, LoadError> {
        let loaded =
            self.launcher.find(&config.plugin).and_then(|plugin| self.load_file(config, pool, &plugin));
        match &loaded {
            Ok(generation) => {
                let identity = &generation.identity;
                tracing::info!(runner = %config.name, plugin = %identity.name, version = %identity.version,
                    generation = %identity.generation, isolation = %generation.backend.isolation(),
                    "runner_loaded");
            }
            Err(error) => {
                tracing::warn!(runner = %config.name, plugin = %config.plugin, code = error.code(), %error,
                    "runner_unavailable");
            }
        }
        loaded.map(Arc::new)
    }

    fn load_file(
        &self,
        config: &RunnerConfig,
        pool: &Arc<Pool>,
        plugin: &PluginFile,
    ) -> Result<Generation, LoadError> {
        let backend = self.launcher.launch(config, plugin)?;
        Ok(Generation::new(backend, Arc::clone(pool), config.deadline))
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Slot>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_thread(error: &std::io::Error) -> RunnerError {
    RunnerError::Unavailable(format!("no thread for it: {error}"))
}
