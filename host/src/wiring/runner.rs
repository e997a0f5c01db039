//! The cycle runner of an embedding program: a closure, with the seed's rules for what it returns.
//!
//! | it returns | the cycle |
//! |---|---|
//! | an object | `status` (ok when absent), usage, `more`, `summary`, `error` are read from it |
//! | anything else | the default result: ok, nothing used |
//! | an object whose usage is no integer, or whose status is unknown | failed; the accumulator's usage is booked |
//! | `Err(ShutdownRequested)` | interrupted; the accumulator's usage is booked; not an error |
//! | any other `Err`, a panic | failed; the accumulator's usage is booked |

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use kairos_plugin_api::{CallError, Context, Mandate, Report, Status, Usage, code};
use serde_json::{Map, Value};

use crate::runner::Builtin;

/// Name of the runner that a wiring brings; its schedules and mandates run on it.
pub const RUNNER: &str = "cycle_runner";

/// Why a cycle runner has no result.
#[derive(Debug)]
pub enum RunnerFailure {
    /// The program is asked to end: the cycle is interrupted and goes on another time.
    ShutdownRequested,
    /// It did not work.
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl RunnerFailure {
    /// A failure with that message.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into().into())
    }
}

// As with anyhow: this type is no `Error` itself, so that `?` takes every error there is.
impl<E: std::error::Error + Send + Sync + 'static> From<E> for RunnerFailure {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// A cycle runner. Called on a thread of its own, one cycle at a time.
pub type CycleRunner = dyn Fn(&Mandate, &Context) -> Result<Value, RunnerFailure> + Send + Sync;

/// What a cycle has used so far, filled by whoever makes its calls and shared with the wiring. It
/// is set back when a cycle begins, and read only when the cycle has no result.
#[derive(Clone, Debug, Default)]
pub struct UsageAccumulator(Arc<Mutex<Usage>>);

impl UsageAccumulator {
    /// Adds to it.
    pub fn add(&self, usage: Usage) {
        let mut total = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *total = total.plus(usage);
    }

    /// What has been added since the cycle began.
    #[must_use]
    pub fn total(&self) -> Usage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Usage {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The runner of a wiring: `run` under the rules above, or the default result without one.
pub(super) fn builtin(run: Option<Arc<CycleRunner>>, accumulator: UsageAccumulator) -> Builtin {
    Builtin::from_fn(RUNNER, move |mandate, context| {
        let Some(run) = &run else { return Ok(Report::ok()) };
        accumulator.take();
        let returned = catch_unwind(AssertUnwindSafe(|| run(mandate, context)));
        let outcome = match returned {
            Ok(Ok(value)) => read(&value),
            Ok(Err(failure)) => Err(to_call_error(failure)),
            Err(payload) => Err(CallError::new(code::PANIC, panic_text(&*payload))),
        };
        if outcome.is_err() {
            // What was used before it failed was used all the same.
            let partial = accumulator.take();
            if !partial.is_zero() {
                context.usage(partial)?;
            }
        }
        outcome
    })
}

/// Reads a returned value; only an object says anything.
fn read(value: &Value) -> Result<Report, CallError> {
    let Value::Object(object) = value else {
        tracing::debug!(returned = %kind(value), "daemon_cycle_result_unusable");
        return Ok(Report::ok());
    };
    let status = match object.get("status").filter(|status| !status.is_null()) {
        None => Status::Ok,
        Some(word) => serde_json::from_value(word.clone())
            .map_err(|_| bad(format!("status {word} is none of ok, paused, error")))?,
    };
    Ok(Report {
        status,
        llm_calls: integer(object, "llm_calls")?,
        input_tokens: integer(object, "input_tokens")?,
        output_tokens: integer(object, "output_tokens")?,
        more: object.get("more").and_then(Value::as_bool).unwrap_or_default(),
        summary: text(object, "summary"),
        error: text(object, "error"),
    })
}

fn integer(object: &Map<String, Value>, key: &str) -> Result<u64, CallError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_u64().ok_or_else(|| bad(format!("{key} {value} is not a whole number"))),
    }
}

fn text(object: &Map<String, Value>, key: &str) -> Option<String> {
    object.get(key).and_then(Value::as_str).map(ToOwned::to_owned)
}

fn bad(message: String) -> CallError {
    CallError::new(code::BAD_REPORT, message)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn to_call_error(failure: RunnerFailure) -> CallError {
    match failure {
        RunnerFailure::ShutdownRequested => CallError::new(code::STOPPED, "shutdown requested"),
        // An answer of the host that the program passed on says what it said.
        RunnerFailure::Failed(error) => match error.downcast::<CallError>() {
            Ok(answer) => *answer,
            Err(other) => CallError::new(code::FAILED, other.to_string()),
        },
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    match payload.downcast_ref::<&str>() {
        Some(text) => (*text).to_owned(),
        None => payload.downcast_ref::<String>().cloned().unwrap_or_else(|| "no message".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn return_that_is_no_object_is_the_default_result() {
        for value in [json!(null), json!(7), json!("ok"), json!([1]), json!(true)] {
            assert_eq!(read(&value).unwrap(), Report::ok(), "{value}");
        }
    }

    #[test]
    fn object_is_read_field_by_field_and_absent_fields_are_zero() {
        let report = read(&json!({"status": "paused", "llm_calls": 2, "output_tokens": null})).unwrap();
        assert_eq!(report, Report { status: Status::Paused, llm_calls: 2, ..Report::ok() });
        assert_eq!(read(&json!({})).unwrap(), Report::ok());
    }

    #[test]
    fn usage_that_is_no_integer_is_refused() {
        for bad in [json!("12"), json!(1.5), json!(-1), json!([]), json!(true)] {
            for key in ["llm_calls", "input_tokens", "output_tokens"] {
                let error = read(&json!({ key: bad })).unwrap_err();
                assert_eq!(error.code, code::BAD_REPORT);
                assert!(error.message.contains(key), "{error}");
            }
        }
        assert!(read(&json!({"status": "great"})).is_err());
    }

    #[test]
    fn answers_of_the_host_pass_through_a_question_mark() {
        let passed: RunnerFailure = CallError::new(code::BUDGET_EXHAUSTED, "x").into();
        assert_eq!(to_call_error(passed).code, code::BUDGET_EXHAUSTED);
        assert_eq!(to_call_error(RunnerFailure::failed("no")).code, code::FAILED);
        assert_eq!(to_call_error(RunnerFailure::ShutdownRequested).code, code::STOPPED);
    }
}
