//! Typed, checked access to a map of a configuration file. Every accessor reports what is wrong and
//! gives the default then, so one pass finds everything; `finish` reports keys that nobody asked for.
//!
//! With a trace switched on, each accessor also records the effective value and where it came from:
//! that record is what `config dump`, the reload diff and the generated reference are made of.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::report::{Level, Problem, Report, nearest, quoted};
use super::scalars::{
    Parsed, a_boolean, a_choice, a_count, a_decimal, a_duration, a_size, a_text, count_kind, duration_kind,
    optional, size_kind, wrong,
};
use super::values::{show_decimal, show_duration, show_size};
use super::yaml::{Kind, Map, Node, Span};

/// Longest text of a single value, except where a key says otherwise.
pub const TEXT_MAX: usize = 64 * 1024;

/// Where an effective value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// This line of the file.
    Line(u32),
    /// This variable of the environment.
    Env(String),
    /// The command line.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Line(line) => write!(f, "line {line}"),
            Self::Env(name) => write!(f, "${name}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// One key with the value that counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effective {
    /// Dotted path.
    pub key: String,
    /// The value as a person writes it; `***` for what is secret.
    pub value: Value,
    /// Where it comes from.
    pub origin: Origin,
    /// What may be written there.
    #[serde(skip)]
    pub kind: String,
}

/// A value that outranks the file.
#[derive(Clone, Debug)]
pub struct Override {
    /// Dotted path of a key with a single value.
    pub key: String,
    /// The value, read by the rules of a plain YAML scalar.
    pub value: Node,
    /// Who says so.
    pub origin: Origin,
}

impl Override {
    /// A value of the command line, `attach.port` and `0` for example.
    #[must_use]
    pub fn command_line(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), value: Node::plain(value), origin: Origin::CommandLine }
    }
}

/// What all readers of one file share.
pub struct Context<'c> {
    /// The file's name in problems.
    pub file: Arc<str>,
    /// Where problems go.
    pub report: &'c mut Report,
    /// The schedule that is read.
    pub schedule: Option<Arc<str>>,
    /// Values that outrank the file.
    pub overrides: &'c [Override],
    /// The record of effective values; `None` when nobody wants it.
    pub trace: Option<Vec<Effective>>,
}

impl Context<'_> {
    /// Reports an error at a place.
    pub fn error(&mut self, span: Span, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.problem(Level::Error, span, key, message.into(), remedy.into());
    }

    /// Reports a warning at a place.
    pub fn warn(&mut self, span: Span, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.problem(Level::Warning, span, key, message.into(), remedy.into());
    }

    fn problem(&mut self, level: Level, span: Span, key: &str, message: String, remedy: String) {
        // A value from outside the file has no line; its variable stands for the file.
        let outside = self.overrides.iter().find(|over| span == Span::default() && over.key == key);
        let file = outside.map_or_else(|| self.file.clone(), |over| over.origin.to_string().into());
        self.report.push(Problem {
            level,
            file,
            line: span.start.line,
            column: span.start.column,
            key: key.to_owned(),
            schedule: self.schedule.clone(),
            code: None,
            message,
            remedy,
        });
    }
}

/// A map that is being read.
pub struct MapReader<'n> {
    path: String,
    span: Span,
    map: Option<&'n Map>,
    asked: Vec<&'static str>,
}

/// A value that was found, with its place.
struct Found<'a> {
    node: &'a Node,
    origin: Origin,
}

impl<'n> MapReader<'n> {
    /// Reads `node` as a map; nothing there is an empty map. Anything else is reported.
    pub fn new(path: impl Into<String>, node: Option<&'n Node>, ctx: &mut Context<'_>) -> Self {
        let path = path.into();
        let span = node.map(|node| node.span).unwrap_or_default();
        let map = match node.map(|node| &node.kind) {
            Some(Kind::Map(map)) => Some(map),
            _ => {
                if let Some(node) = node
                    && !node.is_null()
                {
                    let found = node.describe();
                    ctx.error(
                        span,
                        &path,
                        format!("expected a map, found {found}"),
                        "write `key: value` pairs",
                    );
                }
                None
            }
        };
        for (entry, line) in map.iter().flat_map(|map| &map.duplicates) {
            let key = join(&path, &entry.key);
            let message = format!("the key stands here for the second time, first on line {line}");
            ctx.error(entry.key_span, &key, message, "remove one of the two");
        }
        Self { path, span, map, asked: Vec::new() }
    }

    /// Its dotted path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where it stands.
    #[must_use]
    pub fn span(&self) -> Span {
        self.span
    }

    /// The dotted path of one of its keys.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// The node of a key as written, null or not, without a check.
    pub fn node(&mut self, name: &'static str) -> Option<&'n Node> {
        self.asked.push(name);
        self.map.and_then(|map| map.get(name))
    }

    /// A map inside it.
    pub fn map(&mut self, name: &'static str, ctx: &mut Context<'_>) -> MapReader<'n> {
        let node = self.node(name);
        MapReader::new(self.key(name), node, ctx)
    }

    /// All entries of a map with free keys, each a map itself.
    pub fn named(&mut self, name: &'static str, ctx: &mut Context<'_>) -> Vec<(&'n str, MapReader<'n>)> {
        let inside = self.map(name, ctx);
        let Some(map) = inside.map else { return Vec::new() };
        let entries = map.entries.iter().map(|entry| {
            let key = inside.key(&entry.key);
            if entry.key.is_empty() || entry.key.contains('\0') {
                ctx.error(entry.key_span, &key, "a name must not be empty or hold a NUL", "name it");
            }
            (&*entry.key, MapReader::new(key, Some(&entry.value), ctx))
        });
        entries.collect()
    }

    /// Reports keys that were never asked for, with the nearest that was.
    pub fn finish(self, ctx: &mut Context<'_>) {
        let Some(map) = self.map else { return };
        for entry in map.entries.iter().filter(|entry| !self.asked.contains(&&*entry.key)) {
            let remedy = match nearest(&entry.key, self.asked.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => {
                    // A key may be asked for twice, for its value and for its place.
                    let mut known = self.asked.clone();
                    known.sort_unstable();
                    known.dedup();
                    format!("known here: {}", known.join(", "))
                }
            };
            let key = if entry.key.len() > 200 { quoted(&entry.key) } else { entry.key.to_string() };
            ctx.error(entry.key_span, &join(&self.path, &key), "unknown key", remedy);
        }
    }

    /// The heart of all accessors: finds the value (an override, then the file), parses it, reports
    /// what is wrong, records what counts.
    fn value<T>(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        default: T,
        kind: impl FnOnce() -> String,
        parse: impl FnOnce(&Node) -> Parsed<Option<T>>,
        show: impl FnOnce(&T) -> Value,
    ) -> T {
        self.asked.push(name);
        let overrides = ctx.overrides;
        let key = || join(&self.path, name);
        let outer = (!overrides.is_empty())
            .then(key)
            .and_then(|key| overrides.iter().rev().find(|over| over.key == key));
        let found = match outer {
            Some(over) => Some(Found { node: &over.value, origin: over.origin.clone() }),
            None => self
                .map
                .and_then(|map| map.entry(name))
                .map(|entry| Found { node: &entry.value, origin: Origin::Line(entry.key_span.start.line) }),
        };
        let (value, origin) = match found {
            None => (default, Origin::Default),
            Some(Found { node, origin }) => match parse(node) {
                Ok(Some(value)) => (value, origin),
                Ok(None) => (default, Origin::Default),
                Err((message, remedy)) => {
                    ctx.error(node.span, &key(), message, remedy);
                    (default, Origin::Default)
                }
            },
        };
        if let Some(trace) = &mut ctx.trace {
            trace.push(Effective { key: key(), value: show(&value), origin, kind: kind() });
        }
        value
    }

    /// A duration within a range.
    pub fn duration(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let kind = || duration_kind(&range);
        let parse = |node: &Node| optional(node, |node| a_duration(node, &range));
        self.value(name, ctx, default, kind, parse, |value| show_duration(*value).into())
    }

    /// A duration within a range, or none.
    pub fn opt_duration(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let kind = || duration_kind(&range);
        let parse = |node: &Node| optional(node, |node| a_duration(node, &range).map(Some));
        self.value(name, ctx, None, kind, parse, |value| value.map(show_duration).into())
    }

    /// A number of bytes within a range, or none.
    pub fn opt_size(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let kind = || size_kind(&range);
        let parse = |node: &Node| optional(node, |node| a_size(node, &range).map(Some));
        self.value(name, ctx, None, kind, parse, |value| value.map(show_size).into())
    }

    /// A whole number within a range.
    pub fn count(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let kind = || count_kind(&range);
        let parse = |node: &Node| optional(node, |node| a_count(node, &range));
        self.value(name, ctx, default, kind, parse, |value| (*value).into())
    }

    /// A whole number within a range, or none; an explicit null says none even when there is a default.
    pub fn opt_count(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        default: Option<u64>,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let kind = || format!("{}, or null", count_kind(&range));
        let parse = |node: &Node| {
            if node.is_null() { Ok(Some(None)) } else { a_count(node, &range).map(|value| Some(Some(value))) }
        };
        self.value(name, ctx, default, kind, parse, |value| (*value).into())
    }

    /// A decimal amount in billionths (nano-dollars, for example), or none.
    pub fn opt_decimal(&mut self, name: &'static str, ctx: &mut Context<'_>) -> Option<u64> {
        let kind = || "number with at most 9 decimals, or null".to_owned();
        let parse = |node: &Node| optional(node, |node| a_decimal(node).map(Some));
        self.value(name, ctx, None, kind, parse, |value| {
            value.map_or(Value::Null, |nano| show_decimal(nano).into())
        })
    }

    /// A decimal amount within a range, in billionths.
    pub fn decimal(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let kind =
            || format!("number from {} to {}", show_decimal(*range.start()), show_decimal(*range.end()));
        let parse = |node: &Node| {
            optional(node, |node| {
                let value = a_decimal(node)?;
                if range.contains(&value) {
                    return Ok(value);
                }
                let (low, high) = (show_decimal(*range.start()), show_decimal(*range.end()));
                Err((
                    format!("{} is not from {low} to {high}", show_decimal(value)),
                    format!("write a number from {low} to {high}"),
                ))
            })
        };
        self.value(name, ctx, default, kind, parse, |value| show_decimal(*value).into())
    }

    /// True or false.
    pub fn boolean(&mut self, name: &'static str, ctx: &mut Context<'_>, default: bool) -> bool {
        let kind = || "true or false".to_owned();
        self.value(name, ctx, default, kind, |node| optional(node, a_boolean), |value| (*value).into())
    }

    /// A text that is not empty, or none.
    pub fn text(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        default: Option<&str>,
    ) -> Option<String> {
        let parse = |node: &Node| optional(node, |node| a_text(node, TEXT_MAX).map(Some));
        self.value(
            name,
            ctx,
            default.map(str::to_owned),
            || "text".to_owned(),
            parse,
            |value| value.clone().into(),
        )
    }

    /// One of a few words.
    pub fn choice<T: Copy + PartialEq>(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        default: T,
        words: &[(&'static str, T)],
    ) -> T {
        self.opt_choice_or(name, ctx, Some(default), words).unwrap_or(default)
    }

    /// One of a few words, or none.
    pub fn opt_choice<T: Copy + PartialEq>(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        self.opt_choice_or(name, ctx, None, words)
    }

    fn opt_choice_or<T: Copy + PartialEq>(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        default: Option<T>,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        let list = || words.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        let parse = |node: &Node| optional(node, |node| a_choice(node, words).map(Some));
        let show = |value: &Option<T>| {
            let word = words.iter().find(|(_, known)| Some(*known) == *value).map(|(word, _)| *word);
            word.map_or(Value::Null, Value::from)
        };
        self.value(name, ctx, default, || format!("one of {}", list()), parse, show)
    }

    /// A list of texts, or none.
    pub fn texts(&mut self, name: &'static str, ctx: &mut Context<'_>) -> Option<Vec<String>> {
        let parse = |node: &Node| {
            optional(node, |node| match &node.kind {
                Kind::List(items) => {
                    items.iter().map(|item| a_text(item, TEXT_MAX)).collect::<Parsed<_>>().map(Some)
                }
                _ => wrong(format!("expected a list, found {}", node.describe()), "write `[a, b]`"),
            })
        };
        self.value(name, ctx, None, || "list of texts".to_owned(), parse, |value| value.clone().into())
    }

    /// A map of anything, kept as JSON. `redact` names parts that a dump must not show.
    pub fn json_map(
        &mut self,
        name: &'static str,
        ctx: &mut Context<'_>,
        redact: fn(&mut Value),
    ) -> serde_json::Map<String, Value> {
        let path = self.key(name);
        if let Some(node) = self.map.and_then(|map| map.get(name)) {
            report_duplicates(node, &path, ctx);
        }
        let parse = |node: &Node| {
            optional(node, |node| match node.to_json() {
                Value::Object(map) => Ok(map),
                _ => wrong(format!("expected a map, found {}", node.describe()), "write `key: value` pairs"),
            })
        };
        self.value(
            name,
            ctx,
            serde_json::Map::new(),
            || "map".to_owned(),
            parse,
            |map| {
                let mut shown = Value::Object(map.clone());
                redact(&mut shown);
                shown
            },
        )
    }

    /// Records a value that was read by hand.
    pub fn record(
        &mut self,
        name: &str,
        ctx: &mut Context<'_>,
        kind: &str,
        value: Value,
        span: Option<Span>,
    ) {
        if let Some(trace) = &mut ctx.trace {
            let origin = span.map_or(Origin::Default, |span| Origin::Line(span.start.line));
            trace.push(Effective { key: join(&self.path, name), value, origin, kind: kind.to_owned() });
        }
    }
}

/// Reports the duplicate keys of a subtree that no reader walks.
pub fn report_duplicates(node: &Node, path: &str, ctx: &mut Context<'_>) {
    match &node.kind {
        Kind::Scalar(..) => {}
        Kind::List(items) => {
            for (at, item) in items.iter().enumerate() {
                report_duplicates(item, &format!("{path}[{at}]"), ctx);
            }
        }
        Kind::Map(map) => {
            for (entry, line) in &map.duplicates {
                let message = format!("the key stands here for the second time, first on line {line}");
                ctx.error(entry.key_span, &join(path, &entry.key), message, "remove one of the two");
            }
            for entry in &map.entries {
                report_duplicates(&entry.value, &join(path, &entry.key), ctx);
            }
        }
    }
}

/// Leaves a value as it is in a dump.
pub fn nothing_secret(_: &mut Value) {}

/// The dotted path of a key; a name with a dot in it is quoted.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        return name.to_owned();
    }
    let mut joined = String::with_capacity(path.len() + name.len() + 1);
    let name: Cow<'_, str> =
        if name.contains(['.', ' ', '\n', '[']) { quoted(name).into() } else { name.into() };
    write!(joined, "{path}.{name}").expect("writing to a String does not fail");
    joined
}
