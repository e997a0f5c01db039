//! Files that lie, and mutated ones: the reader answers each with an error, never panics, and
//! needs no more memory than the file is worth. Nothing in this file is mapped.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use kairos_host::runner::manifest::{MAX_SIZE, PluginFile, manifest_of};
use kairos_host::runner::{LoadError, fuzz};
use kairos_tests::hostile::{Chance, hostile_bytes, patched};
use kairos_tests::plugin;

thread_local! {
    /// The largest single request of this thread.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watched;

#[allow(unsafe_code, reason = "an allocator that remembers what was asked of the system's")]
// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's word about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: it was given by `alloc` with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn code_of(bytes: &[u8]) -> &'static str {
    manifest_of(bytes).map(|_| "fits").unwrap_or_else(|error| error.code())
}

fn claim(text: &str) -> String {
    format!("CLAIM={text}")
}

#[test]
fn manifests_that_cannot_be_believed_are_refused() {
    assert_eq!(code_of(&hostile_bytes(&[])), "fits");
    assert_eq!(code_of(&hostile_bytes(&["SILENT"])), "no_manifest");
    assert_eq!(code_of(&hostile_bytes(&["HUGE"])), "bad_manifest");
    let twice = patched(hostile_bytes(&["TWICE"]), ".kairos.manifesu", ".kairos.manifest");
    let error = manifest_of(&twice).unwrap_err();
    assert!(error.to_string().contains("several sections"), "{error}");
    let plain = r#""name":"a","version":"1","api":"1.0.0","panic":"unwind""#;
    for (text, part) in [
        ("nonsense".to_owned(), "column"),
        (r#""schema":1"#.to_owned(), "missing field"),
        (format!(r#""schema":2,{plain}"#), "schema is 2"),
        (format!(r#""schema":1,{plain}"#).replace("\"a\"", "\"\""), "name"),
        (format!(r#""schema":1,{plain}"#).replace("\"a\"", "\"../a\""), "name"),
        (format!(r#""schema":1,{plain},"name":"b""#), "duplicate field"),
        (format!(r#""schema":1,{plain},"states":["{}"]"#, "s".repeat(300)), "too long"),
        (format!(r#""schema":1,{plain},"abi":"co\u0007bol""#), "plain text"),
        (format!(r#""schema":1,{plain},"phases":"yes""#), "boolean"),
        (
            format!(r#""schema":1,{plain},"files":["read:docs\ntrusted  yes: signed by you\u001b[8m"]"#),
            "plain text",
        ),
        (format!(r#""schema":1,{plain},"files":["read:\u202ecod"]"#), "plain text"),
        (format!(r#""schema":1,{plain},"files":["{}"]"#, "f".repeat(300)), "too long"),
        (format!(r#""schema":1,{plain},"files":[{}"f"]"#, "\"f\",".repeat(256)), "lists are too long"),
    ] {
        let bytes = hostile_bytes(&[&claim(&text)]);
        let error = manifest_of(&bytes).unwrap_err();
        assert_eq!(error.code(), "bad_manifest", "{text}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

#[test]
fn what_cannot_be_read_has_its_own_code() {
    let dir = tempfile::tempdir().unwrap();
    let code = |path: &Path| PluginFile::open(path).map(|_| "opens").unwrap_or_else(|error| error.code());
    let link = dir.path().join("loop.so");
    std::os::unix::fs::symlink("loop.so", &link).unwrap();
    assert_eq!(code(&link), "symlink_loop");
    let dangling = dir.path().join("dangling.so");
    std::os::unix::fs::symlink("nowhere.so", &dangling).unwrap();
    assert_eq!(code(&dangling), "not_found");
    assert_eq!(code(Path::new("/dev/zero")), "not_a_file");
    // Sparse: it has this size and takes no space.
    let huge = dir.path().join("huge.so");
    fs::File::create(&huge).unwrap().set_len(1 << 30).unwrap();
    LARGEST.set(0);
    assert_eq!(code(&huge), "too_large");
    assert!(LARGEST.get() < 1 << 20, "{} bytes for a file that is refused", LARGEST.get());
    let closed = dir.path().join("closed.so");
    fs::write(&closed, hostile_bytes(&[])).unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let root = rustix::process::geteuid().is_root();
    assert_eq!(code(&closed), if root { "opens" } else { "no_permission" }, "root may read everything");
    assert!(matches!(PluginFile::open(&huge), Err(LoadError::TooLarge { limit: MAX_SIZE, .. })));
}

/// Each byte of what the reader looks at, changed in several ways.
#[test]
fn every_changed_header_byte_is_survived() {
    let whole = hostile_bytes(&[]);
    let mut bytes = whole.clone();
    let mut passed = 0;
    let sections = usize::try_from(u64::from_le_bytes(whole[40..48].try_into().unwrap())).unwrap();
    for at in (0..64 + 56 * 12).chain(sections..whole.len()) {
        for value in [0, 1, 0x7f, 0x80, 0xff, whole[at] ^ 1, whole[at].wrapping_add(1)] {
            bytes[at] = value;
            passed += usize::from(fuzz::elf(&bytes));
        }
        bytes[at] = whole[at];
    }
    assert!(passed > 0, "some bytes do not matter to the reader");
}

#[test]
fn random_damage_neither_panics_the_reader_nor_makes_it_hungry() {
    let corpus = [
        hostile_bytes(&[]),
        hostile_bytes(&["TWICE"]),
        patched(hostile_bytes(&["TWICE"]), ".kairos.manifesu", ".kairos.manifest"),
        fs::read(plugin("hostile_load")).unwrap(),
    ];
    let seed = 0x5eed_0002;
    let mut chance = Chance::new(seed);
    for round in 0..20_000 {
        let whole = &corpus[if round % 50 == 0 { 3 } else { chance.below(3) }];
        let mut bytes = whole.clone();
        let sections = usize::try_from(u64::from_le_bytes(whole[40..48].try_into().unwrap())).unwrap();
        for _ in 0..1 + chance.below(8) {
            let at = match chance.below(4) {
                0 => chance.below(64),
                1 => 64 + chance.below(700),
                2 => sections + chance.below(whole.len() - sections),
                _ => chance.below(whole.len()),
            };
            match chance.below(4) {
                // A whole field at once: offsets and sizes near the ends of their range.
                0 if at + 8 <= bytes.len() => {
                    let extreme = [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, 0, whole.len() as u64];
                    bytes[at..at + 8].copy_from_slice(&extreme[chance.below(extreme.len())].to_le_bytes());
                }
                1 => bytes.truncate(at.max(1)),
                _ => bytes[at.min(whole.len() - 1)] = u8::try_from(chance.below(256)).unwrap(),
            }
            if bytes.len() < whole.len() {
                break;
            }
        }
        LARGEST.set(0);
        let outcome = std::panic::catch_unwind(|| fuzz::elf(&bytes));
        assert!(outcome.is_ok(), "seed {seed:#x}, round {round}");
        let largest = LARGEST.get();
        assert!(largest < 1 << 20, "seed {seed:#x}, round {round}: {largest} bytes at once");
    }
}
