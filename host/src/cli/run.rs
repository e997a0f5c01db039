//! `kairos run`: the daemon in the foreground, or one pass over all that is due and queued.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::Context;
use super::output::{emit, printable, say, table};
use crate::boot::settings::Settings;
use crate::boot::{Daemon, Once, Options};
use crate::daemon::lifecycle::End;
use crate::daemon::signals::Signals;
use crate::exit::{Failure, code};
use crate::sys::lock::{LockError, RootLock};
use crate::telemetry;

/// A command that holds the root is waited for so long; a daemon too, so that a restart overlaps.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Threads of the runtime: the daemon waits more than it computes.
const THREADS: usize = 2;

/// How to run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Do all that is due and queued now, then end; exit 6 when the budget holds something back
    #[arg(long)]
    pub once: bool,
}

/// Runs it to its end.
///
/// # Errors
/// Bad configuration: exit 2. Another daemon: exit 1. A damaged store: exit 8.
pub fn run(args: &RunArgs, context: &Context) -> anyhow::Result<u8> {
    let settings = context.settings()?;
    let lock = take_lock(&settings)?;
    let options = telemetry::Options {
        dir: Some(&settings.paths.logs),
        filter: context.env.get("KAIROS_LOG").unwrap_or("info"),
        stderr: !context.style.json,
        ansi: context.style.rich,
    };
    let guard = match telemetry::init(&options, Arc::clone(&context.clock)) {
        Ok(guard) => guard,
        Err(error @ telemetry::Error::Filter { .. }) => {
            return Err(Failure::usage(format!("KAIROS_LOG: {error}")).into());
        }
        // A full or read-only disk is no reason not to run; stderr still tells.
        Err(error @ telemetry::Error::Dir { .. }) => {
            say(context.style, &format!("kairos: {error}"));
            telemetry::init(&telemetry::Options { dir: None, ..options }, Arc::clone(&context.clock))?
        }
    };
    for problem in &settings.warnings.problems {
        tracing::warn!(%problem, "config_warning");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("kairos")
        .enable_all()
        .build()?;
    let ended = runtime.block_on(drive(args.once, settings, lock, context));
    // Threads of runners that do not end must not keep the process.
    runtime.shutdown_background();
    drop(guard);
    ended
}

fn take_lock(settings: &Settings) -> anyhow::Result<RootLock> {
    match settings.lock("daemon", LOCK_WAIT) {
        Ok(lock) => Ok(lock),
        Err(error @ LockError::Held { .. }) => Err(Failure::new(code::FAILED, "locked", error.to_string())
            .remedy("only one daemon owns a root; `kairos status` shows it, `kairos stop` ends it")
            .into()),
        Err(error) => Err(error.into()),
    }
}

async fn drive(once: bool, settings: Settings, lock: RootLock, context: &Context) -> anyhow::Result<u8> {
    // What the daemon holds in memory is nobody else's, a runner's least of all.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let mut signals = Signals::install()?;
    let options = Options { lock, env: context.env.clone(), clock: Arc::clone(&context.clock), daemon: true };
    let daemon = Daemon::assemble(settings, options).await?;
    if once {
        return report(&daemon.run_once(&mut signals).await?, context);
    }
    Ok(match daemon.run(&mut signals).await? {
        End::Clean => 0,
        End::GraceExceeded(_) => code::GRACE,
        End::SecondSignal => code::SIGNAL,
        End::StoreFailed(error) => return Err(Failure::from(error).into()),
    })
}

fn report(once: &Once, context: &Context) -> anyhow::Result<u8> {
    let view = serde_json::to_value(once)?;
    emit(context.style, &view, |_| {
        let mut text = format!("{} cycles run\n", once.cycles);
        if !once.waiting.is_empty() {
            let rows: Vec<Vec<String>> = once
                .waiting
                .iter()
                .map(|left| {
                    vec![
                        left.id.clone(),
                        left.state.clone(),
                        printable(left.reason.as_deref().unwrap_or("-")),
                    ]
                })
                .collect();
            text.push_str(&table(&["WAITING", "STATE", "REASON"], &rows));
        }
        text
    })?;
    Ok(if once.interrupted {
        code::SIGNAL
    } else if once.budget {
        code::BUDGET
    } else {
        0
    })
}
