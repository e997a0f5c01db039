//! The host as one running cycle sees it: the broker's services, the stop, the deadline and a
//! rate-limited log. Called from runner threads. Once the cycle's end is decided it is closed:
//! a thread that was left behind can only still book what it used.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use kairos_plugin_api::{CallError, code};
use serde_json::Value;
use tracing::Level;

use super::ports::Services;
use crate::runner::{HostCalls, method};
use crate::sys::clock::Clock;

/// Records one cycle may log in a second; the rest are counted and left out.
const RECORDS_PER_SECOND: u32 = 100;
/// Longer messages and fields of a runner are cut: its log is ours to keep readable.
const TEXT_MAX: usize = 8 << 10;

/// Implements the runner's view of the host for one attempt of one cycle.
pub(super) struct CycleHost {
    pub(super) mandate: String,
    pub(super) cycle: u32,
    pub(super) runner: String,
    pub(super) services: Arc<dyn Services>,
    pub(super) deadline: Option<DateTime<Utc>>,
    pub(super) clock: Arc<dyn Clock>,
    saw_stop: AtomicBool,
    closed: AtomicBool,
    rate: Mutex<Rate>,
}

#[derive(Default)]
struct Rate {
    second: u64,
    records: u32,
    dropped: u64,
}

impl CycleHost {
    pub(super) fn new(
        cycle: &crate::store::ClaimedCycle,
        services: Arc<dyn Services>,
        deadline: Option<DateTime<Utc>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            mandate: cycle.mandate.id.clone(),
            cycle: cycle.mandate.cycle,
            runner: cycle.runner.clone(),
            services,
            deadline,
            clock,
            saw_stop: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            rate: Mutex::default(),
        }
    }

    /// True when the runner looked at the stop and saw it.
    pub(super) fn saw_stop(&self) -> bool {
        self.saw_stop.load(Ordering::Acquire)
    }

    /// No further call is served but the booking of usage. Says how many log records were left out.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let dropped = self.rate.lock().unwrap_or_else(PoisonError::into_inner).dropped;
        if dropped > 0 {
            tracing::warn!(mandate = self.mandate, runner = self.runner, dropped, "runner_log_dropped");
        }
    }

    /// Whether one more record may be logged now.
    fn may_log(&self) -> bool {
        let second = self.clock.monotonic().as_secs();
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if rate.second != second {
            (rate.second, rate.records) = (second, 0);
        }
        let may = rate.records < RECORDS_PER_SECOND;
        if may {
            rate.records += 1
        } else {
            rate.dropped += 1
        }
        may
    }
}

impl HostCalls for CycleHost {
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        if self.closed.load(Ordering::Acquire) && method != method::USAGE {
            return Err(CallError::new(code::STOPPED, "the cycle has ended"));
        }
        let answer = self.services.call(method, request);
        if answer.as_ref().is_err_and(|error| [code::STOPPED, code::DEADLINE].contains(&error.code.as_str()))
        {
            self.saw_stop.store(true, Ordering::Release);
        }
        answer
    }

    fn should_stop(&self) -> bool {
        let stop = self.closed.load(Ordering::Acquire) || self.services.is_stopped();
        if stop {
            self.saw_stop.store(true, Ordering::Release);
        }
        stop
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        self.deadline
    }

    fn log(&self, level: Level, target: &str, message: &str, fields: &Value) {
        if !self.may_log() {
            return;
        }
        let (mandate, cycle, runner) = (self.mandate.as_str(), self.cycle, self.runner.as_str());
        let (target, text) = (cut(target), cut(message));
        let fields = fields.to_string();
        let fields = cut(&fields);
        match level {
            Level::ERROR => tracing::error!(mandate, cycle, runner, target, text, fields, "runner_log"),
            Level::WARN => tracing::warn!(mandate, cycle, runner, target, text, fields, "runner_log"),
            Level::INFO => tracing::info!(mandate, cycle, runner, target, text, fields, "runner_log"),
            Level::DEBUG => tracing::debug!(mandate, cycle, runner, target, text, fields, "runner_log"),
            Level::TRACE => tracing::trace!(mandate, cycle, runner, target, text, fields, "runner_log"),
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}
