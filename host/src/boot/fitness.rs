//! Whether runners of commands could do their work now: is the program there, are its secrets, may
//! it have what it is granted. Asked before a mandate is begun, so that one waits instead of
//! failing, and by `config check` and `doctor`. It starts nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commands;
use crate::broker::tools::process::CommandSpec;
use crate::broker::tools::process::ready::Lack;
use crate::config::commands::known;
use crate::config::report::{Level, Problem, Report, quoted};
use crate::config::{DaemonConfig, Env, Isolation, Paths, RunnerConfig, SchedulesFile};

/// The commands that runners rest on, by the names of the runners.
#[derive(Default)]
pub struct Fitness(BTreeMap<String, CommandSpec>);

impl Fitness {
    /// Of these runners.
    #[must_use]
    pub fn of(config: &DaemonConfig, paths: &Paths, env: &Env) -> Self {
        let runners = config.runners.iter().filter_map(|(name, runner)| {
            let command = runner.command()?;
            let spec = commands::spec(command, config.commands.get(command)?, paths, env);
            Some((name.clone(), spec))
        });
        Self(runners.collect())
    }

    /// All runners that could do nothing now, each with the reason in one line. Looks at files.
    #[must_use]
    pub fn all_unfit(&self) -> BTreeMap<String, String> {
        self.0.iter().filter_map(|(runner, spec)| Some((runner.clone(), unfit(spec)?))).collect()
    }
}

fn unfit(spec: &CommandSpec) -> Option<String> {
    let lacks = spec.lacks();
    let Lack { key, message, remedy } = lacks.first()?;
    let more = if lacks.len() > 1 { format!(" (and {} more)", lacks.len() - 1) } else { String::new() };
    Some(format!("command {}: {key}: {message}{more}; {remedy}", spec.name))
}

/// What keeps commands from starting, as problems of daemon.yml. A command that no runner rests on
/// harms nobody: a warning.
#[must_use]
pub fn problems(config: &DaemonConfig, paths: &Paths, env: &Env) -> Report {
    let mut report = Report::default();
    let file: Arc<str> = paths.show(&paths.daemon_yml).into();
    for (name, command) in &config.commands {
        let used = config.runners.values().any(|runner| runner.command() == Some(name));
        for Lack { key, message, remedy } in commands::spec(name, command, paths, env).lacks() {
            let key = format!("{}.{key}", DaemonConfig::key_of(&["commands", name]));
            report.push(Problem {
                level: if used { Level::Error } else { Level::Warning },
                line: config.line_of(&key).unwrap_or_default(),
                column: 1,
                key,
                ..Problem::of_file(&file, message, remedy)
            });
        }
    }
    for (name, runner) in &config.runners {
        let Err(error) = commands::at_home(&runner.grants, env).below(&paths.root) else { continue };
        let key = format!("{}.grants", DaemonConfig::key_of(&["runners", name]));
        let bound = runner.isolation == Some(Isolation::Sandbox);
        report.push(Problem {
            level: if bound { Level::Error } else { Level::Warning },
            line: config.line_of(&format!("{key}.read")).unwrap_or_default(),
            column: 1,
            key,
            ..Problem::of_file(&file, error.to_string(), "make it, or grant another one")
        });
    }
    report.sort();
    report
}

/// Schedules whose mandates name a command that is not configured.
#[must_use]
pub fn schedule_problems(config: &DaemonConfig, schedules: &SchedulesFile, paths: &Paths) -> Report {
    let mut report = Report::default();
    let file: Arc<str> = paths.show(&paths.schedules_yml).into();
    for spec in &schedules.schedules {
        let runner = spec.policy.runner.as_deref().unwrap_or(&config.default_runner);
        let of_commands = config.runners.get(runner).is_some_and(RunnerConfig::is_of_commands);
        let own = spec.policy.bounds.params.get("command").and_then(serde_json::Value::as_str);
        let Some(command) = own.filter(|own| of_commands && !config.commands.contains_key(*own)) else {
            continue;
        };
        let message = format!("no command has the name {}", quoted(command));
        let remedy = known(command, config.commands.keys());
        report.push(Problem {
            key: "mandate.params.command".to_owned(),
            schedule: Some(Arc::clone(&spec.name)),
            ..Problem::of_file(&file, message, remedy)
        });
    }
    report
}
