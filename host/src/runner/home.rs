//! The host as a runner sees it outside of cycles: a log, rationed like that of a cycle, and nothing
//! else.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use kairos_plugin_api::CallError;
use serde_json::Value;

use super::HostCalls;
use crate::domain::talk::{Talk, cut};
use crate::sys::clock::{Clock, SystemClock};

/// One runner's home.
pub(super) struct Home {
    runner: String,
    clock: SystemClock,
    talk: Mutex<Talk>,
}

impl Home {
    /// That of the runner with this key in the configuration.
    pub(super) fn new(runner: &str) -> Self {
        Self { runner: runner.to_owned(), clock: SystemClock::default(), talk: Mutex::default() }
    }
}

impl HostCalls for Home {
    fn call(&self, method: &str, _: &[u8]) -> Result<Vec<u8>, CallError> {
        Err(CallError::invalid(format!("{method} is for a running cycle")))
    }

    fn should_stop(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        let now = self.clock.monotonic();
        let admitted = self.talk.lock().unwrap_or_else(PoisonError::into_inner).admit(now);
        let Some(dropped) = admitted else { return };
        // What there is none of is left out.
        let nothing = fields.is_null() || fields.as_object().is_some_and(serde_json::Map::is_empty);
        let fields = (!nothing).then(|| fields.to_string());
        let dropped = Some(dropped).filter(|dropped| *dropped > 0);
        // Not `message`: that is the event's own name.
        let (runner, target, line) = (&self.runner, cut(target), cut(message));
        let fields = fields.as_deref().map(cut);
        match level {
            tracing::Level::ERROR => tracing::error!(runner, target, line, fields, dropped, "runner_log"),
            tracing::Level::WARN => tracing::warn!(runner, target, line, fields, dropped, "runner_log"),
            tracing::Level::INFO => tracing::info!(runner, target, line, fields, dropped, "runner_log"),
            _ => tracing::debug!(runner, target, line, fields, dropped, "runner_log"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    struct Count(Arc<AtomicUsize>);

    impl<S: tracing::Subscriber> Layer<S> for Count {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            if event.metadata().level() == &tracing::Level::WARN {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn a_flood_outside_of_cycles_is_rationed_too() {
        let lines = Arc::new(AtomicUsize::new(0));
        let subscriber = tracing_subscriber::registry().with(Count(Arc::clone(&lines)));
        let home = Home::new("talker");
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..5000 {
                home.log(tracing::Level::WARN, "t", "on and on", &Value::Null);
            }
        });
        let lines = lines.load(Ordering::Relaxed);
        assert!((1..5000).contains(&lines), "{lines} of 5000 lines");
    }
}
