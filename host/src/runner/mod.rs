//! Runners: the foreign code that runs a cycle, behind one private trait.
//!
//! A backend is always called on a named thread of its own or forwards to a process of its
//! own, never on the caller's runtime; the services that answer it live behind [`HostCalls`].
//! No store transaction or lock is held across a call.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use kairos_plugin_api::{CallError, Mandate, Report};

/// What a backend needs of the host while one cycle runs. Called from runner threads, may block.
pub trait HostCalls: Send + Sync + 'static {
    /// One call of the context: `method` is one of [`method`], request and answer are JSON.
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError>;
    /// True when the cycle is asked to end soon.
    fn should_stop(&self) -> bool;
    /// When the cycle's time is over.
    fn deadline(&self) -> Option<DateTime<Utc>>;
    /// A log record of the runner; rate limited and tagged by the host.
    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &serde_json::Value);
}

/// Names of the context's calls, as they cross every boundary.
pub mod method {
    /// `{"name": text}` -> `{}`: a phase begins.
    pub const PHASE: &str = "phase";
    /// `LlmRequest` -> `LlmReply`.
    pub const LLM: &str = "llm";
    /// `ToolCall` -> `ToolReply`.
    pub const TOOL: &str = "tool";
    /// Any object -> any: a proposal for a person.
    pub const PROPOSE: &str = "propose";
    /// `Usage` -> `{}`: usage that the host did not meter.
    pub const USAGE: &str = "usage";
    /// `{}` -> `{"now": RFC 3339}`: recorded, so a re-run sees the same.
    pub const NOW: &str = "now";
    /// `{"bytes": n}` (at most 1024) -> `{"hex": text}`: recorded likewise.
    pub const RANDOM: &str = "random";
    /// `{"key": text}` -> `{"value": any or null}`: the state as of the cycle's start, own puts included.
    pub const STATE_GET: &str = "state_get";
    /// `{"key": text, "value": any}` -> `{}`: lands with the finish of the cycle.
    pub const STATE_PUT: &str = "state_put";
    /// `{"message": text, "fraction": number or null}` -> `{}`.
    pub const PROGRESS: &str = "progress";
}

/// Who a loaded runner is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
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
    /// The thread or process that ran it is gone.
    #[error("runner died: {0}")]
    Died(String),
}

/// One loaded runner. Implementations: a Rust plugin, a C plugin, a worker process, a builtin.
pub trait RunnerBackend: Send + Sync + 'static {
    /// Who it is.
    fn identity(&self) -> &RunnerIdentity;
    /// Runs one cycle to its end; blocks.
    fn run_cycle(&self, mandate: &Mandate, host: Arc<dyn HostCalls>) -> Result<Report, RunnerError>;
    /// Asks running cycles to end; the answer is theirs to give.
    fn cancel(&self) {}
    /// Proves that the runner answers at all.
    fn probe(&self) -> Result<(), RunnerError> {
        Ok(())
    }
}
