//! What a script promises: order, matching, coming round, and replay.

use serde_json::json;

use super::super::{ProviderKind, Providers};
use super::*;
use crate::broker::stop::StopSignal;
use crate::sys::clock::SystemClock;

fn load(value: Value) -> Result<Scripted, ScriptError> {
    let file = Some("replies.yml".into());
    let source = ScriptSource { file, value, lines: vec![2, 5] };
    let kind = ProviderKind::Scripted(source.clone());
    let spec = ProviderSpec { name: "canned".into(), kind, model: None, max_tokens: None, price: None };
    Scripted::new(&spec, &source)
}

fn script(value: Value) -> Scripted {
    load(value).unwrap()
}

/// Asks the script in one cycle: (phase, prompt) each; gives texts or error messages.
fn ask(script: &Scripted, position: &mut Position, asked: &[(&str, &str)]) -> Vec<String> {
    let (stop, clock) = (StopSignal::new(), SystemClock::default());
    let patience = Patience::new(&stop, &clock, None);
    asked
        .iter()
        .map(|(phase, prompt)| {
            let request = LlmRequest::user(*prompt);
            let call = LlmCall { request: &request, phase: Some(phase), cycle: 1 };
            let most = script.estimate(&call, position);
            match script.complete(&call, position, &patience) {
                Ok(reply) => {
                    assert_eq!(most.max(reply.usage), most, "the reservation covers the usage");
                    reply.text
                }
                Err(error) => error.to_string(),
            }
        })
        .collect()
}

#[test]
fn replies_come_in_order_and_run_out() {
    let script = script(json!([{"text": "a"}, {"text": "b"}]));
    let got = ask(&script, &mut Position::default(), &[("orient", ""), ("decide", ""), ("reflect", "")]);
    assert_eq!(got[..2], ["a", "b"]);
    assert!(got[2].contains("no reply left for call 3"), "{}", got[2]);
}

#[test]
fn replies_come_round_when_the_script_says_so() {
    let script = script(json!({"cycle": true, "replies": [{"text": "a"}, {"text": "b"}]}));
    let asked = [("x", ""); 5];
    assert_eq!(ask(&script, &mut Position::default(), &asked), ["a", "b", "a", "b", "a"]);
}

#[test]
fn phase_and_content_choose_among_replies() {
    let script = script(json!({"cycle": true, "replies": [
        {"match": {"phase": "decide", "contains": "status: draft"}, "json": {"action": "finish"}},
        {"match": {"phase": "decide", "contains": ["status: done", "goal"]}, "json": {"action": "reopen"}},
        {"match": {"phase": "reflect"}, "text": "fine"},
        {"match": {"cycle": 2}, "text": "never"},
    ]}));
    let asked =
        [("decide", "goal, status: done"), ("reflect", ""), ("decide", "status: draft"), ("orient", "")];
    let got = ask(&script, &mut Position::default(), &asked);
    assert_eq!(got[..3], [r#"{"action":"reopen"}"#, "fine", r#"{"action":"finish"}"#]);
    assert!(got[3].contains("no reply left"));
}

#[test]
fn replayed_calls_lead_to_the_same_position() {
    let script = script(json!({"cycle": true, "replies": [
        {"text": "a"}, {"match": {"phase": "decide"}, "text": "b"}, {"text": "c"},
    ]}));
    let asked = [("orient", ""), ("decide", ""), ("decide", ""), ("reflect", "")];
    let mut lived = Position::default();
    let whole = ask(&script, &mut lived, &asked);
    for cut in 0..asked.len() {
        let mut position = Position::default();
        for (phase, prompt) in &asked[..cut] {
            let request = LlmRequest::user(*prompt);
            script.replayed(&LlmCall { request: &request, phase: Some(phase), cycle: 1 }, &mut position);
        }
        assert_eq!(ask(&script, &mut position, &asked[cut..]), whole[cut..], "cut at {cut}");
        assert_eq!(position, lived);
    }
}

#[test]
fn scripted_errors_cost_what_they_say_and_delays_end_with_a_stop() {
    let script = script(json!([
        {"error": "overloaded", "usage": {"input_tokens": 7}}, {"text": "late", "delay_ms": 3_600_000},
    ]));
    let (stop, clock) = (StopSignal::new(), SystemClock::default());
    let patience = Patience::new(&stop, &clock, None);
    let request = LlmRequest::user("x");
    let call = LlmCall { request: &request, phase: None, cycle: 1 };
    let mut position = Position::default();
    let usage = Usage { llm_calls: 1, input_tokens: 7, ..Usage::ZERO };
    let failed = script.complete(&call, &mut position, &patience);
    assert_eq!(failed, Err(LlmError::Failed { message: "overloaded".into(), usage }));
    stop.stop();
    let given_up = script.complete(&call, &mut position, &patience);
    assert_eq!(given_up, Err(LlmError::Interrupted { why: Interrupt::Stopped, usage: Some(Usage::ZERO) }));
    assert_eq!(position.used, [0], "a call that was given up uses up no reply");
}

#[test]
fn bad_scripts_name_file_and_line() {
    let cases = [
        (json!([{"text": "a"}, {"txt": "b"}]), "replies.yml:5: ", "replies[1]: unknown field `txt`"),
        (json!([{"text": "a", "json": {}}]), "replies.yml:2: ", "give one of"),
        (json!([{}]), "replies.yml:2: ", "give one of"),
        (json!({"cycles": true, "replies": []}), "replies.yml: ", "unknown field `cycles`"),
        (json!([{"text": "a", "delay_ms": -1}]), "replies.yml:2: ", "u64"),
        (json!(7), "replies.yml: ", "invalid type"),
        (Value::Null, "replies.yml: ", "invalid type"),
    ];
    for (value, place, words) in cases {
        let error = load(value.clone()).unwrap_err().to_string();
        assert!(error.starts_with(place), "{value}: {error}");
        assert!(error.contains(words), "{value}: {error}");
    }
}

#[test]
fn a_provider_that_is_not_there_or_not_served_is_a_clear_answer() {
    let source = ScriptSource { value: json!([{"text": "a"}]), ..ScriptSource::default() };
    let spec = |name: &str, kind| ProviderSpec {
        name: name.into(),
        kind,
        model: None,
        max_tokens: None,
        price: super::super::Price::from_usd_per_mtok(3.0, 15.0),
    };
    let specs = [
        spec("canned", ProviderKind::Scripted(source)),
        spec("claude", ProviderKind::Unserved("anthropic".into())),
    ];
    let providers = Providers::build(Some("canned".into()), &specs).unwrap();
    assert_eq!(&*providers.pick(None).unwrap().name, "canned");
    let message = |name| providers.pick(Some(name)).err().unwrap().to_string();
    assert!(message("claude").contains("serves only kind \"scripted\""));
    assert!(message("other").contains("configured: [canned, claude]"));
    assert!(Providers::default().pick(None).err().unwrap().to_string().contains("llm.default"));
    // Money is filled in for what is reserved and for what is used.
    let request = LlmRequest::user("x".repeat(400));
    let call = LlmCall { request: &request, phase: None, cycle: 1 };
    let priced = providers.pick(None).unwrap();
    let most = priced.estimate(&call, &Position::default());
    assert_eq!(most.cost_nano_usd, most.input_tokens * 3000 + 2048 * 15000);
    let (stop, clock) = (StopSignal::new(), SystemClock::default());
    let patience = Patience::new(&stop, &clock, None);
    let used = priced.complete(&call, &mut Position::default(), &patience).unwrap().usage;
    assert_eq!(used.cost_nano_usd, used.input_tokens * 3000 + used.output_tokens * 15000);
}
