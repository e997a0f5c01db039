//! The last cycles of each runner with all that it saw: what a candidate for its slot is tried on.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kairos_plugin_api::{Report, Usage};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::fail::Res;
use super::row::{self, Mandate, json as json_of, maybe_json, micros, time};
use super::txn::{Txn, all};
use super::{claim, ledger};
use crate::domain::mandate::{CycleEnd, CycleStatus};
use crate::store::{EndedCycle, FinishRequest, RECENT_MAX, RecordedCycle};

/// A state of more bytes of JSON is not kept twice; its cycle is no sample then.
const STATE_MAX: usize = 256 << 10;

/// Keeps a cycle that ended in its runner's own words. Called before the new state lands.
pub fn keep(txn: &Txn<'_>, mandate: &Mandate, request: &FinishRequest, end: CycleEnd) -> Res<()> {
    let Some(report) = request.report.as_ref().filter(|_| {
        matches!(end, CycleEnd::Done | CycleEnd::More | CycleEnd::Checkpoint)
            || (end == CycleEnd::Error && request.reason.is_none())
    }) else {
        return Ok(());
    };
    let state = match mandate.as_of {
        0 => None,
        version => Some(json!(claim::state_as_of(txn, &mandate.owner(), version)?).to_string()),
    };
    if state.as_ref().is_some_and(|state| state.len() > STATE_MAX) {
        return Ok(());
    }
    let usage = ledger::of_cycle(txn.conn, mandate.n, mandate.cycle, mandate.epoch)?;
    txn.exec(
        "INSERT INTO recent(runner, mandate, cycle, attempt, epoch, report, state, usage) \
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8)",
        (
            &mandate.runner,
            mandate.n,
            mandate.cycle,
            mandate.attempt,
            mandate.epoch,
            json!(report).to_string(),
            state,
            json!(usage).to_string(),
        ),
    )?;
    let kept = i64::try_from(RECENT_MAX).unwrap_or(i64::MAX);
    txn.exec(
        "DELETE FROM recent WHERE runner=?1 AND n<=(SELECT n FROM recent WHERE runner=?1 ORDER BY n DESC LIMIT 1 \
         OFFSET ?2)",
        (&mandate.runner, kept),
    )?;
    Ok(())
}

/// Finds the attempts that a version has ended. Whatever it began since then belongs to a mandate that
/// is open or has ended since then, and those have an index each.
pub const ENDED: &str = "SELECT mandate, cycle, attempt, status FROM cycle WHERE mandate IN ( \
       SELECT n FROM mandate INDEXED BY mandate_open WHERE ended IS NULL AND runner=?1 AND cycle>0 \
       UNION ALL SELECT n FROM mandate INDEXED BY mandate_ended WHERE ended>=?3 AND runner=?1) \
     AND runner=?1 AND generation=?2 AND started>=?3 AND status IS NOT NULL ORDER BY ended";

/// See [`crate::store::GenerationStore::ended_cycles`].
pub fn ended(conn: &Connection, runner: &str, sha256: &str, since: DateTime<Utc>) -> Res<Vec<EndedCycle>> {
    let rows = all(conn, ENDED, (runner, sha256, micros(since)), |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?, row.get::<_, u32>(2)?, row.get::<_, String>(3)?))
    })?;
    let known = rows.into_iter().filter_map(|(mandate, cycle, attempt, status)| {
        CycleStatus::parse(&status).map(|status| (mandate, cycle, attempt, status))
    });
    known
        .map(|(mandate, cycle, attempt, status)| {
            Ok(EndedCycle { status, usage: ledger::of_attempt(conn, mandate, cycle, attempt)? })
        })
        .collect()
}

struct Sample {
    mandate: i64,
    cycle: u32,
    attempt: u32,
    epoch: u32,
    report: Report,
    state: HashMap<String, Value>,
    usage: Usage,
}

/// See [`crate::store::GenerationStore::recent_cycles`].
pub fn cycles(conn: &Connection, runner: &str, limit: usize) -> Res<Vec<RecordedCycle>> {
    let samples = all(
        conn,
        "SELECT mandate, cycle, attempt, epoch, report, state, usage FROM recent WHERE runner=?1 \
         ORDER BY n DESC LIMIT ?2",
        (runner, i64::try_from(limit).unwrap_or(i64::MAX)),
        |row| {
            Ok(Sample {
                mandate: row.get(0)?,
                cycle: row.get(1)?,
                attempt: row.get(2)?,
                epoch: row.get(3)?,
                report: json_of(row, 4)?,
                state: maybe_json(row, 5)?.unwrap_or_default(),
                usage: json_of(row, 6)?,
            })
        },
    )?;
    samples.into_iter().map(|sample| recorded(conn, sample)).collect()
}

fn recorded(conn: &Connection, sample: Sample) -> Res<RecordedCycle> {
    let mandate = Mandate::load_number(conn, sample.mandate)?;
    let began = all(
        conn,
        "SELECT generation, started FROM cycle WHERE mandate=?1 AND cycle=?2 AND attempt=?3",
        (sample.mandate, sample.cycle, sample.attempt),
        |row| Ok((row.get::<_, String>(0)?, time(row, 1)?)),
    )?;
    let created = mandate.created;
    let (generation, started_at) = began.into_iter().next().unwrap_or((String::new(), created));
    let sql = row::select_steps!("AND cycle=?2 AND epoch=?3 ORDER BY seq");
    let steps = all(conn, sql, (sample.mandate, sample.cycle, sample.epoch), row::step)?;
    let mandate = claim::handed_out(Mandate { cycle: sample.cycle, attempt: sample.attempt, ..mandate });
    Ok(RecordedCycle {
        mandate,
        generation,
        started_at,
        steps,
        state: sample.state,
        report: sample.report,
        usage: sample.usage,
    })
}
