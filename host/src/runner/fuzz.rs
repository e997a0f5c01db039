//! Entry points for fuzzers: plain functions that take any bytes and panic on a broken promise.
//! Nothing here maps or runs what it is given. For cargo-fuzz the whole target is
//! `fuzz_target!(|bytes: &[u8]| { let _ = kairos_host::runner::fuzz::elf(bytes); });`.

use super::manifest::manifest_of;

/// A file given as a plugin. What passes must hold to what the rest of the host relies on.
///
/// # Panics
/// The reader's promise is broken.
#[must_use]
pub fn elf(bytes: &[u8]) -> bool {
    match manifest_of(bytes) {
        Ok(manifest) => {
            assert!(!manifest.name.is_empty() && manifest.name.len() <= 100, "an unbounded name");
            let texts = [&manifest.version, &manifest.api, &manifest.rustc].into_iter();
            for text in texts.chain(&manifest.capabilities).chain(&manifest.states) {
                assert!(text.len() <= 200 && !text.chars().any(char::is_control), "not plain: {text:?}");
            }
            true
        }
        Err(error) => {
            let known = ["not_elf", "wrong_arch", "truncated", "damaged", "no_manifest", "bad_manifest"];
            assert!(known.contains(&error.code()), "{}", error.code());
            assert!(error.to_string().len() < 2000, "a long message");
            false
        }
    }
}
