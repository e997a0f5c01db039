//! The freeze of the plugin ABI sees changes of the real sources: it describes runners that were built
//! from them with one change each. The freeze itself is `plugin-api/tests/abi_frozen`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../plugin-api/tests/abi_frozen/rule.rs"]
mod rule;
#[path = "../../plugin-api/tests/abi_frozen/rust.rs"]
mod rust;

use abi_stable::StableAbi;
use abi_stable::library::lib_header_from_path;
use kairos_plugin_api::abi::RunnerModRef;
use kairos_tests::plugin;

use rule::{Break, breaks};

/// The layout of a runner built from plugin-api's own sources with one change, see tests/mutants.
fn mutant(name: &str) -> String {
    let path = plugin(&format!("mutant_{name}"));
    let header = lib_header_from_path(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    rust::describe(header.layout().unwrap())
}

#[test]
fn a_change_of_the_real_sources_that_breaks_old_runners_is_seen() {
    let now = rust::describe(<RunnerModRef as StableAbi>::LAYOUT);
    for (name, place, was, is) in [
        ("renamed", "RunnerMod", "0 manifest: fn()", "0 about: fn()"),
        (
            "retyped",
            "VTable",
            "8 run_cycle: unsafe fn(RRef<'a>, RSlice<'a>",
            "8 run_cycle: unsafe fn(RRef<'a>, RStr<'a>",
        ),
        (
            "swapped",
            "VTable",
            "16 cancel: unsafe fn(RRef<'a>) named",
            "16 probe: unsafe fn(RRef<'a>) -> RResult",
        ),
        ("cut", "VTable", "fixed 8", "fixed 7"),
    ] {
        let found = breaks(&now, &mutant(name));
        let seen = |it: &Break| it.place.ends_with(place) && it.was.contains(was) && it.is.contains(is);
        assert!(found.iter().any(seen), "{name}: {found:#?}");
    }
}

#[test]
fn what_a_minor_version_may_add_is_no_break_but_is_not_the_same_either() {
    let (now, newer) = (rust::describe(<RunnerModRef as StableAbi>::LAYOUT), mutant("newer"));
    assert_eq!(breaks(&now, &newer), []);
    let missed = breaks(&newer, &now);
    for member in ["added", "later", "describe"] {
        assert!(missed.iter().any(|it| it.was.contains(&format!(" {member}: "))), "{member}: {missed:#?}");
    }
}
