//! Commands on schedules, and what people see of them.

use serde_json::json;

use super::*;
use crate::domain::schedule::Overlap;
use crate::store::{MandateCommand, Pause, PauseSchedule};

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
async fn people_see_what_comes_and_what_became_of_the_rest() {
    let rig = Rig::new("2026-11-22T09:30");
    let mut paris = hourly("a");
    paris.timezone = "Europe/Paris".into();
    rig.load(vec![paris.clone()]).await;
    rig.tick_at("2026-11-22T10:00").await;
    rig.chronos.skip_next("a").await.unwrap();
    let view = rig.chronos.show("a", rig.clock.now(), 2).unwrap().unwrap();
    assert_eq!(view["next"][0], json!({"at": "2026-11-22T12:00:00Z", "local": "2026-11-22T13:00:00+01:00"}));
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
