//! The plugin ABI is frozen: what a released version looked like stands in `plugin-api/abi/1.N.txt`,
//! and this source must still be that, with nothing but what a minor version may add.
//!
//! The files are written once, at a minor's release, and never again. What is compared here is
//! compared with text that nobody builds anew, unlike two builds of one source, which always agree.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

mod c;
mod payloads;
mod rule;
mod rust;
mod small;

use std::fs;
use std::path::{Path, PathBuf};

use abi_stable::StableAbi;
use abi_stable::type_layout::TypeLayout;
use kairos_plugin_api::abi::{API_VERSION, RunnerModRef};
use kairos_plugin_api::c_abi;
use serde_json::json;
use sha2::{Digest, Sha256};

use rule::{Break, breaks};

/// The released versions, with the sum of the file that says what each was. A release adds a line;
/// no line ever changes.
const RELEASED: [(&str, &str); 1] =
    [("1.0", "7a2dc33f40e782cabea403ad59317711262960662ae6b25e2a90b7874184cee0")];

const WHAT_TO_DO: &str = "\
Runners that were built yesterday would be refused or misread by this source.
  - By mistake: take the change back. Nothing of a released version is ever renamed, reordered, retyped or removed.
  - To add something: put it after the last one (a method with a default body, an optional member), raise the
    minor in plugin-api/Cargo.toml, KAIROS_ABI_MINOR and KAIROS_API of kairos.h and c_abi::MINOR, then
    UPDATE_ABI=1 cargo test -p kairos-plugin-api --test abi_frozen
    writes the new version's file. While that version is not released, delete its file to have it written again.
  - Anything else is a new major version, with symbols of its own, beside this one.";

fn file(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("abi/{version}.txt"))
}

/// Major and minor of the version that this source is.
fn this_version() -> &'static str {
    API_VERSION.rsplit_once('.').unwrap().0
}

fn root() -> &'static TypeLayout {
    <RunnerModRef as StableAbi>::LAYOUT
}

/// All that this source says.
fn described() -> String {
    let dir = tempfile::tempdir().unwrap();
    let version = this_version();
    format!(
        "// The plugin ABI {version} as it was released, for machines of 64 bits. Written by the test `abi_frozen` of\n\
         // plugin-api, never edited: every later {major}.x must still be this. `Name #4` is the type of that number.\n{}{}{}{}",
        rust::describe(root()),
        c::describe(c_abi::HEADER, dir.path()),
        c::mirror(),
        payloads::describe(),
        major = version.split('.').next().unwrap(),
    )
}

fn told(version: &str, found: &[Break]) -> String {
    let shown: Vec<String> = found.iter().take(12).map(ToString::to_string).collect();
    let more = found.len().saturating_sub(shown.len());
    format!(
        "plugin ABI {version} is frozen by {}, and this source breaks it:\n{}\n({more} more)\n{WHAT_TO_DO}",
        file(version).display(),
        shown.join("\n"),
    )
}

#[test]
fn every_released_abi_still_holds_in_this_source() {
    let now = described();
    for (version, _) in RELEASED {
        let text = fs::read_to_string(file(version)).unwrap_or_else(|error| panic!("{version}: {error}"));
        let found = breaks(&text, &now);
        assert!(found.is_empty(), "{}", told(version, &found));
    }
}

#[test]
fn this_abi_is_exactly_what_its_file_says() {
    let (version, now, path) = (this_version(), described(), file(this_version()));
    if std::env::var_os("UPDATE_ABI").is_some() && !path.exists() {
        for (earlier, _) in RELEASED.iter().filter(|(earlier, _)| *earlier != version) {
            let found = breaks(&fs::read_to_string(file(earlier)).unwrap(), &now);
            assert!(found.is_empty(), "{}", told(earlier, &found));
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &now).unwrap();
    }
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("no ABI without its file, {}: {error}\n{WHAT_TO_DO}", path.display()));
    let (gone, added) = (breaks(&text, &now), breaks(&now, &text));
    assert!(gone.is_empty(), "{}", told(version, &gone));
    assert!(added.is_empty(), "this is more than {version} is:\n{}", told(version, &added));
    assert_eq!(text, now, "{} does not say what this source is\n{WHAT_TO_DO}", path.display());
}

#[test]
fn the_files_of_released_abis_were_never_edited() {
    for (version, sum) in RELEASED {
        let sum_of = Sha256::digest(fs::read(file(version)).unwrap());
        let found: String = sum_of.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, sum, "{} was edited\n{WHAT_TO_DO}", file(version).display());
    }
    // A minor version is released with all those before it frozen.
    let minor: usize = this_version().rsplit('.').next().unwrap().parse().unwrap();
    for earlier in 0..minor {
        assert!(
            RELEASED.iter().any(|(version, _)| *version == format!("1.{earlier}")),
            "1.{earlier} has no line"
        );
    }
}

#[test]
fn each_kind_of_change_of_a_type_is_seen() {
    let base = rust::describe(small::base::layout());
    assert_eq!(breaks(&base, &base), []);
    for (name, layout, place) in small::broken() {
        let found = breaks(&base, &rust::describe(layout));
        assert!(found.iter().any(|it| it.place.ends_with(place)), "{name}: {found:#?}");
    }
    assert_eq!(breaks(&base, &rust::describe(small::grown::layout())), []);
}

#[test]
fn each_kind_of_change_of_the_header_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let header = |from: &str, to: &str| {
        assert_eq!(c_abi::HEADER.matches(from).count(), 1, "{from}");
        c::describe(&c_abi::HEADER.replace(from, to), dir.path())
    };
    let base = c::describe(c_abi::HEADER, dir.path());
    for (from, to, place) in [
        (
            "const uint8_t *data;\n    size_t len;",
            "size_t len;\n    const uint8_t *data;",
            "struct kairos_bytes",
        ),
        ("size_t len;", "size_t len;\n    size_t capacity;", "struct kairos_bytes"),
        ("int64_t (*deadline_ms)", "uint64_t (*deadline_ms)", "struct kairos_host_v1"),
        ("(*should_stop)(void *ctx)", "(*should_stop)(void *ctx, uint32_t why)", "struct kairos_host_v1"),
        (
            "void (*cancel)(void *runner);",
            "void (*cancel)(void *runner);\n    void *mine;",
            "struct kairos_plugin_v1",
        ),
        ("    void (*begin_drain)(void *runner);\n", "", "struct kairos_plugin_v1"),
        ("#define KAIROS_ERROR 1u", "#define KAIROS_ERROR 2u", "constants of kairos.h"),
        (
            "kairos_plugin_entry_v1(uint32_t host_abi_major);",
            "kairos_plugin_entry_v1(uint64_t host_abi_major);",
            "functions",
        ),
    ] {
        let found = breaks(&base, &header(from, to));
        assert!(found.iter().any(|it| it.place.starts_with(place)), "{to}: {found:#?}");
    }
    let longer = "void (*begin_drain)(void *runner);\n    void (*later)(void *runner);";
    assert_eq!(breaks(&base, &header("void (*begin_drain)(void *runner);", longer)), []);
}

/// A payload with these members, full.
macro_rules! payload {
    ({$($fields:tt)*}, $full:tt) => {{
        #[derive(serde::Serialize, serde::Deserialize)]
        struct Payload {
            $($fields)*
        }
        let mut text = String::new();
        payloads::object(&mut text, "Payload", &serde_json::from_value::<Payload>(json!($full)).unwrap());
        text
    }};
}

#[test]
fn each_kind_of_change_of_a_payload_is_seen() {
    let base = payload!({a: String, #[serde(default)] b: u64}, {"a": "x", "b": 1});
    assert_eq!(breaks(&base, &base), []);
    for (name, changed) in [
        ("gone", payload!({a: String}, {"a": "x"})),
        ("renamed", payload!({z: String, #[serde(default)] b: u64}, {"z": "x", "b": 1})),
        ("retyped", payload!({a: String, #[serde(default)] b: u32}, {"a": "x", "b": 1})),
        ("required now", payload!({a: String, b: u64}, {"a": "x", "b": 1})),
        (
            "new and required",
            payload!({a: String, #[serde(default)] b: u64, c: bool}, {"a": "x", "b": 1, "c": true}),
        ),
    ] {
        assert_ne!(breaks(&base, &changed), [], "{name}: {changed}");
    }
    let grown = payload!({a: String, #[serde(default)] b: u64, #[serde(default)] c: bool}, {"a": "x", "b": 1, "c": true});
    assert_eq!(breaks(&base, &grown), []);
}
