//! Where a copy of each plugin is kept by its sha256.
//!
//! Only files of the store are ever mapped: their names follow from their content, so nothing
//! is overwritten under running code and the system's loader never mistakes a new file for an
//! old one. A file here is complete from the moment it has its name.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::launch::Pace;
use super::load_error::LoadError;
use super::manifest::{self, PluginFile};
use super::trust::Credentials;
use super::trust::list::is_sha256;
use crate::sys::{files, priority};

/// Everybody may read, nobody may write.
const MODE: u32 = 0o444;

/// Most bytes of what is kept to speak for a file.
const MAX_CREDENTIALS: u64 = 64 << 10;

/// The content-addressed store, `.kairos/plugins/store`.
#[derive(Clone, Debug)]
pub struct PluginStore {
    dir: PathBuf,
}

impl PluginStore {
    /// A store in `dir`, which is made when the first plugin comes.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where the file of that hash is or would be.
    #[must_use]
    pub fn path_of(&self, sha256: &str) -> PathBuf {
        self.dir.join(format!("{sha256}.so"))
    }

    /// Keeps a file durably, unless it is there already. Gives its path.
    ///
    /// # Errors
    /// `io` when it cannot be kept.
    pub fn keep(&self, plugin: &PluginFile) -> Result<PathBuf, LoadError> {
        self.keep_at(Pace::Usual, plugin)
    }

    /// The same: whether it is there is found out at that pace. It is never written at leisure, since
    /// others wait for the same disk.
    pub(super) fn keep_at(&self, pace: Pace, plugin: &PluginFile) -> Result<PathBuf, LoadError> {
        let path = self.path_of(&plugin.sha256);
        let there = match pace {
            Pace::Usual => self.has(plugin),
            Pace::Background => priority::at_leisure(|| self.has(plugin)),
        };
        if there {
            touch(&path);
            return Ok(path);
        }
        files::create_dirs(&self.dir).map_err(|error| not_kept(&path, &error))?;
        files::replace(&path, &plugin.bytes, MODE).map_err(|error| not_kept(&path, &error))?;
        Ok(path)
    }

    /// Whether a file is kept. What is there may have been damaged since: only equal bytes are trusted.
    fn has(&self, plugin: &PluginFile) -> bool {
        manifest::read_any(&self.path_of(&plugin.sha256)).is_ok_and(|bytes| bytes == plugin.bytes)
    }

    /// Keeps what speaks for a file beside it, for when an open cycle needs the copy and the file
    /// has gone from where it came from.
    ///
    /// # Errors
    /// `io` when it cannot be kept.
    pub fn vouch(&self, sha256: &str, credentials: &Credentials) -> Result<(), LoadError> {
        let path = self.credentials_of(sha256);
        let before = self.credentials(sha256);
        // The same bytes may come from several places; what spoke for them once does so still.
        let now = Credentials {
            place: credentials.place.or(before.place),
            signature: credentials.signature.clone().or_else(|| before.signature.clone()),
        };
        if now == before {
            return Ok(());
        }
        let text = serde_json::to_vec(&now).expect("texts are JSON");
        files::create_dirs(&self.dir).map_err(|error| not_kept(&path, &error))?;
        files::replace(&path, &text, files::PRIVATE).map_err(|error| not_kept(&path, &error))
    }

    /// What was kept to speak for that file; nothing, when it cannot be read.
    #[must_use]
    pub fn credentials(&self, sha256: &str) -> Credentials {
        let bytes = files::read(&self.credentials_of(sha256), MAX_CREDENTIALS).ok().flatten();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn credentials_of(&self, sha256: &str) -> PathBuf {
        self.dir.join(format!("{sha256}.json"))
    }

    /// The kept file of that hash, its content checked against it.
    ///
    /// # Errors
    /// `generation_gone` when it is not there or not what its name says.
    pub fn open(&self, sha256: &str) -> Result<PluginFile, LoadError> {
        let gone = || LoadError::GenerationGone(sha256.to_owned());
        // The name comes from a record; one that is no hash leads nowhere.
        if !is_sha256(sha256) {
            return Err(gone());
        }
        let path = self.path_of(sha256);
        let bytes = manifest::read_any(&path).map_err(|_| gone())?;
        if hex::encode(Sha256::digest(&bytes)) != sha256 {
            return Err(gone());
        }
        touch(&path);
        let manifest = manifest::manifest_of(&bytes)?;
        let kept = self.credentials(sha256);
        Ok(PluginFile { bytes, sha256: sha256.to_owned(), manifest, origin: None, kept })
    }

    /// Removes the kept files that were last used before `used_before` and whose hash `needed` does
    /// not claim, with what was kept beside them, and what a crash left of a copy. A file that is
    /// mapped stays mapped. Gives how many plugins went.
    ///
    /// # Errors
    /// `io`, at the first file that cannot be removed.
    pub fn prune(&self, used_before: SystemTime, needed: impl Fn(&str) -> bool) -> Result<usize, LoadError> {
        let io = |path: &Path, error: &dyn std::fmt::Display| LoadError::Io {
            action: "remove",
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(io(&self.dir, &error)),
        };
        let mut gone = 0;
        for entry in entries {
            let path = entry.map_err(|error| io(&self.dir, &error))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let sha256 = name.and_then(|name| name.strip_suffix(".so")).filter(|name| is_sha256(name));
            let Some(sha256) = sha256.filter(|sha256| !needed(sha256)) else { continue };
            // A time that cannot be read keeps its file.
            let used = path.metadata().and_then(|meta| meta.modified());
            if used.map_or(true, |used| used >= used_before) {
                continue;
            }
            std::fs::remove_file(&path).map_err(|error| io(&path, &error))?;
            let beside = self.credentials_of(sha256);
            match std::fs::remove_file(&beside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io(&beside, &error));
                }
                _ => gone += 1,
            }
        }
        files::sweep_temporaries(&self.dir).map_err(|error| io(&self.dir, &error))?;
        Ok(gone)
    }
}

/// The modification time of a kept file says when it was last used; its content never changes.
fn touch(path: &Path) {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    if let Err(error) = rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()) {
        tracing::debug!(path = %path.display(), %error, "plugin_not_touched");
    }
}

fn not_kept(path: &Path, error: &files::FileError) -> LoadError {
    LoadError::Io { action: "keep the plugin as", path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pruning_keeps_what_is_needed_or_was_just_used_and_what_is_not_ours() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = PluginStore::new(dir.path().join("store"));
        assert_eq!(store.prune(SystemTime::UNIX_EPOCH, |_| false), Ok(0));
        std::fs::create_dir(dir.path().join("store")).expect("made");
        let [kept, gone, used] = ["a", "b", "c"].map(|digit| digit.repeat(64));
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for path in
            [store.path_of(&kept), store.path_of(&gone), store.path_of(&used), store.path_of("README")]
        {
            std::fs::File::create(path).and_then(|file| file.set_modified(old)).expect("made");
        }
        store.vouch(&gone, &Credentials { signature: Some("x".into()), place: None }).expect("kept");
        assert_eq!(store.credentials(&gone).signature.as_deref(), Some("x"));
        touch(&store.path_of(&used));
        let before = old + Duration::from_secs(1);
        assert_eq!(store.prune(before, |sha256| sha256 == kept), Ok(1));
        for path in [store.path_of(&kept), store.path_of(&used), store.path_of("README")] {
            assert!(path.exists(), "{}", path.display());
        }
        assert!(!store.path_of(&gone).exists());
        assert_eq!(store.credentials(&gone), Credentials::default());
    }
}
