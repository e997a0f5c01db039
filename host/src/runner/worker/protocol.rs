//! The payloads of the frames that are more than bytes of the plugin API.

use std::path::PathBuf;
use std::time::Duration;

use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::manifest::Manifest;
use kairos_plugin_api::{CallError, code};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::runner::RunnerError;
use crate::sys::sandbox::Confinement;

/// What a worker is to become.
#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    /// The kept file. It is named by its hash and nobody may write it; who can change it all the
    /// same is the daemon's own user, so it is not hashed once more here.
    pub path: PathBuf,
    /// Its hash, which names the generation.
    pub sha256: String,
    /// What the file says of itself.
    pub manifest: Manifest,
    /// What the instance is made from.
    pub setup: Setup,
    /// What it may do; none is not confined.
    pub confinement: Option<Confinement>,
    /// Most bytes that a worker which is not confined may write to.
    pub memory_bytes: u64,
    /// How long the daemon knows that spinning is of no use.
    pub crowded: Duration,
    /// True when nobody waits for it: it is mapped and made where no one else wants to run.
    pub at_leisure: bool,
}

/// Why a plugin could not be loaded.
#[derive(Debug, Serialize, Deserialize)]
pub struct Unfit {
    /// The stable word.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A line for the log.
#[derive(Debug, Serialize, Deserialize)]
pub struct LogLine {
    /// 1 for error to 5 for trace.
    pub level: u8,
    /// Where it comes from.
    pub target: String,
    /// The text.
    pub message: String,
    /// Anything structured.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub fields: Value,
}

/// 1 for error to 5 for trace.
#[must_use]
pub fn level_number(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 1,
        tracing::Level::WARN => 2,
        tracing::Level::INFO => 3,
        tracing::Level::DEBUG => 4,
        tracing::Level::TRACE => 5,
    }
}

/// The level of that number; what is none counts as the least.
#[must_use]
pub fn level_of(number: u8) -> tracing::Level {
    match number {
        1 => tracing::Level::ERROR,
        2 => tracing::Level::WARN,
        3 => tracing::Level::INFO,
        4 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    }
}

/// A runner's error as it crosses: by the code that the ABI knows it under.
#[must_use]
pub fn error_to_wire(error: RunnerError) -> CallError {
    match error {
        RunnerError::Call(error) => error,
        RunnerError::Panic(message) => CallError::new(code::PANIC, message),
        RunnerError::BadReport(message) => CallError::new(code::BAD_REPORT, message),
        RunnerError::Unavailable(why) => CallError::failed(why),
        RunnerError::Died(death) => CallError::failed(death.to_string()),
    }
}

/// The way back.
#[must_use]
pub fn error_from_wire(payload: &[u8]) -> RunnerError {
    match serde_json::from_slice::<CallError>(payload) {
        Ok(error) => match error.code.as_str() {
            code::PANIC => RunnerError::Panic(error.message),
            code::BAD_REPORT => RunnerError::BadReport(error.message),
            _ => RunnerError::Call(error),
        },
        Err(error) => RunnerError::Call(CallError::failed(format!("the worker's error: {error}"))),
    }
}

impl LogLine {
    /// Writes it to that host's log.
    pub fn say(&self, host: &dyn crate::runner::HostCalls) {
        host.log(level_of(self.level), &self.target, &self.message, &self.fields);
    }
}
