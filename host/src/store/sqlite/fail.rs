//! How trouble inside a transaction is carried to the writer, which alone decides what it means.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::store::Error;

/// Why the work of a request did not succeed.
#[derive(Debug)]
pub enum Fail {
    /// The engine's answer.
    Sql(rusqlite::Error),
    /// Ours: the request does not fit the state of things.
    Store(Error),
}

/// Result of work inside a transaction.
pub type Res<T> = std::result::Result<T, Fail>;

impl From<rusqlite::Error> for Fail {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<crate::domain::mandate::IllegalTransition> for Fail {
    fn from(error: crate::domain::mandate::IllegalTransition) -> Self {
        Self::Store(Error::Conflict(error.to_string()))
    }
}

impl From<crate::domain::generation::IllegalTransition> for Fail {
    fn from(error: crate::domain::generation::IllegalTransition) -> Self {
        Self::Store(Error::Conflict(error.to_string()))
    }
}

/// A conflict in the caller's words.
pub fn conflict<T>(message: impl Into<String>) -> Res<T> {
    Err(Fail::Store(Error::Conflict(message.into())))
}

/// What trouble of the engine means for the store as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing changed; the same request may work later.
    Refused,
    /// The bytes on disk are in doubt, or may be: nothing more is accepted.
    Doubt,
}

/// Tells what an engine error is to a caller. `full` asks the file system whether space is left,
/// because SQLite knows a full disk but not a spent quota.
pub fn classify(error: &rusqlite::Error, path: &Path, full: impl FnOnce() -> bool) -> (Severity, Error) {
    let path = path.display().to_string();
    let detail = error.to_string();
    let Some(code) = error.sqlite_error_code() else {
        // A column that does not read back as what was written.
        return (Severity::Refused, damaged(path, detail));
    };
    match code {
        ErrorCode::DiskFull => (Severity::Refused, Error::Full { path }),
        ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied => {
            (Severity::Refused, Error::ReadOnly { path, detail })
        }
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            let detail = format!("another program holds it: {detail}");
            (Severity::Refused, Error::ReadOnly { path, detail })
        }
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => (Severity::Doubt, damaged(path, detail)),
        ErrorCode::SystemIoFailure if error.sqlite_extended_code_is_write() && full() => {
            (Severity::Refused, Error::Full { path })
        }
        ErrorCode::SystemIoFailure => (Severity::Doubt, Error::SyncFailed { path, detail }),
        _ => (Severity::Refused, Error::Conflict(detail)),
    }
}

/// What to do about a damaged file, said once.
pub fn damaged(path: String, detail: String) -> Error {
    Error::Damaged {
        path,
        detail,
        remedy: "stop the daemon, keep a copy of the file, then `kairos restore` a backup or \
                 `kairos recover --from-wal`"
            .to_owned(),
    }
}

trait ExtendedCode {
    fn sqlite_extended_code_is_write(&self) -> bool;
}

impl ExtendedCode for rusqlite::Error {
    /// A write that the system refused before any sync: the commit has not happened.
    fn sqlite_extended_code_is_write(&self) -> bool {
        use rusqlite::ffi::{SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_TRUNCATE, SQLITE_IOERR_WRITE};
        self.sqlite_error().is_some_and(|error| {
            [SQLITE_IOERR_WRITE, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_TRUNCATE].contains(&error.extended_code)
        })
    }
}
