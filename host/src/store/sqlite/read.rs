//! What people see, read from what is committed. Each function is one look; no snapshot outlives it.

use chrono::{DateTime, Utc};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, Row};
use serde_json::Value;

use super::fail::{Fail, Res};
use super::ledger;
use super::row::{self, MANDATE, Mandate, maybe_json, maybe_time, micros, number, time};
use super::schedules;
use super::txn::{all, first};
use crate::domain::mandate::{CycleStatus, MandateState};
use crate::store::{
    Counts, CycleRow, Error, EventRow, MandateFilter, MandateRow, OccurrenceRow, ScheduleState, StepRow,
    WalHead,
};

/// Every schedule.
pub fn schedules(conn: &Connection) -> Res<Vec<ScheduleState>> {
    all(conn, schedules::select_all(), [], |row| Ok(schedules::read(row)?.state))
}

/// Mandates that match, newest first.
pub fn mandates(conn: &Connection, filter: &MandateFilter) -> Res<Vec<MandateRow>> {
    let mut sql = format!(
        "SELECT {MANDATE}, wait.value FROM mandate LEFT JOIN meta AS wait \
         ON mandate.state='queued' AND wait.key='wait:'||mandate.runner||coalesce('/'||json_extract(bounds, '$.params.command'), '') \
         WHERE 1"
    );
    let mut values: Vec<Sql> = Vec::new();
    if !filter.states.is_empty() {
        let words: Vec<_> = filter.states.iter().map(|state| format!("'{state}'")).collect();
        sql.push_str(&format!(" AND state IN ({})", words.join(",")));
        if filter.states.iter().all(|state| !state.is_end()) {
            sql.push_str(" AND ended IS NULL");
        }
    }
    let mut bound = |sql: &mut String, clause: &str, value: Sql| {
        values.push(value);
        sql.push_str(&format!(" AND {clause}?{}", values.len()));
    };
    if let Some(schedule) = &filter.schedule {
        bound(&mut sql, "schedule=", Sql::Text(schedule.clone()));
    }
    if let Some(since) = filter.since {
        bound(&mut sql, "created>=", Sql::Integer(micros(since)));
    }
    if let Some(until) = filter.until {
        bound(&mut sql, "created<", Sql::Integer(micros(until)));
    }
    sql.push_str(" ORDER BY n DESC");
    if filter.limit > 0 {
        sql.push_str(&format!(" LIMIT {}", filter.limit));
    }
    let mut statement = conn.prepare(&sql)?;
    let rows = statement.query_map(rusqlite::params_from_iter(values), with_wait)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// One mandate.
pub fn mandate(conn: &Connection, id: &str) -> Res<MandateRow> {
    let mandate = Mandate::load(conn, id)?;
    let wait = if mandate.state == MandateState::Queued {
        let sql = "SELECT value FROM meta WHERE key='wait:'||?1||coalesce('/'||json_extract(?2, '$.params.command'), '')";
        let bounds =
            serde_json::to_string(&mandate.bounds).expect("bounds have text keys and plain values only");
        first(conn, sql, [&mandate.runner, &bounds], |row| row.get::<_, String>(0))?
    } else {
        None
    };
    let mut row = mandate.into_row();
    row.reason = wait.or(row.reason);
    Ok(row)
}

/// While its runner cannot take work, that is why a mandate waits.
fn with_wait(row: &Row<'_>) -> rusqlite::Result<MandateRow> {
    let wait: Option<String> = row.get("value")?;
    let mut mandate = Mandate::read(row)?.into_row();
    mandate.reason = wait.or(mandate.reason);
    Ok(mandate)
}

/// Number of a mandate.
pub fn number_of(conn: &Connection, id: &str) -> Res<i64> {
    first(conn, "SELECT n FROM mandate WHERE id=?1", [id], |row| row.get(0))?
        .ok_or_else(|| Fail::Store(Error::NotFound { kind: "mandate", name: id.to_owned() }))
}

/// Its attempts, oldest first.
pub fn cycles(conn: &Connection, id: &str) -> Res<Vec<CycleRow>> {
    let n = number_of(conn, id)?;
    let mut rows = all(
        conn,
        "SELECT cycle, attempt, runner, generation, status, started, ended, summary, error FROM cycle \
         WHERE mandate=?1 ORDER BY started, cycle, attempt",
        [n],
        |row| {
            Ok(CycleRow {
                cycle: row.get(0)?,
                attempt: row.get(1)?,
                runner: row.get(2)?,
                generation: row.get(3)?,
                status: row.get::<_, Option<String>>(4)?.as_deref().and_then(CycleStatus::parse),
                started_at: time(row, 5)?,
                ended_at: maybe_time(row, 6)?,
                usage: kairos_plugin_api::Usage::ZERO,
                summary: row.get(7)?,
                error: row.get(8)?,
            })
        },
    )?;
    let booked = all(
        conn,
        "SELECT calls, input, output, cost, cycle, attempt FROM usage WHERE mandate=?1",
        [n],
        |row| Ok((row.get::<_, u32>(4)?, row.get::<_, u32>(5)?, row::usage(row, 0)?)),
    )?;
    for (cycle, attempt, usage) in booked {
        if let Some(row) = rows.iter_mut().find(|row| (row.cycle, row.attempt) == (cycle, attempt)) {
            row.usage = row.usage.plus(usage);
        }
    }
    Ok(rows)
}

/// Its steps, oldest first.
pub fn steps(conn: &Connection, id: &str) -> Res<Vec<StepRow>> {
    let sql = row::select_steps!("ORDER BY n");
    all(conn, sql, [number_of(conn, id)?], row::step)
}

fn occurrence_row(row: &Row<'_>) -> rusqlite::Result<OccurrenceRow> {
    Ok(OccurrenceRow {
        schedule: row.get(0)?,
        from: time(row, 1)?,
        to: time(row, 2)?,
        count: number(row, 3)?,
        outcome: row.get(4)?,
        reason: row.get(5)?,
        mandate: row.get(6)?,
        decided_at: time(row, 7)?,
    })
}

/// The outcome of one occurrence.
pub fn occurrence(conn: &Connection, schedule: &str, nominal: DateTime<Utc>) -> Res<OccurrenceRow> {
    let known = schedules::load(conn, schedule)?;
    let found = first(
        conn,
        "SELECT ?1, first, last, count, outcome, reason, (SELECT id FROM mandate WHERE n=occurrence.mandate), decided \
         FROM occurrence WHERE schedule=?2 AND first<=?3 ORDER BY first DESC LIMIT 1",
        (schedule, known.n, micros(nominal)),
        occurrence_row,
    )?;
    found.filter(|found| found.to >= nominal).ok_or_else(|| {
        let name = format!("{schedule} at {}", nominal.to_rfc3339());
        Fail::Store(Error::NotFound { kind: "occurrence", name })
    })
}

/// Outcomes of a schedule, newest first.
pub fn occurrences(conn: &Connection, schedule: &str, limit: usize) -> Res<Vec<OccurrenceRow>> {
    let known = schedules::load(conn, schedule)?;
    all(
        conn,
        "SELECT ?1, first, last, count, outcome, reason, (SELECT id FROM mandate WHERE n=occurrence.mandate), decided \
         FROM occurrence WHERE schedule=?2 ORDER BY first DESC LIMIT ?3",
        (schedule, known.n, capped(limit)),
        occurrence_row,
    )
}

fn capped(limit: usize) -> i64 {
    if limit == 0 { -1 } else { i64::try_from(limit).unwrap_or(i64::MAX) }
}

/// Lines of a mandate's log.
pub fn wal_lines(conn: &Connection, id: &str, from: u64) -> Res<Vec<String>> {
    let from = i64::try_from(from).unwrap_or(i64::MAX);
    let sql = "SELECT line FROM walrec WHERE mandate=?1 AND seq>=?2 ORDER BY seq";
    all(conn, sql, (number_of(conn, id)?, from), |row| row.get(0))
}

/// Where the logs stand.
pub fn wal_heads(conn: &Connection, open_only: bool) -> Res<Vec<WalHead>> {
    let sql = if open_only {
        "SELECT id, 0, seq, crc FROM mandate INDEXED BY mandate_open WHERE ended IS NULL AND (seq>0 OR crc<>0)"
    } else {
        "SELECT id, ended IS NOT NULL, seq, crc FROM mandate WHERE seq>0 OR crc<>0 ORDER BY n"
    };
    all(conn, sql, [], |row| {
        Ok(WalHead { mandate: row.get(0)?, ended: row.get(1)?, seq: number(row, 2)?, crc: row.get(3)? })
    })
}

/// A glance at the queue.
pub fn counts(conn: &Connection) -> Res<Counts> {
    let mut counts = Counts::default();
    let rows = all(
        conn,
        "SELECT state, count(*) FROM mandate INDEXED BY mandate_open WHERE ended IS NULL GROUP BY state",
        [],
        |row| Ok((row.get::<_, String>(0)?, number(row, 1)?)),
    )?;
    for (state, count) in rows {
        match MandateState::parse(&state) {
            Some(MandateState::Queued) => counts.queued += count,
            Some(MandateState::Review) => counts.review += count,
            Some(MandateState::Running) | None => {}
            Some(_) => counts.paused += count,
        }
    }
    counts.running = all(
        conn,
        "SELECT mandate.id FROM mandate JOIN cycle ON cycle.mandate=mandate.n AND cycle.cycle=mandate.cycle \
         AND cycle.attempt=mandate.attempt WHERE mandate.state='running' AND mandate.ended IS NULL \
         ORDER BY cycle.started, mandate.n",
        [],
        |row| row.get(0),
    )?;
    Ok(counts)
}

/// Events after one, oldest first.
pub fn events(conn: &Connection, after: i64, limit: usize) -> Res<Vec<EventRow>> {
    all(
        conn,
        "SELECT id, at, kind, schedule, mandate, details FROM event WHERE id>?1 ORDER BY id LIMIT ?2",
        (after, capped(limit)),
        |row| {
            Ok(EventRow {
                id: row.get(0)?,
                at: time(row, 1)?,
                kind: row.get(2)?,
                schedule: row.get(3)?,
                mandate: row.get(4)?,
                details: maybe_json(row, 5)?.unwrap_or(Value::Null),
            })
        },
    )
}

/// The ledger of a day.
pub fn day(conn: &Connection, day: &str) -> Res<crate::store::DayTotals> {
    ledger::day(conn, day)
}
