//! Plans splices of a YAML text: where an entry begins and ends, and how a new one is written there.
//! It may be wrong about exotic texts; its caller reads the result again before it trusts it.

use std::ops::Range;

use serde_json::{Map, Value};

use super::edit::{EditError, not_possible};
use super::keys;
use super::yaml::{Entry, Kind, Mark, Node, Scalar, Style};

type Step = Result<(), EditError>;

/// Collects splices of one text.
pub(super) struct Splicer<'t> {
    text: &'t str,
    /// Byte of each character; empty when they are the same.
    bytes: Vec<usize>,
    /// Byte ranges of the lines, their ends included.
    lines: Vec<Range<usize>>,
    eol: &'static str,
    splices: Vec<(Range<usize>, String)>,
}

impl<'t> Splicer<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let bytes =
            if text.is_ascii() { Vec::new() } else { text.char_indices().map(|(at, _)| at).collect() };
        // A lone carriage return ends a line too, as it does for the parser.
        let mut lines = Vec::new();
        let mut start = 0;
        for (at, end) in text.match_indices(['\n', '\r']) {
            if end == "\r" && text[at + 1..].starts_with('\n') {
                continue;
            }
            lines.push(start..at + 1);
            start = at + 1;
        }
        if start < text.len() {
            lines.push(start..text.len());
        }
        let eol = if text.contains("\r\n") { "\r\n" } else { "\n" };
        Self { text, bytes, lines, eol, splices: Vec::new() }
    }

    /// The text with all splices made.
    pub(super) fn finish(mut self) -> String {
        // Stable: insertions at one place stay in the order they were asked for.
        self.splices.sort_by_key(|(range, _)| (range.start, range.end));
        let mut changed = String::with_capacity(self.text.len() + 256);
        let mut done = 0;
        for (range, with) in &self.splices {
            let fits = self.text.is_char_boundary(range.start) && self.text.is_char_boundary(range.end);
            if range.start < done || range.end < range.start || !fits {
                // Plans that overlap or miss: the caller's check refuses what comes out.
                continue;
            }
            changed.push_str(&self.text[done..range.start]);
            changed.push_str(with);
            done = range.end;
        }
        changed.push_str(&self.text[done..]);
        changed
    }

    /// Plans a new entry at the end of `schedules`.
    pub(super) fn add_item(&mut self, root: &Node, entry: &Map<String, Value>) -> Step {
        let map = match &root.kind {
            Kind::Map(map) => Some(map),
            _ if root.is_null() => None,
            _ => return not_possible("the file is not a map"),
        };
        let Some(list) = map.and_then(|map| map.entry("schedules")) else {
            return self.add_first(root, entry);
        };
        match (&list.value.kind, list.value.style) {
            (Kind::List(items), Style::Indented) => {
                let indent = (self.dash_column(&list.value)? as usize).saturating_sub(1);
                let line = items.last().map_or(list.key_span.end.line, content_line_of(self));
                self.insert_line(line, &self.block_item(entry, indent));
            }
            (Kind::List(items), Style::Bracketed) if items.is_empty() && root.style == Style::Indented => {
                let block = format!("{}{}", self.eol, self.block_item(entry, 2));
                let range = self.range(list.value.span.start, list.value.span.end);
                // The bracket's line may go on with a comment, so the entries go below that line.
                let line = self.line(list.value.span.end.line);
                let after = self.text[range.end..line.end].trim_end();
                if after.is_empty() {
                    let blank =
                        self.text[..range.start].len() - self.text[..range.start].trim_end_matches(' ').len();
                    self.splices.push((
                        range.start - blank..range.end,
                        block.trim_end_matches(['\r', '\n']).to_owned(),
                    ));
                } else {
                    self.splices.push((range, String::new()));
                    self.insert_line(list.value.span.end.line, &self.block_item(entry, 2));
                }
            }
            (Kind::List(items), Style::Bracketed) => {
                let text = Value::Object(entry.clone()).to_string();
                self.insert_bracketed(&list.value, items.last().map(|item| item.span.end), &text);
            }
            _ if list.value.is_null()
                && list.value.style == Style::Plain
                && root.style == Style::Indented =>
            {
                if !self.slice(list.value.span.start, list.value.span.end).is_empty() {
                    return not_possible("`schedules` is written as null");
                }
                self.insert_line(list.key_span.end.line, &self.block_item(entry, 2));
            }
            _ => return not_possible("`schedules` is not a list that can be added to"),
        }
        Ok(())
    }

    /// The list itself is missing.
    fn add_first(&mut self, root: &Node, entry: &Map<String, Value>) -> Step {
        match (&root.kind, root.style) {
            (Kind::Map(map), Style::Bracketed) => {
                let text = format!("\"schedules\": [{}]", Value::Object(entry.clone()));
                let last = map.entries.last().map(|entry| entry.value.span.end);
                self.insert_bracketed(root, last, &text);
            }
            _ if root.style == Style::Indented || self.text_is_blank() => {
                let block = format!("schedules:{}{}", self.eol, self.block_item(entry, 2));
                self.insert_line(u32::try_from(self.lines.len()).unwrap_or(u32::MAX), &block);
            }
            _ => return not_possible("the file is not a map"),
        }
        Ok(())
    }

    fn text_is_blank(&self) -> bool {
        self.text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
    }

    /// Plans the removal of one entry of `schedules`.
    pub(super) fn remove_item(&mut self, root: &Node, at: usize) -> Step {
        let Kind::Map(map) = &root.kind else { return not_possible("the file is not a map") };
        let Some(list) = map.get("schedules") else { return not_possible("`schedules` is missing") };
        let Kind::List(items) = &list.kind else { return not_possible("`schedules` is not a list") };
        let item = &items[at];
        match list.style {
            Style::Indented => {
                let first = self.dash_line(item, self.dash_column(list)?)?;
                let last = self.content_line(item);
                self.splices.push((self.whole_lines(first, last), String::new()));
            }
            Style::Bracketed => self.remove_between(
                item.span.start,
                item.span.end,
                at.checked_sub(1).map(|before| items[before].span.end),
                items.get(at + 1).map(|after| after.span.start),
            ),
            _ => return not_possible("`schedules` comes from elsewhere"),
        }
        Ok(())
    }

    /// Plans a value of a key; `None` takes the key out.
    pub(super) fn set(&mut self, node: &Node, path: &[&str], value: Option<&Value>) -> Step {
        let [key, rest @ ..] = path else { return not_possible("the key is empty") };
        let Kind::Map(map) = &node.kind else { return not_possible("the entry is not a map") };
        if node.style == Style::Alias {
            return not_possible(format!("`{key}` comes from an alias"));
        }
        match (map.entry(key), value) {
            (None, None) => Ok(()),
            (Some(entry), _) if entry.merged => not_possible(format!("`{key}` comes from a merge")),
            (None, Some(value)) => self.insert_key(node, key, &nested(rest, value)),
            (Some(entry), value) if !rest.is_empty() => match (&entry.value.kind, value) {
                (Kind::Map(_), value) => self.set(&entry.value, rest, value),
                (_, Some(value)) if entry.value.is_null() => self.replace(node, entry, &nested(rest, value)),
                (_, None) if entry.value.is_null() => Ok(()),
                _ => not_possible(format!("`{key}` is not a map")),
            },
            (Some(entry), Some(value)) if entry.value.to_json() == *value => Ok(()),
            (Some(entry), Some(value)) => self.replace(node, entry, value),
            (Some(_), None) => self.remove_key(node, key),
        }
    }

    fn replace(&mut self, parent: &Node, entry: &Entry, value: &Value) -> Step {
        let span = entry.value.span;
        let text = if parent.style == Style::Bracketed { value.to_string() } else { inline(value) };
        let written = self.slice(span.start, span.end);
        let inline_value =
            matches!(entry.value.style, Style::Plain | Style::Quoted | Style::Bracketed | Style::Alias);
        if inline_value && !written.is_empty() {
            self.splices.push((self.range(span.start, span.end), text));
            return Ok(());
        }
        let key_end = self.byte(entry.key_span.end);
        let Some(colon) = self.text[key_end..].find(':').map(|ahead| key_end + ahead + 1) else {
            return not_possible("the key has no colon");
        };
        let end = match entry.value.style {
            Style::Block | Style::Indented => {
                let line = self.line(self.content_line(&entry.value));
                self.text[..line.end].trim_end_matches(['\r', '\n']).len()
            }
            _ => colon,
        };
        if self.text[colon..end].lines().next().is_some_and(|header| header.contains('#')) {
            return not_possible("a comment stands between the key and its value");
        }
        self.splices.push((colon..end, format!(" {text}")));
        Ok(())
    }

    fn insert_key(&mut self, parent: &Node, key: &str, value: &Value) -> Step {
        let Kind::Map(map) = &parent.kind else { return not_possible("the entry is not a map") };
        let own = || map.entries.iter().filter(|entry| !entry.merged);
        if parent.style == Style::Bracketed {
            let json = self.text.trim_start().starts_with('{');
            let quoted_keys =
                json || own().any(|entry| self.text[self.byte(entry.key_span.start)..].starts_with('"'));
            let key =
                if quoted_keys || !is_plain(key) { Value::from(key).to_string() } else { key.to_owned() };
            let last = own().map(|entry| entry.value.span.end).max_by_key(|end| end.index);
            self.insert_bracketed(parent, last, &format!("{key}: {value}"));
            return Ok(());
        }
        let Some(first) = own().next() else { return not_possible("the entry has no keys of its own") };
        let indent = (first.key_span.start.column as usize).saturating_sub(1);
        let line = self.content_line(parent);
        let mut text = String::new();
        self.block_entry(&mut text, key, value, indent);
        self.insert_line(line, &text);
        Ok(())
    }

    fn remove_key(&mut self, parent: &Node, key: &str) -> Step {
        let Kind::Map(map) = &parent.kind else { return not_possible("the entry is not a map") };
        let own: Vec<&Entry> = map.entries.iter().filter(|entry| !entry.merged).collect();
        let Some(at) = own.iter().position(|entry| &*entry.key == key) else { return Ok(()) };
        let entry = own[at];
        let before = at.checked_sub(1).map(|before| own[before]);
        let after = own.get(at + 1);
        if parent.style == Style::Bracketed {
            self.remove_between(
                entry.key_span.start,
                entry.value.span.end,
                before.map(|entry| entry.value.span.end),
                after.map(|entry| entry.key_span.start),
            );
            return Ok(());
        }
        let line = self.line(entry.key_span.start.line);
        let start = self.byte(entry.key_span.start);
        if self.text[line.start..start].trim().is_empty() {
            let last = self.content_line(&entry.value).max(entry.key_span.end.line);
            self.splices.push((self.whole_lines(entry.key_span.start.line, last), String::new()));
            return Ok(());
        }
        // It shares its line with the dash: the next key takes its place.
        let Some(next) = after else { return not_possible("the entry would be empty") };
        let range = start..self.byte(next.key_span.start);
        if self.text[range.clone()].contains('#') {
            return not_possible("a comment stands between this key and the next");
        }
        self.splices.push((range, String::new()));
        Ok(())
    }

    /// Inserts into brackets, after the last entry or right after the opening bracket.
    fn insert_bracketed(&mut self, node: &Node, last: Option<Mark>, text: &str) {
        let (at, text) = match last {
            Some(end) => (self.byte(end), format!(", {text}")),
            None => (self.byte(node.span.start) + 1, text.to_owned()),
        };
        self.splices.push((at..at, text));
    }

    /// Removes an entry in brackets with the comma that belongs to it.
    fn remove_between(&mut self, start: Mark, end: Mark, before: Option<Mark>, after: Option<Mark>) {
        let range = match (before, after) {
            (_, Some(next)) => self.byte(start)..self.byte(next),
            (Some(before), None) => self.byte(before)..self.byte(end),
            (None, None) => self.byte(start)..self.byte(end),
        };
        self.splices.push((range, String::new()));
    }

    fn insert_line(&mut self, after: u32, text: &str) {
        let at =
            (after as usize).checked_sub(1).and_then(|line| self.lines.get(line)).map_or(0, |line| line.end);
        let unfinished = at > 0 && !self.text[..at].ends_with('\n');
        let text = if unfinished {
            format!("{}{}", self.eol, text.trim_end_matches(['\r', '\n']))
        } else {
            text.to_owned()
        };
        self.splices.push((at..at, text));
    }

    /// The last line that holds something of a node; comments and blank lines after it do not count.
    fn content_line(&self, node: &Node) -> u32 {
        match (&node.kind, node.style) {
            (_, Style::Alias | Style::Plain | Style::Quoted | Style::Bracketed) => node.span.end.line,
            (_, Style::Block) => {
                // The parser has looked into the line after the text, up to where it is no part of it.
                let end = node.span.end;
                let of_line = self.line(end.line).start;
                let ahead = &self.text[of_line..self.byte(end).max(of_line)];
                let mut line = if ahead.trim().is_empty() { end.line - 1 } else { end.line };
                while line > node.span.start.line && self.text[self.line(line)].trim().is_empty() {
                    line -= 1;
                }
                line
            }
            (Kind::List(items), _) => items.iter().map(|item| self.content_line(item)).max().unwrap_or(0),
            (Kind::Map(map), _) => {
                let own = map.entries.iter().filter(|entry| !entry.merged);
                own.map(|entry| self.content_line(&entry.value).max(entry.key_span.end.line))
                    .max()
                    .unwrap_or(0)
            }
            (Kind::Scalar(..), _) => node.span.end.line,
        }
    }

    /// The column of a list's dashes. The parser says where the first dash is, or what follows it.
    fn dash_column(&self, list: &Node) -> Result<u32, EditError> {
        for line in (1..=list.span.start.line).rev() {
            let text = &self.text[self.line(line)];
            let dash = text.trim_start_matches(' ');
            if dash.starts_with('-') && dash[1..].starts_with([' ', '\t', '\r', '\n']) {
                return Ok(u32::try_from(text.len() - dash.len()).unwrap_or(u32::MAX) + 1);
            }
        }
        not_possible("the list has no dash where it is expected")
    }

    fn dash_line(&self, item: &Node, column: u32) -> Result<u32, EditError> {
        for line in (1..=item.span.start.line).rev() {
            let text = &self.text[self.line(line)];
            // Before the dash of a list stand only spaces, so characters and bytes agree.
            let before = (column as usize).saturating_sub(1);
            if text.as_bytes().get(before) == Some(&b'-') && text[..before].trim().is_empty() {
                return Ok(line);
            }
        }
        not_possible("the dash of the entry is not where it is expected")
    }

    fn whole_lines(&self, first: u32, last: u32) -> Range<usize> {
        self.line(first).start..self.line(last.max(first)).end
    }

    /// The bytes of a line from 1; of nothing at the end for a line that is not there.
    fn line(&self, number: u32) -> Range<usize> {
        let end = self.text.len();
        (number as usize).checked_sub(1).and_then(|at| self.lines.get(at)).map_or(end..end, Clone::clone)
    }

    fn byte(&self, mark: Mark) -> usize {
        if self.bytes.is_empty() {
            return mark.index.min(self.text.len());
        }
        self.bytes.get(mark.index).copied().unwrap_or(self.text.len())
    }

    fn range(&self, start: Mark, end: Mark) -> Range<usize> {
        self.byte(start)..self.byte(end).max(self.byte(start))
    }

    fn slice(&self, start: Mark, end: Mark) -> &str {
        &self.text[self.range(start, end)]
    }

    fn block_item(&self, entry: &Map<String, Value>, indent: usize) -> String {
        let mut text = String::new();
        for (key, value) in in_order(entry, "") {
            self.block_entry(&mut text, key, value, indent + 2);
        }
        if text.is_empty() {
            return format!("{}- {{}}{}", " ".repeat(indent), self.eol);
        }
        // The dash takes the place of the first key's last two spaces of indentation.
        text.replace_range(indent..indent + 1, "-");
        text
    }

    fn block_entry(&self, text: &mut String, key: &str, value: &Value, indent: usize) {
        let pad = " ".repeat(indent);
        let shown = if is_plain(key) { key.to_owned() } else { Value::from(key).to_string() };
        match value {
            // The mandate is written out; what lies deeper is the runner's and stays on one line.
            Value::Object(map) if key == "mandate" && !map.is_empty() => {
                text.push_str(&format!("{pad}{shown}:{}", self.eol));
                for (key, value) in in_order(map, "mandate.") {
                    self.block_entry(text, key, value, indent + 2);
                }
            }
            value => text.push_str(&format!("{pad}{shown}: {}{}", inline(value), self.eol)),
        }
    }
}

fn content_line_of<'s>(splicer: &'s Splicer<'_>) -> impl Fn(&Node) -> u32 + 's {
    |node| splicer.content_line(node)
}

/// Keys in the order of the documentation, unknown ones after them.
fn in_order<'m>(map: &'m Map<String, Value>, prefix: &str) -> Vec<(&'m String, &'m Value)> {
    let rank = |key: &str| {
        let path = format!("{prefix}{key}");
        let starts = |known: &&keys::Key| known.path == path || known.path.starts_with(&format!("{path}."));
        keys::SCHEDULE.iter().position(|known| starts(&known)).unwrap_or(usize::MAX)
    };
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| rank(key));
    entries
}

fn nested(path: &[&str], value: &Value) -> Value {
    path.iter().rev().fold(value.clone(), |inner, key| serde_json::json!({ *key: inner }))
}

/// A value on one line of an indented map.
fn inline(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        value => value.to_string(),
    }
}

/// True for a text that reads back as itself without quotes, under old and new rules of YAML.
fn is_plain(text: &str) -> bool {
    let words = ["yes", "no", "on", "off", "y", "n"];
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && !text.ends_with(' ')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ' '))
        && !words.contains(&text.to_ascii_lowercase().as_str())
        && Node::plain(text).scalar() == Some(Scalar::Text(text))
}
