//! Where chronos and dispatch meet. A fire and the start of what it fires are one commit:
//! chronos asks for a claim before it commits, dispatch takes over what the commit started.
//! Chronos never looks into a slot, dispatch never looks at a schedule.

use chrono::{DateTime, Utc};
use tokio::sync::OwnedSemaphorePermit;

use crate::store::{BudgetGate, ClaimOutcome, ClaimRequest};

/// Slots set aside for a claim: as many as its [`ClaimRequest::max`]. Dropping it gives them back.
#[derive(Debug, Default)]
pub struct Permits(pub Option<OwnedSemaphorePermit>);

impl Permits {
    /// How many slots are held.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Takes one slot out, to go along with one cycle.
    pub fn take_one(&mut self) -> Option<OwnedSemaphorePermit> {
        self.0.as_mut()?.split(1)
    }
}

/// What chronos needs of dispatch. Calls return at once and are made outside of any lock.
pub trait Claims: Send + Sync + 'static {
    /// Free slots and the runners that can take work; none when there is no free slot.
    fn request(&self, now: DateTime<Utc>) -> Option<(ClaimRequest, Permits)>;
    /// Day and limits at this time, for occurrences that are skipped when the budget is used up;
    /// none means no budget is kept.
    fn gate(&self, now: DateTime<Utc>) -> Option<BudgetGate>;
    /// Takes over what was started; unused permits are given back.
    fn started(&self, outcome: ClaimOutcome, permits: Permits);
    /// These running mandates are to stop: an occurrence replaces them.
    fn cancel(&self, mandates: Vec<String>);
    /// Something was queued and no claim went along with it.
    fn queued(&self);
}

/// Starts nothing: for evaluation alone, in tests and before dispatch is there.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoClaims;

impl Claims for NoClaims {
    fn request(&self, _: DateTime<Utc>) -> Option<(ClaimRequest, Permits)> {
        None
    }
    fn gate(&self, _: DateTime<Utc>) -> Option<BudgetGate> {
        None
    }
    fn started(&self, _: ClaimOutcome, _: Permits) {}
    fn cancel(&self, _: Vec<String>) {}
    fn queued(&self) {}
}
