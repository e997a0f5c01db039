//! Whether runners of commands could do their work now: is the program there, are its secrets, may
//! it have what it is granted. Asked before a mandate is begun, so that one waits instead of
//! failing, and by `config check` and `doctor`. It starts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::commands;
use super::rehearsal::Tried;
use crate::broker::tools::process::CommandSpec;
use crate::broker::tools::process::ready::{self, Lack};
use crate::config::commands::{CommandConfig, known};
use crate::config::report::{Level, Problem, Report, quoted};
use crate::config::{DaemonConfig, Env, Isolation, Paths, RunnerConfig, SchedulesFile};

/// What runners of commands can do.
#[derive(Default)]
pub struct Fitness {
    /// Such runners, with the command that each runs unless a mandate names another one.
    runners: BTreeMap<String, Option<String>>,
    commands: BTreeMap<String, CommandSpec>,
    /// `PATH` of the daemon itself, for a hint.
    path: String,
    /// Commands that the sandbox was seen to take. One that it refuses is tried at each look.
    taken: Mutex<BTreeSet<String>>,
}

impl Fitness {
    /// Of these runners.
    #[must_use]
    pub fn of(config: &DaemonConfig, paths: &Paths, env: &Env) -> Self {
        let of_commands = config.runners.iter().filter(|(_, runner)| runner.is_of_commands());
        let runners = of_commands.map(|(name, runner)| (name.clone(), runner.command().map(str::to_owned)));
        let place = commands::Place::of(config, paths, env);
        let commands = config.commands.iter();
        let commands = commands.map(|(name, command)| (name.clone(), place.spec(name, command)));
        Self {
            runners: runners.collect(),
            commands: commands.collect(),
            path: env.get("PATH").unwrap_or_default().to_owned(),
            taken: Mutex::default(),
        }
    }

    /// All runners whose own command could do nothing now, each with the reason in one line. Looks at
    /// files.
    #[must_use]
    pub fn all_unfit(&self) -> BTreeMap<String, String> {
        let own = self.runners.iter().filter_map(|(runner, own)| Some((runner, own.as_ref()?)));
        own.filter_map(|(runner, own)| Some((runner.clone(), self.unfit(runner, own)?))).collect()
    }

    /// Why a mandate with these parameters could do nothing now.
    #[must_use]
    pub fn unfit_for(&self, runner: &str, params: &Map<String, Value>) -> Option<String> {
        let own = self.runners.get(runner)?;
        match (params.get("command"), own) {
            (None | Some(Value::Null), None) => {
                Some("no command is named; set `params: {command: NAME}` of the runner or the mandate".into())
            }
            (None | Some(Value::Null), Some(own)) => self.unfit(runner, own),
            (Some(Value::String(command)), _) => self.unfit(runner, command),
            (Some(other), _) => Some(format!("params.command is {other}; write the name of a command")),
        }
    }

    /// The commands that mandates of each runner could name now; an empty name is the runner's own.
    #[must_use]
    pub fn commands(&self) -> BTreeMap<String, Vec<String>> {
        let fit = |(runner, own): (&String, &Option<String>)| {
            let named = self.commands.keys().filter(|command| self.unfit(runner, command).is_none());
            let mut named: Vec<String> = named.cloned().collect();
            if own.as_ref().is_some_and(|own| named.contains(own)) {
                named.push(String::new());
            }
            (runner.clone(), named)
        };
        self.runners.iter().map(fit).collect()
    }

    fn unfit(&self, runner: &str, command: &str) -> Option<String> {
        let Some(spec) = self.commands.get(command) else {
            let remedy = known(command, self.commands.keys());
            return Some(format!("no command has the name {}; {remedy}", quoted(command)));
        };
        if !spec.runners.iter().any(|open| open == runner) {
            return Some(format!(
                "command {command}: it is not open to runner {runner}; add `{runner}` to `runners` of the command"
            ));
        }
        let lacks = lacks(spec, &self.path);
        let Some(Lack { key, message, remedy }) = lacks.first() else { return self.refused(spec) };
        let more = if lacks.len() > 1 { format!(" (and {} more)", lacks.len() - 1) } else { String::new() };
        Some(format!("command {}: {key}: {message}{more}; {remedy}", spec.name))
    }

    /// Why the sandbox does not take it.
    fn refused(&self, spec: &CommandSpec) -> Option<String> {
        let taken = || self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken().contains(&spec.name) {
            return None;
        }
        match commands::trial(spec) {
            Ok(()) => {
                taken().insert(spec.name.clone());
                None
            }
            Err(message) => Some(format!("command {}: sandbox: {message}; {SANDBOX_REMEDY}", spec.name)),
        }
    }
}

/// What to do when the sandbox refuses a command.
const SANDBOX_REMEDY: &str =
    "`kairos doctor` says what this machine lacks; `sandbox: off` runs it unconfined";

/// What it lacks. A program that is found where this process looks, and not where commands are looked
/// up, is most often what was meant.
fn lacks(spec: &CommandSpec, path: &str) -> Vec<Lack> {
    let mut lacks = spec.lacks();
    if let Some(lack) = lacks.iter_mut().find(|lack| lack.key == "argv" && spec.program().is_err())
        && let Ok(found) = ready::look_up(&spec.argv[0], path)
    {
        lack.remedy = format!("there is {}: write that in `argv`", found.display());
    }
    lacks
}

/// The commands of a running daemon with what each lacks, as the control plane tells it.
#[must_use]
pub fn told(config: &DaemonConfig, paths: &Paths, env: &Env) -> Vec<Value> {
    let path = env.get("PATH").unwrap_or_default();
    let place = commands::Place::of(config, paths, env);
    let one = |(name, command): (&String, &CommandConfig)| {
        let spec = place.spec(name, command);
        let lack = |Lack { key, message, remedy }| json!({"key": key, "message": message, "remedy": remedy});
        let lacks: Vec<Value> = lacks(&spec, path).into_iter().map(lack).collect();
        json!({"command": name, "secrets": spec.secrets.keys().collect::<Vec<_>>(), "lacks": lacks})
    };
    config.commands.iter().map(one).collect()
}

/// Whether secrets are there only the daemon knows, whose environment is another one: what it says
/// takes the place of what was found here.
fn as_the_daemon_sees(lacks: &mut Vec<Lack>, command: &str, daemon: Option<&Value>) {
    let Some(daemon) = daemon else {
        for lack in lacks.iter_mut().filter(|lack| lack.key.starts_with(SECRETS)) {
            lack.remedy = "no daemon runs that could be asked; set it where it will be started".to_owned();
        }
        return;
    };
    let each = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let commands = each(daemon, "commands");
    let Some(seen) = commands.iter().find(|seen| seen["command"] == command) else { return };
    let knows = |key: &str| {
        let name = key.strip_prefix(SECRETS);
        name.is_some_and(|name| each(seen, "secrets").iter().any(|known| known == name))
    };
    lacks.retain(|lack| !knows(&lack.key));
    let text = |lack: &Value, key: &str| lack[key].as_str().unwrap_or_default().to_owned();
    let of_secrets = |lack: &Value| {
        let (key, message, remedy) = (text(lack, "key"), text(lack, "message"), text(lack, "remedy"));
        knows(&key).then_some(Lack { key, message, remedy })
    };
    lacks.extend(each(seen, "lacks").iter().filter_map(of_secrets));
}

/// How the keys of secrets begin.
const SECRETS: &str = "secrets.";

/// What keeps commands from starting, and grants that cannot be given, as problems of daemon.yml. A
/// command that no runner rests on, or a grant that no plugin asks for, harms nobody: a warning. A
/// grant for which a runner of `tried` would be refused is not told once more. Secrets are looked up in
/// the environment of `daemon`, the answer of a running one, else in this one.
#[must_use]
pub fn problems(
    config: &DaemonConfig,
    paths: &Paths,
    env: &Env,
    tried: &[Tried],
    daemon: Option<&Value>,
) -> Report {
    let mut report = Report::default();
    let file: Arc<str> = paths.show(&paths.daemon_yml).into();
    let path = env.get("PATH").unwrap_or_default();
    let place = commands::Place::of(config, paths, env).by("the environment of this command line");
    for (name, command) in &config.commands {
        let used = config.runners.values().any(|runner| runner.command() == Some(name));
        let spec = place.spec(name, command);
        let mut lacks = lacks(&spec, path);
        as_the_daemon_sees(&mut lacks, name, daemon);
        if lacks.is_empty()
            && let Err(message) = commands::trial(&spec)
        {
            lacks.push(Lack { key: "sandbox".to_owned(), message, remedy: SANDBOX_REMEDY.to_owned() });
        }
        for Lack { key, message, remedy } in lacks {
            let place = DaemonConfig::key_of(&["commands", name]);
            let key = format!("{place}.{key}");
            report.push(Problem {
                level: if used { Level::Error } else { Level::Warning },
                line: config
                    .line_of(&key)
                    .or_else(|| config.line_of(&format!("{place}.argv")))
                    .unwrap_or_default(),
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
    let fence = commands::fence(config, paths, env);
    for (name, runner) in config.runners.iter().filter(|(name, _)| !refused(name)) {
        let Err(error) = commands::at_home(&runner.grants, env).below(&fence) else {
            continue;
        };
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
        let said = |env: &Env| problems(&config, &paths, env, &[], None).to_string();
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
