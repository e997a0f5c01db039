//! Claude Code's headless output (the `SDKResultMessage` of its SDK), held against version 2.1.197.
//! `--output-format json` is one result object (an array of all messages with `--verbose`),
//! `stream-json` a message a line with the same result as the last.
//!
//! ```text
//! {"type":"result","subtype":"success","is_error":false,"num_turns":2,"result":"..","stop_reason":"end_turn",
//!  "total_cost_usd":0.01,"usage":{"input_tokens":1,"cache_creation_input_tokens":2,"cache_read_input_tokens":3,
//!  "output_tokens":4},"modelUsage":{"MODEL":{"inputTokens":1,"outputTokens":4,..,"costUSD":0.01}},
//!  "permission_denials":[],"session_id":".."}
//! ```
//!
//! `subtype` is `success`, `error_during_execution`, `error_max_turns`, `error_max_budget_usd` or
//! `error_max_structured_output_retries`; `is_error` may be true with either; a model that declines says
//! `stop_reason: refusal`. Until the result comes, usage is that of the messages seen: a
//! lower bound for eyes only. Tokens of sub-agents stand only under `modelUsage`, cached tokens beside
//! `input_tokens`: all are added, and where there are more than the turns', one more call. A call that
//! failed is tried again ten times, for three minutes; each try is told as `api_retry`. Of several results in one run, tokens and turns add up, while the
//! cost is the run's so far.

use serde_json::Value;

use super::{Reading, Stated, Told, count, document as found, dollars, text};

/// Reads one message; false when it is none.
pub(super) fn value(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) -> bool {
    if let Some(messages) = value.as_array() {
        let mut known = !messages.is_empty();
        for message in messages {
            known &= self::value(reading, message, tell);
        }
        return known;
    }
    match text(value, "type") {
        Some("result") => result(reading, value, tell),
        Some("assistant") => assistant(reading, value, tell),
        Some("system") if text(value, "subtype") == Some("api_retry") => retry(reading, value, tell),
        Some(_) => {
            if let Some(session) = text(value, "session_id") {
                reading.session = Some(session.to_owned());
            }
        }
        None => return false,
    }
    true
}

/// Reads a result that was printed over many lines, after whatever else was printed.
pub(super) fn document(reading: &mut Reading, whole: &str) {
    let of_result = |value: &Value| text(value, "type") == Some("result");
    let wanted = |value: &Value| value.as_array().map_or(of_result(value), |all| all.iter().any(of_result));
    if let Some(value) = found(whole, wanted) {
        self::value(reading, &value, &mut |_| {});
    }
}

fn retry(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) {
    let error = text(value, "error").unwrap_or("error");
    let status = count(value, "error_status").map(|status| format!(" {status}")).unwrap_or_default();
    let what = format!("the API answers{status} {error}");
    reading.complain(&what);
    tell(Told::Progress(&format!("{what}; it is tried again"), None));
}

fn assistant(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) {
    let Some(message) = value.get("message") else { return };
    let id = text(message, "id").unwrap_or_default().to_owned();
    let usage = message.get("usage").map(tokens).unwrap_or_default();
    // Each block of one message comes by itself, with the usage of the whole.
    let before = match reading.messages.last_mut() {
        Some((last, known)) if *last == id => std::mem::replace(known, usage),
        _ => {
            reading.messages.push((id, usage));
            Stated { calls: Some(0), ..Stated::default() }
        }
    };
    if !reading.is_final {
        let more =
            |new: Option<u64>, old: Option<u64>| Some(new.unwrap_or(0).saturating_sub(old.unwrap_or(0)));
        reading.stated.add(Stated {
            calls: Some(u64::from(before.calls.is_some())),
            input: more(usage.input, before.input),
            output: more(usage.output, before.output),
            cost: None,
        });
        tell(Told::Usage);
    }
    for block in message.get("content").and_then(Value::as_array).into_iter().flatten() {
        match text(block, "type") {
            Some("text") => reading.say(text(block, "text").unwrap_or_default()),
            Some("tool_use") => {
                if let Some(name) = text(block, "name") {
                    tell(Told::Progress(&format!("uses {name}"), None));
                }
            }
            _ => {}
        }
    }
}

fn result(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) {
    let main = value.get("usage").map(tokens).unwrap_or_default();
    let mut models: Option<Stated> = None;
    let mut refused = vec![];
    for denied in value.get("permission_denials").and_then(Value::as_array).into_iter().flatten() {
        refused.extend(text(denied, "tool_name"));
    }
    if !refused.is_empty() {
        reading.keep(&format!("was not permitted to use: {}", refused.join(", ")));
    }
    for model in value.get("modelUsage").and_then(Value::as_object).into_iter().flat_map(|map| map.values()) {
        models.get_or_insert_default().add(Stated {
            calls: None,
            input: sum(model, &["inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens"]),
            output: count(model, "outputTokens"),
            cost: dollars(model, "costUSD"),
        });
    }
    let models = models.unwrap_or_default();
    let seen = reading.messages.len() as u64;
    reading.former.add(Stated { calls: count(value, "num_turns"), cost: None, ..main });
    let sum = reading.former;
    reading.former.cost = sum.cost.max(dollars(value, "total_cost_usd")).max(models.cost);
    // A title, a summary or a sub-agent: no turn of the conversation, and yet paid.
    let beside = |all: Option<u64>, main: Option<u64>| main.is_some() && all > main;
    let beside = u64::from(beside(models.input, sum.input) || beside(models.output, sum.output));
    reading.stated = Stated {
        calls: sum.calls.map(|turns| turns.max(seen).saturating_add(beside)),
        input: sum.input.max(models.input),
        output: sum.output.max(models.output),
        cost: reading.former.cost,
    };
    reading.is_final = true;
    reading.ended = true;
    tell(Told::Usage);
    if let Some(session) = text(value, "session_id") {
        reading.session = Some(session.to_owned());
    }
    if let Some(said) = text(value, "result") {
        reading.say(said);
    }
    let subtype = text(value, "subtype").unwrap_or("success");
    let is_error = value.get("is_error").and_then(Value::as_bool).unwrap_or(false);
    (reading.failure, reading.trouble) = (None, None);
    if text(value, "stop_reason") == Some("refusal") {
        let said = text(value, "result").filter(|said| !said.is_empty());
        reading.fail("agent_refused", said.unwrap_or("the model declined the request"));
    } else if is_error || subtype != "success" {
        let code = if subtype.starts_with("error_max") { "agent_limit" } else { "agent_error" };
        let errors = value.get("errors").and_then(Value::as_array).into_iter().flatten();
        let errors: Vec<&str> = errors.filter_map(Value::as_str).collect();
        let message = match (text(value, "result").filter(|said| !said.is_empty()), errors.is_empty()) {
            (Some(said), _) => said.to_owned(),
            (None, false) => errors.join("; "),
            (None, true) => format!("claude ended with {subtype}"),
        };
        reading.fail(code, message);
    }
}

fn tokens(usage: &Value) -> Stated {
    Stated {
        calls: None,
        input: sum(usage, &["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"]),
        output: count(usage, "output_tokens"),
        cost: None,
    }
}

/// The sum of those that are there; none when none is.
fn sum(value: &Value, keys: &[&str]) -> Option<u64> {
    keys.iter().filter_map(|key| count(value, key)).reduce(u64::saturating_add)
}
