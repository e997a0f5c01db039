//! The write-ahead log of each mandate as a file: `{mandate}.wal.jsonl`, a sealed projection of
//! lines that the store has already made durable.
//!
//! ```text
//! store commit -> committed() -> queue -> kairos-wal thread -> file (not synced)
//!                                              \-> behind? read again from the store
//! mandate ended -> file -> .gz (synced, directory synced) -> file removed -> lines leave the store
//! ```
//!
//! A file is always a prefix of what the store has, and equal to it after [`Wal::attach`]. Nothing
//! here decides anything: what cannot be written waits in the store, what is damaged is kept aside
//! and written again, and what the store cannot explain goes to a person.

mod archive;
mod file;
mod heal;
mod look;
mod projector;
mod service;
mod source;
#[cfg(test)]
mod tests;

pub use archive::Retention;
pub use heal::{HealReport, Healed, heal};
pub use look::{FileState, FileVerdict, ShownLine, VerifyReport, show, verify_dir};
pub use service::{Health, Settings, Wal};
pub use source::Source;

use crate::store;
use crate::sys::files::FileError;

/// What can go wrong with a log file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The id cannot be the name of a file in the directory.
    #[error("mandate id {id:?} cannot name a file; ids hold no slash, no NUL and no leading dot")]
    UnsafeId {
        /// The id.
        id: String,
    },
    /// The file or its directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// Lines had to be read from the store, which failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// There is neither a file nor an archive.
    #[error("no write-ahead log of mandate {id:?} in {dir}; `kairos mandate list` shows what there is")]
    NotFound {
        /// The id.
        id: String,
        /// Where it was looked for.
        dir: String,
    },
    /// An archive that cannot be unpacked.
    #[error("{path}: archive damaged ({detail}); it is kept as it is")]
    Archive {
        /// The archive.
        path: String,
        /// What was found.
        detail: String,
    },
    /// The files could not be brought in line with the store yet.
    #[error("the write-ahead log cannot be written: {detail}")]
    Unready {
        /// Why.
        detail: String,
    },
    /// The service has been closed.
    #[error("the write-ahead log is closed")]
    Closed,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;
