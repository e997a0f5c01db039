#![expect(clippy::disallowed_methods, reason = "this is the seam that reads the real clock")]
//! Time: wall time says when something is due, monotonic time how long something took.
//! Durations are compared on the monotonic side only; a jump of the wall clock is an event.

use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::oneshot;

/// A future that ends when a sleep does.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A source of time. Cheap to call, shared by all parts of a daemon.
pub trait Clock: Send + Sync + 'static {
    /// Wall time.
    fn now(&self) -> DateTime<Utc>;
    /// Time since some fixed start, never going back.
    fn monotonic(&self) -> Duration;
    /// Ends when [`Clock::monotonic`] has reached `until`.
    fn sleep_until(&self, until: Duration) -> Sleep;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep_until(&self, until: Duration) -> Sleep {
        Box::pin(tokio::time::sleep_until((self.0 + until).into()))
    }
}

/// A clock that moves by hand. Clones share one time.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<ManualTime>>);

#[derive(Debug)]
struct ManualTime {
    wall: DateTime<Utc>,
    monotonic: Duration,
    sleepers: BinaryHeap<Sleeper>,
}

#[derive(Debug)]
struct Sleeper {
    until: Duration,
    wake: oneshot::Sender<()>,
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}
impl Eq for Sleeper {}
impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Sleeper {
    // The heap gives its greatest first, so the earliest sleeper counts as greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.until.cmp(&self.until)
    }
}

impl ManualClock {
    /// A clock that stands at `wall`.
    #[must_use]
    pub fn at(wall: DateTime<Utc>) -> Self {
        Self(Arc::new(Mutex::new(ManualTime {
            wall,
            monotonic: Duration::ZERO,
            sleepers: BinaryHeap::new(),
        })))
    }

    /// Both times go on; sleepers that are due wake.
    pub fn advance(&self, by: Duration) {
        let mut time = self.lock();
        time.monotonic += by;
        time.wall += by;
        while time.sleepers.peek().is_some_and(|sleeper| sleeper.until <= time.monotonic) {
            let sleeper = time.sleepers.pop().expect("it was just seen");
            // A sleeper that is gone does not mind.
            let _ = sleeper.wake.send(());
        }
    }

    /// Only the wall clock changes, as when somebody sets it.
    pub fn step_wall(&self, to: DateTime<Utc>) {
        self.lock().wall = to;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ManualTime> {
        self.0.lock().expect("no user of the clock panics")
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        self.lock().wall
    }

    fn monotonic(&self) -> Duration {
        self.lock().monotonic
    }

    fn sleep_until(&self, until: Duration) -> Sleep {
        let mut time = self.lock();
        if until <= time.monotonic {
            return Box::pin(std::future::ready(()));
        }
        let (wake, woken) = oneshot::channel();
        time.sleepers.push(Sleeper { until, wake });
        Box::pin(async move {
            // The clock is gone: nobody advances it any more, so the sleep never ends.
            if woken.await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
