//! One log file: its name, its bytes, and appending whole lines to it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use super::{Error, Result};
use crate::sys::files::{self, FileError};

/// Ending of a log.
pub const SUFFIX: &str = ".wal.jsonl";
/// Ending of an archived one.
pub const ARCHIVE_SUFFIX: &str = ".wal.jsonl.gz";
/// Largest log that is read, packed or not: a mandate's log is some hundred lines.
pub const MAX_FILE: u64 = 256 << 20;
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

/// The mandate of a file name, and whether it is an archive.
#[must_use]
pub fn mandate_of(name: &str) -> Option<(&str, bool)> {
    let (mandate, packed) = match name.strip_suffix(ARCHIVE_SUFFIX) {
        Some(mandate) => (mandate, true),
        None => (name.strip_suffix(SUFFIX)?, false),
    };
    (!mandate.is_empty() && !mandate.starts_with('.')).then_some((mandate, packed))
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
    let mut bytes = Vec::new();
    let damaged = |detail: String| Err(Error::Archive { path: path.display().to_string(), detail });
    match GzDecoder::new(packed.as_slice()).take(MAX_FILE + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > MAX_FILE => damaged(format!("it holds more than {MAX_FILE} bytes")),
        Ok(_) => Ok(Some(bytes)),
        Err(error) => damaged(error.to_string()),
    }
}

/// The bytes as an archive.
///
/// # Errors
/// Only when memory is short.
pub fn pack(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
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

    #[test]
    fn names_of_files_give_their_mandate() {
        assert_eq!(mandate_of("a.wal.jsonl"), Some(("a", false)));
        assert_eq!(mandate_of("a.wal.jsonl.gz"), Some(("a", true)));
        for name in ["a.wal.jsonl.cut-1", "a.jsonl", ".wal.jsonl", ".x.wal.jsonl", "a"] {
            assert_eq!(mandate_of(name), None, "{name}");
        }
    }

    #[test]
    fn packing_reads_back_and_a_cut_archive_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.wal.jsonl.gz");
        let text = b"{\"op\":\"append\"}\n".repeat(100);
        let packed = pack(&text).unwrap();
        files::replace(&path, &packed, files::PRIVATE).unwrap();
        assert_eq!(read_archive(&path).unwrap().unwrap(), text);
        files::replace(&path, &packed[..packed.len() - 5], files::PRIVATE).unwrap();
        assert!(matches!(read_archive(&path), Err(Error::Archive { .. })));
    }
}
