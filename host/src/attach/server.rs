//! The unix socket that the control plane is served on: mode 0600 in a directory of its owner.

use std::path::{Path, PathBuf};

use axum::Router;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Binds the socket. A file left by a dead daemon is replaced: the caller holds the root's lock.
///
/// # Errors
/// The system's, with the path in front.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let named =
        |error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(named(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(named)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(named)?;
    Ok(listener)
}

/// A running server; ends with [`SocketServer::stop`].
#[derive(Debug)]
pub struct SocketServer {
    path: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl SocketServer {
    /// Serves on a task of the current runtime.
    #[must_use]
    pub fn start(path: PathBuf, listener: UnixListener, router: Router) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let until = async move {
                // A dropped sender stops the server as well.
                let _ = stopped.await;
            };
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(until).await {
                tracing::error!(%error, "attach_server_failed");
            }
        });
        Self { path, stop, task }
    }

    /// Stops taking connections and removes the socket; requests under way are not waited for long.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let abort = self.task.abort_handle();
        if tokio::time::timeout(std::time::Duration::from_millis(200), self.task).await.is_err() {
            abort.abort();
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "attach_socket_gone");
        }
    }
}
