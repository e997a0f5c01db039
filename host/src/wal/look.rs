//! What a person asks of the logs: show one, verify all. Reads only; may run beside the daemon.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Error, Result, file};
use crate::domain::record::{self, Scan};
use crate::store::{Store, WalHead};
use crate::sys::files::FileError;

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownLine {
    /// Its place in the file, from 1.
    pub line: u64,
    /// Its number, if it is sealed.
    pub seq: Option<u64>,
    /// `sealed`, `legacy` (written by the reference, without seal), `bad`, or `unproven` (behind a bad one).
    pub standing: &'static str,
    /// What it says, if that can be read.
    pub record: Option<Value>,
    /// Its text when it cannot.
    pub text: Option<String>,
}

/// How a file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// Every byte is good, and the store says the same.
    Sound,
    /// Good, and shorter than the store: the rest is on its way, or is written at the next start.
    Behind,
    /// The last write was cut off; healed at the next start.
    TornTail,
    /// A bad byte stands before a good line; healed at the next start while the store has the lines.
    Damaged,
    /// It tells more than the store.
    Ahead,
    /// It tells something else than the store.
    Diverged,
    /// The store does not know its mandate.
    Unknown,
    /// It cannot be read.
    Unreadable,
    /// The store has lines of this open mandate, and there is no file.
    Missing,
}

impl FileState {
    /// False for what a person should look at.
    #[must_use]
    pub fn is_fine(self) -> bool {
        matches!(self, Self::Sound | Self::Behind)
    }
}

/// What was found out about one log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileVerdict {
    /// Its mandate.
    pub mandate: String,
    /// Its file.
    pub path: String,
    /// How it stands.
    pub state: FileState,
    /// Good lines.
    pub lines: u64,
    /// Where the first bad line starts.
    pub offset: Option<u64>,
    /// More, for people.
    pub detail: Option<String>,
}

/// What was found out about all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Logs looked at.
    pub files: u64,
    /// Archives among them.
    pub archives: u64,
    /// Good lines in them.
    pub lines: u64,
    /// Lines the reference wrote, which carry no seal.
    pub legacy_lines: u64,
    /// How many stand how.
    pub states: BTreeMap<FileState, u64>,
    /// Those that are not sound.
    pub findings: Vec<FileVerdict>,
}

impl VerifyReport {
    /// True when a person has nothing to look at.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.findings.iter().all(|finding| finding.state.is_fine())
    }

    fn add(&mut self, verdict: FileVerdict) {
        *self.states.entry(verdict.state).or_default() += 1;
        self.lines += verdict.lines;
        if verdict.state != FileState::Sound {
            self.findings.push(verdict);
        }
    }
}

/// The lines of a mandate's log, from its file or its archive.
///
/// # Errors
/// [`Error::NotFound`] when there is neither.
pub fn show(dir: &Path, mandate: &str) -> Result<Vec<ShownLine>> {
    let (bytes, _) = load(dir, mandate)?
        .ok_or_else(|| Error::NotFound { id: mandate.to_owned(), dir: dir.display().to_string() })?;
    let scan = record::verify(&bytes);
    let mut at = 0;
    let mut shown = Vec::new();
    for (number, piece) in (1..).zip(bytes.split_inclusive(|c| *c == b'\n')) {
        let line = piece.strip_suffix(b"\n").unwrap_or(piece);
        let standing = match at {
            at if at < scan.legacy_end => "legacy",
            at if at < scan.valid_end => "sealed",
            at if at == scan.valid_end => "bad",
            _ => "unproven",
        };
        let record = if line.len() < record::MAX_LINE { serde_json::from_slice(line).ok() } else { None };
        let text =
            record.is_none().then(|| String::from_utf8_lossy(&line[..line.len().min(4096)]).into_owned());
        let seq = record::line_head(line).map(|head| head.seq);
        shown.push(ShownLine { line: number, seq, standing, record, text });
        at += piece.len();
    }
    Ok(shown)
}

/// Checks one log, or every log in the directory; against the store if there is one.
///
/// `progress` hears of the logs done and their total.
///
/// # Errors
/// When the directory cannot be listed or the store cannot be read. A bad log is a finding.
pub fn verify_dir(
    dir: &Path,
    store: Option<&dyn Store>,
    only: Option<&str>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport> {
    let heads: Option<HashMap<String, WalHead>> = match store {
        Some(store) => {
            Some(store.wal_heads(false)?.into_iter().map(|head| (head.mandate.clone(), head)).collect())
        }
        None => None,
    };
    let mandates = match only {
        Some(mandate) => {
            file::path(dir, mandate)?;
            BTreeSet::from([mandate.to_owned()])
        }
        None => present(dir)?,
    };
    let mut report = VerifyReport::default();
    for (done, mandate) in (1..).zip(&mandates) {
        let head = heads.as_ref().map(|heads| heads.get(mandate));
        check(dir, mandate, head, &mut report)?;
        progress(done, mandates.len() as u64);
    }
    if only.is_none() {
        for head in heads.into_iter().flat_map(HashMap::into_values) {
            if head.seq > 0 && !head.ended && !mandates.contains(&head.mandate) {
                report.add(missing(dir, &head.mandate));
            }
        }
    }
    report.findings.sort_by(|a, b| a.mandate.cmp(&b.mandate));
    Ok(report)
}

fn check(dir: &Path, mandate: &str, head: Option<Option<&WalHead>>, report: &mut VerifyReport) -> Result<()> {
    let (bytes, packed) = match load(dir, mandate) {
        Ok(Some(loaded)) => loaded,
        Ok(None) => match head {
            Some(Some(head)) if head.seq > 0 && !head.ended => {
                report.add(missing(dir, mandate));
                return Ok(());
            }
            _ => return Err(Error::NotFound { id: mandate.to_owned(), dir: dir.display().to_string() }),
        },
        Err(error) => {
            report.files += 1;
            let path = file::path(dir, mandate)?.display().to_string();
            let state = FileState::Unreadable;
            let detail = Some(error.to_string());
            report.add(FileVerdict {
                mandate: mandate.to_owned(),
                path,
                state,
                lines: 0,
                offset: None,
                detail,
            });
            return Ok(());
        }
    };
    let path = if packed { file::archive_path(dir, mandate)? } else { file::path(dir, mandate)? };
    let scan = record::verify(&bytes);
    let (state, offset, detail) = judge(&scan, head);
    report.files += 1;
    report.archives += u64::from(packed);
    report.legacy_lines += scan.legacy_lines;
    report.add(FileVerdict {
        mandate: mandate.to_owned(),
        path: path.display().to_string(),
        state,
        lines: scan.legacy_lines + scan.chained,
        offset: offset.map(|offset| offset as u64),
        detail,
    });
    Ok(())
}

fn judge(scan: &Scan, head: Option<Option<&WalHead>>) -> (FileState, Option<usize>, Option<String>) {
    if let Some(damage) = scan.damage {
        return (FileState::Damaged, Some(damage.offset), Some(format!("line {}", damage.line)));
    }
    if let Some(tail) = &scan.torn_tail {
        return (FileState::TornTail, Some(tail.start), Some(format!("{} bytes", tail.len())));
    }
    let Some(head) = head else { return (FileState::Sound, None, None) };
    let Some(head) = head else { return (FileState::Unknown, None, None) };
    let detail = Some(format!("file ends at {}, store at {}", scan.head.seq, head.seq));
    match scan.head.seq.cmp(&head.seq) {
        std::cmp::Ordering::Less => (FileState::Behind, None, detail),
        std::cmp::Ordering::Greater => (FileState::Ahead, None, detail),
        std::cmp::Ordering::Equal if scan.head.crc == head.crc => (FileState::Sound, None, None),
        std::cmp::Ordering::Equal => (FileState::Diverged, None, Some(format!("at line {}", head.seq))),
    }
}

fn missing(dir: &Path, mandate: &str) -> FileVerdict {
    FileVerdict {
        mandate: mandate.to_owned(),
        path: dir.join(format!("{mandate}{}", record::SUFFIX)).display().to_string(),
        state: FileState::Missing,
        lines: 0,
        offset: None,
        detail: Some("written again at the next start".to_owned()),
    }
}

/// The file if it is there, else the archive; true for an archive.
fn load(dir: &Path, mandate: &str) -> Result<Option<(Vec<u8>, bool)>> {
    if let Some(bytes) = file::read(&file::path(dir, mandate)?)? {
        return Ok(Some((bytes, false)));
    }
    Ok(file::read_archive(&file::archive_path(dir, mandate)?)?.map(|bytes| (bytes, true)))
}

/// Mandates with a log in the directory.
fn present(dir: &Path) -> Result<BTreeSet<String>> {
    let fail = |error| Error::from(FileError::new("list", dir, error));
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(fail)?.file_name();
        if let Some((mandate, _)) = name.to_str().and_then(record::mandate_of) {
            found.insert(mandate.to_owned());
        }
    }
    Ok(found)
}
