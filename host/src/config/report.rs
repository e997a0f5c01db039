//! What is wrong with a file that a person wrote: all of it in one pass, each with its place and
//! a remedy. It must never show a secret's value.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Most problems one report keeps; the number beyond it is still counted.
const KEPT: usize = 1000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It cannot be used as it stands.
    Error,
    /// It works, but probably not as meant.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub level: Level,
    /// The file, as it was named; the variable for a value from the environment.
    #[serde(serialize_with = "shared")]
    pub file: Arc<str>,
    /// Line from 1; 0 when there is no such place.
    pub line: u32,
    /// Column from 1, in characters; 0 when there is no such place.
    pub column: u32,
    /// Dotted path of the key, `budget.daily_calls` or `schedules[3].cron`.
    pub key: String,
    /// The schedule it belongs to.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_shared")]
    pub schedule: Option<Arc<str>>,
    /// The stable word for it, where there is one: those of `plugin check`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

fn shared<S: Serializer>(text: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text)
}

fn maybe_shared<S: Serializer>(text: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(to)
}

impl Problem {
    /// An error without a place: a file that cannot be read, for example.
    #[must_use]
    pub fn of_file(file: &Arc<str>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Error,
            file: file.clone(),
            line: 0,
            column: 0,
            key: String::new(),
            schedule: None,
            code: None,
            message: message.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        f.write_str(": ")?;
        if self.level == Level::Warning {
            f.write_str("warning: ")?;
        }
        if let Some(schedule) = &self.schedule {
            write!(f, "schedule {}: ", quoted(schedule))?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(code) = self.code {
            write!(f, "{code}: ")?;
        }
        f.write_str(&self.message.replace('\n', "\n    "))?;
        if !self.remedy.is_empty() {
            write!(f, "\n    -> {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Text from a file, safe to print: quoted, escaped, cut to a readable length.
#[must_use]
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}...", &text[..cut]),
    }
}

/// The known word nearest to a mistyped one, if it is near at all.
#[must_use]
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Beyond this length nobody mistypes, and the comparison is quadratic.
    if word.len() > 64 {
        return None;
    }
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(&lower, &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= 1 + known.len().min(word.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// All that is wrong, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// At most a thousand are kept.
    pub problems: Vec<Problem>,
    errors: usize,
    warnings: usize,
}

impl Report {
    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        match problem.level {
            Level::Error => self.errors += 1,
            Level::Warning => self.warnings += 1,
        }
        if self.problems.len() < KEPT {
            self.problems.push(problem);
        }
    }

    /// Adds all of another one.
    pub fn extend(&mut self, other: Self) {
        self.errors += other.errors;
        self.warnings += other.warnings;
        let room = KEPT.saturating_sub(self.problems.len());
        self.problems.extend(other.problems.into_iter().take(room));
    }

    /// Brings them into the order of the file; values from outside it come first.
    pub fn sort(&mut self) {
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
    }

    /// How many errors, those not kept included.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// How many warnings, those not kept included.
    #[must_use]
    pub fn warnings(&self) -> usize {
        self.warnings
    }

    /// True without errors; warnings do not count.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.errors == 0
    }

    /// Moves the problems out and forgets the counts.
    pub fn take(&mut self) -> Vec<Problem> {
        self.errors = 0;
        self.warnings = 0;
        std::mem::take(&mut self.problems)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        let more = (self.errors + self.warnings).saturating_sub(self.problems.len());
        if more > 0 {
            writeln!(f, "and {more} more")?;
        }
        write!(f, "{} and {}", counted(self.errors, "error"), counted(self.warnings, "warning"))
    }
}

/// `1 error`, `2 errors`.
#[must_use]
pub fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word_is_offered_only_when_it_is_near() {
        let known = ["daily_calls", "daily_tokens", "timezone"];
        assert_eq!(nearest("daily_call", known), Some("daily_calls"));
        assert_eq!(nearest("Timezone", known), Some("timezone"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), known), None);
    }

    #[test]
    fn a_flood_of_problems_is_counted_but_not_kept() {
        let mut report = Report::default();
        let file: Arc<str> = "f".into();
        for _ in 0..KEPT + 5 {
            report.push(Problem::of_file(&file, "m", ""));
        }
        assert_eq!((report.errors(), report.problems.len()), (KEPT + 5, KEPT));
        assert!(report.to_string().ends_with("and 5 more\n1005 errors and 0 warnings"));
    }

    #[test]
    fn shown_text_is_escaped_and_short() {
        assert_eq!(quoted("a\n\u{1b}[0m"), r#""a\n\u{1b}[0m""#);
        assert!(quoted(&"é".repeat(10_000)).len() < 140);
    }
}
