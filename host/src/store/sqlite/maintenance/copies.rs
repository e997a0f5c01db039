//! Backups and their return.
//!
//! A backup is one SQLite file that holds the whole store: schedules, mandates, steps, usage, and
//! the lines of every log that is not archived, from which the files under `wal/` are written again.
//! It does not hold archives (`wal/*.gz`), the configuration, plugins or the workspace.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use super::super::fail::{Fail, Res, damaged};
use super::super::row::{Mandate, time};
use super::super::txn::all;
use super::super::{ledger, open, schema};
use super::rebuild::{self, cover};
use super::takeover::{Beside, put_store, remove_store, set_store_aside};
use crate::domain::mandate::MandateEvent;
use crate::domain::record;
use crate::store::sqlite::{OpenOptions, SqliteStore};
use crate::store::{Error, Result, Store};
use crate::sys::files::{self, FileError};

/// Pages copied between two looks at the progress: 2 MiB.
const PAGES: i32 = 512;
/// How long to give way to a writer that holds the store.
const GIVE_WAY: Duration = Duration::from_millis(5);
/// Reason of mandates that may have gone on after the backup was made.
pub const RESTORED: &str = "restored_from_older_backup";

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackedUp {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What it does not hold.
    pub without: Vec<&'static str>,
}

/// A backup that has come back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Where the former store is now.
    pub replaced: Option<PathBuf>,
    /// Mandates that may have gone on after the backup: a person must look.
    pub review: Vec<String>,
    /// Schedules whose cursor was moved on to where the former store had it.
    pub schedules: u64,
    /// Days of the ledger that count more than the backup knew.
    pub days: Vec<String>,
    /// What could not be taken into account.
    pub warnings: Vec<String>,
}

/// Copies a store, also while a daemon writes to it. `to` is replaced whole or not at all.
///
/// `progress` hears of the pages done and their total.
///
/// # Errors
/// Of the store or the target.
pub fn backup(store: &Path, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<BackedUp> {
    let part = open::sidecar(to, ".part");
    let source = open::read(store)?;
    remove_store(&part)?;
    files::create_new(&part, b"", files::PRIVATE).map_err(open::from_file)?;
    let copied = copy(&source, &part, progress).map_err(|fail| open::to_error(fail, &part));
    if let Err(error) = copied {
        // Half a backup must not be taken for one; that it cannot be removed is said by its name.
        let _ = remove_store(&part);
        return Err(error);
    }
    let fail = |error| open::from_file(FileError::new("write", to, error));
    let file = std::fs::File::open(&part).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    let bytes = file.metadata().map_err(fail)?.len();
    std::fs::rename(&part, to).map_err(fail)?;
    files::sync_dir(to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        .map_err(open::from_file)?;
    Ok(BackedUp { path: to.to_owned(), bytes, without: vec!["wal/*.gz", "config", "plugins", "workspace"] })
}

fn copy(source: &Connection, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Res<()> {
    // One look at the source for all of it; else a writer would make the copy begin again and again.
    source.execute_batch("BEGIN")?;
    source.query_row("SELECT count(*) FROM meta", [], |_| Ok(()))?;
    let mut target = Connection::open(to)?;
    {
        let backup = Backup::new(source, &mut target)?;
        loop {
            let step = backup.step(PAGES)?;
            let at = backup.progress();
            let (all, left) =
                (u64::from(at.pagecount.unsigned_abs()), u64::from(at.remaining.unsigned_abs()));
            progress(all.saturating_sub(left), all);
            match step {
                StepResult::Done => break,
                StepResult::More => {}
                // Somebody writes: the same pages are tried again.
                _ => std::thread::sleep(GIVE_WAY),
            }
        }
    }
    source.execute_batch("COMMIT")?;
    // One file without a log beside it.
    let mode: String = target.query_row("PRAGMA journal_mode=DELETE", [], |row| row.get(0))?;
    if mode != "delete" {
        return Err(Fail::Store(Error::Conflict(format!("the copy stays in journal mode {mode:?}"))));
    }
    check(&target, to)?;
    target.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// Refuses what is no sound store of a version we know.
fn check(conn: &Connection, path: &Path) -> Res<()> {
    match schema::version(conn, path)? {
        Some(found) if found > schema::VERSION => {
            let path = path.display().to_string();
            return Err(Fail::Store(Error::Newer { path, found, known: schema::VERSION }));
        }
        Some(_) => {}
        None => {
            return Err(Fail::Store(damaged(path.display().to_string(), "it holds no tables".to_owned())));
        }
    }
    let findings = all(conn, "PRAGMA integrity_check(5)", [], |row| row.get::<_, String>(0))?;
    if findings != ["ok"] {
        return Err(Fail::Store(damaged(path.display().to_string(), findings.join("; "))));
    }
    Ok(())
}

/// Brings a backup back. The former store is kept beside it, and so that nothing is done or spent
/// twice, what it, the logs and `beside` know to be later is taken into account: cursors and days
/// move on, and mandates that may have gone on since go to review.
///
/// The caller holds the lock of the root; no daemon runs. Cut short, it can be begun again.
///
/// # Errors
/// Of the files; nothing has changed then unless the last renames failed.
pub fn restore(
    from: &Path,
    store: &Path,
    wal_dir: &Path,
    beside: &Beside,
    now: DateTime<Utc>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored> {
    let part = open::sidecar(store, ".restoring");
    remove_store(&part)?;
    let dir = store.parent().unwrap_or(Path::new("."));
    files::create_dirs(dir).map_err(open::from_file)?;
    let source = look(from)?;
    check(&source, from).map_err(|fail| open::to_error(fail, from))?;
    files::create_new(&part, b"", files::PRIVATE).map_err(open::from_file)?;
    copy(&source, &part, progress).map_err(|fail| open::to_error(fail, &part))?;
    drop(source);

    let mut report = Restored::default();
    let restored = SqliteStore::open(OpenOptions { path: part.clone(), sink: None })?;
    if store.exists() {
        match later(store) {
            Ok(later) => {
                let (schedules, days) = restored.run(move |txn| catch_up(txn, &later, now)).wait()?;
                (report.schedules, report.days) = (schedules, days);
            }
            Err(error) => report.warnings.push(format!("the former store could not be read: {error}")),
        }
    }
    let rest = beside.clone();
    let more = restored
        .run(move |txn| {
            for known in rest.schedules.values().filter(|known| known.cursor.is_some()) {
                rebuild::schedule(txn, known)?;
            }
            match &rest.spend {
                Some(spend) => Ok((spend.day.clone(), cover(txn, &spend.day, spend.usage, now)?)),
                None => Ok((String::new(), Default::default())),
            }
        })
        .wait()?;
    if !more.1.is_zero() && !report.days.contains(&more.0) {
        report.days.push(more.0);
    }
    let dir = wal_dir.to_owned();
    report.review = restored.run(move |txn| doubt(txn, &dir)).wait()?;
    restored.close().wait()?;
    drop(restored);
    report.replaced = set_store_aside(store, "replaced")?;
    put_store(&part, store)?;
    Ok(report)
}

/// Opens any SQLite file for reading, be it a store of an older version or a copy somewhere else.
fn look(path: &Path) -> Result<Connection> {
    if !path.exists() {
        return Err(Error::NotFound { kind: "backup", name: path.display().to_string() });
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags).map_err(|error| open::to_error(error.into(), path))
}

/// What the former store knows that a backup cannot.
struct Later {
    cursors: Vec<(String, i64)>,
    days: Vec<(String, kairos_plugin_api::Usage)>,
}

fn later(store: &Path) -> Result<Later> {
    let conn = open::read(store)?;
    let read = || -> Res<Later> {
        let cursors =
            all(&conn, "SELECT name, cursor FROM schedule", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let days = all(&conn, "SELECT day FROM ledger", [], |row| row.get::<_, String>(0))?;
        let sum = |day: String| {
            let totals = ledger::day(&conn, &day)?;
            // What was under way then is spent, for all we know.
            Ok((day, totals.spent.plus(totals.reserved)))
        };
        Ok(Later { cursors, days: days.into_iter().map(sum).collect::<Res<_>>()? })
    };
    read().map_err(|fail| open::to_error(fail, store))
}

fn catch_up(
    txn: &mut super::super::txn::Txn<'_>,
    later: &Later,
    now: DateTime<Utc>,
) -> Res<(u64, Vec<String>)> {
    let mut schedules = 0;
    for (name, cursor) in &later.cursors {
        let moved = txn.exec("UPDATE schedule SET cursor=?2 WHERE name=?1 AND cursor<?2", (name, cursor))?;
        schedules += moved as u64;
    }
    let mut days = Vec::new();
    for (day, spent) in &later.days {
        if !cover(txn, day, *spent, now)?.is_zero() {
            days.push(day.clone());
        }
    }
    Ok((schedules, days))
}

/// Open mandates whose log is not exactly what the backup says of it.
fn doubt(txn: &mut super::super::txn::Txn<'_>, wal_dir: &Path) -> Res<Vec<String>> {
    let open = txn.all("SELECT n, created FROM mandate WHERE ended IS NULL", [], |row| {
        Ok((row.get::<_, i64>(0)?, time(row, 1)?))
    })?;
    let mut review = Vec::new();
    for (n, _) in open {
        let mut mandate = Mandate::load_number(txn.conn, n)?;
        let plain = wal_dir.join(format!("{}{}", mandate.id, record::SUFFIX));
        let packed = wal_dir.join(format!("{}{}", mandate.id, record::ARCHIVE_SUFFIX));
        let stated = files::read(&plain, record::MAX_FILE).ok().flatten().map(|bytes| record::verify(&bytes));
        let agrees = match stated {
            Some(scan) => scan.is_sound() && (scan.head.seq, scan.head.crc) == (mandate.seq, mandate.crc),
            // It has not begun, and nothing says that it has ended meanwhile.
            None => mandate.seq == 0 && !packed.exists(),
        };
        if agrees {
            continue;
        }
        if let Ok(state) = mandate.state.next(MandateEvent::NeedsReview) {
            mandate.state = state;
            mandate.reason = Some(RESTORED.to_owned());
            mandate.place = None;
            mandate.save(txn.conn)?;
        }
        review.push(mandate.id);
    }
    Ok(review)
}
