//! Hostile plugins in C, compiled where a test needs them: cheap ways to lie and to crash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kairos_host::runner::{CheckReport, Launcher, PluginStore, SearchPath, WorkerFactory, check};

use crate::{fixture, kairos};

/// What `plugin check` says of a file: a worker loads it, this process does not.
///
/// # Panics
/// There are no workers to be had.
#[must_use]
pub fn checked(path: &Path) -> CheckReport {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let search = SearchPath::new(dir.path(), None, None);
    let workers = WorkerFactory::new(kairos()).expect("a thread can be started");
    check(path, &Launcher::with_workers(search, PluginStore::new(dir.path()), workers))
}

/// Compiles `fixtures/hostile.c` with these defines into `lib{name}.so` in `dir`.
///
/// # Panics
/// The compiler's words, when it cannot be.
#[must_use]
pub fn hostile_c(dir: &Path, name: &str, defines: &[&str]) -> PathBuf {
    let out = dir.join(format!("lib{name}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hostile.c");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&out)
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg(source)
        .output()
        .expect("a machine that links Rust has a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

/// Compiles `fixtures/without.c` in `dir`: a program that runs another one on a kernel that seems to
/// lack something.
///
/// # Panics
/// The compiler's words, when it cannot be.
#[must_use]
pub fn without(dir: &Path) -> PathBuf {
    fixture("without", dir)
}

/// Compiles `fixtures/metadata.c` in `dir`: a program that changes a file's mode, owner, times and
/// attributes in every way there is.
///
/// # Panics
/// The compiler's words, when it cannot be.
#[must_use]
pub fn metadata(dir: &Path) -> PathBuf {
    fixture("metadata", dir)
}

/// As [`hostile_c`], its bytes.
///
/// # Panics
/// See there.
#[must_use]
pub fn hostile_bytes(defines: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    fs::read(hostile_c(dir.path(), "hostile", defines)).expect("it was just written")
}

/// The bytes with every `from` replaced by `to`, of the same length.
///
/// # Panics
/// It is nowhere, or the lengths differ.
#[must_use]
pub fn patched(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut found = false;
    // By hand, because iterators over ten million bytes take seconds without optimisation.
    let mut at = 0;
    while at + from.len() <= bytes.len() {
        if bytes[at] == from[0] && bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
            found = true;
        }
        at += 1;
    }
    assert!(found, "{} is nowhere", String::from_utf8_lossy(from));
    bytes
}

/// A small generator of numbers, so that a seed says everything about a random test.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed, which must not be 0.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % bound
    }
}
