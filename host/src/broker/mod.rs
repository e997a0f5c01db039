//! What a cycle may do: every LLM call and every tool call passes here, is judged by policy,
//! reserved in the budget, recorded, executed and settled, or answered from the record.
//!
//! ```text
//! runner -> CycleServices::call -> record? -> the answer of then
//!                                     none -> policy -> begin (intent, reservation: committed)
//!                                              -> do -> settle (result, usage: queued) -> answer
//! ```
//!
//! Nothing here knows who runs the cycle. Everything here is called on runner threads and may
//! block; nothing here may be called on an async runtime's thread.

mod effects;
mod handover;
mod imposed;
mod journal;
pub mod llm;
pub mod policy;
mod record;
pub mod shadow;
pub mod stop;
pub mod tools;
mod watch;

use std::sync::Arc;

use chrono::{DateTime, Utc};

pub use handover::Settling;
pub use imposed::Imposed;
pub use journal::CycleServices;
pub use watch::{Progress, Seen};

use self::llm::Providers;
use self::policy::Policy;
use self::stop::StopSignal;
use self::tools::Tools;
use crate::store::{BudgetGate, ClaimedCycle, Store};
use crate::sys::clock::Clock;
use crate::sys::entropy::Entropy;

/// What all cycles of a daemon share. Built anew when the configuration is; cycles that run keep
/// the one they started with.
pub struct Broker {
    /// Where everything is committed.
    pub store: Arc<dyn Store>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// The ledger's day and limits as of now; a daemon without a budget gives no limits.
    pub gate: Arc<dyn Fn() -> BudgetGate + Send + Sync>,
    /// Language models.
    pub providers: Providers,
    /// Tools.
    pub tools: Tools,
    /// What tools may do.
    pub policy: Policy,
}

impl Broker {
    /// The services of one attempt of a cycle: what is recorded of it is answered first.
    #[must_use]
    pub fn cycle(
        self: &Arc<Self>,
        claimed: ClaimedCycle,
        stop: Arc<StopSignal>,
        deadline: Option<DateTime<Utc>>,
    ) -> Arc<CycleServices> {
        Arc::new(CycleServices::new(Arc::clone(self), claimed, stop, deadline))
    }
}

#[cfg(test)]
mod tests;
