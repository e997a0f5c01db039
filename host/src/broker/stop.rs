//! The wish that a cycle should end: set by a drain, a person, or a replacing occurrence, and
//! seen by whatever waits on the cycle's behalf. Must never be the only place that knows of a
//! stop: the store does.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sys::clock::Clock;

/// How urgently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    #[default]
    No,
    WindDown,
    Now,
}

/// Asks one cycle to end. Shared by whoever stops and by the services that wait.
#[derive(Debug, Default)]
pub struct StopSignal {
    asked: Mutex<Asked>,
    wake: Condvar,
}

impl StopSignal {
    /// A signal that nobody has given yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Asks the cycle to end; wakes what waits for it. Doing it again changes nothing.
    pub fn stop(&self) {
        self.ask(Asked::Now);
    }

    /// Asks the cycle to end, but lets an effect come to its end that would be lost otherwise: there
    /// is time, and somebody else who watches it.
    pub fn wind_down(&self) {
        self.ask(Asked::WindDown);
    }

    fn ask(&self, how: Asked) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = how.max(*asked);
        self.wake.notify_all();
    }

    fn is_urgent(&self) -> bool {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) == Asked::Now
    }

    /// True once somebody asked.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) > Asked::No
    }

    /// Waits until somebody asks, `limit` of real time at most; true when somebody did.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, _) = self
            .wake
            .wait_timeout_while(asked, limit, |asked| *asked == Asked::No)
            .unwrap_or_else(PoisonError::into_inner);
        *asked > Asked::No
    }
}

/// Why an effect was given up before it had a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Somebody asked the cycle to end.
    Stopped,
    /// The cycle's time is over.
    Deadline,
}

/// How long an effect may go on: until a stop or the cycle's deadline.
pub struct Patience<'a> {
    stop: &'a StopSignal,
    clock: &'a dyn Clock,
    until: Option<Duration>,
}

impl<'a> Patience<'a> {
    /// `until` is on the clock's monotonic side.
    #[must_use]
    pub fn new(stop: &'a StopSignal, clock: &'a dyn Clock, until: Option<Duration>) -> Self {
        Self { stop, clock, until }
    }

    /// Whether the effect should be given up now.
    ///
    /// # Errors
    /// Why it should.
    pub fn check(&self) -> Result<(), Interrupt> {
        if self.stop.is_stopped() { Err(Interrupt::Stopped) } else { self.check_urgent() }
    }

    /// Whether an effect should be given up whose result would be lost by that.
    ///
    /// # Errors
    /// Why it should.
    pub fn check_urgent(&self) -> Result<(), Interrupt> {
        if self.stop.is_urgent() {
            Err(Interrupt::Stopped)
        } else if self.until.is_some_and(|until| self.clock.monotonic() >= until) {
            Err(Interrupt::Deadline)
        } else {
            Ok(())
        }
    }

    /// Time until the deadline; none without one.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_sub(self.clock.monotonic()))
    }

    /// Waits so long, unless the effect should be given up before.
    ///
    /// # Errors
    /// Why it should.
    pub fn wait(&self, time: Duration) -> Result<(), Interrupt> {
        self.check()?;
        let left = self.until.map(|until| until.saturating_sub(self.clock.monotonic()));
        let cut = left.filter(|left| *left < time);
        if self.stop.wait(cut.unwrap_or(time)) {
            return Err(Interrupt::Stopped);
        }
        if cut.is_some() { Err(Interrupt::Deadline) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::SystemClock;

    #[test]
    fn waiting_ends_early_with_a_stop_or_the_deadline() {
        let clock = SystemClock::default();
        let stop = StopSignal::new();
        let patience = Patience::new(&stop, &clock, None);
        assert_eq!(patience.wait(Duration::from_millis(1)), Ok(()));
        let hour = Duration::from_secs(3600);
        let soon = Patience::new(&stop, &clock, Some(clock.monotonic() + Duration::from_millis(5)));
        assert_eq!(soon.wait(hour), Err(Interrupt::Deadline));
        assert_eq!(soon.check(), Err(Interrupt::Deadline));
        let other = Arc::clone(&stop);
        let thread = std::thread::spawn(move || other.stop());
        assert_eq!(patience.wait(hour), Err(Interrupt::Stopped));
        thread.join().unwrap();
        assert_eq!(patience.check(), Err(Interrupt::Stopped));
    }

    #[test]
    fn winding_down_ends_what_waits_and_lets_the_rest_finish() {
        let (clock, stop) = (SystemClock::default(), StopSignal::new());
        let patience = Patience::new(&stop, &clock, None);
        stop.wind_down();
        assert!(stop.is_stopped() && stop.wait(Duration::from_secs(3600)));
        assert_eq!((patience.check(), patience.check_urgent()), (Err(Interrupt::Stopped), Ok(())));
        stop.stop();
        stop.wind_down();
        assert_eq!(patience.check_urgent(), Err(Interrupt::Stopped), "it is never taken back");
    }
}
