//! What somebody means who names a place to write to: a file, which is replaced whole, or something
//! that only takes bytes, a fifo, a device or an open descriptor, whose name never goes to a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::files::{self, FileError};

/// Links that are followed, as many as the kernel does.
const LINKS_MAX: usize = 40;

/// Where bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A regular file, or none yet; no link.
    File(PathBuf),
    /// Whatever takes bytes and keeps its name.
    Stream(Stream),
}

/// What takes bytes and keeps its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output of this process, under whatever name.
    Stdout,
    /// Its standard error.
    Stderr,
    /// A fifo, a device, another descriptor of this process.
    Other(PathBuf),
}

impl Place {
    /// What is there, through all links.
    ///
    /// # Errors
    /// Links without end, a directory, a socket, or a place that cannot be looked at.
    pub fn named(path: &Path) -> files::Result<Self> {
        let fail = |error: io::Error| FileError::new("write", path, error);
        let target = follow(path).map_err(fail)?;
        if let Some(number) = descriptor(&target) {
            return Ok(Self::Stream(match number {
                1 => Stream::Stdout,
                2 => Stream::Stderr,
                _ => Stream::Other(target),
            }));
        }
        let kind = match fs::symlink_metadata(&target) {
            Ok(found) => found.file_type(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::File(target)),
            Err(error) => return Err(fail(error)),
        };
        if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            Ok(Self::Stream(Stream::Other(target)))
        } else if kind.is_file() {
            Ok(Self::File(target))
        } else {
            Err(fail(if kind.is_dir() {
                ErrorKind::IsADirectory.into()
            } else {
                ErrorKind::Unsupported.into()
            }))
        }
    }

    /// Writes all of it: a file is replaced whole and keeps its mode.
    ///
    /// # Errors
    /// The system's; of a file as [`files::replace`].
    pub fn write(&self, bytes: &[u8]) -> files::Result<()> {
        match self {
            Self::File(path) => files::replace_keeping(path, bytes),
            Self::Stream(stream) => stream.write(|out| out.write_all(bytes)),
        }
    }
}

impl Stream {
    /// Writes what `write` writes. A fifo without a reader is waited for; that nobody reads standard
    /// output any more is no error.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> files::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                match write(&mut out).and_then(|()| out.flush()) {
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
                    other => other.map_err(|error| FileError::new("write", Path::new("/dev/stdout"), error)),
                }
            }
            Self::Stderr => write(&mut io::stderr().lock())
                .map_err(|error| FileError::new("write", Path::new("/dev/stderr"), error)),
            // A descriptor may be of a regular file that somebody else writes to as well.
            Self::Other(path) => OpenOptions::new()
                .append(true)
                .open(path)
                .and_then(|mut file: File| write(&mut file))
                .map_err(|error| FileError::new("write", path, error)),
        }
    }
}

/// Where the links of a path lead, also to nothing. A descriptor's name is not followed: what it leads to
/// need not have another.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..=LINKS_MAX {
        if descriptor(&path).is_some() {
            return Ok(path);
        }
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// The number of a descriptor of this process, when that is what is named.
fn descriptor(path: &Path) -> Option<u32> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let dir = fs::canonicalize(path.parent()?).ok()?;
    let own = Path::new("/proc").join(std::process::id().to_string());
    (dir.starts_with(own) && dir.ends_with("fd")).then_some(number)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests lay out plain files")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn stream(path: &str) -> Place {
        Place::Stream(Stream::Other(path.into()))
    }

    #[test]
    fn devices_fifos_and_descriptors_are_told_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(Place::named(Path::new("/dev/full")).unwrap(), stream("/dev/full"));
        assert_eq!(Place::named(Path::new("/dev/stdout")).unwrap(), Place::Stream(Stream::Stdout));
        assert_eq!(Place::named(Path::new("/proc/self/fd/2")).unwrap(), Place::Stream(Stream::Stderr));
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        symlink("fifo", at("link")).unwrap();
        assert_eq!(Place::named(&at("link")).unwrap(), Place::Stream(Stream::Other(at("fifo"))));
        symlink("/dev/full", at("full")).unwrap();
        let error = Place::named(&at("full")).unwrap().write(b"x").unwrap_err();
        assert!(error.is_full(), "{error}");
        assert!(fs::symlink_metadata(at("full")).unwrap().is_symlink());
        assert_eq!(Place::named(&at("absent")).unwrap(), Place::File(at("absent")));
        Place::named(dir.path()).unwrap_err();
    }

    #[test]
    fn a_link_leads_to_its_file_also_before_that_is_there_and_none_leads_in_a_circle() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("real")).unwrap();
        symlink("real/file", at("link")).unwrap();
        symlink("link", at("to-link")).unwrap();
        for text in ["one", "two"] {
            Place::named(&at("to-link")).unwrap().write(text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(at("real/file")).unwrap(), text);
        }
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        symlink("b", at("a")).unwrap();
        symlink("a", at("b")).unwrap();
        Place::named(&at("a")).unwrap_err();
        assert!(fs::symlink_metadata(at("a")).unwrap().is_symlink());
    }

    #[test]
    fn an_open_descriptor_of_a_file_gets_the_bytes_and_the_file_stays_the_same() {
        use std::os::fd::AsRawFd as _;
        use std::os::unix::fs::MetadataExt as _;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"before ").unwrap();
        let name = format!("/dev/fd/{}", file.as_file().as_raw_fd());
        Place::named(Path::new(&name)).unwrap().write(b"after").unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "before after");
        let inode = fs::metadata(file.path()).unwrap().ino();
        assert_eq!(inode, file.as_file().metadata().unwrap().ino());
    }
}
