//! Ids of mandates: deterministic for scheduled ones, so that evaluating a window again gives the same.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

/// Longest slug of a name inside an id.
const SLUG_MAX: usize = 60;

/// `{20261122T090000Z}-{slug}-{ordinal}`, the id of a scheduled mandate.
///
/// `ordinal` tells apart several mandates of one occurrence (a backfill done again); the first is 0.
#[must_use]
pub fn scheduled(nominal: DateTime<Utc>, schedule: &str, ordinal: u32) -> String {
    format!("{}-{}-{ordinal}", stamp(nominal), slug(schedule))
}

/// `{created}-manual-{8 hex}`, the id of a mandate made by hand; `chance` is 4 random bytes.
#[must_use]
pub fn manual(created: DateTime<Utc>, chance: [u8; 4]) -> String {
    format!("{}-manual-{}", stamp(created), hex::encode(chance))
}

/// `[a-z0-9_-]{1,60}`, with 8 hex of the name's sha256 behind it when anything was altered.
#[must_use]
pub fn slug(name: &str) -> String {
    let kept: String = name
        .chars()
        .take(SLUG_MAX)
        .map(|c| if matches!(c, 'a'..='z' | '0'..='9' | '_' | '-') { c } else { '_' })
        .collect();
    if kept == name && !kept.is_empty() {
        return kept;
    }
    let hash = hex::encode(&Sha256::digest(name.as_bytes())[..4]);
    let kept: String = kept.chars().take(SLUG_MAX - 9).collect();
    let body = if kept.is_empty() { "x" } else { &kept };
    format!("{body}-{hash}")
}

fn stamp(at: DateTime<Utc>) -> String {
    at.format("%Y%m%dT%H%M%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn plain_names_stay_and_altered_ones_carry_a_hash() {
        assert_eq!(slug("daily-report"), "daily-report");
        for odd in ["a/b", "../x", "Daily", "", "é", "a.b", &"x".repeat(61), "\0"] {
            let made = slug(odd);
            assert!(made.len() <= SLUG_MAX, "{odd:?}");
            assert!(
                made.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-')),
                "{odd:?} -> {made}"
            );
            assert_ne!(made, odd);
        }
        assert_ne!(slug("a/b"), slug("a.b"));
    }

    #[test]
    fn scheduled_id_is_a_function_of_its_occurrence() {
        let at = Utc.with_ymd_and_hms(2026, 11, 22, 9, 0, 0).unwrap();
        assert_eq!(scheduled(at, "daily", 0), "20261122T090000Z-daily-0");
    }
}
