//! What a beat says: read from the store, the books of dispatch and the phase, never from inside a
//! component. Used by the binary's daemon and by an embedded one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::dispatch::Dispatch;
use super::heartbeat::{Beat, Pulse};
use super::mailbox::Phase;
use crate::store::Store;
use crate::sys::clock::Clock;

/// The vital signs of a daemon.
pub struct Vitals {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// For the depth of the queue.
    pub store: Arc<dyn Store>,
    /// For what runs.
    pub dispatch: Dispatch,
    /// Where the daemon stands.
    pub phase: watch::Receiver<Phase>,
    /// Evaluations so far.
    pub ticks: Arc<AtomicU64>,
    /// The last depth that could be read, for beats while the store cannot be.
    depth: AtomicU64,
}

impl Vitals {
    /// The vital signs of these parts.
    #[must_use]
    pub fn new(
        clock: Arc<dyn Clock>,
        store: Arc<dyn Store>,
        dispatch: Dispatch,
        phase: watch::Receiver<Phase>,
        ticks: Arc<AtomicU64>,
    ) -> Self {
        Self { clock, store, dispatch, phase, ticks, depth: AtomicU64::new(0) }
    }
}

impl Pulse for Vitals {
    fn beat(&self) -> Beat {
        let phase = *self.phase.borrow();
        let mut reasons = self.dispatch.reasons();
        match self.store.counts() {
            Ok(counts) => self.depth.store(counts.queued, Ordering::Relaxed),
            // The last beat comes after the store was closed, and that is as it should be.
            Err(_) if phase == Phase::Stopped => {}
            Err(error) => reasons.push(error.to_string()),
        }
        let stuck = self.dispatch.stuck().len();
        if stuck > 0 {
            reasons.push(format!("runner threads that do not end: {stuck}"));
        }
        Beat {
            pid: std::process::id(),
            ts: self.clock.now(),
            last_cycle_at: self.dispatch.last_cycle_at(),
            active_mandate_id: self.dispatch.active_mandate_id(),
            queue_depth: self.depth.load(Ordering::Relaxed),
            tick_count: self.ticks.load(Ordering::Relaxed),
            state: phase.to_string(),
            active_mandate_ids: self.dispatch.active_mandate_ids(),
            reasons,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}
