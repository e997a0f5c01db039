//! What tokens cost, in integers: nano-dollars (1e-9 USD). Must never lose a fraction of a
//! price downwards: amounts round up.

use kairos_plugin_api::Usage;

/// Tokens in a price's unit.
const MTOK: u128 = 1_000_000;
/// Nano-dollars in a dollar.
const NANO: f64 = 1e9;

/// List price of a provider's model, in nano-dollars for a million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// For tokens sent.
    pub input_nano_usd_per_mtok: u64,
    /// For tokens received.
    pub output_nano_usd_per_mtok: u64,
}

impl Price {
    /// From dollars for a million tokens, as configured; none when one is negative or no number.
    #[must_use]
    pub fn from_usd_per_mtok(input: f64, output: f64) -> Option<Self> {
        Some(Self { input_nano_usd_per_mtok: nano(input)?, output_nano_usd_per_mtok: nano(output)? })
    }

    /// The usage with its cost filled in.
    #[must_use]
    pub fn applied(self, usage: Usage) -> Usage {
        let part = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        let sum = part(usage.input_tokens, self.input_nano_usd_per_mtok)
            .saturating_add(part(usage.output_tokens, self.output_nano_usd_per_mtok));
        let cost = u64::try_from(sum.div_ceil(MTOK)).unwrap_or(u64::MAX);
        Usage { cost_nano_usd: cost, ..usage }
    }
}

fn nano(usd: f64) -> Option<u64> {
    let nano = (usd * NANO).round();
    // u64::MAX as a float is one above it, hence the strict comparison.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked and the value is whole"
    )]
    (nano >= 0.0 && nano < u64::MAX as f64).then_some(nano as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_exact_and_rounds_up() {
        let price = Price::from_usd_per_mtok(3.0, 15.0).unwrap();
        let used = |input_tokens, output_tokens| Usage {
            llm_calls: 1,
            input_tokens,
            output_tokens,
            cost_nano_usd: 0,
        };
        assert_eq!(price.applied(used(1, 0)).cost_nano_usd, 3_000);
        assert_eq!(price.applied(used(1_000_000, 1_000_000)).cost_nano_usd, 18_000_000_000);
        let tiny = Price { input_nano_usd_per_mtok: 1, output_nano_usd_per_mtok: 0 };
        assert_eq!(tiny.applied(used(1, 0)).cost_nano_usd, 1);
        assert_eq!(tiny.applied(used(0, 5)).cost_nano_usd, 0);
        let dear = Price { input_nano_usd_per_mtok: u64::MAX, output_nano_usd_per_mtok: u64::MAX };
        assert_eq!(dear.applied(used(u64::MAX, u64::MAX)).cost_nano_usd, u64::MAX);
    }

    #[test]
    fn prices_that_make_no_sense_are_none() {
        for bad in [-1.0, f64::NAN, f64::INFINITY, 1e30] {
            assert_eq!(Price::from_usd_per_mtok(bad, 0.0), None, "{bad}");
        }
    }
}
