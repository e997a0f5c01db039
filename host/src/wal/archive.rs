//! Packs the logs of ended mandates and forgets what is past its time. The original goes only
//! after its archive and the name of the archive are on disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use std::io::Write;

use super::file;
use super::heal::is_of;
use super::{Error, Result};
use crate::domain::record::{SUFFIX, mandate_of};
use crate::store::WalHead;
use crate::sys::files::{self, FileError};
use crate::sys::gz;

/// How long and how many archives are kept. Damaged and cut pieces are kept as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Older ones go.
    pub max_age: Duration,
    /// Beyond so many the oldest go.
    pub max_files: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(30 * 86_400), max_files: 100_000 }
    }
}

/// Archives these logs; gives the mandates whose lines may leave the store, each with its last
/// number. A log that is not what the store says is left alone: healing comes first.
///
/// # Errors
/// Nothing has been removed then that is not archived.
pub fn make(dir: &Path, heads: &[WalHead]) -> Result<Vec<(String, u64)>> {
    let mut packed: Vec<(PathBuf, &WalHead)> = Vec::with_capacity(heads.len());
    for head in heads {
        let path = file::path(dir, &head.mandate)?;
        let Some(bytes) = file::read(&path)? else { continue };
        if !is_of(&bytes, head) {
            tracing::warn!(mandate = head.mandate, "wal_not_archived_before_healing");
            continue;
        }
        write_synced(dir, &file::archive_path(dir, &head.mandate)?, &bytes)?;
        packed.push((path, head));
    }
    if packed.is_empty() {
        return Ok(Vec::new());
    }
    files::sync_dir(dir)?;
    let mut done = Vec::with_capacity(packed.len());
    for (path, head) in packed {
        std::fs::remove_file(&path).map_err(|error| FileError::new("remove", &path, error))?;
        done.push((head.mandate.clone(), head.seq));
    }
    // The originals must not come back after their lines have left the store.
    files::sync_dir(dir)?;
    Ok(done)
}

/// Writes and syncs an archive under its name; the caller syncs the directory once for all.
fn write_synced(dir: &Path, to: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |error| Error::from(FileError::new("archive to", to, error));
    let packed = gz::pack(bytes).map_err(fail)?;
    let mut temp = tempfile::Builder::new().prefix(".kairos-tmp-").tempfile_in(dir).map_err(fail)?;
    temp.write_all(&packed).map_err(fail)?;
    temp.as_file().sync_all().map_err(fail)?;
    temp.persist(to).map_err(|error| fail(error.error))?;
    Ok(())
}

/// Removes archives and kept pieces past their time; gives how many went.
///
/// # Errors
/// Of listing the directory or removing a file.
pub fn sweep(dir: &Path, retention: Retention, now: DateTime<Utc>) -> Result<u64> {
    let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
    let oldest = SystemTime::from(now).checked_sub(retention.max_age).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut removed = 0;
    let entries = std::fs::read_dir(dir).map_err(|error| FileError::new("list", dir, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| FileError::new("list", dir, error))?;
        let path = entry.path();
        if !entry.file_name().to_str().is_some_and(is_history) {
            continue;
        }
        let meta = entry.metadata().map_err(|error| FileError::new("look at", &path, error))?;
        let changed = meta.modified().map_err(|error| FileError::new("look at", &path, error))?;
        if changed < oldest {
            remove(&path)?;
            removed += 1;
        } else {
            kept.push((changed, path));
        }
    }
    if kept.len() > retention.max_files {
        kept.sort_unstable();
        let surplus = kept.len() - retention.max_files;
        for (_, path) in kept.drain(..surplus) {
            remove(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|error| FileError::new("remove", path, error))?;
    Ok(())
}

/// Archives, and pieces that healing kept aside. An open log is never history.
fn is_history(name: &str) -> bool {
    if mandate_of(name).is_some_and(|(_, packed)| packed) {
        return true;
    }
    name.rsplit_once('.').is_some_and(|(front, ending)| {
        front.ends_with(SUFFIX)
            && ending.rsplit_once('-').is_some_and(|(word, n)| {
                ["cut", "corrupt", "ahead"].contains(&word) && n.parse::<u32>().is_ok()
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_archives_and_kept_pieces_are_history() {
        for name in ["a.wal.jsonl.gz", "a.wal.jsonl.cut-1", "a.wal.jsonl.corrupt-12", "a.wal.jsonl.ahead-2"] {
            assert!(is_history(name), "{name}");
        }
        for name in ["a.wal.jsonl", "a.wal.jsonl.cut-x", "notes.txt", "cut-1", "a.cut-1", "store.db"] {
            assert!(!is_history(name), "{name}");
        }
    }
}
