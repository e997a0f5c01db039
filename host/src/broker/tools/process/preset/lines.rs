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
//!
//! What an agent prints beside its messages is tolerated and counted. A report or a usage line that
//! cannot be read is neither guessed at nor passed over: the run is a `bad_report`, and what it cost is
//! unknown. A byte order mark and a carriage return are no part of a line.

use serde_json::Value;
use tracing::Level;

use super::super::text::cut_end;
use super::{Reading, Stated, Told, count, dollars, text};

/// Figures of usage lines and reports.
const FIGURES: [&str; 3] = ["llm_calls", "input_tokens", "output_tokens"];
/// As [`FIGURES`], in dollars.
const COST: &str = "cost_usd";
/// What must be readable.
const OURS: [&str; 2] = ["report", "usage"];
/// Bytes of a line that an error shows.
const LINE_SHOWN: usize = 160;

/// What a line turned out to be.
enum Line {
    /// A message.
    Known,
    /// No message, and none that matters.
    Foreign,
    /// It may have been meant as a report; it counts when none comes.
    Doubtful(&'static str),
    /// A report or a usage line that cannot be read.
    Broken(String),
}

/// Reads one line.
pub(super) fn line(reading: &mut Reading, line: &str, tell: &mut dyn FnMut(Told<'_>)) {
    let line = bare(line);
    if line.is_empty() {
        return;
    }
    let read = match serde_json::from_str(line) {
        Ok(message @ Value::Object(_)) => value(reading, &message, tell),
        Ok(_) if names(line, "type", &OURS) => Line::Doubtful("a line holds a report and is none"),
        Ok(_) => Line::Foreign,
        Err(error) => no_json(line, &error),
    };
    let told = |why: &str| format!("{why}: {}", cut_end(line, LINE_SHOWN));
    match read {
        Line::Known => return,
        Line::Foreign => {}
        Line::Doubtful(why) => drop(reading.doubtful.get_or_insert_with(|| told(why))),
        Line::Broken(why) => drop(reading.broken.get_or_insert_with(|| told(&why))),
    }
    reading.malformed(line);
}

/// Decides what the run was, once all of it is there.
pub(super) fn end(reading: &mut Reading, whole: &str, exit: Option<i32>) {
    let last = whole.lines().rev().map(bare).find(|line| !line.is_empty()).unwrap_or_default();
    let cut = is_begun(last) && serde_json::from_str::<Value>(last).is_err();
    let cut =
        cut.then(|| format!("the last line is a message without its end: {}", cut_end(last, LINE_SHOWN)));
    let doubtful = reading.doubtful.take().filter(|_| !reading.ended);
    let wrong = reading.broken.take().or(cut).or(doubtful);
    if wrong.is_some() {
        // Nobody knows what the line would have added.
        reading.is_final = false;
    }
    match wrong {
        Some(wrong) if exit == Some(0) && reading.failure.is_none() => reading.fail("bad_report", wrong),
        Some(wrong) => reading.warn(wrong),
        None if exit == Some(0) && !reading.ended => {
            reading.warn("it ended without a report line; its exit code 0 counts as success");
        }
        None => {}
    }
    match reading.malformed {
        0 => {}
        1 => reading.warn("1 line of its output is no message"),
        lines => reading.warn(format!("{lines} lines of its output are no messages")),
    }
}

/// A line without what a program's surroundings add to it.
fn bare(line: &str) -> &str {
    line.trim().trim_start_matches('\u{feff}').trim()
}

/// The start of an object.
fn is_begun(line: &str) -> bool {
    line.strip_prefix('{')
        .is_some_and(|rest| rest.trim_start().is_empty() || rest.trim_start().starts_with('"'))
}

fn no_json(line: &str, error: &serde_json::Error) -> Line {
    let ours = names(line, "type", &OURS);
    if ours && line.starts_with('{') {
        Line::Broken(format!("a report or usage line is no JSON ({error})"))
    } else if ours || (is_begun(line) && names(line, "status", &["error", "paused", "failed"])) {
        Line::Doubtful("a line looks like a report and is none")
    } else {
        Line::Foreign
    }
}

/// True when the text has this key with one of these words, as JSON writes it.
fn names(text: &str, key: &str, words: &[&str]) -> bool {
    let key = format!("\"{key}\"");
    let mut values = text
        .split(key.as_str())
        .skip(1)
        .filter_map(|rest| rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"'));
    values.any(|value| value.split('"').next().is_some_and(|word| words.contains(&word.trim())))
}

fn value(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) -> Line {
    let Some(kind) = text(value, "type") else { return untyped(value) };
    let known = match kind.trim().to_ascii_lowercase().as_str() {
        word @ ("usage" | "report") => {
            if let Err(why) = checked(value, kind) {
                return Line::Broken(format!("a {word} line cannot be read: {why}"));
            }
            if word == "usage" {
                reading.stated.add(stated(value));
                reading.is_final = true;
                tell(Told::Usage);
            } else {
                report(reading, value, tell);
            }
            Some(())
        }
        "phase" => text(value, "name").map(|name| {
            if reading.phase(name) {
                tell(Told::Phase(name));
            }
        }),
        "progress" => text(value, "message").map(|message| {
            tell(Told::Progress(message, value.get("fraction").and_then(Value::as_f64)));
        }),
        "log" => text(value, "message").map(|message| {
            reading.keep(message);
            tell(Told::Log(level(text(value, "level")), message));
        }),
        _ => None,
    };
    known.map_or(Line::Foreign, |()| Line::Known)
}

/// An object that does not say what it is.
fn untyped(value: &Value) -> Line {
    let failed = matches!(text(value, "status"), Some("error" | "paused" | "failed"));
    if failed || value.get("report").is_some() || value.get("llm_calls").is_some() {
        return Line::Doubtful("a line looks like a report, and its `type` is missing");
    }
    Line::Foreign
}

/// Whether a usage line or a report is one: what it states is of the right kind.
fn checked(value: &Value, kind: &str) -> Result<(), String> {
    let stated = |key: &str| value.get(key).is_some_and(|value| !value.is_null());
    let figures = FIGURES.iter().find(|key| stated(key) && count(value, key).is_none());
    if let Some(key) = figures.copied().or((stated(COST) && dollars(value, COST).is_none()).then_some(COST)) {
        return Err(odd(key));
    }
    match kind {
        "usage" => return Ok(()),
        "report" => {}
        _ => return Err(format!("its `type` is {kind:?}")),
    }
    match value.get("status") {
        None => return Err("its `status` is missing; known are ok, paused, error".to_owned()),
        Some(Value::String(status)) if ["ok", "paused", "error"].contains(&status.as_str()) => {}
        Some(other) => return Err(format!("its `status` is {other}; known are ok, paused, error")),
    }
    let wrong = |key: &&str| stated(key) && text(value, key).is_none();
    let texts = ["summary", "error"].into_iter().find(|key| wrong(key));
    let more = (stated("more") && !value["more"].is_boolean()).then_some("more");
    texts.or(more).map_or(Ok(()), |key| Err(odd(key)))
}

fn odd(key: &str) -> String {
    format!("its `{key}` is of another kind than it should be")
}

fn report(reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) {
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
    if text(value, "status") == Some("error") {
        reading.fail("agent_error", text(value, "error").unwrap_or("the agent reports an error"));
    }
    reading.report = Some(value.clone());
    reading.ended = true;
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
