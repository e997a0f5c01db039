//! `kairos plugin`: what is loaded, and whether a file would load.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::Context;
use super::output::emit;
use super::status;
use crate::exit::{Failure, code};
use crate::runner::check;

/// Runner plugins.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// List the configured runners with what serves them
    List,
    /// Say whether a plugin loads, and if not, why; runs none of its code before its manifest is read
    Check {
        /// The file, or a plugin's name as `daemon.yml` has it
        file: PathBuf,
    },
}

/// Runs the command.
///
/// # Errors
/// `check` of a file that does not load: exit 1.
pub async fn run(command: PluginCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        PluginCommand::List => status::plugins(context).await,
        PluginCommand::Check { file } => {
            let path = find(&file, context);
            let report = tokio::task::spawn_blocking(move || check(&path)).await?;
            emit(context.style, &serde_json::to_value(&report)?, |_| report.human())?;
            match report.errors.first() {
                None => Ok(()),
                Some(error) => Err(Failure::new(code::FAILED, error.code, "the plugin does not load").into()),
            }
        }
    }
}

/// A name without a slash that is no file here is looked up as the configuration's names are.
fn find(file: &Path, context: &Context) -> PathBuf {
    let here = context.cwd.join(file);
    let name = file.to_str().filter(|name| !name.contains('/') && !here.exists());
    let found = name.zip(context.paths().ok()).and_then(|(name, paths)| {
        let exe = std::env::current_exe().ok();
        paths.find_plugin(name, exe.as_deref().and_then(Path::parent), &context.env)
    });
    found.unwrap_or(here)
}
