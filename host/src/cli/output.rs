//! What commands print: data on stdout, talk on stderr, JSON when asked.

use std::io::{BufWriter, Write};

use serde_json::Value;

use crate::runner::manifest::drives_terminals;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// `--json`.
    pub json: bool,
    /// Colours and progress bars: stdout is a terminal and nobody asked for plain text.
    pub rich: bool,
}

/// Prints a value as JSON on a line of its own, or as text made by `human`.
pub fn emit(style: Style, value: &Value, human: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
    let text = if style.json { value.to_string() } else { harmless(&human(value)) };
    line(&text)
}

/// Whether anybody still reads what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// As far as is known.
    There,
    /// It has closed its end, as `head` does once it has seen enough.
    Gone,
}

/// Prints text; a reader that has gone away ends the program's talk, not its work.
pub fn line(text: &str) -> anyhow::Result<()> {
    heard(text).map(drop)
}

/// As [`line()`], for those who have nothing to do but talk.
pub fn heard(text: &str) -> anyhow::Result<Reader> {
    let text = text.trim_end_matches('\n');
    if text.is_empty() {
        return Ok(Reader::There);
    }
    stream(|out| Ok(writeln!(out, "{text}")?))
}

/// Prints what `write` writes, as it comes. All that goes to stdout goes through here: when its reader
/// has gone away, the next write ends `write`, and that is no error.
pub fn stream(write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<Reader> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let written = write(&mut out).and_then(|()| Ok(out.flush()?));
    // What is left of a text that nobody reads is not written once more.
    let _ = out.into_parts();
    match written {
        Err(error) if is_gone(&error) => Ok(Reader::Gone),
        other => other.map(|()| Reader::There),
    }
}

fn is_gone(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Says something to a person.
pub fn say(style: Style, text: &str) {
    if !style.json {
        // A closed stderr is no reason to fail.
        let _ = writeln!(std::io::stderr(), "{}", harmless(text));
    }
}

/// Columns aligned by width, the header first. Control characters are shown, not obeyed.
#[must_use]
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut push = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    push(header.to_vec());
    for row in &rows {
        push(row.iter().map(String::as_str).collect());
    }
    out
}

/// The text on one line, with all that drives a terminal escaped: for what somebody else wrote.
#[must_use]
pub fn printable(text: &str) -> String {
    escaped(text, drives_terminals)
}

/// As [`printable`], with lines and tabs as they are. Whatever a person is shown goes through here last,
/// so that what was forgotten before can add a line, and nothing else.
#[must_use]
pub fn harmless(text: &str) -> String {
    escaped(text, |c| !matches!(c, '\n' | '\t') && drives_terminals(c))
}

fn escaped(text: &str, bad: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if bad(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// RFC 3339 in UTC.
#[must_use]
pub fn rfc3339(at: chrono::DateTime<chrono::Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

/// A field as a person reads it: text bare, nothing as a dash.
#[must_use]
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Rows of the named fields of an array of objects.
#[must_use]
pub fn rows(list: &Value, fields: &[&str]) -> Vec<Vec<String>> {
    list.as_array()
        .into_iter()
        .flatten()
        .map(|item| fields.iter().map(|field| cell(&item[*field])).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drives_a_terminal_is_shown_and_lines_stay_where_they_may() {
        let text = "a\u{1b}[8m\r\u{9b}2J\u{7f}\tb\n\u{202e}c\u{2028}é";
        assert_eq!(harmless(text), "a\\u{1b}[8m\\r\\u{9b}2J\\u{7f}\tb\n\\u{202e}c\\u{2028}é");
        assert_eq!(printable("a\nb\tc\u{2066}"), "a\\nb\\tc\\u{2066}");
    }

    #[test]
    fn table_aligns_and_shows_control_characters() {
        let text =
            table(&["name", "n"], &[vec!["a\u{1b}[31m".into(), "1".into()], vec!["bb".into(), "22".into()]]);
        assert_eq!(text, "name         n\na\\u{1b}[31m  1\nbb           22\n");
    }
}
