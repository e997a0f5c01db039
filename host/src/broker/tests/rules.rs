//! The rules of single calls: budget, divergence, turns, stops, usage, state, policy.

use std::sync::mpsc::channel;
use std::time::Duration;

use kairos_plugin_api::context::{HostCalls, method};
use kairos_plugin_api::{CallError, LlmReply, Report, Usage, code};

use super::*;
use crate::broker::llm::{LlmCall, LlmError, LlmProvider, Position, Price};
use crate::broker::stop::Patience;
use crate::domain::mandate::{CycleEnd, MandateState};
use crate::domain::schedule::MandateBounds;
use crate::store::{Limits, MandateCommand, StepState, Store};

fn code_of(answer: Answered) -> String {
    answer.unwrap_err().code
}

#[test]
fn a_budget_that_ends_in_mid_cycle_parks_it_and_keeps_what_was_paid() {
    for limit in 0..3 {
        let mut world = World::counting();
        world.limits = Limits { calls: Some(limit), ..Limits::default() };
        // The delta counts as a call too.
        let calls = [llm("one"), edit("open", "half"), llm("two"), edit("half", "done"), llm("three")];
        let services = world.services(world.claim());
        let answers = ask_all(&services, &calls).unwrap();
        let last = answers.last().unwrap().as_ref().unwrap_err();
        assert_eq!(last.code, code::BUDGET_EXHAUSTED);
        assert_eq!(last.detail["limit_kind"], "calls");
        assert_eq!(answers.len() as u64, 2 * limit + 1);
        assert_eq!(code_of(ask(&services, &calls[0])), code::BUDGET_EXHAUSTED, "the answer sticks");
        let outcome = services.outcome().unwrap();
        assert_eq!(world.finish(&services, outcome.end(), Usage::ZERO).state, MandateState::PausedBudget);
        assert_eq!(world.spent().llm_calls, limit);

        world.limits = Limits::default();
        world.store.command(ID.to_owned(), MandateCommand::Resume, world.clock.now()).wait().unwrap();
        let services = world.services(world.claim());
        let again = ask_all(&services, &calls).unwrap();
        assert!(again.iter().all(Result::is_ok), "{again:?}");
        assert_eq!(again[..answers.len() - 1], answers[..answers.len() - 1]);
        world.finish(&services, CycleEnd::Done, Usage::ZERO);
        assert_eq!((world.llm_calls(), world.text().as_str()), (3, "status: done\n"));
        assert_eq!(world.spent().llm_calls, 3);
    }
}

#[test]
fn a_reservation_covers_tokens_and_money_and_is_settled_with_the_real_figure() {
    let mut world = World::counting();
    world.limits = Limits { tokens: Some(40), ..Limits::default() };
    let services = world.services(world.claim());
    assert_eq!(code_of(ask(&services, &llm("hello"))), code::BUDGET_EXHAUSTED, "50 tokens could come back");
    assert_eq!(world.spent(), Usage::ZERO);
    let mut world = World::counting();
    world.limits = Limits { tokens: Some(1000), nano_usd: Some(1_000_000_000), calls: None };
    let services = world.services(world.claim());
    let reply = ask(&services, &llm("hello")).unwrap();
    let real = Usage { llm_calls: 1, input_tokens: 10, output_tokens: 2, cost_nano_usd: 60_000 };
    assert_eq!(reply["usage"], json!(real));
    assert_eq!(services.metered(), real);
    world.finish(&services, CycleEnd::Done, Usage::ZERO);
    assert_eq!(world.spent(), real);
}

#[test]
fn another_request_at_a_recorded_step_is_never_guessed() {
    let recorded =
        [llm("one"), (method::NOW, json!({})), (method::USAGE, json!({"llm_calls": 1})), edit("open", "x")];
    let others = [
        [llm("other"), edit("open", "x"), (method::NOW, json!({}))],
        [llm("one"), (method::RANDOM, json!({"bytes": 1})), (method::USAGE, json!({"llm_calls": 1}))],
        [(method::NOW, json!({})), (method::USAGE, json!({"llm_calls": 2})), llm("one")],
        [edit("open", "y"), llm("one"), tool("fs.read", json!({"path": "a.md"}))],
    ];
    for (at, others) in others.iter().enumerate() {
        for other in others {
            let mut world = World::counting();
            let first = world.services(world.claim());
            ask_all(&first, &recorded).unwrap();
            let claimed = world.interrupt(&first);
            let services = world.services(claimed);
            let mut calls = recorded.to_vec();
            // The first others differ at step 1, and so on; equal ones are skipped.
            if calls[at] == *other {
                continue;
            }
            calls[at] = other.clone();
            let answers = ask_all(&services, &calls).unwrap();
            let error = answers.last().unwrap().as_ref().unwrap_err();
            assert_eq!((answers.len(), error.code.as_str()), (at + 1, code::DIVERGED), "{other:?}");
            assert_eq!(error.detail["step"], at + 1);
            let outcome = services.outcome().unwrap();
            assert_eq!((outcome.end(), outcome.reason()), (CycleEnd::Review, Some("diverged")));
            assert_eq!(world.finish(&services, outcome.end(), Usage::ZERO).state, MandateState::Review);
            assert_eq!(world.deeds.count(), 2, "nothing was done again");
        }
    }
}

#[test]
fn refusals_are_recorded_and_stay_what_they_were() {
    let mut world = World::counting();
    world.without_tools = true;
    let services = world.services(world.claim());
    assert_eq!(code_of(ask(&services, &edit("open", "x"))), code::INVALID);
    let claimed = world.interrupt(&services);
    world.without_tools = false;
    let services = world.services(claimed);
    assert_eq!(code_of(ask(&services, &edit("open", "x"))), code::INVALID, "as the cycle saw it");
    assert!(ask(&services, &edit("open", "x")).is_ok(), "a new call has the new tools");
}

#[test]
fn policy_and_paths_hold_whatever_the_runner_asks() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "open").unwrap();
    let bounds =
        MandateBounds { allowed_actions: Some(vec!["code_edit".into()]), ..MandateBounds::default() };
    let world = World::new(json!([]), bounds);
    std::os::unix::fs::symlink(outside.path(), world.path("out")).unwrap();
    std::fs::create_dir_all(world.path(".kairos/config")).unwrap();
    std::os::unix::fs::symlink(".kairos/config", world.path("conf")).unwrap();
    std::fs::write(world.path(".kairos/config/x"), "open").unwrap();
    let services = world.services(world.claim());
    let absolute = outside.path().join("secret");
    let cases = [
        ("out/secret", code::INVALID),
        (absolute.to_str().unwrap(), code::INVALID),
        ("../x", code::INVALID),
        ("/proc/self/environ", code::INVALID),
        (".kairos/config/x", code::DENIED),
        ("./.kairos//config/x", code::DENIED),
        ("conf/x", code::DENIED),
        (".git/config", code::DENIED),
    ];
    for (path, word) in cases {
        let args = json!({"path": path, "old": "open", "new": "owned"});
        assert_eq!(code_of(ask(&services, &tool("fs.edit", args))), word, "{path}");
    }
    ask(&services, &phase("observe")).unwrap();
    assert_eq!(code_of(ask(&services, &edit("open", "x"))), code::DENIED, "observing only looks");
    assert_eq!(world.deeds.count(), 0);
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "open");
    assert_eq!(std::fs::read_to_string(world.path(".kairos/config/x")).unwrap(), "open");
}

#[test]
fn the_llm_answers_are_clear_when_there_is_nobody_to_ask() {
    let world =
        World::new(json!([{"error": "overloaded", "usage": {"input_tokens": 3}}]), MandateBounds::default());
    let services = world.services(world.claim());
    let named = |name: &str| (method::LLM, json!({"provider": name, "messages": []}));
    let error = ask(&services, &named("claude")).unwrap_err();
    assert!(
        error.code == code::INVALID && error.message.contains("serves only kind \"scripted\""),
        "{error}"
    );
    assert!(ask(&services, &named("other")).unwrap_err().message.contains("[canned, claude]"));
    assert_eq!(code_of(ask(&services, &(method::LLM, json!({"messages": 7})))), code::INVALID);
    let failed = ask(&services, &llm("x")).unwrap_err();
    assert_eq!((failed.code.as_str(), failed.message.as_str()), (code::FAILED, "overloaded"));
    assert_eq!(services.metered().input_tokens, 3, "what a failed call cost is metered");
    world.finish(&services, CycleEnd::Error, Usage::ZERO);
    assert_eq!(world.spent().input_tokens, 3);
}

/// A model that answers when it is told to.
struct Held(std::sync::Mutex<(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>)>);

impl LlmProvider for Held {
    fn estimate(&self, _call: &LlmCall<'_>, _position: &Position) -> Usage {
        Usage { llm_calls: 1, ..Usage::ZERO }
    }
    fn complete(
        &self,
        _call: &LlmCall<'_>,
        _position: &mut Position,
        _patience: &Patience<'_>,
    ) -> Result<LlmReply, LlmError> {
        let held = self.0.lock().unwrap();
        held.0.send(()).unwrap();
        held.1.recv().unwrap();
        Ok(LlmReply::default())
    }
}

#[test]
fn a_second_effect_at_the_same_time_is_told_that_one_is_under_way() {
    let world = World::counting();
    let claimed = world.claim();
    let ((inside, entered), (leave, left)) = (channel(), channel());
    let mut broker = Arc::into_inner(world.broker()).unwrap();
    broker.providers.add("held", Arc::new(Held(std::sync::Mutex::new((inside, left)))), Price::default());
    let services = Arc::new(broker).cycle(claimed, StopSignal::new(), None);
    let other = Arc::clone(&services);
    let held = (method::LLM, json!({"provider": "held", "messages": []}));
    let asking = std::thread::spawn(move || ask(&other, &held));
    entered.recv_timeout(Duration::from_secs(10)).unwrap();
    for call in [llm("x"), edit("open", "x"), (method::NOW, json!({})), (method::USAGE, json!({}))] {
        assert_eq!(code_of(ask(&services, &call)), code::BUSY);
    }
    ask(&services, &(method::STATE_PUT, json!({"key": "k", "value": 1}))).unwrap();
    leave.send(()).unwrap();
    asking.join().unwrap().unwrap();
    assert!(ask(&services, &edit("open", "x")).is_ok(), "the turn is free again");
    world.finish(&services, CycleEnd::Done, Usage::ZERO);
    assert_eq!(world.store.steps(ID).unwrap().len(), 2, "busy is not recorded");
}

#[test]
fn a_stop_gives_up_a_waiting_call_and_the_next_attempt_makes_it() {
    let script = json!([{"text": "late", "delay_ms": 3_600_000, "usage": {"input_tokens": 1}}]);
    let mut world = World::new(script, MandateBounds::default());
    let services = world.services(world.claim());
    let (stop, other) = (Arc::clone(&world.stop), Arc::clone(&services));
    let asking = std::thread::spawn(move || ask(&other, &llm("x")));
    stop.stop();
    assert_eq!(code_of(asking.join().unwrap()), code::STOPPED);
    assert!(services.should_stop());
    assert_eq!(code_of(ask(&services, &edit("open", "x"))), code::STOPPED);
    assert!(matches!(services.outcome(), Some(Imposed::Stopped)));
    // Usage that the runner books on its way out counts, and is no part of the record.
    ask(&services, &(method::USAGE, json!({"llm_calls": 1}))).unwrap();
    let claimed = world.interrupt(&services);
    assert!(claimed.steps.len() <= 1 && claimed.steps.iter().all(|step| step.state == StepState::Executing));
    world.script = json!([{"text": "late", "usage": {"input_tokens": 1}}]);
    let services = world.services(claimed);
    assert_eq!(ask(&services, &llm("x")).unwrap()["text"], "late");
    world.finish(&services, CycleEnd::Done, Usage::ZERO);
    assert_eq!(
        world.spent(),
        Usage { llm_calls: 2, input_tokens: 1, output_tokens: 0, cost_nano_usd: 3_000 }
    );
}

#[test]
fn a_deadline_ends_the_attempt_and_is_kept_on_the_side_of_the_clock_that_nobody_sets() {
    let world = World::counting();
    let deadline = world.clock.now() + chrono::TimeDelta::seconds(10);
    let services = world.broker().cycle(world.claim(), StopSignal::new(), Some(deadline));
    world.clock.step_wall(deadline + chrono::TimeDelta::hours(1));
    assert!(!services.should_stop());
    ask(&services, &llm("x")).unwrap();
    world.clock.advance(Duration::from_secs(10));
    assert!(services.should_stop());
    assert_eq!(HostCalls::deadline(&*services), Some(deadline));
    assert_eq!(code_of(ask(&services, &llm("y"))), code::DEADLINE);
    let outcome = services.outcome().unwrap();
    assert_eq!((outcome.end(), outcome.reason()), (CycleEnd::Error, Some("deadline")));
}

#[test]
fn what_a_report_claims_is_booked_beyond_what_was_metered_and_noted() {
    let world = World::counting();
    let services = world.services(world.claim());
    ask(&services, &llm("x")).unwrap();
    ask(&services, &(method::USAGE, json!({"llm_calls": 2, "input_tokens": 100}))).unwrap();
    let claims = |llm_calls, input_tokens, output_tokens| {
        let report = Report { llm_calls, input_tokens, output_tokens, ..Report::ok() };
        let claimed = services.claimed_beyond(&report);
        (claimed.llm_calls, claimed.input_tokens, claimed.output_tokens)
    };
    // Metered: 1 call, 10 in, 2 out. Noted: 2 calls, 100 in.
    assert_eq!(claims(0, 0, 0), (0, 0, 0));
    assert_eq!(claims(3, 110, 2), (0, 0, 0));
    assert_eq!(claims(7, 111, 5), (4, 1, 3));
    let report = Report { llm_calls: 7, ..Report::ok() };
    let finished = world.finish(&services, CycleEnd::Done, services.claimed_beyond(&report));
    assert_eq!((finished.usage.llm_calls, finished.usage.input_tokens), (7, 110));
    assert_eq!(world.spent().llm_calls, 7);
}

#[test]
fn state_is_that_of_the_start_plus_own_puts_and_lands_with_a_good_end() {
    let mut world = World::counting();
    let get = |services: &CycleServices| {
        ask(services, &(method::STATE_GET, json!({"key": "k"}))).unwrap()["value"].clone()
    };
    let put = |services: &CycleServices, value: Value| {
        ask(services, &(method::STATE_PUT, json!({"key": "k", "value": value})))
    };
    let services = world.services(world.claim());
    assert_eq!(get(&services), Value::Null);
    put(&services, json!({"a": 1})).unwrap();
    assert_eq!(get(&services), json!({"a": 1}));
    let claimed = world.interrupt(&services);
    let services = world.services(claimed);
    assert_eq!(get(&services), Value::Null, "nothing landed with the interrupted attempt");
    put(&services, json!(2)).unwrap();
    assert_eq!(code_of(put(&services, json!("x".repeat(300 << 10)))), code::INVALID);
    assert_eq!(code_of(ask(&services, &(method::STATE_PUT, json!({"key": "", "value": 1})))), code::INVALID);
    for n in 0..10 {
        let big = json!({"key": format!("k{n}"), "value": "x".repeat(200 << 10)});
        let _ = ask(&services, &(method::STATE_PUT, big));
    }
    let kept: usize = services.state_puts().values().map(|value| value.to_string().len()).sum();
    assert!(kept <= 1 << 20, "{kept}");
    assert_eq!(services.state_puts()["k"], json!(2));
}

#[test]
fn calls_that_make_no_sense_are_answered_and_change_nothing() {
    let world = World::counting();
    let services = world.services(world.claim());
    let cases: [(&str, &[u8]); 6] = [
        ("nonsense", b"{}"),
        (method::LLM, b"not json"),
        (method::PHASE, b"{}"),
        (method::PHASE, b"{\"name\": \"a b\"}"),
        (method::RANDOM, b"{\"bytes\": 1025}"),
        (method::STATE_GET, b"[]"),
    ];
    for (call, request) in cases {
        let error = services.call(call, request).unwrap_err();
        assert_eq!(error.code, code::INVALID, "{call}: {error}");
    }
    let huge = vec![b' '; 9 << 20];
    assert!(services.call(method::LLM, &huge).is_err());
    assert_eq!(
        ask(&services, &(method::RANDOM, json!({"bytes": 1024}))).unwrap()["hex"].as_str().unwrap().len(),
        2048
    );
    ask(&services, &(method::PROGRESS, json!({"message": "x".repeat(9000), "fraction": 7}))).unwrap();
    let progress = services.seen().progress.unwrap();
    assert_eq!((progress.message.len(), progress.fraction), (500, Some(1.0)));
    assert!(services.outcome().is_none());
}

#[test]
fn a_proposal_is_said_to_be_unsupported_and_the_cycle_goes_on() {
    let mut world = World::counting();
    let services = world.services(world.claim());
    let propose = (method::PROPOSE, json!({"what": "more"}));
    let error = ask(&services, &propose).unwrap_err();
    assert_eq!(error.code, code::UNSUPPORTED);
    assert!(error.message.contains("no approvals") && !error.ends_attempt(), "{error}");
    ask(&services, &llm("without, then")).unwrap();
    assert!(services.outcome().is_none());
    // Recorded: an attempt under a newer daemon sees what this one saw.
    let again = world.interrupt(&services);
    let services = world.services(again);
    assert_eq!(ask(&services, &propose).unwrap_err(), error);
    ask(&services, &llm("without, then")).unwrap();
    assert_eq!(world.llm_calls(), 1);
}

#[test]
fn a_store_that_is_gone_ends_the_attempt() {
    let world = World::counting();
    let services = world.services(world.claim());
    ask(&services, &llm("x")).unwrap();
    world.store.crash(None).unwrap();
    let error: CallError = ask(&services, &llm("y")).unwrap_err();
    assert_eq!(error.code, code::STOPPED);
    let outcome = services.outcome().unwrap();
    assert_eq!((outcome.end(), outcome.reason()), (CycleEnd::Interrupted, Some("store")));
    assert_eq!(world.llm_calls(), 1, "nothing is done that cannot be recorded");
}
