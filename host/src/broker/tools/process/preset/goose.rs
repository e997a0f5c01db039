//! Goose's `goose run --output-format json` (one document over many lines) and `stream-json` (one
//! event a line). Tokens stand in the metadata or in the event `complete`; older versions give only
//! their total, which is counted as sent. No cost is stated.

use serde_json::Value;

use super::{Reading, Stated, Told, count, text};

/// Reads one event; false when it is none.
pub(super) fn value(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) -> bool {
    if value.get("messages").is_some() {
        whole(reading, value);
        return true;
    }
    match text(value, "type") {
        Some("message") => {
            message(reading, value.get("message").unwrap_or(&Value::Null));
            reading.stated.calls = Some(reading.messages.len() as u64);
            tell(Told::Usage);
        }
        Some("notification") => {
            let log = value.get("log").and_then(|log| text(log, "message"));
            let progress = value.get("progress").and_then(|progress| text(progress, "message"));
            if let Some(message) = log.or(progress) {
                tell(Told::Progress(message, None));
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
    let starts =
        text.match_indices('{').map(|(at, _)| at).filter(|at| *at == 0 || text[..*at].ends_with('\n'));
    for start in starts.take(32) {
        let mut stream = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        if let Some(Ok(value)) = stream.next()
            && value.get("messages").is_some()
        {
            return whole(reading, &value);
        }
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
    // A total beyond its known parts is counted in full.
    let rest = total.map(|total| total.saturating_sub(output.unwrap_or(0)));
    reading.stated.calls = Some(reading.messages.len() as u64);
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
