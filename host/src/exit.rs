//! How a command ends: exit codes that scripts rely on, and errors with a code and a remedy.

use std::fmt;
use std::io::ErrorKind;

use crate::sys::files::FileError;
use crate::sys::lock::LockError;

/// Exit codes, fixed.
pub mod code {
    /// Failed, or `run` finds another daemon.
    pub const FAILED: u8 = 1;
    /// Usage or configuration.
    pub const USAGE: u8 = 2;
    /// The named thing does not exist.
    pub const NOT_FOUND: u8 = 3;
    /// Not authorised.
    pub const AUTH: u8 = 4;
    /// The state of the thing does not allow it.
    pub const CONFLICT: u8 = 5;
    /// The budget holds something back.
    pub const BUDGET: u8 = 6;
    /// Needs the daemon, which is not running.
    pub const DAEMON_DOWN: u8 = 7;
    /// Store damaged, or a sync failed.
    pub const STORE: u8 = 8;
    /// The graceful timeout was exceeded.
    pub const GRACE: u8 = 9;
    /// A second signal.
    pub const SIGNAL: u8 = 130;
}

/// A failure of a command, as a person and a script see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// one of [`code`].
    pub exit: u8,
    /// A constant word.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Failure {
    /// A failure without a remedy.
    pub fn new(exit: u8, code: &str, message: impl Into<String>) -> Self {
        Self { exit, code: code.to_owned(), message: message.into(), remedy: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Wrong use or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(code::USAGE, "usage", message)
    }

    /// Does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(code::NOT_FOUND, "not_found", message)
    }

    /// The daemon is not running.
    #[must_use]
    pub fn daemon_down() -> Self {
        Self::new(code::DAEMON_DOWN, "daemon_down", "the daemon is not running")
            .remedy("start it with `kairos run`")
    }

    /// What `--json` prints on stderr.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"error": {"code": self.code, "message": self.message, "remedy": self.remedy}})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  remedy: {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<crate::store::Error> for Failure {
    fn from(error: crate::store::Error) -> Self {
        use crate::store::Error as E;
        let (exit, word) = match &error {
            E::Full { .. } => (code::FAILED, "disk_full"),
            E::ReadOnly { .. } => (code::FAILED, "read_only"),
            E::SyncFailed { .. } => (code::STORE, "sync_failed"),
            E::Damaged { .. } => (code::STORE, "store_damaged"),
            E::Newer { .. } => (code::STORE, "store_newer"),
            E::NotFound { .. } => (code::NOT_FOUND, "not_found"),
            E::Conflict(_) => (code::CONFLICT, "conflict"),
            E::Invalid(_) => (code::USAGE, "invalid"),
            E::Closed => (code::STORE, "store_closed"),
        };
        let failure = Self::new(exit, word, error.to_string());
        if matches!(error, E::ReadOnly { .. }) { failure.remedy(WRITABLE) } else { failure }
    }
}

/// For a place that cannot be written.
const WRITABLE: &str = "give the user that this runs as the right to write there, or mount it for writing; `kairos doctor` looks";

impl From<&FileError> for Failure {
    fn from(error: &FileError) -> Self {
        let (word, remedy) = match error {
            FileError::Full { .. } => ("disk_full", "make room"),
            FileError::Refused { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem => {
                ("read_only", WRITABLE)
            }
            FileError::Refused { .. } => ("no_permission", WRITABLE),
            FileError::TooLarge { .. } => return Self::new(code::FAILED, "too_large", error.to_string()),
            FileError::Io { .. } => return Self::new(code::FAILED, "io", error.to_string()),
        };
        Self::new(code::FAILED, word, error.to_string()).remedy(remedy)
    }
}

/// The failure inside any error of a command; an unknown one is a plain failure with its causes.
#[must_use]
pub fn classify(error: &anyhow::Error) -> Failure {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.clone();
    }
    if let Some(store) = error.downcast_ref::<crate::store::Error>() {
        return store.clone().into();
    }
    // It says what was done to which file; what was wanted with it adds nothing.
    let of_file = |cause: &'_ (dyn std::error::Error + 'static)| match cause.downcast_ref::<LockError>() {
        Some(LockError::File(file)) => Some(Failure::from(file)),
        _ => cause.downcast_ref::<FileError>().map(Failure::from),
    };
    if let Some(failure) = error.chain().find_map(of_file) {
        return failure;
    }
    Failure::new(code::FAILED, "failed", format!("{error:#}"))
}
