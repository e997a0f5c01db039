//! The table of cases: each was worked out by brute force and confirmed by at least one other
//! cron library; the errors each name their kind.

use std::path::Path;

use chrono::{DateTime, Utc};
use kairos_host::domain::cron::Cron;
use kairos_host::domain::schedule::Dst;
use kairos_host::sys::zones::Zones;
use serde::Deserialize;

#[derive(Deserialize)]
struct Table {
    cases: Vec<Case>,
    errors: Vec<Refusal>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    expr: String,
    timezone: String,
    from_exclusive: DateTime<Utc>,
    to_inclusive: DateTime<Utc>,
    count: u64,
    occurrences: Option<Vec<DateTime<Utc>>>,
    first: Option<DateTime<Utc>>,
    last: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
struct Refusal {
    id: String,
    expr: String,
    timezone: String,
    error: String,
}

fn table() -> Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/cron-cases.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_case_of_the_table_holds_for_next_prev_and_count() {
    let table = table();
    assert_eq!(table.cases.len(), 61);
    let zones = Zones::bundled();
    for case in &table.cases {
        let cron = Cron::parse(&case.expr).unwrap();
        let zone = zones.get(&case.timezone).unwrap();
        let (from, to) = (case.from_exclusive, case.to_inclusive);

        let counted = cron.count_between(&zone, Dst::Cron, from, to);
        assert_eq!(counted, case.count, "{}: count", case.id);

        let mut forward = Vec::new();
        let mut at = from;
        while let Some(next) = cron.next(&zone, Dst::Cron, at).filter(|next| *next <= to) {
            forward.push(next);
            at = next;
        }
        assert_eq!(forward.len() as u64, case.count, "{}: next", case.id);
        if let Some(expected) = &case.occurrences {
            assert_eq!(&forward, expected, "{}: next", case.id);
        }
        if case.first.is_some() {
            assert_eq!(forward.first(), case.first.as_ref(), "{}: first", case.id);
            assert_eq!(forward.last(), case.last.as_ref(), "{}: last", case.id);
        }

        let mut backward = Vec::new();
        let mut at = to;
        while let Some(prev) = cron.prev(&zone, Dst::Cron, at).filter(|prev| *prev > from) {
            backward.push(prev);
            at = prev - chrono::Duration::seconds(1);
        }
        backward.reverse();
        assert_eq!(backward, forward, "{}: prev", case.id);
    }
}

#[test]
fn every_refusal_of_the_table_has_its_kind() {
    let table = table();
    assert_eq!(table.errors.len(), 23);
    let zones = Zones::bundled();
    for refusal in &table.errors {
        let kind = match Cron::parse(&refusal.expr) {
            Err(error) => error.kind,
            Ok(_) => zones.get(&refusal.timezone).expect_err(&refusal.id).kind(),
        };
        assert_eq!(kind.as_str(), refusal.error, "{}: {:?}", refusal.id, refusal.expr);
    }
}
