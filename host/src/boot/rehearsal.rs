//! Whether the configured runners would serve if a daemon started now: each is found, judged and
//! loaded as a start does it, from what was swapped in where that serves, apart from everything, and
//! let go again. It maps no plugin into this process, touches no slot and leaves nothing in the root.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{plugins, runner_configs, swaps};
use crate::config::report::{Level, Problem, Report};
use crate::config::{DaemonConfig, Env, Paths};
use crate::daemon::swap;
use crate::domain::generation::GenerationState;
use crate::runner::{Instead, Launcher, LoadError, PluginFile, Rehearsed, RunnerConfig, Served};
use crate::store::{GenerationRow, GenerationStore, SqliteStore};

/// What became of one runner.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Its key in `runners`.
    pub runner: String,
    /// Its file and where it would run; or the reason why the daemon would not serve it.
    pub outcome: Result<(PathBuf, Rehearsed), LoadError>,
    /// What is wrong with the file that should serve by rights, and what does, when that is another one.
    pub instead: Option<(LoadError, String)>,
}

/// What the last daemon has left: what is pinned, and what stands by for versions on trial.
struct Left {
    served: Served,
    standby: BTreeMap<String, String>,
}

impl Left {
    fn of(lives: &[GenerationRow], paths: &Paths) -> Self {
        let barred = swap::barred(lives);
        let served = Served::new(swap::pins(lives, &barred), barred, plugins::store(paths));
        let on_trial = |row: &GenerationRow| {
            let trial = |other: &GenerationRow| {
                other.canary && other.state == GenerationState::Active && other.life.runner == row.life.runner
            };
            row.state == GenerationState::Standby && lives.iter().any(trial)
        };
        let standby = lives.iter().filter(|row| on_trial(row));
        let standby = standby.map(|row| (row.life.runner.clone(), row.life.sha256.clone())).collect();
        Self { served, standby }
    }
}

/// Tries every runner of a configuration in workers of this program, one after another. Blocks.
///
/// # Errors
/// There is no place for copies, or no process can be started: nothing was tried.
pub fn of(config: &DaemonConfig, paths: &Paths, env: &Env) -> io::Result<Vec<Tried>> {
    let dir = plugins::trial_dir(Some(paths))?;
    let launcher = plugins::trial(Some(paths), env, dir.path())?;
    // Where nothing can be read a start serves what the configuration says, or nothing at all.
    let lives =
        SqliteStore::read_only(&paths.store_db).and_then(|store| store.generations(None, swaps::LIVES));
    let left = Left::of(&lives.unwrap_or_default(), paths);
    let each = runner_configs(config, env).into_iter();
    Ok(each.map(|runner| tried(&launcher, &left, runner)).collect())
}

/// As [`of`], by this launcher, where nothing was ever swapped in.
#[must_use]
pub fn with(launcher: &Launcher, config: &DaemonConfig, env: &Env) -> Vec<Tried> {
    let served = Served::new(BTreeMap::new(), BTreeMap::new(), launcher.store().clone());
    let left = Left { served, standby: BTreeMap::new() };
    runner_configs(config, env).into_iter().map(|runner| tried(launcher, &left, runner)).collect()
}

fn tried(launcher: &Launcher, left: &Left, config: RunnerConfig) -> Tried {
    let kept = left.served.kept();
    let try_out = |plugin: PluginFile| {
        let rehearsed = launcher.rehearse(&config, &plugin)?;
        Ok((plugin.origin.unwrap_or_else(|| kept.path_of(&plugin.sha256)), rehearsed))
    };
    let chosen = left.served.file_of(launcher, &config);
    let named = chosen.plugin.as_ref().map(told).unwrap_or_default();
    let instead = chosen.in_place_of.map(|instead| match instead {
        Instead::Configured(error) => (error, format!("{named}, which was swapped in,")),
        Instead::SwappedIn(error) => (error, format!("{named}, which the configuration names,")),
    });
    let outcome = chosen.plugin.and_then(try_out);
    // A version on trial that cannot be loaded gives its place back.
    if let (Err(error), Some(sha256)) = (&outcome, left.standby.get(&config.name))
        && let Ok(plugin) = kept.open(sha256)
    {
        let named = format!("{}, which stands by for the version on trial,", told(&plugin));
        if let Ok(served) = try_out(plugin) {
            let instead = Some((error.clone(), named));
            return Tried { runner: config.name, outcome: Ok(served), instead };
        }
    }
    Tried { runner: config.name, outcome, instead }
}

/// A file in the words of `plugin list`.
fn told(plugin: &PluginFile) -> String {
    let short: String = plugin.sha256.chars().take(12).collect();
    format!("version {} ({short})", plugin.manifest.version)
}

/// What would not serve, as problems of daemon.yml; a warning where it would serve and says itself
/// that it cannot work, and where something else serves in its place.
#[must_use]
pub fn problems(tried: &[Tried], config: &DaemonConfig, paths: &Paths) -> Report {
    let mut report = Report::default();
    let file: Arc<str> = paths.show(&paths.daemon_yml).into();
    for Tried { runner, outcome, instead } in tried {
        let mut add = |level, error: &LoadError, message: String| {
            let whole = DaemonConfig::key_of(&["runners", runner]);
            let key = key_for(error.code()).map(|key| format!("{whole}.{key}"));
            let key = key.filter(|key| config.says(key)).unwrap_or_else(|| format!("{whole}.plugin"));
            report.push(Problem {
                level,
                line: config.line_of(&key).unwrap_or_default(),
                column: 1,
                key,
                code: Some(error.code()),
                ..Problem::of_file(&file, message, error.remedy())
            });
        };
        match outcome {
            Err(error) => add(Level::Error, error, error.to_string()),
            Ok((_, Rehearsed { unwell: Some(error), .. })) => {
                add(Level::Warning, error, error.to_string());
            }
            Ok(_) => {}
        }
        if let (Some((error, serves)), Ok(_)) = (instead, outcome) {
            add(Level::Warning, error, format!("{error}; {serves} serves after the next start"));
        }
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
