//! A YAML (and so JSON) reader that keeps positions and is bounded in depth, aliases and size.
//!
//! Built on the events of `saphyr-parser` and not on the tree of `saphyr`: that tree silently keeps
//! the last of two equal keys, expands aliases without a bound and holds a million schedules at once.
//! Here duplicates are kept beside the map, and one list of the root can be streamed.

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, Tag};
use serde_json::Value;

use super::report::{Level, Problem, Report};

/// Deeper nesting is refused; nobody writes it, and readers recurse.
pub const MAX_DEPTH: usize = 64;
/// Nodes that all anchors and aliases of one file may stand for together.
const MAX_ALIASED: usize = 100_000;
/// Maps up to this size look for duplicates by scanning.
const SCANNED: usize = 16;

/// A place in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Characters from the start of the text.
    pub index: usize,
    /// Line from 1.
    pub line: u32,
    /// Column from 1, in characters.
    pub column: u32,
}

/// Where a node stands. The end of a block collection is the start of what follows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its first character.
    pub start: Mark,
    /// The place after its last.
    pub end: Mark,
}

/// How a node was written, as far as editing cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A scalar without quotes; its text decides its type.
    Plain,
    /// A scalar in quotes, always text.
    Quoted,
    /// A `|` or `>` scalar, always text; its span starts below its header.
    Block,
    /// A list or map by indentation.
    Indented,
    /// A list or map in brackets.
    Bracketed,
    /// Came from an anchor elsewhere; the span is that of the alias.
    Alias,
}

/// One value with its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// The value.
    pub kind: Kind,
    /// Where it stands.
    pub span: Span,
    /// How it was written.
    pub style: Style,
}

/// The three shapes of YAML.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A scalar's text and the type its tag forces upon it.
    Scalar(Box<str>, Option<Forced>),
    /// A list.
    List(Vec<Node>),
    /// A map.
    Map(Map),
}

/// A type that a core tag (`!!str`) forces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// `!!str`
    Text,
    /// Any other core tag: the plain rules decide, whatever the quotes.
    Plain,
}

/// A map in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Map {
    /// Its entries; no two with one key.
    pub entries: Vec<Entry>,
    /// Later entries of a key that was already there, and the line of the first.
    pub duplicates: Vec<(Entry, u32)>,
}

/// One entry of a map.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key's text.
    pub key: Box<str>,
    /// Where the key stands.
    pub key_span: Span,
    /// The value.
    pub value: Node,
    /// True when it came in by a `<<` merge.
    pub merged: bool,
}

impl Map {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of a key.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| &*entry.key == key)
    }
}

/// A scalar's value by the rules of YAML 1.2's core schema.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar<'n> {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Another number.
    Float(f64),
    /// Anything else.
    Text(&'n str),
}

impl Node {
    /// A plain scalar without a place, for values that do not come from a file.
    #[must_use]
    pub fn plain(text: &str) -> Self {
        Self { kind: Kind::Scalar(text.into(), None), span: Span::default(), style: Style::Plain }
    }

    /// The scalar's value; `None` for lists and maps.
    #[must_use]
    pub fn scalar(&self) -> Option<Scalar<'_>> {
        let Kind::Scalar(text, forced) = &self.kind else { return None };
        let plain = match forced {
            Some(Forced::Text) => false,
            Some(Forced::Plain) => true,
            None => self.style == Style::Plain,
        };
        Some(if plain { resolve(text) } else { Scalar::Text(text) })
    }

    /// True for an absent value: empty, `~` or `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.scalar() == Some(Scalar::Null)
    }

    /// As JSON. Numbers that JSON cannot hold become their text.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match &self.kind {
            Kind::List(items) => items.iter().map(Self::to_json).collect(),
            Kind::Map(map) => Value::Object(
                map.entries.iter().map(|entry| (entry.key.to_string(), entry.value.to_json())).collect(),
            ),
            Kind::Scalar(raw, _) => match self.scalar() {
                None | Some(Scalar::Null) => Value::Null,
                Some(Scalar::Bool(value)) => value.into(),
                Some(Scalar::Int(value)) => serde_json::Number::from_i128(value)
                    .map_or_else(|| Value::String(raw.to_string()), Value::Number),
                Some(Scalar::Float(value)) => serde_json::Number::from_f64(value)
                    .map_or_else(|| Value::String(raw.to_string()), Value::Number),
                Some(Scalar::Text(text)) => text.into(),
            },
        }
    }

    /// What it is, in a word for a message.
    #[must_use]
    pub fn describe(&self) -> String {
        match (&self.kind, self.scalar()) {
            (Kind::List(_), _) => "a list".to_owned(),
            (Kind::Map(_), _) => "a map".to_owned(),
            (_, None | Some(Scalar::Null)) => "nothing".to_owned(),
            (_, Some(Scalar::Bool(value))) => format!("the boolean {value}"),
            (Kind::Scalar(raw, _), Some(Scalar::Int(_) | Scalar::Float(_))) => {
                format!("the number {}", super::report::quoted(raw).trim_matches('"'))
            }
            (_, Some(Scalar::Text(text))) => format!("the text {}", super::report::quoted(text)),
        }
    }

    fn cost(&self) -> usize {
        1 + match &self.kind {
            // Long texts count for the memory that a copy takes.
            Kind::Scalar(text, _) => text.len() / 64,
            Kind::List(items) => items.iter().map(Self::cost).sum(),
            Kind::Map(map) => map.entries.iter().map(|entry| entry.value.cost() + entry.key.len() / 64).sum(),
        }
    }
}

fn resolve(text: &str) -> Scalar<'_> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "true" | "True" | "TRUE" => return Scalar::Bool(true),
        "false" | "False" | "FALSE" => return Scalar::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" => return Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Scalar::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Scalar::Float(f64::NAN),
        _ => {}
    }
    let first = text.as_bytes()[0];
    if !(first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.')) {
        return Scalar::Text(text);
    }
    let radix = |prefix: &str, radix| {
        text.strip_prefix(prefix).and_then(|digits| i128::from_str_radix(digits, radix).ok())
    };
    if let Some(value) = text.parse().ok().or_else(|| radix("0x", 16)).or_else(|| radix("0o", 8)) {
        return Scalar::Int(value);
    }
    // Rust also reads `infinity`; a digit tells numbers from words.
    if text.bytes().any(|byte| byte.is_ascii_digit())
        && let Ok(value) = text.parse()
    {
        return Scalar::Float(value);
    }
    Scalar::Text(text)
}

/// Takes the items of one list of the root as they are read, so that they need not all be held.
pub struct Stream<'h> {
    /// The key of the list.
    pub key: &'static str,
    /// Takes one item.
    pub take: &'h mut dyn FnMut(Node, &mut Report),
}

/// Reads one document. `None`, with the reason in the report, when it cannot be read at all.
/// Items of the streamed list are handed over and missing in the tree.
pub fn load(text: &str, file: &Arc<str>, report: &mut Report, stream: Option<Stream<'_>>) -> Option<Node> {
    let mut loader = Loader {
        parser: Parser::new_from_str(text),
        text,
        file,
        report,
        anchors: HashMap::new(),
        aliased: 0,
        stream,
    };
    loader.document().ok()
}

/// Checks bytes before they are read as YAML: UTF-8 without NUL. Cuts a byte order mark.
pub fn text_of<'b>(bytes: &'b [u8], file: &Arc<str>, report: &mut Report) -> Option<&'b str> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let (at, what, remedy) = match std::str::from_utf8(bytes) {
        Err(error) => (error.valid_up_to(), "not UTF-8 text", "save the file as UTF-8"),
        Ok(text) => match text.find('\0') {
            // The parser takes a NUL for the end of the text.
            Some(at) => (at, "a NUL byte", "remove it; the file may be damaged"),
            None => return Some(text),
        },
    };
    let before = String::from_utf8_lossy(&bytes[..at]);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    report.push(Problem { line: small(line), column: small(column), ..Problem::of_file(file, what, remedy) });
    None
}

fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn mark(marker: saphyr_parser::Marker) -> Mark {
    Mark { index: marker.index(), line: small(marker.line()), column: small(marker.col() + 1) }
}

/// Reading stopped; the reason is in the report.
struct Stopped;

struct Loader<'t, 'r, 'h> {
    parser: Parser<'t, StrInput<'t>>,
    text: &'t str,
    file: &'r Arc<str>,
    report: &'r mut Report,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    stream: Option<Stream<'h>>,
}

type Step<T> = Result<T, Stopped>;

impl<'t> Loader<'t, '_, '_> {
    fn document(&mut self) -> Step<Node> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                _ if root.is_some() => {
                    self.problem(span, "a second document", "keep one document in the file, without `---`");
                    return Err(Stopped);
                }
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        Ok(root.unwrap_or_else(|| Node::plain("")))
    }

    fn next(&mut self) -> Step<(Event<'t>, Span)> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, Span { start: mark(span.start), end: mark(span.end) })),
            Some(Err(error)) => {
                self.syntax(&error);
                Err(Stopped)
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Step<Node> {
        if depth > MAX_DEPTH {
            self.problem(span, format!("nested deeper than {MAX_DEPTH} levels"), "flatten it");
            return Err(Stopped);
        }
        let (anchor, node) = match event {
            Event::Alias(id) => return self.alias(id, span),
            Event::Scalar(text, style, anchor, tag) => {
                let forced = self.forced(tag.as_deref(), span);
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                };
                (anchor, Node { kind: Kind::Scalar(text.into(), forced), span, style })
            }
            Event::SequenceStart(anchor, tag) => {
                self.forced(tag.as_deref(), span);
                (anchor, self.list(span, depth)?)
            }
            Event::MappingStart(anchor, tag) => {
                self.forced(tag.as_deref(), span);
                (anchor, self.map(span, depth)?)
            }
            _ => {
                self.problem(span, "not a value", "the file may be damaged");
                return Err(Stopped);
            }
        };
        if anchor > 0 {
            self.count_copy(&node)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, start: Span, depth: usize) -> Step<Node> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(collection(Kind::List(items), start, span));
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn map(&mut self, start: Span, depth: usize) -> Step<Node> {
        let mut map = Map::default();
        let mut seen = HashMap::new();
        loop {
            let (event, key_span) = self.next()?;
            if event == Event::MappingEnd {
                merge(&mut map);
                return Ok(collection(Kind::Map(map), start, key_span));
            }
            let key = self.node(event, key_span, depth + 1)?;
            let Kind::Scalar(key, _) = key.kind else {
                self.problem(key_span, "a key must be text", "write a plain or quoted word before the colon");
                return Err(Stopped);
            };
            let first = if map.entries.len() < SCANNED {
                map.entries.iter().find(|entry| entry.key == key).map(|entry| entry.key_span.start.line)
            } else {
                if seen.is_empty() {
                    let line = |entry: &Entry| (entry.key.clone(), entry.key_span.start.line);
                    seen.extend(map.entries.iter().map(line));
                }
                let first = seen.get(&key).copied();
                seen.entry(key.clone()).or_insert(key_span.start.line);
                first
            };
            let (event, span) = self.next()?;
            let value = if depth == 0 && first.is_none() && self.streams(&key, &event) {
                self.streamed(span)?
            } else {
                self.node(event, span, depth + 1)?
            };
            let entry = Entry { key, key_span, value, merged: false };
            match first {
                None => map.entries.push(entry),
                Some(line) => map.duplicates.push((entry, line)),
            }
        }
    }

    fn streams(&self, key: &str, event: &Event<'_>) -> bool {
        matches!(event, Event::SequenceStart(..)) && self.stream.as_ref().is_some_and(|to| to.key == key)
    }

    fn streamed(&mut self, start: Span) -> Step<Node> {
        let stream = self.stream.take().expect("it was just asked for");
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(collection(Kind::List(Vec::new()), start, span));
            }
            let item = self.node(event, span, 2)?;
            (stream.take)(item, self.report);
        }
    }

    fn alias(&mut self, id: usize, span: Span) -> Step<Node> {
        let Some(node) = self.anchors.get(&id).cloned() else {
            self.problem(span, "an alias to something that is not complete", "write the value out");
            return Err(Stopped);
        };
        self.count_copy(&node)?;
        Ok(Node { span, style: Style::Alias, ..forced_by_style(node) })
    }

    fn count_copy(&mut self, node: &Node) -> Step<()> {
        self.aliased += node.cost();
        if self.aliased <= MAX_ALIASED {
            return Ok(());
        }
        self.problem(
            node.span,
            format!("anchors and aliases stand for more than {MAX_ALIASED} values"),
            "write the values out",
        );
        Err(Stopped)
    }

    fn forced(&mut self, tag: Option<&Tag>, span: Span) -> Option<Forced> {
        let tag = tag?;
        match (tag.is_yaml_core_schema(), tag.suffix.as_str()) {
            (true, "str") => return Some(Forced::Text),
            (true, "int" | "float" | "bool" | "null") => return Some(Forced::Plain),
            (true, "map" | "seq") => {}
            _ => self.problem(span, format!("the tag {tag} has no meaning here"), "remove the tag"),
        }
        None
    }

    fn problem(&mut self, span: Span, message: impl Into<String>, remedy: impl Into<String>) {
        self.report.push(Problem {
            line: span.start.line,
            column: span.start.column,
            ..Problem::of_file(self.file, message, remedy)
        });
    }

    fn syntax(&mut self, error: &ScanError) {
        let at = mark(*error.marker());
        let line = self.text.lines().nth(at.line as usize - 1).unwrap_or("");
        let value = line.split_once(": ").map_or("", |(_, value)| value.trim_start());
        let remedy = if line.trim_start_matches(' ').starts_with('\t') {
            "indent with spaces, not tabs".to_owned()
        } else if value.starts_with(['*', '@', '%', '`', '&', '!']) || value.contains(": ") {
            format!("put the value in quotes: \"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
        } else {
            "check quotes, brackets and indentation here and on the line before".to_owned()
        };
        self.report.push(Problem {
            level: Level::Error,
            line: at.line,
            column: at.column,
            ..Problem::of_file(self.file, format!("not valid YAML: {}", error.info()), remedy)
        });
    }
}

/// An alias loses the style that made its text a text; the forced type keeps it.
fn forced_by_style(node: Node) -> Node {
    let kind = match node.kind {
        Kind::Scalar(text, None) => {
            let forced = if node.style == Style::Plain { Forced::Plain } else { Forced::Text };
            Kind::Scalar(text, Some(forced))
        }
        kind => kind,
    };
    Node { kind, ..node }
}

fn collection(kind: Kind, start: Span, end: Span) -> Node {
    // Brackets are one character; the opening event of an indented collection is empty.
    let bracketed = start.end.index > start.start.index && end.end.index > end.start.index;
    if !bracketed {
        let span = Span { start: start.start, end: end.start };
        return Node { kind, span, style: Style::Indented };
    }
    // The parser's end reaches over a comment that follows; the bracket itself is one character.
    let after = Mark { index: end.start.index + 1, column: end.start.column + 1, ..end.start };
    Node { kind, span: Span { start: start.start, end: after }, style: Style::Bracketed }
}

/// Resolves `<<`: entries of the merged maps that the map does not have itself.
fn merge(map: &mut Map) {
    let Some(at) = map.entries.iter().position(|entry| &*entry.key == "<<") else { return };
    let sources: Vec<Map> = match &map.entries[at].value.kind {
        Kind::Map(source) => vec![source.clone()],
        Kind::List(items) => {
            let maps = items.iter().map(|item| match &item.kind {
                Kind::Map(source) => Some(source.clone()),
                _ => None,
            });
            match maps.collect() {
                Some(maps) => maps,
                None => return,
            }
        }
        Kind::Scalar(..) => return,
    };
    map.entries.remove(at);
    for entry in sources.into_iter().flat_map(|source| source.entries) {
        if map.get(&entry.key).is_none() {
            map.entries.push(Entry { merged: true, ..entry });
        }
    }
}

#[cfg(test)]
#[path = "yaml_tests.rs"]
mod tests;
