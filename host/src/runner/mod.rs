//! Runners: the foreign code that runs a cycle, behind one private trait.
//!
//! A backend is always called on a named thread of its own or forwards to a process of its
//! own, never on the caller's runtime; the services that answer it live behind [`HostCalls`].
//! No store transaction or lock is held across a call.

mod builtin;
mod c_abi;
mod check;
mod death;
#[doc(hidden)]
pub mod fuzz;
mod generation;
mod handover;
mod home;
mod launch;
pub mod library;
mod load_error;
pub mod manifest;
pub mod plugin_store;
mod pool;
mod remedies;
mod rust_abi;
mod search;
mod served;
mod slot;
mod swap;
pub mod trust;
pub mod worker;

use std::any::Any;
use std::sync::Arc;

use kairos_plugin_api::manifest::Manifest;
use kairos_plugin_api::{CallError, Mandate, Report, State};

use crate::domain::handover::HandOver;
use crate::sys::sandbox::Reached;

/// What a backend needs of the host while one cycle runs, and the names of its calls. They are
/// part of the contract, so the plugin-api owns them; the daemon implements the trait.
pub use kairos_plugin_api::context::{HostCalls, method};

pub use builtin::Builtin;
pub use c_abi::CAbi;
pub use check::{CheckError, CheckReport, check};
pub use death::Death;
pub use generation::Generation;
pub use launch::{Isolation, Launcher, Pace, Rehearsed, RunnerConfig, map};
pub use load_error::LoadError;
pub use manifest::PluginFile;
pub use plugin_store::PluginStore;
pub use rust_abi::RustAbi;
pub use search::{SearchPath, plain};
pub use served::{Chosen, Instead, Served};
pub use slot::{NotTaken, RunnerStatus, RunnerStatusError, Runners};
pub use swap::{FlipFigures, Noticed, Pin, Sources};
pub use worker::{Worker, WorkerFactory, WorkerSpec};

/// Who a loaded runner is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RunnerIdentity {
    /// Name from the plugin's manifest.
    pub name: String,
    /// Version from the manifest.
    pub version: String,
    /// `rust`, `c`, `builtin`.
    pub abi: String,
    /// sha256 of the file in hex; of the name for a builtin. Names the generation.
    pub generation: String,
    /// True when the runner goes through the five phases and says so by `phase`.
    pub phases: bool,
}

impl RunnerIdentity {
    /// Of a plugin file.
    pub(crate) fn of(manifest: &Manifest, sha256: &str) -> Self {
        Self {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            abi: manifest.abi.clone(),
            generation: sha256.to_owned(),
            phases: manifest.phases,
        }
    }
}

/// Why a cycle gave no report.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunnerError {
    /// The runner answered with an error value; `stopped`, `paused` and the like end the attempt.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It panicked; the instance is retired.
    #[error("runner panicked: {0}")]
    Panic(String),
    /// Its report cannot be read.
    #[error("bad report: {0}")]
    BadReport(String),
    /// No thread or process can be had for it; nothing of it ran.
    #[error("no place to run: {0}")]
    Unavailable(String),
    /// The thread or process that ran it is gone.
    #[error("runner died: {0}")]
    Died(Death),
}

/// One loaded runner. Implementations: a Rust plugin, a C plugin, a worker process, a builtin.
pub trait RunnerBackend: Send + Sync + 'static {
    /// Who it is.
    fn identity(&self) -> &RunnerIdentity;
    /// How far it is kept apart from the daemon.
    fn isolation(&self) -> Isolation {
        Isolation::InProcess
    }
    /// How far the sandbox got, for one that is confined.
    fn sandbox(&self) -> Option<Reached> {
        None
    }
    /// Runs one cycle to its end; blocks.
    fn run_cycle(&self, mandate: &Mandate, host: Arc<dyn HostCalls>) -> Result<Report, RunnerError>;
    /// The same for who has the mandate as JSON and passes the report on as it is, unread: in a
    /// worker both are read once, by the runner and by the daemon.
    fn run_cycle_json(&self, mandate: &[u8], host: Arc<dyn HostCalls>) -> Result<Vec<u8>, RunnerError> {
        let mandate: Mandate = serde_json::from_slice(mandate)
            .map_err(|error| RunnerError::Call(CallError::invalid(format!("mandate: {error}"))))?;
        encoded(&self.run_cycle(&mandate, host)?)
    }
    /// Asks running cycles to end; the answer is theirs to give.
    fn cancel(&self) {}
    /// Ends the cycle of this mandate for good, whatever it is doing; its `run_cycle` then returns
    /// [`RunnerError::Died`] at once. False when that cannot be done: a thread cannot be ended.
    fn kill(&self, mandate: &str) -> bool {
        let _ = mandate;
        false
    }
    /// Proves that the runner answers at all.
    fn probe(&self) -> Result<(), RunnerError> {
        Ok(())
    }
    /// The state for a successor, where it has any. Called between cycles.
    fn export_state(&self) -> Result<Option<State>, RunnerError> {
        Ok(None)
    }
    /// Takes a predecessor's state over.
    fn import_state(&self, state: State) -> Result<(), RunnerError> {
        let _ = state;
        Ok(())
    }
    /// Its instances, where cycles that run at once have one each. Such a one is not asked for a
    /// state by itself.
    fn instances(&self) -> Option<&dyn Instances> {
        None
    }
    /// Says that no new cycle will come; running ones finish.
    fn begin_drain(&self) {}
}

/// A backend with several instances. See [`Generation`] for what each call means.
pub trait Instances {
    /// How many have something to hand over.
    fn count(&self) -> usize;
    /// Makes that many beforehand.
    fn warm(&self, count: usize) -> Result<(), RunnerError>;
    /// The states of those that run no cycle now, and those that wait for an instance.
    fn hand_over(&self) -> Result<HandOver, RunnerError>;
    /// Gives each state to one instance, now or when there is one that may have it.
    fn take_over(&self, states: HandOver) -> Result<(), RunnerError>;
    /// Ends whatever they are asked outside of cycles, now and from now on: they will never serve.
    fn give_up(&self);
}

/// What a runner gave, as JSON.
fn encoded<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, RunnerError> {
    serde_json::to_vec(value).map_err(|error| RunnerError::BadReport(error.to_string()))
}

/// The report that a runner answered.
fn report_of(answer: &[u8]) -> Result<Report, RunnerError> {
    if answer.is_empty() {
        return Err(RunnerError::BadReport(
            "it answered nothing; a report is JSON with a `status`".to_owned(),
        ));
    }
    serde_json::from_slice(answer)
        .map_err(|error| RunnerError::BadReport(format!("its answer is no report: {error}")))
}

/// What a panic said.
fn panic_text(payload: &(dyn Any + Send)) -> String {
    match payload.downcast_ref::<&str>() {
        Some(text) => (*text).to_owned(),
        None => payload.downcast_ref::<String>().cloned().unwrap_or_else(|| "no message".to_owned()),
    }
}
