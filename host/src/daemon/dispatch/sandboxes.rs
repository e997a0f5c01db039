//! Tells when a runner is confined less than it could be: once for each change, in the log and as
//! an event. The level itself is what the worker said before it mapped the plugin.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Inner;
use crate::runner::RunnerStatus;
use crate::store::NewEvent;
use crate::sys::sandbox::{Level, Reached};

/// Name of the event, and of the line in the log.
const DEGRADED: &str = "runner_sandbox_degraded";

impl Inner {
    /// Compares how far the runners are confined with what was told last.
    pub(super) fn note_sandboxes(self: &Arc<Self>) {
        let status = self.parts.runners.status();
        let now: BTreeMap<String, Reached> = status
            .iter()
            .filter_map(|status| Some((status.name.clone(), status.sandbox.clone()?)))
            .filter(|(_, reached)| reached.level < Level::Full)
            .collect();
        let before = std::mem::replace(&mut self.table().sandboxes, now.clone());
        for status in status {
            let Some(reached) = now.get(&status.name).filter(|now| before.get(&status.name) != Some(now))
            else {
                continue;
            };
            self.tell(&status, reached);
        }
    }

    fn tell(self: &Arc<Self>, status: &RunnerStatus, reached: &Reached) {
        let (runner, level, serves) = (&status.name, reached.level, status.error.is_none());
        let missing: BTreeMap<&str, &str> =
            reached.missing().map(|layer| (layer.name.as_str(), layer.reason.as_str())).collect();
        tracing::warn!(runner, level = %level, serves, ?missing, "runner_sandbox_degraded");
        let remedy = status.error.as_ref().map(|error| error.remedy.clone());
        let missing: Vec<Value> =
            missing.iter().map(|(layer, reason)| json!({"layer": layer, "reason": reason})).collect();
        let details = json!({"runner": runner, "level": level, "serves": serves, "missing": missing,
            "remedy": remedy});
        let at = self.parts.clock.now();
        let event = NewEvent { at, kind: DEGRADED, schedule: None, mandate: None, details };
        let recorded = self.parts.store.event(event);
        self.runtime.spawn(async move {
            if let Err(error) = recorded.await {
                tracing::warn!(%error, kind = DEGRADED, "event_not_recorded");
            }
        });
    }
}
