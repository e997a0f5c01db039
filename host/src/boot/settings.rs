//! The configuration as commands and the daemon use it: read once, checked whole.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::schedules::Around;
use crate::config::{DaemonConfig, Env, Paths, Report, SchedulesFile, load};
use crate::exit::{Failure, code};
use crate::sys::lock::{LockError, RootLock};
use crate::sys::zones::{SYSTEM_DIRECTORY, Zones};

/// Everything that was configured.
pub struct Settings {
    /// Where things are.
    pub paths: Paths,
    /// daemon.yml, with what the environment changed.
    pub config: DaemonConfig,
    /// Warnings of daemon.yml.
    pub warnings: Report,
    /// Zone data.
    pub zones: Arc<Zones>,
}

impl Settings {
    /// Reads daemon.yml of a root, with the newest zone data there is.
    ///
    /// # Errors
    /// A bad file: exit 2 with the full report.
    pub fn load(paths: Paths, env: &Env) -> anyhow::Result<Self> {
        Self::load_with(paths, env, Arc::new(Zones::newest(SYSTEM_DIRECTORY)))
    }

    /// As [`Settings::load`], with zone data that is there already.
    ///
    /// # Errors
    /// A bad file: exit 2 with the full report.
    pub fn load_with(paths: Paths, env: &Env, zones: Arc<Zones>) -> anyhow::Result<Self> {
        let (config, warnings) = load::daemon(&paths, env, &[], &zones)
            .map_err(|report| Failure::new(code::USAGE, "config_invalid", report.to_string()))?;
        Ok(Self { paths, config, warnings, zones })
    }

    /// Reads schedules.yml. What is wrong with single schedules is in the value.
    ///
    /// # Errors
    /// The file cannot be read at all: exit 2 with the report.
    pub fn schedules(&self) -> Result<SchedulesFile, Failure> {
        let runners = self.runner_names();
        let around = Around { zones: &self.zones, runners: &runners, now: None };
        let file = load::schedules(&self.paths, around);
        if file.readable {
            return Ok(file);
        }
        Err(Failure::new(code::USAGE, "config_invalid", file.full_report().to_string()))
    }

    /// Names of the configured runners.
    #[must_use]
    pub fn runner_names(&self) -> Vec<String> {
        self.config.runners.keys().cloned().collect()
    }

    /// Where the logs of mandates are.
    #[must_use]
    pub fn wal_dir(&self) -> PathBuf {
        self.config.wal_dir(&self.paths.root)
    }

    /// Takes the root: its lock proper, which no configuration moves, or else a changed `pid_path`
    /// would let two daemons in; then the file of `pid_path`.
    ///
    /// # Errors
    /// Somebody holds one of them, or a file cannot be used.
    pub fn lock(&self, role: &str, wait: Duration) -> Result<RootLock, LockError> {
        RootLock::acquire(&self.paths.pid, role, wait)?.and(
            &self.config.pid_file(&self.paths.root),
            role,
            wait,
        )
    }
}
