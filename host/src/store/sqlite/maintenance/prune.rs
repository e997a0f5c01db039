//! Lets old history go, in transactions so short that nobody notices. Open mandates are never
//! touched, and no day of the ledger ever counts less.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::fail::Res;
use super::super::row::micros;
use super::super::txn::{Txn, all};
use super::rebuild::NOBODY;
use crate::store::Result;
use crate::store::sqlite::SqliteStore;

/// Mandates in one transaction; each has some dozens of rows.
const MANDATES: usize = 16;
/// Rows of a plain table in one transaction.
const ROWS: usize = 500;
/// Schedules whose outcomes are looked at in one transaction.
const SCHEDULES: usize = 256;
/// Days of the ledger in one transaction; each has a handful of rows left.
const DAYS: usize = 16;

/// What went, or would go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Ended mandates, with their cycles, steps and usage rows.
    pub mandates: u64,
    /// Ended mandates that stay because their log is not archived yet.
    pub unarchived: u64,
    /// Runs of outcomes.
    pub occurrences: u64,
    /// Events.
    pub events: u64,
    /// Days of the ledger.
    pub days: u64,
    /// True when nothing was changed.
    pub dry_run: bool,
}

/// Ended before that time; the log has left the store, or there never was one.
const ENDED: &str = "SELECT n FROM mandate INDEXED BY mandate_ended WHERE ended IS NOT NULL AND ended<?1 \
     AND NOT EXISTS (SELECT 1 FROM walrec WHERE walrec.mandate=mandate.n)";

impl SqliteStore {
    /// Lets go of mandates that ended before `before`, and of outcomes, events and days of the
    /// ledger older than that. May run beside everything else; cut short, what is done stays done.
    ///
    /// `progress` hears of the mandates done and their total. Blocks; must not be called on an async
    /// runtime's thread.
    ///
    /// # Errors
    /// Of the store.
    pub fn prune(
        &self,
        before: DateTime<Utc>,
        dry_run: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Pruned> {
        let at = micros(before);
        let day = before.format("%Y-%m-%d").to_string();
        let look = day.clone();
        let mut pruned = self.look(move |conn| {
            let count = |sql: &str| -> Res<u64> {
                Ok(conn.query_row(sql, [at], |row| row.get::<_, i64>(0))?.unsigned_abs())
            };
            let mandates = count(&format!("SELECT count(*) FROM ({ENDED})"))?;
            let ended = count("SELECT count(*) FROM mandate WHERE ended IS NOT NULL AND ended<?1")?;
            Ok(Pruned {
                mandates,
                unarchived: ended - mandates,
                occurrences: count("SELECT count(*) FROM occurrence WHERE last<?1")?,
                events: count("SELECT count(*) FROM event WHERE at<?1")?,
                days: conn
                    .query_row("SELECT count(*) FROM ledger WHERE day<?1", [look], |row| {
                        row.get::<_, i64>(0)
                    })?
                    .unsigned_abs(),
                dry_run,
            })
        })?;
        if dry_run {
            return Ok(pruned);
        }
        let total = pruned.mandates;
        pruned.mandates = 0;
        loop {
            let gone = self.run(move |txn| mandates(txn, at)).wait()?;
            pruned.mandates += gone;
            progress(pruned.mandates, total.max(pruned.mandates));
            if gone < MANDATES as u64 {
                break;
            }
        }
        pruned.occurrences = self.prune_occurrences(at)?;
        pruned.events = self.prune_events(at)?;
        pruned.days = self.prune_days(day)?;
        Ok(pruned)
    }

    /// Schedule by schedule, so that no request looks at more than it removes.
    fn prune_occurrences(&self, before: i64) -> Result<u64> {
        let schedules =
            self.look(|conn| all(conn, "SELECT n FROM schedule ORDER BY n", [], |row| row.get(0)))?;
        let mut gone = 0;
        for chunk in schedules.chunks(SCHEDULES) {
            loop {
                let chunk: Vec<i64> = chunk.to_vec();
                let removed = self.run(move |txn| occurrences(txn, &chunk, before)).wait()?;
                gone += removed as u64;
                if removed < ROWS {
                    break;
                }
            }
        }
        Ok(gone)
    }

    fn prune_events(&self, before: i64) -> Result<u64> {
        // Ids grow with time, so what is too old lies below the newest of it. Found on a reader: the
        // table has no index by time.
        let newest = self.look(move |conn| {
            Ok(conn.query_row("SELECT max(id) FROM event WHERE at<?1", [before], |row| {
                row.get::<_, Option<i64>>(0)
            })?)
        })?;
        let Some(newest) = newest else { return Ok(0) };
        let mut gone = 0;
        loop {
            let removed =
                self.run(move |txn| txn.exec(EVENTS, (before, newest, ROWS.cast_signed()))).wait()?;
            gone += removed as u64;
            if removed < ROWS {
                return Ok(gone);
            }
        }
    }

    /// Days of which only the sums of pruned mandates are left.
    fn prune_days(&self, before: String) -> Result<u64> {
        let old: Vec<String> = self.look(move |conn| {
            let held: HashSet<String> = all(
                conn,
                "SELECT DISTINCT day FROM usage WHERE day<?1 AND mandate<>?2",
                (&before, NOBODY),
                |row| row.get(0),
            )?
            .into_iter()
            .collect();
            let known: Vec<String> =
                all(conn, "SELECT day FROM ledger WHERE day<?1", [&before], |row| row.get(0))?;
            Ok(known.into_iter().filter(|day| !held.contains(day)).collect())
        })?;
        let count = old.len() as u64;
        for chunk in old.chunks(DAYS) {
            let chunk = chunk.to_vec();
            self.run(move |txn| {
                for day in &chunk {
                    txn.exec("DELETE FROM usage WHERE mandate=?1 AND day=?2", (NOBODY, day))?;
                    txn.exec("DELETE FROM ledger WHERE day=?1", [day])?;
                }
                Ok(())
            })
            .wait()?;
        }
        Ok(count)
    }
}

const EVENTS: &str =
    "DELETE FROM event WHERE id IN (SELECT id FROM event WHERE id<=?2 AND at<?1 ORDER BY id LIMIT ?3)";

fn occurrences(txn: &mut Txn<'_>, schedules: &[i64], before: i64) -> Res<usize> {
    let mut removed = 0;
    for n in schedules {
        removed += txn.exec(
            "DELETE FROM occurrence WHERE schedule=?1 AND first IN (SELECT first FROM occurrence \
             WHERE schedule=?1 AND first<?2 AND last<?2 ORDER BY first LIMIT ?3)",
            (n, before, (ROWS - removed).cast_signed()),
        )?;
        if removed >= ROWS {
            break;
        }
    }
    Ok(removed)
}

fn mandates(txn: &mut Txn<'_>, before: i64) -> Res<u64> {
    let sql = format!("{ENDED} ORDER BY ended LIMIT {MANDATES}");
    let batch = txn.all(&sql, [before], |row| row.get::<_, i64>(0))?;
    for n in &batch {
        keep_usage(txn, *n)?;
        txn.exec(
            "DELETE FROM state WHERE owner=(SELECT runner||'/mandate:'||id FROM mandate WHERE n=?1 AND schedule IS NULL)",
            [n],
        )?;
        for sql in [
            "DELETE FROM recent WHERE mandate=?1",
            "DELETE FROM step WHERE mandate=?1",
            "DELETE FROM cycle WHERE mandate=?1",
            "DELETE FROM usage WHERE mandate=?1",
            "DELETE FROM mandate WHERE n=?1",
        ] {
            txn.exec(sql, [n])?;
        }
    }
    Ok(batch.len() as u64)
}

/// The sum of a day must go on being the sum of its rows: what a mandate used stays, as one row of
/// nobody a day.
fn keep_usage(txn: &Txn<'_>, n: i64) -> Res<()> {
    let days = txn.all(
        "SELECT day, sum(calls), sum(input), sum(output), sum(cost), max(at) FROM usage WHERE mandate=?1 GROUP BY day",
        [n],
        |row| {
            let amount = |column| row.get::<_, i64>(column);
            Ok((row.get::<_, String>(0)?, [amount(1)?, amount(2)?, amount(3)?, amount(4)?], amount(5)?))
        },
    )?;
    for (day, [calls, input, output, cost], at) in days {
        let kept = txn.exec(
            "UPDATE usage SET calls=calls+?3, input=input+?4, output=output+?5, cost=cost+?6, at=max(at, ?7) \
             WHERE n=(SELECT min(n) FROM usage WHERE mandate=?1 AND day=?2)",
            (NOBODY, &day, calls, input, output, cost, at),
        )?;
        if kept == 0 {
            txn.exec(
                "INSERT INTO usage(mandate, cycle, attempt, day, kind, state, calls, input, output, cost, at) \
                 VALUES(?1, 0, 0, ?2, 'claim', 'settled', ?3, ?4, ?5, ?6, ?7)",
                (NOBODY, &day, calls, input, output, cost, at),
            )?;
        }
    }
    Ok(())
}
