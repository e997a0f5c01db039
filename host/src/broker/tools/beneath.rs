//! Opening files below a directory and nowhere else, whatever names and links say.
//!
//! Names are resolved here first, link by link, to a path without links; that path is then
//! opened by the kernel with links forbidden. A link that is swapped in between is an error,
//! never a way out.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Most links followed in one path, as in the kernel.
const LINKS_MAX: usize = 40;
/// Longest path, in bytes, as in the kernel.
const PATH_MAX: usize = 4096;

/// Why a path does not lead to a place below the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No path at all, or a NUL in it, or too long.
    #[error("not a usable path")]
    Unusable,
    /// It starts at the root of the file system.
    #[error("absolute paths are not allowed; give a path below the workspace")]
    Absolute,
    /// It holds `..`.
    #[error("`..` is not allowed in a path")]
    Parent,
    /// A link in it leads outside.
    #[error("the path leaves the workspace through a symbolic link")]
    Escapes,
    /// Links lead in circles.
    #[error("too many symbolic links")]
    Loop,
    /// A part that should be a directory is none.
    #[error("a part of the path is not a directory")]
    NotADirectory,
    /// The system says no.
    #[error("{0}")]
    System(Errno),
}

impl From<Errno> for PathError {
    fn from(errno: Errno) -> Self {
        match errno {
            // A link was swapped in after the names were resolved.
            Errno::LOOP | Errno::XDEV => Self::Escapes,
            Errno::NOTDIR => Self::NotADirectory,
            Errno::NAMETOOLONG | Errno::INVAL => Self::Unusable,
            other => Self::System(other),
        }
    }
}

/// A directory below which paths are opened.
#[derive(Debug)]
pub struct Beneath {
    dir: OwnedFd,
}

impl Beneath {
    /// # Errors
    /// When it cannot be opened.
    pub fn open(dir: &Path) -> rustix::io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self { dir: rustix::fs::open(dir, flags, Mode::empty())? })
    }

    /// The path without links, `.` and doubled slashes that `path` means. The last parts need not exist.
    ///
    /// # Errors
    /// See [`PathError`].
    pub fn resolve(&self, path: &str) -> Result<PathBuf, PathError> {
        if path.is_empty() || path.len() > PATH_MAX || path.contains('\0') {
            return Err(PathError::Unusable);
        }
        let mut todo = VecDeque::new();
        for part in Path::new(path).components() {
            match part {
                Component::Normal(name) => todo.push_back(name.to_owned()),
                Component::CurDir => {}
                Component::ParentDir => return Err(PathError::Parent),
                Component::RootDir | Component::Prefix(_) => return Err(PathError::Absolute),
            }
        }
        self.walk(todo)
    }

    fn walk(&self, mut todo: VecDeque<OsString>) -> Result<PathBuf, PathError> {
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                // Only the text of a link can hold one.
                if !done.pop() {
                    return Err(PathError::Escapes);
                }
                continue;
            }
            let here = done.join(&name);
            let stat = match self.stat(&here) {
                Ok(stat) => stat,
                Err(PathError::System(Errno::NOENT)) => {
                    done = here;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                done = here;
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(PathError::Loop);
            }
            self.follow(&done, &name, &mut todo)?;
        }
        if done.as_os_str().is_empty() { Err(PathError::Unusable) } else { Ok(done) }
    }

    /// Puts the parts of a link's text in front of what is still to do.
    fn follow(&self, dir: &Path, name: &OsStr, todo: &mut VecDeque<OsString>) -> Result<(), PathError> {
        let parent = self.directory(dir)?;
        let text = rustix::fs::readlinkat(&parent, name, Vec::new())?;
        let text = PathBuf::from(OsString::from_vec(text.into_bytes()));
        let mut parts = Vec::new();
        for part in text.components() {
            match part {
                Component::Normal(name) => parts.push(name.to_owned()),
                Component::CurDir => {}
                Component::ParentDir => parts.push("..".into()),
                Component::RootDir | Component::Prefix(_) => return Err(PathError::Escapes),
            }
        }
        parts.into_iter().rev().for_each(|part| todo.push_front(part));
        Ok(())
    }

    fn stat(&self, path: &Path) -> Result<rustix::fs::Stat, PathError> {
        let (dir, name) = split(path)?;
        let parent = self.directory(dir)?;
        Ok(rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens a directory; `path` must be one that [`Beneath::resolve`] gave, or a start of it.
    ///
    /// # Errors
    /// Also when a link has taken a part's place meanwhile.
    pub fn directory(&self, path: &Path) -> Result<OwnedFd, PathError> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens a regular file for reading, likewise; `None` when nothing has that name.
    ///
    /// # Errors
    /// Also for devices, pipes, sockets and directories.
    pub fn file(&self, path: &Path) -> Result<Option<File>, PathError> {
        // NONBLOCK: opening a pipe must not wait for its other end.
        match self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(file) => Ok(Some(file.into())),
            Err(PathError::System(Errno::NOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if path.as_os_str().is_empty() {
            return Ok(rustix::fs::openat(&self.dir, ".", flags, Mode::empty())?);
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS | Errno::PERM) => step_by_step(self.dir.as_fd(), path, flags),
            Err(errno) => Err(errno.into()),
            Ok(file) => Ok(file),
        }
    }
}

/// For kernels and sandboxes without `openat2`: part by part, no part may be a link.
fn step_by_step(top: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
    let (dir, name) = split(path)?;
    let mut held: Option<OwnedFd> = None;
    for part in dir.components() {
        let Component::Normal(part) = part else { return Err(PathError::Escapes) };
        let from = held.as_ref().map_or(top, AsFd::as_fd);
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        held = Some(rustix::fs::openat(from, part, step, Mode::empty())?);
    }
    let from = held.as_ref().map_or(top, AsFd::as_fd);
    Ok(rustix::fs::openat(from, name, flags, Mode::empty())?)
}

/// Directory part and name of a path below the top.
///
/// # Errors
/// [`PathError::Unusable`] when it has no name.
pub fn split(path: &Path) -> Result<(&Path, &OsStr), PathError> {
    let name = path.file_name().ok_or(PathError::Unusable)?;
    Ok((path.parent().unwrap_or(Path::new("")), name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    fn world() -> (tempfile::TempDir, Beneath) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("work");
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::copy("/proc/self/comm", dir.path().join("outside/secret")).unwrap();
        std::fs::copy("/proc/self/comm", top.join("a/file")).unwrap();
        let links = [
            ("a/in", "file"),
            ("a/b/up", "../file"),
            ("dir", "a/./b/.."),
            ("abs", "/etc/passwd"),
            ("out", "../outside/secret"),
            ("a/far", "../../outside"),
            ("self", "self"),
            ("chain", "dir/in"),
            ("nowhere", "not/there"),
            ("proc", "/proc/self/root"),
        ];
        for (name, text) in links {
            symlink(text, top.join(name)).unwrap();
        }
        let beneath = Beneath::open(&top).unwrap();
        (dir, beneath)
    }

    #[test]
    fn names_and_inner_links_lead_to_one_plain_path() {
        let (_dir, beneath) = world();
        let cases = [
            ("a/file", "a/file"),
            ("./a//file", "a/file"),
            ("a/in", "a/file"),
            ("a/b/up", "a/file"),
            ("dir/file", "a/file"),
            ("chain", "a/file"),
            ("nowhere", "not/there"),
            ("new/deep/file", "new/deep/file"),
        ];
        for (path, plain) in cases {
            assert_eq!(beneath.resolve(path), Ok(plain.into()), "{path}");
        }
        let mut text = String::new();
        beneath.file(Path::new("a/file")).unwrap().unwrap().read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        assert!(beneath.file(Path::new("not/there")).unwrap().is_none());
    }

    #[test]
    fn every_way_out_is_closed() {
        let (_dir, beneath) = world();
        let cases = [
            ("", PathError::Unusable),
            (".", PathError::Unusable),
            ("a\0b", PathError::Unusable),
            ("/etc/passwd", PathError::Absolute),
            ("../outside/secret", PathError::Parent),
            ("a/../../outside/secret", PathError::Parent),
            ("abs", PathError::Escapes),
            ("out", PathError::Escapes),
            ("a/far/secret", PathError::Escapes),
            ("proc/etc/passwd", PathError::Escapes),
            ("self", PathError::Loop),
            ("a/file/x", PathError::NotADirectory),
        ];
        for (path, error) in cases {
            assert_eq!(beneath.resolve(path), Err(error), "{path:?}");
        }
        assert_eq!(beneath.resolve(&"x/".repeat(3000)), Err(PathError::Unusable));
    }

    #[test]
    fn links_are_refused_at_the_last_moment_with_and_without_the_newer_call() {
        let (_dir, beneath) = world();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for path in ["a/in", "dir/file", "abs", "out", "a/far/secret"] {
            assert!(beneath.open_at(Path::new(path), OFlags::RDONLY).is_err(), "{path}");
            assert!(step_by_step(beneath.dir.as_fd(), Path::new(path), flags).is_err(), "{path}");
        }
        assert!(step_by_step(beneath.dir.as_fd(), Path::new("a/file"), flags).is_ok());
        assert!(step_by_step(beneath.dir.as_fd(), Path::new("a/../a/file"), flags).is_err());
    }

    proptest::proptest! {
        // Each case makes a tree of its own.
        #![proptest_config(proptest::test_runner::Config::with_cases(64))]
        #[test]
        fn no_path_leads_outside(parts in proptest::collection::vec(
            proptest::sample::select(vec![
                "a", "b", "in", "up", "dir", "abs", "out", "far", "self", "chain", "nowhere", "proc", "file",
                "root", "etc", "passwd", "secret", "..", ".", "", "~", "\u{2024}\u{2024}",
            ]), 0..8)) {
            let (dir, beneath) = world();
            let top = dir.path().join("work").canonicalize().unwrap();
            let path = parts.join("/");
            if let Ok(plain) = beneath.resolve(&path) {
                let normal = plain.components().all(|part| matches!(part, Component::Normal(_)));
                proptest::prop_assert!(normal, "{path} -> {plain:?}");
                if let Ok(real) = top.join(&path).canonicalize() {
                    proptest::prop_assert!(real.starts_with(&top), "{path} is {real:?}");
                    proptest::prop_assert_eq!(real, top.join(&plain), "the kernel agrees");
                }
            }
        }
    }
}
