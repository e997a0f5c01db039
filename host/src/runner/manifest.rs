//! Reads a plugin file without running a byte of it: what kind of file, whose machine, whole or
//! cut, and the manifest in its section. Every input may be garbage; nothing here trusts an
//! offset of the file, waits for a fifo or reads a device.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
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

/// Reads a regular file of at most [`MAX_SIZE`] bytes; anything else is refused at once.
///
/// # Errors
/// `not_found`, `not_a_file`, `empty`, `too_large`, `io`.
pub fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            LoadError::NotFound { plugin: path.display().to_string(), looked: vec![path.to_owned()] }
        }
        _ => LoadError::Io { action: "read", path: path.to_owned(), reason: error.to_string() },
    };
    // Without NONBLOCK the open itself would wait for somebody to write to a fifo.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).expect("open flags fit an int");
    let file: File = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        // A socket cannot be opened at all.
        Err(error) if path.metadata().is_ok_and(|meta| meta.file_type().is_socket()) => {
            tracing::debug!(%error, "plugin path is a socket");
            return Err(LoadError::NotAFile { path: path.to_owned(), what: "a socket" });
        }
        Err(error) => return Err(io(error)),
    };
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        let what = if meta.is_dir() {
            "a directory"
        } else if meta.file_type().is_fifo() {
            "a fifo"
        } else {
            "a device"
        };
        return Err(LoadError::NotAFile { path: path.to_owned(), what });
    }
    let size = meta.len();
    if size > MAX_SIZE {
        return Err(LoadError::TooLarge { path: path.to_owned(), size, limit: MAX_SIZE });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(io)?;
    match bytes.len() as u64 {
        0 => Err(LoadError::Empty { path: path.to_owned() }),
        // It grew while it was read.
        size if size > MAX_SIZE => Err(LoadError::TooLarge { path: path.to_owned(), size, limit: MAX_SIZE }),
        _ => Ok(bytes),
    }
}

/// The manifest of an ELF file whose headers and segments lie within it.
///
/// # Errors
/// `not_elf`, `wrong_arch`, `truncated`, `no_manifest`, `bad_manifest`.
pub fn manifest_of(bytes: &[u8]) -> Result<Manifest, LoadError> {
    let section = section_of(bytes)?;
    // In C a text ends with a zero.
    let section = section.strip_suffix(b"\0").unwrap_or(section);
    if section.len() > MAX_MANIFEST {
        return Err(LoadError::BadManifest(format!("{} bytes are too many", section.len())));
    }
    let manifest: Manifest =
        serde_json::from_slice(section).map_err(|error| LoadError::BadManifest(error.to_string()))?;
    let name_fits = !manifest.name.is_empty()
        && manifest.name.len() <= 100
        && manifest.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if !name_fits {
        return Err(LoadError::BadManifest(format!("the name {:?} cannot be used", manifest.name)));
    }
    Ok(manifest)
}

fn section_of(bytes: &[u8]) -> Result<&[u8], LoadError> {
    check_ident(bytes)?;
    let cut = |error: object::read::Error| LoadError::Truncated(error.to_string());
    let header = Header::parse(bytes).map_err(cut)?;
    let endian = header.endian().map_err(cut)?;
    if header.e_machine(endian) != HOST_MACHINE {
        return Err(LoadError::WrongArch(format!("ELF machine {}", header.e_machine(endian).0)));
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
    let (_, section) = sections.section_by_name(endian, SECTION.as_bytes()).ok_or(LoadError::NoManifest)?;
    section.data(endian, bytes).map_err(cut)
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
