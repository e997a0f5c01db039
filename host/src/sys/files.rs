//! Durable file helpers: a file is replaced whole or not at all, a directory entry is synced before
//! anybody relies on it, and bytes that cannot be read are kept aside, never destroyed.
//!
//! Nothing here swallows a failure: every error names the file, and a full disk is told apart by
//! its kind, never by its text.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Starts the name of every temporary file made here, so that leftovers of a crash can be told.
const TEMP_PREFIX: &str = ".kairos-tmp-";

/// Readable by the owner only: state, tokens, anything a runner must not see.
pub const PRIVATE: u32 = 0o600;
/// Readable by everybody: what a person edits.
pub const SHARED: u32 = 0o644;

/// What went wrong with which file, in groups that callers treat differently.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The disk or the quota is full: refuse new work, try again later.
    #[error("cannot {action} {}: no space left", path.display())]
    Full {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The place is read-only or belongs to somebody else.
    #[error("cannot {action} {}: {source}", path.display())]
    Refused {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is larger than anything that is read here.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// Anything else.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl FileError {
    /// Sorts the system's answer into its group.
    #[must_use]
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full { action, path, source },
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                Self::Refused { action, path, source }
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// True when the disk or the quota is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    /// The file in question.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Full { path, .. }
            | Self::Refused { path, .. }
            | Self::TooLarge { path, .. }
            | Self::Io { path, .. } => path,
        }
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, FileError>;

fn at<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T> {
    result.map_err(|source| FileError::new(action, path, source))
}

/// What a replaced file has survived when the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Content and name are on disk: survives a power cut.
    Durable,
    /// Readers see the old or the new content, never a mixture; a power cut may bring back the old.
    /// For what is written often and worth little, a heartbeat for example.
    Visible,
}

/// Replaces `path` whole by `bytes` with that mode, durably. The directory must exist.
///
/// # Errors
/// The former file is untouched unless the very last step, the sync of the directory, failed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    replace_with(path, bytes, mode, Durability::Durable)
}

/// As [`replace`], with a chosen durability.
///
/// # Errors
/// As [`replace`].
pub fn replace_with(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> Result<()> {
    let dir = parent(path);
    let mut temp = at(
        "create a file beside",
        path,
        tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(dir),
    )?;
    at("write", path, temp.write_all(bytes))?;
    // The creation mode went through the umask; this one is exact.
    at("set the mode of", path, temp.as_file().set_permissions(Permissions::from_mode(mode)))?;
    if durability == Durability::Durable {
        at("sync", path, temp.as_file().sync_all())?;
    }
    temp.persist(path).map_err(|error| FileError::new("replace", path, error.error))?;
    if durability == Durability::Durable {
        sync_dir(dir)?;
    }
    Ok(())
}

/// Replaces a file that a person owns: its mode is kept, and a link stays a link to the new content.
///
/// # Errors
/// As [`replace`].
pub fn replace_keeping(path: &Path, bytes: &[u8]) -> Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&target).map_or(SHARED, |meta| meta.permissions().mode() & 0o7777);
    replace(&target, bytes, mode)
}

/// Creates `path` with that content, durably, if nothing has that name.
///
/// # Errors
/// An [`FileError::Io`] of kind `AlreadyExists` when something has that name.
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let dir = parent(path);
    let mut temp =
        at("create a file beside", path, tempfile::Builder::new().prefix(TEMP_PREFIX).tempfile_in(dir))?;
    at("write", path, temp.write_all(bytes))?;
    at("set the mode of", path, temp.as_file().set_permissions(Permissions::from_mode(mode)))?;
    at("sync", path, temp.as_file().sync_all())?;
    temp.persist_noclobber(path).map_err(|error| FileError::new("create", path, error.error))?;
    sync_dir(dir)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Whatever opening or syncing it says.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let handle = at("open", dir, File::open(dir))?;
    at("sync", dir, handle.sync_all())
}

/// Creates a directory and what is missing above it, mode 0700, each entry made durable.
/// An existing directory keeps its mode.
///
/// # Errors
/// Also when something that is no directory has one of the names.
pub fn create_dirs(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = parent(dir);
    create_dirs(above)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => sync_dir(above),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(FileError::new("create directory", dir, error)),
    }
}

/// Syncs `dir` and the directories above it up to and with `top`: once per process start, so that a
/// tree made by an earlier process that died is durable too.
///
/// # Errors
/// Whatever opening or syncing one of them says.
pub fn sync_dir_chain(dir: &Path, top: &Path) -> Result<()> {
    for step in dir.ancestors() {
        sync_dir(if step.as_os_str().is_empty() { Path::new(".") } else { step })?;
        if step == top {
            break;
        }
    }
    Ok(())
}

/// The whole file, or `None` when nothing has that name.
///
/// # Errors
/// [`FileError::TooLarge`] above `limit` bytes, found without reading more than that.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::new("read", path, error)),
    };
    let meta = at("read", path, file.metadata())?;
    if meta.is_dir() {
        return Err(FileError::new("read", path, ErrorKind::IsADirectory.into()));
    }
    let expected = usize::try_from(meta.len().min(limit)).unwrap_or(0);
    let mut bytes = Vec::with_capacity(expected + 1);
    at("read", path, file.take(limit + 1).read_to_end(&mut bytes))?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(bytes))
}

/// Moves a damaged file out of the way, to the first free `NAME.corrupt-N` beside it, durably.
/// Gives the new name.
///
/// # Errors
/// The file stays where it was if it cannot be moved.
pub fn set_aside(path: &Path) -> Result<PathBuf> {
    // Linked, not renamed: a link refuses a name that is taken, so no earlier bytes are lost.
    let kept = first_free(path, "corrupt", |name| fs::hard_link(path, name))?;
    at("remove", path, fs::remove_file(path))?;
    sync_dir(parent(path))?;
    Ok(kept)
}

/// Cuts everything from `offset` on off a file, after a durable copy of it to `NAME.cut-N`.
/// Gives that name, or `None` when there was nothing to cut.
///
/// # Errors
/// The file is untouched unless the copy is durable.
pub fn cut_tail_aside(path: &Path, offset: u64) -> Result<Option<PathBuf>> {
    let mut file = at("open", path, OpenOptions::new().read(true).write(true).open(path))?;
    at("read", path, file.seek(SeekFrom::Start(offset)))?;
    let mut tail = Vec::new();
    at("read", path, file.read_to_end(&mut tail))?;
    if tail.is_empty() {
        return Ok(None);
    }
    let kept = keep_copy(path, "cut", &tail)?;
    at("cut", path, file.set_len(offset))?;
    at("sync", path, file.sync_all())?;
    Ok(Some(kept))
}

/// Writes these bytes, of a file that is about to be healed, to the first free `NAME.WORD-N` beside
/// it, durably. Gives the new name.
///
/// # Errors
/// The file itself is not touched.
pub fn keep_copy(path: &Path, word: &str, bytes: &[u8]) -> Result<PathBuf> {
    let kept = first_free(path, word, |name| {
        let mut copy = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(name)?;
        let written = copy.write_all(bytes).and_then(|()| copy.sync_all());
        if written.is_err() {
            // Half a copy is no evidence; that it cannot be removed changes nothing.
            let _ = fs::remove_file(name);
        }
        written
    })?;
    sync_dir(parent(path))?;
    Ok(kept)
}

/// Removes temporary files that a crash left in a directory only this process writes to.
///
/// # Errors
/// Whatever reading the directory or removing one of them says.
pub fn sweep_temporaries(dir: &Path) -> Result<u32> {
    let mut removed = 0;
    for entry in at("list", dir, fs::read_dir(dir))? {
        let entry = at("list", dir, entry)?;
        if entry.file_name().as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
            at("remove", &entry.path(), fs::remove_file(entry.path()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Proves that files can be made and written in a directory.
///
/// # Errors
/// Why they cannot.
pub fn probe_writable(dir: &Path) -> Result<()> {
    let mut temp = at("write into", dir, tempfile::Builder::new().prefix(TEMP_PREFIX).tempfile_in(dir))?;
    at("write into", dir, temp.write_all(b"probe").and_then(|()| temp.as_file().sync_all()))
}

/// Bytes that an unprivileged process may still write on the file system of `path`.
///
/// # Errors
/// Whatever the system says about that path.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = at("look at", path, rustix::fs::statvfs(path).map_err(io::Error::from))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// True when nothing on the file system of `path` can be run or mapped as code; false also where that
/// cannot be told.
#[must_use]
pub fn forbids_execution(path: &Path) -> bool {
    let stat = rustix::fs::statvfs(path);
    stat.is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

fn first_free(path: &Path, word: &str, mut make: impl FnMut(&Path) -> io::Result<()>) -> Result<PathBuf> {
    for n in 1_u32.. {
        let mut name: OsString = path.file_name().unwrap_or(OsStr::new("file")).to_owned();
        name.push(format!(".{word}-{n}"));
        let candidate = path.with_file_name(name);
        match make(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(FileError::new("keep aside", path, error)),
        }
    }
    Err(FileError::new("keep aside", path, ErrorKind::AlreadyExists.into()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) => Path::new("."),
        None => path,
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests lay out plain files")]
mod tests {
    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn replaced_file_has_its_content_and_mode_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        replace(&path, b"one", PRIVATE).unwrap();
        replace_with(&path, b"two", 0o640, Durability::Visible).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(mode_of(&path), 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failed_replace_leaves_the_former_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        assert!(replace(&path, b"two", PRIVATE).is_err());
        assert!(path.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    #[test]
    fn a_person_s_file_keeps_its_mode_and_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real.yml");
        fs::write(&real, "a").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o664)).unwrap();
        let link = dir.path().join("link.yml");
        std::os::unix::fs::symlink("real.yml", &link).unwrap();
        replace_keeping(&link, b"b").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!((fs::read(&real).unwrap(), mode_of(&real)), (b"b".to_vec(), 0o664));
    }

    #[test]
    fn create_new_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        create_new(&path, b"1", SHARED).unwrap();
        let error = create_new(&path, b"2", SHARED).unwrap_err();
        assert!(matches!(&error, FileError::Io { source, .. } if source.kind() == ErrorKind::AlreadyExists));
        assert_eq!(fs::read(&path).unwrap(), b"1");
    }

    #[test]
    fn made_directories_are_private_and_a_file_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dirs(&deep).unwrap();
        create_dirs(&deep).unwrap();
        sync_dir_chain(&deep, dir.path()).unwrap();
        assert_eq!((mode_of(&deep), mode_of(&dir.path().join("a"))), (0o700, 0o700));
        fs::write(dir.path().join("f"), "").unwrap();
        let error = create_dirs(&dir.path().join("f/g")).unwrap_err();
        assert!(error.to_string().starts_with("cannot create directory"), "{error}");
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert!(read(&path, 4).unwrap().is_none());
        fs::write(&path, "1234").unwrap();
        assert_eq!(read(&path, 4).unwrap().unwrap(), b"1234");
        assert!(matches!(read(&path, 3), Err(FileError::TooLarge { limit: 3, .. })));
        assert!(read(dir.path(), 3).is_err(), "a directory is not a file");
    }

    #[test]
    fn files_set_aside_never_replace_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.yml");
        for n in 1..=3 {
            fs::write(&path, n.to_string()).unwrap();
            assert_eq!(set_aside(&path).unwrap(), dir.path().join(format!("x.yml.corrupt-{n}")));
            assert!(!path.exists());
        }
        assert_eq!(fs::read(dir.path().join("x.yml.corrupt-1")).unwrap(), b"1");
    }

    #[test]
    fn cut_tail_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "good\nto").unwrap();
        let kept = cut_tail_aside(&path, 5).unwrap().unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), fs::read(&kept).unwrap()),
            (b"good\n".to_vec(), b"to".to_vec())
        );
        assert_eq!(cut_tail_aside(&path, 5).unwrap(), None);
    }

    #[test]
    fn leftovers_are_swept_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!("{TEMP_PREFIX}1")), "").unwrap();
        fs::write(dir.path().join("keep"), "").unwrap();
        assert_eq!(sweep_temporaries(dir.path()).unwrap(), 1);
        assert!(dir.path().join("keep").exists());
    }

    #[test]
    fn full_and_refused_are_told_apart_by_kind() {
        let path = Path::new("/x");
        for (code, full) in [(28, true), (122, true), (30, false), (13, false), (5, false)] {
            let error = FileError::new("write", path, io::Error::from_raw_os_error(code));
            assert_eq!(error.is_full(), full, "{code}");
        }
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
    }

    #[test]
    fn probe_tells_a_place_that_cannot_be_written_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        probe_writable(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(probe_writable(&dir.path().join("missing")).is_err());
    }
}
