//! Schedules as the store knows them: cursors, pauses, nominal times to leave out, failures in a
//! row, and the outcomes of occurrences.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, Row};
use serde_json::{Value, json};

use super::fail::{Fail, Res};
use super::row::{Mandate, maybe_json, maybe_time, micros, time};
use super::txn::{About, Txn, all, first};
use crate::domain::mandate::MandateState;
use crate::store::{Adopt, Error, MissedRun, Origin, Pause, PauseSchedule, ResumeSchedule, ScheduleState};

const COLUMNS: &str = "n, name, rule, cursor, last_nominal, last_fired, pause, skip, failures";

/// A schedule with its number.
pub struct Known {
    /// Number in the store.
    pub n: i64,
    /// The rest.
    pub state: ScheduleState,
}

/// Statement that reads every schedule.
#[must_use]
pub fn select_all() -> &'static str {
    "SELECT n, name, rule, cursor, last_nominal, last_fired, pause, skip, failures FROM schedule ORDER BY n"
}

/// From a row of [`select_all`].
pub fn read(row: &Row<'_>) -> rusqlite::Result<Known> {
    let skip: Option<Vec<i64>> = maybe_json(row, 7)?;
    Ok(Known {
        n: row.get(0)?,
        state: ScheduleState {
            name: row.get(1)?,
            rule: row.get(2)?,
            cursor: time(row, 3)?,
            last_nominal: maybe_time(row, 4)?,
            last_fired: maybe_time(row, 5)?,
            pause: maybe_json(row, 6)?,
            skip: skip.unwrap_or_default().into_iter().filter_map(DateTime::from_timestamp_micros).collect(),
            failures: row.get(8)?,
        },
    })
}

/// The schedule of that name, if it is known.
pub fn find(conn: &Connection, name: &str) -> Res<Option<Known>> {
    debug_assert!(select_all().contains(COLUMNS), "both statements read the same columns");
    first(
        conn,
        "SELECT n, name, rule, cursor, last_nominal, last_fired, pause, skip, failures FROM schedule WHERE name=?1",
        [name],
        read,
    )
}

/// The schedule of that name.
pub fn load(conn: &Connection, name: &str) -> Res<Known> {
    find(conn, name)?.ok_or_else(|| Fail::Store(Error::NotFound { kind: "schedule", name: name.to_owned() }))
}

/// Writes back what changes in a schedule's life.
pub fn save(txn: &Txn<'_>, known: &Known) -> Res<()> {
    let state = &known.state;
    let skip: Vec<i64> = state.skip.iter().map(|at| micros(*at)).collect();
    txn.exec(
        "UPDATE schedule SET rule=?2, cursor=?3, last_nominal=?4, last_fired=?5, pause=?6, skip=?7, failures=?8 \
         WHERE n=?1",
        (
            known.n,
            &state.rule,
            micros(state.cursor),
            state.last_nominal.map(micros),
            state.last_fired.map(micros),
            state.pause.as_ref().map(|pause| json!(pause).to_string()),
            (!skip.is_empty()).then(|| json!(skip).to_string()),
            state.failures,
        ),
    )?;
    Ok(())
}

/// Largest cursor that a schedule was ever taken back from, in `meta`.
const TAKEN_BACK: &str = "cursor_taken_back_from";

/// Registers schedules, see [`crate::store::Store::adopt`].
pub fn adopt(txn: &mut Txn<'_>, schedules: &[Adopt]) -> Res<()> {
    for adopt in schedules {
        let former = find(txn.conn, &adopt.name)?;
        txn.exec(
            "INSERT INTO schedule(name, rule, cursor) VALUES(?1, ?2, ?3) \
             ON CONFLICT(name) DO UPDATE SET rule=?2, cursor=?3",
            (&adopt.name, &adopt.rule, micros(adopt.cursor)),
        )?;
        if let Some(former) = former.filter(|former| micros(adopt.cursor) < micros(former.state.cursor)) {
            take_back(txn, &former, adopt.cursor)?;
        }
        if !adopt.missed.is_empty() {
            let known = load(txn.conn, &adopt.name)?;
            missed(txn, &known, &adopt.missed, adopt.cursor)?;
        }
    }
    Ok(())
}

/// The clock was set back: outcomes after the new cursor are open again, except those that fired.
fn take_back(txn: &Txn<'_>, former: &Known, cursor: DateTime<Utc>) -> Res<()> {
    txn.exec(
        "DELETE FROM occurrence WHERE schedule=?1 AND last>?2 AND outcome='missed'",
        (former.n, micros(cursor)),
    )?;
    txn.exec(
        "INSERT INTO meta(key, value) VALUES(?1, ?2) \
         ON CONFLICT(key) DO UPDATE SET value=max(value, excluded.value)",
        (TAKEN_BACK, micros(former.state.cursor)),
    )?;
    Ok(())
}

/// See [`crate::store::Store::settled_ahead`].
pub fn settled_ahead(conn: &Connection) -> Res<Vec<(String, DateTime<Utc>)>> {
    let highest =
        first(conn, "SELECT value FROM meta WHERE key=?1", [TAKEN_BACK], |row| row.get::<_, i64>(0))?;
    // A paused schedule may keep its cursor long after the clock has passed that point again.
    let Some(highest) = highest else { return Ok(Vec::new()) };
    all(
        conn,
        "SELECT name, first FROM schedule JOIN occurrence ON occurrence.schedule=schedule.n AND first>cursor \
         WHERE cursor<?1 AND outcome='fired' ORDER BY name, first",
        [highest],
        |row| Ok((row.get(0)?, time(row, 1)?)),
    )
}

/// Records runs of occurrences that did not fire. A run that goes on where the last one ended
/// with the same reason becomes part of it.
pub fn missed(txn: &mut Txn<'_>, known: &Known, runs: &[MissedRun], decided: DateTime<Utc>) -> Res<()> {
    for run in runs {
        let last = txn.first(
            "SELECT first, outcome, reason, last FROM occurrence WHERE schedule=?1 AND first<=?2 \
             ORDER BY first DESC LIMIT 1",
            (known.n, micros(run.from)),
            |row| {
                let same = row.get_ref(1)?.as_str()? == "missed"
                    && row.get_ref(2)?.as_str_or_null()? == Some(run.reason);
                Ok((row.get::<_, i64>(0)?, same, row.get::<_, i64>(3)?))
            },
        )?;
        match last {
            // It has its outcome.
            Some((_, _, end)) if end >= micros(run.to) => continue,
            Some((start, true, end)) if end < micros(run.from) => {
                txn.exec(
                    "UPDATE occurrence SET last=?3, count=count+?4, decided=?5 WHERE schedule=?1 AND first=?2",
                    (known.n, start, micros(run.to), count(run.count), micros(decided)),
                )?;
            }
            _ => {
                txn.exec(
                    "INSERT INTO occurrence(schedule, first, last, count, outcome, reason, decided) \
                     VALUES(?1, ?2, ?3, ?4, 'missed', ?5, ?6) ON CONFLICT DO NOTHING",
                    (
                        known.n,
                        micros(run.from),
                        micros(run.to),
                        count(run.count),
                        run.reason,
                        micros(decided),
                    ),
                )?;
            }
        }
        let about = About { schedule: Some(&known.state.name), mandate: None };
        txn.event(decided, "occurrence_missed", about, json!(run))?;
    }
    Ok(())
}

fn count(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// Pauses a schedule. A pause of a paused one replaces it.
pub fn pause(txn: &mut Txn<'_>, request: PauseSchedule) -> Res<()> {
    let mut known = load(txn.conn, &request.name)?;
    let at = request.pause.since;
    set_pause(txn, &mut known, request.pause, at)
}

fn set_pause(txn: &mut Txn<'_>, known: &mut Known, pause: Pause, at: DateTime<Utc>) -> Res<()> {
    let details = json!(pause);
    known.state.pause = Some(pause);
    save(txn, known)?;
    txn.event(at, "schedule_paused", About { schedule: Some(&known.state.name), mandate: None }, details)
}

/// Ends a pause. Of one that is not paused only the cursor and the outcomes change.
pub fn resume(txn: &mut Txn<'_>, request: &ResumeSchedule) -> Res<()> {
    let mut known = load(txn.conn, &request.name)?;
    let paused = known.state.pause.take().is_some();
    known.state.cursor = request.cursor;
    known.state.failures = 0;
    known.state.skip.retain(|at| *at > request.cursor);
    save(txn, &known)?;
    missed(txn, &known, &request.missed, request.cursor)?;
    if paused {
        let about = About { schedule: Some(&request.name), mandate: None };
        txn.event(request.cursor, "schedule_resumed", about, Value::Null)?;
    }
    Ok(())
}

/// Leaves one nominal time out.
pub fn skip_next(txn: &mut Txn<'_>, name: &str, nominal: DateTime<Utc>) -> Res<()> {
    let mut known = load(txn.conn, name)?;
    if nominal <= known.state.cursor {
        return super::fail::conflict(format!("occurrence {nominal} of {name:?} has its outcome already"));
    }
    if !known.state.skip.contains(&nominal) {
        known.state.skip.push(nominal);
        known.state.skip.sort_unstable();
        save(txn, &known)?;
    }
    Ok(())
}

/// The limit that ends a row of failures is known only where a cycle is finished; the mandate's
/// end itself only counts.
pub fn count_failures(txn: &mut Txn<'_>, mandate: &Mandate) -> Res<()> {
    let (Some(name), Origin::Schedule) = (&mandate.schedule, mandate.origin) else { return Ok(()) };
    match mandate.state {
        MandateState::Failed => {
            txn.exec("UPDATE schedule SET failures=failures+1 WHERE name=?1", [name])?;
        }
        MandateState::Succeeded => {
            txn.exec("UPDATE schedule SET failures=0 WHERE name=?1 AND failures<>0", [name])?;
        }
        _ => {}
    }
    Ok(())
}

/// Pauses the schedule of a failed mandate once so many failed in a row. Gives its name if so.
pub fn pause_if_failing(
    txn: &mut Txn<'_>,
    mandate: &Mandate,
    limit: Option<u32>,
    now: DateTime<Utc>,
) -> Res<Option<String>> {
    let (Some(limit), Some(name), MandateState::Failed) = (limit, &mandate.schedule, mandate.state) else {
        return Ok(None);
    };
    let Some(mut known) = find(txn.conn, name)? else { return Ok(None) };
    if known.state.pause.is_some() || known.state.failures < limit.max(1) {
        return Ok(None);
    }
    let note = Some(format!("{} mandates in a row failed", known.state.failures));
    let pause = Pause { since: now, until: None, note, by: "failures".to_owned() };
    set_pause(txn, &mut known, pause, now)?;
    Ok(Some(name.clone()))
}
