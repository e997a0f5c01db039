//! Money and calls: rows of usage, the cached sum of each day, and the gate in front of both.
//!
//! The sum of a day always equals its rows. A limit binds what the host reserves; what a runner
//! claims afterwards is booked in full, even past it.

use chrono::{DateTime, Utc};
use kairos_plugin_api::Usage;
use rusqlite::Connection;

use super::fail::Res;
use super::row::{micros, number, usage as usage_columns};
use super::txn::{Txn, all, first};
use crate::domain::budget;
use crate::store::{BudgetBlock, BudgetGate, DayTotals};

/// Largest amount one row holds. A runner may claim any number; the sums must stay exact.
const MOST: u64 = 1 << 53;

/// What a row of usage stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call the host made.
    Call,
    /// Usage a runner stated while it ran.
    Delta,
    /// What its report claims beyond that.
    Claim,
}

/// How sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A call under way.
    Reserved,
    /// The real figure.
    Settled,
    /// Nobody knows; counted as reserved.
    Unknown,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Delta => "delta",
            Self::Claim => "claim",
        }
    }
}

impl Standing {
    fn word(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Settled => "settled",
            Self::Unknown => "unknown",
        }
    }
}

/// To whom usage is booked.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// Number of the mandate.
    pub mandate: i64,
    /// Cycle.
    pub cycle: u32,
    /// Attempt.
    pub attempt: u32,
    /// Step, for a call.
    pub seq: Option<u32>,
    /// Day of the ledger.
    pub day: &'a str,
}

impl<'a> Account<'a> {
    /// That of a step's call.
    pub fn of_step(mandate: i64, (cycle, attempt, seq): (u32, u32, u32), day: &'a str) -> Self {
        Self { mandate, cycle, attempt, seq: Some(seq), day }
    }
}

/// The sum of a day.
pub fn day(conn: &Connection, day: &str) -> Res<DayTotals> {
    let sql =
        "SELECT calls, input, output, cost, r_calls, r_input, r_output, r_cost FROM ledger WHERE day=?1";
    let totals = first(conn, sql, [day], |row| {
        Ok(DayTotals { spent: usage_columns(row, 0)?, reserved: usage_columns(row, 4)? })
    })?;
    Ok(totals.unwrap_or_default())
}

fn put_day(txn: &Txn<'_>, day: &str, totals: DayTotals) -> Res<()> {
    let DayTotals { spent, reserved } = totals;
    let [a, b, c, d] = columns(spent);
    let [e, f, g, h] = columns(reserved);
    txn.exec(
        "INSERT INTO ledger VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT(day) DO UPDATE SET \
         calls=?2, input=?3, output=?4, cost=?5, r_calls=?6, r_input=?7, r_output=?8, r_cost=?9",
        (day, a, b, c, d, e, f, g, h),
    )?;
    Ok(())
}

/// Amounts as they are stored.
fn columns(usage: Usage) -> [i64; 4] {
    [usage.llm_calls, usage.input_tokens, usage.output_tokens, usage.cost_nano_usd]
        .map(|amount| i64::try_from(amount).unwrap_or(i64::MAX))
}

fn capped(usage: Usage) -> Usage {
    Usage {
        llm_calls: usage.llm_calls.min(MOST),
        input_tokens: usage.input_tokens.min(MOST),
        output_tokens: usage.output_tokens.min(MOST),
        cost_nano_usd: usage.cost_nano_usd.min(MOST),
    }
}

/// Books settled usage that no step stands for. Nothing is written for nothing.
pub fn book_some(
    txn: &Txn<'_>,
    account: Account<'_>,
    kind: Kind,
    amount: Usage,
    at: DateTime<Utc>,
) -> Res<()> {
    if amount.is_zero() {
        return Ok(());
    }
    book(txn, account, kind, Standing::Settled, amount, at).map(|_| ())
}

/// Books an amount and gives the row's number.
pub fn book(
    txn: &Txn<'_>,
    account: Account<'_>,
    kind: Kind,
    standing: Standing,
    amount: Usage,
    at: DateTime<Utc>,
) -> Res<i64> {
    let amount = capped(amount);
    let mut totals = day(txn.conn, account.day)?;
    match standing {
        Standing::Reserved => totals.reserved = totals.reserved.plus(amount),
        Standing::Settled | Standing::Unknown => totals.spent = totals.spent.plus(amount),
    }
    put_day(txn, account.day, totals)?;
    let [calls, input, output, cost] = columns(amount);
    txn.exec(
        "INSERT INTO usage(mandate, cycle, attempt, seq, day, kind, state, calls, input, output, cost, at) \
         VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        (
            account.mandate,
            account.cycle,
            account.attempt,
            account.seq,
            account.day,
            kind.word(),
            standing.word(),
            calls,
            input,
            output,
            cost,
            micros(at),
        ),
    )?;
    Ok(txn.conn.last_insert_rowid())
}

/// Turns a reservation, or a figure nobody knew, into what it really was; `None` leaves the amount
/// and counts it as spent. Gives the amount and the day it is booked on.
pub fn settle(txn: &Txn<'_>, row: i64, real: Option<Usage>) -> Res<Option<(Usage, String)>> {
    let sql = "SELECT calls, input, output, cost, day, state FROM usage WHERE n=?1";
    let Some((held, date, reserved)) = txn.first(sql, [row], |row| {
        Ok((usage_columns(row, 0)?, row.get::<_, String>(4)?, row.get_ref(5)?.as_str()? == "reserved"))
    })?
    else {
        // Its mandate was pruned while a straggler was still on its way.
        return Ok(None);
    };
    let amount = real.map_or(held, capped);
    let mut totals = day(txn.conn, &date)?;
    if reserved {
        totals.reserved = totals.reserved.minus(held);
    } else {
        totals.spent = totals.spent.minus(held);
    }
    totals.spent = totals.spent.plus(amount);
    put_day(txn, &date, totals)?;
    let standing = if real.is_some() { Standing::Settled } else { Standing::Unknown };
    let [calls, input, output, cost] = columns(amount);
    txn.exec(
        "UPDATE usage SET state=?2, calls=?3, input=?4, output=?5, cost=?6 WHERE n=?1",
        (row, standing.word(), calls, input, output, cost),
    )?;
    Ok(Some((amount, date)))
}

/// Finds every open reservation; must go through the index of them.
pub const RESERVED: &str = "SELECT n, calls FROM usage WHERE state='reserved'";

/// Reservations that nobody will settle any more become `unknown`, of one mandate or of all.
/// Gives how many calls that were.
pub fn give_up(txn: &Txn<'_>, mandate: Option<i64>) -> Res<u64> {
    let rows = match mandate {
        Some(n) => {
            txn.all("SELECT n, calls FROM usage WHERE state='reserved' AND mandate=?1", [n], |row| {
                Ok((row.get::<_, i64>(0)?, number(row, 1)?))
            })?
        }
        None => txn.all(RESERVED, [], |row| Ok((row.get::<_, i64>(0)?, number(row, 1)?)))?,
    };
    let mut calls = 0;
    for (row, amount) in rows {
        settle(txn, row, None)?;
        calls += amount;
    }
    Ok(calls)
}

/// Everything booked on a cycle from that attempt on.
pub fn of_cycle(conn: &Connection, mandate: i64, cycle: u32, from_attempt: u32) -> Res<Usage> {
    let rows = all(
        conn,
        "SELECT calls, input, output, cost FROM usage WHERE mandate=?1 AND cycle=?2 AND attempt>=?3",
        (mandate, cycle, from_attempt),
        |row| usage_columns(row, 0),
    )?;
    Ok(rows.into_iter().fold(Usage::ZERO, Usage::plus))
}

/// What is booked on one attempt of a cycle.
pub fn of_attempt(conn: &Connection, mandate: i64, cycle: u32, attempt: u32) -> Res<Usage> {
    let rows = all(
        conn,
        "SELECT calls, input, output, cost FROM usage WHERE mandate=?1 AND cycle=?2 AND attempt=?3",
        (mandate, cycle, attempt),
        |row| usage_columns(row, 0),
    )?;
    Ok(rows.into_iter().fold(Usage::ZERO, Usage::plus))
}

/// What no step's line carries of a cycle's usage from that attempt on, by day: deltas, claims, and
/// calls whose step was begun again.
pub fn unmetered(
    conn: &Connection,
    mandate: i64,
    cycle: u32,
    from_attempt: u32,
) -> Res<Vec<(String, Usage)>> {
    let rows = all(
        conn,
        "SELECT calls, input, output, cost, day FROM usage \
         WHERE mandate=?1 AND cycle=?2 AND attempt>=?3 AND (kind<>'call' OR n NOT IN \
         (SELECT usage FROM step WHERE mandate=?1 AND cycle=?2 AND usage IS NOT NULL)) ORDER BY n",
        (mandate, cycle, from_attempt),
        |row| Ok((row.get::<_, String>(4)?, usage_columns(row, 0)?)),
    )?;
    let mut days: Vec<(String, Usage)> = Vec::new();
    for (day, usage) in rows {
        match days.iter_mut().find(|(known, _)| *known == day) {
            Some((_, sum)) => *sum = sum.plus(usage),
            None => days.push((day, usage)),
        }
    }
    Ok(days)
}

/// Why nothing may start on that day, if so.
pub fn blocked(conn: &Connection, gate: Option<&BudgetGate>) -> Res<Option<BudgetBlock>> {
    let Some(gate) = gate else { return Ok(None) };
    Ok(budget::exceeded(&gate.limits, &day(conn, &gate.day)?))
}

/// Why a reservation does not fit, if so.
pub fn refused(conn: &Connection, gate: Option<&BudgetGate>, ask: Usage) -> Res<Option<BudgetBlock>> {
    let Some(gate) = gate else { return Ok(None) };
    Ok(budget::refused(&gate.limits, &day(conn, &gate.day)?, ask))
}
