//! `kairos prune`, `backup`, `restore`, `recover`: keeping a store small, and getting it back.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::Context;
use super::mandate::time;
use super::output::{cell, emit, printable, rfc3339, say};
use super::progress::Progress;
use crate::boot;
use crate::boot::settings::Settings;
use crate::exit::{Failure, code};
use crate::store::maintenance;
use crate::sys::lock::{LockError, RootLock};
use crate::sys::place::{Place, Stream};

/// Another command that holds the root is waited for so long.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// What to remove.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Ended before this time (RFC 3339, a date, or an age such as 30d); `store.retention_days` when absent
    #[arg(long, value_name = "T")]
    pub before: Option<String>,
    /// Only count
    #[arg(long)]
    pub dry_run: bool,
}

/// Where to copy to.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The new file, replaced whole if it exists; or a fifo, a device, /dev/stdout
    pub file: PathBuf,
}

/// What to bring back.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// A file that `kairos backup` made
    pub file: PathBuf,
}

/// How to rebuild.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// From the write-ahead logs of mandates
    #[arg(long, required = true)]
    pub from_wal: bool,
}

/// `kairos prune`.
///
/// # Errors
/// The store's.
pub async fn prune(args: PruneArgs, context: &Context) -> anyhow::Result<()> {
    let now = context.clock.now();
    let before = match &args.before {
        Some(text) => time(text, now)?,
        None => now - TimeDelta::days(i64::from(context.settings()?.config.store_retention_days)),
    };
    let body = json!({"before": before.to_rfc3339(), "dry_run": args.dry_run});
    let bar = Progress::new(context.style, "pruning");
    let answer = context.client().await?.post("/v1/admin/prune", &body).await?;
    drop(bar);
    emit(context.style, &answer, |report| {
        format!(
            "{} mandates, {} outcomes, {} events, {} days of the ledger {}older than {}",
            cell(&report["mandates"]),
            cell(&report["occurrences"]),
            cell(&report["events"]),
            cell(&report["days"]),
            if args.dry_run { "are " } else { "removed, " },
            rfc3339(before)
        )
    })
}

/// `kairos backup`. Reads beside a running daemon and disturbs none.
///
/// # Errors
/// There is no store, or the file cannot be written.
pub fn backup(args: &BackupArgs, context: &Context) -> anyhow::Result<()> {
    let settings = context.settings()?;
    let to = context.cwd.join(&args.file);
    let place = Place::named(&to)?;
    // A copy is checked whole before a byte of it goes where it cannot be taken back.
    let aside = tempfile::tempdir()?;
    let file = match &place {
        Place::File(path) => path.clone(),
        Place::Stream(_) => aside.path().join("store.db"),
    };
    let bar = Progress::new(context.style, "copying");
    let mut done =
        maintenance::backup(&settings.paths.store_db, &file, &mut |done, total| bar.at(done, total))?;
    drop(bar);
    done.path = to;
    let human = |done: &maintenance::BackedUp| {
        format!("{}: {} bytes", printable(&done.path.display().to_string()), done.bytes)
    };
    if let Place::Stream(stream) = &place {
        let mut copy = std::fs::File::open(&file)?;
        stream.write(|out| std::io::copy(&mut copy, out).map(drop))?;
        if *stream == Stream::Stdout {
            // Nothing else is said where the copy goes.
            say(context.style, &human(&done));
            return Ok(());
        }
    }
    emit(context.style, &serde_json::to_value(&done)?, |_| human(&done))
}

/// `kairos restore`. Only without a daemon.
///
/// # Errors
/// A daemon runs, or the backup is not sound; nothing has changed then.
pub fn restore(args: &RestoreArgs, context: &Context) -> anyhow::Result<()> {
    let settings = context.settings()?;
    let lock = take_lock(&settings, "restore")?;
    if !context.confirm("Put this backup in the store's place? The present one is kept beside it.")? {
        return Err(not_confirmed());
    }
    let from = context.cwd.join(&args.file);
    rebuilt(context, &settings, lock, "restoring", |beside, now, progress| {
        let (store, logs) = (&settings.paths.store_db, settings.wal_dir());
        maintenance::restore(&from, store, &logs, beside, now, progress)
    })
}

/// `kairos recover --from-wal`. Only without a daemon.
///
/// # Errors
/// A daemon runs, or the logs cannot be listed.
pub fn recover(_: &RecoverArgs, context: &Context) -> anyhow::Result<()> {
    let settings = context.settings()?;
    let lock = take_lock(&settings, "recover")?;
    if settings.paths.store_db.exists()
        && !context.confirm("A store is there. Build a new one from the logs and keep it aside?")?
    {
        return Err(not_confirmed());
    }
    rebuilt(context, &settings, lock, "reading logs", |beside, now, progress| {
        let (store, logs) = (&settings.paths.store_db, settings.wal_dir());
        maintenance::recover_from_wal(store, &logs, beside, now, progress)
    })
}

/// Has a store put in place while a bar shows how far it is, and says what was done.
fn rebuilt<T: Serialize>(
    context: &Context,
    settings: &Settings,
    lock: RootLock,
    label: &'static str,
    work: impl FnOnce(
        &maintenance::Beside,
        DateTime<Utc>,
        &mut dyn FnMut(u64, u64),
    ) -> Result<T, crate::store::Error>,
) -> anyhow::Result<()> {
    let beside = boot::beside(settings)?;
    let bar = Progress::new(context.style, label);
    let done = work(&beside, context.clock.now(), &mut |done, total| bar.at(done, total))?;
    drop(bar);
    drop(lock);
    report(context, &serde_json::to_value(&done)?)
}

fn not_confirmed() -> anyhow::Error {
    Failure::new(code::CONFLICT, "confirm", "nothing was changed")
        .remedy("add `--yes` if that is meant")
        .into()
}

fn take_lock(settings: &Settings, role: &str) -> anyhow::Result<RootLock> {
    match settings.lock(role, LOCK_WAIT) {
        Ok(lock) => Ok(lock),
        Err(error @ LockError::Held { .. }) => Err(Failure::new(code::CONFLICT, "locked", error.to_string())
            .remedy("stop the daemon first: `kairos stop`")
            .into()),
        Err(error) => Err(error.into()),
    }
}

/// Every key that says something, and what a person should look at in words.
fn report(context: &Context, done: &Value) -> anyhow::Result<()> {
    emit(context.style, done, |done| {
        let mut text = String::new();
        for (key, value) in done.as_object().into_iter().flatten() {
            let nothing = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if !nothing {
                text.push_str(&format!("{key:<12} {}\n", printable(&cell(value))));
            }
        }
        text
    })?;
    if done["review"].as_array().is_some_and(|review| !review.is_empty()) {
        say(context.style, "some mandates wait for you: `kairos mandate list --state review`");
    }
    Ok(())
}
