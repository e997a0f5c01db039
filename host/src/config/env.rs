//! The environment, read once at the start. Everything else gets a map, which tests fill by hand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::reader::{Origin, Override};
use super::yaml::Node;

/// Variables that outrank a key of daemon.yml.
pub const OVERRIDES: &[(&str, &str, &str)] = &[
    ("KAIROS_ATTACH_HOST", "attach.host", "Address of the attach server."),
    ("KAIROS_ATTACH_PORT", "attach.port", "Port of the attach server."),
];

/// Variables that are read but are no key.
pub const OTHERS: &[(&str, &str)] = &[
    ("KAIROS_ROOT", "The root directory, as `--root`."),
    ("KAIROS_LOG", "Filter of the log, `info` or `kairos_host=debug` for example."),
    ("NO_COLOR", "Set and not empty: no colours. `TERM=dumb` does the same."),
    ("XDG_RUNTIME_DIR", "Where the control socket goes when its path below the root is too long."),
    ("HOME", "What `~/` stands for in `commands`."),
    ("CREDENTIALS_DIRECTORY", "Where `{credential: NAME}` is found; the service manager sets it."),
    ("XDG_DATA_HOME, XDG_DATA_DIRS", "Where plugins are looked up after the root's own."),
];

/// A snapshot of the environment. Values that are not UTF-8 are left out.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The process's own. Called once, by `main`.
    #[must_use]
    pub fn of_process() -> Self {
        Self(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        )
    }

    /// A variable that is set and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A variable that holds an absolute path; XDG says to ignore others.
    #[must_use]
    pub fn dir(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// False when `NO_COLOR` or a dumb terminal says so.
    #[must_use]
    pub fn colours(&self) -> bool {
        self.get("NO_COLOR").is_none() && self.get("TERM") != Some("dumb")
    }

    /// What it says about keys of daemon.yml.
    #[must_use]
    pub fn overrides(&self) -> Vec<Override> {
        let found = OVERRIDES.iter().filter_map(|(name, key, _)| {
            let value = Node::plain(self.get(name)?);
            Some(Override { key: (*key).to_owned(), value, origin: Origin::Env((*name).to_owned()) })
        });
        found.collect()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}
