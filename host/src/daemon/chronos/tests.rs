//! Chronos over a real store in memory and a clock that moves by hand.

use std::time::Duration;

use chrono::{TimeDelta, TimeZone};
use serde_json::json;
use tokio::sync::Semaphore;

use super::*;
use crate::daemon::claims::{Claims, NoClaims, Permits};
use crate::domain::schedule::{MissedPolicy, OnBudget, Overlap, SchedulePolicy};
use crate::store::{
    BudgetGate, ClaimOutcome, ClaimRequest, MandateCommand, MandateFilter, MandateRow, Pause, PauseSchedule,
    RunnerOffer, SqliteStore,
};
use crate::sys::clock::ManualClock;
use crate::sys::entropy::SeededEntropy;

struct Rig {
    chronos: Arc<Chronos>,
    store: Arc<SqliteStore>,
    clock: ManualClock,
}

fn at(text: &str) -> DateTime<Utc> {
    format!("{text}:00Z").parse().unwrap()
}

impl Rig {
    fn new(start: &str) -> Self {
        let store = Arc::new(SqliteStore::in_memory().unwrap());
        Self::on(store, ManualClock::at(at(start)))
    }

    fn on(store: Arc<SqliteStore>, clock: ManualClock) -> Self {
        let seams = Seams {
            store: Arc::clone(&store) as Arc<dyn Store>,
            clock: Arc::new(clock.clone()),
            entropy: Arc::new(SeededEntropy::new(1)),
            zones: Arc::new(Zones::bundled()),
        };
        Self { chronos: Arc::new(Chronos::new(seams)), store, clock }
    }

    /// The next process on the same store, at a later time.
    fn reboot(self, when: &str) -> Self {
        self.clock.step_wall(at(when));
        let store = Arc::new(self.store.crash(None).unwrap());
        Self::on(store, self.clock)
    }

    async fn load(&self, specs: Vec<ScheduleSpec>) -> Loaded {
        let set = ScheduleSet { specs, default_runner: Some("stub".to_owned()), ..ScheduleSet::default() };
        self.chronos.load(set).await.unwrap()
    }

    /// Time goes on to `when`, then one tick.
    async fn tick_at(&self, when: &str) -> TickOutcome {
        self.go_to(when);
        self.chronos.tick(self.clock.now(), &NoClaims).await.unwrap()
    }

    fn go_to(&self, when: &str) {
        let ahead = at(when) - self.clock.now();
        self.clock.advance(ahead.to_std().expect("time goes on; use step_wall to set the clock"));
    }

    /// `fired HH:MM` or `reason HH:MM-HH:MM=count` for each recorded outcome, oldest first.
    fn outcomes(&self, name: &str) -> Vec<String> {
        let mut rows = self.store.occurrences(name, 1000).unwrap();
        rows.sort_by_key(|row| row.from);
        rows.iter()
            .map(|row| match &row.reason {
                None => format!("fired {}", row.from.format("%H:%M")),
                Some(why) => {
                    format!("{why} {}-{}={}", row.from.format("%H:%M"), row.to.format("%H:%M"), row.count)
                }
            })
            .collect()
    }

    fn mandates(&self) -> Vec<MandateRow> {
        self.store.mandates(&MandateFilter::default()).unwrap()
    }
}

fn spec(name: &str, cron: &str, policy: SchedulePolicy) -> ScheduleSpec {
    ScheduleSpec {
        name: name.into(),
        cron: cron.into(),
        timezone: "UTC".into(),
        goal: "do it".into(),
        policy: Arc::new(policy),
    }
}

fn hourly(name: &str) -> ScheduleSpec {
    spec(name, "0 * * * *", SchedulePolicy::default())
}

fn fired(outcome: &TickOutcome) -> Vec<String> {
    outcome.fired.iter().map(|(name, _, nominal)| format!("{name} {}", nominal.format("%H:%M"))).collect()
}

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
async fn a_pause_ends_when_told_and_never_catches_up() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    rig.chronos.pause("a", None, Some("holiday".to_owned()), "operator").await.unwrap();
    assert_eq!(rig.chronos.next_due(), None);
    let rig = rig.reboot("2026-11-22T12:30");
    rig.load(vec![hourly("a")]).await;
    assert_eq!(rig.chronos.next_due(), None);
    rig.chronos.resume("a", false).await.unwrap();
    assert!(rig.tick_at("2026-11-22T12:30").await.fired.is_empty());
    assert_eq!(rig.outcomes("a"), ["paused 10:00-12:00=3"]);
    assert_eq!(rig.chronos.next_due(), Some(at("2026-11-22T13:00")));
    assert!(rig.chronos.resume("a", false).await.is_err(), "it is not paused any more");
}

#[tokio::test]
async fn a_pause_with_an_end_goes_on_by_itself() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    let until = Some(at("2026-11-22T12:30"));
    rig.chronos.pause("a", until, None, "operator").await.unwrap();
    assert_eq!(rig.chronos.next_due(), until);
    // Nobody looked for a while after its end: what came then is an ordinary backlog.
    let outcome = rig.tick_at("2026-11-22T14:30").await;
    assert_eq!(outcome.resumed, ["a"]);
    assert_eq!(fired(&outcome), ["a 14:00"]);
    assert_eq!(rig.outcomes("a"), ["paused 10:00-12:00=3", "skip 13:00-13:00=1", "fired 14:00"]);
    let past = rig.chronos.pause("a", Some(at("2026-11-22T09:00")), None, "operator").await;
    assert!(past.is_err());
}

#[tokio::test]
async fn a_resume_can_ask_for_what_the_pause_held_back() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    rig.chronos.pause("a", None, None, "operator").await.unwrap();
    rig.go_to("2026-11-22T12:30");
    let made = rig.chronos.resume("a", true).await.unwrap();
    assert_eq!(made.created.len(), 3);
    assert_eq!(rig.mandates().len(), 3);
}

#[tokio::test]
async fn skipping_leaves_out_exactly_the_next_ones() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    assert_eq!(rig.chronos.skip_next("a").await.unwrap(), at("2026-11-22T10:00"));
    assert_eq!(rig.chronos.skip_next("a").await.unwrap(), at("2026-11-22T11:00"));
    let rig = rig.reboot("2026-11-22T09:40");
    rig.load(vec![hourly("a")]).await;
    for hour in 10..=12 {
        rig.tick_at(&format!("2026-11-22T{hour}:00")).await;
    }
    let outcomes = rig.outcomes("a");
    assert_eq!(outcomes.last().map(String::as_str), Some("fired 12:00"));
    let paused: Vec<_> = outcomes.iter().filter(|line| line.starts_with("paused")).collect();
    assert!(paused.len() == 2 || *paused[0] == "paused 10:00-11:00=2", "{outcomes:?}");
    assert_eq!(rig.mandates().len(), 1);
}

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

#[tokio::test]
async fn a_pause_that_chronos_was_not_told_of_wins() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    let pause = Pause { since: rig.clock.now(), until: None, note: None, by: "failures".to_owned() };
    rig.store.pause_schedule(PauseSchedule { name: "a".to_owned(), pause }).await.unwrap();
    assert!(rig.tick_at("2026-11-22T10:00").await.fired.is_empty());
    assert_eq!(rig.chronos.next_due(), None);
    assert!(rig.mandates().is_empty());
    rig.go_to("2026-11-22T10:30");
    rig.chronos.resume("a", false).await.unwrap();
    assert_eq!(rig.outcomes("a"), ["paused 10:00-10:00=1"]);
    assert_eq!(fired(&rig.tick_at("2026-11-22T11:00").await), ["a 11:00"]);
}

#[tokio::test]
async fn a_backfill_makes_each_occurrence_once_and_can_be_asked_again() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    rig.tick_at("2026-11-22T10:00").await;
    let (from, to) = (at("2026-11-19T10:00"), at("2026-11-22T18:00"));
    // 72 to the cursor's hour, one of which has fired; what lies ahead is not history.
    assert_eq!(rig.chronos.backfill_count("a", from, to), Some(72));
    let made = rig.chronos.backfill("a", from, to, false, None).await.unwrap();
    assert_eq!((made.created.len(), made.occupied.as_slice()), (71, &[at("2026-11-22T10:00")][..]));
    let again = rig.chronos.backfill("a", from, to, false, None).await.unwrap();
    assert_eq!((again.created.len(), again.occupied.len()), (0, 72));
    let (from, to) = (at("2026-11-22T07:00"), at("2026-11-22T10:00"));
    for expect in [3, 0] {
        let made = rig.chronos.backfill("a", from, to, true, Some("r1")).await.unwrap();
        assert_eq!(made.created.len(), expect);
    }
    assert_eq!(rig.store.schedule("a").unwrap().unwrap().cursor, at("2026-11-22T10:00"));
    assert_eq!(rig.chronos.backfill_count("nobody", from, to), None);
}

#[tokio::test]
async fn a_backfill_past_the_queue_tells_how_to_go_on() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    let (from, to) = (at("2026-11-01T00:00"), at("2026-11-22T00:00"));
    let error = rig.chronos.backfill("a", from, to, false, None).await.unwrap_err();
    assert!(error.to_string().contains("100 made so far"), "{error}");
    assert_eq!(rig.mandates().len(), 100);
}

#[tokio::test]
async fn a_trigger_runs_beside_the_rule_even_while_paused() {
    let rig = Rig::new("2026-11-22T09:30");
    let policy = SchedulePolicy { concurrency: Overlap::Reject, ..SchedulePolicy::default() };
    rig.load(vec![spec("a", "0 * * * *", policy)]).await;
    rig.chronos.pause("a", None, None, "operator").await.unwrap();
    let ask = || Trigger { request_id: Some("r1".to_owned()), ..Trigger::default() };
    let first = rig.chronos.trigger("a", ask()).await.unwrap();
    let second = rig.chronos.trigger("a", ask()).await.unwrap();
    assert_eq!((first.created, second.created, &first.id), (true, false, &second.id));
    assert!(rig.chronos.trigger("a", Trigger::default()).await.is_err(), "its policy rejects a second one");
    let params = json!({"depth": 3}).as_object().unwrap().clone();
    let queued = Trigger { overlap: Some(Overlap::Queue), params, ..Trigger::default() };
    let third = rig.chronos.trigger("a", queued).await.unwrap();
    assert_eq!(rig.store.mandate(&third.id).unwrap().bounds.params["depth"], 3);
    assert_eq!(rig.store.schedule("a").unwrap().unwrap().cursor, at("2026-11-22T09:30"));
    assert!(rig.chronos.trigger("nobody", Trigger::default()).await.is_err());
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

/// Slots and what became of them.
struct Slots {
    free: Arc<Semaphore>,
    gate: Option<BudgetGate>,
    started: Mutex<Vec<String>>,
    cancelled: Mutex<Vec<String>>,
    queued: std::sync::atomic::AtomicUsize,
}

impl Slots {
    fn of(count: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(count)),
            gate: None,
            started: Mutex::default(),
            cancelled: Mutex::default(),
            queued: 0.into(),
        }
    }
}

impl Claims for Slots {
    fn request(&self, now: DateTime<Utc>) -> Option<(ClaimRequest, Permits)> {
        let max = self.free.available_permits();
        let permits = Arc::clone(&self.free).try_acquire_many_owned(u32::try_from(max).unwrap()).ok()?;
        let offer = RunnerOffer { generation: "g1".to_owned(), phases: false };
        let offers = Arc::new([("stub".to_owned(), offer)].into());
        (max > 0)
            .then(|| (ClaimRequest { now, max, gate: self.gate.clone(), offers }, Permits(Some(permits))))
    }

    fn gate(&self, _: DateTime<Utc>) -> Option<BudgetGate> {
        self.gate.clone()
    }

    fn started(&self, outcome: ClaimOutcome, mut permits: Permits) {
        for cycle in outcome.claimed {
            permits.take_one().expect("no more starts than permits").forget();
            self.started.lock().unwrap().push(cycle.mandate.id);
        }
    }

    fn cancel(&self, mandates: Vec<String>) {
        self.cancelled.lock().unwrap().extend(mandates);
    }

    fn queued(&self) {
        self.queued.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test]
async fn what_fires_starts_in_the_same_commit_while_slots_are_free() {
    let rig = Rig::new("2026-11-22T09:30");
    let slots = Slots::of(2);
    rig.load((0..3).map(|n| hourly(&format!("s{n}"))).collect()).await;
    rig.go_to("2026-11-22T10:00");
    let commits = rig.store.stats().commits;
    let outcome = rig.chronos.tick(rig.clock.now(), &slots).await.unwrap();
    assert_eq!((outcome.fired.len(), outcome.started), (3, 2));
    assert_eq!(rig.store.stats().commits, commits + 1);
    assert_eq!(slots.started.lock().unwrap().len(), 2);
    assert_eq!(slots.free.available_permits(), 0);
    rig.go_to("2026-11-22T11:00");
    let outcome = rig.chronos.tick(rig.clock.now(), &slots).await.unwrap();
    assert_eq!((outcome.fired.len(), outcome.started), (3, 0));
    assert_eq!(slots.queued.load(std::sync::atomic::Ordering::Relaxed), 1, "dispatch hears of it");
}

#[tokio::test]
async fn a_replacing_occurrence_asks_the_running_one_to_stop() {
    let rig = Rig::new("2026-11-22T09:30");
    let slots = Slots::of(1);
    let policy = SchedulePolicy { concurrency: Overlap::Replace, ..SchedulePolicy::default() };
    rig.load(vec![spec("a", "0 * * * *", policy)]).await;
    for hour in [10, 11] {
        rig.go_to(&format!("2026-11-22T{hour}:00"));
        rig.chronos.tick(rig.clock.now(), &slots).await.unwrap();
    }
    assert_eq!(*slots.cancelled.lock().unwrap(), *slots.started.lock().unwrap());
}

#[tokio::test]
async fn without_budget_an_occurrence_waits_or_is_skipped_as_it_says() {
    let rig = Rig::new("2026-11-22T09:30");
    let mut slots = Slots::of(0);
    let limits = crate::store::Limits { calls: Some(0), ..Default::default() };
    slots.gate = Some(BudgetGate { day: "2026-11-22".to_owned(), limits });
    let skip = SchedulePolicy { on_budget: OnBudget::Skip, ..SchedulePolicy::default() };
    rig.load(vec![hourly("hold"), spec("skip", "0 * * * *", skip)]).await;
    rig.go_to("2026-11-22T10:00");
    let outcome = rig.chronos.tick(rig.clock.now(), &slots).await.unwrap();
    assert_eq!(fired(&outcome), ["hold 10:00"]);
    assert_eq!(outcome.dropped, [("skip".to_owned(), at("2026-11-22T10:00"), "budget")]);
    assert_eq!(rig.outcomes("skip"), ["budget 10:00-10:00=1"]);
    assert_eq!(rig.store.schedule("skip").unwrap().unwrap().last_nominal, None);
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

#[tokio::test]
async fn people_see_what_comes_and_what_became_of_the_rest() {
    let rig = Rig::new("2026-11-22T09:30");
    let mut paris = hourly("a");
    paris.timezone = "Europe/Paris".into();
    rig.load(vec![paris.clone()]).await;
    rig.tick_at("2026-11-22T10:00").await;
    rig.chronos.skip_next("a").await.unwrap();
    let view = rig.chronos.show("a", rig.clock.now(), 2).unwrap().unwrap();
    assert_eq!(view["next"][0], json!({"at": "2026-11-22T11:00:00Z", "local": "2026-11-22T12:00:00+01:00"}));
    assert_eq!(view["outcomes"], json!({"fired": 1}));
    assert_eq!(view["skip"], json!(["2026-11-22T11:00:00Z"]));
    assert_eq!(view["last_fire"]["nominal_at"], "2026-11-22T10:00:00Z");
    assert_eq!(view["state"], "active");
    assert!(rig.chronos.show("nobody", rig.clock.now(), 2).unwrap().is_none());
    assert_eq!(rig.chronos.list(rig.clock.now(), 1).len(), 1);

    let why = |when: &str| rig.chronos.why_unrecorded("a", at(when));
    assert!(why("2026-11-22T11:00").contains("left out"));
    assert!(why("2026-11-22T11:01").contains("no occurrence"));
    assert!(why("2026-11-22T12:00").contains("still to come"));
    assert!(why("2026-11-22T08:00").contains("before this schedule was taken in"));
    rig.go_to("2026-11-22T13:30");
    assert!(why("2026-11-22T13:00").contains("its turn"));
    rig.chronos.pause("a", None, None, "operator").await.unwrap();
    assert!(why("2026-11-22T13:00").contains("paused by operator"));

    let next = preview(&paris, &Zones::bundled(), at("2027-03-28T00:30"), 2).unwrap();
    let local: Vec<&str> = next.iter().map(|one| one.local.as_str()).collect();
    assert_eq!(local, ["2027-03-28T03:00:00+02:00", "2027-03-28T04:00:00+02:00"]);
    paris.timezone = "Europe/Pariss".into();
    assert!(preview(&paris, &Zones::bundled(), at("2027-03-28T00:30"), 2).is_err());
}

#[tokio::test]
async fn a_failed_row_of_mandates_pauses_the_schedule_once_chronos_is_told() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    let pause = Pause { since: rig.clock.now(), until: None, note: None, by: "failures".to_owned() };
    rig.store.pause_schedule(PauseSchedule { name: "a".to_owned(), pause }).await.unwrap();
    rig.chronos.refresh("a").await.unwrap();
    assert_eq!(rig.chronos.next_due(), None);
    rig.chronos.refresh("nobody").await.unwrap();
}

#[tokio::test]
async fn a_stopped_mandate_stays_fired() {
    let rig = Rig::new("2026-11-22T09:30");
    rig.load(vec![hourly("a")]).await;
    rig.tick_at("2026-11-22T10:00").await;
    let id = rig.mandates()[0].id.clone();
    rig.store.command(id, MandateCommand::Stop { note: None }, rig.clock.now()).await.unwrap();
    assert_eq!(rig.outcomes("a"), ["fired 10:00"]);
}

#[test]
fn names_are_found_among_many_and_a_schedule_stays_small() {
    let specs: Vec<ScheduleSpec> = (0..5000).map(|n| hourly(&format!("job-{n}"))).collect();
    let now = Utc.with_ymd_and_hms(2026, 11, 22, 9, 30, 0).unwrap().timestamp();
    let (table, rejected) = Table::compile(specs, &Zones::bundled(), now);
    assert!(rejected.is_empty());
    for n in 0..5000 {
        assert_eq!(table.find(&format!("job-{n}")), Some(n));
    }
    assert_eq!(table.find("job-5000"), None);
    assert!(table.bytes() / 5000 <= 200, "{} bytes a schedule", table.bytes() / 5000);
}
