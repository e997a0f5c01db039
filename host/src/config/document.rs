//! A YAML or JSON file that a person hands over whole, beside the configuration: replies of a
//! scripted provider, a scenario. Opened in one way, and where its syntax is broken in one place,
//! the rest is read all the same, so that everything wrong with it is said at once. It must never
//! give a value of a file without saying what of it could not be read.

use std::path::Path;
use std::sync::Arc;

use super::reader::{Context, report_duplicates};
use super::report::{Problem, Report};
use super::yaml::{self, Kind, Mark, Node};
use crate::sys::files;

/// Largest file that is read, in bytes.
const SIZE_MAX: u64 = 16 << 20;
/// Most parts that a broken file is read in; each is read from its top.
const PARTS_MAX: usize = 64;

/// A file as far as it could be read.
pub struct Document {
    /// Its name in problems.
    pub file: Arc<str>,
    /// Its value, without the parts that could not be read.
    pub root: Node,
    /// What is wrong with its form; without an error it was read whole.
    pub report: Report,
    /// Keys at the top whose values could not be read.
    pub unread: Vec<Box<str>>,
}

/// Opens a file; `shown` is its name in problems, `missing` the remedy when there is none.
///
/// # Errors
/// Why there is nothing to read at all.
pub fn open(path: &Path, shown: &str, missing: &str) -> Result<Document, Report> {
    let file: Arc<str> = shown.into();
    let refused = |message: String, remedy: &str| {
        let mut report = Report::default();
        report.push(Problem::of_file(&file, message, remedy));
        report
    };
    let bytes = files::read(path, SIZE_MAX)
        .map_err(|error| refused(error.to_string(), "make it a readable file"))?
        .ok_or_else(|| refused("no such file".into(), missing))?;
    parse(&bytes, file)
}

fn parse(bytes: &[u8], file: Arc<str>) -> Result<Document, Report> {
    let mut report = Report::default();
    let Some(text) = yaml::text_of(bytes, &file, &mut report) else { return Err(report) };
    if let Some(root) = yaml::load(text, &file, &mut report, None) {
        return Ok(Document { file, root, report, unread: Vec::new() });
    }
    in_parts(text, &file).ok_or(report)
}

/// What is at the top of a broken file, each part read by itself. `None` when that does not help.
fn in_parts(text: &str, file: &Arc<str>) -> Option<Document> {
    let mut report = Report::default();
    let (mut root, mut unread) = (None, Vec::new());
    let parts = parts(text);
    if parts.len() < 2 || parts.len() > PARTS_MAX {
        return None;
    }
    for (line, part) in parts {
        // The lines before it keep the places right.
        let mut own = Report::default();
        match yaml::load(&format!("{}{part}", "\n".repeat(line)), file, &mut own, None) {
            Some(node) if matches!(node.kind, Kind::Map(_)) => root = Some(joined(root, node)),
            Some(node) if node.is_null() => {}
            Some(node) => {
                let Mark { line, column, .. } = node.span.start;
                let problem =
                    Problem::of_file(file, "a line without a key", "write `key: value`, or indent it");
                own.push(Problem { line, column, ..problem });
            }
            None => unread.extend(part.split_once(':').map(|(key, _)| Box::from(key.trim()))),
        }
        report.extend(own);
    }
    // It is broken between its parts.
    if report.is_ok() {
        return None;
    }
    let root = root.unwrap_or_else(|| Node::plain(""));
    Some(Document { file: Arc::clone(file), root, report, unread })
}

/// The text cut before each line that begins at the margin, each with the number of lines before it;
/// nothing when there is more than one document.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let mut starts = Vec::new();
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let begins = line.starts_with(|c: char| !c.is_whitespace() && !"#}])".contains(c));
        if !starts.is_empty() && (line.starts_with("---") || line.starts_with("...")) {
            return Vec::new();
        }
        // An item at the margin may belong to the key above it.
        if begins && (starts.is_empty() || !line.starts_with('-')) {
            starts.push((number, at));
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).map(|(_, at)| *at).chain([text.len()]);
    starts.iter().zip(ends).map(|((number, at), end)| (*number, &text[*at..end])).collect()
}

/// Two maps as one.
fn joined(first: Option<Node>, second: Node) -> Node {
    let Some(mut first) = first else { return second };
    if let (Kind::Map(map), Kind::Map(more)) = (&mut first.kind, second.kind) {
        for entry in more.entries {
            match map.entry(&entry.key).map(|earlier| earlier.key_span.start.line) {
                Some(line) => map.duplicates.push((entry, line)),
                None => map.entries.push(entry),
            }
        }
        map.duplicates.extend(more.duplicates);
    }
    first
}

impl Document {
    /// The value, when the form of the whole file is right; keys that stand twice are wrong, too.
    ///
    /// # Errors
    /// Every problem of its form.
    pub fn whole(mut self) -> Result<Node, Report> {
        let root = std::mem::replace(&mut self.root, Node::plain(""));
        report_duplicates(&root, "", &mut self.context());
        self.report.sort();
        if self.report.is_ok() { Ok(root) } else { Err(self.report) }
    }

    /// For a reader that goes through it.
    pub fn context(&mut self) -> Context<'_> {
        let file = Arc::clone(&self.file);
        Context { file, report: &mut self.report, schedule: None, overrides: &[], trace: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> (Vec<String>, Vec<Box<str>>, serde_json::Value) {
        match parse(text.as_bytes(), "x.yml".into()) {
            Ok(document) => {
                let said = document.report.problems.iter().map(ToString::to_string).collect();
                (said, document.unread, document.root.to_json())
            }
            Err(report) => {
                let said = report.problems.iter().map(ToString::to_string).collect();
                (said, Vec::new(), serde_json::Value::Null)
            }
        }
    }

    #[test]
    fn a_break_in_one_part_hides_no_other_part() {
        let text = "a: 1\nb: [1, 2\nc:\n- x: \"y\n- z\n# a note\nd: {e: f}\ng: @at\na: 2\n";
        let (problems, unread, value) = said(text);
        let lines: Vec<&str> = problems.iter().filter_map(|line| line.split(':').nth(1)).collect();
        assert_eq!(lines.len(), 3, "{problems:?}");
        assert!(problems.iter().all(|line| line.contains("not valid YAML")), "{problems:?}");
        assert_eq!(unread, ["b".into(), "c".into(), "g".into()]);
        assert_eq!(value, serde_json::json!({"a": 1, "d": {"e": "f"}}));
        assert_eq!(lines[2], "8");
    }

    #[test]
    fn what_cannot_be_parted_is_said_once() {
        for text in ["{a: 1, b: [", "- a\n- [b\n", "a: 1\n---\nb: 2\n", "a: [1"] {
            let (problems, unread, value) = said(text);
            assert_eq!((problems.len(), unread.len()), (1, 0), "{text}: {problems:?}");
            assert!(value.is_null());
        }
        let many: String = (0..100).map(|n| format!("k{n}: 1\n")).collect();
        assert_eq!(said(&format!("{many}z: [")).0.len(), 1);
    }

    #[test]
    fn a_line_that_is_no_entry_stands_beside_other_breaks() {
        let (problems, _, value) = said("a: 1\nnonsense\nb: [\n");
        assert!(problems[0].starts_with("x.yml:2:1: a line without a key"), "{problems:?}");
        assert_eq!((problems.len(), value["a"].as_u64()), (2, Some(1)));
    }
}
