//! Which plugin files may share a process, or an unconfined one, with what the daemon owns.
//!
//! A file is trusted when it came with the executable or with the system, when its sha256 is
//! listed, or when a trusted key signed it. It is decided on the bytes that are then kept and
//! mapped, afresh at every load. Whatever cannot be read trusts nothing; trust gives no right to
//! anything that a policy does not grant.

mod doubt;
pub mod keys;
pub mod list;

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::manifest::{self, PluginFile};
use super::search::SearchPath;
use crate::sys::files;
use keys::Verdict;
use list::TrustList;

pub use doubt::Doubt;

/// Most bytes of a signature file.
const MAX_SIGNATURE: u64 = 4 << 10;

/// A place whose files are trusted as the daemon itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The executable's directory, or `deps` there.
    Executable,
    /// A plugin directory of the system, which only root can write to.
    System,
}

/// Whether a file is trusted, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The program that embeds the host decides for itself what it loads.
    Embedder,
    /// It lies in such a place.
    Place(Place),
    /// Its sha256 is listed.
    Listed,
    /// A trusted key signed it.
    Signed {
        /// Whose key.
        by: String,
    },
    /// Nothing speaks for it.
    Untrusted {
        /// What was found instead.
        why: Doubt,
    },
}

impl Trust {
    /// True unless nothing speaks for the file.
    #[must_use]
    pub fn holds(&self) -> bool {
        !matches!(self, Self::Untrusted { .. })
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedder => f.write_str("chosen by this program"),
            Self::Place(Place::Executable) => f.write_str("came with the executable"),
            Self::Place(Place::System) => f.write_str("in a directory of the system"),
            Self::Listed => f.write_str("its sha256 is listed"),
            Self::Signed { by } => write!(f, "signed by {by:?}"),
            Self::Untrusted { why } => why.fmt(f),
        }
    }
}

/// What was known of a file when it was kept, beside its content: it may be gone from where it
/// came from when an open cycle still needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Where it lay, if that was such a place.
    pub place: Option<Place>,
    /// The text of its signature file.
    pub signature: Option<String>,
}

/// The rules of one root. Cheap to clone; every decision reads the list afresh.
#[derive(Clone, Debug)]
pub struct TrustPolicy {
    list: PathBuf,
    beside: Vec<PathBuf>,
    system: Vec<PathBuf>,
}

impl TrustPolicy {
    /// The rules with the list at `list` and the places of `search`.
    #[must_use]
    pub fn new(list: impl Into<PathBuf>, search: &SearchPath) -> Self {
        Self { list: list.into(), beside: search.beside().to_vec(), system: search.system().to_vec() }
    }

    /// What speaks for a file. Reads the list, the signature and, in a trusted place, the file
    /// again: a path that leads elsewhere by now says nothing about these bytes.
    #[must_use]
    pub fn judge(&self, plugin: &PluginFile) -> Trust {
        self.judge_by(plugin, &self.credentials(plugin))
    }

    /// As [`Self::judge`], with what was collected before.
    #[must_use]
    pub fn judge_by(&self, plugin: &PluginFile, credentials: &Credentials) -> Trust {
        if let Some(place) = credentials.place {
            return Trust::Place(place);
        }
        let list = match TrustList::read(&self.list) {
            Ok(list) => list,
            Err(error) => return Trust::Untrusted { why: Doubt::List(Arc::new(error)) },
        };
        if list.lists(&plugin.sha256) {
            return Trust::Listed;
        }
        let Some(text) = &credentials.signature else {
            return Trust::Untrusted { why: Doubt::Unknown };
        };
        let why = match keys::judge(text, &plugin.sha256, list.verifying()) {
            Verdict::By(key) => return Trust::Signed { by: key.name.clone() },
            Verdict::Stranger(key) => Doubt::Stranger { key: keys::public_text(&key) },
            Verdict::Changed(of) => Doubt::Changed { of: of.map(|key| key.name.clone()) },
            Verdict::Unreadable => Doubt::Unreadable,
        };
        Trust::Untrusted { why }
    }

    /// What can speak for a file, as found where it came from or as it was kept with it.
    #[must_use]
    pub fn credentials(&self, plugin: &PluginFile) -> Credentials {
        let Some(path) = &plugin.origin else { return plugin.kept.clone() };
        let signature = signature_beside(path);
        Credentials { place: self.place_of(path, &plugin.bytes), signature }
    }

    fn place_of(&self, path: &Path, bytes: &[u8]) -> Option<Place> {
        let real = path.canonicalize().ok()?;
        let dir = real.parent()?;
        let is = |place: &PathBuf| place.canonicalize().is_ok_and(|place| place == dir);
        let place = if self.beside.iter().any(is) && came_along(dir, &real) {
            Place::Executable
        } else if self.system.iter().any(is) && only_root_writes(&real) {
            Place::System
        } else {
            return None;
        };
        // Between reading and looking, a link may have been turned towards a trusted file.
        manifest::read_any(&real).is_ok_and(|found| found == bytes).then_some(place)
    }
}

fn signature_beside(path: &Path) -> Option<String> {
    let file = keys::signature_file(path);
    // Whatever else has that name, a fifo for example, is no signature.
    file.metadata().ok().filter(Metadata::is_file)?;
    // One that cannot be read or is no text is there all the same; it reads as none of ours.
    let bytes = files::read(&file, MAX_SIGNATURE).ok().flatten().unwrap_or_default();
    Some(String::from_utf8(bytes).unwrap_or_default())
}

/// Whoever can put a file there, or change this one, could as well exchange the executable.
fn came_along(dir: &Path, file: &Path) -> bool {
    let (Ok(dir), Ok(file)) = (dir.metadata(), file.metadata()) else { return false };
    let owners = [0, rustix::process::geteuid().as_raw(), dir.uid()];
    (dir.mode() | file.mode()) & 0o002 == 0 && owners.contains(&file.uid())
}

fn only_root_writes(file: &Path) -> bool {
    file.ancestors().all(|step| step.metadata().is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o022 == 0))
}

#[cfg(test)]
mod tests;
