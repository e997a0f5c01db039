//! Goose's `goose run --output-format json` (one document over many lines) and `stream-json` (one
//! event a line: `message`, `notification`, `model_change`, `error`, `complete`). No cost is stated.
//!
//! Tokens stand in the metadata or in the event `complete`. With `input_tokens` and `output_tokens`
//! (versions from 2026 on) they are the session's. Before, there was only `total_tokens`, and that is
//! what the *last* request took: as each request of a session is larger than the one before it, that
//! times the number of requests is counted, all as sent.
//!
//! Held against version 1.34, which ends well whatever happens: an error of its service and the end of
//! its turns are messages of the assistant that begin with certain words. For the name of its session it
//! makes one request of its own, whose tokens it does not tell.

use serde_json::Value;

use super::{Reading, Stated, Told, count, document as found, text};

/// How messages begin that are not the model's.
const ERROR: &str = "Ran into this error: ";
const LIMIT: &str = "I've reached the maximum number of actions";
/// Requests beside those that answer a message: the session's name.
const BESIDE: u64 = 1;

/// Reads one event; false when it is none.
pub(super) fn value(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) -> bool {
    if value.get("messages").is_some() {
        whole(reading, value);
        return true;
    }
    match text(value, "type") {
        Some("message") => {
            message(reading, value.get("message").unwrap_or(&Value::Null));
            reading.stated.calls = Some(reading.messages.len() as u64 + BESIDE);
            tell(Told::Usage);
        }
        Some("notification") => {
            let log = value.get("log").and_then(|log| text(log, "message"));
            let progress = value.get("progress");
            let said = progress.and_then(|progress| text(progress, "message"));
            let part = |key| progress?.get(key)?.as_f64();
            let fraction = part("progress").zip(part("total")).map(|(done, total)| done / total);
            if let Some(message) = log.or(said) {
                tell(Told::Progress(message, fraction.filter(|fraction| fraction.is_finite())));
            }
        }
        Some("error") => {
            reading.fail("agent_error", text(value, "error").unwrap_or("goose reports an error"))
        }
        Some("complete") => {
            end(reading, value);
            tell(Told::Usage);
        }
        Some(_) => {}
        None => return false,
    }
    true
}

/// Reads the single document, after whatever was printed before it.
pub(super) fn document(reading: &mut Reading, text: &str) {
    if let Some(value) = found(text, |value| value.get("messages").is_some()) {
        whole(reading, &value);
    }
}

fn whole(reading: &mut Reading, value: &Value) {
    for each in value.get("messages").and_then(Value::as_array).into_iter().flatten() {
        message(reading, each);
    }
    end(reading, value.get("metadata").unwrap_or(&Value::Null));
}

fn end(reading: &mut Reading, totals: &Value) {
    let (input, output) = (count(totals, "input_tokens"), count(totals, "output_tokens"));
    let total = count(totals, "total_tokens");
    let calls = reading.messages.len() as u64;
    let whole = total.map(|total| match (input, output) {
        (None, None) => total.saturating_mul(calls.max(1)),
        _ => total,
    });
    // A total beyond its known parts is counted in full.
    let rest = whole.map(|whole| whole.saturating_sub(output.unwrap_or(0)));
    reading.stated.calls = Some(calls + BESIDE);
    reading.stated.input = input.max(rest);
    reading.stated.output = output.or(total.map(|_| 0));
    reading.is_final = true;
    reading.ended = true;
    match text(totals, "status") {
        None | Some("completed") => {}
        Some(status) => {
            let why = text(totals, "error").unwrap_or(status);
            reading.fail("agent_error", format!("goose ended as {status}: {why}"));
        }
    }
}

fn message(reading: &mut Reading, message: &Value) {
    if text(message, "role") != Some("assistant") {
        return;
    }
    let parts = message.get("content").and_then(Value::as_array).into_iter().flatten();
    let said: String = parts.filter_map(|part| text(part, "text")).collect();
    if let Some(error) = said.strip_prefix(ERROR) {
        return reading.fail("agent_error", error.lines().next().unwrap_or_default());
    }
    if said.starts_with(LIMIT) {
        return reading.fail("agent_limit", said);
    }
    match (text(message, "id"), reading.messages.last_mut()) {
        // A message that comes in pieces keeps its id.
        (Some(id), Some((last, _))) if last == id => {
            let before = reading.text.take().unwrap_or_default();
            reading.say(&(before + &said));
        }
        (id, _) => {
            reading.messages.push((id.unwrap_or_default().to_owned(), Stated::default()));
            reading.say(&said);
        }
    }
}
