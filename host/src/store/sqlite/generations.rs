//! The lives of runners' generations. Every change goes through the one transition function, and
//! leaves an event.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, Row};
use serde_json::{Value, json};

use super::fail::{Fail, Res};
use super::row::{json as json_of, maybe_json, micros, time, word};
use super::txn::{About, Txn, all, first};
use super::{SqliteStore, recent, recover};
use crate::domain::generation::{GenerationEvent, GenerationState};
use crate::domain::mandate::MandateState;
use crate::store::{
    EndedCycle, Error, GenerationMove, GenerationRow, GenerationStore, Life, NewRefusal, Pending,
    RecordedCycle, Result, TrailEntry,
};

/// Lives that are kept of each slot besides those that are open.
const KEPT: usize = 5_000;
/// Files of the last so many lives of a slot stay: somebody may want one back.
const FILES_KEPT: i64 = 8;

const COLUMNS: &str = "n, runner, sha256, name, version, abi, isolation, state, since, reason, swap, configured, \
     canary, trail, details, handover, source, refused";
/// As the index has it.
const OPEN: &str = "state NOT IN ('retired', 'rolled_back', 'refused')";

impl GenerationStore for SqliteStore {
    fn add_generation(&self, life: Life, at: DateTime<Utc>) -> Pending<i64> {
        self.run(move |txn| insert(txn, &life, GenerationState::Candidate, None, at))
    }

    fn refuse_file(&self, new: NewRefusal) -> Pending<i64> {
        self.run(move |txn| refuse(txn, new))
    }

    fn adopt_generation(&self, life: Life, reason: String, at: DateTime<Utc>) -> Pending<i64> {
        self.run(move |txn| adopt(txn, &life, &reason, at))
    }

    fn move_generations(&self, moves: Vec<GenerationMove>, at: DateTime<Utc>) -> Pending<()> {
        self.run(move |txn| moves.iter().try_for_each(|step| apply(txn, step, at)))
    }

    fn recover_generations(&self, at: DateTime<Utc>) -> Pending<Vec<GenerationRow>> {
        self.run(move |txn| recover(txn, at))
    }

    fn generations(&self, runner: Option<&str>, limit: usize) -> Result<Vec<GenerationRow>> {
        let runner = runner.map(ToOwned::to_owned);
        let limit = if limit == 0 { -1 } else { i64::try_from(limit).unwrap_or(i64::MAX) };
        self.look(move |conn| {
            let sql = format!(
                "SELECT {COLUMNS} FROM generation WHERE ?1 IS NULL OR runner=?1 ORDER BY n DESC LIMIT ?2"
            );
            all(conn, &sql, (runner, limit), read)
        })
    }

    fn recent_cycles(&self, runner: &str, limit: usize) -> Result<Vec<RecordedCycle>> {
        let runner = runner.to_owned();
        self.look(move |conn| recent::cycles(conn, &runner, limit))
    }

    fn ended_cycles(&self, runner: &str, sha256: &str, since: DateTime<Utc>) -> Result<Vec<EndedCycle>> {
        let (runner, sha256) = (runner.to_owned(), sha256.to_owned());
        self.look(move |conn| recent::ended(conn, &runner, &sha256, since))
    }

    fn note_not_begun(&self, n: i64) -> Pending<()> {
        self.run(move |txn| {
            txn.exec(
                "UPDATE generation SET details=json_set(coalesce(details, '{}'), '$.not_begun', \
                 coalesce(json_extract(details, '$.not_begun'), 0)+1) WHERE n=?1 AND canary",
                [n],
            )?;
            Ok(())
        })
    }

    fn crash_looped(&self, runner: &str, sha256: &str, since: DateTime<Utc>) -> Result<Vec<String>> {
        let (runner, sha256) = (runner.to_owned(), sha256.to_owned());
        self.look(move |conn| recover::crash_looped(conn, &runner, &sha256, since))
    }

    fn run_crash_looped_again(
        &self,
        mandate: String,
        why: String,
        at: DateTime<Utc>,
    ) -> Pending<MandateState> {
        self.run(move |txn| recover::run_again(txn, &mandate, &why, at))
    }

    fn needed_generations(&self) -> Result<Vec<String>> {
        self.look(|conn| {
            let sql = format!(
                "SELECT generation FROM mandate INDEXED BY mandate_open \
                 WHERE ended IS NULL AND generation IS NOT NULL \
                 UNION SELECT sha256 FROM generation WHERE {OPEN} \
                 UNION SELECT sha256 FROM (SELECT sha256, row_number() OVER (PARTITION BY runner ORDER BY n DESC) \
                 AS age FROM generation WHERE state<>'refused') WHERE age<=?1"
            );
            all(conn, &sql, [FILES_KEPT], |row| row.get(0))
        })
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<GenerationRow> {
    Ok(GenerationRow {
        n: row.get(0)?,
        life: Life {
            runner: row.get(1)?,
            sha256: row.get(2)?,
            name: row.get(3)?,
            version: row.get(4)?,
            abi: row.get(5)?,
            isolation: row.get(6)?,
            swap: row.get(10)?,
            configured: row.get(11)?,
            source: row.get(16)?,
        },
        state: word(row, 7)?,
        since: time(row, 8)?,
        reason: row.get(9)?,
        canary: row.get(12)?,
        trail: json_of(row, 13)?,
        details: maybe_json(row, 14)?.unwrap_or(Value::Null),
        handover: maybe_json(row, 15)?,
        refused: maybe_json(row, 17)?,
    })
}

fn open(conn: &Connection, runner: Option<&str>) -> Res<Vec<GenerationRow>> {
    let sql =
        format!("SELECT {COLUMNS} FROM generation WHERE {OPEN} AND (?1 IS NULL OR runner=?1) ORDER BY n");
    all(conn, &sql, [runner], read)
}

fn insert(
    txn: &mut Txn<'_>,
    new: &Life,
    state: GenerationState,
    reason: Option<&str>,
    at: DateTime<Utc>,
) -> Res<i64> {
    let trail = json!([TrailEntry { state, at, reason: reason.map(ToOwned::to_owned) }]);
    txn.exec(
        "INSERT INTO generation(runner, sha256, name, version, abi, isolation, state, since, reason, swap, \
         configured, trail, source) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)",
        (
            &new.runner,
            &new.sha256,
            &new.name,
            &new.version,
            &new.abi,
            &new.isolation,
            state.as_str(),
            micros(at),
            reason,
            &new.swap,
            &new.configured,
            trail.to_string(),
            &new.source,
        ),
    )?;
    let n = txn.conn.last_insert_rowid();
    let details = json!({"runner": new.runner, "generation": new.sha256, "name": new.name,
        "version": new.version, "state": state, "reason": reason, "swap": new.swap});
    txn.event(at, "generation", About::default(), details)?;
    forget_old(txn, &new.runner)?;
    Ok(n)
}

fn forget_old(txn: &mut Txn<'_>, runner: &str) -> Res<()> {
    let kept = i64::try_from(KEPT).unwrap_or(i64::MAX);
    let sql = format!(
        "DELETE FROM generation WHERE runner=?1 AND NOT ({OPEN}) AND n<= \
         (SELECT n FROM generation WHERE runner=?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)"
    );
    txn.exec(&sql, (runner, kept))?;
    Ok(())
}

/// A life that ended before it began.
fn refuse(txn: &mut Txn<'_>, new: NewRefusal) -> Res<i64> {
    let (name, version) = new.identity.unwrap_or_default();
    let reason = format!("{}: {}", new.refused.code, new.refused.message);
    let file = Life {
        runner: new.runner,
        sha256: new.sha256.unwrap_or_default(),
        name,
        version,
        abi: String::new(),
        isolation: String::new(),
        swap: new.swap,
        configured: None,
        source: Some(new.source),
    };
    let n = insert(txn, &file, GenerationState::Refused, Some(&reason), new.at)?;
    txn.exec("UPDATE generation SET refused=?2 WHERE n=?1", (n, json!(new.refused).to_string()))?;
    Ok(n)
}

fn adopt(txn: &mut Txn<'_>, new: &Life, reason: &str, at: DateTime<Utc>) -> Res<i64> {
    let known = open(txn.conn, Some(&new.runner))?;
    let active = known.iter().find(|row| row.state == GenerationState::Active);
    if let Some(active) = active.filter(|row| row.life.sha256 == new.sha256) {
        return Ok(active.n);
    }
    for row in known {
        end(txn, &row, reason, at)?;
    }
    insert(txn, new, GenerationState::Active, Some(reason), at)
}

/// Ends an open life, by the way that its state has.
fn end(txn: &mut Txn<'_>, row: &GenerationRow, reason: &str, at: DateTime<Utc>) -> Res<()> {
    use GenerationEvent as E;
    let events: &[E] = match row.state {
        GenerationState::Candidate | GenerationState::Probed | GenerationState::Standby => &[E::Withdraw],
        GenerationState::Active => &[E::Drain, E::Drained],
        GenerationState::Draining => &[E::Drained],
        GenerationState::Retired | GenerationState::RolledBack | GenerationState::Refused => &[],
    };
    for event in events {
        apply(txn, &GenerationMove::new(row.n, *event, Some(reason.to_owned())), at)?;
    }
    Ok(())
}

fn apply(txn: &mut Txn<'_>, step: &GenerationMove, at: DateTime<Utc>) -> Res<()> {
    let sql = format!("SELECT {COLUMNS} FROM generation WHERE n=?1");
    let row = first(txn.conn, &sql, [step.n], read)?
        .ok_or_else(|| Fail::Store(Error::NotFound { kind: "generation", name: step.n.to_string() }))?;
    let state = row.state.next(step.event)?;
    let mut trail = row.trail;
    trail.push(TrailEntry { state, at, reason: step.reason.clone() });
    txn.exec(
        "UPDATE generation SET state=?2, since=?3, reason=coalesce(?4, reason), canary=?5, trail=?6, \
         details=coalesce(?7, details), handover=CASE WHEN ?5 THEN ?8 ELSE NULL END, \
         refused=?9 WHERE n=?1",
        (
            step.n,
            state.as_str(),
            micros(at),
            &step.reason,
            step.canary,
            json!(trail).to_string(),
            step.details.as_ref().map(Value::to_string),
            step.handover.as_ref().map(|states| json!(states).to_string()),
            step.refused.as_ref().map(|refused| json!(refused).to_string()),
        ),
    )?;
    let details = json!({"runner": row.life.runner, "generation": row.life.sha256, "name": row.life.name,
        "version": row.life.version, "state": state, "from": row.state, "reason": step.reason, "swap": row.life.swap,
        "canary": step.canary});
    txn.event(at, "generation", About::default(), details)
}

/// See [`GenerationStore::recover_generations`].
fn recover(txn: &mut Txn<'_>, at: DateTime<Utc>) -> Res<Vec<GenerationRow>> {
    let known = open(txn.conn, None)?;
    for row in &known {
        let tried = known.iter().any(|other| other.life.runner == row.life.runner && other.canary);
        let never_served = match row.state {
            GenerationState::Candidate | GenerationState::Probed => true,
            // A predecessor waits in standby; a candidate that got so far was not flipped to.
            GenerationState::Standby => !tried,
            GenerationState::Active
            | GenerationState::Draining
            | GenerationState::Retired
            | GenerationState::RolledBack
            | GenerationState::Refused => false,
        };
        if never_served || row.state == GenerationState::Draining {
            end(txn, row, "the daemon stopped", at)?;
        }
    }
    open(txn.conn, None)
}
