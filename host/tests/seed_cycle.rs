//! The seed's `run_one_ooda_cycle`: the gate, the mandate, the runner, its usage, and what is true
//! afterwards on every path.
#![allow(clippy::disallowed_methods, reason = "tests read files plainly")]

mod seed_support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kairos_host::daemon::dispatch::OneCycle;
use kairos_host::domain::mandate::{CycleEnd, CycleStatus, MandateState};
use kairos_host::domain::schedule::{Overlap, SchedulePolicy};
use kairos_host::store::{SqliteStore, Store, StoreStats};
use kairos_host::sys::clock::ManualClock;
use kairos_host::wiring::{Budget, EmbeddedMandate, RunnerFailure, UsageAccumulator, Wired, Wiring};
use kairos_plugin_api::Usage;
use seed_support::*;
use serde_json::{Value, json};

fn usage(llm_calls: u64, input_tokens: u64, output_tokens: u64) -> Usage {
    Usage { llm_calls, input_tokens, output_tokens, cost_nano_usd: 0 }
}

fn wiring(clock: &ManualClock) -> Wiring {
    Wiring::new(no_schedules()).clock(Arc::new(clock.clone()))
}

async fn ran(wired: &Wired) -> kairos_host::daemon::dispatch::Ended {
    match wired.run_one_cycle().await.expect("a claim") {
        OneCycle::Ran(ended) => *ended,
        other => panic!("nothing ran: {other:?}"),
    }
}

/// A wiring with one mandate `m` whose cycle ends as `run` says, after one cycle of it.
async fn after(
    run: impl Fn() -> Result<Value, RunnerFailure> + Send + Sync + 'static,
    accumulator: Option<UsageAccumulator>,
) -> (Wired, kairos_host::daemon::dispatch::Ended) {
    let mut wiring = wiring(&clock()).cycle_runner(move |_| run());
    if let Some(accumulator) = accumulator {
        wiring = wiring.usage_accumulator(accumulator);
    }
    let wired = wiring.wire().await.expect("a wiring");
    wired.enqueue(named("m")).await.expect("a free name");
    let ended = ran(&wired).await;
    // True on every path.
    assert_eq!(wired.active_mandate_id(), None, "the active id is cleared");
    assert_eq!(wired.last_cycle_at(), Some(at("2026-11-22T09:00:30Z")));
    assert!(wired.store().counts().expect("counts").running.is_empty(), "it is unregistered");
    (wired, ended)
}

#[tokio::test]
async fn without_a_runner_a_cycle_is_ok_and_uses_nothing() {
    let wired = wiring(&clock()).wire().await.unwrap();
    wired.enqueue(named("m")).await.unwrap();
    let ended = ran(&wired).await;
    assert_eq!((ended.end, ended.state), (CycleEnd::Done, MandateState::Succeeded));
    assert_eq!(ended.usage, Usage::ZERO);
}

#[tokio::test]
async fn return_that_is_no_object_is_the_default_result() {
    for value in [json!(null), json!("done"), json!([1, 2]), json!(3)] {
        let (_, ended) = after(move || Ok(value.clone()), None).await;
        assert_eq!((ended.end, ended.usage), (CycleEnd::Done, Usage::ZERO));
    }
}

#[tokio::test]
async fn usage_of_a_cycle_is_booked_and_saved_with_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.db");
    let wired = wiring(&clock())
        .store(&file)
        .budget(Budget::daily_calls(10))
        .cycle_runner(|_| {
            Ok(json!({"status": "ok", "llm_calls": 1, "input_tokens": 123, "output_tokens": 456}))
        })
        .wire()
        .await
        .unwrap();
    // Somebody else looks at the file: it is saved after each booking, not at the end.
    let saved = SqliteStore::read_only(&file).unwrap();
    for times in 1..=2 {
        wired.enqueue(named(&format!("m{times}"))).await.unwrap();
        assert_eq!(ran(&wired).await.usage, usage(1, 123, 456));
        assert_eq!(spent(&wired), (times, 123 * times, 456 * times));
        assert_eq!(saved.day("2026-11-22").unwrap().spent.llm_calls, times);
    }
    wired.unwire().await;
}

#[tokio::test]
async fn one_mandate_runs_per_call_in_the_order_of_the_queue() {
    let wired = wiring(&clock()).wire().await.unwrap();
    for id in ["a", "b", "c"] {
        wired.enqueue(named(id)).await.unwrap();
    }
    for (id, left) in [("a", 2), ("b", 1), ("c", 0)] {
        assert_eq!(ran(&wired).await.mandate, id);
        assert_eq!(wired.queue_depth(), left);
    }
    assert!(matches!(wired.run_one_cycle().await.unwrap(), OneCycle::Idle));
}

#[tokio::test]
async fn mandate_without_an_id_takes_its_name_and_the_runner_sees_it() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let wired = wiring(&clock())
        .cycle_runner(move |mandate| {
            record.lock().unwrap().push(mandate.id.clone());
            Ok(json!({}))
        })
        .wire()
        .await
        .unwrap();
    let added = wired.enqueue(named("nightly")).await.unwrap();
    assert_eq!(added.id, "nightly");
    let with_id = EmbeddedMandate { id: Some("id-7".into()), ..named("nightly") };
    assert_eq!(wired.enqueue(with_id).await.unwrap().id, "id-7");
    ran(&wired).await;
    ran(&wired).await;
    assert_eq!(*seen.lock().unwrap(), ["nightly", "id-7"]);
    assert_eq!(wired.store().mandate("nightly").unwrap().state, MandateState::Succeeded);
    assert!(wired.enqueue(named("")).await.is_err(), "neither an id nor a name");
}

#[tokio::test]
async fn mandate_is_active_and_registered_while_its_cycle_runs() {
    let (gate, pass) = gate();
    let wired = wiring(&clock())
        .cycle_runner(move |mandate| {
            pass(&mandate.id);
            Ok(json!({}))
        })
        .wire()
        .await
        .unwrap();
    wired.enqueue(named("m")).await.unwrap();
    let (ended, ()) = tokio::join!(ran(&wired), async {
        gate.entered().await;
        assert_eq!(wired.active_mandate_id().as_deref(), Some("m"));
        assert_eq!(wired.store().counts().unwrap().running, ["m"]);
        assert_eq!(wired.queue_depth(), 0);
        gate.let_go.send(()).unwrap();
    });
    assert_eq!(ended.mandate, "m");
    assert_eq!(wired.active_mandate_id(), None);
}

#[tokio::test]
async fn budget_gate_logs_leaves_the_mandate_queued_and_beats() {
    let ear = Ear::new();
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let wired = wiring(&clock)
        .budget(Budget::daily_calls(2))
        .heartbeat(dir.path().join("heartbeat.json"))
        .cycle_runner(|_| Ok(json!({"llm_calls": 2})))
        .wire()
        .await
        .unwrap();
    wired.enqueue(named("first")).await.unwrap();
    wired.enqueue(named("second")).await.unwrap();
    ran(&wired).await;
    assert!(ear.all("daemon_budget_exceeded").is_empty());
    clock.advance(Duration::from_secs(10));
    let OneCycle::Blocked(block) = wired.run_one_cycle().await.unwrap() else { panic!("it ran") };
    assert_eq!((block.limit, block.calls), (2, 2));
    let event = ear.one("daemon_budget_exceeded");
    assert_eq!(event.level, tracing::Level::WARN);
    assert_eq!((event.field("limit"), event.field("calls")), ("2", "2"));
    assert_eq!(wired.queue_depth(), 1);
    let beat: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("heartbeat.json")).unwrap()).unwrap();
    assert_eq!(beat["ts"], "2026-11-22T09:00:40Z", "it beat although nothing ran");
    assert_eq!(beat["queue_depth"], 1);
    assert_eq!(beat["reasons"][0], "budget: 2 of 2 calls used");
    assert!(matches!(wired.run_one_cycle().await.unwrap(), OneCycle::Blocked(_)));
    assert_eq!(ear.all("daemon_budget_exceeded").len(), 2, "each call says so");
    // The next day it goes on by itself.
    clock.advance(Duration::from_secs(15 * 3600));
    assert_eq!(ran(&wired).await.mandate, "second");
}

#[tokio::test]
async fn without_a_budget_nothing_is_held_back_and_usage_is_still_counted() {
    let wired = wiring(&clock()).cycle_runner(|_| Ok(json!({"llm_calls": 1_000_000}))).wire().await.unwrap();
    for id in ["a", "b"] {
        wired.enqueue(named(id)).await.unwrap();
        ran(&wired).await;
    }
    assert_eq!(spent(&wired).0, 2_000_000);
}

#[tokio::test]
async fn usage_that_is_no_integer_takes_the_error_path_with_the_partial_usage() {
    let ear = Ear::new();
    let accumulator = UsageAccumulator::default();
    let add = accumulator.clone();
    let run = move || {
        add.add(usage(2, 20, 5));
        Ok(json!({"status": "ok", "llm_calls": "many"}))
    };
    let (wired, ended) = after(run, Some(accumulator)).await;
    assert_eq!(ended.end, CycleEnd::Error);
    assert_eq!(ended.usage, usage(2, 20, 5));
    assert_eq!(spent(&wired), (2, 20, 5));
    let event = ear.one("daemon_cycle_runner_failed");
    assert_eq!(event.field("mandate"), "m");
    assert!(event.field("error").contains("llm_calls"), "{event:?}");
}

#[tokio::test]
async fn error_books_what_was_used_until_then_and_is_logged() {
    let ear = Ear::new();
    let accumulator = UsageAccumulator::default();
    let add = accumulator.clone();
    let run = move || {
        add.add(usage(1, 10, 0));
        add.add(usage(1, 0, 7));
        Err(std::io::Error::other("the model is gone").into())
    };
    let (wired, ended) = after(run, Some(accumulator)).await;
    assert_eq!((ended.end, ended.state), (CycleEnd::Error, MandateState::Queued), "tried once more");
    assert_eq!(spent(&wired), (2, 10, 7));
    let event = ear.one("daemon_cycle_runner_failed");
    assert_eq!((event.level, event.field("mandate")), (tracing::Level::ERROR, "m"));
    assert!(event.field("error").contains("the model is gone"), "{event:?}");
    let cycles = wired.store().cycles("m").unwrap();
    assert_eq!((cycles[0].status, cycles[0].usage), (Some(CycleStatus::Error), usage(2, 10, 7)));
    // The second error in a row ends it; what it used is booked too, and only once.
    let ended = ran(&wired).await;
    assert_eq!(ended.state, MandateState::Failed);
    assert_eq!(spent(&wired), (4, 20, 14));
}

#[tokio::test]
async fn panic_of_the_runner_is_an_error_like_any_other() {
    let accumulator = UsageAccumulator::default();
    let add = accumulator.clone();
    let run = move || {
        add.add(usage(3, 0, 0));
        panic!("deep inside")
    };
    let (wired, ended) = after(run, Some(accumulator)).await;
    assert_eq!((ended.end, ended.reason.as_deref()), (CycleEnd::Error, Some("panic")));
    assert!(ended.error.unwrap().contains("deep inside"));
    assert_eq!(spent(&wired), (3, 0, 0));
}

#[tokio::test]
async fn without_an_accumulator_an_error_books_nothing() {
    let (wired, ended) = after(|| Err(RunnerFailure::failed("no")), None).await;
    assert_eq!(ended.end, CycleEnd::Error);
    assert_eq!(spent(&wired), (0, 0, 0));
}

#[tokio::test]
async fn shutdown_in_a_cycle_is_an_interruption_and_no_error() {
    let ear = Ear::new();
    let accumulator = UsageAccumulator::default();
    let add = accumulator.clone();
    let run = move || {
        add.add(usage(1, 9, 2));
        Err(RunnerFailure::ShutdownRequested)
    };
    let (wired, ended) = after(run, Some(accumulator)).await;
    assert_eq!((ended.end, ended.state), (CycleEnd::Interrupted, MandateState::Queued), "it goes on later");
    assert_eq!(spent(&wired), (1, 9, 2));
    let event = ear.one("daemon_cycle_interrupted");
    assert_eq!((event.level, event.field("mandate")), (tracing::Level::INFO, "m"));
    assert!(event.field("usage").contains("\"llm_calls\":1"), "{event:?}");
    assert!(ear.errors().is_empty(), "{:?}", ear.errors());
    assert_eq!(wired.store().cycles("m").unwrap()[0].status, Some(CycleStatus::Interrupted));
}

#[tokio::test]
async fn accumulator_begins_anew_with_each_cycle() {
    let accumulator = UsageAccumulator::default();
    let add = accumulator.clone();
    let calls = AtomicUsize::new(0);
    let wired = wiring(&clock())
        .usage_accumulator(accumulator.clone())
        .cycle_runner(move |_| {
            add.add(usage(1, 0, 0));
            match calls.fetch_add(1, Ordering::SeqCst) {
                0 => Ok(json!({"llm_calls": 1})),
                _ => Err(RunnerFailure::failed("second")),
            }
        })
        .wire()
        .await
        .unwrap();
    wired.enqueue(named("good")).await.unwrap();
    wired.enqueue(named("bad")).await.unwrap();
    ran(&wired).await;
    assert_eq!(accumulator.total(), usage(1, 0, 0));
    ran(&wired).await;
    assert_eq!(spent(&wired), (2, 0, 0), "one each, though the first one's stood there still");
}

#[tokio::test]
async fn cycle_that_wants_more_runs_again_and_ends_at_its_cap() {
    let wired = wiring(&clock()).cycle_runner(|_| Ok(json!({"more": true}))).wire().await.unwrap();
    wired.enqueue(named("m")).await.unwrap();
    for cycle in 1..=10 {
        assert_eq!(ran(&wired).await.cycle, cycle);
    }
    let row = wired.store().mandate("m").unwrap();
    assert_eq!((row.state, row.reason.as_deref()), (MandateState::Succeeded, Some("max_cycles")));
    assert!(matches!(wired.run_one_cycle().await.unwrap(), OneCycle::Idle));
}

#[tokio::test]
async fn paused_cycle_waits_for_a_person() {
    let (_, ended) = after(|| Ok(json!({"status": "paused"})), None).await;
    assert_eq!((ended.end, ended.state), (CycleEnd::Checkpoint, MandateState::PausedCheckpoint));
}

#[tokio::test]
async fn heartbeat_is_rate_limited_over_cycles_and_ticks() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("heartbeat.json");
    let clock = clock();
    let wired = wiring(&clock).heartbeat(&file).wire().await.unwrap();
    let ts = || -> Option<Value> {
        let beat: Value = serde_json::from_slice(&std::fs::read(&file).ok()?).unwrap();
        Some(beat["ts"].clone())
    };
    wired.run_one_cycle().await.unwrap();
    assert_eq!(ts(), Some(json!("2026-11-22T09:00:30Z")), "also when there was nothing to do");
    clock.advance(Duration::from_secs(9));
    wired.run_one_cycle().await.unwrap();
    assert_eq!(ts(), Some(json!("2026-11-22T09:00:30Z")));
    clock.advance(Duration::from_secs(1));
    wired.run_one_cycle().await.unwrap();
    assert_eq!(ts(), Some(json!("2026-11-22T09:00:40Z")));
}

#[tokio::test]
async fn heart_beats_on_during_a_long_cycle() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("heartbeat.json");
    let (gate, pass) = gate();
    let clock = clock();
    let wired = wiring(&clock)
        .heartbeat(&file)
        .heartbeat_interval(Duration::from_secs(5))
        .cycle_runner(move |mandate| {
            pass(&mandate.id);
            Ok(json!({}))
        })
        .wire()
        .await
        .unwrap();
    wired.enqueue(named("long")).await.unwrap();
    tokio::join!(ran(&wired), async {
        gate.entered().await;
        for second in ["35", "40", "45"] {
            clock.advance(Duration::from_secs(5));
            let expect = format!("2026-11-22T09:00:{second}Z");
            until("a beat", || {
                let read =
                    std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
                read.is_some_and(|beat| beat["ts"] == *expect && beat["active_mandate_id"] == "long")
            })
            .await;
        }
        gate.let_go.send(()).unwrap();
    });
    wired.unwire().await;
}

#[tokio::test]
async fn tick_queues_what_is_due_and_starts_nothing() {
    let clock = clock();
    let wired = Wiring::new(every_minute("tidy", SchedulePolicy::default()))
        .clock(Arc::new(clock.clone()))
        .wire()
        .await
        .unwrap();
    assert!(wired.tick().await.unwrap().fired.is_empty(), "a new schedule never fires for the past");
    clock.advance(Duration::from_secs(30));
    let fired = wired.tick().await.unwrap().fired;
    assert_eq!(fired.len(), 1);
    assert_eq!((fired[0].0.as_str(), fired[0].2), ("tidy", at("2026-11-22T09:01:00Z")));
    assert_eq!((wired.queue_depth(), wired.active_mandate_id()), (1, None));
    assert!(wired.tick().await.unwrap().fired.is_empty(), "and never twice");
    let ended = ran(&wired).await;
    assert_eq!(ended.mandate, "20261122T090100Z-tidy-0");
}

#[tokio::test]
async fn rejected_fire_keeps_the_former_last_fire() {
    let (gate, pass) = gate();
    let clock = clock();
    let policy = SchedulePolicy { concurrency: Overlap::Reject, ..SchedulePolicy::default() };
    let wired = Wiring::new(every_minute("tidy", policy))
        .clock(Arc::new(clock.clone()))
        .cycle_runner(move |mandate| {
            pass(&mandate.id);
            Ok(json!({}))
        })
        .wire()
        .await
        .unwrap();
    clock.advance(Duration::from_secs(30));
    assert_eq!(wired.tick().await.unwrap().fired.len(), 1);
    let last_fire = || {
        let state = wired.store().schedule("tidy").unwrap().unwrap();
        (state.last_nominal, state.last_fired)
    };
    let before = last_fire();
    assert_eq!(before.0, Some(at("2026-11-22T09:01:00Z")));
    tokio::join!(ran(&wired), async {
        gate.entered().await;
        clock.advance(Duration::from_secs(60));
        let outcome = wired.tick().await.unwrap();
        assert!(outcome.fired.is_empty());
        assert_eq!(outcome.dropped.len(), 1, "the fire was rejected");
        gate.let_go.send(()).unwrap();
    });
    assert_eq!(last_fire(), before, "as if it had not fired");
    assert_eq!(wired.queue_depth(), 0);
    clock.advance(Duration::from_secs(60));
    assert_eq!(wired.tick().await.unwrap().fired.len(), 1, "the next one fires again");
    assert_eq!(last_fire().0, Some(at("2026-11-22T09:03:00Z")));
}

#[tokio::test]
async fn one_failing_phase_never_stops_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let wired = Wiring::new(every_minute("tidy", SchedulePolicy::default()))
        .clock(Arc::new(clock.clone()))
        // Beats into a directory that is not there.
        .heartbeat(dir.path().join("gone/heartbeat.json"))
        .cycle_runner(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            panic!("every time")
        })
        .wire()
        .await
        .unwrap();
    for minute in 1..=3_usize {
        clock.advance(Duration::from_secs(60));
        assert_eq!(wired.tick().await.unwrap().fired.len(), 1, "minute {minute}");
        // Twice each: a cycle that failed once is tried once more.
        ran(&wired).await;
        assert_eq!(ran(&wired).await.state, MandateState::Failed);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 6);
    wired.unwire().await;
}

#[tokio::test]
async fn dropping_the_call_does_not_drop_the_cycle() {
    let (gate, pass) = gate();
    let wired = wiring(&clock())
        .cycle_runner(move |mandate| {
            pass(&mandate.id);
            Ok(json!({"llm_calls": 1}))
        })
        .wire()
        .await
        .unwrap();
    wired.enqueue(named("m")).await.unwrap();
    tokio::select! {
        _ = wired.run_one_cycle() => panic!("it waits at the gate"),
        _ = gate.entered() => {}
    }
    gate.let_go.send(()).unwrap();
    until("the end of the cycle", || wired.active_mandate_id().is_none()).await;
    assert_eq!(wired.store().mandate("m").unwrap().state, MandateState::Succeeded);
    assert_eq!(spent(&wired).0, 1);
}

#[tokio::test]
async fn runner_may_call_the_host_on_a_current_thread_runtime_without_deadlock() {
    let wired = wiring(&clock())
        .cycle_runner_with_context(|_, host| {
            host.phase("observe")?;
            let now = host.now()?;
            let random = host.random(8)?;
            host.state_put("seen", &json!(now))?;
            host.usage(usage(1, 2, 3))?;
            Ok(json!({"status": "ok", "summary": format!("{} bytes at {now}", random.len())}))
        })
        .wire()
        .await
        .unwrap();
    wired.enqueue(named("m")).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, ran(&wired)).await.expect("no deadlock");
    assert_eq!((ended.end, ended.usage), (CycleEnd::Done, usage(1, 2, 3)));
    let cycles = wired.store().cycles("m").unwrap();
    assert_eq!(cycles[0].summary.as_deref(), Some("8 bytes at 2026-11-22 09:00:30 UTC"));
}

#[tokio::test]
async fn idle_calls_commit_nothing() {
    let wired = wiring(&clock()).wire().await.unwrap();
    wired.run_one_cycle().await.unwrap();
    let StoreStats { commits, .. } = wired.store().stats();
    for _ in 0..20 {
        wired.tick().await.unwrap();
        assert!(matches!(wired.run_one_cycle().await.unwrap(), OneCycle::Idle));
    }
    assert_eq!(wired.store().stats().commits, commits);
}
