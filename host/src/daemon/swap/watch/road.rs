//! The way to a directory: every directory and link that a path leads through, each watched for what
//! would make it lead elsewhere, and at its end the directory's own files. One inotify queue is one
//! walk; a way that has changed is walked anew. Reads nothing but names, and changes nothing.
//!
//! ```text
//! /srv/app/current -> releases/42      what is watched, and for what
//! /srv                                 itself: moved, removed
//! /srv/app                             itself, and the name `current` in it: a link
//! /srv/app/releases                    itself, and the name `42` in it: the last directory
//! /srv/app/releases/42                 itself, and its files
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use thiserror::Error;

/// Bytes of events that are read at once; one event is at most 272.
const BUFFER: usize = 4096;
/// Links that one path may lead through, as for the kernel.
const LINKS_MAX: usize = 40;
/// Looks at one path; who changes it faster than that is waited for.
const LOOKS_MAX: usize = 1000;

/// A directory as the kernel knows it, whatever its name: device and inode.
pub(super) type Identity = (u64, u64);

/// Why a directory is not watched.
#[derive(Debug, Error)]
pub enum Unwatched {
    /// It, or something on the way to it, is not there.
    #[error("{} does not exist{}", at.display(), led(via.as_deref()))]
    Absent {
        /// The first that is missing.
        at: PathBuf,
        /// The last link on the way.
        via: Option<PathBuf>,
    },
    /// Something else has its name.
    #[error("{} is not a directory{}", at.display(), led(via.as_deref()))]
    NotADirectory {
        /// What is none.
        at: PathBuf,
        /// The last link on the way.
        via: Option<PathBuf>,
    },
    /// Links lead in a circle.
    #[error("{} leads through more than {LINKS_MAX} links", .0.display())]
    Loop(PathBuf),
    /// The daemon's user may not read or pass it.
    #[error("no permission to read {}", .0.display())]
    NoPermission(PathBuf),
    /// The system has no watch left.
    #[error("{0}")]
    Limit(&'static str),
    /// Anything else.
    #[error("{}: {source}", at.display())]
    Io {
        /// Where.
        at: PathBuf,
        /// What.
        source: io::Error,
    },
}

fn led(via: Option<&Path>) -> String {
    via.map(|link| format!(" ({} leads there)", link.display())).unwrap_or_default()
}

impl Unwatched {
    /// A constant word.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "absent",
            Self::NotADirectory { .. } => "not_a_directory",
            Self::Loop(_) => "symlink_loop",
            Self::NoPermission(_) => "no_permission",
            Self::Limit(_) => "inotify_limit",
            Self::Io { .. } => "io",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "make it, or correct plugins.watch; it is watched as soon as it is there",
            Self::NotADirectory { .. } | Self::Loop(_) => {
                "put a directory there, or a link to one, or correct plugins.watch"
            }
            Self::NoPermission(_) => "give the daemon's user the right to read it",
            Self::Limit(_) => {
                "raise fs.inotify.max_user_instances or max_user_watches with sysctl, or end what holds them; \
                 it is tried again by itself"
            }
            Self::Io { .. } => "see to what it says; it is tried again by itself",
        }
    }

    /// What the system says of a directory.
    pub(super) fn of(at: impl Into<PathBuf>, error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::MFILE) => Self::Limit(
                "no inotify instance is left for the daemon's user (fs.inotify.max_user_instances), or no open \
                 file for the daemon",
            ),
            Some(Errno::NOSPC) => {
                Self::Limit("no inotify watch is left for the daemon's user (fs.inotify.max_user_watches)")
            }
            Some(Errno::ACCESS | Errno::PERM) => Self::NoPermission(at.into()),
            _ => Self::Io { at: at.into(), source: error },
        }
    }
}

/// What one watch is for.
#[derive(Debug, Default)]
struct Mark {
    /// Names in it that the way leads through.
    names: BTreeSet<OsString>,
    /// Its files are wanted.
    files: bool,
}

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// The way may lead elsewhere by now.
    Way,
    /// Events were lost.
    Overflow,
    /// A name in the directory at the end is complete, or has only been begun.
    File {
        /// In that directory.
        name: OsString,
        /// It was made by this, not renamed into place or closed after writing.
        made: bool,
    },
}

/// A way that was walked.
pub(super) struct Road {
    /// None when there is none to be had.
    queue: Option<OwnedFd>,
    marks: BTreeMap<i32, Mark>,
    /// Where it ends: the directory's real path and identity.
    pub end: Result<(PathBuf, Identity), Unwatched>,
}

/// Something with a name, as it was seen.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Directory(Identity),
    Link(PathBuf),
    Other,
    Nothing,
}

impl Road {
    /// Walks to `dir`, an absolute path. Everything is watched before it is looked at, so whatever
    /// changes after it was looked at has an event in the queue.
    pub fn walk(dir: &Path) -> Self {
        let queue = match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
            Ok(queue) => queue,
            Err(error) => {
                return Self {
                    queue: None,
                    marks: BTreeMap::new(),
                    end: Err(Unwatched::of(dir, error.into())),
                };
            }
        };
        let mut walk = Walk { queue: &queue, marks: BTreeMap::new(), looks: 0 };
        let end = walk.to(dir);
        let marks = walk.marks;
        Self { queue: Some(queue), marks, end }
    }

    /// Where signs come from, if from anywhere.
    pub fn queue(&self) -> Option<BorrowedFd<'_>> {
        self.queue.as_ref().map(AsFd::as_fd)
    }

    /// True when what ended the walk may have no event when it is over.
    pub const fn is_blind(&self) -> bool {
        matches!(self.end, Err(Unwatched::Limit(_) | Unwatched::Io { .. }))
    }

    /// The signs that wait, without those that say nothing; empty when none does.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub fn signs(&self) -> io::Result<Vec<Sign>> {
        let Some(queue) = &self.queue else { return Ok(Vec::new()) };
        let mut buffer = [std::mem::MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(queue, &mut buffer);
        let mut signs = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(signs),
                Err(error) => return Err(error.into()),
            };
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            signs.extend(meaning(self.marks.get(&event.wd()), event.events(), name, self.end.is_ok()));
            if reader.is_buffer_empty() {
                return Ok(signs);
            }
        }
    }
}

/// What an event of a mark says. `arrived`: the way has led to a directory.
fn meaning(mark: Option<&Mark>, events: ReadFlags, name: Option<&OsStr>, arrived: bool) -> Vec<Sign> {
    if events.contains(ReadFlags::QUEUE_OVERFLOW) {
        return vec![Sign::Overflow];
    }
    let itself = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED;
    if events.intersects(itself) {
        return vec![Sign::Way];
    }
    let (Some(mark), Some(name)) = (mark, name) else { return Vec::new() };
    let mut signs = Vec::new();
    // A change of rights matters to who could not come through.
    if mark.names.contains(name) && !(arrived && events.contains(ReadFlags::ATTRIB)) {
        signs.push(Sign::Way);
    }
    if mark.files && events.intersects(ReadFlags::CREATE | ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO) {
        signs.push(Sign::File { name: name.to_owned(), made: events.contains(ReadFlags::CREATE) });
    }
    signs
}

struct Walk<'q> {
    queue: &'q OwnedFd,
    marks: BTreeMap<i32, Mark>,
    looks: usize,
}

impl Walk<'_> {
    fn to(&mut self, dir: &Path) -> Result<(PathBuf, Identity), Unwatched> {
        let mut left: VecDeque<OsString> = steps(dir).collect();
        let (mut at, mut links, mut via) = (PathBuf::from("/"), 0, None);
        let mut last: Option<(PathBuf, OsString, Identity)> = None;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                // All links before it are resolved, so the parent is the one of the path.
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let seen = match self.step(&at, &name) {
                Ok(seen) => seen,
                Err(why) => {
                    self.hold_last(last)?;
                    return Err(why);
                }
            };
            match seen {
                Seen::Directory(identity) => {
                    last = Some((std::mem::replace(&mut at, next), name, identity));
                }
                Seen::Link(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Unwatched::Loop(dir.to_owned()));
                    }
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    for step in steps(&target).collect::<Vec<_>>().into_iter().rev() {
                        left.push_front(step);
                    }
                    via = Some(next);
                }
                seen => {
                    self.hold_last(last)?;
                    return Err(match seen {
                        Seen::Other => Unwatched::NotADirectory { at: next, via },
                        _ => Unwatched::Absent { at: next, via },
                    });
                }
            }
        }
        let files = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE;
        let watched = self.add(&at, files | ITSELF, |mark| mark.files = true);
        self.hold_last(last)?;
        match (watched?, look(&at)?) {
            (Added::Yes, Seen::Directory(identity)) => Ok((at, identity)),
            (Added::Yes | Added::Gone, _) => Err(changes(&at)),
            (Added::Forbidden, _) => Err(Unwatched::NoPermission(at)),
        }
    }

    /// One name on the way, watched for what would change it.
    fn step(&mut self, at: &Path, name: &OsStr) -> Result<Seen, Unwatched> {
        let next = at.join(name);
        let mut seen = look(&next);
        loop {
            match &seen {
                // The directory itself says when it goes; its parent may be a busy one.
                Ok(Seen::Directory(_)) => self.add(&next, ITSELF, |_| ())?,
                _ => self.hold(at, name)?,
            };
            let again = look(&next);
            self.looks += 1;
            match (seen, again) {
                (Ok(before), Ok(now)) if before == now => return Ok(now),
                (Err(_), Err(error)) => return Err(error),
                (_, now) if self.looks < LOOKS_MAX => seen = now,
                _ => return Err(changes(&next)),
            }
        }
    }

    /// Who has the last directory open may keep it from saying that it is gone, so its name is
    /// watched, too. Those above it cannot go before it does.
    fn hold_last(&mut self, last: Option<(PathBuf, OsString, Identity)>) -> Result<(), Unwatched> {
        let Some((parent, name, identity)) = last else { return Ok(()) };
        self.hold(&parent, &name)?;
        match look(&parent.join(&name))? {
            Seen::Directory(now) if now == identity => Ok(()),
            _ => Err(changes(&parent.join(name))),
        }
    }

    /// Watches a name in a directory. One that may not be read is seen by the slow look only.
    fn hold(&mut self, dir: &Path, name: &OsStr) -> Result<Added, Unwatched> {
        let names = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB;
        self.add(dir, names | ITSELF, |mark| {
            mark.names.insert(name.to_owned());
        })
    }

    fn add(
        &mut self,
        dir: &Path,
        events: WatchFlags,
        set: impl FnOnce(&mut Mark),
    ) -> Result<Added, Unwatched> {
        let flags = events | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW | WatchFlags::MASK_ADD;
        match inotify::add_watch(self.queue, dir, flags) {
            Ok(wd) => {
                set(self.marks.entry(wd).or_default());
                Ok(Added::Yes)
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Added::Gone),
            Err(Errno::ACCESS | Errno::PERM) => Ok(Added::Forbidden),
            Err(error) => Err(Unwatched::of(dir, error.into())),
        }
    }
}

/// What happens to a directory itself.
const ITSELF: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);

enum Added {
    Yes,
    Gone,
    Forbidden,
}

/// Somebody was faster; it is walked again soon, or at the next event.
fn changes(at: &Path) -> Unwatched {
    Unwatched::Io { at: at.to_owned(), source: io::Error::other("it changes while it is looked at") }
}

/// The names of a path; `..` is one.
fn steps(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|step| match step {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn look(path: &Path) -> Result<Seen, Unwatched> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(Seen::Nothing),
        _ => Err(Unwatched::of(path, error)),
    };
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => Ok(Seen::Directory((meta.dev(), meta.ino()))),
        Ok(meta) if meta.is_symlink() => path.read_link().map(Seen::Link).or_else(failed),
        Ok(_) => Ok(Seen::Other),
        Err(error) => failed(error),
    }
}

#[cfg(test)]
#[path = "road_tests.rs"]
mod tests;
