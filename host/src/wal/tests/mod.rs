//! The log files against a store that lives in a map: healing, falling behind, archives.
#![allow(clippy::disallowed_methods, reason = "tests damage files by hand")]

mod healing;
mod projecting;
mod serving;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use serde_json::{Map, json};

use super::projector::Projector;
use super::*;
use crate::domain::record::{self, Head};
use crate::store::{CommitSink, Committed, Pending, WalHead};
use crate::sys::clock::{Clock, ManualClock, SystemClock};

#[derive(Clone, Debug, Default)]
struct Log {
    lines: Vec<String>,
    head: Head,
    ended: bool,
}

/// A store of nothing but log lines.
#[derive(Debug, Default)]
struct Fake {
    logs: Mutex<BTreeMap<String, Log>>,
    review: Mutex<Vec<String>>,
}

impl Fake {
    fn commit(&self, mandate: &str, count: usize) -> Committed {
        let mut logs = self.logs.lock().unwrap();
        let log = logs.entry(mandate.to_owned()).or_default();
        let mut made = Vec::new();
        for _ in 0..count {
            let mut fields = Map::new();
            fields.insert("op".into(), json!("transition"));
            fields.insert("step_id".into(), json!(format!("act_{:03}", log.head.seq)));
            let line = record::seal(&mut log.head, fields);
            log.lines.push(line.clone());
            made.push((log.head.seq, line));
        }
        Committed::Lines { mandate: mandate.to_owned(), lines: made }
    }

    fn end(&self, mandate: &str, ended: bool) -> Committed {
        self.logs.lock().unwrap().get_mut(mandate).unwrap().ended = ended;
        Committed::Ended { mandate: mandate.to_owned() }
    }

    fn text(&self, mandate: &str) -> Vec<u8> {
        heal::joined(&self.logs.lock().unwrap()[mandate].lines)
    }

    fn reviewed(&self) -> Vec<String> {
        self.review.lock().unwrap().clone()
    }
}

impl Source for Fake {
    fn unarchived(&self) -> store::Result<Vec<WalHead>> {
        let logs = self.logs.lock().unwrap();
        let held = logs.iter().filter(|(_, log)| !log.lines.is_empty());
        Ok(held.map(|(mandate, log)| head_of(mandate, log)).collect())
    }

    fn lines(&self, mandate: &str, from: u64) -> store::Result<Vec<String>> {
        let logs = self.logs.lock().unwrap();
        let lines = logs.get(mandate).map(|log| log.lines.clone()).unwrap_or_default();
        let number = |line: &String| record::line_head(line.as_bytes()).map_or(0, |head| head.seq);
        Ok(lines.into_iter().filter(|line| number(line) >= from).collect())
    }

    fn head(&self, mandate: &str) -> store::Result<Option<WalHead>> {
        Ok(self.logs.lock().unwrap().get(mandate).map(|log| head_of(mandate, log)))
    }

    fn archived(&self, mandates: Vec<(String, u64)>) -> Pending<()> {
        let mut logs = self.logs.lock().unwrap();
        for (mandate, upto) in mandates {
            let log = logs.get_mut(&mandate).unwrap();
            log.lines.retain(|line| record::line_head(line.as_bytes()).is_some_and(|head| head.seq > upto));
        }
        Pending::ready(Ok(()))
    }

    fn adopt(&self, mandate: &str, bytes: Vec<u8>, _now: DateTime<Utc>) -> store::Result<bool> {
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        let log = Log { lines: vec![text], head: record::legacy_head(&bytes), ended: false };
        self.logs.lock().unwrap().insert(mandate.to_owned(), log);
        self.review.lock().unwrap().push(format!("{mandate}: adopted"));
        Ok(true)
    }

    fn to_review(
        &self,
        mandate: &str,
        reason: &'static str,
        _detail: String,
        _now: DateTime<Utc>,
    ) -> Pending<()> {
        self.review.lock().unwrap().push(format!("{mandate}: {reason}"));
        Pending::ready(Ok(()))
    }
}

fn head_of(mandate: &str, log: &Log) -> WalHead {
    WalHead { mandate: mandate.to_owned(), ended: log.ended, seq: log.head.seq, crc: log.head.crc }
}

fn kept_pieces(dir: &Path, word: &str) -> usize {
    let entries = fs::read_dir(dir).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().contains(word)).count()
}
