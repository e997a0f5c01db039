//! The heartbeat: one small file, replaced whole, that says that the daemon lives and what it is
//! at. It beats in a task of its own, so a long cycle never silences it; it is worth little after
//! a power cut, so it is never synced. A beat that fails never stops anything else.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::mailbox::Phase;
use crate::sys::clock::Clock;
use crate::sys::files::{self, Durability, FileError};

/// Time between two beats, unless configured; the reference's figure.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// One beat: the reference's keys, then ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Of this process.
    pub pid: u32,
    /// When it was taken.
    pub ts: DateTime<Utc>,
    /// When the last cycle ended.
    pub last_cycle_at: Option<DateTime<Utc>>,
    /// The mandate that has run longest.
    pub active_mandate_id: Option<String>,
    /// Mandates that wait in the queue.
    pub queue_depth: u64,
    /// Evaluations of the schedules since the start.
    pub tick_count: u64,
    /// The daemon's phase: `starting`, `running`, `draining`, `stopped`.
    pub state: String,
    /// All that run, the longest first.
    #[serde(default)]
    pub active_mandate_ids: Vec<String>,
    /// Why work does not start although it waits: budget, disk full, log not writable.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Version of the daemon.
    #[serde(default)]
    pub version: String,
}

/// Where beats come from. May read the store, so it is called where blocking is allowed.
pub trait Pulse: Send + Sync + 'static {
    /// How things are now.
    fn beat(&self) -> Beat;
}

/// Writes beats, no more often than asked.
pub struct Heartbeat {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    /// Monotonic time of the last try.
    last: Mutex<Option<Duration>>,
    /// So that a disk that stays full is one line in the log, not one a beat.
    failing: AtomicBool,
}

impl std::fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heartbeat").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Heartbeat {
    /// Will write to `path`, `.kairos/run/heartbeat.json` in a daemon; its directory must exist when it beats.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        Self { path: path.into(), clock, last: Mutex::new(None), failing: AtomicBool::new(false) }
    }

    /// Where it writes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one beat now. Blocks for the file.
    ///
    /// # Errors
    /// The file could not be replaced; the former beat is still there.
    pub fn emit(&self, pulse: &dyn Pulse) -> Result<(), FileError> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.clock.monotonic());
        let text = serde_json::to_vec(&pulse.beat()).expect("a beat has only plain fields");
        files::replace_with(&self.path, &text, files::SHARED, Durability::Visible)
    }

    /// Writes one beat if the last try is `interval` ago or there was none; true when it did.
    ///
    /// # Errors
    /// As [`Heartbeat::emit`]; the next try is due after the interval, not at once.
    pub fn emit_if_due(&self, pulse: &dyn Pulse, interval: Duration) -> Result<bool, FileError> {
        if self.due_at(interval) > self.clock.monotonic() {
            return Ok(false);
        }
        self.emit(pulse).map(|()| true)
    }

    /// Monotonic time when the next beat is due.
    #[must_use]
    pub fn due_at(&self, interval: Duration) -> Duration {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(Duration::ZERO, |last| last + interval)
    }

    /// As [`Heartbeat::emit_if_due`], from async code; trouble is logged once and ends here.
    pub async fn beat_if_due(self: &Arc<Self>, pulse: &Arc<dyn Pulse>, interval: Duration) -> bool {
        if self.due_at(interval) > self.clock.monotonic() {
            return false;
        }
        self.beat(pulse).await
    }

    /// As [`Heartbeat::emit`], from async code; trouble is logged once and ends here.
    pub async fn beat(self: &Arc<Self>, pulse: &Arc<dyn Pulse>) -> bool {
        let (heart, pulse) = (Arc::clone(self), Arc::clone(pulse));
        // Reading the store and replacing a file may both block.
        let done = tokio::task::spawn_blocking(move || heart.emit(&*pulse)).await;
        let trouble = match done {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic.to_string()),
        };
        self.report(trouble.as_deref());
        trouble.is_none()
    }

    /// Beats every `interval` until the phase is [`Phase::Stopped`], whose beat is the last one.
    /// A change of phase or of the interval beats at once.
    pub async fn run(
        self: Arc<Self>,
        pulse: Arc<dyn Pulse>,
        mut interval: watch::Receiver<Duration>,
        mut phase: watch::Receiver<Phase>,
    ) {
        loop {
            // Looked at before the beat: one that was taken earlier does not show the end yet.
            let last = *phase.borrow_and_update() == Phase::Stopped;
            self.beat(&pulse).await;
            if last {
                return;
            }
            let due = self.due_at(*interval.borrow_and_update());
            tokio::select! {
                () = self.clock.sleep_until(due) => {}
                Ok(()) = interval.changed() => {}
                changed = phase.changed() => if changed.is_err() { return },
            }
        }
    }

    fn report(&self, trouble: Option<&str>) {
        let was = self.failing.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(error) if !was => {
                tracing::warn!(file = %self.path.display(), error, "daemon_heartbeat_failed");
            }
            None if was => tracing::info!(file = %self.path.display(), "daemon_heartbeat_restored"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::ManualClock;
    use std::sync::atomic::AtomicU64;

    struct Counting(AtomicU64);

    impl Pulse for Counting {
        fn beat(&self) -> Beat {
            Beat {
                pid: 7,
                ts: DateTime::UNIX_EPOCH,
                last_cycle_at: None,
                active_mandate_id: Some("m".into()),
                queue_depth: 3,
                tick_count: self.0.fetch_add(1, Ordering::SeqCst) + 1,
                state: "running".into(),
                active_mandate_ids: vec!["m".into()],
                reasons: vec![],
                version: "0".into(),
            }
        }
    }

    fn set_up() -> (tempfile::TempDir, ManualClock, Arc<Heartbeat>, Arc<dyn Pulse>) {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::at(DateTime::UNIX_EPOCH);
        let heart = Heartbeat::new(dir.path().join("heartbeat.json"), Arc::new(clock.clone()));
        (dir, clock, Arc::new(heart), Arc::new(Counting(AtomicU64::new(0))))
    }

    fn read(heart: &Heartbeat) -> Beat {
        serde_json::from_slice(&std::fs::read(heart.path()).unwrap()).unwrap()
    }

    #[test]
    fn beats_no_more_often_than_the_interval() {
        let (_dir, clock, heart, pulse) = set_up();
        let interval = Duration::from_secs(10);
        assert!(heart.emit_if_due(&*pulse, interval).unwrap(), "the first is due at once");
        clock.advance(Duration::from_secs(9));
        assert!(!heart.emit_if_due(&*pulse, interval).unwrap());
        clock.advance(Duration::from_secs(1));
        assert!(heart.emit_if_due(&*pulse, interval).unwrap());
        assert_eq!(read(&heart).tick_count, 2);
    }

    #[test]
    fn file_holds_the_keys_of_the_reference() {
        let (_dir, _clock, heart, pulse) = set_up();
        heart.emit(&*pulse).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&std::fs::read(heart.path()).unwrap()).unwrap();
        for key in ["pid", "ts", "last_cycle_at", "active_mandate_id", "queue_depth", "tick_count", "state"] {
            assert!(value.get(key).is_some(), "{key} is missing");
        }
    }

    #[tokio::test]
    async fn beat_that_fails_is_no_error_and_is_tried_again_after_the_interval() {
        let (dir, clock, _, pulse) = set_up();
        let gone = dir.path().join("not/there/heartbeat.json");
        let heart = Arc::new(Heartbeat::new(&gone, Arc::new(clock.clone())));
        let interval = Duration::from_secs(10);
        assert!(!heart.beat_if_due(&pulse, interval).await);
        std::fs::create_dir_all(gone.parent().unwrap()).unwrap();
        assert!(!heart.beat_if_due(&pulse, interval).await, "not due yet");
        clock.advance(interval);
        assert!(heart.beat_if_due(&pulse, interval).await);
    }

    #[tokio::test]
    async fn task_beats_by_the_clock_and_says_that_the_daemon_stopped() {
        let (_dir, clock, heart, pulse) = set_up();
        let (phase, seen) = watch::channel(Phase::Running);
        let (_keep, interval) = watch::channel(Duration::from_secs(10));
        let task = tokio::spawn(Arc::clone(&heart).run(pulse, interval, seen));
        let beaten = |count: u64| {
            let heart = Arc::clone(&heart);
            async move {
                tokio::time::timeout(Duration::from_secs(20), async {
                    while !heart.path().exists() || read(&heart).tick_count < count {
                        tokio::task::yield_now().await;
                    }
                })
                .await
                .expect("it beats");
            }
        };
        beaten(1).await;
        for count in 2..5 {
            // The task may not have gone to sleep yet; it then sees the later time at once.
            clock.advance(Duration::from_secs(10));
            beaten(count).await;
        }
        phase.send(Phase::Stopped).unwrap();
        tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
        assert_eq!(read(&heart).tick_count, 5, "one more, the last");
    }
}
