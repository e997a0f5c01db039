//! Codex's `codex exec --json`, one event a line (`exec_events.rs`), held against version 0.169:
//! `thread.started`, `turn.started`, `item.started|updated|completed`, `turn.completed`, `turn.failed`,
//! `error`. Cached tokens are part of `input_tokens`, reasoning is part of `output_tokens`, and no cost
//! is stated.
//!
//! Without its service it tries again: five times when that answers with an error, for ever when there
//! is no network. Each try is an `error`, and so is its last word before `turn.failed`.
//!
//! The usage of `turn.completed` is the thread's so far, not the turn's, so the greatest counts; a
//! resumed thread tells what former runs used once more. Zeros mean that codex knows nothing. How many
//! requests a turn took is not stated either: one for the turn and one for each piece of work it
//! answers for is what is counted.

use serde_json::Value;

use super::{Reading, Stated, Told, count, text};

/// Reads one event; false when it is none.
pub(super) fn value(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) -> bool {
    match text(value, "type") {
        Some("thread.started") => {
            reading.session = text(value, "thread_id").map(str::to_owned);
        }
        Some("item.started") => {
            if let Some(kind) = value.get("item").and_then(kind) {
                tell(Told::Progress(&kind.replace('_', " "), None));
            }
        }
        Some("item.completed") => item(reading, value.get("item").unwrap_or(&Value::Null)),
        Some("turn.completed") => {
            let usage = value.get("usage").unwrap_or(&Value::Null);
            let work = reading.messages.len() as u64;
            reading.messages.clear();
            let (input, output) = (count(usage, "input_tokens"), count(usage, "output_tokens"));
            let known = input.max(output).is_some_and(|most| most > 0);
            let before = reading.stated;
            reading.stated.add(Stated { calls: Some(1 + work), ..Stated::default() });
            reading.stated.input = before.input.max(input.filter(|_| known));
            reading.stated.output = before.output.max(output.filter(|_| known));
            reading.is_final = true;
            reading.ended = true;
            (reading.failure, reading.trouble) = (None, None);
            tell(Told::Usage);
        }
        Some("turn.failed") => {
            let message = value.get("error").and_then(|error| text(error, "message"));
            reading.fail("agent_error", message.unwrap_or("the turn failed"));
            // What a failed turn cost is not said.
            reading.is_final = false;
            reading.ended = true;
        }
        // Often only a reconnection: the turn's end has the last word.
        Some("error") => {
            let message = text(value, "message").unwrap_or("codex reports an error");
            reading.keep(message);
            reading.complain(message);
            reading.fail("agent_error", message);
        }
        Some(_) => {}
        None => return false,
    }
    true
}

/// Older versions call the type of an item `item_type`.
fn kind(item: &Value) -> Option<&str> {
    text(item, "type").or_else(|| text(item, "item_type"))
}

fn item(reading: &mut Reading, item: &Value) {
    match kind(item) {
        Some("agent_message" | "assistant_message" | "plan") => {
            reading.say(text(item, "text").unwrap_or_default())
        }
        Some("error") => {
            if let Some(message) = text(item, "message") {
                reading.keep(message);
            }
        }
        Some("command_execution" | "file_change" | "mcp_tool_call" | "collab_tool_call" | "web_search") => {
            reading.messages.push((String::new(), Stated::default()));
        }
        _ => {}
    }
}
