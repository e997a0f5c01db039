//! Why a cron expression is refused: kind, field, column, what is allowed and what to write instead.

use std::fmt;

use super::field::Field;

/// What is wrong, as a word that scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CronErrorKind {
    /// Not five or six fields.
    FieldCount,
    /// A value outside its field.
    OutOfRange,
    /// A step that is no number, zero, or wider than its field.
    BadStep,
    /// A range whose end lies before its start.
    InvertedRange,
    /// Not a value, range, list or step of this field.
    Syntax,
    /// Known from other dialects, and not part of this one.
    Unsupported,
    /// No date ever matches, such as 30 February.
    NeverFires,
    /// No such time zone.
    UnknownTimezone,
}

impl CronErrorKind {
    /// The stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FieldCount => "field_count",
            Self::OutOfRange => "out_of_range",
            Self::BadStep => "bad_step",
            Self::InvertedRange => "inverted_range",
            Self::Syntax => "syntax",
            Self::Unsupported => "unsupported",
            Self::NeverFires => "never_fires",
            Self::UnknownTimezone => "unknown_timezone",
        }
    }
}

impl fmt::Display for CronErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refused cron expression. Displays as one line: what, where, and the hint if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CronError {
    /// What is wrong.
    pub kind: CronErrorKind,
    /// The field, unless the expression as a whole is meant.
    pub field: Option<Field>,
    /// Where in the expression, counted in characters from 1.
    pub column: usize,
    /// One sentence, without place and hint.
    pub message: String,
    /// The values that the field allows, such as `0-23`.
    pub allowed: Option<String>,
    /// What to write instead.
    pub hint: Option<String>,
}

impl fmt::Display for CronError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (column {})", self.message, self.column)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CronError {}
