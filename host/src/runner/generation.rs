//! One loaded version of a runner: its backend, the threads it is called on, and who is on it now.
//!
//! A cycle holds the generation that it began on and finishes on it, whatever its slot does
//! meanwhile. Nothing here decides when a generation comes or goes.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kairos_plugin_api::{CallError, Mandate, Report};
use tokio::sync::{oneshot, watch};

use super::handover::Single;
use super::pool::Pool;
use super::{HostCalls, Isolation, RunnerBackend, RunnerError, RunnerIdentity, panic_text};
use crate::domain::handover::HandOver;

/// One loaded version of a runner. Cycles hold it; it is dropped when the last one is done.
pub struct Generation {
    identity: RunnerIdentity,
    backend: Arc<dyn RunnerBackend>,
    pool: Arc<Pool>,
    deadline: Option<Duration>,
    stop_grace: Option<Duration>,
    /// Calls of `run_cycle` that have not returned.
    running: Arc<watch::Sender<usize>>,
    /// What is known of the instance of a backend that has only one.
    single: Arc<Mutex<Single>>,
    /// Held while states are exported or imported: an instance that one call asks is none for another.
    handing: Mutex<()>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Counts a call for as long as it is under way, a panic included.
struct Call(Arc<watch::Sender<usize>>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

impl Generation {
    /// A generation of its own, outside of any slot.
    #[must_use]
    pub fn of(name: &str, backend: Arc<dyn RunnerBackend>) -> Self {
        Self::new(backend, Arc::new(Pool::new(name)), None)
    }

    pub(super) fn new(backend: Arc<dyn RunnerBackend>, pool: Arc<Pool>, deadline: Option<Duration>) -> Self {
        let running = Arc::new(watch::Sender::new(0));
        let (identity, single) = (backend.identity().clone(), Arc::default());
        let handing = Mutex::default();
        Self { identity, backend, pool, deadline, stop_grace: None, running, single, handing }
    }

    pub(super) fn with_stop_grace(self, stop_grace: Option<Duration>) -> Self {
        Self { stop_grace, ..self }
    }

    /// Who runs.
    #[must_use]
    pub fn identity(&self) -> &RunnerIdentity {
        &self.identity
    }

    /// Where its code runs.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.backend.isolation()
    }

    pub(super) fn backend(&self) -> &dyn RunnerBackend {
        &*self.backend
    }

    /// The configured time for one cycle.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// The configured time for a cycle that was asked to end; none is the usual one.
    #[must_use]
    pub fn stop_grace(&self) -> Option<Duration> {
        self.stop_grace
    }

    /// Runs one cycle on a thread of the slot and sends the outcome. Does not block. Dropping the
    /// receiver does not stop the runner: it is stopped by `should_stop` of `host`, with
    /// [`Self::cancel`] as a nudge. An error of the receiver means that the thread died.
    pub fn start(
        &self,
        mandate: Mandate,
        host: Arc<dyn HostCalls>,
    ) -> oneshot::Receiver<Result<Report, RunnerError>> {
        let (send, receive) = oneshot::channel();
        let backend = Arc::clone(&self.backend);
        self.running.send_modify(|running| *running += 1);
        let call = Call(Arc::clone(&self.running));
        let single = Arc::clone(&self.single);
        let cycle = move || {
            let _call = call;
            // Backends catch the runner's panics; this is for a panic of a backend.
            let outcome = catch_unwind(AssertUnwindSafe(|| backend.run_cycle(&mandate, host)))
                .unwrap_or_else(|payload| Err(RunnerError::Panic(panic_text(&*payload))));
            if matches!(outcome, Err(RunnerError::Panic(_))) {
                single.lock().unwrap_or_else(PoisonError::into_inner).retired();
            }
            outcome
        };
        match self.pool.thread() {
            // A caller that no longer listens has decided the cycle's fate already.
            Ok(thread) => thread.run(cycle, |outcome| drop(send.send(outcome))),
            Err(error) => drop(send.send(Err(no_thread(&error)))),
        }
        receive
    }

    /// How many calls have not returned.
    #[must_use]
    pub fn running(&self) -> usize {
        *self.running.borrow()
    }

    /// Ends when no call is under way. One that hangs keeps it waiting.
    pub async fn idle(&self) {
        let mut running = self.running.subscribe();
        // The sender lives in this generation, so it cannot be gone.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    /// Nudges running cycles to look at `should_stop`.
    pub fn cancel(&self) {
        self.backend.cancel();
    }

    /// Ends the cycle of this mandate for good. False when it runs on a thread, which cannot be ended.
    #[must_use]
    pub fn kill(&self, mandate: &str) -> bool {
        self.backend.kill(mandate)
    }

    /// Says that no new cycle will come.
    pub fn begin_drain(&self) {
        self.backend.begin_drain();
    }

    /// The states of all instances, and those that still wait for one. Called at a boundary: an
    /// instance that runs a cycle is left out. Blocks on foreign code.
    ///
    /// # Errors
    /// The runner's; a state that is too large.
    pub fn hand_over(&self) -> Result<HandOver, RunnerError> {
        let _alone = self.handing.lock().unwrap_or_else(PoisonError::into_inner);
        let states = match self.backend.instances() {
            Some(instances) => instances.hand_over()?,
            None => self.single().hand_over(self.backend())?,
        };
        if states.is_too_large() {
            let message = format!("{} states are more than is handed over at once", states.0.len());
            return Err(RunnerError::Call(CallError::invalid(message)));
        }
        Ok(states)
    }

    /// Takes states over: each goes to one instance, the rest wait for instances to come. One that
    /// came from here before takes the place of what it was. Blocks on foreign code.
    ///
    /// # Errors
    /// Why one was not taken; it is set aside, and the others are taken all the same.
    pub fn take_over(&self, states: HandOver) -> Result<(), RunnerError> {
        let _alone = self.handing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.backend.instances() {
            Some(instances) => instances.take_over(states),
            None => self.single().take_over(states, self.backend()),
        }
    }

    /// Ends whatever it is asked now and is asked from now on, outside of cycles, where a process runs
    /// it: it will never serve. Does not block.
    pub fn give_up(&self) {
        if let Some(instances) = self.backend.instances() {
            instances.give_up();
        }
    }

    /// How many instances there are whose state counts.
    #[must_use]
    pub fn instances(&self) -> usize {
        self.backend.instances().map_or(1, |instances| instances.count())
    }

    /// Makes that many instances beforehand, where that can be done. Blocks on foreign code.
    ///
    /// # Errors
    /// Why one cannot be had.
    pub fn warm(&self, count: usize) -> Result<(), RunnerError> {
        self.backend.instances().map_or(Ok(()), |instances| instances.warm(count))
    }

    fn single(&self) -> MutexGuard<'_, Single> {
        self.single.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the runner whether it could work. Blocks on foreign code.
    ///
    /// # Errors
    /// The runner's.
    pub fn probe(&self) -> Result<(), RunnerError> {
        self.backend.probe()
    }
}

fn no_thread(error: &std::io::Error) -> RunnerError {
    RunnerError::Unavailable(format!("no thread for it: {error}"))
}
