//! Taking over what files tell: the reference's, on a first start; logs alone, when the store is
//! gone; logs that a store does not know.
//!
//! A start without a store is a first start only if no log of ours is there. Otherwise the store is
//! lost, and starting afresh would do work twice and forget what was spent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use kairos_plugin_api::Usage;
use serde::Serialize;

use super::super::fail::Res;
use super::super::open;
use super::super::txn::Txn;
use super::rebuild::{self, KnownSchedule, KnownSchedules, Log, Rebuilt, Trust};
use crate::domain::record;
use crate::store::sqlite::{OpenOptions, SqliteStore};
use crate::store::{Error, Result, Store};
use crate::sys::files::{self, FileError};
use crate::sys::gz;

/// Logs taken over in one transaction.
const CHUNK: usize = 16;
/// Schedules taken over in one transaction.
const SCHEDULES: usize = 500;
/// Set once the files beside a new store have been taken over, or there were none.
const TAKEN_OVER: &str = "taken_over";

/// What the published view or the reference's `budget.json` says was spent on a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSpend {
    /// `YYYY-MM-DD`.
    pub day: String,
    /// How much.
    pub usage: Usage,
}

/// What is known beside the logs.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Schedules of the configuration, with the cursors of `chronos_state.yml`.
    pub schedules: Arc<KnownSchedules>,
    /// From `budget.json`.
    pub spend: Option<KnownSpend>,
}

/// What was taken over.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TakeOver {
    /// Logs read.
    pub logs: u64,
    /// Mandates made from them, by where they stand now.
    pub states: BTreeMap<String, u64>,
    /// Mandates a person must look at, with the reason.
    pub review: Vec<(String, String)>,
    /// Mandates that will run again.
    pub queued: Vec<String>,
    /// Logs that could not be read, with the reason. They are left as they are.
    pub unreadable: Vec<(String, String)>,
    /// Schedules whose cursor was taken over.
    pub schedules: u64,
    /// Usage that the logs tell.
    pub usage: Usage,
    /// Usage that only `budget.json` tells, booked on nobody.
    pub uncovered: Usage,
    /// Where the former store is now, if there was one.
    pub replaced: Option<PathBuf>,
    /// What could not be brought back.
    pub lost: Vec<String>,
}

impl TakeOver {
    fn add(&mut self, mandate: &str, rebuilt: Rebuilt) {
        *self.states.entry(rebuilt.state.to_string()).or_default() += 1;
        self.usage = self.usage.plus(rebuilt.usage);
        match rebuilt.state.as_str() {
            "review" => self.review.push((mandate.to_owned(), rebuilt.reason.unwrap_or_default())),
            "queued" => self.queued.push(mandate.to_owned()),
            _ => {}
        }
    }
}

/// Refuses a start without a store where one has been: sealed logs are there.
///
/// # Errors
/// [`Error::Damaged`] names the missing store and the remedy.
pub fn check_first_start(store: &Path, wal_dir: &Path) -> Result<()> {
    if store.exists() {
        return Ok(());
    }
    for (mandate, path, packed) in list(wal_dir)? {
        let sealed = match read_log(&mandate, &path, packed) {
            Ok(log) => record::verify(&log.bytes).chained > 0,
            // Only ours are packed when they end; a plain file that cannot be read may be either.
            Err(_) => packed,
        };
        if sealed {
            return Err(Error::Damaged {
                path: store.display().to_string(),
                detail: format!("it is gone, but {} was written with it", path.display()),
                remedy: "put the file back, `kairos restore` a backup, or `kairos recover --from-wal`"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// Builds a store from logs alone. The former store, if any, is kept beside the new one.
///
/// The caller holds the lock of the root; no daemon runs. Cut short, it can be begun again.
///
/// # Errors
/// Of the files. A log that cannot be read is in the report instead.
pub fn recover_from_wal(
    store: &Path,
    wal_dir: &Path,
    beside: &Beside,
    now: DateTime<Utc>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<TakeOver> {
    let part = open::sidecar(store, ".rebuilding");
    remove_store(&part)?;
    let rebuilt = SqliteStore::open(OpenOptions { path: part.clone(), sink: None })?;
    let mut report = fill(&rebuilt, wal_dir, beside, Trust::Sole, now, progress)?;
    rebuilt.close().wait()?;
    drop(rebuilt);
    report.replaced = set_store_aside(store, "replaced")?;
    put_store(&part, store)?;
    report.lost = vec![
        "mandates that were queued and had not started yet".to_owned(),
        "recorded results of steps: unfinished cycles begin anew or wait in review".to_owned(),
        "state kept by runners, pauses of schedules, events".to_owned(),
    ];
    if beside.schedules.values().any(|known| known.cursor.is_none()) {
        report.lost.push("cursors of schedules that chronos_state.yml does not name".to_owned());
    }
    Ok(report)
}

impl SqliteStore {
    /// True once the files that lay beside a new store have been taken over.
    ///
    /// # Errors
    /// Of reading.
    pub fn has_taken_over(&self) -> Result<bool> {
        self.look(|conn| {
            let sql = "SELECT 1 FROM meta WHERE key=?1";
            Ok(super::super::txn::first(conn, sql, [TAKEN_OVER], |_| Ok(()))?.is_some())
        })
    }

    /// Takes over the reference's files, on the first start without a store: exactly once, also if it
    /// is cut short and begun again. With nothing beside the store it only remembers that.
    ///
    /// Blocks; must not be called on an async runtime's thread.
    ///
    /// # Errors
    /// Of the store, or of listing the logs.
    pub fn import_reference(
        &self,
        wal_dir: &Path,
        beside: &Beside,
        now: DateTime<Utc>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<TakeOver> {
        if self.has_taken_over()? {
            return Ok(TakeOver::default());
        }
        fill(self, wal_dir, beside, Trust::Sole, now, progress)
    }

    /// Takes in a log that this store does not know: an ended mandate as it ended, an unfinished one
    /// for review. Gives false if the store knows it after all.
    ///
    /// Blocks; must not be called on an async runtime's thread.
    ///
    /// # Errors
    /// Of the store.
    pub fn adopt_log(&self, mandate: &str, bytes: Vec<u8>, now: DateTime<Utc>) -> Result<bool> {
        let log = Log { mandate: mandate.to_owned(), bytes, packed: false };
        self.run(move |txn| {
            let known = KnownSchedules::new();
            Ok(rebuild::insert(txn, &log, &known, Trust::Stranger, now)?.is_some())
        })
        .wait()
    }
}

/// Every log, then the schedules and the spend, and the mark that it is done, in that order: the
/// logs are told apart by their ids, so doing it twice does nothing twice.
fn fill(
    store: &SqliteStore,
    wal_dir: &Path,
    beside: &Beside,
    trust: Trust,
    now: DateTime<Utc>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<TakeOver> {
    let mut report = TakeOver::default();
    let found = list(wal_dir)?;
    let total = found.len() as u64;
    for chunk in found.chunks(CHUNK) {
        let mut logs = Vec::with_capacity(chunk.len());
        for (mandate, path, packed) in chunk {
            match read_log(mandate, path, *packed) {
                Ok(log) => logs.push(log),
                Err(detail) => report.unreadable.push((path.display().to_string(), detail)),
            }
        }
        let known = Arc::clone(&beside.schedules);
        let made = store.run(move |txn| take_in(txn, &logs, &known, trust, now)).wait()?;
        for (mandate, rebuilt) in made {
            report.add(&mandate, rebuilt);
        }
        report.logs += chunk.len() as u64;
        progress(report.logs, total);
    }
    let placed: Vec<KnownSchedule> =
        beside.schedules.values().filter(|known| known.cursor.is_some()).cloned().collect();
    report.schedules = placed.len() as u64;
    for chunk in placed.chunks(SCHEDULES) {
        let chunk = chunk.to_vec();
        store.run(move |txn| chunk.iter().try_for_each(|known| rebuild::schedule(txn, known))).wait()?;
    }
    let spend = beside.spend.clone();
    report.uncovered = store
        .run(move |txn| {
            txn.exec(
                "INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?2)",
                (TAKEN_OVER, now.to_rfc3339()),
            )?;
            match spend {
                Some(spend) => rebuild::cover(txn, &spend.day, spend.usage, now),
                None => Ok(Usage::ZERO),
            }
        })
        .wait()?;
    Ok(report)
}

fn take_in(
    txn: &mut Txn<'_>,
    logs: &[Log],
    known: &KnownSchedules,
    trust: Trust,
    now: DateTime<Utc>,
) -> Res<Vec<(String, Rebuilt)>> {
    let mut made = Vec::new();
    for log in logs {
        if let Some(rebuilt) = rebuild::insert(txn, log, known, trust, now)? {
            made.push((log.mandate.clone(), rebuilt));
        }
    }
    Ok(made)
}

/// The logs of a directory, by mandate; the plain file where there is also an archive.
fn list(dir: &Path) -> Result<Vec<(String, PathBuf, bool)>> {
    let fail = |error| open::from_file(FileError::new("list", dir, error));
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut found: BTreeMap<String, (PathBuf, bool)> = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let Some((mandate, packed)) = name.to_str().and_then(record::mandate_of) else { continue };
        let kept = found.entry(mandate.to_owned()).or_insert_with(|| (entry.path(), packed));
        if !packed {
            *kept = (entry.path(), false);
        }
    }
    Ok(found.into_iter().map(|(mandate, (path, packed))| (mandate, path, packed)).collect())
}

fn read_log(mandate: &str, path: &Path, packed: bool) -> std::result::Result<Log, String> {
    let bytes = files::read(path, record::MAX_FILE).map_err(|error| error.to_string())?;
    let bytes = bytes.ok_or_else(|| "it is gone".to_owned())?;
    let bytes =
        if packed { gz::unpack(&bytes, record::MAX_FILE).map_err(|error| error.to_string())? } else { bytes };
    Ok(Log { mandate: mandate.to_owned(), bytes, packed })
}

/// The files a store consists of.
const PARTS: [&str; 4] = ["", "-wal", "-shm", ".clean"];

/// Removes a store that was never finished.
pub fn remove_store(path: &Path) -> Result<()> {
    for part in PARTS {
        let part = open::sidecar(path, part);
        match std::fs::remove_file(&part) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(open::from_file(FileError::new("remove", &part, error))),
        }
    }
    Ok(())
}

/// Moves a store out of the way, to the first free `NAME.WORD-N`, its log with it.
pub fn set_store_aside(path: &Path, word: &str) -> Result<Option<PathBuf>> {
    if !PARTS[..2].iter().any(|part| open::sidecar(path, part).exists()) {
        return Ok(None);
    }
    let free = (1_u32..)
        .map(|n| open::sidecar(path, &format!(".{word}-{n}")))
        .find(|aside| !PARTS.iter().any(|part| open::sidecar(aside, part).exists()));
    let Some(aside) = free else { return Ok(None) };
    // The file first: a file that is left without its log would be taken for an older store.
    rename(path, &aside, PARTS.iter())?;
    Ok(Some(aside))
}

/// Puts a closed store into place.
pub fn put_store(from: &Path, to: &Path) -> Result<()> {
    // The file last, for the same reason.
    rename(from, to, PARTS.iter().rev())
}

fn rename<'a>(from: &Path, to: &Path, parts: impl Iterator<Item = &'a &'static str>) -> Result<()> {
    let dir = to.parent().unwrap_or(Path::new("."));
    for part in parts {
        let (from, to) = (open::sidecar(from, part), open::sidecar(to, part));
        if from.exists() {
            std::fs::rename(&from, &to)
                .map_err(|error| open::from_file(FileError::new("rename", &from, error)))?;
            files::sync_dir(dir).map_err(open::from_file)?;
        }
    }
    Ok(())
}
