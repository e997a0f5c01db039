//! What a cycle consumed. All amounts are integers; money is in nano-dollars (1e-9 USD).

use serde::{Deserialize, Serialize};

/// An amount of LLM usage. Additions saturate: a ledger may stop at the top, never wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// LLM calls, each attempt counted.
    pub llm_calls: u64,
    /// Tokens sent, cached ones included.
    pub input_tokens: u64,
    /// Tokens received, reasoning ones included.
    pub output_tokens: u64,
    /// Cost in nano-dollars; 0 when the price is not known.
    pub cost_nano_usd: u64,
}

impl Usage {
    /// Nothing used.
    pub const ZERO: Self = Self { llm_calls: 0, input_tokens: 0, output_tokens: 0, cost_nano_usd: 0 };

    /// Field by field sum, saturating.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// Field by field difference, not below zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    /// Field by field maximum.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.zip(other, u64::max)
    }

    /// True when every field is zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    fn zip(self, other: Self, join: fn(u64, u64) -> u64) -> Self {
        Self {
            llm_calls: join(self.llm_calls, other.llm_calls),
            input_tokens: join(self.input_tokens, other.input_tokens),
            output_tokens: join(self.output_tokens, other.output_tokens),
            cost_nano_usd: join(self.cost_nano_usd, other.cost_nano_usd),
        }
    }
}
