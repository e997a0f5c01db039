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

use chrono::{DateTime, Utc};
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::{CallError, Mandate, Report};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use super::load_error::LoadError;
use super::manifest::PluginFile;
use super::plugin_store::{PluginStore, SearchPath};
use super::pool::Pool;
use super::rust_abi::RustAbi;
use super::{HostCalls, RunnerBackend, RunnerError, RunnerIdentity, library, panic_text};

/// How far a runner is kept apart from the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// On a thread of the daemon: trusted, a crash is the daemon's.
    InProcess,
    /// In a worker process.
    Process,
    /// In a worker process that confines itself.
    Sandbox,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InProcess => "in_process",
            Self::Process => "process",
            Self::Sandbox => "sandbox",
        })
    }
}

/// One entry of `runners` in the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct RunnerConfig {
    /// Its key.
    pub name: String,
    /// A plugin's name, or a path (with a slash).
    pub plugin: String,
    /// As asked for; absent means the best this build has. An isolation that was asked for and
    /// is not there is refused, never downgraded.
    pub isolation: Option<Isolation>,
    /// How long a cycle may take.
    pub deadline: Option<Duration>,
    /// The runner's own section, an object or null.
    pub params: Value,
}

impl RunnerConfig {
    /// A runner with nothing but a plugin.
    #[must_use]
    pub fn new(name: impl Into<String>, plugin: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            plugin: plugin.into(),
            isolation: None,
            deadline: None,
            params: Value::Null,
        }
    }
}

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
            Err(error) => drop(send.send(Err(RunnerError::Died(format!("no thread for it: {error}"))))),
        }
        receive
    }

    /// Nudges running cycles to look at `should_stop`.
    pub fn cancel(&self) {
        self.backend.cancel();
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
    /// Why nobody does.
    pub error: Option<RunnerStatusError>,
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
    search: SearchPath,
    store: PluginStore,
    slots: RwLock<BTreeMap<String, Slot>>,
}

impl Runners {
    /// A registry without runners.
    #[must_use]
    pub fn new(search: SearchPath, store: PluginStore) -> Self {
        Self { search, store, slots: RwLock::new(BTreeMap::new()) }
    }

    /// A registry with these runners. One that cannot be loaded is there with its reason.
    #[must_use]
    pub fn load(configs: Vec<RunnerConfig>, search: SearchPath, store: PluginStore) -> Self {
        let runners = Self::new(search, store);
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
        let plugin = self.store.open(sha256)?;
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
            error: slot
                .current
                .as_ref()
                .err()
                .map(|error| RunnerStatusError { code: error.code(), message: error.to_string() }),
        };
        self.read().iter().map(status).collect()
    }

    /// The images that this process can never give back.
    #[must_use]
    pub fn leaked(&self) -> library::Leaked {
        library::leaked()
    }

    fn load_current(&self, config: &RunnerConfig, pool: &Arc<Pool>) -> Result<Arc<Generation>, LoadError> {
        let loaded = self.search.find(&config.plugin).and_then(|path| {
            check_isolation(config)?;
            self.load_file(config, pool, &PluginFile::open(&path)?)
        });
        match &loaded {
            Ok(generation) => {
                let identity = &generation.identity;
                tracing::info!(runner = %config.name, plugin = %identity.name, version = %identity.version,
                    generation = %identity.generation, "runner_loaded");
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
        check_isolation(config)?;
        // Before a copy is kept: what cannot be mapped here need not be in the store.
        library::check_manifest(&plugin.manifest)?;
        let path = self.store.keep(plugin)?;
        let params = if config.params.is_null() {
            Value::Object(serde_json::Map::new())
        } else {
            config.params.clone()
        };
        let home = Arc::new(Home { runner: config.name.clone() });
        let backend = RustAbi::load(&path, &plugin.sha256, &plugin.manifest, &Setup::new(params), home)?;
        Ok(Generation::new(Arc::new(backend), Arc::clone(pool), config.deadline))
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Slot>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_isolation(config: &RunnerConfig) -> Result<(), LoadError> {
    match config.isolation {
        None | Some(Isolation::InProcess) => Ok(()),
        Some(other) => Err(LoadError::IsolationUnavailable(other)),
    }
}

/// The host outside of cycles: there is a log and nothing else.
struct Home {
    runner: String,
}

impl HostCalls for Home {
    fn call(&self, method: &str, _: &[u8]) -> Result<Vec<u8>, CallError> {
        Err(CallError::invalid(format!("{method} is for a running cycle")))
    }

    fn should_stop(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        let runner = &self.runner;
        match level {
            tracing::Level::ERROR => tracing::error!(runner, target, message, %fields, "runner_log"),
            tracing::Level::WARN => tracing::warn!(runner, target, message, %fields, "runner_log"),
            tracing::Level::INFO => tracing::info!(runner, target, message, %fields, "runner_log"),
            _ => tracing::debug!(runner, target, message, %fields, "runner_log"),
        }
    }
}
