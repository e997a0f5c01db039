//! Why a file is no runner, or not one that can be had now: one kind and one stable code each, and
//! what to do about it. The message says what is wrong, the remedy is told beside it.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kairos_plugin_api::CallError;

use super::Isolation;
use super::remedies;
use super::trust::Doubt;
use crate::sys::sandbox::{Level, Reached};

/// Why a runner is unavailable. Cheap to clone, since it is shown wherever a mandate waits for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// No such file, or a plugin name that leads to none.
    #[error("{}", nowhere(plugin))]
    NotFound {
        /// What was asked for.
        plugin: String,
        /// Where it could have been.
        looked: Vec<PathBuf>,
    },
    /// A directory, a fifo, a device.
    #[error("{} is {what}, not a file", path.display())]
    NotAFile {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Links that lead in a circle.
    #[error("{} is a link that leads to itself", path.display())]
    SymlinkLoop {
        /// Which.
        path: PathBuf,
    },
    /// The daemon's user may not read it.
    #[error("{} may not be read by this user", path.display())]
    NoPermission {
        /// Which.
        path: PathBuf,
    },
    /// Somebody wrote to it while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// No byte in it.
    #[error("{} is empty", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// Larger than any plugin.
    #[error("{} has {size} bytes; a plugin may have {limit}", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The most.
        limit: u64,
    },
    /// The file cannot be read, or not be kept in the store.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        reason: String,
    },
    /// Something else than an ELF file.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file, but not a shared object for this kind of machine.
    #[error("made for another machine: {0}")]
    WrongArch(String),
    /// It ends before its own headers say.
    #[error("it is a piece of a file: {0}")]
    Truncated(String),
    /// Its headers contradict themselves.
    #[error("its headers are damaged: {0}")]
    Damaged(String),
    /// No section with a manifest: not a Kairos plugin.
    #[error("no manifest: not a Kairos plugin, or one that was not built with export_runner!")]
    NoManifest,
    /// The manifest cannot be read or be believed.
    #[error("bad manifest: {0}")]
    BadManifest(String),
    /// The manifest in the section is another one than that of the code.
    #[error("its manifest lies: the code says something else than the section")]
    ManifestLies,
    /// Built for another major version of the plugin API.
    #[error("built for plugin-api {found}; this host takes {host}")]
    WrongMajor {
        /// The plugin's.
        found: String,
        /// This host's.
        host: String,
    },
    /// A manifest, but no runner: the root symbol is missing.
    #[error("exports no runner")]
    NotARunner,
    /// A C entry whose table of functions cannot be used.
    #[error("its table of functions cannot be used: {0}")]
    BadTable(String),
    /// The types differ from those of this host. Three lines.
    #[error("{0}")]
    LayoutMismatch(String),
    /// Built without a description of its types, so they cannot be checked.
    #[error("carries no type layout")]
    NoLayout,
    /// The system's loader refused it.
    #[error("cannot be loaded: {0}")]
    LoadFailed(String),
    /// Its root module panicked.
    #[error("panicked while it was loaded")]
    PanicInLoad,
    /// A panic in it would end the daemon.
    #[error("built with panic=abort, so it cannot run in the daemon's process")]
    PanicAbort,
    /// Its constructor panicked.
    #[error("panicked in its constructor: {0}")]
    PanicInNew(String),
    /// Its constructor refused the parameters.
    #[error("refused its params: {0}")]
    SetupRefused(CallErrorText),
    /// Asked for an isolation that this build does not have.
    #[error("isolation {0} is not available")]
    IsolationUnavailable(Isolation),
    /// A file that was granted to it cannot be had.
    #[error("a grant cannot be given: {0}")]
    BadGrant(String),
    /// Its process died while it was loaded: a constructor that crashes, mostly.
    #[error("crashed while it was loaded: {0}")]
    Crashed(String),
    /// Its process did not answer in time.
    #[error("was not loaded within {} s; its constructor hangs", .0.as_secs())]
    LoadTimeout(Duration),
    /// No worker process can be had.
    #[error("no worker process: {0}")]
    NoWorker(String),
    /// What a worker found, under the code that it has here too.
    #[error("{message}")]
    InWorker {
        /// The stable word.
        code: &'static str,
        /// For people.
        message: String,
    },
    /// It may not run where the operator wants it to, or, when it was changed after a trusted key
    /// had signed it, anywhere.
    #[error("{plugin} is not trusted, so it cannot run as {isolation}: {why}")]
    Untrusted {
        /// The plugin, as configured.
        plugin: String,
        /// Where it was to run.
        isolation: Isolation,
        /// What was found.
        why: Doubt,
    },
    /// The machine confines it less than is demanded. None of its code ran.
    #[error("its sandbox would be {reached}; {} is demanded", wanted.word())]
    SandboxTooWeak {
        /// What there is, with what is missing.
        reached: Arc<Reached>,
        /// What is demanded.
        wanted: Level,
    },
    /// It was loaded and made, and then said that it could not work.
    #[error("its probe failed: {0}")]
    ProbeFailed(String),
    /// No runner of that name is configured.
    #[error("no runner named {0:?} is configured")]
    UnknownRunner(String),
    /// The generation that began a cycle cannot be had any more.
    #[error("generation {0} is gone from the plugin store")]
    GenerationGone(String),
}

/// A [`CallError`] reduced to what is shown of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallErrorText(pub String);

impl std::fmt::Display for CallErrorText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<CallError> for CallErrorText {
    fn from(error: CallError) -> Self {
        Self(error.message)
    }
}

/// Codes that a worker can find; the words are those of [`LoadError::code`].
const WORKER_CODES: [&str; 17] = [
    "bad_grant",
    "bad_manifest",
    "bad_table",
    "io",
    "layout_mismatch",
    "load_failed",
    "manifest_lies",
    "no_layout",
    "no_manifest",
    "not_a_runner",
    "panic_abort",
    "panic_in_load",
    "panic_in_new",
    "probe_failed",
    "sandbox_unavailable",
    "setup_refused",
    "wrong_major",
];

impl LoadError {
    /// What a worker answered, under the same code. A word that is not known counts as a refusal
    /// of the loader.
    #[must_use]
    pub fn from_worker(code: &str, message: String) -> Self {
        let known = WORKER_CODES.into_iter().find(|known| *known == code);
        Self::InWorker { code: known.unwrap_or("load_failed"), message }
    }

    /// The stable word for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::NotAFile { what: "a directory", .. } => "is_a_directory",
            Self::NotAFile { what: "a fifo", .. } => "is_a_fifo",
            Self::NotAFile { .. } => "not_a_file",
            Self::SymlinkLoop { .. } => "symlink_loop",
            Self::NoPermission { .. } => "no_permission",
            Self::Changed { .. } => "changed",
            Self::Empty { .. } => "empty",
            Self::TooLarge { .. } => "too_large",
            Self::Io { .. } => "io",
            Self::NotElf => "not_elf",
            Self::WrongArch(_) => "wrong_arch",
            Self::Truncated(_) => "truncated",
            Self::Damaged(_) => "damaged",
            Self::NoManifest => "no_manifest",
            Self::BadManifest(_) => "bad_manifest",
            Self::ManifestLies => "manifest_lies",
            Self::WrongMajor { .. } => "wrong_major",
            Self::NotARunner => "not_a_runner",
            Self::BadTable(_) => "bad_table",
            Self::LayoutMismatch(_) => "layout_mismatch",
            Self::NoLayout => "no_layout",
            Self::LoadFailed(_) => "load_failed",
            Self::PanicInLoad => "panic_in_load",
            Self::PanicAbort => "panic_abort",
            Self::PanicInNew(_) => "panic_in_new",
            Self::SetupRefused(_) => "setup_refused",
            Self::Crashed(_) => "crashed",
            Self::LoadTimeout(_) => "load_timeout",
            Self::NoWorker(_) => "no_worker",
            Self::InWorker { code, .. } => code,
            Self::IsolationUnavailable(_) => "isolation_unavailable",
            Self::Untrusted { why, .. } => why.code(),
            Self::SandboxTooWeak { .. } => "sandbox_unavailable",
            Self::ProbeFailed(_) => "probe_failed",
            Self::BadGrant(_) => "bad_grant",
            Self::UnknownRunner(_) => "unknown_runner",
            Self::GenerationGone(_) => "generation_gone",
        }
    }

    /// What to do about it, in one line.
    #[must_use]
    pub fn remedy(&self) -> Cow<'static, str> {
        match self {
            Self::NotFound { plugin, .. } if !plugin.contains('/') => Cow::Owned(format!(
                "put {} into .kairos/plugins, or write its path, with a slash, as the runner's `plugin`",
                file_name(plugin)
            )),
            Self::Untrusted { why, .. } => why.remedy(),
            Self::SandboxTooWeak { reached, .. } if reached.level < Level::Partial => {
                Cow::Borrowed(remedies::NO_SANDBOX)
            }
            other => Cow::Borrowed(remedies::of(other.code())),
        }
    }

    /// Message and remedy in one line, for places that have no second one.
    #[must_use]
    pub fn told(&self) -> String {
        format!("{self}; {}", self.remedy())
    }

    /// Every place that was looked at, when nothing was found; empty otherwise.
    #[must_use]
    pub fn looked(&self) -> &[PathBuf] {
        match self {
            Self::NotFound { looked, .. } => looked,
            _ => &[],
        }
    }

    /// How far the machine would have confined it, when that was too little.
    #[must_use]
    pub fn sandbox(&self) -> Option<&Reached> {
        match self {
            Self::SandboxTooWeak { reached, .. } => Some(reached),
            _ => None,
        }
    }
}

/// The file that a plugin's name means: `a-b` is `liba_b.so`.
pub(super) fn file_name(plugin: &str) -> String {
    format!("lib{}.so", plugin.replace('-', "_"))
}

/// Short, since it is told wherever a mandate waits; the places are in [`LoadError::looked`].
fn nowhere(plugin: &str) -> String {
    if plugin.contains('/') {
        return format!("there is no file {}", Path::new(plugin).display());
    }
    let file = file_name(plugin);
    format!(
        "no plugin {plugin:?}: {file} is neither beside kairos nor in .kairos/plugins, nor where the user or the system keeps plugins"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_found_keeps_its_code_and_gets_its_remedy() {
        for code in WORKER_CODES {
            let error = LoadError::from_worker(code, "words".to_owned());
            assert_eq!((error.code(), error.to_string().as_str()), (code, "words"));
            assert_ne!(error.remedy(), remedies::of("no such code"), "{code}");
        }
        assert_eq!(LoadError::from_worker("made_up", String::new()).code(), "load_failed");
    }

    #[test]
    fn a_machine_without_any_sandbox_is_told_another_remedy_than_one_that_has_a_lesser_one() {
        let of = |level, wanted| {
            let reached = Reached { level, layers: vec![] };
            LoadError::SandboxTooWeak { reached: Arc::new(reached), wanted }.told()
        };
        assert!(of(Level::Partial, Level::Full).contains("`sandbox.require: partial`"));
        let none = of(Level::None, Level::Partial);
        assert!(
            none.contains("partial is demanded") && none.contains("Landlock") && !none.contains("require"),
            "{none}"
        );
    }
}
