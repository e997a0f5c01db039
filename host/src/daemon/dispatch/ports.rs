//! What dispatch needs of its neighbours, so that it can be driven without them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kairos_plugin_api::{CallError, Report, Usage};
use serde_json::Value;

use crate::store::ClaimedCycle;

/// The broker's side of one attempt of a cycle. Called from runner threads and from the loop.
pub trait Services: Send + Sync + 'static {
    /// One call of the context; may block.
    ///
    /// # Errors
    /// The host's answer when there is no result.
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError>;
    /// Asks the cycle to end: waiting calls are given up, later ones are answered so.
    fn stop(&self);
    /// True once it was asked.
    fn is_stopped(&self) -> bool;
    /// The answer that ended the attempt, if one did.
    fn imposed(&self) -> Option<CallError>;
    /// What `report` claims beyond what was metered and noted in this cycle.
    fn claimed(&self, report: Option<&Report>) -> Usage;
    /// The runner's state changes.
    fn state_puts(&self) -> HashMap<String, Value>;
}

/// Opens the broker's services for an attempt.
pub trait OpenServices: Send + Sync + 'static {
    /// `until` is the deadline on the clock's monotonic side.
    fn open(&self, cycle: &ClaimedCycle, until: Option<Duration>) -> Arc<dyn Services>;
}

/// The write-ahead log as dispatch sees it.
pub trait CycleLog: Send + Sync + 'static {
    /// Proves that the mandate's log can be written. Blocks for the file.
    ///
    /// # Errors
    /// Why it cannot; the cycle is not to start.
    fn prepare(&self, mandate: &str) -> Result<(), String>;
}

/// What dispatch needs to know of schedules when a cycle of theirs ends.
pub trait ScheduleSide: Send + Sync + 'static {
    /// Pause the schedule after so many failures in a row.
    fn failure_limit(&self, schedule: &str) -> Option<u32>;
    /// The store has paused it.
    fn auto_paused(self: Arc<Self>, schedule: &str);
}
