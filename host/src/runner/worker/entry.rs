//! The `kairos worker` process: the fork server first, and in each worker that it forks the life of
//! one: limits itself, loads one plugin and serves it until the daemon hangs up. No runtime, no
//! configuration, no environment.
//!
//! ```text
//! fd 0      the null device; in the fork server, until it has moved it away, its socket
//! fd 1, 2   what a worker prints, read and rationed by the daemon
//! fd 3..    frames, and hints from the daemon: where a plugin that reads its input or closes it,
//!           or a child of it, does not come across them by accident
//! ```

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, setrlimit};

use super::fork_server::{self, Gifts};
use super::frame::Kind;
use super::protocol::{Load, Unfit};
use super::serve::{Ear, Home, Wire, serve};
use crate::runner::{RunnerBackend, launch, load_error::LoadError};
use crate::sys::sandbox::{self, SandboxError};
use crate::sys::{guardian, priority};

/// The hidden subcommand.
pub const COMMAND: &str = "worker";

/// Exit code of a process that somebody started by hand.
const NOT_A_WORKER: u8 = 2;

/// Lives as a worker: its exit code. Called by `main` before anything else.
#[must_use]
pub fn main() -> u8 {
    let _ = rustix::thread::set_name(c"kairos-workers");
    let gifts = match fork_server::serve() {
        Ok(Some(gifts)) => gifts,
        Ok(None) => return 0,
        Err(error) => {
            say(&format!("kairos worker is started by the daemon and by nobody else: {error}"));
            return NOT_A_WORKER;
        }
    };
    let lived = live(gifts);
    // What is left is to be taken down, which nobody waits for.
    let _ = priority::only_when_idle();
    match lived {
        Ok(()) => 0,
        Err(error) => {
            say(&format!("kairos worker: {error}"));
            1
        }
    }
}

/// Its stderr is a pipe to a daemon that may be gone; the exit code speaks then.
fn say(trouble: &str) {
    let _ = writeln!(std::io::stderr(), "{trouble}");
}

fn live(Gifts { data, control, output }: Gifts) -> std::io::Result<()> {
    let _ = rustix::thread::set_name(c"kairos-worker");
    rustix::stdio::dup2_stdout(&output)?;
    rustix::stdio::dup2_stderr(output)?;
    let wire = &Arc::new(Wire::new(UnixStream::from(data)));
    let Some(frame) = wire.first_request()? else { return Ok(()) };
    if frame.kind != Kind::Load {
        return Err(std::io::Error::other("the first frame says something else than what to load"));
    }
    let load: Load = serde_json::from_slice(&frame.payload)?;
    wire.calm(load.crowded);
    // From a sandbox it can no longer be asked for.
    if load.confinement.is_some() {
        let _ = priority::short_turns();
    }
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
    let made = if load.at_leisure {
        priority::at_leisure(|| become_runner(wire, &load))
    } else {
        become_runner(wire, &load)
    };
    let backend = match made {
        Ok(backend) => backend,
        Err(error) => return unfit(error.code(), error.to_string()),
    };
    Ear::listen(UnixStream::from(control), Arc::clone(&backend), Arc::clone(wire))?;
    if load.confinement.is_none() {
        let _ = priority::short_turns();
    }
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
