//! Finding the control plane: a daemon's socket, or the store itself under the root's lock.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::Context;
use super::client::Client;
use super::local;
use crate::exit::{Failure, code};
use crate::sys::files;
use crate::sys::lock::{self, LockError, RootLock};

/// `endpoint.json` is a line; anything larger is not ours.
const ENDPOINT_MAX: u64 = 64 << 10;

/// The daemon's socket if one answers there.
///
/// # Errors
/// There is no root here.
pub async fn daemon(context: &Context) -> anyhow::Result<Option<Client>> {
    let paths = context.paths()?;
    // Without a holder of the lock a socket file is a leftover.
    match lock::holder(&paths.pid) {
        Ok(Some(_)) => {}
        Ok(None) | Err(_) => return Ok(None),
    }
    let socket = socket_path(context)?;
    Ok(tokio::net::UnixStream::connect(&socket).await.ok().map(|_| Client::Socket(socket)))
}

/// Where the daemon says it listens, else where it would.
fn socket_path(context: &Context) -> anyhow::Result<PathBuf> {
    let paths = context.paths()?;
    let named = files::read(&paths.endpoint_json, ENDPOINT_MAX)
        .ok()
        .flatten()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .and_then(|endpoint| endpoint["socket"].as_str().map(PathBuf::from));
    Ok(named.unwrap_or_else(|| paths.socket(&context.env)))
}

/// The daemon's control plane, or one of our own over the store.
///
/// # Errors
/// The store cannot be opened, or somebody holds the root and does not answer.
pub async fn any(context: &Context) -> anyhow::Result<Client> {
    /// A starting daemon serves its socket within this time.
    const PATIENCE: Duration = Duration::from_secs(5);
    if let Some(client) = daemon(context).await? {
        return Ok(client);
    }
    match local::open(context, Duration::ZERO).await {
        Err(error) if is_held(&error) => {}
        other => return other.map(|opened| context.keep(opened)),
    }
    // Somebody else holds the root: another command, which ends soon, or a daemon that starts.
    match local::open(context, PATIENCE).await {
        Err(error) if is_held(&error) => match daemon(context).await? {
            Some(client) => Ok(client),
            None => Err(Failure::new(code::FAILED, "locked", format!("{error:#}")).into()),
        },
        other => other.map(|opened| context.keep(opened)),
    }
}

/// True when another process has the root; a lock that cannot be used at all is another matter.
fn is_held(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<LockError>(), Some(LockError::Held { .. }))
}

/// Waits until nobody holds the root's lock; false when the time is over first.
///
/// # Errors
/// There is no root, or its lock cannot be used.
pub async fn wait_until_gone(context: &Context, wait: Duration) -> anyhow::Result<bool> {
    let path = context.paths()?.pid;
    let taken = tokio::task::spawn_blocking(move || RootLock::acquire(&path, "stop", wait)).await?;
    match taken {
        Ok(_) => Ok(true),
        Err(LockError::Held { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
