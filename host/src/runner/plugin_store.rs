//! Where plugins are found, and where a copy of each is kept by its sha256.
//!
//! Only files of the store are ever mapped: their names follow from their content, so nothing
//! is overwritten under running code and the system's loader never mistakes a new file for an
//! old one. A file here is complete from the moment it has its name.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::load_error::LoadError;
use super::manifest::{self, PluginFile};
use crate::sys::files;

/// Everybody may read, nobody may write.
const MODE: u32 = 0o444;

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
        let path = self.path_of(&plugin.sha256);
        // What is there may have been damaged since; only equal bytes are trusted.
        if manifest::read(&path).is_ok_and(|bytes| bytes == plugin.bytes) {
            return Ok(path);
        }
        let io = |error: files::FileError| LoadError::Io {
            action: "keep the plugin as",
            path: path.clone(),
            reason: error.to_string(),
        };
        files::create_dirs(&self.dir).map_err(io)?;
        files::replace(&path, &plugin.bytes, MODE).map_err(io)?;
        Ok(path)
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
        let bytes = manifest::read(&self.path_of(sha256)).map_err(|_| gone())?;
        if hex::encode(Sha256::digest(&bytes)) != sha256 {
            return Err(gone());
        }
        let manifest = manifest::manifest_of(&bytes)?;
        Ok(PluginFile { bytes, sha256: sha256.to_owned(), manifest })
    }

    /// Removes the kept files whose hash `needed` does not claim, and what a crash left of a copy.
    /// A file that is mapped stays mapped. Gives how many files went.
    ///
    /// # Errors
    /// `io`, at the first file that cannot be removed.
    pub fn prune(&self, needed: impl Fn(&str) -> bool) -> Result<usize, LoadError> {
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
            if sha256.is_some_and(|sha256| !needed(sha256)) {
                std::fs::remove_file(&path).map_err(|error| io(&path, &error))?;
                gone += 1;
            }
        }
        files::sweep_temporaries(&self.dir).map_err(|error| io(&self.dir, &error))?;
        Ok(gone)
    }
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Where the value of a runner's `plugin` key is looked up.
#[derive(Clone, Debug)]
pub struct SearchPath {
    root: PathBuf,
    dirs: Vec<PathBuf>,
}

impl SearchPath {
    /// Paths are relative to `root`. Names are looked up beside the executable (in its directory
    /// `exe_dir` and in `deps` there, where cargo puts what tests need), in `.kairos/plugins` of
    /// the root, in `kairos/plugins` of the user's `data_home`, and in the system's directories.
    #[must_use]
    pub fn new(root: &Path, exe_dir: Option<&Path>, data_home: Option<&Path>) -> Self {
        let mut dirs = Vec::new();
        if let Some(dir) = exe_dir {
            dirs.extend([dir.to_owned(), dir.join("deps")]);
        }
        dirs.push(root.join(".kairos/plugins"));
        dirs.extend(data_home.map(|home| home.join("kairos/plugins")));
        dirs.extend(["/usr/local/lib/kairos/plugins", "/usr/lib/kairos/plugins"].map(PathBuf::from));
        Self { root: root.to_owned(), dirs }
    }

    /// The directories, in the order in which they are looked at.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The file that `plugin` means: a value with a slash is a path, `a-b` means `liba_b.so`.
    ///
    /// # Errors
    /// `not_found`, with the places.
    pub fn find(&self, plugin: &str) -> Result<PathBuf, LoadError> {
        let looked: Vec<PathBuf> = if plugin.contains('/') {
            vec![self.root.join(plugin)]
        } else {
            let file = format!("lib{}.so", plugin.replace('-', "_"));
            self.dirs.iter().map(|dir| dir.join(&file)).collect()
        };
        match looked.iter().find(|path| path.symlink_metadata().is_ok()) {
            Some(path) => Ok(path.clone()),
            None => Err(LoadError::NotFound { plugin: plugin.to_owned(), looked }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_in_order_and_paths_from_the_root() {
        let root = tempfile::tempdir().expect("a directory");
        let exe = root.path().join("bin");
        let search = SearchPath::new(root.path(), Some(&exe), Some(&root.path().join("data")));
        let first = exe.join("deps/liba_b.so");
        let second = root.path().join("data/kairos/plugins/liba_b.so");
        for path in [&first, &second] {
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::File::create(path).expect("made");
        }
        assert_eq!(search.find("a-b"), Ok(first.clone()));
        std::fs::remove_file(&first).expect("removed");
        assert_eq!(search.find("a-b"), Ok(second));
        assert_eq!(search.find("./bin/deps"), Ok(root.path().join("./bin/deps")));
        let error = search.find("missing").expect_err("there is none");
        assert_eq!(error.code(), "not_found");
        assert!(error.to_string().contains("bin/libmissing.so"), "{error}");
    }
    #[test]
    fn pruning_keeps_what_is_needed_and_what_is_not_ours() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = PluginStore::new(dir.path().join("store"));
        assert_eq!(store.prune(|_| false), Ok(0));
        std::fs::create_dir(dir.path().join("store")).expect("made");
        let [kept, gone] = ["a", "b"].map(|digit| digit.repeat(64));
        for path in [store.path_of(&kept), store.path_of(&gone), store.path_of("README")] {
            std::fs::File::create(path).expect("made");
        }
        assert_eq!(store.prune(|sha256| sha256 == kept), Ok(1));
        assert!(store.path_of(&kept).exists() && store.path_of("README").exists());
        assert!(!store.path_of(&gone).exists());
    }
}
