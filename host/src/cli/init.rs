//! `kairos init`: a root that runs at once. Never overwrites anything.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::Context;
use super::output::emit;
use crate::config::Paths;
use crate::exit::{Failure, code};
use crate::sys::files::{self, FileError};

/// Arguments of `kairos init`.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// Where [default: `--root`, else `KAIROS_ROOT`, else the current directory]
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Makes the files below the directory.
///
/// # Errors
/// Exit 5, and nothing is written, when one of the files is already there.
pub fn run(args: &InitArgs, context: &Context) -> anyhow::Result<()> {
    let (cwd, style) = (&context.cwd, context.style);
    let variable = context.env.get("KAIROS_ROOT").map(Path::new);
    let named = args.dir.as_deref().or(context.root.as_deref()).or(variable);
    let root = named.map_or_else(|| cwd.clone(), |dir| cwd.join(dir));
    let paths = Paths::new(&root);
    let created = create(&paths)?;
    let shown: Vec<String> = created.iter().map(|path| paths.show(path)).collect();
    let value = json!({"root": root, "created": shown});
    emit(style, &value, |_| {
        let root = root.display();
        format!(
            "made {}\n\nnext: `kairos config check --root {root}`, then `kairos run --root {root}`",
            shown.join(", ")
        )
    })
}

/// Makes the files and says which.
///
/// # Errors
/// As [`run`].
pub fn create(paths: &Paths) -> Result<Vec<PathBuf>, anyhow::Error> {
    let wanted = [
        (paths.daemon_yml.clone(), DAEMON),
        (paths.schedules_yml.clone(), SCHEDULES),
        (paths.config.join("replies.yml"), REPLIES),
        (paths.dot.join(".gitignore"), GITIGNORE),
    ];
    if let Some((taken, _)) = wanted.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        let message = format!("{} is already there", taken.display());
        return Err(Failure::new(code::CONFLICT, "exists", message)
            .remedy("nothing was written; choose another directory or move it away")
            .into());
    }
    files::create_dirs(&paths.config)?;
    let mut created = Vec::new();
    for (path, text) in wanted {
        files::create_new(&path, text.as_bytes(), files::SHARED).map_err(|error| raced(&path, error))?;
        created.push(path);
    }
    Ok(created)
}

fn raced(path: &Path, error: FileError) -> anyhow::Error {
    match &error {
        FileError::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => Failure::new(
            code::CONFLICT,
            "exists",
            format!("{} has just been made by somebody else", path.display()),
        )
        .into(),
        _ => error.into(),
    }
}

const DAEMON: &str = r#"# Kairos: the daemon. Every key is optional; `kairos config check` reports mistakes,
# `kairos config dump` shows all keys with the values that count.

# Most cycles that run at the same time.
max_concurrent_cycles: 1

budget:
  daily_calls: 10000      # LLM calls a day; null: no limit
  # daily_tokens: 2000000 # input and output together
  # daily_usd: 5.00
  timezone: UTC           # whose midnight begins a new day

# The runner of schedules that name none.
default_runner: stub
runners:
  # Does what its mandate's parameters say; good for first steps.
  stub: {plugin: stub, deadline: 1m}
  # Observes, orients, decides, acts and reflects with a language model.
  cognitive: {plugin: cognitive-loop, deadline: 10m}
  # Runs a program of `commands` below, an agent of the command line for example.
  # agent: {plugin: command, deadline: 15m, params: {command: claude}}

# Programs that runners with the plugin `command` run as cycles.
# commands:
#   claude:
#     argv: [claude, -p, --output-format, json]
#     preset: claude
#     network: true
#     secrets: {ANTHROPIC_API_KEY: {env: ANTHROPIC_API_KEY}}
#     max_cost_usd: 0.5

llm:
  default: canned
  providers:
    # Replies from a file: nothing leaves the machine and nothing is paid.
    canned: {kind: scripted, file: .kairos/config/replies.yml}
    # A real model. The key stays outside of this file.
    # claude:
    #   kind: anthropic
    #   model: claude-sonnet-4-5
    #   api_key: {env: ANTHROPIC_API_KEY}
    #   max_tokens: 2048

attach: {host: 127.0.0.1, port: 9847}
"#;

const SCHEDULES: &str = r#"# Kairos: when which mandate fires. `kairos schedule next` shows the next times,
# `kairos schedule add` and `edit` keep these comments.
schedules:
  # Runs every minute with the stub runner and spends nothing.
  - name: hello
    cron: "* * * * *"
    runner: stub
    missed_policy: skip
    mandate:
      goal: show that the daemon works
      max_cycles: 1
      params: {status: ok}

  # Every working day at nine in Paris, with a language model.
  # - name: daily report
  #   cron: "0 9 * * 1-5"
  #   timezone: Europe/Paris
  #   runner: cognitive
  #   missed_policy: catch_up_once
  #   concurrency: queue_one
  #   mandate:
  #     goal: summarise yesterday's changes in notes/daily.md
  #     max_cycles: 3
  #     risk_budget: low
"#;

const REPLIES: &str = r#"# What the provider `canned` answers: the first reply that matches and was not yet used
# in the cycle; with `cycle: true` they come round again.
cycle: true
replies:
  - text: '{"action": "noop", "reason": "this is a canned reply"}'
"#;

const GITIGNORE: &str = "# What the daemon makes itself.
/state/
/run/
/wal/
/logs/
/chronos_state.yml
";

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests lay out plain files")]
mod tests {
    use super::*;
    use crate::cli::config::{World, check_all};
    use crate::config::Env;
    use crate::exit::classify;
    use crate::sys::zones::Zones;

    #[test]
    fn what_is_made_is_right_without_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path().join("new/ws"));
        assert_eq!(create(&paths).unwrap().len(), 4);
        let (env, zones) = (Env::default(), Zones::bundled());
        let now = chrono::DateTime::from_timestamp(1_795_000_000, 0).unwrap();
        let checked = check_all(&World { paths: &paths, env: &env, zones: &zones, now, daemon: None });
        assert!(checked.report.problems.is_empty(), "{}", checked.report);
        assert_eq!(checked.schedules.schedules.len(), 1);
        let (_, lines) = crate::config::replies::read(&paths.config.join("replies.yml")).unwrap();
        assert_eq!(lines.len(), 1);
        // The examples in comments must be right too once somebody uncomments them.
        for (path, text) in [(&paths.schedules_yml, SCHEDULES), (&paths.daemon_yml, DAEMON)] {
            let example = |line: &str| {
                let rest = line.trim_start().strip_prefix("# ")?;
                let code = rest.starts_with("- ")
                    || rest.starts_with("  ")
                    || rest == "claude:"
                    || rest == "commands:";
                code.then(|| format!("{}{rest}\n", &line[..line.len() - line.trim_start().len()]))
            };
            let uncommented: String =
                text.lines().map(|line| example(line).unwrap_or_else(|| format!("{line}\n"))).collect();
            assert_ne!(uncommented, text);
            std::fs::write(path, uncommented).unwrap();
        }
        let checked = check_all(&World { paths: &paths, env: &env, zones: &zones, now, daemon: None });
        assert!(checked.report.is_ok(), "{}", checked.report);
        assert_eq!(checked.schedules.schedules.len(), 2);
        assert_eq!(checked.daemon.unwrap().llm.providers.len(), 2);
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_is_made_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        std::fs::create_dir_all(&paths.config).unwrap();
        std::fs::write(&paths.schedules_yml, "mine").unwrap();
        let failure = classify(&create(&paths).unwrap_err());
        assert_eq!(failure.exit, code::CONFLICT);
        assert_eq!(std::fs::read_to_string(&paths.schedules_yml).unwrap(), "mine");
        assert!(!paths.daemon_yml.exists() && !paths.dot.join(".gitignore").exists());
    }
}
