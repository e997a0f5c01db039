//! The rules that a runner's tests rely on: endings, record and replay, state, usage.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicU64, Ordering};

use kairos_plugin_api::context::method;
use kairos_plugin_api::testing::{FakeHost, survives_cuts};
use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report, Usage, code};
use serde_json::{Value, json};

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
    assert_eq!(error.detail["step"], json!(0));
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
