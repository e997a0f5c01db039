//! Reads the file of a `scripted` provider: YAML or JSON in, a plain value and the line of each
//! reply out. What the values mean is the provider's business.

use std::path::Path;

use serde_json::Value;

use super::document;
use super::report::Report;
use super::yaml::Kind;

/// The file's value, and the line of each item of its list (at the top, or under `replies`).
///
/// # Errors
/// Every problem of the file's form.
pub fn read(path: &Path) -> Result<(Value, Vec<u32>), Report> {
    let missing = "create it, or correct `file` of the provider";
    let root = document::open(path, &path.to_string_lossy(), missing)?.whole()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::files;

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
        for (text, words) in [("replies: [", ""), ("- a: 1\n  a: 2\n", "first on line 1"), ("\0", "NUL")] {
            let problems = of(text).unwrap_err().take();
            assert!(problems.iter().any(|problem| problem.to_string().contains(words)), "{problems:?}");
        }
        let mut missing = read(Path::new("/nonexistent/replies.yml")).unwrap_err();
        assert!(missing.take()[0].to_string().contains("no such file"));
    }
}
