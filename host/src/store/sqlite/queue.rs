//! How a mandate gets into the queue, and every way it leaves it other than being started: shared
//! by fires, by mandates made by hand and by commands.

use chrono::{DateTime, Utc};
use rusqlite::OptionalExtension;
use serde_json::json;

use super::fail::Res;
use super::lines;
use super::row::{Mandate, Record, micros};
use super::schedules;
use super::txn::{About, Txn};
use crate::domain::mandate::{CycleStatus, MandateEvent, MandateState};
use crate::domain::overlap::{self, Decision, KeyLoad};
use crate::domain::schedule::{MandateBounds, Overlap, overlap_key};
use crate::store::{Committed, Origin};

/// A mandate that wants to wait in the queue.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its id.
    pub id: &'a str,
    /// Where it comes from.
    pub origin: Origin,
    /// The client's own id.
    pub request: Option<&'a str>,
    /// Its schedule.
    pub schedule: Option<&'a str>,
    /// When it was due.
    pub nominal: Option<DateTime<Utc>>,
    /// Earliest start.
    pub not_before: Option<DateTime<Utc>>,
    /// Goal.
    pub goal: &'a str,
    /// Runner.
    pub runner: &'a str,
    /// Scope.
    pub scope: Option<&'a str>,
    /// Overlap policy.
    pub overlap: Overlap,
    /// Bounds.
    pub bounds: &'a MandateBounds,
    /// Wall time.
    pub now: DateTime<Utc>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It waits, under this number.
    Made(i64),
    /// Its overlap policy does not let it be.
    Dropped(&'static str),
}

/// Decides about the overlap and makes the mandate. Running mandates that must stop for it are
/// added to `cancel`.
pub fn enqueue(txn: &mut Txn<'_>, new: &Candidate<'_>, cancel: &mut Vec<String>) -> Res<Placed> {
    let key = overlap_key(new.scope, new.schedule);
    let decision = match &key {
        Some(key) => overlap::decide(new.overlap, load(txn, key, new.schedule)?),
        None => Decision::Enqueue,
    };
    if let Decision::Drop(reason) = decision {
        return Ok(Placed::Dropped(reason));
    }
    if let (Decision::Replace, Some(key)) = (decision, &key) {
        replace(txn, key, new.now, cancel)?;
    }
    let waits = new.not_before.is_some_and(|at| at > new.now);
    let place = match decision {
        _ if waits => None,
        Decision::EnqueueFront => Some(front(txn)?),
        _ => Some(back(txn)?),
    };
    txn.exec(
        "INSERT INTO mandate(id, request, origin, schedule, nominal, goal, runner, scope, okey, beside, bounds, \
         state, created, not_before, place) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,'queued',?12,?13,?14)",
        rusqlite::params![
            new.id,
            new.request,
            new.origin.word(),
            new.schedule,
            new.nominal.map(micros),
            new.goal,
            new.runner,
            new.scope,
            key,
            decision == Decision::EnqueueBeside,
            json!(new.bounds).to_string(),
            micros(new.now),
            new.not_before.map(micros),
            place,
        ],
    )?;
    let n = txn.conn.last_insert_rowid();
    let about = About { schedule: new.schedule, mandate: Some(new.id) };
    txn.event(new.now, "mandate_queued", about, json!({"origin": new.origin}))?;
    Ok(Placed::Made(n))
}

/// What runs and waits under a key, as the overlap rule wants it.
fn load(txn: &Txn<'_>, key: &str, schedule: Option<&str>) -> Res<KeyLoad> {
    let mut load = KeyLoad::default();
    let rows = txn.all(
        "SELECT state, schedule IS ?2, count(*) FROM mandate WHERE okey=?1 AND ended IS NULL GROUP BY 1, 2",
        (key, schedule),
        |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?, row.get::<_, u32>(2)?)),
    )?;
    for (state, same, count) in rows {
        let (all, own) = match MandateState::parse(&state) {
            Some(MandateState::Queued) => (&mut load.queued, &mut load.queued_same_schedule),
            // What waits for a person's judgement may do so for days and holds nobody up.
            Some(MandateState::Review) | None => continue,
            Some(_) => (&mut load.running, &mut load.running_same_schedule),
        };
        *all += count;
        if same {
            *own += count;
        }
    }
    Ok(load)
}

fn replace(txn: &mut Txn<'_>, key: &str, now: DateTime<Utc>, cancel: &mut Vec<String>) -> Res<()> {
    let open = txn.all(
        "SELECT n FROM mandate WHERE okey=?1 AND ended IS NULL AND state<>'review' ORDER BY n",
        [key],
        |row| row.get::<_, i64>(0),
    )?;
    for n in open {
        let mut old = Mandate::load_number(txn.conn, n)?;
        if old.state == MandateState::Running {
            old.stop = true;
            old.reason = Some("replaced".to_owned());
            old.save(txn.conn)?;
            cancel.push(old.id);
        } else {
            end(txn, &mut old, MandateEvent::Cancel, Some("replaced"), now)?;
            old.save(txn.conn)?;
        }
    }
    Ok(())
}

/// A place behind everybody.
pub fn back(txn: &Txn<'_>) -> Res<i64> {
    let sql = "SELECT place FROM mandate WHERE place IS NOT NULL ORDER BY place DESC LIMIT 1";
    Ok(txn.first(sql, [], |row| row.get::<_, i64>(0))?.unwrap_or(0) + 1)
}

/// A place before everybody.
pub fn front(txn: &Txn<'_>) -> Res<i64> {
    let sql = "SELECT place FROM mandate WHERE place IS NOT NULL ORDER BY place LIMIT 1";
    Ok(txn.first(sql, [], |row| row.get::<_, i64>(0))?.unwrap_or(1) - 1)
}

/// Most mandates that get their place in one transaction; the next one takes the rest.
const PROMOTED: i64 = 1_000;

/// Gives those their place in the queue whose earliest start has come.
pub fn promote(txn: &Txn<'_>, now: DateTime<Utc>) -> Res<()> {
    let ready = txn.all(
        "SELECT n FROM mandate WHERE state='queued' AND place IS NULL AND not_before<=?1 \
         ORDER BY not_before, n LIMIT ?2",
        (micros(now), PROMOTED),
        |row| row.get::<_, i64>(0),
    )?;
    if ready.is_empty() {
        return Ok(());
    }
    let first = back(txn)?;
    for (place, n) in (first..).zip(ready) {
        txn.exec("UPDATE mandate SET place=?2 WHERE n=?1", (n, place))?;
    }
    Ok(())
}

/// When the next one gets its place.
pub fn next_ready(txn: &Txn<'_>) -> Res<Option<DateTime<Utc>>> {
    let mut statement = txn.conn.prepare_cached(
        "SELECT not_before FROM mandate WHERE state='queued' AND place IS NULL AND not_before IS NOT NULL \
         ORDER BY not_before LIMIT 1",
    )?;
    Ok(statement.query_row([], |row| super::row::time(row, 0)).optional()?)
}

/// Ends a mandate; the caller saves it. An open plan is closed, its schedule's failures are counted.
pub fn end(
    txn: &mut Txn<'_>,
    mandate: &mut Mandate,
    event: MandateEvent,
    reason: Option<&str>,
    now: DateTime<Utc>,
) -> Res<()> {
    let running = mandate.state == MandateState::Running;
    let state = mandate.state.next(event)?;
    debug_assert!(state.is_end(), "only an end ends a mandate");
    mandate.state = state;
    mandate.reason = reason.map(ToOwned::to_owned);
    if !running && mandate.record == Record::Continue {
        // A cycle that stopped in the middle is not gone on with any more.
        lines::finalize(txn, mandate, CycleStatus::Interrupted, (None, None), now)?;
    } else if !running {
        lines::restate(txn, mandate, now)?;
    }
    ended(txn, mandate, now)
}

/// The bookkeeping of an end that has been decided and whose plan is closed.
pub fn ended(txn: &mut Txn<'_>, mandate: &mut Mandate, now: DateTime<Utc>) -> Res<()> {
    mandate.ended = Some(now);
    mandate.place = None;
    mandate.not_before = None;
    mandate.stop = false;
    mandate.parked = None;
    mandate.record = Record::Next;
    let about = About { schedule: mandate.schedule.as_deref(), mandate: Some(&mandate.id) };
    txn.event(
        now,
        "mandate_finished",
        about,
        json!({"state": mandate.state, "reason": mandate.reason, "cycle": mandate.cycle}),
    )?;
    if mandate.seq > 0 {
        txn.out.push(Committed::Ended { mandate: mandate.id.clone() });
    }
    schedules::count_failures(txn, mandate)
}
