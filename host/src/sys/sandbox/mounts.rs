//! Mounts of a tool's own: all that it sees is read-only, but for what it may change.
//!
//! Landlock guards what is opened, not modes, owners, times and attributes: those are changed by a
//! path, or by a descriptor that opens nothing. On a read-only mount nobody changes them, whoever owns
//! the file. Only for tools: a runner's list of system calls has none that would.
//!
//! What may be changed is cloned while it is as the system has it and laid over itself afterwards, so
//! nothing becomes writable that was not. Nothing here may change what others see.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fcntl_getfl, fstat, open, readlinkat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::UnshareFlags;

use super::raw::{self, Mounted};
use super::{Confinement, SandboxError, landlock};

/// Moves this process there; it wants the new user namespace, or root's privileges. The inner error
/// is of a machine without such mounts, where everything is as it was then.
///
/// # Errors
/// It came half-way. The process must end.
pub(super) fn enter(wanted: &Confinement) -> Result<Result<(), String>, SandboxError> {
    let grants = match shut(&wanted.write) {
        Ok(grants) => grants,
        Err(missing) => return Ok(Err(missing)),
    };
    for grant in grants {
        lay(&grant.tree, &grant.place).map_err(|error| SandboxError::path(&grant.path, error))?;
    }
    return_to_directory();
    take_devices_anew();
    Ok(Ok(()))
}

/// Something that may be changed.
struct Grant {
    path: PathBuf,
    place: OwnedFd,
    /// As it was mounted before, with what is mounted in it; not to be seen anywhere yet.
    tree: OwnedFd,
}

/// Makes everything read-only: what has yet to be laid over that.
fn shut(write: &[PathBuf]) -> Result<Vec<Grant>, String> {
    raw::unshare(UnshareFlags::NEWNS).map_err(|error| format!("unshare: {error}"))?;
    let set = |how| raw::set_mounts(how).map_err(|error| format!("mount_setattr: {error}"));
    // What others mount from now on would come in, and be writable.
    set(Mounted::Private)?;
    let grants: Vec<Grant> = outermost(write).map(|path| grant(path)).collect::<Result<_, _>>()?;
    if let Some(first) = grants.first() {
        // Where somebody watches over mounts, this may be refused: now it is not too late.
        let rehearsed = clone(&first.place).and_then(|tree| lay(&tree, &first.place));
        rehearsed.map_err(|error| format!("move_mount: {error}"))?;
    }
    set(Mounted::ReadOnly)?;
    Ok(grants)
}

/// Without those that lie in others.
fn outermost(paths: &[PathBuf]) -> impl Iterator<Item = &PathBuf> {
    paths.iter().enumerate().filter_map(|(nth, path)| {
        let within = |(other, wider): (usize, &PathBuf)| {
            other != nth && path.starts_with(wider) && (path != wider || other < nth)
        };
        (!paths.iter().enumerate().any(within)).then_some(path)
    })
}

fn grant(path: &Path) -> Result<Grant, String> {
    let open = || -> io::Result<Grant> {
        let place = landlock::open(path, false)?.fd;
        Ok(Grant { path: path.to_owned(), tree: clone(&place)?, place })
    };
    open().map_err(|error| format!("{}: {error}", path.display()))
}

fn clone(place: &OwnedFd) -> io::Result<OwnedFd> {
    let how = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(place, "", how)?)
}

fn lay(tree: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", place, "", how)?)
}

/// The working directory is still the one below what was laid over it. Where it cannot be found
/// again nothing in it is changed by paths that begin there.
fn return_to_directory() {
    let again = || -> io::Result<()> {
        let path = rustix::process::getcwd(Vec::new())?;
        let directory = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let here = open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        if same(&fstat(&here)?, &fstat(&directory)?) {
            rustix::process::fchdir(directory)?;
        }
        Ok(())
    };
    // Nothing is opened by that but what could be opened anyway.
    let _ = again();
}

/// A descriptor keeps the mount that it was opened on. Devices among the input and outputs, like
/// `/dev/null`, are everybody's; a file among them was handed over, to be changed.
fn take_devices_anew() {
    use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
    // One that cannot be had again stays as it is: it is closed, or its name is gone.
    if let Ok(Some(file)) = anew(io::stdin()) {
        let _ = dup2_stdin(file);
    }
    if let Ok(Some(file)) = anew(io::stdout()) {
        let _ = dup2_stdout(file);
    }
    if let Ok(Some(file)) = anew(io::stderr()) {
        let _ = dup2_stderr(file);
    }
}

/// None for what is no device.
fn anew(fd: impl AsFd) -> io::Result<Option<OwnedFd>> {
    use std::os::fd::AsRawFd as _;
    let fd = fd.as_fd();
    let before = fstat(fd)?;
    if FileType::from_raw_mode(before.st_mode) != FileType::CharacterDevice {
        return Ok(None);
    }
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let path = readlinkat(CWD, name, Vec::new())?;
    let how = fcntl_getfl(fd)? & (OFlags::ACCMODE | OFlags::NONBLOCK | OFlags::APPEND);
    let file = open(path, how | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(same(&before, &fstat(&file)?).then_some(file))
}

fn same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
