//! `kairos plugin`: one file a subcommand; this one only finds and dispatches.

mod check;
mod new;
mod scenario;
mod sign;
mod swap;
mod test;
mod trust;

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::Context;
use super::status;
use crate::boot::plugins;
use crate::exit::{Failure, code};
use crate::runner::{LoadError, plain};

/// Runner plugins.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// List the configured runners with what serves them
    List,
    /// Put another version of a runner in its place while the daemon runs: probed, tried on recorded
    /// cycles, then on trial, with the way back open
    Swap(swap::SwapArgs),
    /// Give a runner's place back to the version before
    Rollback(swap::RollbackArgs),
    /// What served the runners, what was refused, and why
    History(swap::HistoryArgs),
    /// Say whether a plugin loads, and if not, why; runs none of its code before its manifest is read
    Check(check::CheckArgs),
    /// Trust a plugin's content or a signing key, so that it may run unconfined; list, remove
    Trust(trust::TrustArgs),
    /// Make a pair of keys for signing plugins
    Keygen(sign::KeygenArgs),
    /// Sign a plugin, so that whoever trusts the key trusts the file
    Sign(sign::SignArgs),
    /// Write a runner to start from: it builds and passes its own tests at once
    New(new::NewArgs),
    /// Play a plugin through scenarios, without a daemon: scripted replies, faults, crashes
    Test(test::TestArgs),
}

/// Runs the command.
///
/// # Errors
/// Those of the subcommand.
pub async fn run(command: PluginCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        PluginCommand::List => status::plugins(context).await,
        PluginCommand::Swap(args) => swap::swap(args, context).await,
        PluginCommand::Rollback(args) => swap::rollback(args, context).await,
        PluginCommand::History(args) => swap::history(args, context).await,
        PluginCommand::Check(args) => check::run(args, context).await,
        PluginCommand::Trust(args) => trust::run(args, context),
        PluginCommand::Keygen(args) => sign::keygen(&args, context),
        PluginCommand::Sign(args) => sign::sign(&args, context),
        PluginCommand::New(args) => new::run(&args, context),
        PluginCommand::Test(args) => test::run(&args, context),
    }
}

/// A name without a slash that is no file here is looked up as the configuration's names are.
fn find(file: &Path, context: &Context) -> Result<PathBuf, LoadError> {
    let here = plain(&context.cwd.join(file));
    let name = file.to_str().filter(|name| !name.contains('/') && here.symlink_metadata().is_err());
    match name.zip(context.paths().ok()) {
        Some((name, paths)) => {
            plugins::search(&paths, &context.env).find(name).map_err(|error| match error {
                LoadError::NotFound { plugin, mut looked } => {
                    looked.insert(0, here);
                    LoadError::NotFound { plugin, looked }
                }
                other => other,
            })
        }
        None => Ok(here),
    }
}

/// What is there instead of a plugin, for a command that needs one.
fn no_plugin(error: LoadError) -> Failure {
    let exit = if matches!(error, LoadError::NotFound { .. }) { code::NOT_FOUND } else { code::FAILED };
    Failure::new(exit, error.code(), error.to_string()).remedy(error.remedy())
}
