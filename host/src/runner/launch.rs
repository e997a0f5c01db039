//! From a configured runner and its file to something that runs cycles: which isolation, which
//! ABI. The only place that chooses a backend; an isolation that is not available is refused,
//! never downgraded.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::manifest::Manifest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::c_abi::CAbi;
use super::home::Home;
use super::load_error::LoadError;
use super::manifest::PluginFile;
use super::plugin_store::PluginStore;
use super::rust_abi::RustAbi;
use super::search::SearchPath;
use super::trust::{Trust, TrustPolicy};
use super::worker::{WorkerFactory, WorkerSpec};
use super::{HostCalls, RunnerBackend, RunnerError, library};
use crate::sys::sandbox::{Fence, Grants, Level, Reached, libraries};

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
    /// As asked for; absent means a worker process, a confined one if the file is not trusted. An
    /// isolation that was asked for and is not there is refused, never downgraded.
    pub isolation: Option<Isolation>,
    /// How long a cycle may take.
    pub deadline: Option<Duration>,
    /// How long a cycle that was asked to end has for it, if something else is said than usual.
    pub stop_grace: Option<Duration>,
    /// Most bytes that can be written in each of its workers, if something else is said than usual.
    pub memory: Option<u64>,
    /// The runner's own section, an object or null.
    pub params: Value,
    /// Files of the root, or absolute, that it can have in a sandbox if its manifest asks for them.
    pub grants: Grants,
    /// What no grant reaches besides `.kairos`, of the root or absolute.
    pub kept: Vec<PathBuf>,
    /// What any runner or tool may change, likewise.
    pub changeable: Vec<PathBuf>,
    /// The weakest sandbox in which it starts.
    pub require: Level,
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
            stop_grace: None,
            memory: None,
            params: Value::Null,
            grants: Grants::default(),
            kept: Vec::new(),
            changeable: Vec::new(),
            require: Level::Partial,
        }
    }
}

/// How urgent a trial is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As anything else: somebody waits for it, and its times are those of the configuration.
    Usual,
    /// It yields to everything that serves. Lateness says nothing then.
    Background,
}

/// What a start of a runner would come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// Where it would run.
    pub isolation: Isolation,
    /// How far it would be confined.
    pub sandbox: Option<Reached>,
    /// It would serve all the same, but says itself that it cannot work.
    pub unwell: Option<LoadError>,
}

fn probe(backend: &dyn RunnerBackend) -> Result<(), LoadError> {
    backend.probe().map_err(|error| match error {
        RunnerError::Died(death) => LoadError::Crashed(death.to_string()),
        other => LoadError::ProbeFailed(other.to_string()),
    })
}

/// Trials that are remembered.
const TRIED_MAX: usize = 256;

/// Names a trial: the content, and what the instance was made from.
fn trial_of(config: &RunnerConfig, plugin: &PluginFile) -> String {
    format!("{} {} {:?} {:?}", plugin.sha256, config.params, config.grants, config.memory)
}

/// Finds plugins, keeps them, and starts backends on them. Shared; any thread.
pub struct Launcher {
    search: SearchPath,
    store: PluginStore,
    workers: Option<WorkerFactory>,
    /// For trials in the background; started with the first one.
    background: OnceLock<Option<WorkerFactory>>,
    /// What came through a trial in this process: a file with what its instance was made from.
    tried: Mutex<BTreeSet<String>>,
    trust: Option<TrustPolicy>,
}

impl Launcher {
    /// A launcher without worker processes: everything runs in this one, and nothing can be tried
    /// elsewhere before it is mapped. The program that embeds the host answers for its plugins.
    #[must_use]
    pub fn in_process(search: SearchPath, store: PluginStore) -> Self {
        Self::new(search, store, None)
    }

    /// A launcher that runs plugins in worker processes unless it is told otherwise, and maps none
    /// into this process that did not survive in a worker before.
    #[must_use]
    pub fn with_workers(search: SearchPath, store: PluginStore, workers: WorkerFactory) -> Self {
        Self::new(search, store, Some(workers))
    }

    fn new(search: SearchPath, store: PluginStore, workers: Option<WorkerFactory>) -> Self {
        let (background, tried) = (OnceLock::new(), Mutex::default());
        Self { search, store, workers, background, tried, trust: None }
    }

    /// Tells trusted files from others. Without it, every file counts as chosen by this program.
    #[must_use]
    pub fn trusting(self, policy: TrustPolicy) -> Self {
        Self { trust: Some(policy), ..self }
    }

    /// What speaks for a file, as of now.
    #[must_use]
    pub fn trust(&self, plugin: &PluginFile) -> Trust {
        self.trust.as_ref().map_or(Trust::Embedder, |policy| policy.judge(plugin))
    }

    /// Where a runner of this configuration runs on this file: as the operator said, else in a
    /// worker, and in a confined one if nothing speaks for the file.
    ///
    /// # Errors
    /// `untrusted`, or a code that says what is wrong with its signature: the file may not run where
    /// the operator said, or nowhere. `isolation_unavailable`.
    pub fn isolation_for(&self, config: &RunnerConfig, plugin: &PluginFile) -> Result<Isolation, LoadError> {
        let named = |error| match error {
            // A candidate of a swap, or what was swapped in, is another file than the configured one.
            LoadError::Untrusted { isolation, why, .. } => {
                let file = plugin.origin.clone().unwrap_or_else(|| self.store.path_of(&plugin.sha256));
                LoadError::Untrusted { plugin: file.display().to_string(), isolation, why }
            }
            error => error,
        };
        let isolation = decide(config, &self.trust(plugin), self.workers.is_some()).map_err(named)?;
        if isolation == Isolation::InProcess || self.workers.is_some() {
            return Ok(isolation);
        }
        Err(LoadError::IsolationUnavailable(isolation))
    }

    /// The file that a `plugin` key means, read and checked as far as that goes without running it.
    ///
    /// # Errors
    /// What is there instead of a plugin.
    pub fn find(&self, plugin: &str) -> Result<PluginFile, LoadError> {
        PluginFile::open(&self.search.find(plugin)?)
    }

    /// Keeps a file in the store, so that it can be started again by its sha256.
    ///
    /// # Errors
    /// `io`.
    pub fn keep(&self, plugin: &PluginFile) -> Result<(), LoadError> {
        self.store.keep(plugin).map(drop)
    }

    /// Where kept plugins are.
    #[must_use]
    pub fn store(&self) -> &PluginStore {
        &self.store
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
        pace: Pace,
    ) -> Result<Arc<dyn RunnerBackend>, LoadError> {
        let (path, isolation) = self.admit(config, plugin, pace)?;
        if isolation != Isolation::InProcess {
            return self.launch_worker(config, plugin, isolation, pace);
        }
        if self.workers.is_some() && !self.was_tried(config, plugin) {
            self.try_out(config, plugin)?;
        }
        let home = Arc::new(Home::new(&config.name));
        map(&path, &plugin.sha256, &plugin.manifest, &setup(config), home).map(Arc::from)
    }

    /// All that [`Self::launch`] does, but for mapping the file into this process: what became of it
    /// is gone again when this returns.
    ///
    /// # Errors
    /// As for [`Self::launch`].
    pub fn rehearse(&self, config: &RunnerConfig, plugin: &PluginFile) -> Result<Rehearsed, LoadError> {
        let (_, isolation) = self.admit(config, plugin, Pace::Usual)?;
        let (worker, unwell) = match isolation {
            Isolation::InProcess if self.workers.is_none() => (None, None),
            Isolation::InProcess => (Some(self.tried(config, plugin, Pace::Usual)?), None),
            _ => {
                let worker = self.launch_worker(config, plugin, isolation, Pace::Usual)?;
                let unwell = probe(&*worker).err();
                (Some(worker), unwell)
            }
        };
        let sandbox = worker.filter(|_| isolation == Isolation::Sandbox).and_then(|worker| worker.sandbox());
        Ok(Rehearsed { isolation, sandbox, unwell })
    }

    /// What comes before a backend is started: the file may run here, and is kept.
    fn admit(
        &self,
        config: &RunnerConfig,
        plugin: &PluginFile,
        pace: Pace,
    ) -> Result<(PathBuf, Isolation), LoadError> {
        library::check_version(&plugin.manifest)?;
        let isolation = self.isolation_for(config, plugin)?;
        if isolation == Isolation::InProcess {
            // Before a copy is kept: what cannot be mapped here need not be in the store.
            library::check_manifest(&plugin.manifest)?;
        }
        let path = self.store.keep_at(pace, plugin)?;
        if let Some(policy) = &self.trust {
            self.store.vouch(&plugin.sha256, &policy.credentials(plugin))?;
        }
        Ok((path, isolation))
    }

    /// Where a file is tried: as far apart from everything as this build can.
    #[must_use]
    pub fn trial_isolation(&self) -> Isolation {
        Isolation::Sandbox
    }

    /// Starts a backend for a trial, apart from everything that serves and whatever the file's
    /// trust: a worker may die of what would otherwise be the daemon's death.
    ///
    /// # Errors
    /// Why it cannot be started; `isolation_unavailable` without workers.
    pub fn launch_for_trial(
        &self,
        config: &RunnerConfig,
        plugin: &PluginFile,
        pace: Pace,
    ) -> Result<Arc<dyn RunnerBackend>, LoadError> {
        library::check_version(&plugin.manifest)?;
        let isolation = self.trial_isolation();
        let unavailable = LoadError::IsolationUnavailable(isolation);
        let workers = self.workers.as_ref().ok_or(unavailable)?;
        let workers = match pace {
            Pace::Usual => workers,
            Pace::Background => self.background(workers),
        };
        self.store.keep_at(pace, plugin)?;
        let mut config = config.clone();
        let spec = if self.trust(plugin).holds() {
            // It may run unconfined afterwards: a machine without a sandbox does not stop it, nor
            // does a library of the system that it needs.
            config.require = Level::None;
            self.spec(&config, plugin, isolation, &libraries())?
        } else {
            self.spec(&config, plugin, isolation, &[])?
        };
        Ok(Arc::new(workers.start(spec, Pace::Usual)?))
    }

    /// Maps, makes and probes it in a worker. Constructors run while a file is
    /// mapped, before anything of it can be checked, so this comes before the daemon maps one.
    /// Gives how far the worker was confined.
    ///
    /// # Errors
    /// As for [`Self::launch_for_trial`]; `crashed`, `probe_failed`.
    pub fn try_out(&self, config: &RunnerConfig, plugin: &PluginFile) -> Result<Option<Reached>, LoadError> {
        Ok(self.tried(config, plugin, Pace::Usual)?.sandbox())
    }

    /// As [`Self::try_out`]; gives the instance that was tried, for further trials.
    ///
    /// # Errors
    /// See there.
    pub fn tried(
        &self,
        config: &RunnerConfig,
        plugin: &PluginFile,
        pace: Pace,
    ) -> Result<Arc<dyn RunnerBackend>, LoadError> {
        let worker = self.launch_for_trial(config, plugin, pace)?;
        probe(&*worker)?;
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if tried.len() >= TRIED_MAX {
            // What is forgotten is tried once more.
            tried.clear();
        }
        tried.insert(trial_of(config, plugin));
        Ok(worker)
    }

    /// True when this very content, made from the same, has come through a trial.
    fn was_tried(&self, config: &RunnerConfig, plugin: &PluginFile) -> bool {
        let tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        tried.contains(&trial_of(config, plugin))
    }

    fn background<'a>(&'a self, workers: &'a WorkerFactory) -> &'a WorkerFactory {
        let started = self.background.get_or_init(|| match workers.in_background() {
            Ok(background) => Some(background),
            Err(error) => {
                tracing::warn!(%error, "runner_trials_not_in_the_background");
                None
            }
        });
        started.as_ref().unwrap_or(workers)
    }

    fn launch_worker(
        &self,
        config: &RunnerConfig,
        plugin: &PluginFile,
        isolation: Isolation,
        pace: Pace,
    ) -> Result<Arc<dyn RunnerBackend>, LoadError> {
        let workers = self.workers.as_ref().ok_or(LoadError::IsolationUnavailable(isolation))?;
        Ok(Arc::new(workers.start(self.spec(config, plugin, isolation, &[])?, pace)?))
    }

    /// What a worker of that isolation runs; `libraries` are files it may read besides its grants.
    fn spec(
        &self,
        config: &RunnerConfig,
        plugin: &PluginFile,
        isolation: Isolation,
        libraries: &[PathBuf],
    ) -> Result<WorkerSpec, LoadError> {
        let path = self.store.path_of(&plugin.sha256);
        if isolation != Isolation::Sandbox {
            let spec = WorkerSpec::process(&config.name, path, plugin, &config.params);
            return Ok(spec.with_memory(config.memory));
        }
        let spec = WorkerSpec::sandbox(&config.name, path, plugin, &config.params);
        let mut grants = self.grants(config, &plugin.manifest)?;
        grants.read.extend_from_slice(libraries);
        Ok(spec.granted(&grants, config.require).with_memory(config.memory))
    }

    /// What the manifest asks for, as far as it is granted.
    fn grants(&self, config: &RunnerConfig, manifest: &Manifest) -> Result<Grants, LoadError> {
        let asked = Grants::asked(&manifest.files);
        let fence = Fence {
            root: self.search.root().to_owned(),
            kept: config.kept.clone(),
            // Its own grants are among those, also for whoever embeds the host and says nothing of them.
            changeable: [config.changeable.as_slice(), &config.grants.write].concat(),
        };
        let given = config.grants.given(&asked, &fence);
        given.map_err(|error| LoadError::BadGrant(error.to_string()))
    }
}

/// The rule of isolation, for a file of that trust.
///
/// # Errors
/// `untrusted`.
pub fn decide(config: &RunnerConfig, trust: &Trust, workers: bool) -> Result<Isolation, LoadError> {
    if let Trust::Untrusted { why } = trust
        && why.is_tampering()
    {
        let isolation = config.isolation.unwrap_or(Isolation::Sandbox);
        return Err(LoadError::Untrusted { plugin: config.plugin.clone(), isolation, why: why.clone() });
    }
    match (config.isolation, trust) {
        (Some(Isolation::Sandbox), _) | (None, Trust::Untrusted { .. }) => Ok(Isolation::Sandbox),
        (Some(asked), Trust::Untrusted { why }) => {
            Err(LoadError::Untrusted { plugin: config.plugin.clone(), isolation: asked, why: why.clone() })
        }
        (Some(asked), _) => Ok(asked),
        (None, _) => Ok(if workers { Isolation::Process } else { Isolation::InProcess }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::trust::Doubt;

    #[test]
    fn isolation_follows_the_operator_as_far_as_the_file_is_trusted() {
        use Isolation::{InProcess, Process, Sandbox};
        let untrusted = Trust::Untrusted { why: Doubt::Unknown };
        let outcome = |isolation, trust: &Trust, workers| {
            let config = RunnerConfig { isolation, ..RunnerConfig::new("r", "./r.so") };
            decide(&config, trust, workers).map_err(|error| error.code())
        };
        for (asked, trusted, not) in [
            (None, Ok(Process), Ok(Sandbox)),
            (Some(InProcess), Ok(InProcess), Err("untrusted")),
            (Some(Process), Ok(Process), Err("untrusted")),
            (Some(Sandbox), Ok(Sandbox), Ok(Sandbox)),
        ] {
            assert_eq!(outcome(asked, &Trust::Listed, true), trusted, "{asked:?}");
            assert_eq!(outcome(asked, &untrusted, true), not, "{asked:?}");
            assert_eq!(outcome(asked, &untrusted, false), not, "{asked:?} without workers");
        }
        assert_eq!(outcome(None, &Trust::Embedder, false), Ok(InProcess));
        let config = RunnerConfig { isolation: Some(Process), ..RunnerConfig::new("r", "./r.so") };
        let error = decide(&config, &untrusted, true).map_err(|error| error.told());
        assert!(error.is_err_and(|text| text.contains("kairos plugin trust")));
        // Somebody changed it: not even confined.
        let changed = Trust::Untrusted { why: Doubt::Changed { of: Some("team".to_owned()) } };
        for isolation in [None, Some(InProcess), Some(Process), Some(Sandbox)] {
            assert_eq!(outcome(isolation, &changed, true), Err("signature_mismatch"), "{isolation:?}");
        }
        let other = Trust::Untrusted { why: Doubt::Changed { of: None } };
        assert_eq!(outcome(None, &other, true), Ok(Sandbox));
    }
}
