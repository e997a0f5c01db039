//! Single values: from a node to a checked value, or to a message with its remedy.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::report::{nearest, quoted};
use super::values::{NANO, parse_decimal, parse_duration, parse_size, show_duration, show_size};
use super::yaml::{Kind, Node, Scalar};

/// A value, or a message and a remedy.
pub(super) type Parsed<T> = Result<T, (String, String)>;

pub(super) fn wrong<T>(message: impl Into<String>, remedy: impl Into<String>) -> Parsed<T> {
    Err((message.into(), remedy.into()))
}

pub(super) fn optional<T>(node: &Node, parse: impl FnOnce(&Node) -> Parsed<T>) -> Parsed<Option<T>> {
    if node.is_null() { Ok(None) } else { parse(node).map(Some) }
}

pub(super) fn duration_kind(range: &RangeInclusive<Duration>) -> String {
    format!("duration, {} to {}", show_duration(*range.start()), show_duration(*range.end()))
}

pub(super) fn count_kind(range: &RangeInclusive<u64>) -> String {
    match *range.end() {
        u64::MAX => format!("whole number from {}", range.start()),
        end => format!("whole number, {} to {end}", range.start()),
    }
}

pub(super) fn a_duration(node: &Node, range: &RangeInclusive<Duration>) -> Parsed<Duration> {
    let text = match (&node.kind, node.scalar()) {
        (Kind::Scalar(raw, _), Some(Scalar::Int(_) | Scalar::Float(_) | Scalar::Text(_))) => raw,
        _ => {
            return wrong(format!("expected a duration, found {}", node.describe()), "write `10m` or `2.5`");
        }
    };
    match parse_duration(text) {
        None => wrong(
            format!("{} is not a duration", quoted(text)),
            "write a number of seconds, or numbers with units: `500ms`, `90s`, `10m`, `1h30m`, `7d`",
        ),
        Some(value) if !range.contains(&value) => {
            wrong(format!("{} is out of range", quoted(text)), format!("write a {}", duration_kind(range)))
        }
        Some(value) => Ok(value),
    }
}

pub(super) fn size_kind(range: &RangeInclusive<u64>) -> String {
    format!("size, {} to {}", show_size(*range.start()), show_size(*range.end()))
}

pub(super) fn a_size(node: &Node, range: &RangeInclusive<u64>) -> Parsed<u64> {
    let text = match (&node.kind, node.scalar()) {
        (Kind::Scalar(raw, _), Some(Scalar::Int(_) | Scalar::Float(_) | Scalar::Text(_))) => raw,
        _ => return wrong(format!("expected a size, found {}", node.describe()), "write `512MiB` or `4GiB`"),
    };
    match parse_size(text) {
        None => wrong(
            format!("{} is not a size", quoted(text)),
            "write a number of bytes, or a number with a unit: `64KiB`, `512MiB`, `1.5GiB`",
        ),
        Some(value) if !range.contains(&value) => {
            wrong(format!("{} is out of range", quoted(text)), format!("write a {}", size_kind(range)))
        }
        Some(value) => Ok(value),
    }
}

pub(super) fn a_count(node: &Node, range: &RangeInclusive<u64>) -> Parsed<u64> {
    let remedy = || format!("write a {}", count_kind(range));
    match node.scalar() {
        Some(Scalar::Int(value)) => match u64::try_from(value).ok().filter(|value| range.contains(value)) {
            Some(value) => Ok(value),
            None => wrong(format!("{value} is out of range"), remedy()),
        },
        _ => wrong(format!("expected a whole number, found {}", node.describe()), remedy()),
    }
}

pub(super) fn a_decimal(node: &Node) -> Parsed<u64> {
    if let (Kind::Scalar(raw, _), Some(Scalar::Int(_) | Scalar::Float(_))) = (&node.kind, node.scalar()) {
        return match parse_decimal(raw) {
            Some(nano) => Ok(nano),
            None => wrong(
                format!("{raw} is out of range"),
                format!("write a number from 0 to {} with at most 9 decimals", u64::MAX / NANO),
            ),
        };
    }
    wrong(format!("expected a number, found {}", node.describe()), "write a number such as `12.50`")
}

pub(super) fn a_boolean(node: &Node) -> Parsed<bool> {
    match node.scalar() {
        Some(Scalar::Bool(value)) => Ok(value),
        Some(Scalar::Text(word)) => {
            let remedy = match word.to_ascii_lowercase().as_str() {
                "yes" | "on" => "write `true`",
                "no" | "off" => "write `false`",
                _ => "write `true` or `false`",
            };
            wrong(format!("expected true or false, found {}", node.describe()), remedy)
        }
        _ => wrong(format!("expected true or false, found {}", node.describe()), "write `true` or `false`"),
    }
}

/// A text that is neither empty nor longer than `max` bytes nor holds a NUL.
pub(super) fn a_text(node: &Node, max: usize) -> Parsed<String> {
    let Some(Scalar::Text(text)) = node.scalar() else {
        let remedy = match &node.kind {
            Kind::Scalar(raw, _) if !raw.is_empty() => format!("put it in quotes: \"{raw}\""),
            _ => "write a text".to_owned(),
        };
        return wrong(format!("expected a text, found {}", node.describe()), remedy);
    };
    if text.is_empty() {
        return wrong("the text is empty", "write a text or remove the key");
    }
    if text.len() > max {
        return wrong(format!("the text has {} bytes, at most {max} are allowed", text.len()), "shorten it");
    }
    if text.contains('\0') {
        return wrong(format!("the text {} holds a NUL", quoted(text)), "remove the NUL");
    }
    Ok(text.to_owned())
}

pub(super) fn a_choice<T: Copy>(node: &Node, words: &[(&'static str, T)]) -> Parsed<T> {
    let known = || words.iter().map(|(word, _)| *word);
    let list = || known().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    let Some(Scalar::Text(text)) = node.scalar() else {
        return wrong(
            format!("expected a word, found {}", node.describe()),
            format!("write one of {}", list()),
        );
    };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let remedy = match nearest(text, known()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("write one of {}", list()),
    };
    wrong(format!("{} is not known", quoted(text)), remedy)
}
