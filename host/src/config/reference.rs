//! State files of the reference, read once when a root is taken over: `chronos_state.yml` and
//! `budget.json`. A damaged one is an error that names the file and the place, never a fresh start:
//! a spent budget or a cursor that is forgotten would be spent or fired again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};

use super::report::{Problem, Report};
use super::yaml::{self, Kind, Map, Node, Scalar};
use crate::sys::files::{self, FileError};

/// Larger state files are refused.
const SIZE_MAX: u64 = 512 << 20;

const REMEDY: &str = "correct it, or move the file away if its content does not matter";

/// Why a state file of the reference cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// It cannot be read from the disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// It does not say what it should.
    #[error("{0}")]
    Bad(Report),
}

/// What the reference knew about one schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScheduleState {
    /// Up to here everything was looked at: the cursor.
    pub last_evaluated_at: Option<DateTime<Utc>>,
    /// When it fired last.
    pub last_fire_at: Option<DateTime<Utc>>,
    /// When it meant to fire next.
    pub next_fire_at: Option<DateTime<Utc>>,
}

/// `chronos_state.yml`, by the name of the schedule.
pub type ChronosState = BTreeMap<String, ScheduleState>;

/// `budget.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetFile {
    /// The day, by the local time of the machine that wrote it.
    pub date: NaiveDate,
    /// Calls of the day.
    pub llm_calls: u64,
    /// Tokens sent.
    pub input_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// The limit of that day.
    pub limit: Option<u64>,
}

/// Reads `chronos_state.yml`; `None` when there is none.
///
/// # Errors
/// The file cannot be read, or holds something that is no state.
pub fn chronos_state(path: &Path) -> Result<Option<ChronosState>, ReferenceError> {
    read(path, parse_chronos_state)
}

/// Reads `budget.json`; `None` when there is none.
///
/// # Errors
/// The file cannot be read, or holds something that is no budget.
pub fn budget(path: &Path) -> Result<Option<BudgetFile>, ReferenceError> {
    read(path, parse_budget)
}

fn read<T>(path: &Path, parse: fn(&[u8], &str) -> Result<T, Report>) -> Result<Option<T>, ReferenceError> {
    let Some(bytes) = files::read(path, SIZE_MAX)? else { return Ok(None) };
    parse(&bytes, &path.display().to_string()).map(Some).map_err(ReferenceError::Bad)
}

/// The text of `chronos_state.yml`: a map from names to states, or that map under `schedules`. Keys
/// may be Ruby symbols, times may be quoted, and keys that begin with `_` are of the moment.
///
/// # Errors
/// All problems of the file.
pub fn parse_chronos_state(bytes: &[u8], file: &str) -> Result<ChronosState, Report> {
    let mut reader = Reader { file: file.into(), report: Report::default() };
    let mut state = ChronosState::new();
    if let Some(root) = reader.root(bytes)
        && let Some(map) = reader.map(&root, "")
    {
        let inner = match &map.entries[..] {
            [only] if plain_key(&only.key) == "schedules" && holds_states(&only.value) => {
                reader.map(&only.value, "schedules").unwrap_or(map)
            }
            _ => map,
        };
        for entry in &inner.entries {
            if entry.value.is_null() {
                continue;
            }
            let Some(times) = reader.map(&entry.value, &entry.key) else { continue };
            let mut time = |name: &str| reader.time(times, &entry.key, name);
            let known = ScheduleState {
                last_evaluated_at: time("last_evaluated_at"),
                last_fire_at: time("last_fire_at"),
                next_fire_at: time("next_fire_at"),
            };
            state.insert(entry.key.to_string(), known);
        }
    }
    reader.done(state)
}

/// True when the values of a map are maps: then it is a level of its own, not a schedule's state.
fn holds_states(node: &Node) -> bool {
    match &node.kind {
        Kind::Map(map) => map.entries.iter().all(|entry| matches!(entry.value.kind, Kind::Map(_))),
        _ => false,
    }
}

/// The text of `budget.json`. Keys beyond the known ones are left alone.
///
/// # Errors
/// All problems of the file.
pub fn parse_budget(bytes: &[u8], file: &str) -> Result<BudgetFile, Report> {
    let mut reader = Reader { file: file.into(), report: Report::default() };
    let mut budget = BudgetFile {
        date: NaiveDate::default(),
        llm_calls: 0,
        input_tokens: 0,
        output_tokens: 0,
        limit: None,
    };
    if let Some(root) = reader.root(bytes)
        && let Some(map) = reader.map(&root, "")
    {
        match get(map, "date").and_then(Node::scalar) {
            Some(Scalar::Text(text)) if text.parse::<NaiveDate>().is_ok() => {
                budget.date = text.parse().unwrap_or_default();
            }
            _ => reader.problem(
                get(map, "date").unwrap_or(&root),
                "date",
                "expected a date such as 2026-11-22",
            ),
        }
        let mut count = |name: &str, needed: bool| reader.count(map, &root, name, needed);
        budget.llm_calls = count("llm_calls", true).unwrap_or(0);
        budget.input_tokens = count("input_tokens", false).unwrap_or(0);
        budget.output_tokens = count("output_tokens", false).unwrap_or(0);
        budget.limit = count("limit", false);
    }
    reader.done(budget)
}

struct Reader {
    file: Arc<str>,
    report: Report,
}

impl Reader {
    fn done<T>(self, value: T) -> Result<T, Report> {
        if self.report.is_ok() { Ok(value) } else { Err(self.report) }
    }

    fn root(&mut self, bytes: &[u8]) -> Option<Node> {
        let text = yaml::text_of(bytes, &self.file, &mut self.report)?;
        let root = yaml::load(text, &self.file, &mut self.report, None)?;
        if root.is_null() {
            // An empty file is what a crash leaves behind, not what the reference writes.
            self.problem(&root, "", "the file is empty");
            return None;
        }
        Some(root)
    }

    fn map<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n Map> {
        let Kind::Map(map) = &node.kind else {
            self.problem(node, key, &format!("expected a map, found {}", node.describe()));
            return None;
        };
        for (entry, line) in &map.duplicates {
            self.problem(
                &entry.value,
                &entry.key,
                &format!("stands here for the second time, first on line {line}"),
            );
        }
        Some(map)
    }

    fn time(&mut self, map: &Map, schedule: &str, name: &str) -> Option<DateTime<Utc>> {
        let node = get(map, name)?;
        match node.scalar() {
            Some(Scalar::Null) => None,
            Some(Scalar::Text(text)) if parse_time(text).is_some() => parse_time(text),
            // Seconds since 1970, whole or with a fraction.
            Some(Scalar::Int(seconds)) => {
                i64::try_from(seconds).ok().and_then(|at| DateTime::from_timestamp(at, 0))
            }
            _ => {
                let found = format!("expected a time, found {}", node.describe());
                self.problem(node, &format!("{schedule}.{name}"), &found);
                None
            }
        }
    }

    fn count(&mut self, map: &Map, root: &Node, name: &str, needed: bool) -> Option<u64> {
        let node = match get(map, name) {
            Some(node) if !node.is_null() => node,
            _ if !needed => return None,
            _ => {
                self.problem(root, name, "is missing");
                return None;
            }
        };
        match node.scalar() {
            Some(Scalar::Int(value)) if u64::try_from(value).is_ok() => u64::try_from(value).ok(),
            _ => {
                self.problem(node, name, &format!("expected a whole number, found {}", node.describe()));
                None
            }
        }
    }

    fn problem(&mut self, node: &Node, key: &str, message: &str) {
        self.report.push(Problem {
            line: node.span.start.line,
            column: node.span.start.column,
            key: key.to_owned(),
            ..Problem::of_file(&self.file, message, REMEDY)
        });
    }
}

/// A value by its key, which may be written as a Ruby symbol.
fn get<'m>(map: &'m Map, name: &str) -> Option<&'m Node> {
    map.entries.iter().find(|entry| plain_key(&entry.key) == name).map(|entry| &entry.value)
}

fn plain_key(key: &str) -> &str {
    key.strip_prefix(':').unwrap_or(key)
}

/// RFC 3339, or the way Ruby writes a time: `2026-11-22 09:00:00.5 +01:00`, `... Z`, `... UTC`.
fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f %:z", "%Y-%m-%d %H:%M:%S%.f %z", "%Y-%m-%dT%H:%M:%S%.f%z"] {
        if let Ok(time) = DateTime::parse_from_str(text, format) {
            return Some(time.to_utc());
        }
    }
    let bare = text.strip_suffix("UTC").or(text.strip_suffix('Z'))?.trim_end();
    NaiveDateTime::parse_from_str(bare, "%Y-%m-%d %H:%M:%S%.f").ok().map(|time| time.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<DateTime<Utc>> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn times_are_read_in_every_form_that_ruby_writes() {
        for text in [
            "2026-11-22T09:00:00Z",
            "2026-11-22T10:00:00+01:00",
            "2026-11-22T10:00:00.000+0100",
            "2026-11-22 09:00:00 UTC",
            "2026-11-22 09:00:00.000000000 Z",
            "2026-11-22 10:00:00 +0100",
            "2026-11-22 10:00:00.000000 +01:00",
        ] {
            assert_eq!(parse_time(text), at("2026-11-22T09:00:00Z"), "{text}");
        }
        for text in ["", "yesterday", "2026-11-22", "2026-11-22 09:00:00", "2026-13-01T00:00:00Z"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn chronos_state_is_read_flat_and_nested_with_words_and_symbols() {
        let expect = ScheduleState {
            last_evaluated_at: at("2026-11-22T09:00:00Z"),
            last_fire_at: None,
            next_fire_at: at("2026-11-23T09:00:00Z"),
        };
        let body = "last_evaluated_at: '2026-11-22T09:00:00Z'\n  last_fire_at:\n  next_fire_at: 2026-11-23 09:00:00.000000000 Z\n  _tentative_fire_at: x\n";
        let flat = format!("---\ndaily report:\n  {body}");
        let nested = format!("---\nschedules:\n {}", flat["---\n".len()..].replace('\n', "\n "));
        let symbols = flat.replace("last_", ":last_").replace("next_", ":next_");
        for text in [&flat, &nested, &symbols] {
            let state =
                parse_chronos_state(text.as_bytes(), "f").unwrap_or_else(|report| panic!("{text}\n{report}"));
            assert_eq!(state, ChronosState::from([("daily report".into(), expect)]), "{text}");
        }
        // A schedule may itself have the name of the level.
        let own = parse_chronos_state(format!("schedules:\n  {body}").as_bytes(), "f").unwrap();
        assert_eq!(own["schedules"], expect);
        assert_eq!(parse_chronos_state(b"--- {}\n", "f").unwrap(), ChronosState::new());
    }

    #[test]
    fn budget_is_read_and_extra_keys_are_left_alone() {
        let text = br#"{"date":"2026-11-22","llm_calls":12,"input_tokens":3400,"output_tokens":560,"limit":10000,"x":1}"#;
        let budget = parse_budget(text, "f").unwrap();
        assert_eq!((budget.llm_calls, budget.limit), (12, Some(10_000)));
        assert_eq!(budget.date, NaiveDate::from_ymd_opt(2026, 11, 22).unwrap());
    }

    #[test]
    fn damaged_files_are_errors_with_their_place_never_a_fresh_start() {
        let all = [
            parse_budget(b"", "budget.json").unwrap_err(),
            parse_budget(br#"{"date":"2026-11-22","llm_calls":12,"inp"#, "budget.json").unwrap_err(),
            parse_budget(br#"{"date":"soon","llm_calls":-1,"input_tokens":1.5}"#, "budget.json").unwrap_err(),
            parse_budget(br#"{"date":"2026-11-22"}"#, "budget.json").unwrap_err(),
            parse_chronos_state(b"daily: {last_fire_at: noon}\nother: 5\n", "chronos_state.yml").unwrap_err(),
            parse_chronos_state(b"\0\0\0\0", "chronos_state.yml").unwrap_err(),
        ];
        insta::assert_snapshot!(all.map(|report| report.to_string()).join("\n"), @r#"
budget.json: the file is empty
    -> correct it, or move the file away if its content does not matter
1 error and 0 warnings
budget.json:1:37: not valid YAML: while scanning a quoted scalar, found unexpected end of stream
    -> check quotes, brackets and indentation here and on the line before
1 error and 0 warnings
budget.json:1:9: date: expected a date such as 2026-11-22
    -> correct it, or move the file away if its content does not matter
budget.json:1:28: llm_calls: expected a whole number, found the number -1
    -> correct it, or move the file away if its content does not matter
budget.json:1:46: input_tokens: expected a whole number, found the number 1.5
    -> correct it, or move the file away if its content does not matter
3 errors and 0 warnings
budget.json:1:1: llm_calls: is missing
    -> correct it, or move the file away if its content does not matter
1 error and 0 warnings
chronos_state.yml:1:23: daily.last_fire_at: expected a time, found the text "noon"
    -> correct it, or move the file away if its content does not matter
chronos_state.yml:2:8: other: expected a map, found the number 5
    -> correct it, or move the file away if its content does not matter
2 errors and 0 warnings
chronos_state.yml:1:1: a NUL byte
    -> remove it; the file may be damaged
1 error and 0 warnings
"#);
    }

    #[test]
    fn a_file_that_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(budget(&dir.path().join("budget.json")).unwrap().is_none());
        assert!(chronos_state(&dir.path().join("c.yml")).unwrap().is_none());
        assert!(chronos_state(dir.path()).is_err());
    }
}
