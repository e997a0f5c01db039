//! The answers a host call can give other than a result.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Codes are open-ended words: a newer host may answer with one that is not listed here,
/// and a runner then treats it like [`code::FAILED`].
pub mod code {
    /// The cycle is asked to end: the daemon stops, or a person stopped the mandate.
    pub const STOPPED: &str = "stopped";
    /// The day's limit does not allow the call.
    pub const BUDGET_EXHAUSTED: &str = "budget_exhausted";
    /// Policy forbids the call. Only an answer: the cycle may do something else.
    pub const DENIED: &str = "denied";
    /// The mandate is parked; the kit unwinds the author's code and reports `paused`.
    pub const PAUSED: &str = "paused";
    /// On a re-run, this request differs from the recorded one at the same step.
    pub const DIVERGED: &str = "diverged";
    /// Another effect of this cycle is still under way.
    pub const BUSY: &str = "busy";
    /// The request is malformed or names something that does not exist.
    pub const INVALID: &str = "invalid";
    /// This host does not serve the call, whatever is asked; a newer one may.
    pub const UNSUPPORTED: &str = "unsupported";
    /// The call was made and did not work.
    pub const FAILED: &str = "failed";
    /// The deadline of the cycle has passed.
    pub const DEADLINE: &str = "deadline";
    /// The runner panicked.
    pub const PANIC: &str = "panic";
    /// The instance panicked earlier and did not begin this call; a fresh one can.
    pub const RETIRED: &str = "retired";
    /// The process that ran the cycle is gone. For whoever judges a cycle, never an answer to a runner.
    pub const DIED: &str = "died";
    /// The runner's report cannot be read.
    pub const BAD_REPORT: &str = "bad_report";
}

/// Why a call into the host, or into a runner, gave no result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct CallError {
    /// One of [`code`], or a word of a newer version.
    pub code: String,
    /// For people.
    pub message: String,
    /// Anything structured that helps.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

impl CallError {
    /// An error of the given code.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), detail: Value::Null }
    }

    /// A request, parameter or file that cannot be used as it is.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(code::INVALID, message)
    }

    /// Something was tried and did not work.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(code::FAILED, message)
    }

    /// True for the answers that end the attempt and are never recorded: stopped, paused,
    /// budget exhausted, deadline, diverged.
    #[must_use]
    pub fn ends_attempt(&self) -> bool {
        [code::STOPPED, code::PAUSED, code::BUDGET_EXHAUSTED, code::DEADLINE, code::DIVERGED]
            .contains(&self.code.as_str())
    }
}

impl From<serde_json::Error> for CallError {
    fn from(error: serde_json::Error) -> Self {
        Self::invalid(error.to_string())
    }
}

/// The error of a panic with this payload.
pub(crate) fn from_panic(payload: &(dyn std::any::Any + Send)) -> CallError {
    let message = match payload.downcast_ref::<&str>() {
        Some(text) => (*text).to_owned(),
        None => payload.downcast_ref::<String>().cloned().unwrap_or_else(|| "no message".to_owned()),
    };
    CallError::new(code::PANIC, message)
}
