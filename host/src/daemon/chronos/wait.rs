//! Sleeping until there is something to do. The wall clock is read again every half minute, so
//! that a clock that was set, or a host that slept, is noticed; in between nothing runs.

use std::time::Duration;

use super::pace::Step;
use super::{Chronos, EARLIEST};

/// Longest sleep without a look at the wall clock.
const LONGEST: Duration = Duration::from_secs(30);
/// Shortest sleep towards a due time, against rounding.
const SHORTEST: Duration = Duration::from_millis(1);

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A tick has something to do.
    Due,
    /// The schedules changed, or [`Chronos::wake`] was called.
    Called,
}

impl Chronos {
    /// Ends when a tick has something to do, or when something changed. Dropping it is harmless.
    pub async fn wait_until_due(&self) -> Wake {
        let clock = &self.seams.clock;
        loop {
            // Listening begins before looking, so that a change in between is not slept over.
            let called = self.wake.notified();
            let now = clock.now();
            let next = self.next_due();
            let held = self.state().pace.held(clock.monotonic());
            // After a refusal by the store even a look at the clock would only be refused again.
            if held.is_zero() && (self.wants_look(now) || next.is_some_and(|next| next <= now)) {
                return Wake::Due;
            }
            let mut left = next.and_then(|next| (next - now).to_std().ok()).unwrap_or(LONGEST);
            if !held.is_zero() {
                left = left.min(held);
            }
            let until = clock.monotonic() + left.clamp(SHORTEST, LONGEST);
            tokio::select! {
                () = called => return Wake::Called,
                () = clock.sleep_until(until) => {}
            }
        }
    }

    /// Ends a wait: something changed that its caller should see.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// True when the clock was set far, or has just become sane.
    fn wants_look(&self, now: chrono::DateTime<chrono::Utc>) -> bool {
        use super::pace::STEP;
        let state = self.state();
        let sane = now.timestamp() >= EARLIEST;
        match state.watch.look(now, self.seams.clock.monotonic()) {
            _ if !sane => false,
            _ if state.deferred.is_some() => true,
            Step::Forward(_) => true,
            Step::Back(seconds) => seconds > STEP,
            Step::None => false,
        }
    }
}
