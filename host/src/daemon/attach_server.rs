//! The attach server as the daemon sees it: something that can be started, stopped and asked for
//! its port. The daemon never knows what it serves.

/// Whatever the server has to say about its trouble; only ever logged.
pub type AttachError = Box<dyn std::error::Error + Send + Sync>;

/// A control plane that lives beside the daemon. Called from the wiring and the lifecycle, never
/// from two threads at once; must not block for long.
pub trait AttachServer: Send + Sync + 'static {
    /// Starts to serve.
    ///
    /// # Errors
    /// It could not; the daemon goes on without it.
    fn start(&self) -> Result<(), AttachError>;
    /// Stops serving. One that was never started, or is stopped already, does nothing.
    ///
    /// # Errors
    /// It could not stop cleanly; the caller logs that and goes on.
    fn stop(&self) -> Result<(), AttachError>;
    /// The port it serves on; none when it is not started.
    ///
    /// # Errors
    /// It cannot tell, which counts as not started.
    fn port(&self) -> Result<Option<u16>, AttachError>;
}

/// True when it is started already: it names a port. One whose port errors is not.
#[must_use]
pub fn is_started(server: &dyn AttachServer) -> bool {
    matches!(server.port(), Ok(Some(_)))
}
