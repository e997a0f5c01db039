//! Where the value of a runner's `plugin` key leads: one lookup for the loader, the commands and
//! the checks. Nothing here reads a file.

use std::path::{Component, Path, PathBuf};

use super::load_error::{LoadError, file_name};

/// Directories of the system where packages put plugins.
const SYSTEM: [&str; 2] = ["/usr/local/lib/kairos/plugins", "/usr/lib/kairos/plugins"];

/// Where plugins are looked up.
#[derive(Clone, Debug)]
pub struct SearchPath {
    root: PathBuf,
    beside: Vec<PathBuf>,
    own: Vec<PathBuf>,
    system: Vec<PathBuf>,
}

impl SearchPath {
    /// Paths are relative to `root`. Names are looked up beside the executable (in its directory
    /// `exe_dir` and in `deps` there, where cargo puts what tests need), in `.kairos/plugins` of
    /// the root, in `kairos/plugins` of the user's `data_home`, and in the system's directories.
    #[must_use]
    pub fn new(root: &Path, exe_dir: Option<&Path>, data_home: Option<&Path>) -> Self {
        let beside = exe_dir.map(|dir| vec![dir.to_owned(), dir.join("deps")]);
        let mut own = vec![root.join(".kairos/plugins")];
        own.extend(data_home.map(|home| home.join("kairos/plugins")));
        Self {
            root: root.to_owned(),
            beside: beside.unwrap_or_default(),
            own,
            system: SYSTEM.map(PathBuf::from).to_vec(),
        }
    }

    /// Looks into `kairos/plugins` of these directories too, before the last of the system's.
    #[must_use]
    pub fn with_data_dirs(mut self, dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        let last = std::mem::take(&mut self.system);
        self.system = dirs.into_iter().map(|dir| dir.join("kairos/plugins")).chain(last).collect();
        self
    }

    /// What relative paths start at.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directories that hold what came with the executable.
    #[must_use]
    pub fn beside(&self) -> &[PathBuf] {
        &self.beside
    }

    /// The system's directories.
    #[must_use]
    pub fn system(&self) -> &[PathBuf] {
        &self.system
    }

    /// The directories, in the order in which they are looked at.
    pub fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.beside.iter().chain(&self.own).chain(&self.system)
    }

    /// The files that `plugin` can mean, in the order they are tried: a value with a slash is one
    /// path, `a-b` means `liba_b.so`.
    #[must_use]
    pub fn candidates(&self, plugin: &str) -> Vec<PathBuf> {
        if plugin.contains('/') {
            return vec![plain(&self.root.join(plugin))];
        }
        let file = file_name(plugin);
        self.dirs().map(|dir| dir.join(&file)).collect()
    }

    /// The first candidate that is there, whatever it is.
    ///
    /// # Errors
    /// `not_found`, with the places.
    pub fn find(&self, plugin: &str) -> Result<PathBuf, LoadError> {
        let looked = self.candidates(plugin);
        match looked.iter().find(|path| path.symlink_metadata().is_ok()) {
            Some(path) => Ok(path.clone()),
            // A path is told as it was looked at, whatever directory the reader is in.
            None => {
                let path = looked.first().filter(|_| plugin.contains('/'));
                let plugin = path.map_or_else(|| plugin.to_owned(), |path| path.display().to_string());
                Err(LoadError::NotFound { plugin, looked })
            }
        }
    }
}

/// A path as it is shown, without the `.`, `..` and doubled slashes that people write. A `..` behind a link, or
/// behind what is no directory, stays: it leads elsewhere than the text says, or nowhere.
#[must_use]
pub fn plain(path: &Path) -> PathBuf {
    let mut shown = PathBuf::new();
    for part in path.components() {
        match (part, shown.components().next_back()) {
            (Component::ParentDir, Some(Component::RootDir)) => {}
            (Component::ParentDir, Some(Component::Normal(_)))
                if shown.symlink_metadata().is_ok_and(|found| found.is_dir()) =>
            {
                shown.pop();
            }
            _ => shown.push(part),
        }
    }
    shown
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
        assert_eq!(search.find("./bin/deps"), Ok(root.path().join("bin/deps")));
        let error = search.find("missing").expect_err("there is none");
        assert_eq!(error.code(), "not_found");
        // The places are for those who ask; the text is for everybody who waits.
        assert!(error.looked().contains(&exe.join("libmissing.so")), "{:?}", error.looked());
        assert!(error.to_string().len() < 160 && error.to_string().contains("libmissing.so"), "{error}");
        assert!(error.remedy().contains("libmissing.so into .kairos/plugins"), "{}", error.remedy());
        let path = search.find("./gone.so").expect_err("there is none");
        assert!(path.to_string().contains(&*root.path().join("gone.so").to_string_lossy()), "{path}");
        assert_eq!(path.looked().len(), 1);
    }

    #[test]
    fn a_way_back_is_shown_only_where_it_leads_elsewhere_than_it_says() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir_all(at("a/b")).expect("made");
        std::os::unix::fs::symlink("a/b", at("link")).expect("made");
        assert_eq!(plain(&at("a/b/.././../a/x.so")), at("a/x.so"));
        assert_eq!(plain(Path::new("/../x.so")), Path::new("/x.so"));
        for kept in ["link/../x.so", "gone/../x.so", "../x.so"] {
            let path = if kept.starts_with('.') { PathBuf::from(kept) } else { at(kept) };
            assert_eq!(plain(&path), path);
        }
    }

    #[test]
    fn every_place_has_its_turn() {
        let search = SearchPath::new(Path::new("/w"), Some(Path::new("/bin")), Some(Path::new("/home/u/d")))
            .with_data_dirs([PathBuf::from("/usr/share")]);
        let expected = [
            "/bin/liba_b.so",
            "/bin/deps/liba_b.so",
            "/w/.kairos/plugins/liba_b.so",
            "/home/u/d/kairos/plugins/liba_b.so",
            "/usr/share/kairos/plugins/liba_b.so",
            "/usr/local/lib/kairos/plugins/liba_b.so",
            "/usr/lib/kairos/plugins/liba_b.so",
        ];
        assert_eq!(search.candidates("a-b"), expected.map(PathBuf::from));
        for (written, shown) in [
            ("./my/libq.so", "/w/my/libq.so"),
            (".//my/././libq.so", "/w/my/libq.so"),
            ("my/../libq.so", "/w/my/../libq.so"),
            ("/opt/./libq.so", "/opt/libq.so"),
        ] {
            // Paths compare equal with and without a `.` in them; what is shown does not.
            let found: Vec<String> =
                search.candidates(written).iter().map(|path| path.display().to_string()).collect();
            assert_eq!(found, [shown], "{written}");
        }
        assert_eq!(search.candidates("/opt/libq.so"), [PathBuf::from("/opt/libq.so")]);
    }
}
