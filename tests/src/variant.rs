//! Versions of the one runner that exists for tests of swaps: each a file of its own, with a sha256
//! of its own, in a mode that says what is wrong with it. See `tests/runners/variant`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::plugin;

/// What stands before the mode in the file's data.
const MARKER: &[u8] = b"KAIROS-VARIANT:";

/// A file of its own with a version in that mode. The same mode gives another file each time.
///
/// # Panics
/// It cannot be written.
#[must_use]
pub fn version(dir: &Path, mode: &str) -> PathBuf {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let made = MADE.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("{mode}-{made}.so"));
    fs::write(&path, bytes_of(mode, made)).expect("the directory is the test's");
    path
}

/// The bytes of that version.
///
/// # Panics
/// The runner that was built is another one.
#[must_use]
pub fn bytes_of(mode: &str, made: u32) -> Vec<u8> {
    let mut bytes = fs::read(plugin("variant_runner")).expect("it was built along with the tests");
    let at = bytes.windows(MARKER.len()).position(|found| found == MARKER).expect("it is in the data");
    let text = format!(" {mode:<24}");
    bytes[at + MARKER.len()..at + 40].copy_from_slice(&text.as_bytes()[..25]);
    if mode == "other-state" {
        list_schema(&mut bytes, b"variant/2");
    }
    // What follows the last section is nobody's.
    bytes.extend(made.to_le_bytes());
    bytes
}

/// Writes another schema over the one in its manifest that no version uses.
fn list_schema(bytes: &mut [u8], schema: &[u8; 9]) {
    let found: Vec<usize> = (0..bytes.len() - 9).filter(|at| &bytes[*at..*at + 9] == b"variant/0").collect();
    assert!(!found.is_empty(), "its manifest lists it");
    found.into_iter().for_each(|at| bytes[at..at + 9].copy_from_slice(schema));
}
