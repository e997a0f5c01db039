//! What a runner sees of the host while one cycle runs.
//!
//! [`Context`] is the author's view: typed calls over the small trait [`HostCalls`], which a
//! plugin's adapter, a builtin's backend and [`crate::testing::FakeHost`] implement alike. It
//! must never decide anything itself: policy, budget and record are the host's.

use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::effect::{LlmReply, LlmRequest, ToolCall, ToolReply};
use crate::error::{CallError, code};
use crate::report::Report;
use crate::usage::Usage;

/// Names of the context's calls, as they cross every boundary.
pub mod method {
    /// `{"name": text}` -> `{}`: a phase begins.
    pub const PHASE: &str = "phase";
    /// `LlmRequest` -> `LlmReply`.
    pub const LLM: &str = "llm";
    /// `ToolCall` -> `ToolReply`.
    pub const TOOL: &str = "tool";
    /// Any object -> any: a proposal for a person. No daemon decides proposals yet: `unsupported`.
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
    /// All of them.
    pub const ALL: [&str; 10] =
        [PHASE, LLM, TOOL, PROPOSE, USAGE, NOW, RANDOM, STATE_GET, STATE_PUT, PROGRESS];

    /// The answer to a call of another name.
    #[must_use]
    pub fn unknown(name: &str) -> super::CallError {
        let known = ALL.join(", ");
        super::CallError::invalid(format!("there is no call named {name:?}; there are: {known}"))
    }
}

/// How much of what one cycle may do. What goes beyond it is answered with `invalid`, and changes nothing.
pub mod limit {
    /// Different phases of a cycle. Naming one again counts once.
    pub const PHASES_MAX: usize = 32;
    /// Calls of a cycle that are recorded: `llm`, `tool`, `propose`, `usage`, `now` and `random`.
    pub const STEPS_MAX: u32 = 10_000;
    /// Keys of a runner's state.
    pub const STATE_KEYS_MAX: usize = 1_024;
    /// Longest text that is kept of a report's `summary` and `error`, in bytes. What is longer is
    /// cut, and the text says so.
    pub const TEXT_MAX: usize = 64 << 10;

    /// The answer to one phase too many.
    #[must_use]
    pub fn phases() -> super::CallError {
        super::CallError::invalid(format!(
            "a cycle names at most {PHASES_MAX} different phases, and this one has"
        ))
    }

    /// The answer to one recorded call too many.
    #[must_use]
    pub fn steps() -> super::CallError {
        super::CallError::invalid(format!(
            "a cycle makes at most {STEPS_MAX} recorded calls, and this one has: end it, and go on with `more`"
        ))
    }

    /// The answer to one key too many.
    #[must_use]
    pub fn state_keys() -> super::CallError {
        super::CallError::invalid(format!("a state has at most {STATE_KEYS_MAX} keys, and this one has"))
    }
}

/// What a runner needs of the host while one cycle runs. Called from runner threads, may block.
pub trait HostCalls: Send + Sync + 'static {
    /// One call of the context: `method` is one of [`method`], request and answer are JSON.
    ///
    /// # Errors
    /// The host's answer when there is no result, see [`code`].
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError>;
    /// True when the cycle is asked to end soon.
    fn should_stop(&self) -> bool;
    /// When the cycle's time is over.
    fn deadline(&self) -> Option<DateTime<Utc>>;
    /// A log record of the runner; rate limited and tagged by the host.
    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value);
}

/// The host, as one cycle sees it.
///
/// Calls block until the host has an answer. Once a call was answered with something that
/// ends the attempt ([`CallError::ends_attempt`]: stopped, paused, budget exhausted, deadline,
/// diverged), every further call gets that same answer at once, except [`usage`](Self::usage),
/// [`progress`](Self::progress) and [`log`](Self::log); and that answer is the outcome of the
/// cycle, whatever the runner returns. So `?` is always right, and nothing needs a clean-up.
pub struct Context {
    host: Arc<dyn HostCalls>,
    ending: OnceLock<CallError>,
}

#[derive(Deserialize)]
struct Nothing {}

#[derive(Deserialize)]
struct NowAnswer {
    now: DateTime<Utc>,
}

#[derive(Deserialize)]
struct RandomAnswer {
    hex: String,
}

#[derive(Deserialize)]
struct StateAnswer<T> {
    value: Option<T>,
}

impl Context {
    /// A fresh view of `host`, for one cycle.
    #[must_use]
    pub fn new(host: Arc<dyn HostCalls>) -> Self {
        Self { host, ending: OnceLock::new() }
    }

    /// Says that a phase begins: `observe`, `orient`, `decide`, `act`, `reflect`.
    ///
    /// # Errors
    /// Answers that end the attempt.
    pub fn phase(&self, name: &str) -> Result<(), CallError> {
        self.ask(method::PHASE, &json!({ "name": name })).map(|Nothing {}| ())
    }

    /// Asks a language model.
    ///
    /// # Errors
    /// `denied`, `busy`, `invalid`, `failed`, or an answer that ends the attempt.
    pub fn llm(&self, request: &LlmRequest) -> Result<LlmReply, CallError> {
        self.ask(method::LLM, request)
    }

    /// Runs a tool. A tool that ran and could not do it answers with `ok: false`, not an error.
    ///
    /// # Errors
    /// `denied`, `busy`, `invalid`, `failed`, or an answer that ends the attempt.
    pub fn tool(&self, name: &str, args: Value) -> Result<ToolReply, CallError> {
        self.ask(method::TOOL, &ToolCall { name: name.to_owned(), args })
    }

    /// Lays a proposal before a person.
    ///
    /// Daemons of this version have no approvals and answer `unsupported`; the answer is recorded like a
    /// refusal, and the cycle goes on. One that has them parks the mandate (`paused`), and gives the
    /// decision when the cycle runs again. So a runner that proposes handles both.
    ///
    /// # Errors
    /// `unsupported`, or as for [`tool`](Self::tool).
    pub fn propose(&self, proposal: &Value) -> Result<Value, CallError> {
        self.ask(method::PROPOSE, proposal)
    }

    /// Books usage that the host could not meter itself: what was used since the last such call.
    /// Works to the very end of a cycle.
    ///
    /// # Errors
    /// Only when the host cannot book.
    pub fn usage(&self, delta: Usage) -> Result<(), CallError> {
        self.pass(method::USAGE, &delta).map(|Nothing {}| ())
    }

    /// The time. Recorded: a re-run of the cycle sees the same.
    ///
    /// # Errors
    /// Answers that end the attempt.
    pub fn now(&self) -> Result<DateTime<Utc>, CallError> {
        self.ask(method::NOW, &json!({})).map(|answer: NowAnswer| answer.now)
    }

    /// Random bytes, at most 1024. Recorded: a re-run of the cycle sees the same.
    ///
    /// # Errors
    /// `invalid` for more than 1024, or an answer that ends the attempt.
    pub fn random(&self, bytes: usize) -> Result<Vec<u8>, CallError> {
        let answer: RandomAnswer = self.ask(method::RANDOM, &json!({ "bytes": bytes }))?;
        from_hex(&answer.hex)
            .filter(|random| random.len() == bytes)
            .ok_or_else(|| CallError::new(code::FAILED, "the host's random bytes are unreadable"))
    }

    /// The runner's own state under `key`: as of the cycle's start, own puts included.
    ///
    /// # Errors
    /// `failed` when it is there and is no `T`, or an answer that ends the attempt.
    pub fn state_get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CallError> {
        self.ask(method::STATE_GET, &json!({ "key": key })).map(|answer: StateAnswer<T>| answer.value)
    }

    /// Keeps `value` under `key`; it lands when the cycle finishes, not before.
    ///
    /// # Errors
    /// `invalid` when it is too large, or an answer that ends the attempt.
    pub fn state_put<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), CallError> {
        self.ask(method::STATE_PUT, &json!({ "key": key, "value": to_value(value)? })).map(|Nothing {}| ())
    }

    /// True when the cycle should come to an end; long computations look every now and then.
    #[must_use]
    pub fn should_stop(&self) -> bool {
        self.ending.get().is_some() || self.host.should_stop()
    }

    /// The answer `stopped` as an error when the cycle should end, for use with `?`.
    ///
    /// # Errors
    /// `stopped`, or the answer that ended the attempt before.
    pub fn check_stop(&self) -> Result<(), CallError> {
        if let Some(ending) = self.ending.get() {
            return Err(ending.clone());
        }
        if self.host.should_stop() {
            return Err(self.note(CallError::new(code::STOPPED, "the cycle is asked to end")));
        }
        Ok(())
    }

    /// When the cycle's time is over; none when it has all the time.
    #[must_use]
    pub fn deadline(&self) -> Option<DateTime<Utc>> {
        self.host.deadline()
    }

    /// Writes to the host's log. Events of `tracing` arrive there too.
    pub fn log(&self, level: tracing::Level, message: &str) {
        self.host.log(level, "runner", message, &Value::Null);
    }

    /// Tells people how far the cycle is; `fraction` from 0 to 1 where it is known.
    pub fn progress(&self, message: &str, fraction: Option<f64>) {
        let shown = self.pass(method::PROGRESS, &json!({ "message": message, "fraction": fraction }));
        // Progress is for eyes only: a host that cannot show it does not disturb the cycle.
        let _: Result<Nothing, CallError> = shown;
    }

    /// The answer that ended the attempt, once one did.
    #[must_use]
    pub fn ending(&self) -> Option<&CallError> {
        self.ending.get()
    }

    /// The outcome of the cycle, given what the runner returned: an answer that ended the attempt
    /// wins. A report returned in spite of it stays readable under `report` of the detail, so
    /// that usage claimed in it is not lost.
    ///
    /// # Errors
    /// The runner's own, or the answer that ended the attempt.
    pub fn settle(&self, returned: Result<Report, CallError>) -> Result<Report, CallError> {
        let Some(ending) = self.ending.get() else { return returned };
        let mut ending = ending.clone();
        if let Ok(report) = returned {
            if !ending.detail.is_object() {
                ending.detail = json!({});
            }
            ending.detail["report"] = to_value(&report)?;
        }
        Err(ending)
    }

    /// One call as it crosses every boundary, for those who bring requests and answers as JSON: the
    /// adapter of another language. It obeys the answers that end the attempt like all others.
    ///
    /// # Errors
    /// The host's answer when there is no result.
    pub fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        match self.ending.get() {
            Some(ending) if ![method::USAGE, method::PROGRESS].contains(&method) => Err(ending.clone()),
            _ => self.host.call(method, request).map_err(|error| self.note(error)),
        }
    }

    fn ask<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A, CallError> {
        match self.ending.get() {
            Some(ending) => Err(ending.clone()),
            None => self.pass(method, request),
        }
    }

    fn pass<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A, CallError> {
        let request = serde_json::to_vec(request)
            .map_err(|error| CallError::new(code::INVALID, format!("request of {method}: {error}")))?;
        let answer = self.host.call(method, &request).map_err(|error| self.note(error))?;
        serde_json::from_slice(&answer)
            .map_err(|error| CallError::new(code::FAILED, format!("the host's answer to {method}: {error}")))
    }

    fn note(&self, error: CallError) -> CallError {
        if error.ends_attempt() {
            // Of two threads that are turned away at once, the first one's answer counts.
            let _ = self.ending.set(error.clone());
        }
        error
    }
}

fn to_value<T: Serialize + ?Sized>(value: &T) -> Result<Value, CallError> {
    serde_json::to_value(value).map_err(|error| CallError::new(code::INVALID, error.to_string()))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}
