//! Reads a plugin file without running a byte of it: what kind of file, whose machine, whole or
//! cut, and the manifest in its section. Every input may be garbage; nothing here trusts an
//! offset of the file, waits for a fifo or reads a device.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kairos_plugin_api::manifest::{Manifest, SECTION};
use object::Endianness;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use sha2::{Digest, Sha256};

use super::load_error::LoadError;
use super::trust::Credentials;

/// Most bytes of a plugin: forty times a large debug build.
pub const MAX_SIZE: u64 = 256 << 20;

/// Most bytes of a manifest.
const MAX_MANIFEST: usize = 64 << 10;

type Header = elf::FileHeader64<Endianness>;

/// A plugin file in memory, checked as far as that goes without running it.
#[derive(Debug)]
pub struct PluginFile {
    /// Its content.
    pub bytes: Vec<u8>,
    /// sha256 of it in hex: the name of the generation.
    pub sha256: String,
    /// What it says about itself.
    pub manifest: Manifest,
    /// Where it was read; none for a kept copy.
    pub origin: Option<PathBuf>,
    /// What was kept with a copy to speak for it.
    pub kept: Credentials,
}

impl PluginFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What it is instead of a plugin.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let bytes = read(path)?;
        let manifest = manifest_of(&bytes)?;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let origin = Some(path.to_owned());
        Ok(Self { bytes, sha256, manifest, origin, kept: Credentials::default() })
    }
}

/// sha256 in hex of what can be read there, a plugin or not.
#[must_use]
pub fn fingerprint(path: &Path) -> Option<String> {
    read_any(path).ok().map(|bytes| hex::encode(Sha256::digest(&bytes)))
}

/// Reads a regular file of at most [`MAX_SIZE`] bytes; anything else is refused at once.
///
/// # Errors
/// `not_found`, `no_permission`, `symlink_loop`, `is_a_directory`, `is_a_fifo`, `not_a_file`, `empty`, `too_large`, `changed`, `io`.
pub fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    read_while(path, || ())
}

/// As [`read`], of a file whose content the caller compares: its times may change meanwhile.
pub(super) fn read_any(path: &Path) -> Result<Vec<u8>, LoadError> {
    let file = open(path)?;
    let meta = file.metadata().map_err(|error| from_system(path, &error))?;
    contents(path, &file, &meta)
}

/// As [`read`]; `meanwhile` happens between the first and the last look at the file.
fn read_while(path: &Path, meanwhile: impl FnOnce()) -> Result<Vec<u8>, LoadError> {
    let look = |file: &File| file.metadata().map_err(|error| from_system(path, &error));
    let file = open(path)?;
    let before = look(&file)?;
    let bytes = contents(path, &file, &before)?;
    meanwhile();
    // A build or a copy that is still being written gives a mixture, which may even look whole.
    let after = look(&file)?;
    // Not the time of change: another name or owner for the file leaves what is in it alone.
    let stamp = |meta: &Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec());
    if stamp(&before) != stamp(&after) || bytes.len() as u64 != after.len() {
        return Err(LoadError::Changed { path: path.to_owned() });
    }
    if bytes.is_empty() { Err(LoadError::Empty { path: path.to_owned() }) } else { Ok(bytes) }
}

fn contents(path: &Path, file: &File, before: &Metadata) -> Result<Vec<u8>, LoadError> {
    if !before.is_file() {
        let kind = before.file_type();
        let what = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a fifo",
            () => "a device",
        };
        return Err(LoadError::NotAFile { path: path.to_owned(), what });
    }
    let too_large = |size| LoadError::TooLarge { path: path.to_owned(), size, limit: MAX_SIZE };
    if before.len() > MAX_SIZE {
        return Err(too_large(before.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.len()).unwrap_or(0) + 1);
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(|error| from_system(path, &error))?;
    Ok(bytes)
}

fn open(path: &Path) -> Result<File, LoadError> {
    // Without NONBLOCK the open itself would wait for somebody to write to a fifo.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).expect("open flags fit an int");
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        // A socket cannot be opened at all.
        if path.metadata().is_ok_and(|meta| meta.file_type().is_socket()) {
            return LoadError::NotAFile { path: path.to_owned(), what: "a socket" };
        }
        from_system(path, &error)
    })
}

fn from_system(path: &Path, error: &std::io::Error) -> LoadError {
    let shown = || path.to_owned();
    match error.kind() {
        ErrorKind::NotFound => {
            LoadError::NotFound { plugin: path.display().to_string(), looked: vec![shown()] }
        }
        ErrorKind::PermissionDenied => LoadError::NoPermission { path: shown() },
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            LoadError::SymlinkLoop { path: shown() }
        }
        _ => LoadError::Io { action: "read", path: shown(), reason: error.to_string() },
    }
}

/// The manifest of an ELF file whose headers and segments lie within it.
///
/// # Errors
/// `not_elf`, `wrong_arch`, `truncated`, `damaged`, `no_manifest`, `bad_manifest`.
pub fn manifest_of(bytes: &[u8]) -> Result<Manifest, LoadError> {
    let section = section_of(bytes)?;
    // In C a text ends with a zero.
    let section = section.strip_suffix(b"\0").unwrap_or(section);
    if section.len() > MAX_MANIFEST {
        return Err(LoadError::BadManifest(format!("{} bytes are too many", section.len())));
    }
    let manifest: Manifest =
        serde_json::from_slice(section).map_err(|error| LoadError::BadManifest(error.to_string()))?;
    check_claims(&manifest).map_err(LoadError::BadManifest)?;
    Ok(manifest)
}

/// What it says is shown to people and compared; it must be short and plain.
fn check_claims(manifest: &Manifest) -> Result<(), String> {
    if manifest.schema != 1 {
        return Err(format!("its schema is {}, this host knows 1", manifest.schema));
    }
    let name = &manifest.name;
    let usable = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 100 || !name.chars().all(usable) {
        return Err(format!("the name {name:?} cannot be used"));
    }
    let Manifest { version, api, rustc, panic, abi, capabilities, files, states, .. } = manifest;
    let texts = [version, api, rustc, panic, abi].into_iter().chain(capabilities).chain(files).chain(states);
    let bad = |text: &&String| text.len() > 200 || text.chars().any(drives_terminals);
    if let Some(text) = texts.into_iter().find(bad) {
        return Err(format!("{:?} is too long or not plain text", text.chars().take(40).collect::<String>()));
    }
    if [capabilities, files, states].iter().any(|list| list.len() > 256) {
        return Err("its lists are too long".to_owned());
    }
    Ok(())
}

/// Control characters, and those that turn the direction of what follows or end a line.
#[must_use]
pub fn drives_terminals(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn machine(number: elf::Machine) -> String {
    let known = [
        (elf::EM_386, "x86"),
        (elf::EM_X86_64, "x86-64"),
        (elf::EM_ARM, "arm"),
        (elf::EM_AARCH64, "aarch64"),
        (elf::EM_RISCV, "riscv"),
    ];
    let name = known.iter().find(|(known, _)| *known == number).map_or("", |(_, name)| name);
    format!("{name} (ELF machine {})", number.0).trim_start().to_owned()
}

fn section_of(bytes: &[u8]) -> Result<&[u8], LoadError> {
    check_ident(bytes)?;
    let cut = |error: object::read::Error| match past_the_end(bytes) {
        true => {
            LoadError::Truncated(format!("a table of its headers lies past the end of the file ({error})"))
        }
        false => LoadError::Damaged(error.to_string()),
    };
    let header = Header::parse(bytes).map_err(cut)?;
    let endian = header.endian().map_err(cut)?;
    if header.e_machine(endian) != HOST_MACHINE {
        return Err(LoadError::WrongArch(machine(header.e_machine(endian))));
    }
    if header.e_type(endian) != elf::ET_DYN {
        return Err(LoadError::WrongArch("it is no shared object".to_owned()));
    }
    // The system's loader maps by these; past the end of the file it would die of SIGBUS.
    for segment in header.program_headers(endian, bytes).map_err(cut)? {
        let (offset, size) = segment.file_range(endian);
        if offset.checked_add(size).is_none_or(|end| end > bytes.len() as u64) {
            return Err(LoadError::Truncated("a segment lies past the end of the file".to_owned()));
        }
    }
    let sections = header.sections(endian, bytes).map_err(cut)?;
    for section in sections.iter() {
        if let Some((offset, size)) = section.file_range(endian)
            && offset.checked_add(size).is_none_or(|end| end > bytes.len() as u64)
        {
            return Err(LoadError::Truncated("a section lies past the end of the file".to_owned()));
        }
    }
    let ours = |section: &&elf::SectionHeader64<Endianness>| {
        sections.section_name(endian, section).is_ok_and(|name| name == SECTION.as_bytes())
    };
    let mut found = sections.iter().filter(ours);
    let section = found.next().ok_or(LoadError::NoManifest)?;
    // Two readers could believe two of them.
    if found.next().is_some() {
        return Err(LoadError::BadManifest(format!("there are several sections {SECTION}")));
    }
    section.data(endian, bytes).map_err(cut)
}

/// True when the header, or a table that it tells of, is not whole within the file.
fn past_the_end(bytes: &[u8]) -> bool {
    let Ok(header) = Header::parse(bytes) else { return bytes.len() < size_of::<Header>() };
    let Ok(endian) = header.endian() else { return false };
    let end = |offset: u64, size: u16, count: u16| {
        offset.checked_add(u64::from(size) * u64::from(count)).is_none_or(|end| end > bytes.len() as u64)
    };
    end(header.e_phoff(endian), header.e_phentsize(endian), header.e_phnum(endian))
        || end(header.e_shoff(endian), header.e_shentsize(endian), header.e_shnum(endian))
}

#[cfg(target_arch = "x86_64")]
const HOST_MACHINE: elf::Machine = elf::EM_X86_64;
#[cfg(target_arch = "aarch64")]
const HOST_MACHINE: elf::Machine = elf::EM_AARCH64;
#[cfg(target_arch = "riscv64")]
const HOST_MACHINE: elf::Machine = elf::EM_RISCV;

/// The first bytes: magic, 64 bit, this machine's byte order.
fn check_ident(bytes: &[u8]) -> Result<(), LoadError> {
    if !bytes.starts_with(&elf::ELFMAG) {
        // A piece of the magic is the start of a file that was cut there.
        let cut = elf::ELFMAG.starts_with(bytes);
        return Err(if cut { LoadError::Truncated("no header".to_owned()) } else { LoadError::NotElf });
    }
    let (Some(class), Some(order)) = (bytes.get(4), bytes.get(5)) else {
        return Err(LoadError::Truncated("no header".to_owned()));
    };
    if *class != elf::ELFCLASS64.0 {
        return Err(LoadError::WrongArch("it is not 64 bit".to_owned()));
    }
    let native = if cfg!(target_endian = "little") { elf::ELFDATA2LSB } else { elf::ELFDATA2MSB };
    if *order != native.0 {
        return Err(LoadError::WrongArch("its byte order is another".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
#[allow(clippy::disallowed_methods, reason = "tests lay out plain files")]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_that_changes_while_it_is_read_is_no_plugin_yet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("liba.so");
        std::fs::write(&path, "half").unwrap();
        let code = |change: &dyn Fn()| read_while(&path, change).map(|_| ()).map_err(|error| error.code());
        let writer = || OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(code(&|| ()), Ok(()));
        let backup = dir.path().join("backup.so");
        assert_eq!(
            code(&|| std::fs::hard_link(&path, &backup).unwrap()),
            Ok(()),
            "another name is no change"
        );
        assert_eq!(code(&|| writer().set_len(1 << 20).unwrap()), Err("changed"));
        assert_eq!(code(&|| writer().set_len(2).unwrap()), Err("changed"));
        assert_eq!(code(&|| writer().write_all(b"x").unwrap()), Err("changed"), "of the same length");
        // Replaced by name: what was read is what was there, unless the system marked the old file.
        assert_eq!(read(&path), Ok(b"xa".to_vec()));
    }
}
