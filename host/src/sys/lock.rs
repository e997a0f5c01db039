//! One owner for a root: a kernel lock on the pid file. The lock is the truth, the text inside only
//! says who holds it. The file is never unlinked, or two owners could hold two files of one name.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::files::{self, FileError};

/// Who holds a lock, as it wrote itself into the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// What it does: `daemon`, or the command's name; empty in a file of the reference.
    pub role: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role.as_str() {
            "" => write!(f, "process {}", self.pid),
            role => write!(f, "process {} ({role})", self.pid),
        }
    }
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("{} is held by {}", path.display(), holder.as_ref().map_or("another process".to_owned(), Holder::to_string))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who, unless it has not written itself down yet.
        holder: Option<Holder>,
    },
    /// The file or its directory cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A held lock; ends with this value or with the process, whichever comes first.
#[derive(Debug)]
pub struct RootLock {
    file: File,
    path: PathBuf,
    /// The same owner's second name for the root.
    also: Option<Box<RootLock>>,
}

impl RootLock {
    /// Takes the lock, waiting at most `wait` for a present holder. The directory is made if missing.
    /// Writes pid and role into the file.
    ///
    /// # Errors
    /// [`LockError::Held`] with the holder when it did not let go in time.
    pub fn acquire(path: &Path, role: &str, wait: Duration) -> Result<Self, LockError> {
        if let Some(dir) = path.parent() {
            files::create_dirs(dir)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .map_err(|error| FileError::new("open", path, error))?;
        let file = match file.try_lock() {
            Ok(()) => file,
            Err(TryLockError::WouldBlock) => {
                wait_for(file, wait).map_err(|error| FileError::new("lock", path, error))?.ok_or_else(
                    || LockError::Held { path: path.to_owned(), holder: read_holder(path).ok().flatten() },
                )?
            }
            Err(TryLockError::Error(error)) => return Err(FileError::new("lock", path, error).into()),
        };
        let mut lock = Self { file, path: path.to_owned(), also: None };
        lock.write(&format!("{}\n{role}\n", std::process::id()))
            .map_err(|error| FileError::new("write", path, error))?;
        Ok(lock)
    }

    /// Takes the lock at `path` too, unless that is this very file under another name.
    ///
    /// # Errors
    /// As [`RootLock::acquire`]; this lock is let go then.
    pub fn and(mut self, path: &Path, role: &str, wait: Duration) -> Result<Self, LockError> {
        let own = self.file.metadata().map_err(|error| FileError::new("look at", &self.path, error))?;
        let same = path.metadata().is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino()));
        if !same {
            self.also = Some(Box::new(Self::acquire(path, role, wait)?));
        }
        Ok(self)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(text.as_bytes())
    }
}

impl Drop for RootLock {
    fn drop(&mut self) {
        // Emptied first, so that nobody reads the pid of a process that let go. If that fails the
        // text is stale, which is harmless: the lock itself tells the truth and ends here.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

/// Who holds the lock at `path` now; `None` when it is free or missing.
///
/// # Errors
/// Whatever opening or locking the file says.
pub fn holder(path: &Path) -> Result<Option<Option<Holder>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::new("open", path, error)),
    };
    // A shared lock, so that two who look at the same time do not see each other as holders.
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            read_holder(path).map(Some).map_err(|error| FileError::new("read", path, error))
        }
        Err(TryLockError::Error(error)) => Err(FileError::new("lock", path, error)),
    }
}

/// Waits on a thread of its own in the kernel's queue, so there is no polling.
/// A thread that is given up lets go of the lock the moment it gets it.
fn wait_for(file: File, wait: Duration) -> io::Result<Option<File>> {
    if wait.is_zero() {
        return Ok(None);
    }
    // No capacity: the lock is handed over, or its sender learns that nobody wants it any more.
    let (give, take) = mpsc::sync_channel(0);
    thread::Builder::new().name("kairos-lock".to_owned()).spawn(move || {
        let locked = file.lock().map(|()| file);
        // Nobody waits any more: the error carries the file back and drops it here.
        let _ = give.send(locked);
    })?;
    match take.recv_timeout(wait) {
        Ok(locked) => locked.map(Some),
        Err(_) => Ok(None),
    }
}

fn read_holder(path: &Path) -> io::Result<Option<Holder>> {
    let mut text = Vec::new();
    File::open(path)?.take(4096).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    let Some(pid) = lines.next().and_then(|line| line.trim().parse().ok()) else { return Ok(None) };
    Ok(Some(Holder { pid, role: lines.next().unwrap_or("").trim().to_owned() }))
}

/// What kind of file system something lies on, as far as durability and locks are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystemKind {
    /// Locks and syncs mean what they say, as far as one can know.
    Local,
    /// Gone after a power cut.
    Memory,
    /// Locks, memory maps or syncs are not to be trusted: no store there.
    Network,
}

/// A file system and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// What it means for us.
    pub kind: FileSystemKind,
    /// A name for people.
    pub name: &'static str,
}

/// Magic numbers of statfs(2). FUSE stands with the network: what is behind it cannot be known.
const MAGIC: &[(u32, FileSystemKind, &str)] = &[
    (0x6969, FileSystemKind::Network, "nfs"),
    (0x517B, FileSystemKind::Network, "smb"),
    (0xFF53_4D42, FileSystemKind::Network, "cifs"),
    (0xFE53_4D42, FileSystemKind::Network, "smb2"),
    (0x0102_1997, FileSystemKind::Network, "9p"),
    (0x6573_5546, FileSystemKind::Network, "fuse"),
    (0x00C3_6400, FileSystemKind::Network, "ceph"),
    (0x5346_414F, FileSystemKind::Network, "afs"),
    (0x7375_7245, FileSystemKind::Network, "coda"),
    (0x564C, FileSystemKind::Network, "ncp"),
    (0x0BD0_0BD0, FileSystemKind::Network, "lustre"),
    (0x0116_1970, FileSystemKind::Network, "gfs2"),
    (0x7461_636F, FileSystemKind::Network, "ocfs2"),
    (0x4750_4653, FileSystemKind::Network, "gpfs"),
    (0x1983_0326, FileSystemKind::Network, "beegfs"),
    (0x786F_4256, FileSystemKind::Network, "vboxsf"),
    (0xBACB_ACBC, FileSystemKind::Network, "vmhgfs"),
    (0x7C7C_6673, FileSystemKind::Network, "prlfs"),
    (0x0102_1994, FileSystemKind::Memory, "tmpfs"),
    (0x8584_58F6, FileSystemKind::Memory, "ramfs"),
    (0xEF53, FileSystemKind::Local, "ext"),
    (0x5846_5342, FileSystemKind::Local, "xfs"),
    (0x9123_683E, FileSystemKind::Local, "btrfs"),
    (0x2FC1_2FC1, FileSystemKind::Local, "zfs"),
    (0xF2F5_2010, FileSystemKind::Local, "f2fs"),
    (0xCA45_1A4E, FileSystemKind::Local, "bcachefs"),
    (0x794C_7630, FileSystemKind::Local, "overlay"),
];

/// The file system of `path`, or of the nearest directory above it that exists.
///
/// # Errors
/// Whatever the system says about that path.
pub fn file_system(path: &Path) -> Result<FileSystem, FileError> {
    for step in path.ancestors() {
        let step = if step.as_os_str().is_empty() { Path::new(".") } else { step };
        match rustix::fs::statfs(step) {
            // Truncated on purpose: the kernel's type is wider than the magic numbers are.
            Ok(stat) => return Ok(by_magic(stat.f_type as u32)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(FileError::new("look at", step, error.into())),
        }
    }
    Err(FileError::new("look at", path, io::ErrorKind::NotFound.into()))
}

fn by_magic(magic: u32) -> FileSystem {
    MAGIC.iter().find(|(known, ..)| *known == magic).map_or(
        FileSystem { kind: FileSystemKind::Local, name: "unknown" },
        |&(_, kind, name)| FileSystem { kind, name },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn second_owner_learns_pid_and_role_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/daemon.pid");
        let first = RootLock::acquire(&path, "daemon", Duration::ZERO).unwrap();
        let LockError::Held { holder: Some(seen), .. } =
            RootLock::acquire(&path, "prune", Duration::ZERO).unwrap_err()
        else {
            panic!("it is held")
        };
        assert_eq!(seen, Holder { pid: std::process::id(), role: "daemon".into() });
        assert_eq!(holder(&path).unwrap(), Some(Some(seen)));
        drop(first);
        assert!(path.exists(), "never unlinked");
        assert_eq!(holder(&path).unwrap(), None);
        RootLock::acquire(&path, "prune", Duration::ZERO).unwrap();
    }

    #[test]
    fn waiter_gets_the_lock_when_the_holder_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.pid");
        let first = RootLock::acquire(&path, "prune", Duration::ZERO).unwrap();
        let waiter = thread::spawn({
            let path = path.clone();
            move || RootLock::acquire(&path, "daemon", LONG).map(drop)
        });
        drop(first);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn waiter_that_gave_up_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.pid");
        let first = RootLock::acquire(&path, "a", Duration::ZERO).unwrap();
        assert!(RootLock::acquire(&path, "b", Duration::from_millis(5)).is_err());
        drop(first);
        // The given-up thread may hold it for a moment; whoever waits gets it after that.
        RootLock::acquire(&path, "c", LONG).unwrap();
    }

    #[test]
    fn pid_file_of_the_reference_and_garbage_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.pid");
        for (text, expect) in
            [("4711", Some(Holder { pid: 4711, role: String::new() })), ("what", None), ("", None)]
        {
            files::replace(&path, text.as_bytes(), 0o644).unwrap();
            assert_eq!(read_holder(&path).unwrap(), expect);
            assert_eq!(holder(&path).unwrap(), None, "nobody holds it, whatever it says");
        }
    }

    #[test]
    fn network_file_systems_are_known_by_their_numbers() {
        for name in ["nfs", "cifs", "9p", "fuse"] {
            let (magic, ..) = MAGIC.iter().find(|(_, _, known)| *known == name).unwrap();
            assert_eq!(by_magic(*magic), FileSystem { kind: FileSystemKind::Network, name });
        }
        assert_eq!(by_magic(0xEF53).kind, FileSystemKind::Local);
        assert_eq!(by_magic(7).name, "unknown");
    }

    #[test]
    fn file_system_of_a_path_that_is_not_there_yet_is_that_of_its_nearest_directory() {
        let dir = tempfile::tempdir().unwrap();
        let here = file_system(dir.path()).unwrap();
        assert_eq!(file_system(&dir.path().join("not/yet")).unwrap(), here);
        assert_eq!(file_system(Path::new("/proc")).unwrap().kind, FileSystemKind::Local);
    }
}
