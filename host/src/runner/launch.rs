//! From a configured runner and its file to something that runs cycles: which isolation, which
//! ABI. The only place that chooses a backend; an isolation that is not available is refused,
//! never downgraded.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kairos_plugin_api::CallError;
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::manifest::Manifest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::c_abi::CAbi;
use super::load_error::LoadError;
use super::manifest::PluginFile;
use super::plugin_store::PluginStore;
use super::rust_abi::RustAbi;
use super::search::SearchPath;
use super::worker::{MEMORY_BYTES, WorkerFactory, WorkerSpec};
use super::{HostCalls, RunnerBackend, library};

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

/// Finds plugins, keeps them, and starts backends on them. Shared; any thread.
pub struct Launcher {
    search: SearchPath,
    store: PluginStore,
    workers: Option<WorkerFactory>,
}

impl Launcher {
    /// A launcher without worker processes: everything runs in this one.
    #[must_use]
    pub fn in_process(search: SearchPath, store: PluginStore) -> Self {
        Self { search, store, workers: None }
    }

    /// A launcher that runs plugins in worker processes unless it is told otherwise.
    #[must_use]
    pub fn with_workers(search: SearchPath, store: PluginStore, workers: WorkerFactory) -> Self {
        Self { search, store, workers: Some(workers) }
    }

    /// Where a runner of this configuration runs: as the operator said, else as far apart as this
    /// launcher can.
    #[must_use]
    pub fn effective_isolation(&self, config: &RunnerConfig) -> Isolation {
        let best = if self.workers.is_some() { Isolation::Process } else { Isolation::InProcess };
        config.isolation.unwrap_or(best)
    }

    /// The file that a `plugin` key means, read and checked as far as that goes without running it.
    ///
    /// # Errors
    /// What is there instead of a plugin.
    pub fn find(&self, plugin: &str) -> Result<PluginFile, LoadError> {
        PluginFile::open(&self.search.find(plugin)?)
    }

    /// The kept file of that sha256.
    ///
    /// # Errors
    /// `generation_gone`.
    pub fn open(&self, sha256: &str) -> Result<PluginFile, LoadError> {
        self.store.open(sha256)
    }

    /// Starts a backend on a plugin, in the isolation that the operator chose.
    ///
    /// # Errors
    /// Why it cannot serve.
    pub fn launch(
        &self,
        config: &RunnerConfig,
        plugin: &PluginFile,
    ) -> Result<Arc<dyn RunnerBackend>, LoadError> {
        match (self.effective_isolation(config), &self.workers) {
            (Isolation::InProcess, _) => self.launch_in_process(config, plugin),
            (Isolation::Process, Some(workers)) => self.launch_worker(config, plugin, workers),
            (other, _) => Err(LoadError::IsolationUnavailable(other)),
        }
    }

    fn launch_worker(
        &self,
        config: &RunnerConfig,
        plugin: &PluginFile,
        workers: &WorkerFactory,
    ) -> Result<Arc<dyn RunnerBackend>, LoadError> {
        library::check_version(&plugin.manifest)?;
        let spec = WorkerSpec {
            runner: config.name.clone(),
            path: self.store.keep(plugin)?,
            sha256: plugin.sha256.clone(),
            manifest: plugin.manifest.clone(),
            setup: setup(config),
            isolation: self.effective_isolation(config),
            memory_bytes: MEMORY_BYTES,
            home: Arc::new(Home { runner: config.name.clone() }),
        };
        Ok(Arc::new(workers.start(spec)?))
    }

    fn launch_in_process(
        &self,
        config: &RunnerConfig,
        plugin: &PluginFile,
    ) -> Result<Arc<dyn RunnerBackend>, LoadError> {
        // Before a copy is kept: what cannot be mapped here need not be in the store.
        library::check_manifest(&plugin.manifest)?;
        let path = self.store.keep(plugin)?;
        let home = Arc::new(Home { runner: config.name.clone() });
        map(&path, &plugin.sha256, &plugin.manifest, &setup(config), home).map(Arc::from)
    }
}

/// Maps the plugin at `path`, of the store, into this process and makes an instance on it, by
/// the ABI that its manifest names. The daemon and its workers map plugins by nothing else.
/// `home` receives what the runner logs outside of cycles.
///
/// # Errors
/// Why it cannot serve; see [`library::load`].
pub fn map(
    path: &Path,
    sha256: &str,
    manifest: &Manifest,
    setup: &Setup,
    home: Arc<dyn HostCalls>,
) -> Result<Box<dyn RunnerBackend>, LoadError> {
    Ok(if manifest.abi == "c" {
        Box::new(CAbi::load(path, sha256, manifest, setup, home)?)
    } else {
        Box::new(RustAbi::load(path, sha256, manifest, setup, home)?)
    })
}

/// What an instance of this runner is made from.
fn setup(config: &RunnerConfig) -> Setup {
    let params =
        if config.params.is_null() { Value::Object(serde_json::Map::new()) } else { config.params.clone() };
    Setup::new(params)
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
