//! Where the plugins of a root are looked up, kept and vouched for: the same for the daemon, the
//! commands and `doctor`.

use std::path::PathBuf;

use crate::config::{Env, Paths};
use crate::runner::trust::TrustPolicy;
use crate::runner::{PluginStore, SearchPath};

/// Data directories of the system, where the environment names none.
const DATA_DIRS: &str = "/usr/local/share:/usr/share";

/// The places of this root, with those beside this executable.
#[must_use]
pub fn search(paths: &Paths, env: &Env) -> SearchPath {
    let exe = std::env::current_exe().ok();
    let home = env.dir("HOME").map(|home| home.join(".local/share"));
    let data = env.dir("XDG_DATA_HOME").or(home);
    let system = env.get("XDG_DATA_DIRS").unwrap_or(DATA_DIRS);
    let system = system.split(':').map(PathBuf::from).filter(|dir| dir.is_absolute());
    SearchPath::new(&paths.root, exe.as_deref().and_then(std::path::Path::parent), data.as_deref())
        .with_data_dirs(system.collect::<Vec<_>>())
}

/// Which of them are trusted.
#[must_use]
pub fn trust(paths: &Paths, search: &SearchPath) -> TrustPolicy {
    TrustPolicy::new(&paths.trust_json, search)
}

/// Where they are kept.
#[must_use]
pub fn store(paths: &Paths) -> PluginStore {
    PluginStore::new(&paths.plugin_store)
}
