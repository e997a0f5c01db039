//! How the end of a cycle comes into the store: asked for again until it is there or never will be,
//! with the start of the next cycle in the same commit. It decides nothing about how a cycle ended.

use std::sync::Arc;
use std::time::Duration;

use kairos_plugin_api::{Report, Usage};
use tokio::sync::watch;

use super::conclude::{Stops, Verdict};
use super::cycle::NotStarted;
use super::ports::Services;
use super::slots::Running;
use super::{Dispatch, Inner};
use crate::domain::mandate::{CycleEnd, MandateState};
use crate::store::{self, ClaimedCycle, FinishRequest, Finished, Pending};

/// Time between two tries to record an end that the store refuses for want of space.
const RECORD_AGAIN: Duration = Duration::from_secs(1);

/// A cycle that has ended and is recorded.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its mandate.
    pub mandate: String,
    /// Its number.
    pub cycle: u32,
    /// Which try.
    pub attempt: u32,
    /// How it ended.
    pub end: CycleEnd,
    /// Where the mandate stands now.
    pub state: MandateState,
    /// Why.
    pub reason: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
    /// What was booked on it.
    pub usage: Usage,
}

/// Why the end of a cycle is not in the store.
pub(super) enum Unrecorded {
    /// The mandate has moved on without it: something else decided about it, and that is recorded.
    Settled,
    /// The store did not take it; the next boot finds the cycle running.
    Lost,
}

/// What a run leaves to be recorded.
pub(super) struct Ran {
    pub(super) verdict: Verdict,
    pub(super) report: Option<Report>,
    pub(super) services: Option<Arc<dyn Services>>,
}

impl Dispatch {
    /// Queues a cycle afresh that recovery handed back, of a version that was rolled back meanwhile.
    ///
    /// # Errors
    /// The store's.
    pub async fn run_again(&self, cycle: &ClaimedCycle, why: String) -> store::Result<()> {
        let verdict = Verdict { end: CycleEnd::RolledBack, reason: None, error: Some(why) };
        let ran = Ran { verdict, report: None, services: None };
        let finished = self.0.parts.store.finish(self.0.end_of(cycle, &ran)).await?;
        announce(cycle, &ran.verdict, &finished);
        Ok(())
    }
}

impl Inner {
    /// Tells the end, and what the same commit started.
    pub(super) fn ended(
        self: &Arc<Self>,
        cycle: &ClaimedCycle,
        verdict: &Verdict,
        recorded: Result<Finished, Unrecorded>,
        chain: bool,
    ) -> (Result<Ended, String>, Option<ClaimedCycle>) {
        let Ok(finished) = recorded else { return (Err("its end could not be recorded".into()), None) };
        let ended = announce(cycle, verdict, &finished);
        if let Some(schedule) = &finished.auto_paused {
            tracing::warn!(schedule, "chronos_schedule_auto_paused");
            if let Some(side) = self.schedules.get().and_then(std::sync::Weak::upgrade) {
                side.auto_paused(schedule);
            }
        }
        let next = self.next_of(finished, chain);
        (Ok(ended), next)
    }

    /// Gives the cycle back to the queue and holds all work back for a while.
    pub(super) async fn unstart(&self, cycle: &ClaimedCycle, running: &Running, not: &NotStarted) {
        let now = self.parts.clock.monotonic();
        let news = not.hold.is_none_or(|kind| self.table().hold(kind, &not.reason, now));
        if news && not.trouble {
            tracing::error!(mandate = cycle.mandate.id, reason = not.reason, "daemon_cycle_not_started");
        }
        self.table().wanted = true;
        let (store, mandate) = (&self.parts.store, &cycle.mandate);
        let _ = self
            .record(running, || {
                store.unstart(mandate.id.clone(), mandate.cycle, mandate.attempt, not.reason.clone())
            })
            .await;
    }

    pub(super) async fn finish(
        &self,
        cycle: &ClaimedCycle,
        running: &Running,
        ran: &Ran,
        chain: bool,
    ) -> Result<Finished, Unrecorded> {
        let request = self.end_of(cycle, ran);
        self.record(running, || {
            let now = self.parts.clock.now();
            let claim = (chain && self.may_chain()).then(|| self.claim_request(1));
            let day = self.parts.wallet.day(now);
            self.parts.store.finish(FinishRequest { now, day, claim, ..request.clone() })
        })
        .await
    }

    /// The end of a cycle, to be recorded.
    fn end_of(&self, cycle: &ClaimedCycle, ran: &Ran) -> FinishRequest {
        let end = ran.verdict.end;
        // What a re-run will do again must not have landed yet.
        let lands = matches!(end, CycleEnd::Done | CycleEnd::More | CycleEnd::Checkpoint);
        let services = ran.services.as_deref();
        let schedule = cycle.mandate.schedule.as_deref();
        let side = self.schedules.get().and_then(std::sync::Weak::upgrade);
        FinishRequest {
            mandate: cycle.mandate.id.clone(),
            cycle: cycle.mandate.cycle,
            attempt: cycle.mandate.attempt,
            now: self.parts.clock.now(),
            day: self.parts.wallet.day(self.parts.clock.now()),
            end,
            reason: ran.verdict.reason.clone(),
            report: ran.report.clone(),
            error: ran.verdict.error.clone(),
            claimed: services
                .zip(ran.report.as_ref())
                .map_or(Usage::ZERO, |(services, report)| services.claimed_beyond(report)),
            state_puts: services.filter(|_| lands).map(Services::state_puts).unwrap_or_default(),
            pause_after_failures: side.zip(schedule).and_then(|(side, name)| side.failure_limit(name)),
            claim: None,
        }
    }

    /// Whether a finish may start the next cycle in this slot.
    fn may_chain(&self) -> bool {
        let mut table = self.table();
        let may = table.accepting
            && table.surplus == 0
            && table.backlog.is_empty()
            && table.held_until(self.parts.clock.monotonic()).is_none();
        // Whoever claims answers for the look.
        table.wanted = !may;
        may
    }

    fn next_of(self: &Arc<Self>, finished: Finished, chain: bool) -> Option<ClaimedCycle> {
        if !chain {
            return None;
        }
        self.learn(&finished.claim, 1);
        let mut claimed = finished.claim.claimed.into_iter();
        let next = claimed.next();
        self.table().backlog.extend(claimed);
        next
    }

    /// Makes a request until the store takes it: what a cycle did must not be lost for want of
    /// space. Gives up when it never will, or when a drain no longer waits.
    async fn record<T>(&self, running: &Running, request: impl Fn() -> Pending<T>) -> Result<T, Unrecorded> {
        let mut stops = running.watch();
        loop {
            match request().await {
                Ok(answer) => {
                    self.store_works();
                    return Ok(answer);
                }
                Err(error @ store::Error::Conflict(_)) => {
                    self.store_fails(&error);
                    return Err(Unrecorded::Settled);
                }
                Err(error) if !self.wait_out(&error, &mut stops).await => return Err(Unrecorded::Lost),
                Err(_) => {}
            }
        }
    }

    /// After an error of the store: true when it is worth asking again, after a while. Not when
    /// it will not pass, or when a drain no longer waits.
    pub(super) async fn wait_out(&self, error: &store::Error, stops: &mut watch::Receiver<Stops>) -> bool {
        self.store_fails(error);
        let passes = matches!(error, store::Error::Full { .. } | store::Error::ReadOnly { .. });
        let now = *stops.borrow_and_update();
        if !passes || (now.shutdown && now.abandon) {
            return false;
        }
        let again = self.parts.clock.monotonic() + RECORD_AGAIN;
        tokio::select! {
            () = self.parts.clock.sleep_until(again) => {}
            Ok(()) = stops.changed() => {}
        }
        true
    }
}

/// Logs the end under the seed's names and makes what the caller gets of it.
fn announce(cycle: &ClaimedCycle, verdict: &Verdict, finished: &Finished) -> Ended {
    let (mandate, number) = (cycle.mandate.id.as_str(), cycle.mandate.cycle);
    let usage = finished.usage;
    let shown = serde_json::json!(usage).to_string();
    match verdict.end {
        CycleEnd::Interrupted | CycleEnd::Cancelled | CycleEnd::Died => {
            tracing::info!(mandate, cycle = number, usage = shown, "daemon_cycle_interrupted");
        }
        CycleEnd::Error => {
            let error = verdict.error.as_deref().unwrap_or_default();
            tracing::error!(mandate, cycle = number, error, usage = shown, "daemon_cycle_runner_failed");
        }
        CycleEnd::Review => {
            let reason = verdict.reason.as_deref().unwrap_or_default();
            tracing::error!(mandate, cycle = number, reason, "daemon_cycle_needs_review");
        }
        CycleEnd::RolledBack => {
            let error = verdict.error.as_deref().unwrap_or_default();
            tracing::warn!(mandate, cycle = number, error, state = %finished.state, "daemon_cycle_rolled_back");
        }
        CycleEnd::Done
        | CycleEnd::More
        | CycleEnd::Checkpoint
        | CycleEnd::BudgetPause
        | CycleEnd::ApprovalPause => {
            tracing::debug!(mandate, cycle = number, state = %finished.state, usage = shown, "daemon_cycle_ended");
        }
    }
    Ended {
        mandate: mandate.to_owned(),
        cycle: number,
        attempt: cycle.mandate.attempt,
        end: verdict.end,
        state: finished.state,
        reason: finished.reason.clone().or_else(|| verdict.reason.clone()),
        error: verdict.error.clone(),
        usage,
    }
}
