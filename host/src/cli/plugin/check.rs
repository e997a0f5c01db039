//! `kairos plugin check`: would this file be a runner here, and if not, why not.

use std::path::PathBuf;

use clap::Args;

use crate::boot::plugins;
use crate::cli::Context;
use crate::cli::output::emit;
use crate::exit::{Failure, code};
use crate::runner::{CheckReport, check};

/// What to look at.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The file, or a plugin's name as `daemon.yml` has it
    pub file: PathBuf,
    /// Also every place that was looked at, when nothing was found
    #[arg(short, long)]
    pub verbose: bool,
}

/// Runs the command.
///
/// # Errors
/// The file does not load: exit 1.
pub async fn run(args: CheckArgs, context: &Context) -> anyhow::Result<()> {
    let report = match super::find(&args.file, context) {
        Ok(path) => {
            let paths = context.paths().ok();
            let dir = plugins::trial_dir(paths.as_ref())?;
            let launcher = plugins::trial(paths.as_ref(), &context.env, dir.path())?;
            tokio::task::spawn_blocking(move || check(&path, &launcher)).await?
        }
        Err(error) => CheckReport::from(error),
    };
    let human = || if args.verbose { report.verbose() } else { report.human() };
    emit(context.style, &serde_json::to_value(&report)?, |_| human())?;
    match report.errors.first() {
        None => Ok(()),
        Some(error) => {
            let failure = Failure::new(code::FAILED, error.code, "the plugin does not load");
            // A person has just read the remedy.
            Err(if context.style.json { failure.remedy(error.remedy.clone()) } else { failure }.into())
        }
    }
}
