//! What every command shares: where the root is, how to print, how to reach the control plane.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::client::Client;
use super::output::Style;
use crate::boot::LocalGuard;
use crate::boot::settings::Settings;
use crate::config::{Env, Paths};
use crate::exit::Failure;
use crate::sys::clock::Clock;

/// The command line's surroundings.
pub struct Context {
    /// `--root`, as given.
    pub root: Option<PathBuf>,
    /// The directory it was called in.
    pub cwd: PathBuf,
    /// The environment.
    pub env: Env,
    /// How to print.
    pub style: Style,
    /// `--yes`: no questions.
    pub yes: bool,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The local control plane, where no daemon runs; see [`Context::close`].
    pub local: Mutex<Option<LocalGuard>>,
}

impl Context {
    /// The paths of the root.
    ///
    /// # Errors
    /// There is no root here.
    pub fn paths(&self) -> Result<Paths, Failure> {
        let paths = Paths::discover(self.root.as_deref(), &self.env, &self.cwd).ok_or_else(|| {
            Failure::usage("no `.kairos` directory here or above")
                .remedy("run `kairos init` here, or name a root with `--root DIR`")
        })?;
        // A name with a slip in it must not become a new root.
        if paths.dot.is_dir() {
            return Ok(paths);
        }
        let root = paths.root.display();
        Err(Failure::usage(format!("{root} holds no `.kairos`"))
            .remedy(format!("make it one with `kairos init {root}`")))
    }

    /// The configuration of the root.
    ///
    /// # Errors
    /// No root, or a bad file: exit 2 with the full report.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        Settings::load(self.paths()?, &self.env)
    }

    /// The control plane: the daemon's when one runs, else a local one over the store.
    ///
    /// # Errors
    /// The store cannot be opened, or another command holds the root for too long.
    pub async fn client(&self) -> anyhow::Result<Client> {
        super::connect::any(self).await
    }

    /// The daemon's control plane.
    ///
    /// # Errors
    /// No daemon runs: exit 7.
    pub async fn daemon(&self) -> anyhow::Result<Client> {
        super::connect::daemon(self).await?.ok_or_else(|| Failure::daemon_down().into())
    }

    /// Remembers a local control plane until [`Context::close`].
    pub(super) fn keep(&self, opened: (axum::Router, LocalGuard)) -> Client {
        *self.local.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened.1);
        Client::Local(opened.0)
    }

    /// Closes the local control plane if there is one.
    ///
    /// # Errors
    /// The store's.
    pub async fn close(&self) -> anyhow::Result<()> {
        let guard = self.local.lock().unwrap_or_else(PoisonError::into_inner).take();
        match guard {
            Some(guard) => guard.close().await,
            None => Ok(()),
        }
    }

    /// Asks a person on a terminal; without one, or with `--json`, the answer is no.
    ///
    /// # Errors
    /// The terminal cannot be read.
    pub fn confirm(&self, question: &str) -> anyhow::Result<bool> {
        use std::io::{IsTerminal, Write};
        if self.yes {
            return Ok(true);
        }
        if self.style.json || !std::io::stdin().is_terminal() {
            return Ok(false);
        }
        write!(std::io::stderr(), "{question} [y/N] ")?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}
