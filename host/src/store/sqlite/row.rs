//! Rows of the tables as Rust values, and the other way round. A value that does not read back is
//! damage, and is reported as such, never replaced by a default.

use chrono::{DateTime, Utc};
use kairos_plugin_api::Usage;
use rusqlite::types::Type;
use rusqlite::{Connection, Row};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fail::{Fail, Res};
use super::txn::first;
use crate::domain::mandate::MandateState;
use crate::domain::schedule::MandateBounds;
use crate::store::{Error, MandateRow, Origin, StepKind, StepRow};

/// Microseconds since 1970; what is finer is cut off.
#[must_use]
pub fn micros(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros()
}

/// The time of a column.
pub fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<DateTime<Utc>> {
    let micros: i64 = row.get(column)?;
    DateTime::from_timestamp_micros(micros).ok_or_else(|| unreadable(column, "a time out of range"))
}

/// The time of a column that may be null.
pub fn maybe_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<DateTime<Utc>>> {
    row.get::<_, Option<i64>>(column)?.map(|_| time(row, column)).transpose()
}

/// A JSON column.
pub fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// A JSON column that may be null.
pub fn maybe_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    if row.get_ref(column)? == rusqlite::types::ValueRef::Null {
        Ok(None)
    } else {
        json(row, column).map(Some)
    }
}

/// A column that holds the JSON word of an enum.
pub fn word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text))
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// A whole number that is never negative.
pub fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| unreadable(column, "a negative number"))
}

/// Four columns of usage, from `column` on.
pub fn usage(row: &Row<'_>, column: usize) -> rusqlite::Result<Usage> {
    Ok(Usage {
        llm_calls: number(row, column)?,
        input_tokens: number(row, column + 1)?,
        output_tokens: number(row, column + 2)?,
        cost_nano_usd: number(row, column + 3)?,
    })
}

fn unreadable(column: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Integer, what.into())
}

impl Origin {
    /// The word in the store.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Manual => "manual",
            Self::Backfill => "backfill",
        }
    }
}

impl StepKind {
    /// The word in the store.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Llm => "llm",
            Self::Tool => "tool",
            Self::Propose => "propose",
            Self::Answer => "answer",
        }
    }
}

/// Columns of [`Mandate`], in its order.
pub const MANDATE: &str = "n, id, origin, schedule, nominal, goal, runner, scope, bounds, state, \
     reason, created, ended, not_before, place, cycle, attempt, epoch, record, generation, phases, noted, \
     as_of, errors, deaths, stop, seq, crc, request, parked";

/// A mandate as the transactions work on it.
#[derive(Clone, Debug)]
pub struct Mandate {
    /// Number in the store.
    pub n: i64,
    /// Id.
    pub id: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Its schedule.
    pub schedule: Option<String>,
    /// When it was due.
    pub nominal: Option<DateTime<Utc>>,
    /// Goal.
    pub goal: String,
    /// Runner.
    pub runner: String,
    /// Scope.
    pub scope: Option<String>,
    /// Bounds.
    pub bounds: MandateBounds,
    /// Where it stands.
    pub state: MandateState,
    /// Why.
    pub reason: Option<String>,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// When it ended.
    pub ended: Option<DateTime<Utc>>,
    /// Earliest start.
    pub not_before: Option<DateTime<Utc>>,
    /// Place in the queue.
    pub place: Option<i64>,
    /// Current or last cycle.
    pub cycle: u32,
    /// Its current or last attempt.
    pub attempt: u32,
    /// The attempt its record of steps began with.
    pub epoch: u32,
    /// What its next start does.
    pub record: Record,
    /// The generation that began it.
    pub generation: Option<String>,
    /// Its plan has the five phases.
    pub phases: bool,
    /// The phases its record has seen, the last one under way.
    pub noted: Vec<String>,
    /// Version of the runner's state at the cycle's start.
    pub as_of: i64,
    /// Cycles in a row that failed.
    pub errors: u32,
    /// What the deaths in a row while it ran add up to: of daemons, and of workers.
    pub deaths: u32,
    /// Somebody asked it to stop.
    pub stop: bool,
    /// Head of its log: number of the last line.
    pub seq: u64,
    /// And that line's crc.
    pub crc: u32,
    /// The client's own id of the request that made it.
    pub request: Option<String>,
    /// The day it was paused for want of budget.
    pub parked: Option<String>,
}

/// What the next start of a mandate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Starts the next cycle.
    Next,
    /// Goes on with this cycle: its steps are replayed, on the generation that began it.
    Continue,
    /// Starts this cycle again, with an empty record.
    Afresh,
}

impl Record {
    fn read(row: &Row<'_>, column: usize) -> rusqlite::Result<Self> {
        match row.get(column)? {
            0 => Ok(Self::Next),
            1 => Ok(Self::Continue),
            2 => Ok(Self::Afresh),
            _ => Err(unreadable(column, "no kind of record")),
        }
    }

    fn number(self) -> i64 {
        match self {
            Self::Next => 0,
            Self::Continue => 1,
            Self::Afresh => 2,
        }
    }
}

impl Mandate {
    /// From a row of the columns [`MANDATE`].
    pub fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            n: row.get(0)?,
            id: row.get(1)?,
            origin: word(row, 2)?,
            schedule: row.get(3)?,
            nominal: maybe_time(row, 4)?,
            goal: row.get(5)?,
            runner: row.get(6)?,
            scope: row.get(7)?,
            bounds: json(row, 8)?,
            state: word(row, 9)?,
            reason: row.get(10)?,
            created: time(row, 11)?,
            ended: maybe_time(row, 12)?,
            not_before: maybe_time(row, 13)?,
            place: row.get(14)?,
            cycle: row.get(15)?,
            attempt: row.get(16)?,
            epoch: row.get(17)?,
            record: Record::read(row, 18)?,
            generation: row.get(19)?,
            phases: row.get(20)?,
            noted: maybe_json(row, 21)?.unwrap_or_default(),
            as_of: row.get(22)?,
            errors: row.get(23)?,
            deaths: row.get(24)?,
            stop: row.get(25)?,
            seq: number(row, 26)?,
            crc: row.get(27)?,
            request: row.get(28)?,
            parked: row.get(29)?,
        })
    }

    /// The mandate of that id.
    pub fn load(conn: &Connection, id: &str) -> Res<Self> {
        let sql = const_format(SelectBy::Id);
        first(conn, sql, [id], Self::read)?
            .ok_or_else(|| Fail::Store(Error::NotFound { kind: "mandate", name: id.to_owned() }))
    }

    /// The mandate of that number.
    pub fn load_number(conn: &Connection, n: i64) -> Res<Self> {
        let sql = const_format(SelectBy::Number);
        first(conn, sql, [n], Self::read)?
            .ok_or_else(|| Fail::Store(Error::NotFound { kind: "mandate", name: n.to_string() }))
    }

    /// Writes back everything that changes in a mandate's life.
    pub fn save(&self, conn: &Connection) -> Res<()> {
        conn.prepare_cached(
            "UPDATE mandate SET state=?2, reason=?3, ended=?4, not_before=?5, place=?6, cycle=?7, attempt=?8, \
             epoch=?9, record=?10, generation=?11, phases=?12, noted=?13, as_of=?14, errors=?15, deaths=?16, \
             stop=?17, seq=?18, crc=?19, parked=?20 WHERE n=?1",
        )?
        .execute(rusqlite::params![
            self.n,
            self.state.as_str(),
            self.reason,
            self.ended.map(micros),
            self.not_before.map(micros),
            self.place,
            self.cycle,
            self.attempt,
            self.epoch,
            self.record.number(),
            self.generation,
            self.phases,
            (!self.noted.is_empty()).then(|| serde_json::json!(self.noted).to_string()),
            self.as_of,
            self.errors,
            self.deaths,
            self.stop,
            self.seq.cast_signed(),
            self.crc,
            self.parked,
        ])?;
        Ok(())
    }

    /// Whom the runner's state belongs to: the runner's part of one schedule, or of one mandate
    /// that no schedule fired.
    #[must_use]
    pub fn owner(&self) -> String {
        match &self.schedule {
            Some(schedule) => format!("{}/schedule:{schedule}", self.runner),
            None => format!("{}/mandate:{}", self.runner, self.id),
        }
    }

    /// As people see it.
    #[must_use]
    pub fn into_row(self) -> MandateRow {
        MandateRow {
            id: self.id,
            schedule: self.schedule,
            origin: self.origin,
            runner: self.runner,
            goal: self.goal,
            scope: self.scope,
            state: self.state,
            reason: self.reason,
            nominal_at: self.nominal,
            created_at: self.created,
            ended_at: self.ended,
            not_before: self.not_before,
            cycle: self.cycle,
            bounds: self.bounds,
        }
    }
}

enum SelectBy {
    Id,
    Number,
}

/// Statements that are looked up by their text should not be put together on every call.
fn const_format(by: SelectBy) -> &'static str {
    use std::sync::LazyLock;
    static BY_ID: LazyLock<String> = LazyLock::new(|| format!("SELECT {MANDATE} FROM mandate WHERE id=?1"));
    static BY_NUMBER: LazyLock<String> =
        LazyLock::new(|| format!("SELECT {MANDATE} FROM mandate WHERE n=?1"));
    match by {
        SelectBy::Id => &BY_ID,
        SelectBy::Number => &BY_NUMBER,
    }
}

/// Selects steps as [`step`] reads them; the clauses that follow differ.
macro_rules! select_steps {
    ($clauses:literal) => {
        concat!(
            "SELECT cycle, seq, kind, name, phase, state, key, params_hash, intent, result, started, ended ",
            "FROM step WHERE mandate=?1 ",
            $clauses
        )
    };
}
pub(super) use select_steps;

/// From a row of [`select_steps`].
pub fn step(row: &Row<'_>) -> rusqlite::Result<StepRow> {
    Ok(StepRow {
        cycle: row.get(0)?,
        seq: row.get(1)?,
        kind: word(row, 2)?,
        name: row.get(3)?,
        phase: row.get(4)?,
        state: word(row, 5)?,
        key: row.get(6)?,
        params_hash: row.get(7)?,
        intent: json::<Value>(row, 8)?,
        result: maybe_json(row, 9)?,
        started_at: time(row, 10)?,
        ended_at: maybe_time(row, 11)?,
    })
}
