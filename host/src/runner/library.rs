//! The only place that maps foreign code into this process.
//!
//! A library is opened with NOW (an undefined symbol is an error here, not the daemon's death
//! later), LOCAL and NODELETE, from the content-addressed store. It is never closed: abi_stable
//! keeps references into every image it has checked, and thread-locals keep the image anyway.
//! What stays mapped is counted. `load_from*` must never be used: it keeps one library per type,
//! and after one failure that type cannot be loaded any more.

#![allow(unsafe_code, reason = "mapping foreign code and trusting its checked layout are unsafe by nature")]

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{
    AbiInstability, AbiInstabilityErrors, check_layout_compatibility,
};
use abi_stable::library::{AbiHeaderRef, LibHeader, RootModuleError};
use abi_stable::prefix_type::PrefixRefTrait;
use abi_stable::type_layout::{TLFieldOrFunction, TypeLayout};
use kairos_plugin_api::abi::{API_VERSION, ROOT_SYMBOL, RunnerModRef};
use kairos_plugin_api::c_abi;
use kairos_plugin_api::manifest::Manifest;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::load_error::LoadError;

/// Linux's value; libloading does not name it. The image stays even if something closes it.
const RTLD_NODELETE: c_int = 0x1000;

static LEAKED: Mutex<BTreeMap<PathBuf, u64>> = Mutex::new(BTreeMap::new());

/// What libraries this process has mapped for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Leaked {
    /// How many images.
    pub images: u64,
    /// The sum of their files' sizes in bytes; an upper bound, since clean pages are reclaimable.
    pub bytes: u64,
}

/// The account of mapped libraries, of this whole process.
#[must_use]
pub fn leaked() -> Leaked {
    let leaked = LEAKED.lock().unwrap_or_else(PoisonError::into_inner);
    Leaked { images: leaked.len() as u64, bytes: leaked.values().sum() }
}

/// The mapped files with their sizes in bytes.
#[must_use]
pub fn mapped() -> Vec<(PathBuf, u64)> {
    let leaked = LEAKED.lock().unwrap_or_else(PoisonError::into_inner);
    leaked.iter().map(|(path, size)| (path.clone(), *size)).collect()
}

/// Refuses by manifest what must not even be mapped into the daemon. A worker takes a plugin that
/// aborts, since it is the worker that dies.
///
/// # Errors
/// `wrong_major`, `panic_abort`, `bad_manifest`.
pub fn check_manifest(manifest: &Manifest) -> Result<(), LoadError> {
    check_version(manifest)?;
    if manifest.abi == "rust" && manifest.panic == "abort" { Err(LoadError::PanicAbort) } else { Ok(()) }
}

/// Refuses by manifest what no process of this host can map.
///
/// # Errors
/// `wrong_major`, `bad_manifest`.
pub fn check_version(manifest: &Manifest) -> Result<(), LoadError> {
    let host = version(API_VERSION)?;
    let found = version(&manifest.api)?;
    if host.0 != found.0 {
        return Err(LoadError::WrongMajor { found: manifest.api.clone(), host: format!("{}.x", host.0) });
    }
    match (manifest.abi.as_str(), manifest.panic.as_str()) {
        ("rust", "unwind" | "abort") | ("c", _) => Ok(()),
        ("rust", other) => Err(LoadError::BadManifest(format!("panic strategy {other:?}"))),
        (other, _) => {
            Err(LoadError::BadManifest(format!("abi {other:?}; this host knows \"rust\" and \"c\"")))
        }
    }
}

/// Maps the library at `path`, which must lie in the store and never be written again, and gives
/// its root module after checking every type that crosses the boundary.
///
/// # Errors
/// Everything that can be told of a bad library without dying of it. A library whose own
/// constructors crash ends this process; only a worker process is safe from that.
pub fn load(path: &Path, manifest: &Manifest) -> Result<RunnerModRef, LoadError> {
    let module = root_of::<RunnerModRef>(path, manifest, API_VERSION)?;
    let said = module.manifest()();
    let said: Option<Manifest> = serde_json::from_slice(said.as_slice()).ok();
    if said.as_ref() != Some(manifest) {
        return Err(LoadError::ManifestLies);
    }
    Ok(module)
}

/// What [`load`] does, up to what the code says of itself, for a host of the version `host` whose
/// types are those of `M`: any daemon of this major, past or to come. Tests of versions stand on it.
///
/// # Errors
/// See [`load`].
pub fn root_of<M: StableAbi + PrefixRefTrait>(
    path: &Path,
    manifest: &Manifest,
    host: &str,
) -> Result<M, LoadError> {
    check_version(manifest)?;
    let header = open(path)?;
    let plugin = header.layout().ok_or(LoadError::NoLayout)?;
    check_layout(<M as StableAbi>::LAYOUT, plugin, manifest, host)?;
    // SAFETY: the layout of the plugin's root module was just found compatible with that of `M`,
    // in the direction that fits the older of both.
    let module = unsafe { header.unchecked_layout::<M>() };
    module.map_err(|error| match error {
        RootModuleError::Unwound => LoadError::PanicInLoad,
        RootModuleError::Returned(reason) => LoadError::LoadFailed(reason.to_string()),
    })
}

/// Maps the library at `path` as [`load`] does and gives its C entry, not yet called.
///
/// # Errors
/// See [`load`]; `not_a_runner` when there is no entry.
pub fn load_c(path: &Path, manifest: &Manifest) -> Result<c_abi::Entry, LoadError> {
    check_version(manifest)?;
    // SAFETY: a library whose manifest says "c" exports the function of the header by this name.
    unsafe { symbol::<c_abi::Entry>(path, c_abi::ENTRY) }
}

fn open(path: &Path) -> Result<&'static LibHeader, LoadError> {
    // SAFETY: the symbol, where it exists, is the `LibHeader` that plugin-api's macro exports;
    // the handle only reads its fixed first part until `upgrade` has found the magic in it.
    let header = unsafe { symbol::<AbiHeaderRef>(path, ROOT_SYMBOL) }?;
    header
        .upgrade()
        .map_err(|error| LoadError::LayoutMismatch(first_lines(&format!("other abi_stable: {error}"))))
}

/// Maps the library for good and gives one of its symbols.
///
/// # Safety
/// The symbol, where it exists, must be a `T`.
unsafe fn symbol<T: Copy>(path: &Path, name: &str) -> Result<T, LoadError> {
    // SAFETY: opening runs the library's constructors, which nobody can vouch for; the operator
    // chose to trust this file in this process. Its file never changes while it is mapped.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) };
    let library = library.map_err(|error| LoadError::LoadFailed(reason(&error, path)))?;
    let size = path.metadata().map_or(0, |meta| meta.len());
    LEAKED.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), size);
    // SAFETY: the caller's word.
    let found = unsafe { library.get::<T>(name.as_bytes()) }.map(|symbol| *symbol);
    // The handle is given up, not closed: see the module's text.
    std::mem::forget(library);
    found.map_err(|_| LoadError::NotARunner)
}

/// A plugin may be newer than this host, which then must find all it knows in it, or older,
/// and then all it knows must be found here. abi_stable alone checks only the former.
fn check_layout(
    host: &'static TypeLayout,
    plugin: &'static TypeLayout,
    manifest: &Manifest,
    host_version: &str,
) -> Result<(), LoadError> {
    let Err(errors) = check_layout_compatibility(host, plugin) else { return Ok(()) };
    let older = version(&manifest.api)? <= version(host_version)?;
    if older && check_layout_compatibility(plugin, host).is_ok() {
        return Ok(());
    }
    Err(LoadError::LayoutMismatch(explain(&errors, manifest, host_version)))
}

/// Three lines: who, where, what. The full text has hundreds.
fn explain(errors: &AbiInstabilityErrors, manifest: &Manifest, host: &str) -> String {
    let deepest = errors.errors.iter().max_by_key(|error| error.stack_trace.len());
    let mut place: Vec<&str> = deepest.map_or_else(Vec::new, |error| {
        let name = |at: &TLFieldOrFunction| match at {
            TLFieldOrFunction::Field(field) => field.name(),
            TLFieldOrFunction::Function(function) => function.name.as_str(),
        };
        // What a pointer leads to has no name, only a number.
        error.stack_trace.iter().map(|at| name(&at.expected)).filter(|name| *name != "0").collect()
    });
    place.dedup();
    let place = if place.is_empty() { "the root module".to_owned() } else { first_line(&place.join(" > ")) };
    // Sizes and counts only follow from the others.
    let follows = |error: &AbiInstability| {
        matches!(error, AbiInstability::Size(_) | AbiInstability::FieldCountMismatch(_))
    };
    let what = deepest.and_then(|error| error.errs.iter().find(|what| !follows(what)).or(error.errs.first()));
    let what = what.map_or_else(|| "its layout differs".to_owned(), difference);
    format!(
        "its types do not fit: plugin-api {} ({}) against this host's {host}\nat: {place}\ndifference: {what}",
        manifest.api, manifest.rustc,
    )
}

/// What this host expected and what it found.
fn difference(error: &AbiInstability) -> String {
    let said = |expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display, what: &str| {
        first_line(&format!("{what} {expected} was expected, {found} found"))
    };
    match error {
        AbiInstability::UnexpectedField(both) => said(&both.expected.name(), &both.found.name(), "member"),
        AbiInstability::Name(both) => said(&both.expected, &both.found, "type"),
        AbiInstability::MismatchedPrefixSize(both) => {
            said(&both.expected, &both.found, "a fixed part of members:")
        }
        AbiInstability::FieldCountMismatch(both) => said(&both.expected, &both.found, "a number of members:"),
        AbiInstability::Size(both) => said(&both.expected, &both.found, "a size in bytes:"),
        other => first_line(&format!("{other:?}")),
    }
}

fn first_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(160).collect()
}

fn first_lines(text: &str) -> String {
    text.lines().filter(|line| !line.trim().is_empty()).take(3).map(first_line).collect::<Vec<_>>().join("\n")
}

/// libloading says only "dlopen failed"; the loader's own words are its source. They begin with the
/// kept copy's path, which nobody wrote.
fn reason(error: &libloading::Error, path: &Path) -> String {
    let said = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    said.strip_prefix(&format!("{}: ", path.display())).map_or(said.clone(), ToOwned::to_owned)
}

fn version(text: &str) -> Result<(u64, u64, u64), LoadError> {
    let bad = || LoadError::BadManifest(format!("{text:?} is no version of the plugin API"));
    let mut parts = text.split('.').map(|part| part.parse::<u64>().ok());
    match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten(), parts.next()) {
        (Some(major), Some(minor), Some(patch), None) => Ok((major, minor, patch)),
        _ => Err(bad()),
    }
}
