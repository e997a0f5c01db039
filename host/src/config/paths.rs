//! Where everything of a root lies, in one place. Nothing here touches a file except to look for the
//! root.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::env::Env;
use crate::sys::files::{self, FileError};

/// The directory that makes its parent a root.
pub const DOT_DIR: &str = ".kairos";

/// Longest path of a Unix socket, in bytes: the kernel's 108 less the closing NUL.
pub const SOCKET_PATH_MAX: usize = 107;

/// The paths of one root. `pid` and `wal` can be moved by the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The workspace itself; relative paths of the configuration start here.
    pub root: PathBuf,
    /// `.kairos`
    pub dot: PathBuf,
    /// `.kairos/config`
    pub config: PathBuf,
    /// `.kairos/config/daemon.yml`
    pub daemon_yml: PathBuf,
    /// `.kairos/config/schedules.yml`
    pub schedules_yml: PathBuf,
    /// `.kairos/state`
    pub state: PathBuf,
    /// `.kairos/state/store.db`
    pub store_db: PathBuf,
    /// `.kairos/state/budget.json`, published in the reference's format.
    pub budget_json: PathBuf,
    /// `.kairos/chronos_state.yml`, published in the reference's format.
    pub chronos_state: PathBuf,
    /// `.kairos/run`
    pub run: PathBuf,
    /// `.kairos/run/daemon.pid`, the lock.
    pub pid: PathBuf,
    /// `.kairos/run/heartbeat.json`
    pub heartbeat_json: PathBuf,
    /// `.kairos/run/endpoint.json`, which says where the control plane listens.
    pub endpoint_json: PathBuf,
    /// `.kairos/run/last_end.json`: how the last daemon ended, when it did not end as asked.
    pub last_end: PathBuf,
    /// `.kairos/run/attach_token`
    pub attach_token: PathBuf,
    /// `.kairos/run/proposals`
    pub proposals: PathBuf,
    /// `.kairos/wal`
    pub wal: PathBuf,
    /// `.kairos/logs`
    pub logs: PathBuf,
    /// `.kairos/plugins`
    pub plugins: PathBuf,
    /// `.kairos/plugins/trust.json`: which plugins and signing keys are trusted.
    pub trust_json: PathBuf,
    /// `.kairos/state/plugins`: copies of loaded plugins by their sha256.
    pub plugin_store: PathBuf,
}

impl Paths {
    /// The paths below `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let dot = root.join(DOT_DIR);
        let (config, state, run) = (dot.join("config"), dot.join("state"), dot.join("run"));
        Self {
            daemon_yml: config.join("daemon.yml"),
            schedules_yml: config.join("schedules.yml"),
            store_db: state.join("store.db"),
            budget_json: state.join("budget.json"),
            plugin_store: state.join("plugins"),
            chronos_state: dot.join("chronos_state.yml"),
            pid: run.join("daemon.pid"),
            heartbeat_json: run.join("heartbeat.json"),
            endpoint_json: run.join("endpoint.json"),
            last_end: run.join("last_end.json"),
            attach_token: run.join("attach_token"),
            proposals: run.join("proposals"),
            wal: dot.join("wal"),
            logs: dot.join("logs"),
            trust_json: dot.join("plugins/trust.json"),
            plugins: dot.join("plugins"),
            config,
            state,
            run,
            dot,
            root,
        }
    }

    /// The root that counts: `--root`, else `KAIROS_ROOT`, else the nearest directory from `cwd`
    /// upward that holds `.kairos`. `None` when there is none.
    #[must_use]
    pub fn discover(given: Option<&Path>, env: &Env, cwd: &Path) -> Option<Self> {
        let named = given.map(Path::to_owned).or_else(|| env.get("KAIROS_ROOT").map(PathBuf::from));
        let root = match named {
            Some(root) => cwd.join(root),
            None => cwd.ancestors().find(|dir| dir.join(DOT_DIR).is_dir())?.to_owned(),
        };
        // A root that is not there yet keeps its name; whoever needs it says so.
        Some(Self::new(fs::canonicalize(&root).unwrap_or(root)))
    }

    /// A path of the configuration: relative ones start at the root.
    #[must_use]
    pub fn at_root(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// A path as people like to read it: relative to the root where it lies below it.
    #[must_use]
    pub fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Where the control socket belongs: below the root, or in the runtime directory when that path
    /// is too long for the kernel. The same root always gets the same place.
    #[must_use]
    pub fn socket(&self, env: &Env) -> PathBuf {
        let near = self.run.join("kairos.sock");
        if fits(&near) {
            return near;
        }
        let name = format!("{}.sock", &hex::encode(Sha256::digest(self.root.as_os_str().as_bytes()))[..16]);
        let runtime = env.dir("XDG_RUNTIME_DIR").map(|dir| dir.join("kairos").join(&name));
        runtime.filter(|path| fits(path)).unwrap_or_else(|| {
            let uid = rustix::process::geteuid().as_raw();
            Path::new("/tmp").join(format!("kairos-{uid}")).join(name)
        })
    }

    /// Makes the socket's directory and checks that nobody else can put a socket there.
    ///
    /// # Errors
    /// [`FileError::Refused`] when the directory belongs to somebody else or is open to others.
    pub fn prepare_socket_dir(socket: &Path) -> Result<(), FileError> {
        let Some(dir) = socket.parent() else { return Ok(()) };
        files::create_dirs(dir)?;
        // Not followed: in a shared directory, somebody else's link must not lead us elsewhere.
        let meta = fs::symlink_metadata(dir).map_err(|error| FileError::new("look at", dir, error))?;
        let ours = meta.uid() == rustix::process::geteuid().as_raw();
        if ours && meta.mode() & 0o022 == 0 {
            return Ok(());
        }
        Err(FileError::new("put a socket into", dir, std::io::ErrorKind::PermissionDenied.into()))
    }
}

fn fits(path: &Path) -> bool {
    let text: &OsStr = path.as_os_str();
    text.len() <= SOCKET_PATH_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_the_nearest_directory_that_holds_the_dot_directory() {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(top.join("ws/.kairos")).unwrap();
        fs::create_dir_all(top.join("ws/a/b")).unwrap();
        let env = Env::default();
        let found = Paths::discover(None, &env, &top.join("ws/a/b")).unwrap();
        assert_eq!(found.root, top.join("ws"));
        assert_eq!(Paths::discover(None, &env, &top), None);
        let named: Env = [("KAIROS_ROOT", "ws")].into_iter().collect();
        assert_eq!(Paths::discover(None, &named, &top).unwrap().root, top.join("ws"));
        let given = Paths::discover(Some(Path::new("other")), &named, &top).unwrap();
        assert_eq!(given.root, top.join("other"), "the command line outranks the environment");
    }

    #[test]
    fn socket_moves_when_its_path_is_too_long() {
        let env: Env = [("XDG_RUNTIME_DIR", "/run/user/7")].into_iter().collect();
        let short = Paths::new("/w");
        assert_eq!(short.socket(&env), Path::new("/w/.kairos/run/kairos.sock"));
        let long = Paths::new(format!("/{}", "x".repeat(100)));
        let moved = long.socket(&env);
        assert!(moved.starts_with("/run/user/7/kairos") && fits(&moved), "{moved:?}");
        assert_eq!(moved, long.socket(&env));
        assert_ne!(moved, Paths::new(format!("/{}", "y".repeat(100))).socket(&env));
        assert!(long.socket(&Env::default()).starts_with("/tmp"));
        let exact =
            Paths::new(format!("/{}", "x".repeat(SOCKET_PATH_MAX - 1 - "/.kairos/run/kairos.sock".len())));
        assert!(exact.socket(&env).starts_with(&exact.root));
    }

    #[test]
    fn socket_directory_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        Paths::prepare_socket_dir(&own.join("s")).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Paths::prepare_socket_dir(&own.join("s")), Err(FileError::Refused { .. })));
    }
}
