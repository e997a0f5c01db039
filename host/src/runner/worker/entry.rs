//! The `kairos worker` process: takes its sockets, limits itself, loads one plugin and serves it
//! until the daemon hangs up. No runtime, no configuration, no environment.
//!
//! ```text
//! fd 0  frames, both ways          -> moved away, the null device takes its place
//! fd 1  hints from the daemon      -> moved away, output goes where errors go
//! fd 2  what it prints, read and rationed by the daemon
//! ```

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};

use super::frame::Kind;
use super::protocol::{Load, Unfit};
use super::serve::{Ear, Home, Wire, serve};
use crate::runner::{RunnerBackend, launch, load_error::LoadError};
use crate::sys::guardian;
use crate::sys::sandbox::{self, SandboxError};

/// The hidden subcommand.
pub const COMMAND: &str = "worker";

/// Exit code of a process that somebody started by hand.
const NOT_A_WORKER: u8 = 2;

/// Lives as a worker: its exit code. Called by `main` before anything else.
#[must_use]
pub fn main() -> u8 {
    // Whatever happens to the daemon, or to the sockets: a worker does not outlive it. A daemon
    // that is gone already has closed the socket, which the first read finds.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let _ = rustix::thread::set_name(c"kairos-worker");
    let (data, control) = match take_sockets() {
        Ok(sockets) => sockets,
        Err(error) => {
            eprintln!("kairos worker is started by the daemon and by nobody else: {error}");
            return NOT_A_WORKER;
        }
    };
    let wire = Arc::new(Wire::new(data));
    match live(&wire, control) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("kairos worker: {error}");
            1
        }
    }
}

fn live(wire: &Arc<Wire>, control: UnixStream) -> std::io::Result<()> {
    let Some(frame) = wire.first_request()? else { return Ok(()) };
    if frame.kind != Kind::Load {
        return Err(std::io::Error::other("the first frame says something else than what to load"));
    }
    let load: Load = serde_json::from_slice(&frame.payload)?;
    let unfit = |code: &str, message: String| {
        let unfit = Unfit { code: code.to_owned(), message };
        wire.send(Kind::Unfit, 0, &[&serde_json::to_vec(&unfit)?])
    };
    match &load.confinement {
        // Still with one thread, and before a byte of the plugin is mapped.
        Some(wanted) => match sandbox::enter(wanted) {
            Ok(reached) => {
                // What the daemon believes of the sandbox: nothing foreign can have spoken yet.
                wire.send(Kind::Confined, 0, &[&serde_json::to_vec(&reached)?])?;
                if reached.level < wanted.require {
                    return Ok(());
                }
            }
            Err(error @ SandboxError::Path { .. }) => return unfit("bad_grant", error.to_string()),
            Err(error) => return unfit("sandbox_unavailable", error.to_string()),
        },
        None => {
            // In a sandbox nothing can be started that would have to be ended.
            guardian::guarded()?;
            limit(load.memory_bytes)?;
        }
    }
    let backend = match become_runner(wire, &load) {
        Ok(backend) => backend,
        Err(error) => return unfit(error.code(), error.to_string()),
    };
    Ear::listen(control, Arc::clone(&backend), Arc::clone(wire))?;
    wire.send(Kind::Ready, 0, &[])?;
    serve(wire, &*backend)
}

fn become_runner(wire: &Arc<Wire>, load: &Load) -> Result<Arc<dyn RunnerBackend>, LoadError> {
    let home = Arc::new(Home::new(Arc::clone(wire)));
    launch::map(&load.path, &load.sha256, &load.manifest, &load.setup, home).map(Arc::from)
}

/// Bounds what hunger can do to the machine; nothing is dumped, since memory holds what the
/// runner was told.
fn limit(memory_bytes: u64) -> std::io::Result<()> {
    let at_most = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::Core, at_most(0))?;
    // As in a sandbox: code and what is only reserved does not count as memory.
    setrlimit(Resource::Data, at_most(memory_bytes))?;
    setrlimit(Resource::As, at_most(memory_bytes.saturating_add(sandbox::UNWRITTEN_BYTES)))?;
    Ok(())
}

/// Puts the sockets where neither a plugin that reads its input or closes it, nor a child of it,
/// comes across them by accident.
fn take_sockets() -> std::io::Result<(UnixStream, UnixStream)> {
    let data = UnixStream::from(fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let control = UnixStream::from(fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
    // Both fail on what is no socket.
    data.peer_addr()?;
    control.peer_addr()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok((data, control))
}
