//! The books of dispatch: who runs, what holds work back, what waits for a slot. No IO and no
//! clock of its own; everything durable is the store's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::breaker::Breakers;
use super::conclude::Stops;
use super::waits::{Wait, WaitKey};
use crate::broker::stop::StopSignal;
use crate::store::{BudgetBlock, ClaimedCycle};
use crate::sys::sandbox::Reached;

/// First and longest wait before something that failed is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Cancels of mandates that are not here yet; beyond it the oldest ids are forgotten.
const EARLY_CANCELS_MAX: usize = 1024;

/// What can hold all work back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HoldKind {
    /// The write-ahead log cannot be written.
    Log,
    /// The store refuses to write, for want of space mostly.
    Store,
    /// A generation that was offered is not there.
    Runner,
}

/// Nothing starts before `retry_at`; a success ends it.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub(super) reason: String,
    /// Monotonic.
    pub(super) retry_at: Duration,
    wait: Duration,
}

/// A cycle under way.
pub(super) struct Running {
    pub(super) mandate: String,
    pub(super) runner: String,
    pub(super) generation: String,
    /// For the runner and for what waits on its behalf.
    pub(super) signal: Arc<StopSignal>,
    stops: watch::Sender<Stops>,
}

impl Running {
    pub(super) fn new(cycle: &ClaimedCycle) -> Self {
        Self {
            mandate: cycle.mandate.id.clone(),
            runner: cycle.runner.clone(),
            generation: cycle.generation.clone(),
            signal: StopSignal::new(),
            stops: watch::Sender::new(Stops::default()),
        }
    }

    /// Asks it to end, for the reasons that `mark` sets.
    pub(super) fn stop(&self, mark: impl FnOnce(&mut Stops)) {
        self.stops.send_modify(mark);
        let Stops { shutdown: _, cancel, deadline, abandon } = self.stops();
        if cancel || deadline || abandon {
            self.signal.stop();
        } else {
            // A drain has time; an agent's run that was paid for may come to its end.
            self.signal.wind_down();
        }
    }

    pub(super) fn stops(&self) -> Stops {
        *self.stops.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Stops> {
        self.stops.subscribe()
    }
}

/// A thread that did not end when it was asked to. It cannot be ended; it is watched.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Stuck {
    /// The mandate it was called for.
    pub mandate: String,
    /// Its runner.
    pub runner: String,
    /// The generation of its code.
    pub generation: String,
    /// When it was left to itself.
    pub since: DateTime<Utc>,
}

/// The books.
#[derive(Default)]
pub(super) struct Table {
    /// False before the start and while draining.
    pub(super) accepting: bool,
    /// Something may wait that no claim has looked for yet.
    pub(super) wanted: bool,
    /// By order of their start, so the longest running comes first.
    pub(super) running: BTreeMap<u64, Arc<Running>>,
    /// Cycles that are ours already and wait for a slot: after recovery.
    pub(super) backlog: VecDeque<ClaimedCycle>,
    pub(super) blocked: Option<BudgetBlock>,
    pub(super) next_ready: Option<DateTime<Utc>>,
    pub(super) last_cycle_at: Option<DateTime<Utc>>,
    pub(super) stuck: BTreeMap<u64, Stuck>,
    /// Why mandates wait, as noted in the store.
    pub(super) waits: BTreeMap<WaitKey, Wait>,
    /// True when trying them again is a look at files and no more.
    pub(super) cheap_to_retry: bool,
    /// Runners that are confined less than they could be, as it was told last.
    pub(super) sandboxes: BTreeMap<String, Reached>,
    /// When unavailable runners with waiting mandates are tried again.
    pub(super) retry_runners: Option<Hold>,
    /// Runners whose processes keep dying.
    pub(super) breakers: Breakers,
    /// Mandates whose cycle's end no store took, because a drain could not wait.
    pub(super) unrecorded: Vec<String>,
    /// Slots that are to go as soon as they are free.
    pub(super) surplus: usize,
    holds: BTreeMap<HoldKind, Hold>,
    early_cancels: BTreeSet<String>,
    next_number: u64,
}

impl Table {
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Registers a cycle; a cancel that came early is applied.
    pub(super) fn register(&mut self, cycle: &ClaimedCycle) -> (u64, Arc<Running>) {
        let running = Arc::new(Running::new(cycle));
        if self.early_cancels.remove(&running.mandate) {
            running.stop(|stops| stops.cancel = true);
        }
        let number = self.number();
        self.running.insert(number, Arc::clone(&running));
        (number, running)
    }

    /// The running cycle of a mandate. One that is not here yet is remembered to be stopped.
    pub(super) fn find_to_cancel(&mut self, mandate: &str) -> Option<Arc<Running>> {
        let found = self.running.values().find(|running| running.mandate == mandate).cloned();
        if found.is_none() {
            if self.early_cancels.len() >= EARLY_CANCELS_MAX {
                self.early_cancels.pop_first();
            }
            self.early_cancels.insert(mandate.to_owned());
        }
        found
    }

    /// A cancel that came early no longer counts: the mandate begins anew.
    pub(super) fn forget_cancel(&mut self, mandate: &str) {
        self.early_cancels.remove(mandate);
    }

    /// Holds work back, each time longer while it goes on. True when this is news.
    pub(super) fn hold(&mut self, kind: HoldKind, reason: &str, now: Duration) -> bool {
        let before = self.holds.get(&kind);
        let wait = before.map_or(BACK_OFF.0, |hold| (hold.wait * 2).min(BACK_OFF.1));
        let news = before.is_none_or(|hold| hold.reason != reason);
        self.holds.insert(kind, Hold { reason: reason.to_owned(), retry_at: now + wait, wait });
        news
    }

    /// Ends a hold; true when there was one.
    pub(super) fn release(&mut self, kind: HoldKind) -> bool {
        self.holds.remove(&kind).is_some()
    }

    /// When work may start again, if something holds it back at `now`.
    pub(super) fn held_until(&self, now: Duration) -> Option<Duration> {
        self.holds.values().map(|hold| hold.retry_at).filter(|until| *until > now).max()
    }

    /// Sets or lengthens the wait before unavailable runners are tried again.
    pub(super) fn retry_runners_later(&mut self, now: Duration) {
        let wait = match &self.retry_runners {
            _ if self.cheap_to_retry => BACK_OFF.0 * 2,
            Some(hold) => (hold.wait * 2).min(BACK_OFF.1),
            None => BACK_OFF.0 * 4,
        };
        self.retry_runners = Some(Hold { reason: String::new(), retry_at: now + wait, wait });
    }

    /// The earliest monotonic time when something is to be tried again.
    pub(super) fn retry_at(&self) -> Option<Duration> {
        let runners = self.retry_runners.as_ref().map(|hold| hold.retry_at);
        let held = self.holds.values().map(|hold| hold.retry_at).max();
        held.into_iter().chain(runners).chain(self.breakers.next()).min()
    }

    /// What keeps waiting work from starting, for people.
    pub(super) fn reasons(&self) -> Vec<String> {
        let budget = self
            .blocked
            .as_ref()
            .map(|block| format!("budget: {} of {} {} used", block.used, block.limit, block.limit_kind));
        self.holds.values().map(|hold| hold.reason.clone()).chain(budget).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn hold_backs_off_to_a_minute_and_starts_afresh_after_a_success() {
        let mut table = Table::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            table.hold(HoldKind::Log, "x", Duration::ZERO);
            waits.push(table.held_until(Duration::ZERO).unwrap().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(table.release(HoldKind::Log));
        assert!(table.hold(HoldKind::Log, "x", Duration::ZERO), "news again");
        assert_eq!(table.held_until(Duration::ZERO), Some(SECOND));
        assert_eq!(table.held_until(SECOND), None, "to be tried");
    }

    #[test]
    fn same_reason_again_is_no_news() {
        let mut table = Table::default();
        assert!(table.hold(HoldKind::Store, "disk full", Duration::ZERO));
        assert!(!table.hold(HoldKind::Store, "disk full", Duration::ZERO));
        assert!(table.hold(HoldKind::Store, "read-only", Duration::ZERO));
        assert_eq!(table.reasons(), ["read-only"]);
    }

    #[test]
    fn early_cancels_are_bounded() {
        let mut table = Table::default();
        for number in 0..EARLY_CANCELS_MAX + 10 {
            assert!(table.find_to_cancel(&format!("m{number}")).is_none());
        }
        assert_eq!(table.early_cancels.len(), EARLY_CANCELS_MAX);
    }
}
