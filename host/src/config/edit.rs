//! Changes of one schedule in schedules.yml that leave everything else as it is, byte for byte:
//! comments, order, quotes, other entries.
//!
//! A change is planned as splices of the text at places the reader found. The new text is then read
//! again and must mean exactly the old file with the change; otherwise nothing is written. So a
//! file too clever for the splices is refused, never damaged.

use std::fs::File;
use std::path::Path;

use serde_json::{Map, Value};

use super::report::{Problem, Report, quoted};
use super::schedules::{Around, SIZE_MAX, SchedulesFile};
use super::splice::Splicer;
use super::yaml::{self, Kind, Node};
use crate::sys::files::{self, FileError};

/// One change of one schedule.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new one at the end of the list. Keys as in the file.
    Add(Map<String, Value>),
    /// Some keys of the one of that name: dotted path (`mandate.goal`) and its value, `None` to take
    /// the key out.
    Edit {
        /// Which.
        name: String,
        /// What.
        set: Vec<(String, Option<Value>)>,
    },
    /// The one of that name goes.
    Remove(String),
}

impl Change {
    /// The change that switches a schedule on or off.
    #[must_use]
    pub fn enabled(name: &str, enabled: bool) -> Self {
        Self::Edit { name: name.to_owned(), set: vec![("enabled".to_owned(), Some(enabled.into()))] }
    }

    fn name(&self) -> &str {
        match self {
            Self::Add(entry) => entry.get("name").and_then(Value::as_str).unwrap_or(""),
            Self::Edit { name, .. } | Self::Remove(name) => name,
        }
    }

    /// The name after the change.
    fn new_name(&self) -> Option<&str> {
        match self {
            Self::Add(_) => Some(self.name()),
            Self::Remove(_) => None,
            Self::Edit { name, set } => {
                let renamed =
                    set.iter().rev().find(|(key, _)| key == "name").and_then(|(_, value)| value.as_ref());
                Some(renamed.and_then(Value::as_str).unwrap_or(name))
            }
        }
    }
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// No schedule of that name.
    #[error("no schedule has the name {}", quoted(name))]
    NotFound {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("a schedule of the name {} stands on line {line}", quoted(name))]
    Exists {
        /// The name.
        name: String,
        /// Where it stands.
        line: u32,
    },
    /// The file is not right as it stands.
    #[error("the file must be right before it can be changed\n{0}")]
    Unreadable(Report),
    /// The changed schedule would not be right.
    #[error("{}", lines(problems))]
    Invalid {
        /// What would be wrong.
        problems: Vec<Problem>,
    },
    /// The file is written in a way that this change cannot handle.
    #[error("{reason}; change the file by hand")]
    NotPossible {
        /// What stands in the way.
        reason: String,
    },
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

pub(super) fn not_possible<T>(reason: impl Into<String>) -> Result<T, EditError> {
    Err(EditError::NotPossible { reason: reason.into() })
}

/// Makes a change in a file and gives the file's new content, checked. A missing file is made.
///
/// # Errors
/// The file is untouched on every error.
pub fn edit_file(path: &Path, change: &Change, around: Around<'_>) -> Result<SchedulesFile, EditError> {
    let (text, checked, _lock) = planned(path, change, around)?;
    if path.exists() {
        files::replace_keeping(path, text.as_bytes())?;
    } else {
        files::create_new(path, text.as_bytes(), files::SHARED)?;
    }
    Ok(checked)
}

/// What [`edit_file`] would give, without writing it.
///
/// # Errors
/// As [`edit_file`].
pub fn preview(path: &Path, change: &Change, around: Around<'_>) -> Result<SchedulesFile, EditError> {
    planned(path, change, around).map(|(_, checked, _)| checked)
}

/// Holds the directory's lock, so that of two who edit at once neither loses its change.
fn planned(
    path: &Path,
    change: &Change,
    around: Around<'_>,
) -> Result<(String, SchedulesFile, Option<File>), EditError> {
    let lock = match path.parent() {
        Some(dir) => {
            files::create_dirs(dir)?;
            let handle = File::open(dir).map_err(|error| FileError::new("open", dir, error))?;
            handle.lock().map_err(|error| FileError::new("lock", dir, error))?;
            Some(handle)
        }
        None => None,
    };
    let bytes = files::read(path, SIZE_MAX)?.unwrap_or_default();
    let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut report = Report::default();
    let Some(text) = yaml::text_of(&bytes, &file.as_str().into(), &mut report) else {
        return Err(EditError::Unreadable(report));
    };
    let changed = edit(text, &file, change)?;
    let checked = SchedulesFile::parse(changed.as_bytes(), &file, around);
    if !checked.readable {
        return Err(EditError::Unreadable(checked.report));
    }
    if let Some(name) = change.new_name()
        && !checked.schedules.iter().any(|schedule| &*schedule.name == name)
    {
        let bad = checked.quarantined.iter().rev().find(|schedule| schedule.name == name);
        let problems = bad.or(checked.quarantined.last()).map(|schedule| schedule.problems.clone());
        return Err(EditError::Invalid { problems: problems.unwrap_or_default() });
    }
    Ok((changed, checked, lock))
}

/// Makes a change in a text and gives the new one. `file` names it in problems.
///
/// # Errors
/// When the text is not right, the schedule is not there, or the result would not be what is meant.
pub fn edit(text: &str, file: &str, change: &Change) -> Result<String, EditError> {
    let root = load(text, file)?;
    let mut splicer = Splicer::new(text);
    match change {
        Change::Add(entry) => {
            if let Some((_, item)) = find(&root, change.name())? {
                let name = change.name().to_owned();
                return Err(EditError::Exists { name, line: item.span.start.line });
            }
            splicer.add_item(&root, entry)?;
        }
        Change::Edit { set, .. } => {
            let (_, item) = found(&root, change.name())?;
            for (key, value) in set {
                let path: Vec<&str> = key.split('.').collect();
                splicer.set(item, &path, value.as_ref())?;
            }
        }
        Change::Remove(name) => {
            let (at, _) = found(&root, name)?;
            splicer.remove_item(&root, at)?;
        }
    }
    let changed = splicer.finish();
    let expected = expected(root.to_json(), change);
    match load(&changed, file) {
        Ok(read) if schedules(&read.to_json()) == schedules(&expected) && rest(&read) == rest(&root) => {
            Ok(changed)
        }
        _ => not_possible("this way of writing the schedule cannot be changed without touching the rest"),
    }
}

fn load(text: &str, file: &str) -> Result<Node, EditError> {
    let mut report = Report::default();
    let file = file.into();
    let root = yaml::load(text, &file, &mut report, None);
    match root {
        Some(root) if report.is_ok() && !has_duplicates(&root) => Ok(root),
        _ => {
            if report.is_ok() {
                let remedy = "remove one of the two; `kairos config check` says where";
                report.push(Problem::of_file(&file, "a key stands twice", remedy));
            }
            Err(EditError::Unreadable(report))
        }
    }
}

fn has_duplicates(node: &Node) -> bool {
    match &node.kind {
        Kind::Scalar(..) => false,
        Kind::List(items) => items.iter().any(has_duplicates),
        Kind::Map(map) => {
            !map.duplicates.is_empty() || map.entries.iter().any(|entry| has_duplicates(&entry.value))
        }
    }
}

fn items(root: &Node) -> &[Node] {
    match &root.kind {
        Kind::Map(map) => match map.get("schedules").map(|node| &node.kind) {
            Some(Kind::List(items)) => items,
            _ => &[],
        },
        _ => &[],
    }
}

fn find<'n>(root: &'n Node, name: &str) -> Result<Option<(usize, &'n Node)>, EditError> {
    let mut named = items(root).iter().enumerate().filter(|(_, item)| match &item.kind {
        Kind::Map(map) => map.get("name").and_then(Node::scalar) == Some(yaml::Scalar::Text(name)),
        _ => false,
    });
    let first = named.next();
    if let Some((_, second)) = named.next() {
        let line = second.span.start.line;
        return not_possible(format!("{} stands in the file twice, again on line {line}", quoted(name)));
    }
    Ok(first)
}

fn found<'n>(root: &'n Node, name: &str) -> Result<(usize, &'n Node), EditError> {
    find(root, name)?.ok_or_else(|| EditError::NotFound { name: name.to_owned() })
}

/// The schedules of a document; none, null and an empty list are the same.
fn schedules(root: &Value) -> Vec<Value> {
    root.get("schedules").and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Everything of a document but the schedules.
fn rest(root: &Node) -> Value {
    let mut value = root.to_json();
    match &mut value {
        Value::Object(map) => {
            map.remove("schedules");
            value
        }
        // An empty file is an empty map.
        Value::Null => Value::Object(Map::new()),
        _ => value,
    }
}

fn expected(root: Value, change: &Change) -> Value {
    let mut list = schedules(&root);
    let at = list.iter().position(|entry| entry.get("name").and_then(Value::as_str) == Some(change.name()));
    match (change, at) {
        (Change::Add(entry), _) => list.push(Value::Object(entry.clone())),
        (Change::Remove(_), Some(at)) => drop(list.remove(at)),
        (Change::Edit { set, .. }, Some(at)) => {
            for (key, value) in set {
                let path: Vec<&str> = key.split('.').collect();
                assign(&mut list[at], &path, value.as_ref());
            }
        }
        _ => {}
    }
    serde_json::json!({ "schedules": list })
}

fn assign(target: &mut Value, path: &[&str], value: Option<&Value>) {
    if !target.is_object() {
        if value.is_none() {
            return;
        }
        *target = Value::Object(Map::new());
    }
    let (Some(map), [key, rest @ ..]) = (target.as_object_mut(), path) else { return };
    match (rest, value) {
        ([], Some(value)) => drop(map.insert((*key).to_owned(), value.clone())),
        ([], None) => drop(map.remove(*key)),
        (_, None) if !map.contains_key(*key) => {}
        (rest, value) => assign(map.entry(*key).or_insert(Value::Null), rest, value),
    }
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
