//! Pruning, backups, and stores rebuilt from other files.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::store::maintenance::*;

fn quiet(_: u64, _: u64) {}

/// Writes the logs of these mandates as the projection does.
fn project(store: &SqliteStore, dir: &Path, ids: &[&str]) {
    fs::create_dir_all(dir).unwrap();
    for id in ids {
        let text: String = store.wal_lines(id, 0).unwrap().iter().flat_map(|line| [line, "\n"]).collect();
        fs::write(dir.join(format!("{id}.wal.jsonl")), text).unwrap();
    }
}

/// A cycle with one paid call of each outcome: settled with 2, and one whose result never came.
fn paid_cycle(bench: &Bench, id: &str, end: Option<CycleEnd>) {
    bench.add_manual(id);
    let cycle = bench.claim_one();
    assert_eq!(cycle.mandate.id, id);
    bench.begin_step(begin(&cycle, 1, calls(3), Some(gate(1_000)))).wait().unwrap();
    bench.settle_step(settle(&cycle, 1, Some(calls(2)))).wait().unwrap();
    let note = CycleNote {
        mandate: id.to_owned(),
        cycle: 1,
        attempt: 1,
        now: at(3),
        what: NoteKind::Usage { delta: calls(10), day: DAY.to_owned(), seq: Some(2) },
    };
    bench.note(note).wait().unwrap();
    match end {
        Some(end) => {
            bench.end(&cycle, end);
        }
        None => {
            bench.begin_step(begin(&cycle, 3, calls(5), Some(gate(1_000)))).wait().unwrap();
        }
    }
}

fn known(name: &str, cursor: Option<i64>) -> (String, KnownSchedule) {
    let spec = spec(name, SchedulePolicy::default());
    let known = KnownSchedule { spec, runner: "stub".into(), cursor: cursor.map(at), last_fired: None };
    (name.to_owned(), known)
}

fn beside(schedules: &[(&str, Option<i64>)], spend: Option<u64>) -> Beside {
    Beside {
        schedules: Arc::new(schedules.iter().map(|(name, cursor)| known(name, *cursor)).collect()),
        spend: spend.map(|spent| KnownSpend { day: DAY.to_owned(), usage: calls(spent) }),
    }
}

fn reopened(path: &Path) -> Bench {
    let store = SqliteStore::open(OpenOptions { path: path.to_owned(), sink: None }).unwrap();
    Bench { store, dir: None }
}

#[test]
fn pruning_lets_old_ends_go_and_counts_no_day_less() {
    on_both(|bench| {
        for n in 0..40 {
            paid_cycle(bench, &format!("old{n}"), Some(CycleEnd::Done));
        }
        let before = bench.ledger(DAY);
        assert_eq!(before.spent, calls(40 * 12));
        let dry = bench.prune(at(100), true, &mut quiet).unwrap();
        assert_eq!((dry.mandates, dry.unarchived, dry.dry_run), (0, 40, true));
        let archived = (0..39).map(|n| (format!("old{n}"), u64::MAX >> 1)).collect();
        bench.forget_lines(archived).wait().unwrap();
        paid_cycle(bench, "open", None);
        let mut seen = Vec::new();
        let dry = bench.prune(at(100), true, &mut quiet).unwrap();
        assert_eq!(dry.mandates, 39);
        assert_eq!(bench.mandates(&MandateFilter::default()).unwrap().len(), 41);
        let done = bench.prune(at(100), false, &mut |done, all| seen.push((done, all))).unwrap();
        assert_eq!((done.mandates, done.unarchived, done.days), (39, 1, 0));
        assert_eq!(seen.last(), Some(&(39, 39)));
        let left: Vec<String> =
            bench.mandates(&MandateFilter::default()).unwrap().into_iter().map(|row| row.id).collect();
        assert_eq!(left, ["open", "old39"]);
        assert_eq!(bench.ledger(DAY).spent, before.spent.plus(calls(12)));
        assert_eq!(bench.steps("open").unwrap().len(), 3);
        // Nothing is left to do, and days go only when no mandate of theirs is left.
        let again = bench.prune(at(100), false, &mut quiet).unwrap();
        assert_eq!((again.mandates, again.events, again.occurrences), (0, 0, 0));
        let later = bench.prune(at(3 * 86_400), false, &mut quiet).unwrap();
        assert_eq!(later.days, 0);
    });
}

#[test]
fn pruning_lets_days_outcomes_and_events_go() {
    on_both(|bench| {
        bench.adopt(vec![adopt("s", 0)]).wait().unwrap();
        let spec = spec("s", SchedulePolicy::default());
        let mut evaluation = evaluation(&spec, (0, 120), &[120]);
        evaluation.missed = vec![missed(60, 60, 1, "skip")];
        bench.fire(fire(120, vec![evaluation])).wait().unwrap();
        let cycle = bench.claim_one();
        let id = cycle.mandate.id.clone();
        bench.begin_step(begin(&cycle, 1, calls(3), Some(gate(100)))).wait().unwrap();
        bench.end(&cycle, CycleEnd::Done);
        bench.forget_lines(vec![(id.clone(), u64::MAX >> 1)]).wait().unwrap();
        let pruned = bench.prune(at(86_400), false, &mut quiet).unwrap();
        assert_eq!((pruned.mandates, pruned.occurrences, pruned.days), (1, 2, 1));
        assert!(pruned.events > 0);
        assert_eq!(bench.ledger(DAY), DayTotals::default());
        assert!(bench.events(0, 10).unwrap().is_empty());
        assert_eq!(bench.schedules().unwrap()[0].cursor, at(120));
    });
}

#[test]
fn a_store_is_rebuilt_from_its_logs() {
    let bench = on_file();
    let root = bench.dir.as_ref().unwrap().path().to_owned();
    let (path, wal) = (root.join("state/store.db"), root.join("wal"));
    bench.adopt(vec![adopt("s", 0)]).wait().unwrap();
    let rule = spec("s", SchedulePolicy::default());
    bench.fire(fire(60, vec![evaluation(&rule, (0, 60), &[60])])).wait().unwrap();
    let fired = bench.claim_one();
    bench.end(&fired, CycleEnd::Done);
    paid_cycle(&bench, "done", Some(CycleEnd::Done));
    paid_cycle(&bench, "given_up", Some(CycleEnd::More));
    bench.command("given_up".into(), MandateCommand::Stop { note: None }, at(4)).wait().unwrap();
    paid_cycle(&bench, "more", Some(CycleEnd::More));
    let again = bench.claim_one();
    assert_eq!((again.mandate.id.as_str(), again.mandate.cycle), ("more", 2));
    bench.end(&again, CycleEnd::Checkpoint);
    paid_cycle(&bench, "running", None);
    bench.add_manual("tool");
    let cycle = bench.claim_one();
    let mut effect = begin(&cycle, 1, Usage::ZERO, None);
    (effect.kind, effect.name) = (StepKind::Tool, "fs.edit".into());
    effect.intent = json!({"pre_hash": "a", "post_hash": "b"});
    bench.begin_step(effect).wait().unwrap();
    bench.settle_step(settle(&cycle, 1, None)).wait().unwrap();
    bench.end(&cycle, CycleEnd::Interrupted);
    bench.add_manual("waiting");

    let fired = fired.mandate.id;
    project(&bench, &wal, &[&fired, "done", "more", "running", "tool", "given_up"]);
    let ledger = bench.ledger(DAY);
    let total = ledger.spent.plus(ledger.reserved);
    bench.close().wait().unwrap();
    fs::write(&path, b"SQLite format 3\0nothing of the rest").unwrap();

    let known = beside(&[("s", Some(90))], Some(1_000));
    let report = recover_from_wal(&path, &wal, &known, at(200), &mut quiet).unwrap();
    assert_eq!(report.logs, 6);
    assert_eq!(report.queued, ["running"]);
    assert_eq!(report.review.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["tool"]);
    assert!(report.replaced.as_ref().unwrap().exists());
    assert!(!report.lost.is_empty());
    let store = reopened(&path);
    assert_eq!(store.state("done"), MandateState::Succeeded);
    assert_eq!(store.state("given_up"), MandateState::Cancelled);
    assert_eq!(store.state(&fired), MandateState::Succeeded);
    assert_eq!(store.state("more"), MandateState::PausedCheckpoint);
    assert_eq!(store.mandate("more").unwrap().cycle, 2);
    assert_eq!(store.cycles("more").unwrap().len(), 2);
    assert_eq!(store.mandate("running").unwrap().goal, "tidy up");
    assert!(store.mandate("waiting").is_err());
    // What the logs tell is at least what was spent; what budget.json tells beyond it counts too.
    assert!(report.usage.llm_calls >= total.llm_calls, "{report:?} {total:?}");
    assert_eq!(store.ledger(DAY).spent, calls(1_000));
    assert_eq!(store.schedules().unwrap()[0].cursor, at(90));
    let outcome = store.occurrence("s", at(60)).unwrap();
    assert_eq!((outcome.outcome.as_str(), outcome.mandate.as_deref()), ("fired", Some(fired.as_str())));
    // The mandate that ran begins its cycle anew, under a new plan in the same log.
    let cycle = store.claim_one();
    assert_eq!((cycle.mandate.id.as_str(), cycle.mandate.cycle, cycle.mandate.attempt), ("running", 1, 2));
    assert!(cycle.steps.is_empty());
    store.end(&cycle, CycleEnd::Done);
    assert_eq!(store.log("running").last().unwrap()["state"], "succeeded");
    assert!(store.has_taken_over().unwrap());
}

#[test]
fn rebuilding_can_be_cut_short_and_begun_again() {
    let bench = on_file();
    let root = bench.dir.as_ref().unwrap().path().to_owned();
    let (path, wal) = (root.join("state/store.db"), root.join("wal"));
    paid_cycle(&bench, "m", Some(CycleEnd::Done));
    project(&bench, &wal, &["m"]);
    bench.close().wait().unwrap();
    fs::write(root.join("state/store.db.rebuilding"), b"half a store").unwrap();
    recover_from_wal(&path, &wal, &Beside::default(), at(9), &mut quiet).unwrap();
    let report = recover_from_wal(&path, &wal, &Beside::default(), at(9), &mut quiet).unwrap();
    assert_eq!(report.replaced.unwrap(), root.join("state/store.db.replaced-2"));
    assert_eq!(reopened(&path).state("m"), MandateState::Succeeded);
}

#[test]
fn a_missing_store_with_sealed_logs_is_no_first_start() {
    let bench = on_file();
    let root = bench.dir.as_ref().unwrap().path().to_owned();
    let (path, wal) = (root.join("state/none.db"), root.join("wal"));
    assert!(check_first_start(&path, &wal).is_ok());
    fs::create_dir_all(&wal).unwrap();
    fs::write(wal.join("old.wal.jsonl"), b"{\"op\":\"append\",\"step_id\":\"s\"}\n").unwrap();
    assert!(check_first_start(&path, &wal).is_ok());
    paid_cycle(&bench, "m", Some(CycleEnd::Done));
    project(&bench, &wal, &["m"]);
    let error = check_first_start(&path, &wal).unwrap_err();
    assert!(matches!(&error, Error::Damaged { remedy, .. } if remedy.contains("--from-wal")), "{error}");
    assert!(check_first_start(&root.join("state/store.db"), &wal).is_ok());
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/reference/wal")
}

#[test]
fn the_reference_is_taken_over_exactly_once() {
    on_both(|bench| {
        let names = ["daily_summary", "nightly_build", "inbox_watch", "repo_tidy"];
        let schedules: Vec<_> = names.iter().map(|name| (*name, Some(5))).collect();
        let known = beside(&schedules, Some(127));
        assert!(!bench.has_taken_over().unwrap());
        let report = bench.import_reference(&golden(), &known, at(10), &mut quiet).unwrap();
        assert_eq!((report.logs, report.schedules, report.uncovered), (9, 4, calls(127)));
        // Of those that could run again only one has a schedule that says what it is about.
        assert_eq!(report.queued, ["inbox_watch"]);
        let review: Vec<&str> = report.review.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(review, ["bad_middle", "needs_eyes", "repo_tidy", "reset_once", "torn_tail"]);
        assert_eq!(bench.state("gave_up"), MandateState::Cancelled);
        assert_eq!(bench.state("daily_summary"), MandateState::Succeeded);
        assert_eq!(bench.mandate("inbox_watch").unwrap().goal, "report");
        assert_eq!(bench.ledger(DAY).spent, calls(127));
        assert!(bench.schedules().unwrap().iter().all(|known| known.cursor == at(5)));

        let again = bench.import_reference(&golden(), &known, at(11), &mut quiet).unwrap();
        assert_eq!(again.logs, 0);
        assert_eq!(bench.ledger(DAY).spent, calls(127));
        // Its log goes on behind what the reference wrote.
        let cycle = bench.claim_one();
        assert_eq!(cycle.mandate.id, "inbox_watch");
        bench.end(&cycle, CycleEnd::Done);
        let text: String =
            bench.wal_lines("inbox_watch", 0).unwrap().iter().flat_map(|line| [line, "\n"]).collect();
        let before = fs::read_to_string(golden().join("inbox_watch.wal.jsonl")).unwrap();
        assert!(text.starts_with(&before));
        let scan = crate::domain::record::verify(text.as_bytes());
        assert!(scan.is_sound());
        assert_eq!((scan.legacy_lines, scan.chained), (4, scan.head.seq));
    });
}

#[test]
fn an_import_cut_short_before_its_mark_does_nothing_twice() {
    let bench = on_file();
    let known = beside(&[("inbox_watch", Some(5))], Some(127));
    bench.import_reference(&golden(), &known, at(10), &mut quiet).unwrap();
    bench.run(|txn| txn.exec("DELETE FROM meta", [])).wait().unwrap();
    bench.import_reference(&golden(), &known, at(11), &mut quiet).unwrap();
    assert_eq!(bench.mandates(&MandateFilter::default()).unwrap().len(), 9);
    assert_eq!(bench.ledger(DAY).spent, calls(127));
}

#[test]
fn a_log_the_store_does_not_know_becomes_a_mandate_for_a_person() {
    let other = on_file();
    paid_cycle(&other, "open", None);
    paid_cycle(&other, "ended", Some(CycleEnd::Done));
    let bytes = |id: &str| -> Vec<u8> {
        let lines = other.wal_lines(id, 0).unwrap();
        lines.iter().flat_map(|line| [line.as_bytes(), b"\n"]).flatten().copied().collect()
    };
    on_both(|bench| {
        assert!(bench.adopt_log("open", bytes("open"), at(9)).unwrap());
        assert!(!bench.adopt_log("open", bytes("open"), at(9)).unwrap());
        assert!(bench.adopt_log("ended", bytes("ended"), at(9)).unwrap());
        assert!(bench.adopt_log("garbage", b"\0\xff\n{".to_vec(), at(9)).unwrap());
        assert_eq!(bench.state("open"), MandateState::Review);
        assert_eq!(bench.state("ended"), MandateState::Succeeded);
        assert_eq!(bench.state("garbage"), MandateState::Review);
        assert!(bench.ledger(DAY).spent.llm_calls >= 12);
        assert_eq!(bench.wal_lines("open", 0).unwrap(), other.wal_lines("open", 0).unwrap());
    });
}

#[test]
fn a_backup_is_one_whole_file_and_comes_back() {
    let bench = on_file();
    let root = bench.dir.as_ref().unwrap().path().to_owned();
    let (path, wal, copy) = (root.join("state/store.db"), root.join("wal"), root.join("copy.db"));
    bench.adopt(vec![adopt("s", 0)]).wait().unwrap();
    paid_cycle(&bench, "done", Some(CycleEnd::Done));
    paid_cycle(&bench, "same", Some(CycleEnd::More));
    bench.add_manual("untouched");
    bench.add_manual("begun_later");
    let mut seen = 0;
    let made = backup(&path, &copy, &mut |done, all| seen = done * 100 / all.max(1)).unwrap();
    assert_eq!((seen, made.path.as_path()), (100, copy.as_path()));
    let beside_it: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!beside_it.iter().any(|name| name.to_string_lossy().starts_with("copy.db-")), "{beside_it:?}");

    // Life goes on after the backup.
    let rule = spec("s", SchedulePolicy::default());
    bench.fire(fire(60, vec![evaluation(&rule, (0, 60), &[])])).wait().unwrap();
    loop {
        let cycle = bench.claim_one();
        let id = cycle.mandate.id.clone();
        bench.begin_step(begin(&cycle, 1, calls(100), Some(gate(1_000)))).wait().unwrap();
        if id == "begun_later" {
            break;
        }
        bench.unstart(id.clone(), cycle.mandate.cycle, cycle.mandate.attempt, "busy".into()).wait().unwrap();
        bench.command(id, MandateCommand::Stop { note: None }, at(5)).wait().unwrap();
    }
    let spent = bench.ledger(DAY);
    project(&bench, &wal, &["done", "begun_later"]);
    // Its log in the backup and on the disk are the same: it did not move.
    let held = reopened_copy(&copy, &root);
    project(&held, &wal, &["same"]);
    drop(held);
    bench.close().wait().unwrap();

    let report = restore(&copy, &path, &wal, &Beside::default(), at(300), &mut quiet).unwrap();
    assert_eq!(report.review, ["begun_later"]);
    assert_eq!((report.schedules, report.days.as_slice()), (1, &[DAY.to_owned()][..]));
    assert_eq!(report.warnings, Vec::<String>::new());
    let store = reopened(&path);
    assert_eq!(store.state("begun_later"), MandateState::Review);
    assert_eq!(store.state("untouched"), MandateState::Queued);
    assert_eq!(store.state("same"), MandateState::Queued);
    assert_eq!(store.schedules().unwrap()[0].cursor, at(60));
    assert_eq!(store.ledger(DAY).spent, spent.spent.plus(spent.reserved));
    assert!(report.replaced.unwrap().exists());
}

fn reopened_copy(copy: &Path, root: &Path) -> Bench {
    let path = root.join("look.db");
    fs::copy(copy, &path).unwrap();
    reopened(&path)
}

#[test]
fn what_is_no_sound_backup_is_refused_and_nothing_changes() {
    let bench = on_file();
    let root = bench.dir.as_ref().unwrap().path().to_owned();
    let (path, wal, copy) = (root.join("state/store.db"), root.join("wal"), root.join("copy.db"));
    paid_cycle(&bench, "m", Some(CycleEnd::Done));
    for n in 0..50 {
        bench.add_manual(&format!("filler{n}"));
    }
    backup(&path, &copy, &mut quiet).unwrap();
    bench.close().wait().unwrap();
    let before = fs::read(&path).unwrap();
    let good = fs::read(&copy).unwrap();
    let mut bad = good.clone();
    let (from, to) = (good.len() / 4, good.len() / 2);
    bad[from..to].fill(0xA5);
    for bytes in [&bad[..], b"", b"no database at all", &good[..good.len() / 2]] {
        fs::write(&copy, bytes).unwrap();
        assert!(restore(&copy, &path, &wal, &Beside::default(), at(9), &mut quiet).is_err());
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    assert!(restore(&root.join("none"), &path, &wal, &Beside::default(), at(9), &mut quiet).is_err());
    fs::write(&copy, &good).unwrap();
    let newer = rusqlite::Connection::open(&copy).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let error = restore(&copy, &path, &wal, &Beside::default(), at(9), &mut quiet).unwrap_err();
    assert!(matches!(error, Error::Newer { found: 99, .. }), "{error}");
    assert_eq!(reopened(&path).state("m"), MandateState::Succeeded);
}
