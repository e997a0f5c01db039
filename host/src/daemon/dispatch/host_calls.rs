//! The host as one running cycle sees it: the broker's services, and a gate that closes when the
//! cycle's end is decided. A thread that was left behind can then only still book what it used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, Utc};
use kairos_plugin_api::{CallError, code};
use serde_json::Value;

use super::ports::Services;
use crate::runner::{HostCalls, method};

/// The runner's view of the host for one attempt of one cycle. Called from runner threads.
pub(super) struct CycleHost {
    services: Arc<dyn Services>,
    saw_stop: AtomicBool,
    closed: AtomicBool,
}

impl CycleHost {
    pub(super) fn new(services: Arc<dyn Services>) -> Self {
        Self { services, saw_stop: AtomicBool::new(false), closed: AtomicBool::new(false) }
    }

    /// True when the runner looked at the stop, or was answered so, and saw it.
    pub(super) fn saw_stop(&self) -> bool {
        self.saw_stop.load(Ordering::Acquire)
    }

    /// No further call is served but the booking of usage.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl HostCalls for CycleHost {
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        if self.is_closed() && method != method::USAGE {
            return Err(CallError::new(code::STOPPED, "the cycle has ended"));
        }
        let answer = self.services.call(method, request);
        if answer.as_ref().is_err_and(CallError::ends_attempt) {
            self.saw_stop.store(true, Ordering::Release);
        }
        answer
    }

    fn should_stop(&self) -> bool {
        let stop = self.is_closed() || self.services.should_stop();
        if stop {
            self.saw_stop.store(true, Ordering::Release);
        }
        stop
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        self.services.deadline()
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        self.services.log(level, target, message, fields);
    }
}
