//! What the log thread does with what it hears: appends, falls behind, catches up, archives. Knows
//! no thread and no queue, so that tests drive it by hand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use super::archive::{self, Retention};
use super::file::OpenLog;
use super::heal::{self, Healed};
use super::{Error, Result, Settings, Source, file};
use crate::store::{Committed, WalHead};
use crate::sys::clock::Clock;

/// Logs kept open. Above it the one idle longest is closed; opening it again costs a read.
const MAX_OPEN: usize = 256;
/// Archives made in one go, with one sync of the directory for all of them.
const ARCHIVE_BATCH: usize = 64;

/// The log files and what is known of them.
pub struct Projector {
    dir: PathBuf,
    source: Arc<dyn Source>,
    retention: Retention,
    clock: Arc<dyn Clock>,
    open: HashMap<String, Slot>,
    /// Grows with every use; the smallest is the one idle longest.
    uses: u64,
    /// Mandates whose file lacks lines that only the store has, with the reason.
    behind: BTreeMap<String, String>,
    /// Ended mandates to archive.
    ended: BTreeSet<String>,
}

struct Slot {
    log: OpenLog,
    used: u64,
}

impl Projector {
    /// Starts with what healing left to do.
    pub fn new(
        settings: &Settings,
        source: Arc<dyn Source>,
        clock: Arc<dyn Clock>,
        healed: &heal::HealReport,
    ) -> Self {
        Self {
            dir: settings.dir.clone(),
            source,
            retention: settings.retention,
            clock,
            open: HashMap::new(),
            uses: 0,
            behind: healed.failed.iter().cloned().collect(),
            ended: healed.to_archive.iter().cloned().collect(),
        }
    }

    /// Writes what was committed. Lines of one mandate are written in one piece.
    pub fn take(&mut self, batch: Vec<Committed>) {
        let mut order: Vec<String> = Vec::new();
        let mut lines: HashMap<String, Vec<(u64, String)>> = HashMap::new();
        for part in batch {
            match part {
                Committed::Lines { mandate, lines: mut more } => {
                    let known = lines.entry(mandate.clone()).or_default();
                    if known.is_empty() {
                        order.push(mandate);
                    }
                    known.append(&mut more);
                }
                Committed::Ended { mandate } => {
                    self.ended.insert(mandate);
                }
            }
        }
        for mandate in order {
            let text = lines.remove(&mandate).unwrap_or_default();
            self.write(&mandate, &text);
        }
    }

    /// The file of a mandate lacks lines: they are read from the store when there is room again.
    pub fn fall_behind(&mut self, mandate: String) {
        self.open.remove(&mandate);
        // It may have ended in what was not taken in; whether it did is asked before archiving.
        self.ended.insert(mandate.clone());
        self.behind.entry(mandate).or_insert_with(|| "more lines than the queue holds".to_owned());
    }

    /// Makes sure that the file is there, open and complete.
    ///
    /// # Errors
    /// A cycle must not start then, unless the operator wants it so.
    pub fn prepare(&mut self, mandate: &str) -> Result<()> {
        if self.open.contains_key(mandate) {
            return Ok(());
        }
        let outcome = self.catch_up(mandate);
        if let Err(error) = &outcome {
            self.note_failure(mandate, error);
        }
        outcome
    }

    /// Tries again what could not be written. True when nothing is left.
    pub fn retry(&mut self) -> bool {
        for mandate in self.behind.keys().cloned().collect::<Vec<_>>() {
            match self.catch_up(&mandate) {
                Ok(()) => {}
                // The next one would meet the same trouble.
                Err(error) => {
                    self.note_failure(&mandate, &error);
                    break;
                }
            }
        }
        self.behind.is_empty()
    }

    /// Mandates whose file is behind, and why the first of them is.
    pub fn behind(&self) -> (usize, Option<&str>) {
        (self.behind.len(), self.behind.values().next().map(String::as_str))
    }

    /// Ended mandates that wait for their archive.
    pub fn to_archive(&self) -> usize {
        self.ended.len()
    }

    /// Archives some of the ended mandates and sweeps what is too old.
    ///
    /// # Errors
    /// The mandates stay on the list; the disk should be given some time.
    pub fn archive_some(&mut self) -> Result<()> {
        let batch: Vec<String> = self.ended.iter().take(ARCHIVE_BATCH).cloned().collect();
        let mut ready = Vec::new();
        for mandate in &batch {
            ready.extend(self.ready_to_archive(mandate)?);
        }
        let done = archive::make(&self.dir, &ready)?;
        for mandate in &batch {
            self.ended.remove(mandate);
        }
        if !done.is_empty() {
            // A failed request only means that the lines stay longer than they must.
            drop(self.source.archived(done));
        }
        self.sweep();
        Ok(())
    }

    /// Removes archives and kept evidence that are past their time.
    pub fn sweep(&self) {
        match archive::sweep(&self.dir, self.retention, self.clock.now()) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "wal_retention_swept"),
            Err(error) => tracing::warn!(error = %error, "wal_retention_failed"),
        }
    }

    /// The head of a mandate that is ended and whose file is complete and closed.
    fn ready_to_archive(&mut self, mandate: &str) -> Result<Option<WalHead>> {
        let Ok(path) = file::path(&self.dir, mandate) else { return Ok(None) };
        let Some(head) = self.source.head(mandate)?.filter(|head| head.ended) else { return Ok(None) };
        let whole = self.open.remove(mandate).is_some_and(|slot| slot.log.next == head.seq + 1);
        if !whole {
            let (healed, _) = heal::heal_one(&self.dir, self.source.as_ref(), &head)?;
            heal::tell(self.source.as_ref(), mandate, &healed, self.clock.now());
            self.behind.remove(mandate);
            if healed == Healed::Archived {
                drop(self.source.archived(vec![(head.mandate, head.seq)]));
                return Ok(None);
            }
        }
        Ok(path.exists().then_some(head))
    }

    fn write(&mut self, mandate: &str, lines: &[(u64, String)]) {
        // What is behind will be read from the store, in order. That an id cannot name a file was
        // answered to whoever prepared the cycle.
        if self.behind.contains_key(mandate) || file::path(&self.dir, mandate).is_err() {
            return;
        }
        if let Err(error) = self.try_write(mandate, lines) {
            self.open.remove(mandate);
            self.note_failure(mandate, &error);
        }
    }

    fn try_write(&mut self, mandate: &str, lines: &[(u64, String)]) -> Result<()> {
        let Some(&(first, _)) = lines.first() else { return Ok(()) };
        if !self.open.contains_key(mandate) {
            let path = file::path(&self.dir, mandate)?;
            if first != 1 || path.exists() || file::archive_path(&self.dir, mandate)?.exists() {
                return self.catch_up(mandate);
            }
            let log = OpenLog::open(&path, 0, 1)?;
            self.keep_open(mandate, log);
        }
        self.uses += 1;
        let Some(slot) = self.open.get_mut(mandate) else { return Ok(()) };
        slot.used = self.uses;
        let new: Vec<&(u64, String)> = lines.iter().filter(|(seq, _)| *seq >= slot.log.next).collect();
        let Some((next, last)) = new.first().zip(new.last()).map(|(a, b)| (a.0, b.0)) else { return Ok(()) };
        if next != slot.log.next {
            self.open.remove(mandate);
            return self.catch_up(mandate);
        }
        let mut text = String::with_capacity(new.iter().map(|(_, line)| line.len() + 1).sum());
        for (_, line) in new {
            text.push_str(line);
            text.push('\n');
        }
        slot.log.append(text.as_bytes(), last)
    }

    /// Makes a file equal to the store, whatever it is now, and keeps it open.
    fn catch_up(&mut self, mandate: &str) -> Result<()> {
        self.open.remove(mandate);
        let Some(head) = self.source.head(mandate)? else {
            // Pruned meanwhile, or never there: no file is better than one of nothing.
            self.behind.remove(mandate);
            return Ok(());
        };
        let (healed, log) = heal::heal_one(&self.dir, self.source.as_ref(), &head)?;
        heal::tell(self.source.as_ref(), mandate, &healed, self.clock.now());
        self.behind.remove(mandate);
        if let Some(log) = log {
            self.keep_open(mandate, log);
        }
        Ok(())
    }

    fn keep_open(&mut self, mandate: &str, log: OpenLog) {
        if self.open.len() >= MAX_OPEN {
            let idle = self.open.iter().min_by_key(|(_, slot)| slot.used).map(|(id, _)| id.clone());
            if let Some(idle) = idle {
                self.open.remove(&idle);
            }
        }
        self.uses += 1;
        self.open.insert(mandate.to_owned(), Slot { log, used: self.uses });
    }

    fn note_failure(&mut self, mandate: &str, error: &Error) {
        if self.behind.is_empty() {
            tracing::error!(mandate, error = %error, "wal_write_failed");
        }
        self.behind.insert(mandate.to_owned(), error.to_string());
    }
}
