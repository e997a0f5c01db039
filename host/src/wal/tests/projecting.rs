//! The projector by hand: appending, falling behind, archiving.

use super::*;

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
