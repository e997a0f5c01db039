//! What the host imposes on a cycle, whatever the runner makes of it.

use kairos_plugin_api::{CallError, code};
use serde_json::{Value, json};

use super::stop::Interrupt;
use crate::domain::mandate::CycleEnd;
use crate::store::{self, BudgetBlock};

/// Why the host ended an attempt.
#[derive(Clone, Debug)]
pub enum Imposed {
    /// A drain, a person or a replacing occurrence; the caller knows which.
    Stopped,
    /// The cycle's time is over.
    Deadline,
    /// The next effect does not fit the day's budget; nothing of it was recorded.
    Budget(BudgetBlock),
    /// The runner asked for something else than is recorded at that step.
    Diverged {
        /// Position in the cycle.
        seq: u32,
        /// What is recorded and what was asked.
        detail: Value,
    },
    /// Nobody but a person can tell what became of a step.
    Review {
        /// Position in the cycle.
        seq: u32,
        /// Why, in a constant word.
        reason: String,
        /// What is known.
        detail: String,
    },
    /// The store did not take what had to be recorded.
    Store(store::Error),
}

impl Imposed {
    /// How the cycle ends. A stop by a person is a cancellation; only the caller can tell.
    #[must_use]
    pub fn end(&self) -> CycleEnd {
        match self {
            Self::Stopped | Self::Store(_) => CycleEnd::Interrupted,
            Self::Deadline => CycleEnd::Error,
            Self::Budget(_) => CycleEnd::BudgetPause,
            Self::Diverged { .. } | Self::Review { .. } => CycleEnd::Review,
        }
    }

    /// The reason to record where the end alone does not say it.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Stopped | Self::Budget(_) => None,
            Self::Deadline => Some("deadline"),
            Self::Diverged { .. } => Some("diverged"),
            Self::Review { reason, .. } => Some(reason),
            Self::Store(_) => Some("store"),
        }
    }

    /// The answer that the runner gets, to this call and to every later one.
    #[must_use]
    pub fn answer(&self) -> CallError {
        let (code, message, detail) = match self {
            Self::Stopped => (code::STOPPED, "the cycle is asked to end".to_owned(), Value::Null),
            Self::Deadline => (code::DEADLINE, "the cycle's time is over".to_owned(), Value::Null),
            Self::Budget(block) => (
                code::BUDGET_EXHAUSTED,
                format!("the day's limit of {} {} does not allow it", block.limit, block.limit_kind),
                json!(block),
            ),
            Self::Diverged { seq, detail } => {
                (code::DIVERGED, format!("step {seq} differs from the recorded one"), detail.clone())
            }
            Self::Review { seq, reason, detail } => {
                (code::PAUSED, format!("step {seq} needs a person ({reason}): {detail}"), Value::Null)
            }
            Self::Store(error) => (code::STOPPED, format!("nothing can be recorded: {error}"), Value::Null),
        };
        CallError { detail, ..CallError::new(code, message) }
    }
}

impl From<Interrupt> for Imposed {
    fn from(why: Interrupt) -> Self {
        match why {
            Interrupt::Stopped => Self::Stopped,
            Interrupt::Deadline => Self::Deadline,
        }
    }
}
