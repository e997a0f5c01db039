//! Resource limits of a confined process. They bind each process by itself; the soft limit is the
//! hard one, and without capabilities nobody raises it again.

use rustix::process::{Resource, Rlimit, setrlimit};

use super::{Confinement, Profile, raw};

/// Address space beside the memory that may be written: code, mapped files, reserves of the
/// allocator, which never become memory.
pub const UNWRITTEN_BYTES: u64 = 1 << 30;

/// Everything but the number of processes, which counts only inside the new user namespace.
pub(super) fn enter(wanted: &Confinement) -> Result<(), String> {
    let mut faults = Vec::new();
    let mut limit = |name: &str, resource, value: Option<u64>| {
        let Some(value) = value else { return };
        if let Err(error) = set(resource, value) {
            faults.push(format!("{name}: {error}"));
        }
    };
    limit("core", Resource::Core, Some(0));
    limit("memory", Resource::Data, wanted.memory_bytes);
    limit(
        "address space",
        Resource::As,
        wanted.memory_bytes.map(|bytes| bytes.saturating_add(UNWRITTEN_BYTES)),
    );
    limit("cpu", Resource::Cpu, wanted.cpu_seconds);
    limit("open files", Resource::Nofile, wanted.open_files);
    limit("locked memory", Resource::Memlock, Some(0));
    limit("message queues", Resource::Msgqueue, Some(0));
    if wanted.file_bytes.is_some() {
        raw::ignore_file_size_signal();
    }
    limit("file size", Resource::Fsize, wanted.file_bytes);
    if faults.is_empty() { Ok(()) } else { Err(faults.join(", ")) }
}

/// The number of processes and threads. Outside a user namespace of its own this would count
/// everything that the user runs, so it is for after that.
pub(super) fn processes(wanted: &Confinement) -> Result<(), String> {
    match wanted.processes {
        Some(count) => set(Resource::Nproc, count).map_err(|error| format!("processes: {error}")),
        None => Ok(()),
    }
}

/// A user that no account has, nor a range that is handed out for containers.
const NOBODY_AT_ALL: u32 = u32::MAX - 15;

/// Lets the number of processes bind root as well, whom the kernel exempts by the *real* user: that
/// becomes nobody's, while the effective one, which opens files, stays. To be done before the user
/// namespace, in which there is no other user. Nothing for other users, and in a container whose
/// root is not the machine's: nobody is exempt there.
pub(super) fn bind_root(wanted: &Confinement) -> Result<(), String> {
    let root = rustix::process::geteuid();
    if wanted.profile != Profile::Runner || wanted.processes.is_none() || !root.is_root() {
        return Ok(());
    }
    let nobody = rustix::process::Uid::from_raw(NOBODY_AT_ALL);
    // The limit of the whole user, which a namespace takes along, was never meant to bind root.
    let _ = setrlimit(Resource::Nproc, Rlimit { current: None, maximum: None });
    match rustix::thread::set_thread_res_uid(nobody, root, root) {
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(format!("root's processes: {error}")),
    }
}

fn set(resource: Resource, value: u64) -> rustix::io::Result<()> {
    let present = rustix::process::getrlimit(resource);
    // A limit that is lower already stays; asking for more would be refused.
    let value = present.maximum.map_or(value, |maximum| maximum.min(value));
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}
