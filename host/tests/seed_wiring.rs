//! The seed's wiring: what is wired, with which defaults, and how it is taken down.
#![allow(clippy::disallowed_methods, reason = "tests write files plainly")]

mod seed_support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kairos_host::daemon::dispatch::OneCycle;
use kairos_host::daemon::heartbeat::DEFAULT_INTERVAL;
use kairos_host::daemon::mailbox::{Command, CommandError, Phase};
use kairos_host::domain::schedule::SchedulePolicy;
use kairos_host::store::{SqliteStore, Store};
use kairos_host::wiring::Wiring;
use seed_support::*;
use serde_json::json;

#[tokio::test]
async fn everything_but_the_schedules_is_optional() {
    let wired = Wiring::new(no_schedules()).wire().await.unwrap();
    assert_eq!(wired.active_mandate_id(), None);
    assert_eq!(wired.last_cycle_at(), None);
    assert_eq!(wired.queue_depth(), 0);
    assert_eq!(wired.state(), Phase::Running);
    assert!(wired.tick().await.unwrap().fired.is_empty());
    assert!(matches!(wired.run_one_cycle().await.unwrap(), OneCycle::Idle));
    wired.unwire().await;
    assert_eq!(DEFAULT_INTERVAL, Duration::from_secs(10));
}

#[tokio::test]
async fn without_a_clock_the_time_is_the_systems() {
    let before = chrono::Utc::now();
    let wired = Wiring::new(no_schedules()).wire().await.unwrap();
    wired.enqueue(named("m")).await.unwrap();
    wired.run_one_cycle().await.unwrap();
    let ended = wired.last_cycle_at().unwrap();
    assert!(before <= ended && ended <= chrono::Utc::now());
    wired.unwire().await;
}

#[tokio::test]
async fn attach_server_is_started_with_the_wiring_and_stopped_with_it() {
    let server = Arc::new(Server::default());
    let wired = Wiring::new(no_schedules()).attach_server(Arc::clone(&server) as _).wire().await.unwrap();
    assert_eq!(server.counts(), (1, 0));
    wired.unwire().await;
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn attach_server_that_has_a_port_is_not_started_again() {
    let server = Arc::new(Server { port: Mutex::new(Some(Ok(9847))), ..Server::default() });
    let wired = Wiring::new(no_schedules()).attach_server(Arc::clone(&server) as _).wire().await.unwrap();
    assert_eq!(server.counts(), (0, 0));
    wired.unwire().await;
    assert_eq!(server.counts(), (0, 1), "it is stopped all the same");
}

#[tokio::test]
async fn attach_server_whose_port_errors_counts_as_not_started() {
    let server = Arc::new(Server { port: Mutex::new(Some(Err("gone".into()))), ..Server::default() });
    let wired = Wiring::new(no_schedules()).attach_server(Arc::clone(&server) as _).wire().await.unwrap();
    assert_eq!(server.counts(), (1, 0));
    wired.unwire().await;
}

#[tokio::test]
async fn attach_server_that_does_not_start_is_logged_and_the_daemon_works_without_it() {
    let ear = Ear::new();
    let server = Arc::new(Server { fail_start: true, ..Server::default() });
    let wired = Wiring::new(no_schedules()).attach_server(server).wire().await.unwrap();
    assert_eq!(ear.one("attach_server_start_failed").field("error"), "no socket");
    wired.enqueue(named("m")).await.unwrap();
    assert!(matches!(wired.run_one_cycle().await.unwrap(), OneCycle::Ran(_)));
    wired.unwire().await;
}

#[tokio::test]
async fn unwire_never_fails_and_may_be_called_again() {
    let ear = Ear::new();
    let server = Arc::new(Server { fail_stop: true, ..Server::default() });
    let dir = tempfile::tempdir().unwrap();
    let wired = Wiring::new(no_schedules())
        .attach_server(Arc::clone(&server) as _)
        .wal_dir(dir.path().join("wal"))
        .heartbeat(dir.path().join("not/there/heartbeat.json"))
        .wire()
        .await
        .unwrap();
    wired.unwire().await;
    wired.unwire().await;
    assert_eq!(server.counts(), (1, 1), "stopped once");
    assert_eq!(ear.one("attach_server_stop_failed").field("error"), "no thread");
    assert_eq!(wired.state(), Phase::Stopped);
    // What comes after is answered, not lost.
    assert!(wired.run_one_cycle().await.is_err());
    assert!(matches!(wired.mailbox().shutdown().await, Err(CommandError::Stopped)));
}

#[tokio::test]
async fn each_mandate_has_its_log_file_which_is_complete_when_unwired() {
    let dir = tempfile::tempdir().unwrap();
    let wal_dir = dir.path().join("wal");
    let (gate, pass) = gate();
    let wired = Wiring::new(no_schedules())
        .wal_dir(&wal_dir)
        .cycle_runner(move |mandate| {
            pass(&mandate.id);
            Ok(json!({"status": "ok", "more": mandate.cycle == 1}))
        })
        .wire()
        .await
        .unwrap();
    wired.enqueue(named("m-1")).await.unwrap();
    let (_, id) = tokio::join!(wired.run_one_cycle(), async {
        let id = gate.entered().await;
        // It was opened before the cycle started.
        let file = wal_dir.join("m-1.wal.jsonl");
        assert!(file.exists(), "{}", file.display());
        gate.let_go.send(()).unwrap();
        id
    });
    assert_eq!(id, "m-1");
    let store = Arc::clone(wired.store());
    let lines = store.wal_lines("m-1", 0).unwrap();
    assert!(!lines.is_empty());
    wired.unwire().await;
    let text = std::fs::read_to_string(wal_dir.join("m-1.wal.jsonl")).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), lines, "the file holds what the store has");
}

#[tokio::test]
async fn cycle_whose_log_cannot_be_opened_does_not_start_and_waits() {
    let ear = Ear::new();
    let dir = tempfile::tempdir().unwrap();
    let wal_dir = dir.path().join("wal");
    let clock = clock();
    let wired =
        Wiring::new(no_schedules()).wal_dir(&wal_dir).clock(Arc::new(clock.clone())).wire().await.unwrap();
    // The directory turns into a file: nothing can be opened in it.
    std::fs::remove_dir_all(&wal_dir).unwrap();
    std::fs::write(&wal_dir, "in the way").unwrap();
    wired.enqueue(named("m")).await.unwrap();
    let OneCycle::Held(reason) = wired.run_one_cycle().await.unwrap() else { panic!("it ran") };
    assert!(reason.contains("write-ahead log"), "{reason}");
    assert_eq!(wired.queue_depth(), 1, "still queued");
    assert_eq!(wired.store().mandate("m").unwrap().reason.as_deref(), Some(reason.as_str()), "and says why");
    assert_eq!(ear.one("daemon_cycle_not_started").field("mandate"), "m");
    assert_eq!(wired.active_mandate_id(), None);
    assert_eq!(wired.last_cycle_at(), Some(at("2026-11-22T09:00:30Z")));
    // When the disk is mended it goes on.
    std::fs::remove_file(&wal_dir).unwrap();
    std::fs::create_dir_all(&wal_dir).unwrap();
    assert!(matches!(wired.run_one_cycle().await.unwrap(), OneCycle::Ran(_)));
    assert_eq!(wired.queue_depth(), 0);
    wired.unwire().await;
}

#[tokio::test]
async fn with_the_seeds_rule_a_cycle_runs_without_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let wal_dir = dir.path().join("wal");
    let wiring = Wiring::new(no_schedules()).wal_dir(&wal_dir).run_without_log_on_error();
    let wired = wiring.wire().await.unwrap();
    std::fs::remove_dir_all(&wal_dir).unwrap();
    std::fs::write(&wal_dir, "in the way").unwrap();
    wired.enqueue(named("m")).await.unwrap();
    assert!(matches!(wired.run_one_cycle().await.unwrap(), OneCycle::Ran(_)));
    wired.unwire().await;
}

#[tokio::test]
async fn shutdown_through_the_mailbox_ends_the_loop_and_unwires() {
    let dir = tempfile::tempdir().unwrap();
    let server = Arc::new(Server::default());
    let heartbeat = dir.path().join("heartbeat.json");
    let wired = Wiring::new(no_schedules())
        .attach_server(Arc::clone(&server) as _)
        .heartbeat(&heartbeat)
        .wire()
        .await
        .unwrap();
    let wired = Arc::new(wired);
    let running = tokio::spawn({
        let wired = Arc::clone(&wired);
        async move { wired.run().await }
    });
    wired.mailbox().shutdown().await.unwrap();
    tokio::time::timeout(PATIENCE, running).await.expect("it ends").unwrap();
    assert_eq!(wired.state(), Phase::Stopped);
    assert_eq!(server.counts(), (1, 1));
    let beat: serde_json::Value = serde_json::from_slice(&std::fs::read(&heartbeat).unwrap()).unwrap();
    assert_eq!(beat["state"], "stopped");
}

#[tokio::test]
async fn loop_fires_and_runs_by_itself_until_it_is_told_to_end() {
    let (sender, cycles) = std::sync::mpsc::channel();
    let sender = Mutex::new(sender);
    let set = kairos_host::daemon::chronos::ScheduleSet {
        specs: vec![spec("tick", "* * * * * *", SchedulePolicy::default())],
        ..no_schedules()
    };
    let wiring = Wiring::new(set).cycle_runner(move |mandate| {
        let _ = sender.lock().unwrap().send(mandate.schedule.clone());
        Ok(json!({"status": "ok"}))
    });
    let wired = Arc::new(wiring.wire().await.unwrap());
    let running = tokio::spawn({
        let wired = Arc::clone(&wired);
        async move { wired.run().await }
    });
    let mut ran = 0;
    until("three fires", || {
        ran += cycles.try_iter().inspect(|schedule| assert_eq!(schedule.as_deref(), Some("tick"))).count();
        ran >= 3
    })
    .await;
    wired.mailbox().shutdown().await.unwrap();
    tokio::time::timeout(PATIENCE, running).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn unwire_ends_a_loop_that_runs() {
    let wired = Arc::new(Wiring::new(no_schedules()).wire().await.unwrap());
    let running = tokio::spawn({
        let wired = Arc::clone(&wired);
        async move { wired.run().await }
    });
    // It has to be in its loop first: a command that is answered proves that.
    wired.mailbox().ask(Command::StatusDump).await.unwrap();
    tokio::time::timeout(PATIENCE, wired.unwire()).await.expect("it ends");
    tokio::time::timeout(PATIENCE, running).await.expect("it ends").unwrap();
    assert_eq!(wired.state(), Phase::Stopped);
}

#[tokio::test]
async fn wiring_over_a_file_goes_on_where_the_last_one_ended() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.db");
    let wired = Wiring::new(no_schedules()).store(&file).wire().await.unwrap();
    wired.enqueue(named("kept")).await.unwrap();
    wired.unwire().await;
    assert_eq!(SqliteStore::read_only(&file).unwrap().counts().unwrap().queued, 1);
    let wired = Wiring::new(no_schedules()).store(&file).wire().await.unwrap();
    let OneCycle::Ran(ended) = wired.run_one_cycle().await.unwrap() else { panic!("it is queued") };
    assert_eq!(ended.mandate, "kept");
    wired.unwire().await;
}

#[test]
fn table_of_the_seed_names_tests_that_exist() {
    let table = include_str!("../docs/seed.md");
    let sources =
        [("seed_cycle::", include_str!("seed_cycle.rs")), ("seed_wiring::", include_str!("seed_wiring.rs"))];
    let mut named = 0;
    for (prefix, source) in sources {
        for (place, _) in table.match_indices(prefix) {
            let rest = &table[place + prefix.len()..];
            let names = match rest.strip_prefix('{') {
                Some(list) => &list[..list.find('}').expect("a closed list")],
                None => &rest[..rest.find('`').expect("a closed quote")],
            };
            for name in names.split(", ") {
                assert!(source.contains(&format!("fn {name}(")), "{prefix}{name} does not exist");
                named += 1;
            }
        }
    }
    assert!(named > 35, "only {named} names were found: the table reads differently now");
}
