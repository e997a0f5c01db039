//! Pace, waits, and clocks that somebody set.

use std::time::Duration;

use chrono::TimeDelta;

use super::*;

#[tokio::test]
async fn catching_up_is_paced_and_loses_nothing() {
    let rig = Rig::new("2026-11-22T09:30");
    let specs: Vec<ScheduleSpec> = (0..25)
        .map(|n| spec(&format!("s{n}"), &format!("{n} 10 * * *"), SchedulePolicy::default()))
        .collect();
    rig.load(specs.clone()).await;
    let rig = rig.reboot("2026-11-22T15:00");
    rig.load(specs).await;
    let outcome = rig.tick_at("2026-11-22T15:00").await;
    assert_eq!(outcome.fired.len(), 10);
    assert_eq!(fired(&outcome)[0], "s0 10:00", "the oldest comes first");
    assert!(outcome.waiting);
    assert_eq!(rig.chronos.waiting(), 15);
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T15:01")));
    rig.clock.advance(Duration::from_secs(59));
    let early = rig.chronos.tick(rig.clock.now(), &NoClaims).await.unwrap();
    assert!(early.fired.is_empty());
    assert_eq!(rig.tick_at("2026-11-22T15:01").await.fired.len(), 10);
    let rest = rig.chronos.tick_unpaced(rig.clock.now(), &NoClaims).await.unwrap();
    assert_eq!((rest.fired.len(), rest.waiting), (5, false));
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-23T10:00")));
}

#[tokio::test]
async fn those_on_time_do_not_wait_behind_those_that_catch_up() {
    let rig = Rig::new("2026-11-22T09:30");
    let mut specs: Vec<ScheduleSpec> =
        (0..20).map(|n| spec(&format!("s{n}"), "0 10 * * *", SchedulePolicy::default())).collect();
    specs.push(spec("now", "0 15 * * *", SchedulePolicy::default()));
    rig.load(specs.clone()).await;
    let rig = rig.reboot("2026-11-22T15:00");
    rig.load(specs).await;
    let outcome = rig.tick_at("2026-11-22T15:00").await;
    assert_eq!(fired(&outcome)[0], "now 15:00");
    assert_eq!(outcome.fired.len(), 11);
}

#[tokio::test]
async fn a_clock_a_little_back_makes_nothing_fire_twice() {
    let rig = Rig::new("2026-11-22T08:30");
    rig.load(vec![hourly("a")]).await;
    assert_eq!(rig.tick_at("2026-11-22T09:00").await.fired.len(), 1);
    rig.clock.step_wall(at("2026-11-22T08:29"));
    for _ in 0..40 {
        rig.clock.advance(Duration::from_secs(60));
        assert!(rig.chronos.tick(rig.clock.now(), &NoClaims).await.unwrap().fired.is_empty());
    }
    assert_eq!(fired(&rig.tick_at("2026-11-22T10:00").await), ["a 10:00"]);
    assert_eq!(rig.mandates().len(), 2);
}

#[tokio::test]
async fn a_clock_far_back_neither_stops_nor_repeats_a_schedule() {
    for restart in [false, true] {
        let mut rig = Rig::new("2026-11-22T08:30");
        rig.load(vec![hourly("a")]).await;
        rig.tick_at("2026-11-22T09:00").await;
        // Somebody sets the clock to another year: the latest fires, the rest is recorded.
        rig.clock.step_wall(at("2036-01-01T00:30"));
        let outcome = rig.chronos.tick(rig.clock.now(), &NoClaims).await.unwrap();
        assert_eq!(outcome.fired.len(), 1);
        assert!(outcome.missed > 70_000);
        // And back: it goes on as if nothing had been.
        if restart {
            rig = rig.reboot("2026-11-22T11:30");
            rig.load(vec![hourly("a")]).await;
        } else {
            rig.clock.step_wall(at("2026-11-22T11:30"));
            assert_eq!(rig.chronos.wait_until_due().await, Wake::Due, "a step is noticed");
            assert!(rig.tick_at("2026-11-22T11:30").await.fired.is_empty());
        }
        assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T12:00")));
        assert_eq!(rig.outcomes("a")[..2], ["fired 09:00", "skip 10:00-11:30=2"]);
        assert_eq!(fired(&rig.tick_at("2026-11-22T12:00").await), ["a 12:00"]);
        let kinds: Vec<String> =
            rig.store.events(0, 1000).unwrap().into_iter().map(|event| event.kind).collect();
        assert!(kinds.iter().any(|kind| kind == "clock_stepped_forward"), "{kinds:?}");
        assert_eq!(kinds.iter().filter(|kind| *kind == "clock_stepped_back").count(), 1, "{kinds:?}");
        assert_eq!(rig.mandates().len(), 3);
    }
}

#[tokio::test]
async fn what_fired_before_the_clock_was_set_back_does_not_fire_again() {
    for restart in [false, true] {
        let mut rig = Rig::new("2026-11-22T08:30");
        rig.load(vec![hourly("a")]).await;
        for hour in 9..=14 {
            rig.tick_at(&format!("2026-11-22T{hour:02}:00")).await;
        }
        rig.clock.step_wall(at("2026-11-22T09:30"));
        rig.tick_at("2026-11-22T09:30").await;
        assert_eq!(rig.store.schedule("a").unwrap().unwrap().cursor, at("2026-11-22T09:30"));
        if restart {
            rig = rig.reboot("2026-11-22T10:30");
            rig.load(vec![hourly("a")]).await;
        }
        for hour in 11..=16 {
            rig.tick_at(&format!("2026-11-22T{hour:02}:00")).await;
        }
        let expect: Vec<String> = (9..=16).map(|hour| format!("fired {hour:02}:00")).collect();
        assert_eq!(rig.outcomes("a"), expect, "restart {restart}");
        assert_eq!(rig.mandates().len(), 8);
    }
}

#[tokio::test]
async fn a_clock_that_is_not_set_is_waited_for() {
    let rig = Rig::new("1970-01-01T00:10");
    let loaded = rig.load(vec![hourly("a")]).await;
    assert!(loaded.deferred);
    assert!(rig.tick_at("1970-01-01T02:00").await.fired.is_empty());
    assert!(rig.store.schedules().unwrap().is_empty());
    rig.clock.step_wall(at("2026-11-22T09:30"));
    assert_eq!(rig.chronos.wait_until_due().await, Wake::Due);
    assert!(rig.tick_at("2026-11-22T09:30").await.fired.is_empty());
    assert_eq!(fired(&rig.tick_at("2026-11-22T10:00").await), ["a 10:00"]);
}

#[tokio::test]
async fn jitter_delays_the_start_and_not_the_nominal_time() {
    let rig = Rig::new("2026-11-22T09:30");
    let policy = SchedulePolicy { jitter: Duration::from_secs(600), ..SchedulePolicy::default() };
    rig.load(vec![spec("a", "0 * * * *", policy)]).await;
    rig.tick_at("2026-11-22T10:00").await;
    let mandate = &rig.mandates()[0];
    assert_eq!(mandate.nominal_at, Some(at("2026-11-22T10:00")));
    let delay = mandate.not_before.unwrap() - at("2026-11-22T10:00");
    assert!(delay > TimeDelta::zero() && delay < TimeDelta::seconds(600), "{delay}");
}

#[tokio::test]
async fn a_store_that_refuses_is_not_asked_without_a_pause() {
    let rig = Rig::new("1970-01-01T00:10");
    assert!(rig.load(vec![hourly("a")]).await.deferred);
    rig.store.close().await.unwrap();
    rig.clock.step_wall(at("2026-11-22T09:30"));
    assert_eq!(rig.chronos.wait_until_due().await, Wake::Due);
    assert!(rig.chronos.tick(rig.clock.now(), &NoClaims).await.is_err());
    let mut wait = std::pin::pin!(rig.chronos.wait_until_due());
    let mut waker = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(wait.as_mut().poll(&mut waker).is_pending());
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(wait.await, Wake::Due);
}

#[tokio::test]
async fn a_wait_ends_when_something_is_due_or_changes() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    assert_eq!(rig.chronos.wait_until_due().await, Wake::Called, "the load is a change");
    let waiter = tokio::spawn({
        let chronos = Arc::clone(&rig.chronos);
        async move { chronos.wait_until_due().await }
    });
    // The waiter reads the clock again on each of these; it ends at the first that is due.
    while !waiter.is_finished() {
        assert!(rig.clock.now() < at("2026-11-22T10:05"), "it slept past the due time");
        rig.clock.advance(Duration::from_secs(30));
        tokio::task::yield_now().await;
    }
    assert_eq!(waiter.await.unwrap(), Wake::Due);
    assert!(rig.clock.now() >= at("2026-11-22T10:00"));
}
