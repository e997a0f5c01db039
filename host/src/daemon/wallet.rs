//! The wallet: which day of the ledger it is, and what its limits are. The amounts themselves are
//! the store's; this never counts anything.

use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Duration, Utc};

use crate::domain::cron::Zone;
use crate::store::{BudgetGate, Limits};

/// The longest local day there is, with room: two zones once skipped or repeated a whole day.
const LONGEST_DAY_HOURS: i64 = 50;

/// Limits and the zone whose midnight turns the day. Shared; a reload changes it in place.
#[derive(Debug)]
pub struct Wallet(RwLock<Purse>);

#[derive(Debug)]
struct Purse {
    limits: Option<Limits>,
    zone: Arc<Zone>,
}

impl Wallet {
    /// A budget with these limits, its day turning at midnight of `zone`.
    #[must_use]
    pub fn new(limits: Limits, zone: Arc<Zone>) -> Self {
        Self(RwLock::new(Purse { limits: Some(limits), zone }))
    }

    /// No budget: usage is booked on UTC days, nothing is held back. The seed's default.
    #[must_use]
    pub fn disabled() -> Self {
        Self(RwLock::new(Purse { limits: None, zone: Arc::new(Zone::utc()) }))
    }

    /// Replaces limits and zone.
    pub fn set(&self, limits: Option<Limits>, zone: Arc<Zone>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Purse { limits, zone };
    }

    /// The limits; none when there is no budget.
    #[must_use]
    pub fn limits(&self) -> Option<Limits> {
        self.purse().limits
    }

    /// The day of the ledger at that time, `YYYY-MM-DD`.
    #[must_use]
    pub fn day(&self, at: DateTime<Utc>) -> String {
        day_in(&self.purse().zone, at)
    }

    /// Day and limits for the store; none when there is no budget.
    #[must_use]
    pub fn gate(&self, at: DateTime<Utc>) -> Option<BudgetGate> {
        let purse = self.purse();
        purse.limits.map(|limits| BudgetGate { day: day_in(&purse.zone, at), limits })
    }

    /// Day and limits for a reservation, which always has a day; without a budget nothing limits it.
    #[must_use]
    pub fn day_and_limits(&self, at: DateTime<Utc>) -> BudgetGate {
        let purse = self.purse();
        BudgetGate { day: day_in(&purse.zone, at), limits: purse.limits.unwrap_or_default() }
    }

    /// When the next day begins, to the second.
    #[must_use]
    pub fn next_day(&self, after: DateTime<Utc>) -> DateTime<Utc> {
        let purse = self.purse();
        let today = day_in(&purse.zone, after);
        // The first second whose day is a later one; days are texts of equal length, so they compare as they follow.
        let (mut low, mut high) = (after.timestamp(), after.timestamp() + LONGEST_DAY_HOURS * 3600);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if day_in(&purse.zone, second(middle)) > today { high = middle } else { low = middle }
        }
        second(high)
    }

    fn purse(&self) -> std::sync::RwLockReadGuard<'_, Purse> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn day_in(zone: &Zone, at: DateTime<Utc>) -> String {
    let local = at + Duration::seconds(zone.offset_at(at.timestamp()));
    local.format("%Y-%m-%d").to_string()
}

fn second(timestamp: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(timestamp, 0).expect("two days after a valid time is a valid time")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn berlin() -> Wallet {
        Wallet::new(Limits::default(), crate::sys::zones::Zones::bundled().get("Europe/Berlin").unwrap())
    }

    #[test]
    fn day_turns_at_midnight_of_its_zone() {
        let utc = Wallet::disabled();
        assert_eq!(utc.day(at("2026-11-22T23:59:59Z")), "2026-11-22");
        assert_eq!(utc.next_day(at("2026-11-22T23:59:59.5Z")), at("2026-11-23T00:00:00Z"));
        assert_eq!(utc.next_day(at("2026-11-22T00:00:00Z")), at("2026-11-23T00:00:00Z"));
        let berlin = berlin();
        assert_eq!(berlin.day(at("2026-11-22T22:59:59Z")), "2026-11-22");
        assert_eq!(berlin.day(at("2026-11-22T23:00:00Z")), "2026-11-23");
        assert_eq!(berlin.next_day(at("2026-11-22T12:00:00Z")), at("2026-11-22T23:00:00Z"));
    }

    #[test]
    fn days_of_23_and_25_hours_end_at_their_midnight() {
        let berlin = berlin();
        assert_eq!(berlin.next_day(at("2026-03-28T23:00:00Z")), at("2026-03-29T22:00:00Z"));
        assert_eq!(berlin.next_day(at("2026-10-24T22:00:00Z")), at("2026-10-25T23:00:00Z"));
    }

    #[test]
    fn without_a_budget_there_is_a_day_but_no_gate() {
        let wallet = Wallet::disabled();
        assert_eq!(wallet.gate(at("2026-11-22T12:00:00Z")), None);
        wallet.set(Some(Limits { calls: Some(3), ..Limits::default() }), Arc::new(Zone::utc()));
        let gate = wallet.gate(at("2026-11-22T12:00:00Z")).unwrap();
        assert_eq!((gate.day.as_str(), gate.limits.calls), ("2026-11-22", Some(3)));
    }
}
