//! Mandates in, requests and reports out, on a scripted host.

use super::*;
use kairos_plugin_api::code;
use kairos_plugin_api::context::method;
use kairos_plugin_api::testing::{FakeHost, survives_cuts};

fn runner(params: Value) -> CommandRunner {
    CommandRunner::new(&params).unwrap()
}

fn answer(ok: bool, output: Value) -> Result<ToolReply, CallError> {
    Ok(ToolReply { ok, output })
}

#[test]
fn a_cycle_is_one_run_and_its_answer_is_the_report() {
    let usage = Usage { llm_calls: 3, input_tokens: 20, output_tokens: 4, cost_nano_usd: 9 };
    let host = FakeHost::new().tool_answer(
        TOOL,
        answer(true, json!({"text": "\n  wrote 3 files\nmore", "usage": usage, "session": "s1"})),
    );
    let mandate = Mandate::new("m1", "tidy up").with_param("depth", 2);
    let report = host.run(&runner(json!({"command": "claude"})), &mandate).unwrap();
    assert_eq!((report.status, report.summary.as_deref()), (Status::Ok, Some("wrote 3 files")));
    assert_eq!((report.llm_calls, report.input_tokens, report.output_tokens), (3, 20, 4));
    let steps = host.steps();
    let request = &steps.iter().find(|step| step.method == method::TOOL).unwrap().request;
    assert_eq!(request["args"]["command"], "claude");
    assert_eq!(request["args"]["prompt"], "tidy up");
    assert_eq!(request["args"]["mandate"]["params"]["depth"], 2);
    assert!(request["args"]["mandate"].get("attempt").is_none());
}

#[test]
fn the_next_run_is_told_how_the_last_one_ended() {
    let host = FakeHost::new().state(LAST, json!({"summary": "half done", "session": "s1"})).tool_with(
        TOOL,
        |args| {
            let seen = format!("{} | {}", args["prompt"].as_str().unwrap(), args["mandate"][LAST]["session"]);
            answer(true, json!({ "text": seen }))
        },
    );
    let params = json!({"command": "a", "prompt": "Goal: {goal}. Before: {last} {x} {"});
    let report = host.run(&runner(params), &Mandate::new("m1", "use {last}")).unwrap();
    assert_eq!(report.summary.unwrap(), "Goal: use {last}. Before: half done {x} { | \"s1\"");
}

#[test]
fn failures_pauses_and_more_come_through() {
    let cases = [
        (
            answer(false, json!({"code": "exit", "error": "exit code 3"})),
            Status::Error,
            Some("exit: exit code 3"),
            false,
        ),
        (answer(false, json!({})), Status::Error, Some("failed"), false),
        (answer(true, json!({"report": {"status": "ok", "more": true}})), Status::Ok, None, true),
        (answer(true, json!({"report": {"status": "paused"}})), Status::Paused, None, false),
        (answer(true, json!({"text": 7})), Status::Error, Some("cannot be read"), false),
    ];
    for (reply, status, error, more) in cases {
        let host = FakeHost::new().tool_answer(TOOL, reply.clone());
        let report = host.run(&runner(json!({"command": "a"})), &Mandate::new("m1", "x")).unwrap();
        assert_eq!((report.status, report.more), (status, more), "{reply:?}");
        let told = report.error.as_deref().unwrap_or_default();
        assert!(told.contains(error.unwrap_or_default()), "{told}");
    }
}

#[test]
fn a_run_without_a_last_word_says_what_there_is_to_know_of_it() {
    let host = FakeHost::new().tool_reply(TOOL, json!({"warnings": ["no report line", "3 lines are none"]}));
    let report = host.run(&runner(json!({"command": "a"})), &Mandate::new("m1", "x")).unwrap();
    assert_eq!(
        (report.status, report.summary.unwrap().as_str()),
        (Status::Ok, "no report line; 3 lines are none")
    );
    let host = FakeHost::new().tool_reply(TOOL, json!({"text": "done", "warnings": ["odd"]}));
    let report = host.run(&runner(json!({"command": "a"})), &Mandate::new("m1", "x")).unwrap();
    assert_eq!(report.summary.unwrap(), "done");
}

#[test]
fn parameters_that_make_no_sense_are_named() {
    assert!(CommandRunner::new(&json!({"comand": "a"})).is_err());
    assert!(CommandRunner::new(&json!({"command": 7})).is_err());
    let error = FakeHost::new().run(&runner(json!({})), &Mandate::new("m1", "x")).unwrap_err();
    assert!(error.code == code::INVALID && error.message.contains("command: NAME"), "{error}");
    let mandate = Mandate::new("m1", "x").with_param("prompt", 7);
    assert!(FakeHost::new().run(&runner(json!({"command": "a"})), &mandate).is_err());
}

#[test]
fn denied_and_exhausted_end_the_cycle_with_the_hosts_word() {
    for word in [code::DENIED, code::BUDGET_EXHAUSTED] {
        let host = FakeHost::new().fail_at(method::TOOL, 1, CallError::new(word, "no"));
        let error = host.run(&runner(json!({"command": "a"})), &Mandate::new("m1", "x")).unwrap_err();
        assert_eq!(error.code, word);
    }
}

#[test]
fn a_cut_anywhere_repeats_no_run() {
    let host = || FakeHost::new().tool_reply(TOOL, json!({"text": "done"}));
    let cuts =
        survives_cuts::<CommandRunner>(&json!({"command": "a"}), &Mandate::new("m1", "x"), host).unwrap();
    assert!(cuts >= 2, "{cuts}");
}
