//! The control plane without a daemon: the same router over the store, under the root's lock.

use std::time::Duration;

use super::Context;
use crate::boot::{Daemon, LocalGuard, Options};

/// Opens it, waiting at most so long for a present holder of the lock.
///
/// # Errors
/// The root is held: a `LockError`; or the store cannot be opened.
pub async fn open(context: &Context, wait: Duration) -> anyhow::Result<(axum::Router, LocalGuard)> {
    let settings = context.settings()?;
    let (settings, lock) = tokio::task::spawn_blocking(move || {
        let lock = settings.lock("command", wait);
        (settings, lock)
    })
    .await?;
    let lock = lock?;
    let options = Options {
        lock,
        env: context.env.clone(),
        clock: std::sync::Arc::clone(&context.clock),
        daemon: false,
    };
    Ok(Daemon::assemble(settings, options).await?.serve_locally())
}
