//! The log files against a store that lives in a map: healing, falling behind, archives.
#![allow(clippy::disallowed_methods, reason = "tests damage files by hand")]

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

/// Puts these bytes into the file of mandate `m`, heals, and checks that the file is as the store
/// has it and that a second healing finds nothing to do.
fn healed(fake: &Fake, bytes: Option<&[u8]>) -> (Option<Healed>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.wal.jsonl");
    if let Some(bytes) = bytes {
        fs::write(&path, bytes).unwrap();
    }
    let report = heal(dir.path(), fake, Utc::now()).unwrap();
    assert_eq!(report.failed, []);
    assert_eq!(fs::read(&path).unwrap(), fake.text("m"));
    let again = heal(dir.path(), fake, Utc::now()).unwrap();
    assert!(again.healed.is_empty(), "{:?}", again.healed);
    (report.healed.into_iter().next().map(|(_, healed)| healed), dir)
}

#[test]
fn every_changed_byte_is_healed_from_the_store_and_kept_aside() {
    let fake = Fake::default();
    fake.commit("m", 12);
    let good = fake.text("m");
    let last = good[..good.len() - 1].iter().rposition(|c| *c == b'\n').unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let (done, dir) = healed(&fake, Some(&bad));
        if at < last {
            assert!(matches!(done, Some(Healed::Rewritten { .. })), "offset {at}: {done:?}");
            assert_eq!(kept_pieces(dir.path(), ".corrupt-"), 1);
        } else {
            assert!(matches!(done, Some(Healed::Cut { .. })), "offset {at}: {done:?}");
            assert_eq!(kept_pieces(dir.path(), ".cut-"), 1);
        }
    }
    assert!(fake.reviewed().is_empty());
}

#[test]
fn every_cut_is_healed_and_nothing_is_appended_to_a_torn_line() {
    let fake = Fake::default();
    fake.commit("m", 12);
    let good = fake.text("m");
    for cut in 0..good.len() {
        let (done, dir) = healed(&fake, Some(&good[..cut]));
        let whole = cut == 0 || good[cut - 1] == b'\n';
        if whole {
            assert_eq!(done, Some(Healed::Appended), "cut {cut}");
        } else {
            assert!(matches!(done, Some(Healed::Cut { .. })), "cut {cut}: {done:?}");
            assert_eq!(kept_pieces(dir.path(), ".cut-"), 1);
        }
    }
}

#[test]
fn a_missing_file_is_written_whole_and_an_equal_one_left_alone() {
    let fake = Fake::default();
    fake.commit("m", 3);
    assert_eq!(healed(&fake, None).0, Some(Healed::Appended));
    assert_eq!(healed(&fake, Some(&fake.text("m"))).0, None);
}

#[test]
fn a_file_that_tells_more_or_another_story_sends_its_mandate_to_review() {
    let ahead = Fake::default();
    ahead.commit("m", 5);
    let longer = ahead.text("m");
    let rolled_back = Fake::default();
    rolled_back.commit("m", 3);
    let (done, dir) = healed(&rolled_back, Some(&longer));
    assert!(matches!(done, Some(Healed::Ahead { .. })));
    assert_eq!(rolled_back.reviewed(), ["m: wal_ahead_of_store"]);
    let kept = dir.path().join("m.wal.jsonl.ahead-1");
    assert_eq!(fs::read(kept).unwrap(), longer);

    let other = Fake::default();
    other.commit("x", 1);
    let mut logs = other.logs.lock().unwrap();
    let mut fields = Map::new();
    fields.insert("op".into(), json!("append"));
    let mut log = Log::default();
    log.lines.push(record::seal(&mut log.head, fields));
    logs.clear();
    logs.insert("m".into(), log);
    drop(logs);
    assert!(matches!(healed(&other, Some(&longer)).0, Some(Healed::Ahead { .. })));
    assert_eq!(other.reviewed().len(), 1);
}

#[test]
fn garbage_behind_a_whole_log_is_cut_and_no_reason_for_review() {
    let fake = Fake::default();
    fake.commit("m", 3);
    let torn = [fake.text("m"), b"{\"op\":\"transition\",\"st\0\xff".to_vec()].concat();
    assert!(matches!(healed(&fake, Some(&torn)).0, Some(Healed::Cut { .. })));
    assert!(fake.reviewed().is_empty());
}

#[test]
fn lines_of_the_reference_stay_in_front_and_are_healed_too() {
    let legacy = "{\"op\":\"plan_commit\",\"plan_id\":\"p\",\"ts\":\"t\"}\n{\"op\":\"plan_finalize\",\"plan_id\":\"p\"}";
    let fake = Fake::default();
    let mut log = Log {
        lines: vec![legacy.to_owned()],
        head: record::legacy_head(format!("{legacy}\n").as_bytes()),
        ..Log::default()
    };
    let mut fields = Map::new();
    fields.insert("op".into(), json!("append"));
    log.lines.push(record::seal(&mut log.head, fields));
    fake.logs.lock().unwrap().insert("m".into(), log);
    let good = fake.text("m");
    assert_eq!(record::verify(&good).legacy_lines, 2);
    assert_eq!(healed(&fake, Some(format!("{legacy}\n").as_bytes())).0, Some(Healed::Appended));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        healed(&fake, Some(&bad));
    }
}

#[test]
fn one_log_that_cannot_be_healed_does_not_stop_the_others() {
    let fake = Fake::default();
    fake.commit("a", 2);
    fake.commit("m", 2);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("a.wal.jsonl")).unwrap();
    fs::write(dir.path().join("stranger.wal.jsonl"), b"{\"op\":\"append\"}\n").unwrap();
    let report = heal(dir.path(), &fake, Utc::now()).unwrap();
    assert_eq!(report.failed.len(), 1);
    assert_eq!(report.failed[0].0, "a");
    assert_eq!(report.strangers, ["stranger"]);
    assert_eq!(fake.reviewed(), ["stranger: adopted"]);
    assert!(heal(dir.path(), &fake, Utc::now()).unwrap().strangers.is_empty());
    assert_eq!(fs::read(dir.path().join("m.wal.jsonl")).unwrap(), fake.text("m"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_healed(bytes in proptest::collection::vec(any::<u8>(), 0..600), lines in 1usize..4) {
        let fake = Fake::default();
        fake.commit("m", lines);
        healed(&fake, Some(&bytes));
    }

    #[test]
    fn any_mixture_of_good_and_bad_bytes_is_healed(
        edits in proptest::collection::vec((any::<u16>(), any::<u8>(), 0u8..3), 1..5)
    ) {
        let fake = Fake::default();
        fake.commit("m", 4);
        let mut bytes = fake.text("m");
        for (at, byte, how) in edits {
            let at = usize::from(at) % bytes.len().max(1);
            match how {
                0 if at < bytes.len() => bytes[at] = byte,
                1 => bytes.insert(at.min(bytes.len()), byte),
                _ => bytes.truncate(at),
            }
        }
        healed(&fake, Some(&bytes));
    }
}

struct Hand {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    projector: Projector,
    clock: ManualClock,
}

fn by_hand() -> Hand {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let report = heal(dir.path(), fake.as_ref(), Utc::now()).unwrap();
    let retention = Retention { max_age: Duration::from_secs(86_400), max_files: 2 };
    let settings = Settings { dir: dir.path().to_owned(), retention };
    let clock = ManualClock::at(Utc::now());
    let source = Arc::clone(&fake) as Arc<dyn Source>;
    let projector = Projector::new(&settings, source, Arc::new(clock.clone()), &report);
    Hand { dir, fake, projector, clock }
}

impl Hand {
    fn path(&self, mandate: &str) -> PathBuf {
        self.dir.path().join(format!("{mandate}.wal.jsonl"))
    }

    fn gz(&self, mandate: &str) -> PathBuf {
        self.dir.path().join(format!("{mandate}.wal.jsonl.gz"))
    }

    fn same(&self, mandate: &str) {
        assert_eq!(fs::read(self.path(mandate)).unwrap(), self.fake.text(mandate));
    }
}

#[test]
fn committed_lines_are_appended_once_and_gaps_are_read_from_the_store() {
    let mut hand = by_hand();
    let first = hand.fake.commit("m", 2);
    hand.projector.take(vec![first.clone()]);
    hand.same("m");
    hand.projector.take(vec![first]);
    hand.same("m");
    let _lost = hand.fake.commit("m", 3);
    let later = hand.fake.commit("m", 1);
    hand.projector.take(vec![later]);
    hand.same("m");
    assert_eq!(fs::metadata(hand.path("m")).unwrap().len(), hand.fake.text("m").len() as u64);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(hand.path("m")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn more_logs_than_may_be_open_are_all_complete() {
    let mut hand = by_hand();
    for round in 0..2 {
        for n in 0..300 {
            let part = hand.fake.commit(&format!("m{n}"), 1 + round);
            hand.projector.take(vec![part]);
        }
    }
    for n in 0..300 {
        hand.same(&format!("m{n}"));
    }
}

#[test]
fn what_cannot_be_written_waits_in_the_store_and_follows_when_it_can() {
    let mut hand = by_hand();
    fs::create_dir(hand.path("m")).unwrap();
    assert!(hand.projector.prepare("m").is_ok(), "a mandate the store does not know has no log");
    let part = hand.fake.commit("m", 2);
    hand.projector.take(vec![part]);
    assert_eq!(hand.projector.behind().0, 1);
    assert!(hand.projector.prepare("m").is_err());
    let part = hand.fake.commit("m", 2);
    hand.projector.take(vec![part]);
    let other = hand.fake.commit("other", 1);
    hand.projector.take(vec![other]);
    hand.same("other");
    assert!(!hand.projector.retry());
    fs::remove_dir(hand.path("m")).unwrap();
    assert!(hand.projector.retry());
    hand.same("m");
    assert!(hand.projector.prepare("m").is_ok());
}

#[test]
fn a_queue_that_overflowed_is_made_up_from_the_store() {
    let mut hand = by_hand();
    let part = hand.fake.commit("m", 2);
    hand.projector.take(vec![part]);
    hand.fake.commit("m", 5);
    hand.projector.fall_behind("m".into());
    let part = hand.fake.commit("m", 1);
    hand.projector.take(vec![part]);
    assert!(hand.projector.retry());
    hand.same("m");
}

#[test]
fn an_ended_log_is_packed_and_only_then_leaves_the_store() {
    let mut hand = by_hand();
    let lines = hand.fake.commit("m", 3);
    let text = hand.fake.text("m");
    let end = hand.fake.end("m", true);
    hand.projector.take(vec![lines, end]);
    assert_eq!(hand.projector.to_archive(), 1);
    hand.projector.archive_some().unwrap();
    assert!(!hand.path("m").exists());
    assert_eq!(file::read_archive(&hand.gz("m")).unwrap().unwrap(), text);
    assert!(hand.fake.text("m").is_empty());
    let shown = show(hand.dir.path(), "m").unwrap();
    assert_eq!(shown.iter().map(|line| line.seq).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
    assert!(shown.iter().all(|line| line.standing == "sealed"));
}

#[test]
fn a_mandate_tried_again_goes_on_in_its_old_log() {
    let mut hand = by_hand();
    let lines = hand.fake.commit("m", 3);
    let before = hand.fake.text("m");
    let end = hand.fake.end("m", true);
    hand.projector.take(vec![lines, end]);
    hand.projector.archive_some().unwrap();
    hand.fake.end("m", false);
    let more = hand.fake.commit("m", 2);
    hand.projector.take(vec![more]);
    let whole = [before, hand.fake.text("m")].concat();
    assert_eq!(fs::read(hand.path("m")).unwrap(), whole);
    // A crash here must not lose the earlier lines either.
    fs::write(hand.path("m"), &whole[..whole.len() - 7]).unwrap();
    heal(hand.dir.path(), hand.fake.as_ref(), Utc::now()).unwrap();
    assert_eq!(fs::read(hand.path("m")).unwrap(), whole);
    let end = hand.fake.end("m", true);
    hand.projector.take(vec![end]);
    hand.projector.archive_some().unwrap();
    assert_eq!(file::read_archive(&hand.gz("m")).unwrap().unwrap(), whole);
}

#[test]
fn an_archive_cut_short_by_a_crash_is_finished_at_the_next_start() {
    let hand = by_hand();
    hand.fake.commit("m", 3);
    let text = hand.fake.text("m");
    hand.fake.end("m", true);
    // The archive is durable, the original is gone, the lines are still in the store.
    fs::write(hand.gz("m"), crate::sys::gz::pack(&text).unwrap()).unwrap();
    let report = heal(hand.dir.path(), hand.fake.as_ref(), Utc::now()).unwrap();
    assert!(report.healed.is_empty() && report.to_archive.is_empty());
    assert!(hand.fake.text("m").is_empty());
    assert!(!hand.path("m").exists());
    // A damaged archive does not count: the log is written again and packed again.
    let hand = by_hand();
    hand.fake.commit("m", 3);
    hand.fake.end("m", true);
    fs::write(hand.gz("m"), b"\x1f\x8bnonsense").unwrap();
    let report = heal(hand.dir.path(), hand.fake.as_ref(), Utc::now()).unwrap();
    assert_eq!(report.to_archive, ["m"]);
    hand.same("m");
}

#[test]
fn archives_past_their_age_or_number_go() {
    let mut hand = by_hand();
    for n in 0..4 {
        let mandate = format!("m{n}");
        let lines = hand.fake.commit(&mandate, 1);
        let end = hand.fake.end(&mandate, true);
        hand.projector.take(vec![lines, end]);
    }
    hand.projector.archive_some().unwrap();
    assert_eq!(kept_pieces(hand.dir.path(), ".gz"), 2);
    hand.clock.step_wall(hand.clock.now() + chrono::TimeDelta::days(2));
    hand.projector.sweep();
    assert_eq!(kept_pieces(hand.dir.path(), ".gz"), 0);
}

#[test]
fn service_writes_what_it_hears_before_and_after_it_is_attached() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let settings = Settings { dir: dir.path().join("wal"), retention: Retention::default() };
    let wal = Wal::new(settings, Arc::new(SystemClock::default()));
    wal.committed(vec![fake.commit("m", 2)]);
    assert!(matches!(wal.prepare_blocking("m"), Err(Error::Closed)));
    wal.attach(Arc::clone(&fake) as Arc<dyn Source>).unwrap();
    wal.committed(vec![fake.commit("m", 2), fake.commit("n", 1)]);
    wal.prepare_blocking("n").unwrap();
    assert_eq!(wal.flush(), Health::default());
    for mandate in ["m", "n"] {
        let path = dir.path().join(format!("wal/{mandate}.wal.jsonl"));
        assert_eq!(fs::read(path).unwrap(), fake.text(mandate));
    }
    assert!(matches!(wal.prepare_blocking("../x"), Err(Error::UnsafeId { .. })));
    wal.committed(vec![fake.commit("m", 1)]);
    wal.close();
    assert_eq!(fs::read(dir.path().join("wal/m.wal.jsonl")).unwrap(), fake.text("m"));
    assert!(matches!(wal.prepare_blocking("m"), Err(Error::Closed)));
}

#[test]
fn service_takes_more_than_its_queue_holds() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let settings = Settings { dir: dir.path().to_owned(), retention: Retention::default() };
    let wal = Wal::new(settings, Arc::new(SystemClock::default()));
    // Before it is attached nothing empties the queue.
    for n in 0..200 {
        wal.committed(vec![fake.commit(&format!("m{}", n % 7), 1_000)]);
    }
    wal.attach(Arc::clone(&fake) as Arc<dyn Source>).unwrap();
    assert_eq!(wal.flush().error, None);
    for n in 0..7 {
        let mandate = format!("m{n}");
        assert_eq!(fs::read(dir.path().join(format!("{mandate}.wal.jsonl"))).unwrap(), fake.text(&mandate));
    }
    wal.close();
}

#[test]
fn verifying_names_every_bad_file_and_its_kind() {
    let hand = by_hand();
    let at = |name: &str| hand.path(name);
    let dir = hand.dir.path();
    hand.fake.commit("sound", 3);
    fs::write(at("sound"), hand.fake.text("sound")).unwrap();
    fs::write(dir.join("packed.wal.jsonl.gz"), crate::sys::gz::pack(&hand.fake.text("sound")).unwrap())
        .unwrap();
    let mut bad = hand.fake.text("sound");
    bad[10] ^= 1;
    fs::write(at("damaged"), &bad).unwrap();
    fs::write(at("torn"), &hand.fake.text("sound")[..50]).unwrap();
    fs::write(dir.join("unreadable.wal.jsonl.gz"), b"nonsense").unwrap();
    fs::write(at("legacy"), b"{\"op\":\"append\",\"step_id\":\"s\"}\n").unwrap();
    let mut seen = Vec::new();
    let report = verify_dir(dir, None, None, &mut |done, all| seen.push((done, all))).unwrap();
    assert_eq!(seen.last(), Some(&(6, 6)));
    assert_eq!((report.files, report.archives, report.legacy_lines), (6, 1, 1));
    let states: Vec<(&str, FileState)> =
        report.findings.iter().map(|finding| (finding.mandate.as_str(), finding.state)).collect();
    assert_eq!(
        states,
        [
            ("damaged", FileState::Damaged),
            ("torn", FileState::TornTail),
            ("unreadable", FileState::Unreadable)
        ]
    );
    assert!(!report.is_fine());
    assert_eq!(verify_dir(dir, None, Some("sound"), &mut |_, _| {}).unwrap().findings, []);
    assert!(matches!(verify_dir(dir, None, Some("nobody"), &mut |_, _| {}), Err(Error::NotFound { .. })));
    let shown = show(dir, "damaged").unwrap();
    let standings: Vec<&str> = shown.iter().map(|line| line.standing).collect();
    assert_eq!(standings, ["bad", "unproven", "unproven"]);
    assert!(matches!(show(dir, "nobody"), Err(Error::NotFound { .. })));
}

#[test]
fn a_real_store_keeps_lines_until_their_archive_is_made() {
    use crate::domain::schedule::{MandateBounds, Overlap};
    use crate::store::*;
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(Utc::now()));
    let retention = Retention::default();
    let settings = Settings { dir: dir.path().join("wal"), retention };
    let wal = Wal::new(settings.clone(), Arc::clone(&clock) as Arc<dyn Clock>);
    let store = SqliteStore::in_memory_with(Some(Arc::clone(&wal) as Arc<dyn CommitSink>)).unwrap();
    wal.attach(Arc::new(store.clone())).unwrap();
    let now = clock.now();
    let new = NewMandate {
        id: "m".into(),
        origin: Origin::Manual,
        request_id: None,
        schedule: None,
        nominal: None,
        goal: "tidy".into(),
        runner: "stub".into(),
        scope: None,
        overlap: Overlap::Queue,
        bounds: MandateBounds::default(),
        again: false,
        now,
    };
    store.add(new).wait().unwrap();
    let offer = RunnerOffer { generation: "g".into(), phases: false };
    let offers = Arc::new([("stub".to_owned(), offer)].into());
    let claim = ClaimRequest { now, max: 1, gate: None, offers };
    let claimed = store.claim(claim).wait().unwrap().claimed;
    assert_eq!(claimed.len(), 1);
    wal.prepare_blocking("m").unwrap();
    let path = dir.path().join("wal/m.wal.jsonl");
    let text = || heal::joined(&store.wal_lines("m", 0).unwrap());
    assert_eq!(fs::read(&path).unwrap(), text());
    store.command("m".into(), MandateCommand::Stop { note: None }, now).wait().unwrap();
    let finish = FinishRequest {
        mandate: "m".into(),
        cycle: 1,
        attempt: 1,
        now,
        day: "2026-11-22".into(),
        end: crate::domain::mandate::CycleEnd::Done,
        reason: None,
        report: None,
        error: None,
        claimed: kairos_plugin_api::Usage::ZERO,
        state_puts: Default::default(),
        pause_after_failures: None,
        claim: None,
    };
    store.finish(finish).wait().unwrap();
    assert_eq!(wal.flush(), Health::default());
    let whole = text();
    assert_eq!(fs::read(&path).unwrap(), whole);
    wal.close();
    let head = store.log_head("m").unwrap().unwrap();
    assert_eq!(store.unarchived_logs().unwrap(), std::slice::from_ref(&head));

    let report = heal(&settings.dir, &store, now).unwrap();
    assert_eq!(report.to_archive, ["m"]);
    let source: Arc<dyn Source> = Arc::new(store.clone());
    let mut projector = Projector::new(&settings, source, clock, &report);
    projector.archive_some().unwrap();
    // The forgetting is lazy; the next commit carries it.
    store
        .event(NewEvent { at: now, kind: "test", schedule: None, mandate: None, details: json!(null) })
        .wait()
        .unwrap();
    assert!(store.unarchived_logs().unwrap().is_empty());
    assert_eq!(store.log_head("m").unwrap().unwrap(), head);
    let archive = file::archive_path(&settings.dir, "m").unwrap();
    assert_eq!(file::read_archive(&archive).unwrap().unwrap(), whole);
    let report = verify_dir(&settings.dir, Some(&store), None, &mut |_, _| {}).unwrap();
    assert!(report.is_fine() && report.findings.is_empty(), "{report:?}");
}

#[test]
fn service_whose_directory_cannot_be_made_starts_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("wal");
    fs::write(&blocked, b"in the way").unwrap();
    let fake = Arc::new(Fake::default());
    let settings = Settings { dir: blocked.clone(), retention: Retention::default() };
    let wal = Wal::new(settings, Arc::new(SystemClock::default()));
    assert!(wal.attach(Arc::clone(&fake) as Arc<dyn Source>).is_err());
    assert!(wal.health().error.is_some());
    wal.committed(vec![fake.commit("m", 2)]);
    assert!(matches!(wal.prepare_blocking("m"), Err(Error::Unready { .. })));
    fs::remove_file(&blocked).unwrap();
    let clock = SystemClock::default();
    while wal.flush().error.is_some() {
        assert!(clock.monotonic() < Duration::from_secs(30), "{:?}", wal.health());
        std::thread::yield_now();
    }
    wal.prepare_blocking("m").unwrap();
    assert_eq!(fs::read(blocked.join("m.wal.jsonl")).unwrap(), fake.text("m"));
    wal.close();
}
