//! What agents print, read as it comes: usage, what they call their phases, their last word.
//!
//! Pure readers of text. They live in the host and not in the runner, because the host is the one
//! that settles the reservation: what the step cost is read from what the host itself captured, and
//! is committed together with the step's result. A reader never fails; what it does not understand
//! is counted and kept as text, and what an agent does not say stays unknown.

mod aider;
mod claude;
mod codex;
mod goose;
mod lines;

use std::collections::VecDeque;

use kairos_plugin_api::Usage;
use kairos_plugin_api::context::limit::{PHASES_MAX, TEXT_MAX};
use serde_json::Value;
use tracing::Level;

use super::text::cut_end;
use crate::domain::talk::shortened;

/// Lines kept of what is no message.
const LOG_LINES: usize = 50;
/// Longest of them, in bytes.
const LOG_LINE_MAX: usize = 500;
/// Places of a text at which a document is looked for.
const STARTS_TRIED: usize = 32;
const NANO: f64 = 1e9;

/// Whose output it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Kairos' own protocol: one JSON object a line, see the module `lines`.
    Jsonl,
    /// Any program: its exit code and its text.
    Plain,
    /// Claude Code, `claude -p --output-format json` or `stream-json`.
    Claude,
    /// Codex, `codex exec --json`.
    Codex,
    /// Goose, `goose run --output-format json` or `stream-json`.
    Goose,
    /// aider, `aider --message`; it has no JSON, its reports are read.
    Aider,
}

impl Preset {
    /// The words of the configuration.
    pub const WORDS: [(&'static str, Self); 6] = [
        ("jsonl", Self::Jsonl),
        ("plain", Self::Plain),
        ("claude", Self::Claude),
        ("codex", Self::Codex),
        ("goose", Self::Goose),
        ("aider", Self::Aider),
    ];

    /// The word of the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, known)| *known == self).map_or("", |(word, _)| word)
    }

    /// Reads one line of its standard output, without the line's end.
    pub fn line(self, reading: &mut Reading, line: &str, tell: &mut dyn FnMut(Told<'_>)) {
        reading.lines += 1;
        match self {
            Self::Plain => {}
            Self::Aider => aider::line(reading, line, tell),
            Self::Jsonl => lines::line(reading, line, tell),
            Self::Claude | Self::Codex | Self::Goose => {
                if line.trim().is_empty() {
                    return;
                }
                match message(line) {
                    Some(value) => self.value(reading, &value, tell),
                    // Goose's single document is spread over many lines and read at the end.
                    None if self == Self::Goose => {}
                    None => reading.malformed(line),
                }
            }
        }
    }

    fn value(self, reading: &mut Reading, value: &Value, tell: &mut dyn FnMut(Told<'_>)) {
        let known = match self {
            Self::Claude => claude::value(reading, value, tell),
            Self::Codex => codex::value(reading, value, tell),
            Self::Goose => goose::value(reading, value, tell),
            Self::Plain | Self::Aider | Self::Jsonl => true,
        };
        if !known {
            reading.malformed(&value.to_string());
        }
    }

    /// Reads what only the whole shows. `exit` is the exit code of a program that ended by itself.
    pub fn end(self, reading: &mut Reading, whole: &str, exit: Option<i32>) {
        match self {
            Self::Goose if !reading.ended => goose::document(reading, whole),
            Self::Claude if !reading.ended => claude::document(reading, whole),
            Self::Plain => reading.say(whole.trim()),
            Self::Jsonl => lines::end(reading, whole, exit),
            Self::Aider => aider::end(reading, whole),
            _ => {}
        }
        let says = matches!(self, Self::Claude | Self::Codex | Self::Goose);
        if says && !reading.ended && exit == Some(0) && reading.failure.is_none() {
            let error = format!("{} printed no result that can be read", self.as_str());
            reading.fail("no_result", error);
        }
    }
}

/// The message of a line. A byte order mark, or what a wrapper printed without an end of its line, may
/// stand before an agent's.
fn message(line: &str) -> Option<Value> {
    let whole = serde_json::from_str(line).ok();
    if whole.is_some() {
        return whole;
    }
    let starts = line.match_indices(['{', '[']).take(STARTS_TRIED);
    let mut found = starts.filter_map(|(at, _)| serde_json::from_str::<Value>(&line[at..]).ok());
    found.find(|value| value.get("type").is_some() || value.is_array())
}

/// What is shown of a run while it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Told<'a> {
    /// How far it is.
    Progress(&'a str, Option<f64>),
    /// A new phase.
    Phase(&'a str),
    /// A line for the log.
    Log(Level, &'a str),
    /// The usage that is known by now has changed.
    Usage,
}

/// Usage as far as an agent stated it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// LLM calls.
    pub calls: Option<u64>,
    /// Tokens sent, cached ones included.
    pub input: Option<u64>,
    /// Tokens received.
    pub output: Option<u64>,
    /// Nano-dollars.
    pub cost: Option<u64>,
}

impl Stated {
    /// What is stated; the rest is zero.
    #[must_use]
    pub fn known(self) -> Usage {
        Usage {
            llm_calls: self.calls.unwrap_or(0),
            input_tokens: self.input.unwrap_or(0),
            output_tokens: self.output.unwrap_or(0),
            cost_nano_usd: self.cost.unwrap_or(0),
        }
    }

    fn add(&mut self, more: Self) {
        let join = |sum: &mut Option<u64>, more: Option<u64>| {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0).saturating_add(more));
            }
        };
        join(&mut self.calls, more.calls);
        join(&mut self.input, more.input);
        join(&mut self.output, more.output);
        join(&mut self.cost, more.cost);
    }
}

/// All that was read of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// What it cost, as it says. Counts when it is final.
    pub stated: Stated,
    /// True when what is stated is the whole of it; otherwise it is a lower bound.
    pub is_final: bool,
    /// Its last word.
    pub text: Option<String>,
    /// Why it failed, by its own account: a word for programs, a message for people.
    pub failure: Option<(&'static str, String)>,
    /// What it complained of last and did not get over yet: it may, by trying again.
    pub trouble: Option<String>,
    /// The report line of Kairos' protocol.
    pub report: Option<Value>,
    /// How the agent calls its session.
    pub session: Option<String>,
    /// Phases in the order of their first mention.
    pub phases: Vec<String>,
    /// The last lines that are no messages.
    pub log: VecDeque<String>,
    /// Lines that should have been messages and were not.
    pub malformed: u64,
    /// All lines.
    pub lines: u64,
    /// What people should know although it may be no failure.
    pub warnings: Vec<String>,
    /// The first report or usage line of Kairos' protocol that cannot be read.
    broken: Option<String>,
    /// The first line that may have been meant as one.
    doubtful: Option<String>,
    /// The agent said that it was done.
    ended: bool,
    /// What former results of the same run stated; a run of several turns has several.
    former: Stated,
    /// A line that goes on in the next one.
    held: String,
    /// The trouble goes on in the next line.
    in_trouble: bool,
    /// Messages of a model by their ids, with the usage of each.
    messages: Vec<(String, Stated)>,
}

impl Reading {
    fn malformed(&mut self, line: &str) {
        self.malformed += 1;
        self.keep(line);
    }

    fn keep(&mut self, line: &str) {
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back(cut_end(line.trim_end(), LOG_LINE_MAX).to_owned());
    }

    fn say(&mut self, text: &str) {
        if !text.is_empty() {
            self.text = Some(shortened(text.to_owned(), TEXT_MAX));
        }
    }

    /// Something went wrong that the agent tries to get over by itself.
    fn complain(&mut self, what: &str) {
        self.trouble = Some(cut_end(what, LOG_LINE_MAX).to_owned());
    }

    fn warn(&mut self, what: impl Into<String>) {
        let what: String = what.into();
        self.warnings.push(cut_end(&what, LOG_LINE_MAX).to_owned());
    }

    fn fail(&mut self, code: &'static str, message: impl Into<String>) {
        let message: String = message.into();
        self.failure = Some((code, cut_end(&message, LOG_LINE_MAX * 4).to_owned()));
    }

    /// Notes a phase; true when it is one that may be told.
    fn phase(&mut self, name: &str) -> bool {
        if self.phases.iter().any(|known| known == name) {
            return true;
        }
        let room = self.phases.len() < PHASES_MAX;
        if room {
            self.phases.push(cut_end(name, LOG_LINE_MAX).to_owned());
        }
        room
    }
}

/// The first document of many lines that is wanted; it begins at the start of a line.
fn document(text: &str, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
    let starts = text.match_indices(['{', '[']).map(|(at, _)| at);
    let starts = starts.filter(|at| *at == 0 || text[..*at].ends_with('\n'));
    let mut found = starts.take(STARTS_TRIED).filter_map(|start| {
        let mut stream = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        stream.next()?.ok()
    });
    found.find(|value| wanted(value))
}

/// A count, also one in quotes or written as a float. Negative numbers, fractions and what is larger
/// than any count are none: then it is as if nothing had been said.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is looked at before")]
fn count(value: &Value, key: &str) -> Option<u64> {
    /// Up to here a float is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value.get(key)? {
        Value::String(text) => text.trim().parse().ok(),
        Value::Number(number) => number.as_u64().or_else(|| {
            let float = number.as_f64().filter(|float| (0.0..=EXACT).contains(float) && float.fract() == 0.0);
            float.map(|float| float as u64)
        }),
        _ => None,
    }
}

/// Dollars as nano-dollars, also in quotes and with their sign. Negative and endless ones are none.
fn dollars(value: &Value, key: &str) -> Option<u64> {
    let dollars = match value.get(key)? {
        Value::String(text) => text.trim().trim_start_matches('$').parse().ok()?,
        other => other.as_f64()?,
    };
    (dollars.is_finite() && dollars >= 0.0).then(|| nano(dollars))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of floats saturates")]
fn nano(dollars: f64) -> u64 {
    (dollars * NANO).round() as u64
}

fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key).and_then(Value::as_str)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
