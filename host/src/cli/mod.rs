//! The command line: one file a noun. Data goes to stdout, talk to stderr; every command takes
//! `--root`, `--json`, `--yes` and `--no-color`, and ends with the exit codes of [`crate::exit::code`].

pub mod client;
pub mod config;
mod connect;
mod context;
pub mod cron;
pub mod doctor;
pub mod init;
mod local;
mod logs;
mod maintenance;
mod mandate;
pub mod output;
mod plugin;
mod progress;
mod run;
mod schedule;
mod schedule_edit;
mod status;
mod wal;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use serde_json::Value;

pub use context::Context;

use crate::config::Env;
use crate::exit::{self, Failure, code};
use crate::sys::clock::SystemClock;
use crate::sys::zones::{SYSTEM_DIRECTORY, Zones};
use output::Style;

/// Runs autonomous agent cycles: fires schedules, keeps the budget, records every step.
#[derive(Debug, Parser)]
#[command(name = "kairos", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// The directory that holds `.kairos`; the nearest one above when absent
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print JSON on stdout, and errors as JSON on stderr
    #[arg(long, global = true)]
    json: bool,
    /// Answer every question with yes
    #[arg(long, short = 'y', global = true)]
    yes: bool,
    /// No colours and no progress bars
    #[arg(long, global = true)]
    no_color: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a root: configuration with comments, ready to run
    Init(init::InitArgs),
    /// Run the daemon in the foreground
    Run(run::RunArgs),
    /// Stop the daemon gracefully and wait until it has ended; exit 9 when cycles had to be cut off
    Stop,
    /// Read the configuration again; exit 2 when part of it is bad: the answer says what counts; exit 1 when
    /// a runner is out of service by it
    Reload,
    /// One glance: what runs, what waits, when the last cycle was
    Status,
    /// Print the log
    Logs(logs::LogsArgs),
    /// Schedules: rules that fire mandates
    #[command(subcommand)]
    Schedule(schedule::ScheduleCommand),
    /// Mandates: goals, with their cycles
    #[command(subcommand)]
    Mandate(mandate::MandateCommand),
    /// The wallet
    #[command(subcommand)]
    Budget(BudgetCommand),
    /// Write-ahead logs of mandates
    #[command(subcommand)]
    Wal(wal::WalCommand),
    /// Runner plugins
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Why an occurrence of a schedule ended as it did; exit 3 and why while nothing is recorded of it
    Why {
        /// The schedule's name
        schedule: String,
        /// The nominal time (RFC 3339)
        occurrence: String,
    },
    /// Cron expressions: when they fire, how often, what they mean
    #[command(subcommand)]
    Cron(cron::CronCommand),
    /// The configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Check this machine and root for what goes wrong most often
    Doctor,
    /// Remove ended mandates that are older than the retention
    Prune(maintenance::PruneArgs),
    /// Copy the store to a file while everything goes on
    Backup(maintenance::BackupArgs),
    /// Put a backup in the store's place
    Restore(maintenance::RestoreArgs),
    /// Rebuild a lost store from the write-ahead logs
    Recover(maintenance::RecoverArgs),
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all pages into a directory
    Man {
        /// Where to write them
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum BudgetCommand {
    /// Spent, reserved and limits of today
    Show,
}

/// Runs the program with these arguments and says how it ended.
#[must_use]
pub fn main(arguments: Vec<OsString>, env: Env, cwd: PathBuf) -> u8 {
    let json = arguments.iter().any(|argument| argument == "--json");
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, json),
    };
    let rich = !cli.no_color && !cli.json && env.colours() && std::io::stderr().is_terminal();
    let context = Context {
        root: cli.root,
        cwd,
        env,
        style: Style { json: cli.json, rich },
        yes: cli.yes,
        clock: Arc::new(SystemClock::default()),
        local: std::sync::Mutex::new(None),
    };
    match dispatch(cli.command, &context) {
        Ok(exit) => exit,
        Err(error) => {
            let failure = exit::classify(&error);
            complain(&failure, cli.json);
            failure.exit
        }
    }
}

fn usage(error: &clap::Error, json: bool) -> u8 {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Asked for: help is data.
        let _ = error.print();
        return 0;
    }
    if json {
        complain(&Failure::usage(error.to_string().trim_end()), true);
    } else {
        let _ = error.print();
    }
    code::USAGE
}

fn complain(failure: &Failure, json: bool) {
    let text =
        if json { failure.to_json().to_string() } else { output::harmless(&format!("kairos: {failure}")) };
    // A closed stderr leaves the exit code to speak.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn dispatch(command: Command, context: &Context) -> anyhow::Result<u8> {
    match command {
        // The daemon makes its own runtime, after its process has settled.
        Command::Run(args) => return run::run(&args, context),
        Command::Init(args) => init::run(&args, context)?,
        Command::Logs(args) => logs::run(&args, context)?,
        Command::Cron(command) => {
            output::stream(|out| cron::run(command, context.style.json, &*context.clock, out)).map(drop)?
        }
        Command::Config(command) => {
            let asked =
                matches!(command, config::ConfigCommand::Check).then(|| ask_daemon(context)).flatten();
            with_world(context, asked, |world| config::run(command, world, context.style))?
        }
        Command::Doctor => {
            with_world(context, ask_daemon(context), |world| doctor::run(world, context.style))?
        }
        Command::Wal(command) => wal::run(command, context)?,
        Command::Backup(args) => maintenance::backup(&args, context)?,
        Command::Restore(args) => maintenance::restore(&args, context)?,
        Command::Recover(args) => maintenance::recover(&args, context)?,
        Command::Completions { shell } => completions(shell)?,
        Command::Man { dir } => man(dir, context)?,
        other => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let talked = talk(other, context).await;
            // The store is closed in order whatever the command said; its own error comes first.
            let closed = context.close().await;
            talked.and(closed)
        })?,
    }
    Ok(0)
}

/// What a running daemon says of its commands, in its own environment; none when none answers.
fn ask_daemon(context: &Context) -> Option<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async { connect::daemon(context).await.ok()??.get("/v1/commands").await.ok() })
}

fn with_world<T>(
    context: &Context,
    daemon: Option<Value>,
    job: impl FnOnce(&config::World<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let paths = context.paths()?;
    let zones = Zones::newest(SYSTEM_DIRECTORY);
    let now = context.clock.now();
    job(&config::World { paths: &paths, env: &context.env, zones: &zones, now, daemon })
}

/// Commands that talk to the control plane.
async fn talk(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::Stop => status::stop(context).await,
        Command::Reload => status::reload(context).await,
        Command::Status => status::status(context).await,
        Command::Schedule(command) => schedule::run(command, context).await,
        Command::Mandate(command) => mandate::run(command, context).await,
        Command::Budget(BudgetCommand::Show) => status::budget(context).await,
        Command::Plugin(command) => plugin::run(command, context).await,
        Command::Prune(args) => maintenance::prune(args, context).await,
        Command::Why { schedule, occurrence } => status::why(context, &schedule, &occurrence).await,
        _ => unreachable!("dispatch keeps the others for itself"),
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "kairos", &mut script);
    output::line(&String::from_utf8(script)?)
}

fn man(dir: Option<PathBuf>, context: &Context) -> anyhow::Result<()> {
    match dir {
        Some(dir) => {
            std::fs::create_dir_all(&dir)?;
            clap_mangen::generate_to(Cli::command(), &dir)?;
            output::say(context.style, &format!("manual pages written to {}", dir.display()));
            Ok(())
        }
        None => {
            let mut page = vec![];
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            output::line(&String::from_utf8(page)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_text() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} has no help text");
                check(sub, &path);
            }
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {} has no help text", argument.get_id());
            }
        }
        check(&Cli::command(), "kairos");
    }
}
