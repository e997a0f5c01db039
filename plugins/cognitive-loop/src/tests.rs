//! The loop against a scripted host.

use kairos_plugin_api::testing::{FakeHost, survives_cuts};
use kairos_plugin_api::{LlmReply, Status, code};

use super::*;

const EDIT: &str =
    r#"{"tool": "fs.edit", "args": {"path": "a.md", "old": "x", "new": "y"}, "reason": "asked"}"#;
const REFLECTION: &str = r#"{"summary": "x became y", "more": true, "lesson": "x is gone"}"#;

fn mandate() -> Mandate {
    Mandate::new("m1", "make x a y").with_param("files", json!(["a.md"]))
}

fn runner() -> CognitiveLoop {
    CognitiveLoop::new(&Value::Null).unwrap()
}

fn said(text: &str, input_tokens: u64, output_tokens: u64) -> Result<LlmReply, CallError> {
    let usage = Usage { llm_calls: 1, input_tokens, output_tokens, cost_nano_usd: 0 };
    Ok(LlmReply { text: text.to_owned(), usage, ..LlmReply::default() })
}

/// A host that observes, is asked three times and edits.
fn host() -> FakeHost {
    FakeHost::new()
        .tool_reply("fs.read", json!({"path": "a.md", "content": "x", "sha256": "s"}))
        .llm_reply(said(r#"{"situation": "there is an x", "facts": ["one"]}"#, 10, 1))
        .llm_reply(said(EDIT, 20, 2))
        .tool_reply("fs.edit", json!({"path": "a.md", "replacements": 1}))
        .llm_reply(said(REFLECTION, 30, 3))
}

/// The host with other replies to orient, decide and reflect.
fn replying(replies: [&str; 3]) -> FakeHost {
    let host = FakeHost::new().tool_reply("fs.read", json!({"content": "x"}));
    let host = replies.into_iter().fold(host, FakeHost::reply);
    host.tool_reply("fs.edit", json!({}))
}

fn prompts(host: &FakeHost) -> Vec<String> {
    let steps = host.steps();
    let asked = steps.iter().filter(|step| step.method == "llm");
    asked.map(|step| step.request["messages"][0]["content"].as_str().unwrap().to_owned()).collect()
}

fn tools(host: &FakeHost) -> Vec<String> {
    let steps = host.steps();
    let called = steps.iter().filter(|step| step.method == "tool");
    called.map(|step| step.request["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_cycle_goes_through_its_five_phases_and_reports_what_it_used() {
    let host = host();
    let report = host.run(&runner(), &mandate()).unwrap();
    assert_eq!(host.phases(), ["observe", "orient", "decide", "act", "reflect"]);
    assert_eq!(tools(&host), ["fs.read", "fs.edit"]);
    assert_eq!((report.llm_calls, report.input_tokens, report.output_tokens), (3, 60, 6));
    assert_eq!((report.status, report.more), (Status::Ok, true));
    assert_eq!(report.summary.as_deref(), Some("x became y"));
    assert_eq!(host.landed_state()["memory"], json!(["cycle 1: x is gone"]));
    let prompts = prompts(&host);
    assert!(prompts[0].contains("Goal: make x a y") && prompts[0].contains("<observation"), "{}", prompts[0]);
    assert!(prompts[1].contains("there is an x\n- one"), "{}", prompts[1]);
    assert!(prompts[2].contains("\"replacements\":1"), "{}", prompts[2]);
    assert!(prompts.iter().all(|prompt| !prompt.contains("{{")), "every place is filled");
}

#[test]
fn a_cycle_that_is_cut_anywhere_ends_the_same() {
    let cuts = survives_cuts::<CognitiveLoop>(&Value::Null, &mandate(), host).unwrap();
    assert_eq!(cuts, 6);
}

#[test]
fn memory_reaches_the_next_cycle_and_stays_small() {
    let old: Vec<String> = (0..20).map(|n| format!("lesson {n}")).collect();
    let host = host().state("memory", json!(old));
    host.run(&runner(), &mandate()).unwrap();
    assert!(prompts(&host)[0].contains("lesson 19"));
    let kept = host.landed_state()["memory"].clone();
    assert_eq!(kept.as_array().unwrap().len(), MEMORY_MAX);
    assert_eq!(kept[MEMORY_MAX - 1], "cycle 1: x is gone");
    let odd = replying(["{}", EDIT, REFLECTION]).state("memory", json!({"v": 1}));
    assert!(odd.run(&runner(), &mandate()).is_ok(), "state of another form is no reason to fail");
}

#[test]
fn replies_in_fences_and_between_words_are_understood() {
    let wrapped = [
        format!("```json\n{EDIT}\n```"),
        format!("```\n{EDIT}\n```\nDone."),
        format!("I think so: {EDIT} and that is all."),
        format!("\n\n  {EDIT}"),
    ];
    for reply in wrapped {
        let host = replying(["{}", &reply, REFLECTION]);
        host.run(&runner(), &mandate()).unwrap();
        assert_eq!(tools(&host), ["fs.read", "fs.edit"], "{reply}");
    }
}

#[test]
fn garbage_decides_nothing_and_says_why() {
    let deep = "[".repeat(100_000);
    let huge = format!("{{\"tool\": \"fs.edit\", \"args\": {{\"path\": \"{}\"}}}}", "x".repeat(1 << 20));
    let cases = [
        "",
        "no",
        "{",
        "}{",
        "null",
        "[]",
        "7",
        "```",
        "``````",
        "{\"tool\": 7}",
        "{\"tool\": \"\"}",
        "{}",
        "{\"tool\": \"fs.edit\"}",
        "{\"tool\": \"fs.edit\", \"args\": \"rm\"}",
        "\u{0}\u{1}",
        &deep,
        &huge,
    ];
    for garbage in cases {
        let host = replying([garbage, garbage, garbage]);
        let report = host.run(&runner(), &mandate()).unwrap();
        assert_eq!(tools(&host), ["fs.read"], "{garbage:.40}");
        assert_eq!((report.status, report.more), (Status::Ok, false));
        let summary = report.summary.unwrap();
        assert!(summary.starts_with("noop: the decision could not be read"), "{garbage:.40}: {summary}");
        assert!(prompts(&host).iter().all(|prompt| prompt.len() < 100_000), "{garbage:.40}");
    }
}

#[test]
fn a_decided_noop_keeps_its_reason() {
    for word in [r#"{"tool": "noop", "reason": "all done"}"#, r#"{"action": "noop", "reason": "all done"}"#] {
        let host = replying(["{}", word, "unreadable"]);
        let report = host.run(&runner(), &mandate()).unwrap();
        assert_eq!(report.summary.as_deref(), Some("noop: all done"));
    }
}

#[test]
fn denied_and_failing_tools_are_reflected_on_and_shown() {
    let denied = || Err(CallError::new(code::DENIED, "fs.edit is not among the mandate's allowed_actions"));
    let no = || Ok(ToolReply { ok: false, output: json!({"code": "no_match", "error": "no such text"}) });
    for (answer, words) in [(denied(), "denied: fs.edit is not"), (no(), "no such text")] {
        let host = FakeHost::new().tool_answer("fs.read", denied()).reply("{}").reply(EDIT);
        let host = host.tool_answer("fs.edit", answer).reply(REFLECTION);
        let report = host.run(&runner(), &mandate()).unwrap();
        assert_eq!(report.status, Status::Ok);
        let summary = report.summary.unwrap();
        assert!(summary.contains("[act failed:") && summary.contains(words), "{summary}");
        let prompts = prompts(&host);
        assert!(prompts[0].contains("(not seen: denied"), "{}", prompts[0]);
        assert!(prompts[2].contains(words), "{}", prompts[2]);
    }
}

#[test]
fn budget_that_ends_at_any_call_ends_the_attempt_and_the_cycle_goes_on_later() {
    for nth in 1..=3 {
        let host = host().budget_exhausted_at("llm", nth);
        let error = host.run(&runner(), &mandate()).unwrap_err();
        assert_eq!(error.code, code::BUDGET_EXHAUSTED, "call {nth}");
        let kept = host.steps().len();
        let report = host.run(&runner(), &mandate()).unwrap();
        assert_eq!(report.llm_calls, 3);
        assert_eq!(host.metered().llm_calls, 3, "no call is made twice, cut at {nth}");
        assert_eq!(host.steps().len(), 5, "{kept} steps were replayed");
    }
}

#[test]
fn a_stop_before_any_phase_ends_cleanly_and_is_resumed() {
    for phase in 1..=5 {
        let host = host().stop_at("phase", phase);
        assert_eq!(host.run(&runner(), &mandate()).unwrap_err().code, code::STOPPED, "phase {phase}");
        assert!(host.run(&runner(), &mandate()).unwrap().more);
        assert_eq!(host.metered().llm_calls, 3);
    }
    for (method, nth) in [("tool", 1), ("llm", 1), ("llm", 2), ("tool", 2), ("llm", 3)] {
        let host = host().stop_at(method, nth);
        assert_eq!(host.run(&runner(), &mandate()).unwrap_err().code, code::STOPPED, "{method} {nth}");
        assert!(host.run(&runner(), &mandate()).is_ok());
    }
}

#[test]
fn a_model_that_fails_fails_the_cycle() {
    let host =
        FakeHost::new().tool_reply("fs.read", json!({})).llm_reply(Err(CallError::failed("overloaded")));
    assert_eq!(host.run(&runner(), &mandate()).unwrap_err().message, "overloaded");
}

#[test]
fn observations_are_bounded_and_never_expand_templates() {
    let mut mandate = mandate();
    mandate.params.insert("files".into(), json!((0..100).map(|n| format!("f{n}")).collect::<Vec<_>>()));
    let host = FakeHost::new()
        .tool_with("fs.read", |_| {
            Ok(ToolReply { ok: true, output: json!({"content": "{{goal}} é".repeat(10_000)}) })
        })
        .llm_with(|_| said("{}", 1, 1));
    host.run(&runner(), &mandate).unwrap();
    let prompts = prompts(&host);
    assert!(prompts[0].len() < OBSERVATIONS_MAX + 4096, "{}", prompts[0].len());
    assert!(prompts[0].contains("{{goal}}"), "observed text stays as it is");
}

#[test]
fn settings_come_from_the_mandate_before_the_configuration() {
    let params = json!({"files": ["default.md"], "provider": "canned", "model": "small"});
    let runner = CognitiveLoop::new(&params).unwrap();
    let host = host();
    host.run(&runner, &mandate().with_param("model", "large")).unwrap();
    let steps = host.steps();
    assert_eq!(steps[0].request["args"]["path"], "a.md");
    assert_eq!(
        (&steps[1].request["provider"], &steps[1].request["model"]),
        (&json!("canned"), &json!("large"))
    );
    let look =
        Mandate::new("m", "g").with_param("observe", json!([{"tool": "fs.read", "args": {"path": "b"}}]));
    let other = self::host();
    other.run(&runner, &look).unwrap();
    assert_eq!(other.steps()[0].request["args"]["path"], "b");
    assert!(CognitiveLoop::new(&json!({"file": "x"})).is_err(), "a mistyped key is told");
    let wrong = Mandate::new("m", "g").with_param("files", 7);
    assert_eq!(self::host().run(&runner, &wrong).unwrap_err().code, code::INVALID);
}
