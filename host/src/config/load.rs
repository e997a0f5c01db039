//! From a root to its checked configuration: the one way that boot, reload, `config check` and every
//! command share.

use super::daemon::{self, DaemonConfig};
use super::env::Env;
use super::paths::Paths;
use super::reader::Override;
use super::report::{Problem, Report};
use super::schedules::{self, Around, SchedulesFile};
use crate::sys::files;
use crate::sys::zones::Zones;

/// Reads daemon.yml of a root under the environment and the command line; a missing file means the
/// defaults. Warnings of a good file are in the second value.
///
/// # Errors
/// The report with at least one error.
pub fn daemon(
    paths: &Paths,
    env: &Env,
    command_line: &[Override],
    zones: &Zones,
) -> Result<(DaemonConfig, Report), Report> {
    let name = paths.show(&paths.daemon_yml);
    let bytes = bytes(&paths.daemon_yml, &name, daemon::SIZE_MAX)?;
    let mut overrides = env.overrides();
    overrides.extend_from_slice(command_line);
    DaemonConfig::parse(&bytes, &name, &overrides, zones)
}

/// Reads schedules.yml of a root; a missing file means no schedules.
#[must_use]
pub fn schedules(paths: &Paths, around: Around<'_>) -> SchedulesFile {
    let name = paths.show(&paths.schedules_yml);
    match bytes(&paths.schedules_yml, &name, schedules::SIZE_MAX) {
        Ok(bytes) => SchedulesFile::parse(&bytes, &name, around),
        Err(report) => SchedulesFile { report, ..SchedulesFile::default() },
    }
}

fn bytes(path: &std::path::Path, name: &str, limit: u64) -> Result<Vec<u8>, Report> {
    files::read(path, limit).map(Option::unwrap_or_default).map_err(|error| {
        let remedy = match error {
            files::FileError::TooLarge { .. } => "split it or remove what it does not need",
            _ => "make it a file that the daemon's user can read",
        };
        let mut report = Report::default();
        report.push(Problem::of_file(&name.into(), error.to_string(), remedy));
        report
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests lay out plain files")]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn missing_files_mean_the_defaults_and_no_schedules() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, zones) = (Paths::new(dir.path()), Zones::bundled());
        let (config, report) = daemon(&paths, &Env::default(), &[], &zones).unwrap();
        assert_eq!((config, report.warnings()), (DaemonConfig::defaults(), 0));
        let file = schedules(&paths, Around { zones: &zones, runners: &[], now: None });
        assert!(file.readable && file.schedules.is_empty());
    }

    #[test]
    fn files_that_cannot_be_read_are_reported_not_taken_for_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, zones) = (Paths::new(dir.path()), Zones::bundled());
        fs::create_dir_all(&paths.daemon_yml).unwrap();
        fs::create_dir_all(&paths.schedules_yml).unwrap();
        let report = daemon(&paths, &Env::default(), &[], &zones).unwrap_err();
        assert_eq!(&*report.problems[0].file, ".kairos/config/daemon.yml");
        let file = schedules(&paths, Around { zones: &zones, runners: &[], now: None });
        assert!(!file.readable && !file.report.is_ok());
        fs::remove_dir(&paths.daemon_yml).unwrap();
        let big = fs::File::create(&paths.daemon_yml).unwrap();
        big.set_len(daemon::SIZE_MAX + 1).unwrap();
        let report = daemon(&paths, &Env::default(), &[], &zones).unwrap_err();
        assert!(report.problems[0].message.contains("larger than"), "{report}");
    }
}
