//! Runners that die, and runners that must be ended: what is counted, what is said, and what is
//! left behind when nothing else helps.

use std::sync::Arc;
use std::time::Duration;

use kairos_plugin_api::Report;
use tokio::sync::oneshot;

use super::Inner;
use super::conclude::Outcome;
use super::cycle::NotStarted;
use super::slots::{Running, Stuck};
use crate::runner::{Generation, RunnerError};
use crate::store::ClaimedCycle;

/// Time for a runner's process to be gone after it was killed; that takes a millisecond. A thread of
/// ours that is in the middle of a call for it may take longer and is left to itself then.
const KILL_GRACE: Duration = Duration::from_secs(2);

impl Inner {
    /// Counts what a runner's process did to itself, before anything else of that runner is claimed.
    /// The error gives a cycle back of which nothing ran.
    pub(super) fn watch_deaths(
        self: &Arc<Self>,
        cycle: &ClaimedCycle,
        outcome: &Outcome,
    ) -> Result<(), NotStarted> {
        let (runner, mandate) = (cycle.runner.as_str(), cycle.mandate.id.as_str());
        let now = self.parts.clock.monotonic();
        match outcome {
            Outcome::Failed(RunnerError::Unavailable(why)) => {
                let wait = self.table().breakers.unavailable(runner, why, now);
                tracing::error!(runner, mandate, why, wait_s = wait.as_secs(), "runner_held_back");
                self.hold_back();
                let reason = format!("runner {runner}: {why}");
                Err(NotStarted { reason, hold: None, trouble: true, of_version: true })
            }
            Outcome::Failed(RunnerError::Died(death)) => {
                let (number, attempt) = (cycle.mandate.cycle, cycle.mandate.attempt);
                let (phase, generation) = (death.phase.as_deref(), &cycle.generation);
                let (signal, exit_code, how) = (death.signal, death.exit_code, &death.how);
                if death.by_host {
                    // By a deadline, a person or the end of the daemon: no proof that it is well.
                    tracing::warn!(
                        runner,
                        generation,
                        mandate,
                        cycle = number,
                        attempt,
                        phase,
                        signal,
                        how,
                        "runner_killed"
                    );
                    return Ok(());
                }
                tracing::error!(
                    runner,
                    generation,
                    mandate,
                    cycle = number,
                    attempt,
                    phase,
                    signal,
                    exit_code,
                    how,
                    "runner_died"
                );
                let held = self.table().breakers.died(runner, how, now);
                if let Some(wait) = held {
                    tracing::error!(runner, how, wait_s = wait.as_secs(), "runner_held_back");
                    self.hold_back();
                }
                Ok(())
            }
            Outcome::Report(_) | Outcome::Failed(_) => {
                if self.table().breakers.served(runner) {
                    tracing::info!(runner, "runner_recovered");
                }
                Ok(())
            }
            Outcome::Abandoned => Ok(()),
        }
    }

    /// A runner is held back from now on: nothing of it is offered, and what waits for it says why.
    fn hold_back(self: &Arc<Self>) {
        self.read_offers();
        self.note_waits();
    }

    /// Ends a runner that had its time. A process is killed, which is not waited for in vain; a
    /// thread cannot be.
    pub(super) async fn end(
        self: &Arc<Self>,
        mut answer: oneshot::Receiver<Result<Report, RunnerError>>,
        running: &Running,
        generation: &Generation,
        number: u64,
    ) -> Outcome {
        if !generation.kill(&running.mandate) {
            return self.leave(answer, running, generation, number);
        }
        let clock = &self.parts.clock;
        tokio::select! {
            biased;
            answer = &mut answer => match answer {
                // It was done at that very moment.
                Ok(Ok(report)) => Outcome::Report(report),
                Ok(Err(error)) => Outcome::Failed(error),
                Err(_) => Outcome::Abandoned,
            },
            () = clock.sleep_until(clock.monotonic() + KILL_GRACE) => {
                self.leave(answer, running, generation, number)
            }
        }
    }

    /// Leaves a thread to itself. It is not ended by that, and nothing claims so; it is listed
    /// until it answers.
    fn leave(
        self: &Arc<Self>,
        answer: oneshot::Receiver<Result<Report, RunnerError>>,
        running: &Running,
        generation: &Generation,
        number: u64,
    ) -> Outcome {
        let stuck = Stuck {
            mandate: running.mandate.clone(),
            runner: running.runner.clone(),
            generation: generation.identity().generation.clone(),
            since: self.parts.clock.now(),
        };
        let (mandate, runner) = (stuck.mandate.clone(), stuck.runner.clone());
        tracing::error!(mandate, runner, generation = stuck.generation, "runner_stuck");
        self.table().stuck.insert(number, stuck);
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            let _ = answer.await;
            inner.table().stuck.remove(&number);
            tracing::info!(mandate, runner, "runner_unstuck");
            inner.touch();
        });
        Outcome::Abandoned
    }
}
