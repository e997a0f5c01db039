//! Opening the file: what a crash may have left in the page cache is dropped first, the modes are
//! asserted and not only asked for, damage and newer versions are refused, and the file is never
//! replaced.

use std::fs::{File, OpenOptions as FileOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::fail::{Fail, Res, classify, damaged};
use super::schema::{self, MIGRATIONS, VERSION};
use crate::store::{Error, Result};
use crate::sys::files::{self, FileError};

/// How long a statement waits for another program that holds the file.
const BUSY: Duration = Duration::from_secs(5);
/// Statements kept prepared on a connection; there are fewer than this.
const STATEMENTS: usize = 160;
/// Bytes that are tried when the system refused a write, to tell a full disk from a broken one.
const PROBE: usize = 64 * 1024;

/// A file that is open for writing.
pub struct Opened {
    /// The connection.
    pub conn: Connection,
    /// False when the process before this one did not close it, or there was none.
    pub clean: bool,
    /// True when the file was made now.
    pub new: bool,
}

/// Opens the file for writing, makes it if it is missing, migrates it if it is old.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Newer`], [`Error::ReadOnly`], [`Error::Full`].
pub fn write(path: &Path) -> Result<Opened> {
    let dir = path.parent().unwrap_or(Path::new("."));
    files::create_dirs(dir).map_err(from_file)?;
    let new = !path.exists();
    if new && sidecar(path, "-wal").metadata().is_ok_and(|log| log.len() > 0) {
        let detail = "its log is there but the file itself is gone".to_owned();
        return Err(damaged(path.display().to_string(), detail));
    }
    let clean = !new && clean_mark(path).exists();
    if !clean && !new {
        forget_cached(path).map_err(|error| from_file(FileError::new("read", path, error)))?;
    }
    check_header(path)?;
    // From here on a crash must be seen as one.
    remove_mark(path)?;
    if new {
        create(path).map_err(|fail| to_error(fail, path))?;
    }
    sync_names(path, dir)?;
    let conn = connect(path).map_err(|fail| to_error(fail, path))?;
    Ok(Opened { conn, clean, new })
}

/// Opens a store that lives in memory, for tests and simulation.
///
/// # Errors
/// Only when memory is short.
pub fn memory() -> Result<Connection> {
    let make = || -> Res<Connection> {
        let mut conn = Connection::open_in_memory()?;
        keep_statements(&conn)?;
        schema::migrate(&mut conn, None, MIGRATIONS, VERSION)?;
        Ok(conn)
    };
    make().map_err(|fail| to_error(fail, Path::new("memory")))
}

/// Opens the file for reading only. It must be a store of this version.
///
/// # Errors
/// As [`write`]; [`Error::NotFound`] when there is no file.
pub fn read(path: &Path) -> Result<Connection> {
    if !path.exists() {
        return Err(Error::NotFound { kind: "store", name: path.display().to_string() });
    }
    check_header(path)?;
    let open = || -> Res<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY)?;
        keep_statements(&conn)?;
        match schema::version(&conn, path)? {
            Some(VERSION) => Ok(conn),
            Some(found) if found > VERSION => {
                Err(Fail::Store(Error::Newer { path: path.display().to_string(), found, known: VERSION }))
            }
            _ => Err(Fail::Store(Error::NotFound { kind: "store", name: path.display().to_string() })),
        }
    };
    open().map_err(|fail| to_error(fail, path))
}

/// Makes the file under another name and renames it, so that a store without tables is always
/// damage and never a first start that was cut short.
fn create(path: &Path) -> Res<()> {
    let part = sidecar(path, ".new");
    for leftover in [part.clone(), sidecar(&part, "-journal")] {
        if leftover.exists() {
            std::fs::remove_file(&leftover)
                .map_err(|error| Fail::Store(from_file(FileError::new("remove", &leftover, error))))?;
        }
    }
    // Made here so that it belongs to its owner alone; SQLite's sidecars take its mode over.
    files::create_new(&part, b"", files::PRIVATE).map_err(|error| Fail::Store(from_file(error)))?;
    let mut conn = Connection::open(&part)?;
    schema::migrate(&mut conn, None, MIGRATIONS, VERSION)?;
    conn.close().map_err(|(_, error)| error)?;
    let named = File::open(&part)
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(|error| from_file(FileError::new("create", path, error)));
    named.map_err(Fail::Store)
}

fn connect(path: &Path) -> Res<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY)?;
    keep_statements(&conn)?;
    // The closing checkpoint would swallow its errors; the writer makes its own.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let shown = || path.display().to_string();
    // The version is looked at before anything is written.
    match schema::version(&conn, path)? {
        Some(found) if found > VERSION => {
            return Err(Fail::Store(Error::Newer { path: shown(), found, known: VERSION }));
        }
        Some(_) => {}
        None => return Err(Fail::Store(damaged(shown(), "it holds no tables".to_owned()))),
    }
    let mode: String = conn.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(Fail::Store(Error::SyncFailed {
            path: path.display().to_string(),
            detail: format!("the journal mode stays {mode:?} when wal is asked for"),
        }));
    }
    conn.pragma_update(None, "synchronous", "FULL")?;
    let level: i64 = conn.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
    assert_eq!(level, 2, "SQLite takes synchronous=FULL outside a transaction");
    conn.query_row("PRAGMA wal_autocheckpoint=0", [], |_| Ok(()))?;
    schema::migrate(&mut conn, Some(path), MIGRATIONS, VERSION)?;
    Ok(conn)
}

/// Statements stay prepared: without the stability guarantee the planner compiles some of them
/// again with every new value, a third of the work of a commit.
fn keep_statements(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(|_| ())
}

/// SQLite's own sidecar files and ours.
#[must_use]
pub fn sidecar(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Present while the store is closed and was closed in order.
#[must_use]
pub fn clean_mark(path: &Path) -> PathBuf {
    sidecar(path, ".clean")
}

/// Says that the process that wrote the store ended in order.
pub fn mark_clean(path: &Path) -> Result<()> {
    files::replace(&clean_mark(path), b"closed in order\n", files::PRIVATE).map_err(from_file)
}

fn remove_mark(path: &Path) -> Result<()> {
    let mark = clean_mark(path);
    match std::fs::remove_file(&mark) {
        Ok(()) => files::sync_dir(mark.parent().unwrap_or(Path::new("."))).map_err(from_file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(from_file(FileError::new("remove", &mark, error))),
    }
}

/// After a failed sync the page cache may hold bytes that the disk does not, and would serve them
/// as if they were durable. What is dropped here is read again from the disk.
fn forget_cached(path: &Path) -> std::io::Result<()> {
    for name in [path.to_owned(), sidecar(path, "-wal")] {
        match File::open(&name) {
            Ok(file) => rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A file that is no SQLite file is told before SQLite could take an empty or short one for a new
/// store.
fn check_header(path: &Path) -> Result<()> {
    use std::io::Read;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(from_file(FileError::new("read", path, error))),
    };
    let mut head = Vec::new();
    file.take(16).read_to_end(&mut head).map_err(|error| from_file(FileError::new("read", path, error)))?;
    if head == b"SQLite format 3\0" {
        return Ok(());
    }
    let detail = if head.is_empty() { "it is empty" } else { "it does not begin like an SQLite file" };
    Err(damaged(path.display().to_string(), detail.to_owned()))
}

/// SQLite swallows a failed sync of the directory; ours is checked.
fn sync_names(path: &Path, dir: &Path) -> Result<()> {
    files::sync_dir(dir).map_err(from_file)?;
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        files::sync_dir(above).map_err(from_file)?;
    }
    match File::open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(from_file(FileError::new("open", path, error))),
    }
}

/// True when the file system of `path` refuses a small new file for want of space or quota.
#[must_use]
pub fn is_full(path: &Path) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let probe = sidecar(path, ".probe");
    let outcome =
        FileOptions::new().write(true).create(true).truncate(true).open(&probe).and_then(|mut file| {
            file.write_all(&[0x5A; PROBE])?;
            file.sync_all()
        });
    // Left behind it harms nothing, and the next probe reuses it.
    let _ = std::fs::remove_file(&probe);
    outcome.is_err_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge))
}

/// Looks for damage in the whole file; minutes for a large one, so not on the way to readiness.
///
/// # Errors
/// [`Error::Damaged`] with the first findings.
pub fn full_check(path: &Path) -> Result<()> {
    let conn = read(path)?;
    let look =
        || -> Res<Vec<String>> { super::txn::all(&conn, "PRAGMA quick_check(5)", [], |row| row.get(0)) };
    let findings = look().map_err(|fail| to_error(fail, path))?;
    if findings == ["ok"] { Ok(()) } else { Err(damaged(path.display().to_string(), findings.join("; "))) }
}

/// A failure in opening, in the store's words.
pub fn to_error(fail: Fail, path: &Path) -> Error {
    match fail {
        Fail::Store(error) => error,
        Fail::Sql(error) => classify(&error, path, || is_full(path)).1,
    }
}

/// A failure of a file helper, in the store's words.
pub fn from_file(error: FileError) -> Error {
    let path = error.path().display().to_string();
    match error {
        FileError::Full { .. } => Error::Full { path },
        other => Error::ReadOnly { path, detail: other.to_string() },
    }
}
