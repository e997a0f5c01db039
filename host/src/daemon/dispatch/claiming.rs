//! How work gets into slots: who may claim when, and what an answer of the store sets going.
//!
//! `wanted` says that something may wait that no claim has looked for. Whoever asks the store
//! clears it first, so that what is queued meanwhile sets it again; an answer that is full sets it
//! too, because it may have left something behind.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::OwnedSemaphorePermit;

use super::{Inner, OneCycle};
use crate::daemon::claims::Permits;
use crate::store::{self, BudgetBlock, ClaimOutcome, ClaimRequest, ClaimedCycle};

impl Inner {
    pub(super) fn claim_request(&self, max: usize) -> ClaimRequest {
        let now = self.parts.clock.now();
        let offers = self.offers_now();
        ClaimRequest { now, max, gate: self.parts.wallet.gate(now), offers }
    }

    /// Claims one mandate and runs one cycle of it.
    pub(super) async fn one(self: &Arc<Self>) -> Result<OneCycle, store::Error> {
        let permit = Arc::clone(&self.slots).acquire_owned().await.expect("it is never closed");
        let backlog = self.table().backlog.pop_front();
        let cycle = match backlog {
            Some(cycle) => cycle,
            None => {
                let outcome = self.parts.store.claim(self.claim_request(1)).await?;
                let logged = self.learn(&outcome, 1);
                match (outcome.claimed.into_iter().next(), outcome.blocked) {
                    (Some(cycle), _) => cycle,
                    (None, Some(block)) => {
                        // Each call by hand says so, as in the seed.
                        if !logged {
                            log_blocked(&block);
                        }
                        return Ok(OneCycle::Blocked(block));
                    }
                    (None, None) => return Ok(OneCycle::Idle),
                }
            }
        };
        let ran = self.attend(cycle, false).await.0;
        self.release(permit);
        Ok(match ran {
            Ok(ended) => OneCycle::Ran(Box::new(ended)),
            Err(reason) => OneCycle::Held(reason),
        })
    }

    /// All free slots and the request that goes with them; none when nothing may start. Whoever
    /// asks answers for the look: what is queued later sets `wanted` again.
    pub(super) fn claim(&self, now: DateTime<Utc>) -> Option<(ClaimRequest, Permits)> {
        let mut table = self.table();
        let held = !table.accepting || table.held_until(self.parts.clock.monotonic()).is_some();
        let free = self.slots.available_permits();
        // What recovery handed back goes first.
        if held || free == 0 || !table.backlog.is_empty() {
            table.wanted = true;
            return None;
        }
        let free = u32::try_from(free).unwrap_or(u32::MAX);
        let permits = Arc::clone(&self.slots).try_acquire_many_owned(free).ok()?;
        table.wanted = false;
        drop(table);
        let request = ClaimRequest { now, ..self.claim_request(permits.num_permits()) };
        Some((request, Permits(Some(permits))))
    }

    /// Looks for work, unless somebody already has since the last change.
    pub(super) fn kick(self: &Arc<Self>) {
        self.run_backlog();
        if !self.table().wanted {
            return;
        }
        let Some((request, permits)) = self.claim(self.parts.clock.now()) else { return };
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            match inner.parts.store.claim(request).await {
                Ok(outcome) => {
                    inner.store_works();
                    let nothing = outcome.claimed.is_empty() && outcome.blocked.is_none();
                    inner.take(outcome, permits);
                    if nothing {
                        inner.note_waits();
                    }
                }
                Err(error) => {
                    drop(permits);
                    inner.table().wanted = true;
                    inner.store_fails(&error);
                    inner.touch();
                }
            }
        });
    }

    /// Starts what recovery handed back, as far as slots go.
    fn run_backlog(self: &Arc<Self>) {
        loop {
            let cycle = {
                let mut table = self.table();
                let held = !table.accepting || table.held_until(self.parts.clock.monotonic()).is_some();
                if held || table.backlog.is_empty() {
                    return;
                }
                let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() else { return };
                table.backlog.pop_front().map(|cycle| (cycle, permit))
            };
            if let Some((cycle, permit)) = cycle {
                self.spawn_slot(cycle, permit);
            }
        }
    }

    /// Takes over what a claim started.
    pub(super) fn take(self: &Arc<Self>, outcome: ClaimOutcome, mut permits: Permits) {
        self.learn(&outcome, permits.count());
        for cycle in outcome.claimed {
            match permits.take_one() {
                Some(permit) => self.spawn_slot(cycle, permit),
                None => self.table().backlog.push_back(cycle),
            }
        }
        drop(permits);
        self.touch();
        self.kick();
    }

    /// Remembers what a claim's answer says beyond the cycles it started. True when it logged that
    /// the budget holds work back, which it does when that is news.
    pub(super) fn learn(&self, outcome: &ClaimOutcome, asked: usize) -> bool {
        let news = {
            let mut table = self.table();
            // A full answer may have left something behind.
            table.wanted |= outcome.claimed.len() >= asked;
            table.next_ready = outcome.next_ready;
            let news = outcome.blocked.is_some() && table.blocked.is_none();
            let same = table.blocked == outcome.blocked;
            table.blocked.clone_from(&outcome.blocked);
            if same && outcome.claimed.is_empty() && outcome.next_ready.is_none() {
                return false;
            }
            news
        };
        if news && let Some(block) = &outcome.blocked {
            log_blocked(block);
        }
        self.touch();
        news
    }

    /// A slot runs cycle after cycle for as long as each finish claims the next.
    pub(super) fn spawn_slot(self: &Arc<Self>, first: ClaimedCycle, permit: OwnedSemaphorePermit) {
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            let mut next = Some(first);
            while let Some(cycle) = next {
                next = inner.attend(cycle, true).await.1;
            }
            inner.give_back(permit);
        });
    }

    pub(super) fn give_back(self: &Arc<Self>, permit: OwnedSemaphorePermit) {
        self.release(permit);
        self.kick();
    }

    pub(super) fn release(&self, permit: OwnedSemaphorePermit) {
        let mut table = self.table();
        if table.surplus > 0 {
            table.surplus -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
        drop(table);
        self.touch();
    }

    pub(super) fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

/// The seed's event, with its keys.
fn log_blocked(block: &BudgetBlock) {
    tracing::warn!(
        limit = block.limit,
        calls = block.calls,
        limit_kind = block.limit_kind,
        used = block.used,
        "daemon_budget_exceeded"
    );
}
