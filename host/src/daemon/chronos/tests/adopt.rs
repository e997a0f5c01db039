//! Taking schedules in: what is new, changed, away, disabled or wrong.

use chrono::TimeDelta;

use super::*;
use crate::domain::schedule::MissedPolicy;

#[tokio::test]
async fn a_new_schedule_fires_when_it_is_due_and_never_for_the_past() {
    let rig = Rig::new("2026-11-22T09:00");
    let loaded = rig.load(vec![hourly("a")]).await;
    assert_eq!((loaded.active, loaded.adopted), (1, 1));
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T10:00")));
    assert!(rig.tick_at("2026-11-22T09:59").await.fired.is_empty());
    let commits = rig.store.stats().commits;
    let outcome = rig.tick_at("2026-11-22T10:00").await;
    assert_eq!(fired(&outcome), ["a 10:00"]);
    assert_eq!(outcome.fired[0].1, "20261122T100000Z-a-0");
    assert_eq!(rig.store.stats().commits, commits + 1);
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T11:00")));
    assert!(rig.tick_at("2026-11-22T10:30").await.fired.is_empty());
    assert_eq!(rig.store.stats().commits, commits + 1, "a quiet tick writes nothing");
    let state = rig.store.schedule("a").unwrap().unwrap();
    assert_eq!(state.last_nominal, Some(at("2026-11-22T10:00")));
}

#[tokio::test]
async fn a_restart_catches_up_under_the_policy() {
    let rig = Rig::new("2026-11-22T09:30");
    let bounded = SchedulePolicy {
        missed_policy: MissedPolicy::CatchUpBounded,
        max_catch_up_runs: 2,
        ..SchedulePolicy::default()
    };
    let specs = vec![hourly("a"), spec("b", "0 * * * *", bounded)];
    rig.load(specs.clone()).await;
    let rig = rig.reboot("2026-11-22T14:30");
    assert_eq!(rig.load(specs).await.adopted, 0);
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T10:00")));
    let outcome = rig.tick_at("2026-11-22T14:30").await;
    assert_eq!(fired(&outcome), ["a 14:00", "b 13:00", "b 14:00"]);
    assert_eq!(outcome.missed, 4 + 3);
    assert_eq!(rig.outcomes("a"), ["skip 10:00-13:00=4", "fired 14:00"]);
    assert_eq!(rig.outcomes("b"), ["cap 10:00-12:00=3", "fired 13:00", "fired 14:00"]);
}

#[tokio::test]
async fn a_changed_rule_starts_now_and_never_fires_on_the_edit() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    let rig = rig.reboot("2026-11-22T12:00");
    // The new rule has an occurrence at this very minute, and many in the outage.
    rig.load(vec![spec("a", "*/15 * * * *", SchedulePolicy::default())]).await;
    assert!(rig.tick_at("2026-11-22T12:00").await.fired.is_empty());
    assert_eq!(rig.outcomes("a"), ["edited 10:00-12:00=3"]);
    assert_eq!(fired(&rig.tick_at("2026-11-22T12:15").await), ["a 12:15"]);
    // What is not the rule may change without consequences.
    let relaxed = SchedulePolicy { missed_policy: MissedPolicy::CatchUpOnce, ..SchedulePolicy::default() };
    assert_eq!(rig.load(vec![spec("a", "*/15 * * * *", relaxed)]).await.adopted, 0);
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T12:30")));
}

#[tokio::test]
async fn a_schedule_that_was_away_starts_now() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a"), hourly("b")]).await;
    rig.go_to("2026-11-22T11:30");
    let loaded = rig.load(vec![hourly("b")]).await;
    assert_eq!((loaded.active, loaded.removed), (1, 1));
    assert_eq!(rig.outcomes("a"), ["edited 10:00-11:00=2"]);
    rig.go_to("2026-11-22T13:30");
    assert_eq!(rig.load(vec![hourly("a"), hourly("b")]).await.adopted, 1);
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T10:00")), "b still has its backlog");
    assert_eq!(fired(&rig.tick_at("2026-11-22T13:30").await), ["b 13:00"]);
    assert_eq!(fired(&rig.tick_at("2026-11-22T14:00").await), ["a 14:00", "b 14:00"]);
    assert_eq!(rig.outcomes("a"), ["edited 10:00-11:00=2", "fired 14:00"]);
}

#[tokio::test]
async fn a_schedule_set_aside_for_a_mistake_keeps_its_place() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a"), hourly("b")]).await;
    rig.go_to("2026-11-22T10:10");
    let kept = ["a".to_owned()].into();
    let set = ScheduleSet { specs: vec![hourly("b")], kept, ..ScheduleSet::default() };
    assert_eq!(rig.chronos.load(set).await.unwrap().removed, 0);
    let loaded = rig.load(vec![spec("a", "0 0 30 2 *", SchedulePolicy::default()), hourly("b")]).await;
    assert_eq!((loaded.active, loaded.removed, loaded.rejected.len()), (1, 0, 1));
    assert!(loaded.rejected[0].to_string().starts_with("schedule \"a\": "), "{}", loaded.rejected[0]);
    rig.load(vec![hourly("a"), hourly("b")]).await;
    assert_eq!(fired(&rig.tick_at("2026-11-22T10:10").await), ["a 10:00", "b 10:00"]);
}

#[tokio::test]
async fn the_second_of_two_equal_names_is_refused() {
    let rig = Rig::new("2026-11-22T09:30");
    let loaded = rig.load(vec![hourly("a"), spec("a", "5 * * * *", SchedulePolicy::default())]).await;
    assert_eq!((loaded.active, loaded.rejected.len()), (1, 1));
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T10:00")));
}

#[tokio::test]
async fn disabled_time_is_recorded_as_paused() {
    let rig = Rig::new("2026-11-22T09:30");
    let off = SchedulePolicy { enabled: false, ..SchedulePolicy::default() };
    rig.load(vec![spec("a", "0 * * * *", off.clone())]).await;
    assert_eq!(rig.chronos.next_due(), None);
    assert!(rig.chronos.resume("a", false).await.is_err(), "the configuration says so");
    let rig = rig.reboot("2026-11-22T11:30");
    rig.load(vec![spec("a", "0 * * * *", off)]).await;
    rig.go_to("2026-11-22T12:30");
    assert!(rig.tick_at("2026-11-22T12:30").await.fired.is_empty());
    rig.load(vec![hourly("a")]).await;
    assert!(rig.tick_at("2026-11-22T12:30").await.fired.is_empty());
    assert_eq!(rig.outcomes("a"), ["paused 10:00-12:00=3"]);
    assert_eq!(fired(&rig.tick_at("2026-11-22T13:00").await), ["a 13:00"]);
}

#[tokio::test]
async fn a_refused_commit_leaves_everything_due() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    rig.store.close().await.unwrap();
    rig.go_to("2026-11-22T10:00");
    assert!(rig.chronos.tick(rig.clock.now(), &NoClaims).await.is_err());
    // It is still due, after a moment.
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T10:00") + TimeDelta::seconds(1)));
}

#[tokio::test]
async fn a_cursor_that_moved_elsewhere_is_read_again() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a"), hourly("b")]).await;
    let other = Rig::on(Arc::clone(&rig.store), rig.clock.clone());
    other.load(vec![hourly("a"), hourly("b")]).await;
    assert_eq!(other.tick_at("2026-11-22T10:00").await.fired.len(), 2);
    assert!(rig.tick_at("2026-11-22T10:00").await.fired.is_empty());
    assert_eq!(rig.mandates().len(), 2);
    assert_eq!(fired(&rig.tick_at("2026-11-22T11:00").await), ["a 11:00", "b 11:00"]);
}

#[test]
fn names_are_found_among_many_and_a_schedule_stays_small() {
    let specs: Vec<ScheduleSpec> = (0..5000).map(|n| hourly(&format!("job-{n}"))).collect();
    let now = at("2026-11-22T09:30").timestamp();
    let (table, rejected) = Table::compile(specs, &Zones::bundled(), now);
    assert!(rejected.is_empty());
    for n in 0..5000 {
        assert_eq!(table.find(&format!("job-{n}")), Some(n));
    }
    assert_eq!(table.find("job-5000"), None);
    assert!(table.bytes() / 5000 <= 200, "{} bytes a schedule", table.bytes() / 5000);
}
