//! Reads the file of a `scripted` provider: YAML or JSON in, a plain value and the line of each
//! reply out. What the values mean is the provider's business.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::report::{Problem, Report};
use super::yaml::{self, Kind, Node};
use crate::sys::files;

/// Largest file that is read, in bytes.
const SIZE_MAX: u64 = 16 << 20;

/// The file's value, and the line of each item of its list (at the top, or under `replies`).
///
/// # Errors
/// Every problem of the file's form.
pub fn read(path: &Path) -> Result<(Value, Vec<u32>), Report> {
    let file: Arc<str> = path.to_string_lossy().into();
    let mut report = Report::default();
    let refused = |message: String, remedy: &str| {
        let mut report = Report::default();
        report.push(Problem::of_file(&file, message, remedy));
        report
    };
    let bytes = files::read(path, SIZE_MAX)
        .map_err(|error| refused(error.to_string(), "make it a readable file"))?
        .ok_or_else(|| refused("no such file".into(), "create it, or correct `file` of the provider"))?;
    let root =
        yaml::text_of(&bytes, &file, &mut report).and_then(|text| yaml::load(text, &file, &mut report, None));
    let Some(root) = root else { return Err(report) };
    report_duplicates(&root, &file, &mut report);
    if !report.is_ok() {
        return Err(report);
    }
    let list = match &root.kind {
        Kind::Map(map) => map.get("replies"),
        _ => Some(&root),
    };
    let lines = match list.map(|node| &node.kind) {
        Some(Kind::List(items)) => items.iter().map(|item| item.span.start.line).collect(),
        _ => Vec::new(),
    };
    Ok((root.to_json(), lines))
}

fn report_duplicates(node: &Node, file: &Arc<str>, report: &mut Report) {
    match &node.kind {
        Kind::Scalar(..) => {}
        Kind::List(items) => items.iter().for_each(|item| report_duplicates(item, file, report)),
        Kind::Map(map) => {
            for (entry, first) in &map.duplicates {
                let problem = Problem::of_file(file, format!("stands already in line {first}"), "keep one");
                let start = entry.key_span.start;
                let key = entry.key.to_string();
                report.push(Problem { line: start.line, column: start.column, key, ..problem });
            }
            map.entries.iter().for_each(|entry| report_duplicates(&entry.value, file, report));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<(Value, Vec<u32>), Report> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replies.yml");
        files::replace(&path, text.as_bytes(), files::SHARED).unwrap();
        read(&path)
    }

    #[test]
    fn lists_are_read_with_their_lines_wherever_they_stand() {
        let (value, lines) = of("cycle: true\nreplies:\n  - text: a\n\n  - {text: b}\n").unwrap();
        assert_eq!(value["replies"][1]["text"], "b");
        assert_eq!(lines, [3, 5]);
        assert_eq!(of("[{\"text\": \"a\"},\n {\"text\": \"b\"}]").unwrap().1, [1, 2]);
    }

    #[test]
    fn files_that_cannot_be_read_say_why() {
        for (text, words) in [("replies: [", ""), ("- a: 1\n  a: 2\n", "already in line 1"), ("\0", "NUL")] {
            let problems = of(text).unwrap_err().take();
            assert!(problems.iter().any(|problem| problem.to_string().contains(words)), "{problems:?}");
        }
        let mut missing = read(Path::new("/nonexistent/replies.yml")).unwrap_err();
        assert!(missing.take()[0].to_string().contains("no such file"));
    }
}
