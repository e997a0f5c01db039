//! Dispatch under its own loop: slots, stops, deadlines, drains, missing runners, a refusing
//! store. The store, the broker and the runners' threads are the real ones.
#![allow(clippy::disallowed_methods, reason = "tests read files plainly")]

mod house;
#[path = "../seed_support/mod.rs"]
mod seed_support;
mod trouble;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use house::*;
use kairos_host::broker::Broker;
use kairos_host::broker::llm::Providers;
use kairos_host::broker::policy::Policy;
use kairos_host::broker::tools::Tools;
use kairos_host::daemon::chronos::{Chronos, ScheduleSet, Seams};
use kairos_host::daemon::dispatch::ports::{CycleLog, Prepared};
use kairos_host::daemon::dispatch::{Dispatch, Parts, Settings};
use kairos_host::daemon::engine::{self, Engine};
use kairos_host::daemon::mailbox::{self, Command, Mailbox, Phase, Work};
use kairos_host::daemon::wallet::Wallet;
use kairos_host::domain::cron::Zone;
use kairos_host::domain::mandate::{CycleStatus, MandateState};
use kairos_host::domain::schedule::{MandateBounds, Overlap, SchedulePolicy};
use kairos_host::runner::{Builtin, Launcher, PluginStore, RunnerBackend, Runners, SearchPath};
use kairos_host::store::{
    self, Limits, MandateCommand, NewMandate, Origin, RecoverRequest, SqliteStore, Store,
};
use kairos_host::sys::clock::{Clock, SystemClock};
use kairos_host::sys::entropy::SystemEntropy;
use kairos_host::sys::zones::Zones;
use kairos_plugin_api::{CallError, Context, Mandate, Report};
use seed_support::veil::{Veil, full};
use seed_support::*;

#[tokio::test]
async fn no_more_cycles_run_at_once_than_there_are_slots_and_all_slots_are_used() {
    for slots in [1, 3] {
        let now = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let open = Arc::new(AtomicBool::new(false));
        let (inside, seen, go) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&open));
        let built = Built::new(move |_, _| {
            seen.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            while !go.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok(Report::ok())
        });
        let house = Built { slots, ..built }.open().await;
        for number in 0..30 {
            house.add(&format!("m{number}")).await;
        }
        until("all slots to be used", || now.load(Ordering::SeqCst) == slots).await;
        open.store(true, Ordering::SeqCst);
        until("all to end", || house.store.counts().is_ok_and(|c| c.queued == 0 && c.running.is_empty()))
            .await;
        assert_eq!(most.load(Ordering::SeqCst), slots, "and never more");
    }
}

#[tokio::test]
async fn slots_can_be_added_and_taken_away_while_cycles_run() {
    let (entering, entered) = std::sync::mpsc::channel();
    let entering = Mutex::new(entering);
    let let_go = Arc::new(AtomicBool::new(false));
    let go = Arc::clone(&let_go);
    let built = Built::new(move |mandate, host| {
        let _ = entering.lock().expect("no panic").send(mandate.id.clone());
        while !go.load(Ordering::SeqCst) && !host.should_stop() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Report::ok())
    });
    let house = built.open().await;
    for id in ["a", "b", "c", "d"] {
        house.add(id).await;
    }
    until("one to run", || entered.try_recv().is_ok()).await;
    let settings = Settings { stop_grace: Duration::from_millis(50), ..Settings::default() };
    house.dispatch.configure(Settings { slots: 3, ..settings });
    let mut more = 0;
    until("two more to run", || {
        more += entered.try_iter().count();
        more == 2
    })
    .await;
    house.dispatch.configure(Settings { slots: 1, ..settings });
    assert_eq!(house.dispatch.active_mandate_ids().len(), 3, "none is taken away from a running cycle");
    let_go.store(true, Ordering::SeqCst);
    house.becomes("d", MandateState::Succeeded).await;
    house.dispatch.idle().await;
    // And up again: the surplus was paid back.
    house.dispatch.configure(Settings { slots: 2, ..settings });
    let_go.store(false, Ordering::SeqCst);
    for id in ["e", "f", "g"] {
        house.add(id).await;
    }
    until("two to run", || house.dispatch.active_mandate_ids().len() == 2).await;
    let_go.store(true, Ordering::SeqCst);
    house.becomes("g", MandateState::Succeeded).await;
}

#[tokio::test]
async fn mandates_of_one_scope_run_one_after_the_other_whatever_the_slots() {
    let inside = Arc::new(AtomicUsize::new(0));
    let clash = Arc::new(AtomicBool::new(false));
    let (count, bad) = (Arc::clone(&inside), Arc::clone(&clash));
    let built = Built::new(move |_, _| {
        if count.fetch_add(1, Ordering::SeqCst) > 0 {
            bad.store(true, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_millis(3));
        count.fetch_sub(1, Ordering::SeqCst);
        Ok(Report::ok())
    });
    let house = Built { slots: 4, ..built }.open().await;
    for number in 0..10 {
        house.add_to(&format!("m{number}"), QUICK, Some("site")).await;
    }
    house.becomes("m9", MandateState::Succeeded).await;
    assert!(!clash.load(Ordering::SeqCst));
}

#[tokio::test]
async fn persons_stop_ends_a_running_mandate_for_good() {
    let house = Built::new(patient).open().await;
    house.add("m").await;
    until("its start", || house.dispatch.active_mandate_id().is_some()).await;
    house.mailbox.stop_mandate("m", Some("enough".into())).await.expect("it is running");
    house.becomes("m", MandateState::Cancelled).await;
    assert_eq!(house.last_cycle("m").0, Some(CycleStatus::Interrupted));
    assert!(house.dispatch.stuck().is_empty(), "it ended by itself");
}

#[tokio::test]
async fn runner_that_does_not_end_is_left_to_itself_listed_and_its_slot_is_free() {
    let ear = Ear::new();
    let let_go = Arc::new(AtomicBool::new(false));
    let go = Arc::clone(&let_go);
    let built = Built::new(move |mandate, host| {
        while mandate.id == "deaf" && !go.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // What a thread that was left behind asks for is refused.
        host.phase("late")?;
        Ok(Report::ok())
    });
    let house = built.open().await;
    house.add("deaf").await;
    house.add("next").await;
    until("its start", || house.dispatch.active_mandate_id().is_some()).await;
    house.mailbox.stop_mandate("deaf", None).await.expect("it is running");
    house.becomes("deaf", MandateState::Cancelled).await;
    house.becomes("next", MandateState::Succeeded).await;
    let stuck = house.dispatch.stuck();
    assert_eq!((stuck.len(), stuck[0].mandate.as_str()), (1, "deaf"));
    assert_eq!(ear.one("runner_stuck").field("mandate"), "deaf");
    assert!(house.engine.beat_now().reasons.iter().any(|reason| reason.contains("do not end")));
    let_go.store(true, Ordering::SeqCst);
    until("its end after all", || house.dispatch.stuck().is_empty()).await;
    assert_eq!(house.state("deaf"), MandateState::Cancelled, "what it says now does not count");
}

#[tokio::test]
async fn shutdown_lets_a_cycle_end_and_its_mandate_goes_on_later() {
    let house = Built::new(patient).open().await;
    house.add("m").await;
    until("its start", || house.dispatch.active_mandate_id().is_some()).await;
    let drained = house.dispatch.drain(PATIENCE).await;
    assert_eq!(drained, kairos_host::daemon::dispatch::Drained::default());
    assert_eq!(house.state("m"), MandateState::Queued);
    assert_eq!(house.last_cycle("m").0, Some(CycleStatus::Interrupted));
    assert_eq!(house.store.counts().expect("counts").running, Vec::<String>::new(), "and nothing is claimed");
}

#[tokio::test]
async fn drain_records_what_does_not_end_in_time_as_interrupted() {
    let let_go = Arc::new(AtomicBool::new(false));
    let built = Built::new(until_let_go(&let_go));
    let house = built.open().await;
    house.add("deaf").await;
    until("its start", || house.dispatch.active_mandate_id().is_some()).await;
    let drained = house.dispatch.drain(Duration::from_millis(20)).await;
    assert_eq!((drained.interrupted, drained.unrecorded), (vec!["deaf".to_owned()], vec![]));
    assert_eq!(house.state("deaf"), MandateState::Queued);
    let_go.store(true, Ordering::SeqCst);
}

#[tokio::test]
async fn interrupted_mandate_goes_on_after_a_restart_as_the_same_cycle() {
    let house = Built::new(patient).open().await;
    house.add("m").await;
    until("its start", || house.dispatch.active_mandate_id().is_some()).await;
    // A crash: nobody records anything.
    let store = house.store.crash(None).expect("the store's data");
    let (sender, seen) = std::sync::mpsc::channel();
    let sender = Mutex::new(sender);
    let built = Built::new(move |mandate, _| {
        let _ = sender.lock().expect("no panic").send((mandate.cycle, mandate.attempt));
        Ok(Report::ok())
    });
    let house = Built { store, ..built }.open().await;
    house.becomes("m", MandateState::Succeeded).await;
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [(1, 2)], "the same cycle, a second attempt");
}

#[tokio::test]
async fn what_recovery_hands_back_runs_first_and_no_faster_than_the_slots() {
    let house = Built { slots: 3, ..Built::new(patient) }.open().await;
    for id in ["a", "b", "c", "later"] {
        house.add(id).await;
    }
    until("three starts", || house.dispatch.active_mandate_ids().len() == 3).await;
    let store = house.store.crash(None).expect("the store's data");
    let order = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&order);
    let built = Built::new(move |mandate, _| {
        record.lock().expect("no panic").push(mandate.id.clone());
        Ok(Report::ok())
    });
    let house = Built { store, slots: 1, ..built }.open().await;
    house.becomes("later", MandateState::Succeeded).await;
    let order = order.lock().expect("no panic").clone();
    assert_eq!((order.len(), order[3].as_str()), (4, "later"), "{order:?}");
}

#[tokio::test]
async fn mandate_of_a_missing_runner_waits_says_why_and_runs_when_it_is_there() {
    let house = Built { runner: None, ..Built::new(ok) }.open().await;
    house.add("m").await;
    until("the reason", || house.store.mandate("m").is_ok_and(|row| row.reason.is_some())).await;
    let reason = house.store.mandate("m").expect("it is there").reason.expect("just seen");
    assert!(reason.contains(QUICK), "{reason}");
    assert_eq!(house.state("m"), MandateState::Queued);
    assert!(house.dispatch.reasons().iter().any(|why| why.contains("runner quick")));
    assert!(house.dispatch.next_wake().is_some(), "it is tried again by itself");
    house.runners.insert(QUICK, Arc::new(Builtin::from_fn(QUICK, ok)));
    house.dispatch.runners_changed();
    house.becomes("m", MandateState::Succeeded).await;
    until("the reason to go", || house.dispatch.reasons().is_empty()).await;
}

#[tokio::test]
async fn log_that_fails_holds_work_back_and_it_goes_on_when_it_is_mended() {
    let clock = clock();
    let log = Arc::new(Log(AtomicBool::new(true)));
    let time: Arc<dyn Clock> = Arc::new(clock.clone());
    let built = Built { clock: time, log: Some(Arc::clone(&log) as _), ..Built::new(ok) };
    let house = built.open().await;
    house.add("m").await;
    until("the hold", || !house.dispatch.reasons().is_empty()).await;
    assert_eq!(house.dispatch.reasons(), ["write-ahead log: no space"]);
    assert_eq!(house.state("m"), MandateState::Queued);
    // It is tried again, each time later, for as long as it fails.
    let mut waits = Vec::new();
    for _ in 0..3 {
        let wait = (house.dispatch.next_wake().expect("a next try") - house.clock.now()).num_seconds();
        waits.push(wait);
        clock.advance(Duration::from_secs(wait.unsigned_abs()));
        until("the next hold", || house.dispatch.next_wake().is_some_and(|at| at > house.clock.now())).await;
    }
    assert_eq!(waits, [1, 2, 4]);
    log.0.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(60));
    house.becomes("m", MandateState::Succeeded).await;
    assert!(house.dispatch.reasons().is_empty());
}

#[tokio::test]
async fn budget_holds_work_back_until_the_day_turns() {
    let ear = Ear::new();
    let clock = clock();
    let limits = Limits { calls: Some(1), ..Limits::default() };
    let built = Built::new(|_, _| Ok(Report { llm_calls: 1, ..Report::ok() }));
    let house = Built { clock: Arc::new(clock.clone()), limits: Some(limits), ..built }.open().await;
    house.add("first").await;
    house.add("second").await;
    house.becomes("first", MandateState::Succeeded).await;
    until("the block", || !house.dispatch.reasons().is_empty()).await;
    assert_eq!(house.state("second"), MandateState::Queued);
    assert_eq!(house.dispatch.next_wake(), Some(at("2026-11-23T00:00:00Z")), "it knows when to look again");
    for _ in 0..5 {
        house.dispatch.wake();
    }
    assert_eq!(ear.one("daemon_budget_exceeded").field("calls"), "1");
    clock.advance(Duration::from_secs(15 * 3600));
    house.becomes("second", MandateState::Succeeded).await;
    assert!(house.dispatch.reasons().is_empty());
    assert_eq!(house.wallet.day(house.clock.now()), "2026-11-23");
}

#[tokio::test]
async fn long_cycle_never_delays_the_schedules() {
    let clock = clock();
    let let_go = Arc::new(AtomicBool::new(false));
    let built = Built::new(until_let_go(&let_go));
    let schedules = every_minute("tidy", SchedulePolicy::default());
    let house = Built { clock: Arc::new(clock.clone()), schedules, ..built }.open().await;
    let fired = |at: DateTime<Utc>| {
        house.store.schedule("tidy").is_ok_and(|state| state.is_some_and(|s| s.last_nominal == Some(at)))
    };
    for minute in 1..=5 {
        // In steps as small as the loop's sleeps, so that none is slept over.
        for _ in 0..6 {
            clock.advance(Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let nominal = at(&format!("2026-11-22T09:0{minute}:00Z"));
        until(&format!("fire {minute}"), || fired(nominal)).await;
    }
    assert_eq!(house.dispatch.active_mandate_id().as_deref(), Some("20261122T090100Z-tidy-0"));
    assert_eq!(house.store.counts().expect("counts").queued, 4);
    let_go.store(true, Ordering::SeqCst);
    house.becomes("20261122T090500Z-tidy-0", MandateState::Succeeded).await;
}

#[tokio::test]
async fn replacing_occurrence_stops_the_running_one_and_runs_after_it() {
    let clock = clock();
    let policy = SchedulePolicy { concurrency: Overlap::Replace, ..SchedulePolicy::default() };
    let built = Built::new(|mandate, host| {
        if mandate.nominal_at == Some(at("2026-11-22T09:01:00Z")) {
            patient(mandate, host)
        } else {
            ok(mandate, host)
        }
    });
    let schedules = every_minute("tidy", policy);
    let house = Built { clock: Arc::new(clock.clone()), schedules, ..built }.open().await;
    clock.advance(Duration::from_secs(30));
    until("the first to run", || house.dispatch.active_mandate_id().is_some()).await;
    clock.advance(Duration::from_secs(60));
    house.becomes("20261122T090200Z-tidy-0", MandateState::Succeeded).await;
    assert_eq!(house.state("20261122T090100Z-tidy-0"), MandateState::Cancelled);
}

#[tokio::test]
async fn schedule_that_fails_again_and_again_pauses_itself() {
    let clock = clock();
    let policy = SchedulePolicy { pause_after_failures: Some(2), ..SchedulePolicy::default() };
    let built = Built::new(|_, _| Err(CallError::new("failed", "no")));
    let schedules = every_minute("tidy", policy);
    let house = Built { clock: Arc::new(clock.clone()), schedules, ..built }.open().await;
    let ended = |id: &str| house.store.mandate(id).is_ok_and(|row| row.state == MandateState::Failed);
    for minute in 1..=2 {
        clock.advance(Duration::from_secs(60));
        let id = format!("20261122T090{minute}00Z-tidy-0");
        until(&format!("{id} to fail"), || ended(&id)).await;
    }
    let paused = || house.store.schedule("tidy").is_ok_and(|s| s.is_some_and(|s| s.pause.is_some()));
    until("the pause", paused).await;
    // Chronos heard of it: nothing fires any more.
    house.chronos.refresh("tidy").await.expect("it can be read");
    clock.advance(Duration::from_secs(600));
    let fired = house.chronos.tick(house.clock.now(), &house.dispatch).await.expect("a tick").fired;
    assert!(fired.is_empty(), "{fired:?}");
}

#[tokio::test]
async fn deadline_ends_a_cycle_as_an_error_also_when_the_runner_looks() {
    let clock = clock();
    let ten_minutes = Duration::from_secs(600);
    let built = Built::new(patient);
    let house = Built { clock: Arc::new(clock.clone()), runner: None, ..built }.open().await;
    let backend: Arc<dyn RunnerBackend> = Arc::new(Builtin::from_fn(QUICK, patient));
    house.runners.insert_with_deadline(QUICK, backend, Some(ten_minutes));
    house.dispatch.runners_changed();
    house.add("m").await;
    until("its start", || house.dispatch.active_mandate_id().is_some()).await;
    until("two errors", || {
        clock.advance(Duration::from_secs(60));
        house.state("m") == MandateState::Failed
    })
    .await;
    let row = house.store.mandate("m").expect("it is there");
    assert_eq!(row.reason.as_deref(), Some("deadline"));
    let cycles = house.store.cycles("m").expect("it is there");
    assert_eq!(cycles.len(), 2);
    assert_eq!(cycles[0].status, Some(CycleStatus::Error));
    assert!(cycles[0].error.as_deref().is_some_and(|error| error.contains("deadline")), "{cycles:?}");
}

#[tokio::test]
async fn retry_of_a_stopped_mandate_is_not_stopped_by_the_old_wish() {
    let house = Built::new(ok).open().await;
    house.add("m").await;
    house.becomes("m", MandateState::Succeeded).await;
    // A cancel for a mandate that is not here any more.
    house.dispatch.cancel("m");
    let retry =
        |reply| Command::Work(Work::Mandate { id: "m".into(), command: MandateCommand::Retry, reply });
    house.mailbox.ask(retry).await.expect("it has ended");
    house.becomes("m", MandateState::Succeeded).await;
    assert_eq!(house.store.cycles("m").expect("it is there").len(), 2);
}
