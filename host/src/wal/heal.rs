//! Makes a file equal to what the store has of it, and says what it took. Whatever is removed from
//! a file is kept beside it first. May be killed anywhere and begun again.

use std::path::Path;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::file::{self, OpenLog};
use super::{Error, Result, Source};
use crate::domain::record::{self, Head};
use crate::store::WalHead;
use crate::sys::files;

/// Why a file sends its mandate to review: it holds lines that the store does not.
pub const AHEAD: &str = "wal_ahead_of_store";

/// What a file needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "healed")]
pub enum Healed {
    /// Nothing.
    Equal,
    /// Lines that were committed but not yet written; also a whole file that was missing.
    Appended,
    /// Its torn tail was cut off first.
    Cut {
        /// Where the tail is now.
        kept: String,
    },
    /// It was damaged before a good line, and written again.
    Rewritten {
        /// Where the damaged file is now.
        kept: String,
    },
    /// It told more, or another story, than the store: a person must look. Written again as the
    /// store has it.
    Ahead {
        /// Where the file is now.
        kept: String,
    },
    /// It is archived already; only its lines in the store were left.
    Archived,
    /// Its earlier lines, which the store no longer holds, are gone or damaged.
    Incomplete {
        /// Where the damaged file is now, if there was one.
        kept: Option<String>,
    },
}

/// What healing a directory did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HealReport {
    /// Files looked at.
    pub checked: u64,
    /// Those that were not equal, with what was done.
    pub healed: Vec<(String, Healed)>,
    /// Those that could not be healed now, with the reason; they are tried again later.
    pub failed: Vec<(String, String)>,
    /// Logs in the directory of which the store knew nothing; it does now.
    pub strangers: Vec<String>,
    /// Ended mandates whose archive is still to be made.
    #[serde(skip)]
    pub to_archive: Vec<String>,
}

impl HealReport {
    /// Mandates that go to review: a cycle of theirs that recovery handed out must not go on.
    pub fn reviewed(&self) -> impl Iterator<Item = &str> {
        let ahead = self.healed.iter().filter(|(_, healed)| matches!(healed, Healed::Ahead { .. }));
        ahead.map(|(mandate, _)| mandate.as_str())
    }
}

/// Heals every log whose lines are in the store. Cost follows these, not history.
///
/// Blocks; must not be called on an async runtime's thread.
///
/// # Errors
/// Only when the store cannot be read or the directory cannot be listed; one bad file never stops
/// the others.
pub fn heal(dir: &Path, source: &dyn Source, now: DateTime<Utc>) -> Result<HealReport> {
    files::create_dirs(dir)?;
    files::sweep_temporaries(dir)?;
    let strangers = adopt_strangers(dir, source, now)?;
    let mut report = HealReport { strangers, ..HealReport::default() };
    let mut archived = Vec::new();
    for head in source.unarchived()? {
        report.checked += 1;
        let id = head.mandate.clone();
        match heal_one(dir, source, &head) {
            Ok((Healed::Equal, _)) => {}
            Ok((healed, _)) => {
                tell(source, &id, &healed, now);
                if healed == Healed::Archived {
                    archived.push((id, head.seq));
                    continue;
                }
                report.healed.push((id.clone(), healed));
            }
            Err(error) => {
                tracing::error!(mandate = id, error = %error, "wal_heal_failed");
                report.failed.push((id.clone(), error.to_string()));
            }
        }
        if head.ended {
            report.to_archive.push(id);
        }
    }
    if !archived.is_empty() {
        // Forgotten lines are looked at again at the next start; nothing depends on the answer.
        drop(source.archived(archived));
    }
    Ok(report)
}

/// Open logs of mandates that the store has never heard of: they become mandates, for a person if
/// they are not finished.
fn adopt_strangers(dir: &Path, source: &dyn Source, now: DateTime<Utc>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(dir).map_err(|error| files::FileError::new("list", dir, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| files::FileError::new("list", dir, error))?;
        let name = entry.file_name();
        let Some((mandate, false)) = name.to_str().and_then(record::mandate_of) else { continue };
        if source.head(mandate)?.is_some() {
            continue;
        }
        match file::read(&entry.path()) {
            Ok(Some(bytes)) => {
                source.adopt(mandate, bytes, now)?;
                tracing::error!(mandate, "wal_file_unknown_to_store");
                found.push(mandate.to_owned());
            }
            Ok(None) => {}
            Err(error) => tracing::error!(mandate, error = %error, "wal_file_unreadable"),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes one file equal to the store and gives it opened for appending, unless it is archived.
///
/// # Errors
/// Of the file or the store.
pub fn heal_one(dir: &Path, source: &dyn Source, head: &WalHead) -> Result<(Healed, Option<OpenLog>)> {
    let path = file::path(dir, &head.mandate)?;
    let lines = source.lines(&head.mandate, 0)?;
    let tail = joined(&lines);
    let mut found = file::read(&path)?;
    let first = lines.first().map_or(head.seq + 1, |line| stated_seq(line));
    if found.is_none()
        && let Some(packed) = read_archive(dir, &head.mandate)?
    {
        if head.ended && is_of(&packed, head) {
            return Ok((Healed::Archived, None));
        }
        if first > 1 {
            files::replace(&path, &packed, files::PRIVATE)?;
            found = Some(packed);
        }
    }
    let found = found.unwrap_or_default();
    let (expected, lost) = match earlier(&found, first, lines.first()) {
        Some(front) => ([front, &tail].concat(), false),
        None => (tail, true),
    };
    let healed = if lost {
        let kept = if found.is_empty() { None } else { Some(keep(&path, "corrupt", &found)?) };
        files::replace(&path, &expected, files::PRIVATE)?;
        Healed::Incomplete { kept }
    } else {
        mend(&path, &found, &expected)?
    };
    let open = OpenLog::open(&path, expected.len() as u64, head.seq.max(last_seq(&lines)) + 1)?;
    Ok((healed, Some(open)))
}

/// An archive that is damaged is as good as none here; `kairos wal verify` names it.
fn read_archive(dir: &Path, mandate: &str) -> Result<Option<Vec<u8>>> {
    match file::read_archive(&file::archive_path(dir, mandate)?) {
        Err(Error::Archive { .. }) => Ok(None),
        other => other,
    }
}

/// Number of the last of these lines; 0 for none.
fn last_seq(lines: &[String]) -> u64 {
    lines.last().map_or(0, |line| stated_seq(line))
}

/// The number a line states; text of the reference has none and counts as 0.
fn stated_seq(line: &str) -> u64 {
    record::line_head(line.as_bytes()).map_or(0, |head| head.seq)
}

/// The bytes of the file that stand before what the store still holds: nothing if it holds all.
/// `None` if they are not there whole.
fn earlier<'a>(found: &'a [u8], first: u64, line: Option<&String>) -> Option<&'a [u8]> {
    if first <= 1 {
        return Some(&[]);
    }
    let mut end = 0;
    for piece in found.split_inclusive(|c| *c == b'\n') {
        end += piece.len();
        let text = piece.strip_suffix(b"\n")?;
        if record::line_head(text).is_some_and(|head| head.seq == first - 1) {
            break;
        }
    }
    let front = found.get(..end)?;
    let joint = match line {
        Some(line) => [front, line.as_bytes(), b"\n"].concat(),
        None => front.to_vec(),
    };
    let scan = record::verify(&joint);
    let reaches = if line.is_some() { first } else { first - 1 };
    (scan.is_sound() && scan.head.seq == reaches).then_some(front)
}

/// True when these bytes are a sound log that ends exactly where the store says.
pub fn is_of(bytes: &[u8], head: &WalHead) -> bool {
    let scan = record::verify(bytes);
    scan.is_sound() && scan.head == Head { seq: head.seq, crc: head.crc }
}

/// Brings a file from what it is to what it should be.
fn mend(path: &Path, found: &[u8], expected: &[u8]) -> Result<Healed> {
    let common = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    if common == found.len() && common == expected.len() {
        if found.is_empty() {
            OpenLog::open(path, 0, 1)?;
        }
        return Ok(Healed::Equal);
    }
    // Whole lines that both have.
    let agreed = found[..common].iter().rposition(|c| *c == b'\n').map_or(0, |at| at + 1);
    if common == found.len() && agreed == common {
        append(path, found.len(), &expected[common..])?;
        return Ok(Healed::Appended);
    }
    let scan = record::verify(found);
    if scan.valid_end > agreed {
        // Sound lines that the store does not have, or has differently.
        let kept = keep(path, "ahead", found)?;
        files::replace(path, expected, files::PRIVATE)?;
        return Ok(Healed::Ahead { kept });
    }
    if scan.damage.is_some() {
        let kept = keep(path, "corrupt", found)?;
        files::replace(path, expected, files::PRIVATE)?;
        return Ok(Healed::Rewritten { kept });
    }
    let kept = files::cut_tail_aside(path, agreed as u64)?;
    append(path, agreed, &expected[agreed..])?;
    Ok(Healed::Cut { kept: kept.map_or_else(String::new, |kept| kept.display().to_string()) })
}

fn append(path: &Path, len: usize, text: &[u8]) -> Result<()> {
    // The number of the next line does not matter for a handle that is dropped at once.
    OpenLog::open(path, len as u64, 0)?.append(text, 0)
}

fn keep(path: &Path, word: &str, bytes: &[u8]) -> Result<String> {
    Ok(files::keep_copy(path, word, bytes)?.display().to_string())
}

/// Lines with their newlines, in one piece.
pub fn joined(lines: &[String]) -> Vec<u8> {
    let mut text = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
    for line in lines {
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    text
}

/// Says what was done, as loudly as it deserves.
pub fn tell(source: &dyn Source, mandate: &str, healed: &Healed, now: DateTime<Utc>) {
    match healed {
        Healed::Equal | Healed::Archived => {}
        Healed::Appended => tracing::debug!(mandate, "wal_healed"),
        Healed::Cut { kept } => tracing::warn!(mandate, kept, "wal_torn_tail_cut"),
        Healed::Rewritten { kept } => tracing::error!(mandate, kept, "wal_damage_healed"),
        Healed::Incomplete { kept } => {
            tracing::error!(mandate, kept = kept.as_deref().unwrap_or("none"), "wal_earlier_lines_lost");
        }
        Healed::Ahead { kept } => {
            tracing::error!(mandate, kept, "wal_ahead_of_store");
            // Committed with the next transaction; the file shows it then.
            drop(source.to_review(mandate, AHEAD, format!("the file is kept as {kept}"), now));
        }
    }
}
