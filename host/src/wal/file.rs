//! One log file: its name, its bytes, and appending whole lines to it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Error, Result};
use crate::domain::record::{ARCHIVE_SUFFIX, MAX_FILE, SUFFIX};
use crate::sys::files::{self, FileError};
use crate::sys::gz;

/// Longest id, so that a name with all its endings stays below the system's 255 bytes.
const MAX_ID: usize = 200;

/// Where the log of a mandate is, after a look at its id.
///
/// # Errors
/// [`Error::UnsafeId`].
pub fn path(dir: &Path, mandate: &str) -> Result<PathBuf> {
    named(dir, mandate, SUFFIX)
}

/// Where its archive is.
///
/// # Errors
/// [`Error::UnsafeId`].
pub fn archive_path(dir: &Path, mandate: &str) -> Result<PathBuf> {
    named(dir, mandate, ARCHIVE_SUFFIX)
}

fn named(dir: &Path, mandate: &str, suffix: &str) -> Result<PathBuf> {
    let bad = mandate.is_empty()
        || mandate.len() > MAX_ID
        || mandate.starts_with('.')
        || mandate.chars().any(|c| c == '/' || c.is_control());
    if bad {
        return Err(Error::UnsafeId { id: mandate.chars().take(80).collect() });
    }
    Ok(dir.join(format!("{mandate}{suffix}")))
}

/// The bytes of a log, `None` if there is no file.
///
/// # Errors
/// Whatever reading says.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    Ok(files::read(path, MAX_FILE)?)
}

/// The bytes in an archive, `None` if there is none.
///
/// # Errors
/// [`Error::Archive`] when it does not unpack.
pub fn read_archive(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(packed) = files::read(path, MAX_FILE)? else { return Ok(None) };
    match gz::unpack(&packed, MAX_FILE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => Err(Error::Archive { path: path.display().to_string(), detail: error.to_string() }),
    }
}

/// A log that is open for appending.
#[derive(Debug)]
pub struct OpenLog {
    file: File,
    path: PathBuf,
    /// Length up to the last whole line written here.
    len: u64,
    /// Number of the line that comes next.
    pub next: u64,
}

impl OpenLog {
    /// Opens a log that is known to end after line `next - 1` and to be `len` long; makes it if
    /// both say that it is new.
    ///
    /// # Errors
    /// When it has another length: somebody else wrote to it.
    pub fn open(path: &Path, len: u64, next: u64) -> Result<Self> {
        let opened = OpenOptions::new().append(true).create(len == 0).mode(files::PRIVATE).open(path);
        let file = opened.map_err(|error| FileError::new("open", path, error))?;
        let found = file.metadata().map_err(|error| FileError::new("read", path, error))?.len();
        if found != len {
            let odd = std::io::Error::new(ErrorKind::InvalidData, format!("{found} bytes long, not {len}"));
            return Err(FileError::new("append to", path, odd).into());
        }
        Ok(Self { file, path: path.to_owned(), len, next })
    }

    /// Appends whole lines, each with its newline; the last has the number `last`.
    ///
    /// # Errors
    /// What was written of them is cut off again where the system lets us; the caller must drop
    /// this handle in any case.
    pub fn append(&mut self, text: &[u8], last: u64) -> Result<()> {
        if let Err(error) = self.file.write_all(text) {
            // If this fails too, the torn line is cut when the file is opened again.
            let _ = self.file.set_len(self.len);
            return Err(FileError::new("append to", &self.path, error).into());
        }
        self.len += text.len() as u64;
        self.next = last + 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_the_directory_are_refused() {
        let dir = Path::new("/wal");
        for id in ["", ".", "..", "../x", "a/b", "a\0b", ".hidden", "a\nb", &"x".repeat(201)] {
            assert!(path(dir, id).is_err(), "{id:?}");
        }
        assert_eq!(path(dir, "20261122T090000Z-a-0").unwrap(), dir.join("20261122T090000Z-a-0.wal.jsonl"));
        assert!(path(dir, "my mandate").is_ok());
    }
}
