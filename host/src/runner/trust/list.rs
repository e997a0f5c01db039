//! `.kairos/plugins/trust.json`: files that are trusted by their sha256, and keys whose signatures
//! are. It is read at every decision, so an edit counts from the next load on. A list that cannot
//! be read, or that others can write, is an error and trusts nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};

use super::keys;
use crate::runner::remedies;
use crate::sys::files::{self, FileError};

/// Of the file's format.
const SCHEMA: u32 = 1;

/// Most bytes of the file: some thousands of entries.
const MAX_SIZE: u64 = 4 << 20;

/// Why the list gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no list of this format.
    #[error("{} is no trust list: {reason}", path.display())]
    Garbage {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with its line.
        reason: String,
    },
    /// Somebody else could have written it.
    #[error("{} can be written by others, so it is not used", path.display())]
    OpenToOthers {
        /// Which file.
        path: PathBuf,
    },
}

impl ListError {
    /// The stable word.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::File(_) => "io",
            Self::Garbage { .. } => "bad_trust_list",
            Self::OpenToOthers { .. } => "trust_list_open",
        }
    }

    /// What to do about it, in one line.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        remedies::of(self.code())
    }
}

/// A trusted file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedPlugin {
    /// Its sha256 in lower-case hex.
    pub sha256: String,
    /// The name it had; for people.
    #[serde(default)]
    pub name: String,
    /// The version it had; for people.
    #[serde(default)]
    pub version: String,
    /// When it was added.
    pub added_at: DateTime<Utc>,
    /// Why, in a person's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A trusted signing key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedKey {
    /// The public key, as hex or base64.
    pub key: String,
    /// Whose it is.
    pub name: String,
    /// When it was added.
    pub added_at: DateTime<Utc>,
}

/// The whole list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustList {
    schema: u32,
    /// Trusted files.
    #[serde(default)]
    pub plugins: Vec<TrustedPlugin>,
    /// Trusted keys.
    #[serde(default)]
    pub keys: Vec<TrustedKey>,
}

impl Default for TrustList {
    fn default() -> Self {
        Self { schema: SCHEMA, plugins: Vec::new(), keys: Vec::new() }
    }
}

impl TrustList {
    /// Reads it; a missing file is an empty list.
    ///
    /// # Errors
    /// What is there instead of a list.
    pub fn read(path: &Path) -> Result<Self, ListError> {
        // A fifo would be waited for without end.
        if let Ok(meta) = path.metadata() {
            let io = |kind: std::io::ErrorKind| FileError::new("read", path, kind.into());
            if !meta.is_file() {
                return Err(io(std::io::ErrorKind::InvalidInput).into());
            }
            let ours = [0, rustix::process::geteuid().as_raw()].contains(&meta.uid());
            if !ours || meta.mode() & 0o022 != 0 {
                return Err(ListError::OpenToOthers { path: path.to_owned() });
            }
        }
        let Some(bytes) = files::read(path, MAX_SIZE)? else { return Ok(Self::default()) };
        let garbage = |reason: String| ListError::Garbage { path: path.to_owned(), reason };
        let list: Self = serde_json::from_slice(&bytes).map_err(|error| garbage(error.to_string()))?;
        if list.schema != SCHEMA {
            return Err(garbage(format!("its schema is {}, this host knows {SCHEMA}", list.schema)));
        }
        if let Some(bad) = list.plugins.iter().find(|plugin| !is_sha256(&plugin.sha256)) {
            return Err(garbage(format!("{:?} is no sha256", bad.sha256)));
        }
        if let Some(bad) = list.keys.iter().find(|key| keys::public_of(&key.key).is_err()) {
            return Err(garbage(format!("the key named {:?} is no public key", bad.name)));
        }
        Ok(list)
    }

    /// Changes the list in one step. Of two that change it at once, the second waits for the first.
    ///
    /// # Errors
    /// The list is bad, which is never overwritten, or cannot be written.
    pub fn change<T>(path: &Path, change: impl FnOnce(&mut Self) -> T) -> Result<T, ListError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        files::create_dirs(dir)?;
        let io = |error: std::io::Error| FileError::new("lock", dir, error);
        let lock = std::fs::File::open(dir).map_err(io)?;
        lock.lock().map_err(io)?;
        let mut list = Self::read(path)?;
        let before = list.clone();
        let answer = change(&mut list);
        if list != before {
            let mut text = serde_json::to_vec_pretty(&list).expect("names and times are JSON");
            text.push(b'\n');
            files::replace(path, &text, files::PRIVATE)?;
        }
        Ok(answer)
    }

    /// True when a file of this sha256 is listed.
    #[must_use]
    pub fn lists(&self, sha256: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.sha256.eq_ignore_ascii_case(sha256))
    }

    /// The keys, each with its owner's entry.
    pub fn verifying(&self) -> impl Iterator<Item = (&TrustedKey, VerifyingKey)> + Clone {
        self.keys.iter().filter_map(|entry| keys::public_of(&entry.key).ok().map(|key| (entry, key)))
    }
}

/// True for 64 hex digits.
#[must_use]
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
