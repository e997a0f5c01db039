//! `kairos config`: what is wrong with the configuration, and what it amounts to. It changes
//! nothing and needs no daemon; of one that runs it is asked what only that knows: its secrets.

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::{Value, json};

use super::output::{Style, emit, say};
use crate::boot::fitness;
use crate::boot::rehearsal::{self, Tried};
use crate::boot::watched::{self, Found};
use crate::config::reader::{Effective, Origin};
use crate::config::report::{Level, Problem, counted};
use crate::config::schedules::Around;
use crate::config::{DaemonConfig, Env, Paths, Report, SchedulesFile, load};
use crate::exit::{Failure, code};
use crate::sys::zones::Zones;

/// Look at the configuration.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Report every problem of daemon.yml and schedules.yml, and each runner that would not serve;
    /// exit 2 if there is an error
    Check,
    /// Show every value that counts and where it comes from; secrets are left out
    Dump,
}

/// What the commands need to know about the world.
pub struct World<'w> {
    /// The root.
    pub paths: &'w Paths,
    /// The environment.
    pub env: &'w Env,
    /// Time zones.
    pub zones: &'w Zones,
    /// The time now.
    pub now: DateTime<Utc>,
    /// What a running daemon says of its commands.
    pub daemon: Option<Value>,
}

/// Runs the command.
///
/// # Errors
/// A failure with exit 2 when the configuration has errors.
pub fn run(command: ConfigCommand, world: &World<'_>, style: Style) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Check => check(world, &|daemon| rehearsal::of(daemon, world.paths, world.env), style),
        ConfigCommand::Dump => dump(world, style),
    }
}

/// Both files and everything that is wrong with them.
#[derive(Debug)]
pub struct Checked {
    /// The daemon's configuration, unless it has errors.
    pub daemon: Option<DaemonConfig>,
    /// The schedules.
    pub schedules: SchedulesFile,
    /// All problems of both files.
    pub report: Report,
}

/// Reads and checks both files.
#[must_use]
pub fn check_all(world: &World<'_>) -> Checked {
    let (daemon, mut report) = match load::daemon(world.paths, world.env, &[], world.zones) {
        Ok((daemon, report)) => (Some(daemon), report),
        Err(report) => (None, report),
    };
    let runners: Vec<String> =
        daemon.as_ref().map(|daemon| daemon.runners.keys().cloned().collect()).unwrap_or_default();
    let around = Around { zones: world.zones, runners: &runners, now: Some(world.now) };
    let schedules = load::schedules(world.paths, around);
    report.extend(schedules.full_report());
    Checked { daemon, schedules, report }
}

/// Every runner of a good configuration, tried as a start would load it.
pub type Rehearse<'r> = &'r dyn Fn(&DaemonConfig) -> std::io::Result<Vec<Tried>>;

/// What would not serve, as of now, beyond what the files say: runners, commands, grants.
#[must_use]
pub fn beyond(world: &World<'_>, checked: &Checked, rehearse: Rehearse<'_>) -> (Vec<Tried>, Report) {
    let mut report = Report::default();
    let Some(daemon) = &checked.daemon else { return (Vec::new(), report) };
    let tried = rehearse(daemon).unwrap_or_else(|error| {
        let file = world.paths.show(&world.paths.daemon_yml).into();
        report.push(Problem {
            level: Level::Warning,
            key: "runners".to_owned(),
            ..Problem::of_file(
                &file,
                format!("could not be tried: {error}"),
                "make room, or see to what it says",
            )
        });
        Vec::new()
    });
    report.extend(rehearsal::problems(&tried, daemon, world.paths));
    (tried, report)
}

fn check(world: &World<'_>, rehearse: Rehearse<'_>, style: Style) -> anyhow::Result<()> {
    let mut checked = check_all(world);
    let (tried, found) = beyond(world, &checked, rehearse);
    checked.report.extend(found);
    if let Some(daemon) = &checked.daemon {
        checked.report.extend(fitness::problems(
            daemon,
            world.paths,
            world.env,
            &tried,
            world.daemon.as_ref(),
        ));
        checked.report.extend(fitness::schedule_problems(daemon, &checked.schedules, world.paths));
        if let Some(Found::Not(problem)) = watched::look(daemon, world.paths) {
            checked.report.push(problem);
        }
    }
    let report = &checked.report;
    let value = json!({
        "ok": report.is_ok(),
        "errors": report.errors(),
        "warnings": report.warnings(),
        "schedules": checked.schedules.schedules.len(),
        "quarantined": checked.schedules.quarantined.iter().map(|bad| &bad.name).collect::<Vec<_>>(),
        "problems": report.problems,
    });
    emit(style, &value, |_| match (report.errors(), report.warnings()) {
        (0, 0) => {
            let schedules = counted(checked.schedules.schedules.len(), "schedule");
            format!("the configuration is right, with {schedules}")
        }
        _ => report.to_string(),
    })?;
    if report.is_ok() {
        return Ok(());
    }
    let failure = Failure::new(
        code::USAGE,
        "config",
        format!("the configuration has {}", counted(report.errors(), "error")),
    );
    Err(failure
        .remedy(
            "correct them; the daemon refuses a bad daemon.yml, sets aside bad schedules, and lets mandates wait for \
             what is missing on the machine",
        )
        .into())
}

fn dump(world: &World<'_>, style: Style) -> anyhow::Result<()> {
    let (config, report) = load::daemon(world.paths, world.env, &[], world.zones)
        .map_err(|report| Failure::new(code::USAGE, "config", report.to_string()))?;
    if report.warnings() > 0 {
        say(style, &report.to_string());
    }
    let file = world.paths.show(&world.paths.daemon_yml);
    let keys: Vec<Value> = config
        .effective
        .iter()
        .map(|known| json!({"key": known.key, "value": known.value, "origin": origin(known, &file)}))
        .collect();
    let value = json!({"root": world.paths.root, "file": file, "keys": keys});
    emit(style, &value, |_| {
        let lines = config.effective.iter().map(|known| {
            let shown = match &known.value {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            format!("{} = {shown}    ({})", known.key, origin(known, &file))
        });
        lines.collect::<Vec<_>>().join("\n")
    })
}

fn origin(known: &Effective, file: &str) -> String {
    match &known.origin {
        Origin::Line(line) => format!("{file}:{line}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests lay out plain files")]
mod tests {
    use super::*;
    use crate::exit::classify;
    use crate::runner::{Launcher, PluginStore, SearchPath};

    const JSON: Style = Style { json: true, rich: false };

    /// Tries no runner.
    #[expect(clippy::unnecessary_wraps, reason = "as whoever tries them")]
    fn nobody(_: &DaemonConfig) -> std::io::Result<Vec<Tried>> {
        Ok(Vec::new())
    }

    fn in_root(daemon: &str, schedules: &str, test: impl FnOnce(&World<'_>)) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        std::fs::create_dir_all(&paths.config).unwrap();
        std::fs::write(&paths.daemon_yml, daemon).unwrap();
        std::fs::write(&paths.schedules_yml, schedules).unwrap();
        let (env, zones) = (Env::default(), Zones::bundled());
        let now = DateTime::from_timestamp(1_795_000_000, 0).unwrap();
        test(&World { paths: &paths, env: &env, zones: &zones, now, daemon: None });
    }

    #[test]
    fn check_reports_both_files_and_ends_with_2_only_for_errors() {
        let schedules =
            "schedules: [{name: a, cron: '0 25 * * *'}, {name: b, cron: '0 1 * * *', runner: quik}]";
        in_root("tick_intervall: 1\nrunners: {quick: {}}", schedules, |world| {
            let error = check(world, &nobody, JSON).unwrap_err();
            assert_eq!(classify(&error).exit, code::USAGE);
            let checked = check_all(world);
            assert_eq!((checked.report.errors(), checked.schedules.schedules.len()), (2, 1));
        });
        in_root("runners: {quick: {}}", "schedules: [{name: b, cron: '0 1 * * *', runner: quik}]", |world| {
            assert_eq!(check_all(world).report.warnings(), 1);
            check(world, &nobody, JSON).unwrap();
        });
    }

    #[test]
    fn a_runner_that_would_not_serve_is_an_error_at_the_line_to_change_and_one_that_was_not_tried_a_warning()
    {
        in_root("runners:\n  quick:\n    plugin: ./gone.so\n", "", |world| {
            let search = SearchPath::new(&world.paths.root, None, None);
            let launcher = Launcher::in_process(search, PluginStore::new(&world.paths.plugin_store));
            let tried = |daemon: &DaemonConfig| Ok(rehearsal::with(&launcher, daemon, world.env));
            let report = beyond(world, &check_all(world), &tried).1;
            let of = |key: &str| report.problems.iter().find(|problem| problem.key == key).unwrap();
            assert_eq!((report.errors(), report.problems.len()), (1, 1), "{report}");
            let quick = of("runners.quick.plugin");
            assert_eq!(
                (quick.line, quick.code, quick.level),
                (3, Some("not_found"), Level::Error),
                "{quick}"
            );
            assert!(
                quick
                    .to_string()
                    .starts_with(".kairos/config/daemon.yml:3:1: runners.quick.plugin: not_found: ")
            );
            assert_eq!(classify(&check(world, &tried, JSON).unwrap_err()).exit, code::USAGE);
            let full = |_: &DaemonConfig| Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
            let report = beyond(world, &check_all(world), &full).1;
            assert_eq!((report.errors(), report.warnings()), (0, 1), "{report}");
        });
    }

    #[test]
    fn dump_refuses_a_bad_file() {
        in_root("heartbeat: 5", "", |world| {
            let failure = classify(&run(ConfigCommand::Dump, world, JSON).unwrap_err());
            assert!(
                failure.exit == code::USAGE && failure.message.contains(".kairos/config/daemon.yml:1:12")
            );
        });
        in_root("heartbeat: {interval: 5}", "", |world| run(ConfigCommand::Dump, world, JSON).unwrap());
    }
}
