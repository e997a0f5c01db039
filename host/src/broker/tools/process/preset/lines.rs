//! Kairos' own protocol, for agents written for it: one JSON object a line on standard output.
//!
//! ```text
//! {"type":"usage","llm_calls":1,"input_tokens":900,"output_tokens":40,"cost_usd":0.0021}
//! {"type":"phase","name":"observe"}
//! {"type":"progress","message":"reading","fraction":0.2}
//! {"type":"log","level":"info","message":"found 3 files"}
//! {"type":"report","status":"ok","summary":"done","more":false}
//! ```
//!
//! Usage lines add up. A report may state totals under the same names; per field the greater counts.
//! What has no usage line and no total stays unknown, and counts as reserved.

use serde_json::Value;
use tracing::Level;

use super::{Reading, Stated, Told, count, dollars, text};

/// Reads one message; false when it is none.
pub(super) fn value(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) -> bool {
    match text(value, "type") {
        Some("usage") => {
            reading.stated.add(stated(value));
            reading.is_final = true;
            tell(Told::Usage);
        }
        Some("phase") => match text(value, "name") {
            Some(name) if reading.phase(name) => tell(Told::Phase(name)),
            Some(_) => {}
            None => return false,
        },
        Some("progress") => match text(value, "message") {
            Some(message) => tell(Told::Progress(message, value.get("fraction").and_then(Value::as_f64))),
            None => return false,
        },
        Some("log") => match text(value, "message") {
            Some(message) => {
                reading.keep(message);
                tell(Told::Log(level(text(value, "level")), message));
            }
            None => return false,
        },
        Some("report") => return report(reading, value, tell),
        _ => return false,
    }
    true
}

fn report(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) -> bool {
    let status = text(value, "status").unwrap_or("ok");
    if !["ok", "paused", "error"].contains(&status) {
        return false;
    }
    let totals = stated(value);
    if totals != Stated::default() {
        let most = |a: Option<u64>, b: Option<u64>| a.max(b);
        let known = reading.stated;
        reading.stated = Stated {
            calls: most(known.calls, totals.calls),
            input: most(known.input, totals.input),
            output: most(known.output, totals.output),
            cost: most(known.cost, totals.cost),
        };
        reading.is_final = true;
        tell(Told::Usage);
    }
    if let Some(summary) = text(value, "summary") {
        reading.say(summary);
    }
    reading.failure = None;
    if status == "error" {
        reading.fail("agent_error", text(value, "error").unwrap_or("the agent reports an error"));
    }
    reading.report = Some(value.clone());
    reading.ended = true;
    true
}

fn stated(value: &Value) -> Stated {
    Stated {
        calls: count(value, "llm_calls"),
        input: count(value, "input_tokens"),
        output: count(value, "output_tokens"),
        cost: dollars(value, "cost_usd"),
    }
}

fn level(word: Option<&str>) -> Level {
    match word {
        Some("error") => Level::ERROR,
        Some("warn" | "warning") => Level::WARN,
        Some("debug") => Level::DEBUG,
        Some("trace") => Level::TRACE,
        _ => Level::INFO,
    }
}
