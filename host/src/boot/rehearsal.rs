//! Whether the configured runners would serve if a daemon started now: each is found, judged and
//! loaded as a start does it, apart from everything, and let go again. It maps no plugin into this
//! process, touches no slot and leaves nothing in the root.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{plugins, runner_configs};
use crate::config::report::{Level, Problem, Report};
use crate::config::{DaemonConfig, Env, Paths};
use crate::runner::{Launcher, LoadError, Rehearsed, RunnerConfig};

/// What became of one runner.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Its key in `runners`.
    pub runner: String,
    /// Its file and where it would run; or the reason why the daemon would not serve it.
    pub outcome: Result<(PathBuf, Rehearsed), LoadError>,
}

/// Tries every runner of a configuration in workers of this program, one after another. Blocks.
///
/// # Errors
/// There is no place for copies, or no process can be started: nothing was tried.
pub fn of(config: &DaemonConfig, paths: &Paths, env: &Env) -> io::Result<Vec<Tried>> {
    let dir = plugins::trial_dir(Some(paths))?;
    let launcher = plugins::trial(Some(paths), env, dir.path())?;
    Ok(with(&launcher, config, env))
}

/// As [`of`], by this launcher.
#[must_use]
pub fn with(launcher: &Launcher, config: &DaemonConfig, env: &Env) -> Vec<Tried> {
    let outcome = |runner: &RunnerConfig| {
        let plugin = launcher.find(&runner.plugin)?;
        let rehearsed = launcher.rehearse(runner, &plugin)?;
        Ok((plugin.origin.unwrap_or_default(), rehearsed))
    };
    let each = runner_configs(config, env).into_iter();
    each.map(|runner| Tried { outcome: outcome(&runner), runner: runner.name }).collect()
}

/// What would not serve, as problems of daemon.yml; a warning where it would serve and says itself
/// that it cannot work.
#[must_use]
pub fn problems(tried: &[Tried], config: &DaemonConfig, paths: &Paths) -> Report {
    let mut report = Report::default();
    let file: Arc<str> = paths.show(&paths.daemon_yml).into();
    for Tried { runner, outcome } in tried {
        let (level, error) = match outcome {
            Err(error) => (Level::Error, error),
            Ok((_, Rehearsed { unwell: Some(error), .. })) => (Level::Warning, error),
            Ok(_) => continue,
        };
        let whole = DaemonConfig::key_of(&["runners", runner]);
        let key = key_for(error.code()).map(|key| format!("{whole}.{key}"));
        let key = key.filter(|key| config.says(key)).unwrap_or_else(|| format!("{whole}.plugin"));
        report.push(Problem {
            level,
            line: config.line_of(&key).unwrap_or_default(),
            column: 1,
            key,
            code: Some(error.code()),
            ..Problem::of_file(&file, error.to_string(), error.remedy())
        });
    }
    report.sort();
    report
}

/// The key of a runner that is most likely to be changed for this, if not its `plugin`.
fn key_for(code: &str) -> Option<&'static str> {
    Some(match code {
        "bad_grant" => "grants",
        "setup_refused" | "panic_in_new" => "params",
        "untrusted"
        | "signer_unknown"
        | "signature_unreadable"
        | "bad_trust_list"
        | "trust_list_open"
        | "isolation_unavailable"
        | "sandbox_unavailable"
        | "panic_abort" => "isolation",
        _ => return None,
    })
}
