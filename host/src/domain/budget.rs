//! The wallet's rules: what a day's limits allow. Amounts are integers; money is in nano-dollars.

use kairos_plugin_api::Usage;
use serde::{Deserialize, Serialize};

/// Daily limits; absent means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// LLM calls.
    pub calls: Option<u64>,
    /// Input and output tokens together.
    pub tokens: Option<u64>,
    /// Nano-dollars.
    pub nano_usd: Option<u64>,
}

/// The ledger of one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DayTotals {
    /// Settled and unknown usage.
    pub spent: Usage,
    /// Reserved by calls that are under way.
    pub reserved: Usage,
}

/// Why the budget does not let work start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BudgetBlock {
    /// Which limit: `calls`, `tokens`, `usd`.
    pub limit_kind: &'static str,
    /// The limit.
    pub limit: u64,
    /// What is spent and reserved of it.
    pub used: u64,
    /// Calls spent today, as the seed's log event has it.
    pub calls: u64,
}

/// Why nothing may start, if so: a limit is reached by what is spent and reserved.
#[must_use]
pub fn exceeded(limits: &Limits, totals: &DayTotals) -> Option<BudgetBlock> {
    block(limits, totals, Usage::ZERO, |_, used, limit| used >= limit)
}

/// Why a reservation does not fit, if so. What it does not ask for cannot refuse it.
#[must_use]
pub fn refused(limits: &Limits, totals: &DayTotals, ask: Usage) -> Option<BudgetBlock> {
    block(limits, totals, ask, |ask, used, limit| ask > 0 && used.saturating_add(ask) > limit)
}

fn block(
    limits: &Limits,
    totals: &DayTotals,
    ask: Usage,
    holds: fn(u64, u64, u64) -> bool,
) -> Option<BudgetBlock> {
    let used = totals.spent.plus(totals.reserved);
    let tokens = |usage: Usage| usage.input_tokens.saturating_add(usage.output_tokens);
    [
        ("calls", limits.calls, used.llm_calls, ask.llm_calls),
        ("tokens", limits.tokens, tokens(used), tokens(ask)),
        ("usd", limits.nano_usd, used.cost_nano_usd, ask.cost_nano_usd),
    ]
    .into_iter()
    .filter_map(|(kind, limit, used, ask)| Some((kind, limit?, used, ask)))
    .find(|&(_, limit, used, ask)| holds(ask, used, limit))
    .map(|(limit_kind, limit, used, _)| BudgetBlock {
        limit_kind,
        limit,
        used,
        calls: totals.spent.llm_calls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(spent: u64, reserved: u64) -> DayTotals {
        let calls = |llm_calls| Usage { llm_calls, ..Usage::ZERO };
        DayTotals { spent: calls(spent), reserved: calls(reserved) }
    }

    #[test]
    fn a_limit_is_reached_by_spent_and_reserved_together() {
        let limits = Limits { calls: Some(3), ..Limits::default() };
        assert!(exceeded(&limits, &totals(1, 1)).is_none());
        let block = exceeded(&limits, &totals(1, 2)).unwrap();
        assert_eq!((block.limit_kind, block.limit, block.used, block.calls), ("calls", 3, 3, 1));
    }

    #[test]
    fn a_reservation_may_reach_the_limit_and_not_pass_it() {
        let limits = Limits { calls: Some(3), ..Limits::default() };
        let one = Usage { llm_calls: 1, ..Usage::ZERO };
        assert!(refused(&limits, &totals(2, 0), one).is_none());
        assert!(refused(&limits, &totals(2, 1), one).is_some());
        assert!(refused(&limits, &totals(9, 0), Usage { input_tokens: 5, ..Usage::ZERO }).is_none());
    }
}
