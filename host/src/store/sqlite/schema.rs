//! The tables, and how one version of them becomes the next. A migration always copies the file
//! first, and a file of a newer version is never touched.
//!
//! Times are microseconds since 1970 in UTC, amounts are integers, words are the words of JSON.
//! Every index but the unique ones is partial, so that what has ended costs nothing at boot.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, MAIN_DB};

use super::fail::{Fail, Res};
use crate::store::Error;

/// The version this program writes.
pub const VERSION: u32 = 3;
/// Marks the file as ours in its header: "KAIR".
pub const APPLICATION: i32 = 0x4B41_4952;

/// One step from a version to the next.
pub struct Migration {
    /// The version it starts from.
    pub from: u32,
    /// Its statements.
    pub sql: &'static str,
}

/// Every step ever taken, oldest first.
pub const MIGRATIONS: &[Migration] = &[
    Migration { from: 0, sql: FIRST },
    Migration { from: 1, sql: GENERATIONS },
    Migration { from: 2, sql: REFUSALS },
];

const FIRST: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;

-- One row a schedule ever seen; pause is JSON, skip a JSON list of times.
CREATE TABLE schedule(
  n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, rule TEXT NOT NULL, cursor INTEGER NOT NULL,
  last_nominal INTEGER, last_fired INTEGER, pause TEXT, skip TEXT, failures INTEGER NOT NULL DEFAULT 0);

-- Runs of equal outcome, by the schedule's number.
CREATE TABLE occurrence(
  schedule INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL,
  outcome TEXT NOT NULL, reason TEXT, mandate INTEGER, decided INTEGER NOT NULL,
  PRIMARY KEY(schedule, first)) WITHOUT ROWID;

-- place: position in the queue, null while not_before is ahead or it does not wait in the queue.
-- record: what the next start does, 0 the next cycle, 1 go on with the record of this one, 2 this one afresh.
-- epoch: the attempt that record began with. noted: JSON list of its phases. parked: day it was paused for budget.
-- as_of: version of the runner's state its cycle started from. seq, crc: head of its log.
CREATE TABLE mandate(
  n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, request TEXT, origin TEXT NOT NULL,
  schedule TEXT, nominal INTEGER, goal TEXT NOT NULL, runner TEXT NOT NULL, scope TEXT,
  okey TEXT, beside INTEGER NOT NULL DEFAULT 0, bounds TEXT NOT NULL,
  state TEXT NOT NULL, reason TEXT, created INTEGER NOT NULL, ended INTEGER, not_before INTEGER, place INTEGER,
  cycle INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0,
  record INTEGER NOT NULL DEFAULT 0, generation TEXT, phases INTEGER NOT NULL DEFAULT 0, noted TEXT,
  as_of INTEGER NOT NULL DEFAULT 0, errors INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
  stop INTEGER NOT NULL DEFAULT 0, parked TEXT, seq INTEGER NOT NULL DEFAULT 0, crc INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX mandate_request ON mandate(request) WHERE request IS NOT NULL;
CREATE INDEX mandate_occurrence ON mandate(schedule, nominal) WHERE schedule IS NOT NULL;
CREATE INDEX mandate_ready ON mandate(runner, place) WHERE place IS NOT NULL;
CREATE INDEX mandate_place ON mandate(place) WHERE place IS NOT NULL;
CREATE INDEX mandate_later ON mandate(not_before) WHERE state = 'queued' AND place IS NULL;
CREATE INDEX mandate_key ON mandate(okey, state, schedule) WHERE ended IS NULL AND okey IS NOT NULL;
CREATE INDEX mandate_open ON mandate(state) WHERE ended IS NULL;
CREATE INDEX mandate_ended ON mandate(ended) WHERE ended IS NOT NULL;

-- One row an attempt.
CREATE TABLE cycle(
  mandate INTEGER NOT NULL, cycle INTEGER NOT NULL, attempt INTEGER NOT NULL, epoch INTEGER NOT NULL,
  runner TEXT NOT NULL, generation TEXT NOT NULL, status TEXT, started INTEGER NOT NULL, ended INTEGER,
  summary TEXT, error TEXT, PRIMARY KEY(mandate, cycle, attempt)) WITHOUT ROWID;

-- Only the rows of the mandate's current epoch are replayed; earlier ones are history.
CREATE TABLE step(
  n INTEGER PRIMARY KEY, mandate INTEGER NOT NULL, cycle INTEGER NOT NULL, epoch INTEGER NOT NULL,
  seq INTEGER NOT NULL, attempt INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, phase TEXT,
  state TEXT NOT NULL, key TEXT NOT NULL, params_hash TEXT NOT NULL, intent TEXT NOT NULL, result TEXT,
  recovered INTEGER NOT NULL DEFAULT 0, started INTEGER NOT NULL, ended INTEGER, usage INTEGER,
  UNIQUE(mandate, cycle, epoch, seq));

-- One row a call, delta or claim; the day is stamped when the row is made.
CREATE TABLE usage(
  n INTEGER PRIMARY KEY, mandate INTEGER NOT NULL, cycle INTEGER NOT NULL, attempt INTEGER NOT NULL,
  seq INTEGER, day TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL,
  calls INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL, cost INTEGER NOT NULL,
  at INTEGER NOT NULL);
CREATE INDEX usage_mandate ON usage(mandate, cycle);
CREATE INDEX usage_reserved ON usage(mandate) WHERE state = 'reserved';

-- Cached sum of the usage rows, by day.
CREATE TABLE ledger(
  day TEXT PRIMARY KEY, calls INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL,
  cost INTEGER NOT NULL, r_calls INTEGER NOT NULL, r_input INTEGER NOT NULL, r_output INTEGER NOT NULL,
  r_cost INTEGER NOT NULL) WITHOUT ROWID;

-- The runner's own state; a version is valid from since up to until.
CREATE TABLE state(
  owner TEXT NOT NULL, key TEXT NOT NULL, since INTEGER NOT NULL, until INTEGER, value TEXT NOT NULL,
  PRIMARY KEY(owner, key, since)) WITHOUT ROWID;

-- Text of every line of a mandate's log.
CREATE TABLE walrec(
  mandate INTEGER NOT NULL, seq INTEGER NOT NULL, line TEXT NOT NULL, PRIMARY KEY(mandate, seq)) WITHOUT ROWID;

CREATE TABLE event(
  id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, kind TEXT NOT NULL, schedule TEXT, mandate TEXT,
  details TEXT);
";

const GENERATIONS: &str = "
-- One row a life of a version in a slot. configured: sha256 of the file that daemon.yml named then.
-- canary: 1 while it is on trial. trail: JSON list of its states with their times. details: JSON, what its
-- replay showed. handover: JSON, the states its predecessor gave it.
CREATE TABLE generation(
  n INTEGER PRIMARY KEY, runner TEXT NOT NULL, sha256 TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
  abi TEXT NOT NULL, isolation TEXT NOT NULL, state TEXT NOT NULL, since INTEGER NOT NULL, reason TEXT,
  swap TEXT, configured TEXT, canary INTEGER NOT NULL DEFAULT 0, trail TEXT NOT NULL, details TEXT, handover TEXT);
CREATE INDEX generation_runner ON generation(runner, n);
CREATE INDEX generation_open ON generation(runner) WHERE state NOT IN ('retired', 'rolled_back');

-- The last cycles of each runner that ended with a report: what a candidate is tried on. state: JSON, the runner's
-- state at the cycle's start, where it had any.
CREATE TABLE recent(
  n INTEGER PRIMARY KEY, runner TEXT NOT NULL, mandate INTEGER NOT NULL, cycle INTEGER NOT NULL,
  attempt INTEGER NOT NULL, epoch INTEGER NOT NULL, report TEXT NOT NULL, state TEXT, usage TEXT NOT NULL);
CREATE INDEX recent_runner ON recent(runner, n);
CREATE INDEX recent_mandate ON recent(mandate);
";

const REFUSALS: &str = "
-- source: where the file came from, as somebody named it. refused: JSON, why it never served.
ALTER TABLE generation ADD COLUMN source TEXT;
ALTER TABLE generation ADD COLUMN refused TEXT;
UPDATE generation SET state='refused', refused=json_object('stage', 'unknown',
    'code', substr(reason, 1, instr(reason, ': ') - 1), 'message', substr(reason, instr(reason, ': ') + 2))
  WHERE state='retired' AND swap IS NOT NULL AND instr(reason, ': ') > 1 AND trail NOT LIKE '%\"active\"%';
DROP INDEX generation_open;
CREATE INDEX generation_open ON generation(runner) WHERE state NOT IN ('retired', 'rolled_back', 'refused');
";

/// The version a file says it has; `None` for an empty one.
///
/// # Errors
/// When it cannot be read, or belongs to another program.
pub fn version(conn: &Connection, path: &Path) -> Res<Option<u32>> {
    let version: u32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let application: i32 = conn.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application == 0 && version == 0 && tables == 0 {
        return Ok(None);
    }
    if application != APPLICATION {
        return Err(Fail::Store(Error::Damaged {
            path: path.display().to_string(),
            detail: "it is an SQLite file of another program".to_owned(),
            remedy: "move it away, or point kairos at another directory".to_owned(),
        }));
    }
    Ok(Some(version))
}

/// Brings the file up to [`VERSION`]; an existing one is copied to `NAME.v{old}` first.
///
/// # Errors
/// [`Error::Newer`] for a file of a later version; nothing has changed then.
pub fn migrate(conn: &mut Connection, path: Option<&Path>, steps: &[Migration], target: u32) -> Res<()> {
    let shown = path.unwrap_or(Path::new("memory"));
    let found = version(conn, shown)?;
    let at = found.unwrap_or(0);
    if at > target {
        return Err(Fail::Store(Error::Newer {
            path: shown.display().to_string(),
            found: at,
            known: target,
        }));
    }
    if at == target {
        return Ok(());
    }
    if let (Some(_), Some(path)) = (found, path) {
        copy(conn, &copy_name(path, at))?;
    }
    let txn = conn.transaction()?;
    for step in steps.iter().filter(|step| step.from >= at && step.from < target) {
        txn.execute_batch(step.sql)?;
    }
    txn.pragma_update(None, "application_id", APPLICATION)?;
    txn.pragma_update(None, "user_version", target)?;
    txn.commit()?;
    Ok(())
}

/// Where the copy of an old version goes.
#[must_use]
pub fn copy_name(path: &Path, version: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".v{version}"));
    PathBuf::from(name)
}

fn copy(conn: &Connection, to: &Path) -> Res<()> {
    if to.exists() {
        // A migration that was cut short left it; it is whole, because it is renamed into place.
        return Ok(());
    }
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    conn.backup(MAIN_DB, &part, None::<fn(rusqlite::backup::Progress)>)?;
    let synced = std::fs::File::open(&part)
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(&part, to))
        .and_then(|()| to.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all()));
    synced.map_err(|error| {
        Fail::Store(Error::ReadOnly { path: to.display().to_string(), detail: error.to_string() })
    })
}
