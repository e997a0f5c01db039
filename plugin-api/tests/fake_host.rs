//! The rules that a runner's tests rely on: endings, record and replay, state, usage.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicU64, Ordering};

use kairos_plugin_api::context::method;
use kairos_plugin_api::testing::{ANY, FakeHost, survives_cuts};
use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report, Usage, code};
use serde_json::{Value, json};
use std::time::Duration;

/// Looks, asks, acts, remembers. With `stubborn` it swallows errors and says ok.
struct Worker {
    stubborn: bool,
}

impl CycleRunner for Worker {
    fn new(params: &Value) -> Result<Self, CallError> {
        Ok(Self { stubborn: params["stubborn"] == json!(true) })
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        if self.stubborn {
            let _ = ctx.llm(&LlmRequest::user("first"));
            let _ = ctx.llm(&LlmRequest::user("second"));
            ctx.usage(Usage { input_tokens: 7, ..Usage::ZERO })?;
            return Ok(Report { input_tokens: 7, ..Report::ok() });
        }
        ctx.phase("observe")?;
        let seen = ctx.tool("fs.read", json!({"path": "notes.md"}))?;
        let started = ctx.now()?;
        let dice = ctx.random(4)?;
        ctx.phase("decide")?;
        let reply = ctx.llm(&LlmRequest::user(format!("{} {} {dice:?}", mandate.goal, seen.output)))?;
        ctx.usage(Usage { output_tokens: 3, ..Usage::ZERO })?;
        let count: u64 = ctx.state_get("count")?.unwrap_or(0);
        ctx.state_put("count", &(count + 1))?;
        ctx.progress("done", Some(1.0));
        Ok(Report::ok().with_summary(format!("{} at {started}", reply.text)))
    }
}

fn script() -> FakeHost {
    FakeHost::new().tool_reply("fs.read", "text").reply("write less").state("count", 4)
}

fn worker(params: Value) -> Worker {
    Worker::new(&params).unwrap()
}

#[test]
fn a_cycle_leaves_its_steps_phases_usage_and_state() {
    let host = script();
    let report = host.run(&worker(json!({})), &Mandate::new("m", "tidy up")).unwrap();
    assert_eq!(report.summary.as_deref(), Some("write less at 2026-01-01 00:00:00 UTC"));
    let methods: Vec<String> = host.steps().into_iter().map(|step| step.method).collect();
    assert_eq!(methods, ["tool", "now", "random", "llm", "usage"]);
    assert_eq!(host.phases(), ["observe", "decide"]);
    assert_eq!(host.metered().llm_calls, 1);
    assert_eq!(host.claimed().output_tokens, 3);
    assert_eq!(host.landed_state()["count"], json!(5));
    assert_eq!(host.progress(), [("done".to_owned(), Some(1.0))]);
}

#[test]
fn a_cycle_cut_anywhere_and_replayed_ends_like_an_undisturbed_one() {
    let cuts = survives_cuts::<Worker>(&json!({}), &Mandate::new("m", "tidy up"), script);
    assert_eq!(cuts, Ok(6));
}

/// Asks something else every time.
struct Forgetful;

impl CycleRunner for Forgetful {
    fn new(_: &Value) -> Result<Self, CallError> {
        Ok(Self)
    }
    fn run_cycle(&self, _: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        for _ in 0..2 {
            ctx.llm(&LlmRequest::user(CALLS.fetch_add(1, Ordering::Relaxed).to_string()))?;
        }
        Ok(Report::ok())
    }
}

#[test]
fn a_request_that_differs_from_the_recorded_one_diverges() {
    let host = FakeHost::new().reply("a").reply("b").stop_at(method::LLM, 2);
    let mandate = Mandate::new("m", "g");
    assert_eq!(host.run(&Forgetful, &mandate).unwrap_err().code, code::STOPPED);
    let error = host.run(&Forgetful, &mandate).unwrap_err();
    assert_eq!(error.code, code::DIVERGED);
    assert_eq!(error.detail["step"], json!(1));
    let script = || FakeHost::new().reply("a").reply("b");
    assert!(survives_cuts::<Forgetful>(&json!({}), &mandate, script).is_err());
}

#[test]
fn the_answer_that_ends_an_attempt_wins_over_a_report() {
    for (code, host) in [
        (code::STOPPED, script().stop_at(method::LLM, 1)),
        (code::BUDGET_EXHAUSTED, script().budget_exhausted_at(method::LLM, 1)),
        (code::PAUSED, script().fail_at(method::LLM, 1, CallError::new(code::PAUSED, "parked"))),
    ] {
        let outcome = host.run(&worker(json!({"stubborn": true})), &Mandate::new("m", "g"));
        let error = outcome.unwrap_err();
        assert_eq!(error.code, code);
        // The claim in the report is not lost, the booking call still worked, and the second
        // LLM call never reached the host.
        assert_eq!(error.detail["report"]["input_tokens"], json!(7));
        assert_eq!(host.claimed().input_tokens, 7);
        assert_eq!(host.metered(), Usage::ZERO);
    }
}

#[test]
fn an_ended_attempt_is_continued_from_its_record() {
    let host = script().budget_exhausted_at(method::LLM, 1);
    let runner = worker(json!({}));
    let mandate = Mandate::new("m", "g");
    assert_eq!(host.run(&runner, &mandate).unwrap_err().code, code::BUDGET_EXHAUSTED);
    assert_eq!(host.steps().len(), 3);
    // The clock went on, but the recorded time is what the second attempt sees.
    host.advance(std::time::Duration::from_secs(3600));
    let report = host.run(&runner, &mandate).unwrap();
    assert_eq!(report.summary.as_deref(), Some("write less at 2026-01-01 00:00:00 UTC"));
    assert_eq!(host.landed_state()["count"], json!(5));
}

#[test]
fn the_deadline_ends_effects_and_should_stop_says_so() {
    let at = "2026-01-01T01:00:00Z".parse().unwrap();
    let host = script().at(at).deadline(at);
    assert!(host.context().should_stop());
    let error = host.run(&worker(json!({})), &Mandate::new("m", "g")).unwrap_err();
    assert_eq!(error.code, code::DEADLINE);
}

#[test]
fn a_panic_becomes_an_error_of_the_cycle() {
    /// Does not expect that a model may be unavailable.
    struct Rash;
    impl CycleRunner for Rash {
        fn new(_: &Value) -> Result<Self, CallError> {
            Ok(Self)
        }
        fn run_cycle(&self, _: &Mandate, ctx: &Context) -> Result<Report, CallError> {
            ctx.llm(&LlmRequest::user("?")).expect("a model answers");
            Ok(Report::ok())
        }
    }
    let error = FakeHost::new().run(&Rash, &Mandate::new("m", "g")).unwrap_err();
    assert_eq!(error.code, code::PANIC);
    assert!(error.message.contains("a model answers"), "{}", error.message);
    // The same panic after the host parked the cycle: parked it is.
    let parked = FakeHost::new().fail_at(method::LLM, 1, CallError::new(code::PAUSED, "parked"));
    assert_eq!(parked.run(&Rash, &Mandate::new("m", "g")).unwrap_err().code, code::PAUSED);
}

#[test]
fn a_fault_strikes_at_the_chosen_call_of_any_kind() {
    // The third call of this cycle is `now`; `phase` and the tool came before it.
    let host = script().fail_at(ANY, 3, CallError::new(code::PAUSED, "parked"));
    assert_eq!(host.run(&worker(json!({})), &Mandate::new("m", "g")).unwrap_err().code, code::PAUSED);
    assert_eq!(host.steps().len(), 1);
    let host = script().fail_at("tool:fs.read", 1, CallError::new(code::DENIED, "not that file"));
    assert_eq!(host.run(&worker(json!({})), &Mandate::new("m", "g")).unwrap_err().code, code::DENIED);
    assert_eq!(host.steps()[0].answer.as_ref().unwrap_err().code, code::DENIED);
}

#[test]
fn a_call_that_outlasts_the_deadline_is_ended_by_it() {
    let at = "2026-01-01T00:01:00Z".parse().unwrap();
    let minute = Duration::from_secs(60);
    let host = script().deadline(at).takes(method::LLM, 1, minute);
    let error = host.run(&worker(json!({})), &Mandate::new("m", "g")).unwrap_err();
    assert_eq!(error.code, code::DEADLINE);
    assert_eq!(host.metered(), Usage::ZERO);
    // The same time spent in a shorter call leaves the cycle its end.
    let host = script().deadline(at).takes(method::LLM, 1, minute / 2);
    host.run(&worker(json!({})), &Mandate::new("m", "g")).unwrap();
}

#[test]
fn a_cycle_that_is_asked_to_end_goes_on_from_its_record() {
    let host = script().cancel_at("phase", 2);
    let mandate = Mandate::new("m", "g");
    // The phase itself is answered; the effect after it is not.
    assert_eq!(host.run(&worker(json!({})), &mandate).unwrap_err().code, code::STOPPED);
    assert_eq!(host.phases(), ["observe", "decide"]);
    assert_eq!(host.run(&worker(json!({})), &mandate).unwrap().status, kairos_plugin_api::Status::Ok);
}

#[test]
fn a_crash_loses_the_outcome_and_keeps_the_record() {
    let host = script().crash_at(method::LLM, 1);
    let mandate = Mandate::new("m", "g");
    assert!(host.run(&worker(json!({})), &mandate).is_err());
    assert!(host.was_cut());
    assert_eq!(host.steps().len(), 3);
    host.run(&worker(json!({})), &mandate).unwrap();
    assert!(!host.was_cut());
    assert_eq!(host.metered().llm_calls, 1);
}

#[test]
fn usage_booked_after_the_end_of_an_attempt_leaves_no_step_in_its_way() {
    let host = script().stop_at(method::LLM, 1);
    let mandate = Mandate::new("m", "g");
    let stubborn = worker(json!({"stubborn": true}));
    assert_eq!(host.run(&stubborn, &mandate).unwrap_err().code, code::STOPPED);
    assert!(host.steps().is_empty());
    // The second attempt asks the same and is not told that it differs.
    let host = host.reply("second");
    assert_eq!(host.run(&stubborn, &mandate).unwrap().input_tokens, 7);
    assert_eq!(host.claimed().input_tokens, 14);
}

#[test]
fn the_record_reads_as_a_write_ahead_log_and_the_ledger_as_the_daemon_books() {
    let host = script();
    host.run(&worker(json!({})), &Mandate::new("m", "g")).unwrap();
    let wal = host.wal();
    let ids: Vec<&str> = wal.iter().map(|line| line["step_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["tool_001_001", "answer_001_002", "answer_001_003", "llm_001_004", "answer_001_005"]);
    assert_eq!((&wal[0]["tool"], &wal[0]["phase"]), (&json!("fs.read"), &json!("observe")));
    assert_eq!((&wal[3]["status"], &wal[3]["phase"]), (&json!("completed"), &json!("decide")));
    assert_eq!(host.booked(), Usage { llm_calls: 1, output_tokens: 3, ..Usage::ZERO });
    // A report claims totals: what was booked before is part of it.
    let host = FakeHost::new().reply("a").reply("b");
    host.run(&worker(json!({"stubborn": true})), &Mandate::new("m", "g")).unwrap();
    assert_eq!(host.booked(), Usage { llm_calls: 2, input_tokens: 7, ..Usage::ZERO });
}

#[test]
fn the_limits_of_the_daemon_hold_here_too() {
    let ctx = FakeHost::new().context();
    assert_eq!(ctx.phase("no words here").unwrap_err().code, code::INVALID);
    assert_eq!(ctx.state_put("", &1).unwrap_err().code, code::INVALID);
    assert_eq!(ctx.state_put("k", &"x".repeat(300 << 10)).unwrap_err().code, code::INVALID);
    assert_eq!(ctx.random(1025).unwrap_err().code, code::INVALID);
}

#[test]
fn what_tools_and_failed_calls_cost_is_metered_and_not_again_in_replay() {
    use kairos_plugin_api::ToolReply;
    let cost = |tokens| Usage { llm_calls: 1, input_tokens: tokens, cost_nano_usd: 5, ..Usage::ZERO };
    let reply = ToolReply { ok: true, output: json!("text") };
    let failure = CallError { detail: json!({"usage": cost(3)}), ..CallError::failed("overloaded") };
    let host = FakeHost::new().tool_metered("fs.read", reply, cost(40)).llm_reply(Err(failure));
    let mandate = Mandate::new("m", "g");
    let host = host.cancel_at("now", 1);
    assert_eq!(host.run(&worker(json!({})), &mandate).unwrap_err().code, code::STOPPED);
    assert_eq!(host.run(&worker(json!({})), &mandate).unwrap_err().code, code::FAILED);
    assert_eq!(host.steps()[0].answer.as_ref().unwrap()["usage"]["input_tokens"], 40);
    assert_eq!(host.metered(), cost(40).plus(cost(3)));
}

#[test]
fn the_time_of_a_cycle_is_over_at_the_chosen_call_and_the_next_attempt_has_its_own() {
    let mandate = Mandate::new("m", "g");
    let later = "2026-01-01T01:00:00Z".parse().unwrap();
    for set in [None, Some(later)] {
        for (call, steps) in [(method::LLM, 3), ("phase", 0), ("now", 3)] {
            let mut host = script().deadline_at(call, 1);
            if let Some(deadline) = set {
                host = host.deadline(deadline);
            }
            let ended = host.run(&worker(json!({})), &mandate).unwrap_err();
            assert_eq!((ended.code.as_str(), host.metered()), (code::DEADLINE, Usage::ZERO), "{call}");
            assert_eq!((host.steps().len(), host.context().should_stop()), (steps, true), "{call}");
            // Afresh: the tool that answered then is asked again.
            let host = host.tool_with("fs.read", |_| Ok(kairos_plugin_api::ToolReply::default()));
            host.run(&worker(json!({})), &host.next(&mandate)).unwrap();
            assert_eq!(kairos_plugin_api::context::HostCalls::deadline(&host), set, "{call}");
        }
    }
}
