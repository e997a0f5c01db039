//! The sandbox: a process that confines itself, before it runs code that is not ours.
//!
//! Two profiles. A *runner* gets an allow-list of system calls: threads, memory, its own pipe to
//! the host and the files it was granted. A *tool* is a program of its own that starts others, so
//! it gets the system's libraries and a deny-list. Neither ever gets more than was granted; what
//! the kernel cannot enforce is told, layer by layer, in [`Reached`], and it is for the caller to
//! refuse what is too little. Nothing here runs between fork and exec.

pub mod confine;
mod grants;
mod landlock;
mod level;
mod limits;
mod mounts;
mod namespaces;
mod raw;
mod seccomp;
mod system;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use confine::{accompanied, prepare, probe, probe_tools, trial};
pub use grants::{Fence, Grants, refusal};
pub use level::{Layer, Level, Reached, layer};
pub use limits::UNWRITTEN_BYTES;
pub use system::{libraries, programs};

use level::Tried;

/// Memory of a runner unless something else is said.
const RUNNER_MEMORY_BYTES: u64 = 512 << 20;
/// Descriptors of a runner: its pipes, and files while it reads and writes them.
const RUNNER_OPEN_FILES: u64 = 256;
/// Threads of a runner.
const RUNNER_THREADS: u64 = 64;
/// One file of a runner. How many it writes, only the disk limits: it wants a quota or a file system
/// of its own for its grant where that matters. Tools leave some of the disk free.
const RUNNER_FILE_BYTES: u64 = 1 << 30;
/// `PR_SET_MDWE` and its only flag: memory that was written cannot become code. Linux 6.3.
const SET_MDWE: i32 = 65;
const REFUSE_EXEC_GAIN: libc::c_ulong = 1;

/// Which kind of process is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Maps a plugin and talks to the host over descriptors it has.
    Runner,
    /// A program that starts others.
    Tool,
}

/// What of the network can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing.
    #[default]
    None,
    /// What the host reaches by internet protocols; for tools only. Local sockets stay shut.
    Host,
}

/// What a confined process is granted. Everything absent is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// Runner or tool.
    pub profile: Profile,
    /// Files and directories that can be read, with all below them. Each must exist, and no link be in
    /// its path, here as below.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Files and directories that can be read and changed. Each must exist.
    #[serde(default)]
    pub write: Vec<PathBuf>,
    /// Programs that can be run, or directories with such; for tools only. Each must exist. See
    /// [`programs`] for those of the system, which are not even read without it.
    ///
    /// It keeps a tool from programs, not from code: whoever runs anything at all may run the loader,
    /// which maps what the tool can read, an interpreter, or a file in memory. What such code can do
    /// is bound all the same: files, network and limits are those of the whole tool.
    #[serde(default)]
    pub exec: Vec<PathBuf>,
    /// For tools only.
    #[serde(default)]
    pub network: Network,
    /// Memory that can be written, of each process.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Processor time of each process over its whole life; then the kernel ends it.
    #[serde(default)]
    pub cpu_seconds: Option<u64>,
    /// Open descriptors of each process.
    #[serde(default)]
    pub open_files: Option<u64>,
    /// Largest file that is written; also counts for a log that stdout or stderr leads to.
    #[serde(default)]
    pub file_bytes: Option<u64>,
    /// Processes and threads together; the kernel exempts tools of root.
    #[serde(default)]
    pub processes: Option<u64>,
    /// [`confine`] starts a program that is killed when the thread that started it ends.
    #[serde(default)]
    pub die_with_parent: bool,
    /// [`confine`] starts nothing below this level. [`enter`] leaves that to its caller.
    #[serde(default = "partial")]
    pub require: Level,
}

fn partial() -> Level {
    Level::Partial
}

impl Confinement {
    /// A runner that may read its plugin's file, has memory and threads, and nothing else.
    #[must_use]
    pub fn runner(plugin: Option<&Path>) -> Self {
        Self {
            profile: Profile::Runner,
            read: plugin.into_iter().map(Path::to_owned).collect(),
            memory_bytes: Some(RUNNER_MEMORY_BYTES),
            open_files: Some(RUNNER_OPEN_FILES),
            file_bytes: Some(RUNNER_FILE_BYTES),
            processes: Some(RUNNER_THREADS),
            ..Self::tool()
        }
    }

    /// A tool that may read the system's libraries, and nothing else: not even run a program.
    #[must_use]
    pub fn tool() -> Self {
        Self {
            profile: Profile::Tool,
            read: Vec::new(),
            write: Vec::new(),
            exec: Vec::new(),
            network: Network::None,
            memory_bytes: None,
            cpu_seconds: None,
            open_files: None,
            file_bytes: None,
            processes: None,
            die_with_parent: false,
            require: partial(),
        }
    }
}

/// Why a process could not be confined. It may be half confined then and must end.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Confinement reaches one thread only, so there must be no other.
    #[error("a process with {0} threads cannot be confined")]
    Threads(u64),
    /// Something that was granted cannot be found.
    #[error("the granted path {} cannot be opened: {source}", path.display())]
    Path {
        /// What was granted.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something that was granted is the daemon's own, or holds that.
    #[error("the granted path {} cannot be opened: it reaches what Kairos keeps for itself", .0.display())]
    Kept(PathBuf),
    /// The grants contradict the profile.
    #[error("a runner is granted {0}, which only tools can have")]
    Grant(&'static str),
    /// The system calls' filter could not be built.
    #[error("the filter of system calls cannot be built: {0}")]
    Filter(String),
    /// What was handed over is no confinement.
    #[error("the confinement that was handed over cannot be read: {0}")]
    Wanted(String),
    /// The process that was to look could not be started or said nothing.
    #[error("the sandbox of this machine cannot be probed: {0}")]
    Probe(String),
    /// The process tree's `/proc` cannot be read.
    #[error("/proc cannot be read: {0}")]
    Proc(io::Error),
    /// Too little was reached.
    #[error("the sandbox is {reached}, and {wanted} is demanded")]
    TooWeak {
        /// What there is.
        reached: Reached,
        /// What was wanted.
        wanted: Level,
    },
}

impl SandboxError {
    fn path(path: &Path, source: io::Error) -> Self {
        Self::Path { path: path.to_owned(), source }
    }
}

/// Confines this process for good. Call it with one thread, before any foreign code is mapped;
/// libraries that are loaded already stay usable, others must be granted.
///
/// # Errors
/// Nothing that is missing in the kernel, which is told in the answer: only a process, a grant or
/// a filter that is wrong.
pub fn enter(wanted: &Confinement) -> Result<Reached, SandboxError> {
    let threads = threads().map_err(SandboxError::Proc)?;
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    check(wanted)?;
    // Opened first: once the doors are shut that is no longer possible.
    let rules = landlock::Rules::open(wanted)?;

    let mut tried = Tried::default();
    let no_new_privs = rustix::thread::set_no_new_privs(true).map_err(|error| error.to_string());
    tried.put(layer::NO_NEW_PRIVS, no_new_privs);
    let mut limited = limits::bind_root(wanted);
    let own_user = namespaces::enter(wanted.network, &mut tried);
    let metadata = if wanted.profile == Profile::Tool {
        let mounted = mounts::enter(wanted)?;
        tried.put(layer::METADATA, mounted)
    } else {
        true
    };
    let filters = seccomp::Filters::build(wanted, metadata)?;
    limited = limited.and(limits::enter(wanted));
    if own_user {
        limited = limited.and(limits::processes(wanted));
    }
    tried.put(layer::LIMITS, limited);
    tried.put(layer::CAPABILITIES, namespaces::drop_capabilities());
    if wanted.profile == Profile::Runner {
        let refused = raw::prctl(SET_MDWE, REFUSE_EXEC_GAIN).map_err(|error| format!("prctl: {error}"));
        tried.put(layer::EXEC_GAIN, refused);
        tried.put(layer::NOT_DUMPABLE, not_dumpable().map_err(|error| format!("prctl: {error}")));
    }
    rules.enforce(&mut tried);
    tried.put(layer::SYSTEM_CALLS, filters.install());
    Ok(tried.reached())
}

/// Keeps other processes of the same user from attaching to this one and from reading its memory
/// and environment. Its own files below `/proc/self` are root's from then on.
///
/// # Errors
/// The kernel's.
pub fn not_dumpable() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from)
}

fn check(wanted: &Confinement) -> Result<(), SandboxError> {
    match wanted.profile {
        Profile::Runner if !wanted.exec.is_empty() => Err(SandboxError::Grant("programs")),
        Profile::Runner if wanted.network != Network::None => Err(SandboxError::Grant("network")),
        _ => Ok(()),
    }
}

/// Threads of this process.
fn threads() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    // A directory has a link for itself, one in its parent, and one for each directory in it.
    Ok(std::fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_several_threads_is_refused_and_stays_as_it_was() {
        let (send, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        let refused = enter(&Confinement::runner(None));
        assert!(matches!(refused, Err(SandboxError::Threads(count)) if count > 1), "{refused:?}");
        drop(send);
        assert!(thread.join().unwrap().is_err());
        std::net::TcpListener::bind("127.0.0.1:0").expect("nothing is confined");
    }

    #[test]
    fn a_runner_gets_neither_programs_nor_the_network() {
        let runner = Confinement::runner(None);
        assert!(check(&runner).is_ok());
        let exec = Confinement { exec: vec!["/bin/sh".into()], ..runner.clone() };
        assert!(matches!(check(&exec), Err(SandboxError::Grant("programs"))));
        let network = Confinement { network: Network::Host, ..runner };
        assert!(matches!(check(&network), Err(SandboxError::Grant("network"))));
    }

    #[test]
    fn what_was_granted_by_name_must_exist() {
        let gone = Confinement { read: vec!["/no/such/plugin.so".into()], ..Confinement::runner(None) };
        let error = landlock::Rules::open(&gone).err().unwrap().to_string();
        assert!(error.contains("/no/such/plugin.so"), "{error}");
    }

    #[test]
    fn a_confinement_is_read_back_as_it_was_written_and_absent_grants_are_none() {
        let wanted =
            Confinement { write: vec!["/tmp/x".into()], ..Confinement::runner(Some(Path::new("/a.so"))) };
        let text = serde_json::to_string(&wanted).unwrap();
        assert_eq!(serde_json::from_str::<Confinement>(&text).unwrap(), wanted);
        let least: Confinement = serde_json::from_str(r#"{"profile": "tool"}"#).unwrap();
        assert_eq!(least, Confinement::tool());
        assert!(serde_json::from_str::<Confinement>(r#"{"profile": "tool", "raed": []}"#).is_err());
    }
}
