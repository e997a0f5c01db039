//! Where the plugins of a root are looked up, kept and vouched for: the same for the daemon, the
//! commands and `doctor`.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::config::{Env, Paths};
use crate::runner::trust::TrustPolicy;
use crate::runner::{Launcher, PluginStore, SearchPath, WorkerFactory};
use crate::sys::files;

/// Data directories of the system, where the environment names none.
const DATA_DIRS: &str = "/usr/local/share:/usr/share";

/// The program of worker processes: this very image, also when an upgrade has put another one in
/// its place on disk. The two would not speak the same frames.
const WORKER_PROGRAM: &str = "/proc/self/exe";

/// The places of this root, with those beside this executable.
#[must_use]
pub fn search(paths: &Paths, env: &Env) -> SearchPath {
    let exe = std::env::current_exe().ok();
    let home = env.dir("HOME").map(|home| home.join(".local/share"));
    let data = env.dir("XDG_DATA_HOME").or(home);
    let system = env.get("XDG_DATA_DIRS").unwrap_or(DATA_DIRS);
    let system = system.split(':').map(PathBuf::from).filter(|dir| dir.is_absolute());
    SearchPath::new(&paths.root, exe.as_deref().and_then(Path::parent), data.as_deref())
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

/// Worker processes of this program.
///
/// # Errors
/// The system's.
pub fn workers() -> std::io::Result<WorkerFactory> {
    WorkerFactory::new(WORKER_PROGRAM)
}

/// A place for the copies of a look at plugins, gone with what this gives: in the system's temporary
/// directory, or in `.kairos` where nothing can be mapped from there.
///
/// # Errors
/// The system's.
pub fn trial_dir(paths: Option<&Paths>) -> std::io::Result<TempDir> {
    match paths {
        Some(paths) if files::forbids_execution(&std::env::temp_dir()) => TempDir::new_in(&paths.dot),
        _ => TempDir::new(),
    }
}

/// A launcher for a look at a plugin, with a root or without: its copies go to `dir`.
///
/// # Errors
/// The system's.
pub fn trial(paths: Option<&Paths>, env: &Env, dir: &Path) -> std::io::Result<Launcher> {
    let nowhere = Paths::new(dir);
    let paths = paths.unwrap_or(&nowhere);
    let search = search(paths, env);
    let trust = trust(paths, &search);
    Ok(Launcher::with_workers(search, PluginStore::new(dir.join("store")), workers()?).trusting(trust))
}
