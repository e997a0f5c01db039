//! Reading a model's replies. Nothing here fails: a reply that makes no sense has a meaning that
//! does nothing.

use serde_json::{Value, json};

use crate::prompt::{cut, one_line};
use crate::{Args, LINE_MAX};

/// Longest reply that is looked at, in bytes.
const REPLY_MAX: usize = 256 << 10;
/// Longest situation that goes into the next prompt, in bytes.
const SITUATION_MAX: usize = 4 << 10;

/// The JSON object in a reply: alone, in a fence, or between words.
pub fn object(reply: &str) -> Option<Args> {
    if reply.len() > REPLY_MAX {
        return None;
    }
    let read = |text: &str| match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Some(map),
        _ => None,
    };
    let text = reply.trim();
    read(text)
        .or_else(|| read(unfenced(text)?))
        .or_else(|| read(text.get(text.find('{')?..=text.rfind('}')?)?))
}

fn unfenced(text: &str) -> Option<&str> {
    let inside = text.split_once("```")?.1;
    let inside = inside.split_once("```").map_or(inside, |(inside, _)| inside);
    // The word after the fence names the language.
    Some(inside.trim_start_matches(|c: char| c.is_ascii_alphanumeric()).trim())
}

fn text<'a>(object: &'a Args, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str).filter(|text| !text.trim().is_empty())
}

/// How things stand.
#[derive(Debug, PartialEq)]
pub struct Assessment {
    pub situation: String,
}

impl Assessment {
    /// A reply that is no JSON is taken as the situation in words.
    pub fn of(reply: &str) -> Self {
        let Some(object) = object(reply) else {
            return Self { situation: cut(reply.trim(), SITUATION_MAX).to_owned() };
        };
        let mut situation = text(&object, "situation").unwrap_or("(not said)").to_owned();
        for fact in object.get("facts").and_then(Value::as_array).into_iter().flatten() {
            if let Some(fact) = fact.as_str() {
                situation.push_str("\n- ");
                situation.push_str(fact);
            }
        }
        Self { situation: cut(&situation, SITUATION_MAX).to_owned() }
    }
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Nothing.
    Noop { reason: String },
    /// A tool call.
    Call { tool: String, args: Args, reason: String },
}

impl Decision {
    /// Anything but a clear tool call decides nothing.
    pub fn of(reply: &str) -> Self {
        let noop = |reason: &str| Self::Noop { reason: one_line(reason, LINE_MAX) };
        let Some(mut object) = object(reply) else {
            return noop("the decision could not be read: it is no JSON object");
        };
        let reason = text(&object, "reason").unwrap_or("no reason given").to_owned();
        let Some(tool) = text(&object, "tool").or_else(|| text(&object, "action")).map(str::to_owned) else {
            return noop("the decision could not be read: it names no tool");
        };
        if matches!(tool.as_str(), "noop" | "none") {
            return noop(&reason);
        }
        match object.remove("args") {
            Some(Value::Object(args)) => Self::Call { tool, args, reason },
            _ => noop("the decision could not be read: `args` is no object"),
        }
    }

    /// For the next prompt.
    pub fn shown(&self) -> String {
        match self {
            Self::Noop { reason } => json!({ "tool": "noop", "reason": reason }).to_string(),
            Self::Call { tool, args, reason } => {
                json!({ "tool": tool, "args": args, "reason": reason }).to_string()
            }
        }
    }

    /// For people.
    pub fn short(&self) -> String {
        match self {
            Self::Noop { reason } => format!("noop: {reason}"),
            Self::Call { tool, args, .. } => {
                let path = args.get("path").and_then(Value::as_str).unwrap_or_default();
                format!("{tool} {path}")
            }
        }
    }
}

/// What came of it.
#[derive(Debug, PartialEq)]
pub struct Reflection {
    pub summary: String,
    pub more: bool,
    pub lesson: Option<String>,
}

impl Reflection {
    /// None when the reply has no summary.
    pub fn of(reply: &str) -> Option<Self> {
        let object = object(reply)?;
        Some(Self {
            summary: text(&object, "summary")?.to_owned(),
            more: object.get("more") == Some(&Value::Bool(true)),
            lesson: text(&object, "lesson").map(str::to_owned),
        })
    }

    /// Without a model's help; asks for no further cycle.
    pub fn plain(summary: &str) -> Self {
        Self { summary: summary.to_owned(), more: false, lesson: None }
    }
}
