//! Whether runners of commands could do their work now: is the program there, are its secrets, may
//! it have what it is granted. Asked before a mandate is begun, so that one waits instead of
//! failing, and by `config check` and `doctor`. It starts nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commands;
use super::rehearsal::Tried;
use crate::broker::tools::process::CommandSpec;
use crate::broker::tools::process::ready::{self, Lack};
use crate::config::commands::known;
use crate::config::report::{Level, Problem, Report, quoted};
use crate::config::{DaemonConfig, Env, Isolation, Paths, RunnerConfig, SchedulesFile};

/// The commands that runners rest on, by the names of the runners.
#[derive(Default)]
pub struct Fitness {
    commands: BTreeMap<String, CommandSpec>,
    /// `PATH` of the daemon itself, for a hint.
    path: String,
}

impl Fitness {
    /// Of these runners.
    #[must_use]
    pub fn of(config: &DaemonConfig, paths: &Paths, env: &Env) -> Self {
        let runners = config.runners.iter().filter_map(|(name, runner)| {
            let command = runner.command()?;
            let spec = commands::spec(command, config.commands.get(command)?, paths, env);
            Some((name.clone(), spec))
        });
        Self { commands: runners.collect(), path: env.get("PATH").unwrap_or_default().to_owned() }
    }

    /// All runners that could do nothing now, each with the reason in one line. Looks at files.
    #[must_use]
    pub fn all_unfit(&self) -> BTreeMap<String, String> {
        let each = self.commands.iter();
        each.filter_map(|(runner, spec)| Some((runner.clone(), self.unfit(spec)?))).collect()
    }

    fn unfit(&self, spec: &CommandSpec) -> Option<String> {
        let lacks = lacks(spec, &self.path);
        let Lack { key, message, remedy } = lacks.first()?;
        let more = if lacks.len() > 1 { format!(" (and {} more)", lacks.len() - 1) } else { String::new() };
        Some(format!("command {}: {key}: {message}{more}; {remedy}", spec.name))
    }
}

/// What it lacks. A program that is found where this process looks, and not where commands are looked
/// up, is most often what was meant.
fn lacks(spec: &CommandSpec, path: &str) -> Vec<Lack> {
    let mut lacks = spec.lacks();
    if let Some(lack) = lacks.iter_mut().find(|lack| lack.key == "argv")
        && let Ok(found) = ready::look_up(&spec.argv[0], path)
    {
        lack.remedy = format!("there is {}: write that in `argv`", found.display());
    }
    lacks
}

/// What keeps commands from starting, and grants that cannot be given, as problems of daemon.yml. A
/// command that no runner rests on, or a grant that no plugin asks for, harms nobody: a warning. A
/// grant for which a runner of `tried` would be refused is not told once more.
#[must_use]
pub fn problems(config: &DaemonConfig, paths: &Paths, env: &Env, tried: &[Tried]) -> Report {
    let mut report = Report::default();
    let file: Arc<str> = paths.show(&paths.daemon_yml).into();
    let path = env.get("PATH").unwrap_or_default();
    for (name, command) in &config.commands {
        let used = config.runners.values().any(|runner| runner.command() == Some(name));
        for Lack { key, message, remedy } in lacks(&commands::spec(name, command, paths, env), path) {
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
    let refused = |name: &String| {
        let code =
            tried.iter().find(|tried| tried.runner == *name).and_then(|tried| tried.outcome.as_ref().err());
        code.is_some_and(|error| error.code() == "bad_grant")
    };
    for (name, runner) in config.runners.iter().filter(|(name, _)| !refused(name)) {
        let Err(error) = commands::at_home(&runner.grants, env).below(&paths.root) else { continue };
        let key = format!("{}.grants", DaemonConfig::key_of(&["runners", name]));
        let bound = runner.isolation == Some(Isolation::Sandbox);
        report.push(Problem {
            level: if bound { Level::Error } else { Level::Warning },
            line: config.line_of(&key).unwrap_or_default(),
            column: 1,
            key,
            code: Some("bad_grant"),
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

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests lay out plain files")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::sys::zones::Zones;

    #[test]
    fn a_program_that_lies_elsewhere_is_pointed_at_and_a_missing_grant_of_a_runner_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let program = bin.join("kairos-test-agent");
        std::fs::write(&program, "").unwrap();
        let path = bin.display().to_string();
        let env: Env = [("PATH", path)].into_iter().collect();
        let paths = Paths::new(dir.path().join("root"));
        std::fs::create_dir_all(&paths.dot).unwrap();
        let text = "default_runner: a\nrunners:\n  a: {plugin: command, params: {command: c}}\n  \
                    b: {plugin: b, isolation: sandbox, grants: {read: [/no/such/place]}}\n\
                    commands:\n  c: {argv: [kairos-test-agent]}\n";
        let (config, _) = DaemonConfig::parse(text.as_bytes(), "f", &[], &Zones::bundled()).unwrap();
        let said = |env: &Env| problems(&config, &paths, env, &[]).to_string();
        assert!(said(&env).contains("install it"), "it cannot be executed: {}", said(&env));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let hint = format!("there is {}: write that in `argv`", program.display());
        assert!(said(&env).contains(&hint), "{}", said(&env));
        assert!(
            said(&env)
                .contains("daemon.yml:4:1: runners.b.grants: bad_grant: the granted path /no/such/place"),
            "{}",
            said(&env)
        );
        let unfit = Fitness::of(&config, &paths, &env).all_unfit();
        assert!(unfit.len() == 1 && unfit["a"].contains(&hint), "{unfit:?}");
        assert!(said(&Env::default()).contains("install it"));
    }
}
