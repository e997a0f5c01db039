//! Makes workers: which program, which limits, and one life for all of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::manifest::Manifest;
use serde_json::Value;

use super::channel::Trouble;
use super::client::Worker;
use super::frame::{Kind, encode};
use super::process::Process;
use super::protocol::{Load, LogLine, Unfit};
use super::spin::Crowd;
use super::supervisor::Shared;
use crate::runner::home::Home;
use crate::runner::load_error::LoadError;
use crate::runner::manifest::PluginFile;
use crate::runner::{HostCalls, Isolation, Pace, RunnerIdentity};
use crate::sys::clock::{Clock, SystemClock};
use crate::sys::sandbox::{Confinement, Grants, Level, Reached};

/// Most bytes that a worker which is not confined may write to: room for a large working set, and far from what would
/// take a small machine's memory at once.
pub const MEMORY_BYTES: u64 = 4 << 30;

/// Time for a plugin to be mapped and made. A constructor that takes longer hangs.
const LOAD_TIME: Duration = Duration::from_secs(20);

/// What a worker is to run.
#[derive(Clone)]
pub struct WorkerSpec {
    /// Key of the runner in the configuration.
    pub runner: String,
    /// The kept file.
    pub path: PathBuf,
    /// Its hash.
    pub sha256: String,
    /// What it says about itself.
    pub manifest: Manifest,
    /// What instances are made from.
    pub setup: Setup,
    /// What it may do beyond computing and asking the host: with it the worker confines itself
    /// before it maps the file (isolation `sandbox`), without it it does not (`process`).
    pub confinement: Option<Confinement>,
    /// Most bytes that can be written, [`MEMORY_BYTES`] unless configured. A confined worker has the
    /// limits of its confinement.
    pub memory_bytes: u64,
    /// Takes what the runner logs outside of cycles.
    pub home: Arc<dyn HostCalls>,
}

impl WorkerSpec {
    /// A runner of that name and these parameters on a plugin that is kept at `path`, not confined.
    #[must_use]
    pub fn process(runner: &str, path: PathBuf, plugin: &PluginFile, params: &Value) -> Self {
        let params = if params.is_null() { Value::Object(serde_json::Map::new()) } else { params.clone() };
        Self {
            runner: runner.to_owned(),
            path,
            sha256: plugin.sha256.clone(),
            manifest: plugin.manifest.clone(),
            setup: Setup::new(params),
            confinement: None,
            memory_bytes: MEMORY_BYTES,
            home: Arc::new(Home::new(runner)),
        }
    }

    /// As [`WorkerSpec::process`], confined: it may read its own file and nothing else.
    #[must_use]
    pub fn sandbox(runner: &str, path: PathBuf, plugin: &PluginFile, params: &Value) -> Self {
        // Confined runners are granted real paths only; one that is not there is told later.
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        let confinement = Some(Confinement::runner(Some(&real)));
        Self { confinement, ..Self::process(runner, path, plugin, params) }
    }

    /// The same with these files, given as absolute paths without links, in no weaker a sandbox
    /// than that. Only for one that is confined.
    #[must_use]
    pub fn granted(mut self, grants: &Grants, require: Level) -> Self {
        if let Some(wanted) = &mut self.confinement {
            wanted.read.extend_from_slice(&grants.read);
            wanted.write.extend_from_slice(&grants.write);
            wanted.require = require;
        }
        self
    }

    /// With another limit of the memory that can be written, in either.
    #[must_use]
    pub fn with_memory(mut self, bytes: Option<u64>) -> Self {
        let Some(bytes) = bytes else { return self };
        match &mut self.confinement {
            Some(wanted) => wanted.memory_bytes = Some(bytes),
            None => self.memory_bytes = bytes,
        }
        self
    }

    /// Which of both.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        if self.confinement.is_some() { Isolation::Sandbox } else { Isolation::Process }
    }
}

/// A process that has loaded its plugin.
pub(super) struct Loaded {
    /// By the manifest that the daemon has read, not by what a plugin could say.
    pub(super) identity: RunnerIdentity,
    /// How far it was confined before it did, where that was asked for.
    pub(super) reached: Option<Reached>,
}

/// Starts workers. Clones are the same factory; with the last clone, and the last worker, the
/// blank ones end too.
#[derive(Clone)]
pub struct WorkerFactory(Arc<Inner>, Duration);

struct Inner {
    shared: Arc<Shared>,
    clock: SystemClock,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl WorkerFactory {
    /// A factory for workers that are `program worker`; the program must be this very build.
    /// A daemon gives `/proc/self/exe`, which stays the image it runs even when the file on disk
    /// is replaced by another version.
    ///
    /// # Errors
    /// The system's, when its thread cannot be started.
    pub fn new(program: impl Into<PathBuf>) -> std::io::Result<Self> {
        Self::started(program.into(), LOAD_TIME, Arc::default(), false)
    }

    /// A factory of the same program for trials: its workers run where nobody else wants to, so that
    /// whoever is served does not notice. On a machine without an idle moment they hardly move: that
    /// one is late says nothing of its plugin, and is found out in half the time.
    ///
    /// # Errors
    /// The system's, when its thread cannot be started.
    pub fn in_background(&self) -> std::io::Result<Self> {
        let shared = &self.0.shared;
        Self::started(shared.program.clone(), self.1 / 2, Arc::clone(&shared.crowd), true)
    }

    fn started(
        program: PathBuf,
        load_time: Duration,
        crowd: Arc<Crowd>,
        trials: bool,
    ) -> std::io::Result<Self> {
        let clock = SystemClock::default();
        let shared = Shared::start(program, clock, crowd, trials)?;
        Ok(Self(Arc::new(Inner { shared, clock }), load_time))
    }

    /// With another time for a plugin to be mapped and made.
    #[must_use]
    pub fn with_load_time(self, time: Duration) -> Self {
        Self(self.0, time)
    }

    /// With another time after which a worker that nobody needs ends; it is twice that at most.
    #[must_use]
    pub fn with_idle_time(self, time: Duration) -> Self {
        self.0.shared.set_idle_time(time);
        self
    }

    /// A worker that runs this plugin: one process is started and has loaded it when this returns.
    ///
    /// # Errors
    /// Why it cannot serve; those of the loader under their own codes.
    pub fn start(&self, spec: WorkerSpec, pace: Pace) -> Result<Worker, LoadError> {
        let (process, loaded) = self.loaded(&spec, pace)?;
        Ok(Worker::new(self.clone(), spec, loaded, process))
    }

    /// A new process that has loaded it. In the background it may find no idle moment, and is then
    /// tried again as urgently as anything else.
    pub(super) fn loaded(&self, spec: &WorkerSpec, pace: Pace) -> Result<(Process, Loaded), LoadError> {
        let mut process = self.blank()?;
        match self.load(&mut process, spec, pace) {
            Err(LoadError::LoadTimeout(_)) if pace == Pace::Background => self.loaded(spec, Pace::Usual),
            loaded => loaded.map(|loaded| (process, loaded)),
        }
    }

    /// A process that has loaded nothing yet.
    pub(super) fn blank(&self) -> Result<Process, LoadError> {
        self.0.shared.take().map_err(LoadError::NoWorker)
    }

    /// What starts the workers, for those that keep one ready.
    pub(super) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Lets a process end by itself.
    pub(super) fn retire(&self, process: Process) {
        self.0.shared.retire(process);
    }

    /// The time `left` from now, for waits on a worker.
    pub(super) fn until(&self, left: Duration) -> Duration {
        self.0.clock.monotonic() + left
    }

    /// Makes a blank process this runner. On an error it is of no use any more.
    pub(super) fn load(
        &self,
        process: &mut Process,
        spec: &WorkerSpec,
        pace: Pace,
    ) -> Result<Loaded, LoadError> {
        // Only the first name counts, and a blank has none.
        let _ = process.label.set(spec.runner.clone());
        let load = Load {
            path: spec.path.clone(),
            sha256: spec.sha256.clone(),
            manifest: spec.manifest.clone(),
            setup: spec.setup.clone(),
            confinement: spec.confinement.clone(),
            memory_bytes: spec.memory_bytes,
            crowded: process.channel.crowded(),
            at_leisure: pace == Pace::Background,
        };
        let unfit = |what: &dyn std::fmt::Display| LoadError::NoWorker(what.to_string());
        let payload = serde_json::to_vec(&load).map_err(|error| unfit(&error))?;
        let frame = encode(Kind::Load, 0, &[&payload]).map_err(|error| unfit(&error))?;
        let limit = if pace == Pace::Background { self.1 / 2 } else { self.1 };
        let until = Some(self.until(limit));
        let handle = Arc::clone(&process.handle);
        if spec.confinement.is_none() {
            handle.is_guarded();
        }
        process
            .channel
            .send(&frame, &*handle, until)
            .map_err(|trouble| late_or_died(process, &trouble, limit))?;
        Self::settle(process, spec, until, limit)
    }

    /// What comes of a load that was sent: until then the worker says how far it is confined, and logs.
    fn settle(
        process: &mut Process,
        spec: &WorkerSpec,
        until: Option<Duration>,
        limit: Duration,
    ) -> Result<Loaded, LoadError> {
        let handle = Arc::clone(&process.handle);
        let mut reached = None;
        loop {
            let frame = match process.channel.receive(&*handle, until) {
                Ok(frame) => frame,
                Err(trouble) => return Err(late_or_died(process, &trouble, limit)),
            };
            let unreadable =
                |error: serde_json::Error| LoadError::Crashed(format!("its worker said {error}"));
            match (frame.kind, &spec.confinement) {
                // The first word of a confined worker, said before it maps the plugin. Whatever is
                // said of its sandbox afterwards may be the plugin's own word.
                (Kind::Confined, Some(wanted)) if reached.is_none() => {
                    let said: Reached = serde_json::from_slice(&frame.payload).map_err(unreadable)?;
                    // Summed up here, by the rule of this side.
                    let said = Reached::of(said.layers);
                    if said.level < wanted.require {
                        return Err(LoadError::SandboxTooWeak {
                            reached: Arc::new(said),
                            wanted: wanted.require,
                        });
                    }
                    reached = Some(said);
                }
                (Kind::Ready, wanted) if wanted.is_some() == reached.is_some() => {
                    return Ok(Loaded {
                        identity: RunnerIdentity::of(&spec.manifest, &spec.sha256),
                        reached,
                    });
                }
                (Kind::Unfit, _) => {
                    let unfit: Unfit = serde_json::from_slice(&frame.payload).map_err(unreadable)?;
                    return Err(LoadError::from_worker(&unfit.code, unfit.message));
                }
                (Kind::Log, wanted) if wanted.is_some() == reached.is_some() => {
                    if let Ok(line) = serde_json::from_slice::<LogLine>(&frame.payload) {
                        line.say(&*spec.home);
                    }
                }
                (other, _) => {
                    let error = super::frame::FrameError::OutOfPlace(other);
                    return Err(late_or_died(process, &Trouble::Broken(error), limit));
                }
            }
        }
    }
}

/// A process that answers no more is buried.
fn late_or_died(process: &Process, trouble: &Trouble, limit: Duration) -> LoadError {
    match trouble {
        Trouble::Late => LoadError::LoadTimeout(limit),
        _ => LoadError::Crashed(process.bury(trouble, None).to_string()),
    }
}
