//! Dispatch with a store that refuses: full disks, failed syncs, drains that cannot wait.

use super::*;

#[tokio::test]
async fn first_cycle_of_a_scheduled_mandate_takes_two_commits() {
    let clock = clock();
    let schedules = every_minute("tidy", SchedulePolicy::default());
    let built = Built { clock: Arc::new(clock.clone()), schedules, ..Built::new(ok) };
    let house = built.open().await;
    // Whatever the start had to write is written.
    house.add("warm-up").await;
    house.becomes("warm-up", MandateState::Succeeded).await;
    house.dispatch.idle().await;
    let before = house.store.stats().commits;
    clock.advance(Duration::from_secs(30));
    house.becomes("20261122T090100Z-tidy-0", MandateState::Succeeded).await;
    assert_eq!(house.store.stats().commits - before, 2, "fire + start, finish");
}

#[tokio::test]
async fn full_disk_holds_work_back_and_it_goes_on_when_there_is_space() {
    let ear = Ear::new();
    let clock = clock();
    let house = Built { clock: Arc::new(clock.clone()), ..Built::new(ok) }.open().await;
    house.veil.refuse("claim", full());
    house.add("m").await;
    until("the hold", || !house.dispatch.reasons().is_empty()).await;
    assert!(house.dispatch.reasons()[0].contains("disk full"), "{:?}", house.dispatch.reasons());
    assert!(house.engine.beat_now().reasons[0].contains("disk full"), "the heartbeat says why");
    assert_eq!(house.state("m"), MandateState::Queued);
    house.veil.lift();
    clock.advance(Duration::from_secs(10));
    house.becomes("m", MandateState::Succeeded).await;
    assert!(house.dispatch.reasons().is_empty());
    assert_eq!(ear.all("daemon_store_refuses").len(), 1, "said once, not at each try");
    ear.one("daemon_store_restored");
}

#[tokio::test]
async fn end_and_usage_of_a_cycle_survive_a_disk_that_was_full_when_it_ended() {
    let clock = clock();
    let (gate, pass) = gate();
    let built = Built::new(move |mandate, host| {
        pass(&mandate.id);
        host.usage(kairos_plugin_api::Usage { llm_calls: 3, ..kairos_plugin_api::Usage::ZERO })?;
        Ok(Report { llm_calls: 4, ..Report::ok() })
    });
    let house = Built { clock: Arc::new(clock.clone()), ..built }.open().await;
    house.add("m").await;
    gate.entered().await;
    for operation in ["note", "finish", "claim"] {
        house.veil.refuse(operation, full());
    }
    gate.let_go.send(()).expect("it waits");
    until("the refusal", || !house.dispatch.reasons().is_empty()).await;
    for _ in 0..3 {
        clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    assert_eq!(house.dispatch.active_mandate_id().as_deref(), Some("m"), "it is kept until it is recorded");
    house.veil.lift();
    let ended = || house.store.mandate("m").is_ok_and(|row| row.state == MandateState::Succeeded);
    until("the end to be recorded", || {
        clock.advance(Duration::from_secs(1));
        ended()
    })
    .await;
    assert_eq!(house.store.cycles("m").expect("it is there")[0].usage.llm_calls, 4, "booked, and once");
    assert_eq!(house.store.day("2026-11-22").expect("a day").spent.llm_calls, 4);
}

#[tokio::test]
async fn drain_does_not_wait_for_a_store_that_refuses_for_longer_than_it_was_told() {
    let house = Built::new(ok).open().await;
    house.veil.refuse("finish", full());
    house.add("m").await;
    until("the refusal", || !house.dispatch.reasons().is_empty()).await;
    let drained = house.dispatch.drain(Duration::from_millis(20)).await;
    assert_eq!((drained.interrupted, drained.unrecorded), (vec![], vec!["m".to_owned()]));
    // The next start finds it running and goes on with it.
    let store = house.store.crash(None).expect("the store's data");
    let house = Built { store, ..Built::new(ok) }.open().await;
    house.becomes("m", MandateState::Succeeded).await;
}

#[tokio::test]
async fn cycle_whose_mandate_was_decided_about_meanwhile_does_not_spoil_the_drain() {
    let house = Built::new(ok).open().await;
    house.veil.refuse("finish", store::Error::Conflict("it is review at cycle 1".into()));
    house.add("m").await;
    until("the end", || house.dispatch.last_cycle_at().is_some()).await;
    let drained = house.dispatch.drain(PATIENCE).await;
    assert_eq!((drained.interrupted, drained.unrecorded), (vec![], Vec::<String>::new()));
}

#[tokio::test]
async fn failed_sync_ends_the_daemon_and_nothing_more_is_claimed() {
    let house = Built::new(ok).open().await;
    let mut fatal = house.dispatch.fatal();
    let failed = store::Error::SyncFailed { path: "store.db".into(), detail: "EIO".into() };
    house.veil.refuse("claim", failed);
    house.add("m").await;
    tokio::time::timeout(PATIENCE, fatal.changed()).await.expect("it is told").expect("dispatch is there");
    assert!(matches!(*fatal.borrow(), Some(store::Error::SyncFailed { .. })));
    house.veil.lift();
    house.dispatch.look();
    house.dispatch.drain(Duration::ZERO).await;
    assert_eq!(house.state("m"), MandateState::Queued);
}

#[tokio::test]
async fn schedules_that_cannot_be_written_do_not_stop_the_queue() {
    let ear = Ear::new();
    let clock = clock();
    let schedules = every_minute("tidy", SchedulePolicy::default());
    let house = Built { clock: Arc::new(clock.clone()), schedules, ..Built::new(ok) }.open().await;
    house.veil.refuse("fire", full());
    clock.advance(Duration::from_secs(30));
    until("the failed tick", || !ear.all("daemon_chronos_tick_failed").is_empty()).await;
    house.add("m").await;
    house.becomes("m", MandateState::Succeeded).await;
    // Nothing is lost: the occurrence fires when it can be written.
    house.veil.lift();
    let fired = || house.store.mandate("20261122T090100Z-tidy-0").is_ok();
    until("the fire", || {
        clock.advance(Duration::from_secs(1));
        fired()
    })
    .await;
}

#[tokio::test]
async fn drain_waits_for_a_claim_under_way_and_starts_nothing_of_it() {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ran);
    let built = Built::new(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(Report::ok())
    });
    let house = built.open().await;
    house.add("warm-up").await;
    house.becomes("warm-up", MandateState::Succeeded).await;
    house.dispatch.idle().await;
    ran.store(0, Ordering::SeqCst);
    let mandate = house.mandate("m", QUICK, None);
    house.store.add(mandate).await.expect("it is taken");
    // The claim is on its way when the drain begins: this runtime has one thread.
    house.dispatch.look();
    let drained = house.dispatch.drain(PATIENCE).await;
    assert_eq!(drained, kairos_host::daemon::dispatch::Drained::default());
    assert_eq!((house.state("m"), ran.load(Ordering::SeqCst)), (MandateState::Queued, 0));
    assert!(house.store.cycles("m").expect("it is there").is_empty(), "as if it had not started");
}
