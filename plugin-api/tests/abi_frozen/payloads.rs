//! The payloads in words: which members a JSON object may have, of what kind, which must be there,
//! and what it means when one is not. Found out by reading, not by looking at the source.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::manifest::{Manifest, SECTION};
use kairos_plugin_api::{
    CallError, Context, HostCalls, LlmMessage, LlmReply, LlmRequest, Mandate, PAYLOAD_SCHEMA, Report, State,
    Status, ToolCall, ToolReply, Usage, abi, c_abi, code,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Describes all that crosses as JSON or by name.
pub fn describe() -> String {
    let mut text = String::new();
    let usage = Usage { llm_calls: 1, input_tokens: 2, output_tokens: 3, cost_nano_usd: 4 };
    let message = LlmMessage { role: "user".to_owned(), content: "c".to_owned() };
    object(&mut text, "Usage", &usage);
    object(&mut text, "LlmMessage", &message);
    object(
        &mut text,
        "LlmRequest",
        &LlmRequest {
            provider: some(),
            model: some(),
            system: some(),
            messages: vec![message],
            max_tokens: Some(9),
            response_schema: Some(json!({"type": "object"})),
        },
    );
    let reply = LlmReply { text: "t".to_owned(), model: "m".to_owned(), stop_reason: some(), usage };
    object(&mut text, "LlmReply", &reply);
    object(&mut text, "ToolCall", &ToolCall { name: "n".to_owned(), args: json!({"a": 1}) });
    object(&mut text, "ToolReply", &ToolReply { ok: true, output: json!({"a": 1}) });
    object(
        &mut text,
        "CallError",
        &CallError { code: "c".to_owned(), message: "m".to_owned(), detail: json!({"a": 1}) },
    );
    object(&mut text, "State", &State { schema: "s/1".to_owned(), data: json!({"a": 1}) });
    object(
        &mut text,
        "Setup",
        &Setup { schema: PAYLOAD_SCHEMA, params: json!({"a": 1}), log_level: "debug".to_owned() },
    );
    object(
        &mut text,
        "Report",
        &Report {
            status: Status::Ok,
            llm_calls: 1,
            input_tokens: 2,
            output_tokens: 3,
            more: true,
            summary: some(),
            error: some(),
        },
    );
    object(&mut text, "Mandate", &mandate());
    object(&mut text, "Manifest", &manifest());
    words(&mut text);
    calls(&mut text);
    text
}

fn some() -> Option<String> {
    Some("x".to_owned())
}

fn mandate() -> Mandate {
    Mandate {
        schema: PAYLOAD_SCHEMA,
        id: "m".to_owned(),
        cycle: 2,
        attempt: 2,
        goal: "g".to_owned(),
        schedule: some(),
        nominal_at: Some(DateTime::UNIX_EPOCH),
        project_scope: some(),
        max_cycles: 3,
        checkpoint_every: Some(4),
        risk_budget: some(),
        allowed_actions: Some(vec!["a".to_owned()]),
        observe_policies: Some(vec!["a".to_owned()]),
        params: [("p".to_owned(), json!(1))].into_iter().collect(),
    }
}

fn manifest() -> Manifest {
    Manifest {
        schema: 1,
        name: "n".to_owned(),
        version: "1.0.0".to_owned(),
        api: "1.0.0".to_owned(),
        rustc: "r".to_owned(),
        panic: "unwind".to_owned(),
        abi: "c".to_owned(),
        phases: true,
        capabilities: vec!["llm".to_owned()],
        states: vec!["s/1".to_owned()],
        files: vec!["read:.".to_owned()],
    }
}

/// One object, from a value in which every member is there and none has the value it has by default.
pub fn object<T: Serialize + DeserializeOwned>(text: &mut String, name: &str, full: &T) {
    let full = serde_json::to_value(full).unwrap();
    let members = full.as_object().unwrap();
    // Writing to a text cannot fail.
    let _ = writeln!(text, "\njson {name}: in any order");
    let mut with_more = full.clone();
    with_more["of a later version"] = json!(1);
    let ignored = serde_json::from_value::<T>(with_more).is_ok();
    let _ = writeln!(text, "  members it does not know: {}", if ignored { "ignored" } else { "refused" });
    for (key, value) in members {
        let mut without = full.clone();
        without.as_object_mut().unwrap().remove(key);
        let absence = match serde_json::from_value::<T>(without) {
            Err(_) => "required".to_owned(),
            Ok(read) => match serde_json::to_value(read).unwrap().get(key) {
                None => "may be absent".to_owned(),
                // What is in it has a block of its own, and may grow.
                Some(default) if default.is_object() => "may be absent".to_owned(),
                Some(default) => format!("may be absent, which is {default}"),
            },
        };
        let takes = |other: Value| {
            let mut changed = full.clone();
            changed[key] = other;
            serde_json::from_value::<T>(changed).is_ok()
        };
        let _ = writeln!(text, "  {key}: {}, {absence}", kind(value, &takes));
    }
}

/// What kind of value is taken.
fn kind(value: &Value, takes: &dyn Fn(Value) -> bool) -> String {
    if takes(json!("any")) && takes(json!(true)) && takes(json!([1])) {
        return "anything".to_owned();
    }
    let kind = match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) if takes(json!(0.5)) => "number",
        Value::Number(_) if takes(json!(u64::MAX)) => "whole number below 2^64",
        Value::Number(_) if takes(json!(u32::MAX)) => "whole number below 2^32",
        Value::Number(_) => "small whole number",
        Value::String(_) if takes(json!("some word")) => "text",
        Value::String(word) => return format!("word like {word:?}"),
        Value::Array(of) if of[0].is_object() => "list of objects",
        Value::Array(_) if takes(json!(["any"])) => "list of texts",
        Value::Array(_) => return format!("list of values like {value}"),
        Value::Object(_) => "object",
    };
    if takes(Value::Null) { format!("{kind} or null") } else { kind.to_owned() }
}

/// Names and numbers that both sides know.
fn words(text: &mut String) {
    let header = abi_stable::library::AbiHeader::VALUE;
    let magic = String::from_utf8_lossy(&header.magic_string);
    let magic = magic.trim_end_matches('\0');
    text.push_str("\nwords: in any order\n");
    let _ = writeln!(text, "  root symbol of a plugin in Rust {}", abi::ROOT_SYMBOL);
    let _ = writeln!(text, "  which begins with {magic:?} {}.{}", header.abi_major, header.abi_minor);
    let _ = writeln!(text, "  entry of a plugin in C {}", c_abi::ENTRY);
    let _ = writeln!(text, "  section of the manifest {SECTION}");
    let _ = writeln!(text, "  payload schema {PAYLOAD_SCHEMA}");
    let _ = writeln!(text, "  no deadline {} {}", abi::NO_DEADLINE, c_abi::NO_DEADLINE);
    let _ = writeln!(text, "  answers of C {} {}", c_abi::OK, c_abi::ERROR);
    for status in [Status::Ok, Status::Paused, Status::Error] {
        let _ = writeln!(text, "  status {}", serde_json::to_value(status).unwrap());
    }
    for method in kairos_plugin_api::context::method::ALL {
        let _ = writeln!(text, "  method {method}");
    }
    for (code, said) in [
        ("STOPPED", code::STOPPED),
        ("BUDGET_EXHAUSTED", code::BUDGET_EXHAUSTED),
        ("DENIED", code::DENIED),
        ("PAUSED", code::PAUSED),
        ("DIVERGED", code::DIVERGED),
        ("BUSY", code::BUSY),
        ("INVALID", code::INVALID),
        ("UNSUPPORTED", code::UNSUPPORTED),
        ("FAILED", code::FAILED),
        ("DEADLINE", code::DEADLINE),
        ("PANIC", code::PANIC),
        ("RETIRED", code::RETIRED),
        ("DIED", code::DIED),
        ("BAD_REPORT", code::BAD_REPORT),
    ] {
        let ends = if CallError::new(said, "").ends_attempt() { ", ends the attempt" } else { "" };
        let _ = writeln!(text, "  error {code} {said}{ends}");
    }
}

/// Answers each call by its answer in the table, and keeps what was asked.
#[derive(Default)]
struct Recorder(Mutex<Vec<(String, Value, Value)>>);

impl HostCalls for Recorder {
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        let answer = match method {
            "now" => json!({"now": "1970-01-01T00:00:00Z"}),
            "random" => json!({"hex": "ab"}),
            "state_get" => json!({"value": 1}),
            _ => json!({}),
        };
        let request = serde_json::from_slice(request).unwrap();
        self.0.lock().unwrap().push((method.to_owned(), request, answer.clone()));
        Ok(answer.to_string().into_bytes())
    }

    fn should_stop(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn log(&self, _: tracing::Level, _: &str, _: &str, _: &Value) {}
}

/// The calls as a runner in Rust makes them, and the answers that it can read.
fn calls(text: &mut String) {
    let recorder = Arc::new(Recorder::default());
    let context = Context::new(Arc::clone(&recorder) as Arc<dyn HostCalls>);
    context.phase("observe").unwrap();
    context.llm(&LlmRequest::user("u")).unwrap();
    context.tool("t", json!({"a": 1})).unwrap();
    context.propose(&json!({"a": 1})).unwrap();
    context.usage(Usage::ZERO).unwrap();
    assert_eq!(context.now().unwrap(), DateTime::UNIX_EPOCH);
    assert_eq!(context.random(1).unwrap(), [0xab]);
    assert_eq!(context.state_get::<u32>("k").unwrap(), Some(1));
    context.state_put("k", &1).unwrap();
    context.progress("p", Some(0.5));
    for (method, request, answer) in recorder.0.lock().unwrap().iter() {
        let _ = writeln!(text, "\ncall {method}: in any order");
        let payload = match method.as_str() {
            "llm" => Some("an LlmRequest for an LlmReply"),
            "tool" => Some("a ToolCall for a ToolReply"),
            "usage" => Some("a Usage for nothing"),
            "propose" => Some("anything for anything"),
            _ => None,
        };
        if let Some(payload) = payload {
            let _ = writeln!(text, "  {payload}");
            continue;
        }
        for (key, value) in request.as_object().unwrap() {
            let _ = writeln!(text, "  asked with {key}, as {value}");
        }
        for (key, value) in answer.as_object().unwrap() {
            let _ = writeln!(text, "  answered with {key}, as {value}");
        }
    }
}
