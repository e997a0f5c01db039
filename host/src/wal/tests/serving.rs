//! The service with its thread, the real store, and what a person sees.

use kairos_plugin_api::Usage;

use super::*;
use crate::domain::mandate::CycleEnd;
use crate::domain::schedule::{MandateBounds, Overlap};
use crate::store::{
    ClaimRequest, FinishRequest, MandateCommand, NewEvent, NewMandate, Origin, RunnerOffer, SqliteStore,
    Store,
};

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

fn mandate(now: DateTime<Utc>) -> NewMandate {
    NewMandate {
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
    }
}

fn stopped(now: DateTime<Utc>) -> FinishRequest {
    FinishRequest {
        mandate: "m".into(),
        cycle: 1,
        attempt: 1,
        now,
        day: "2026-11-22".into(),
        end: CycleEnd::Done,
        reason: None,
        report: None,
        error: None,
        claimed: Usage::ZERO,
        state_puts: Default::default(),
        pause_after_failures: None,
        claim: None,
    }
}

#[test]
fn a_real_store_keeps_lines_until_their_archive_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(Utc::now()));
    let retention = Retention::default();
    let settings = Settings { dir: dir.path().join("wal"), retention };
    let wal = Wal::new(settings.clone(), Arc::clone(&clock) as Arc<dyn Clock>);
    let store = SqliteStore::in_memory_with(Some(Arc::clone(&wal) as Arc<dyn CommitSink>)).unwrap();
    wal.attach(Arc::new(store.clone())).unwrap();
    let now = clock.now();
    store.add(mandate(now)).wait().unwrap();
    let offer = RunnerOffer { generation: "g".into(), phases: false, commands: None };
    let offers = Arc::new([("stub".to_owned(), offer)].into());
    let claim = ClaimRequest { now, max: 1, gate: None, offers };
    let claimed = store.claim(claim).wait().unwrap().claimed;
    assert_eq!(claimed.len(), 1);
    wal.prepare_blocking("m").unwrap();
    let path = dir.path().join("wal/m.wal.jsonl");
    let text = || heal::joined(&store.wal_lines("m", 0).unwrap());
    assert_eq!(fs::read(&path).unwrap(), text());
    store.command("m".into(), MandateCommand::Stop { note: None }, now).wait().unwrap();
    store.finish(stopped(now)).wait().unwrap();
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
