//! The house rules that a compiler does not know: arrows between modules and crates, every file
//! says what it is for, invariants name tests that exist, the README's commands are real.
#![allow(clippy::disallowed_methods, reason = "a test reads plain files")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A room and the rooms below it that it may look into.
const ARROWS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("sys", &["domain"]),
    ("store", &["domain", "sys"]),
    ("wal", &["domain", "sys", "store"]),
    ("runner", &["domain", "sys"]),
    ("broker", &["domain", "sys", "store"]),
    ("daemon", &["domain", "sys", "store", "wal", "runner", "broker"]),
    ("attach", &["domain", "sys", "store", "daemon"]),
    ("exit", &["store", "sys"]),
    ("telemetry", &["sys"]),
    ("config", &["domain", "sys"]),
    (
        "boot",
        &[
            "domain",
            "sys",
            "store",
            "wal",
            "runner",
            "broker",
            "daemon",
            "attach",
            "exit",
            "telemetry",
            "config",
        ],
    ),
    ("wiring", &["domain", "sys", "store", "wal", "runner", "broker", "daemon"]),
    (
        "cli",
        &[
            "domain",
            "sys",
            "store",
            "wal",
            "runner",
            "daemon",
            "attach",
            "exit",
            "telemetry",
            "config",
            "boot",
        ],
    ),
    ("lib", &[]),
    ("main", &[]),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this crate").to_owned()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a source directory can be listed") {
        let path = entry.expect("its entries can be read").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target" && name != ".git") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = vec![];
    for dir in ["host", "plugin-api", "plugins", "tests", "examples"] {
        sources(&workspace().join(dir), &mut found);
    }
    assert!(found.len() > 100, "only {} sources were found", found.len());
    found
}

/// Names that follow `crate::` in a source.
fn looks_into(text: &str) -> BTreeSet<&str> {
    text.split("crate::")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next())
        .collect()
}

#[test]
fn modules_of_the_host_look_down_only() {
    let src = workspace().join("host/src");
    let mut found = vec![];
    sources(&src, &mut found);
    let rooms: BTreeSet<&str> = ARROWS.iter().map(|(room, _)| *room).collect();
    let mut faults = vec![];
    for path in found {
        let inside = path.strip_prefix(&src).expect("it was found there");
        let first = inside.iter().next().and_then(|part| part.to_str()).expect("a name");
        let room = first.trim_end_matches(".rs");
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            faults.push(format!("{}: a room that the map does not know", inside.display()));
            continue;
        };
        let text = fs::read_to_string(&path).expect("a source is text");
        for other in looks_into(&text) {
            if other != room && rooms.contains(other) && !allowed.contains(&other) {
                faults.push(format!("{} looks into {other}", inside.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn an_arrow_against_the_map_would_be_seen() {
    assert!(looks_into("use crate::daemon::chronos::Chronos;").contains("daemon"));
    let store = ARROWS.iter().find(|(room, _)| *room == "store").expect("it is there").1;
    assert!(!store.contains(&"daemon"));
}

#[test]
fn crates_depend_in_one_direction() {
    let depends = |manifest: &str, on: &str| {
        let text = fs::read_to_string(workspace().join(manifest)).expect("a manifest is text");
        let table = text.split("[dependencies]").nth(1).unwrap_or_default();
        let table = table.split("\n[").next().unwrap_or_default();
        table.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(on))
    };
    assert!(depends("host/Cargo.toml", "kairos-plugin-api"), "the check itself must see something");
    for (manifest, on) in [
        ("plugin-api/Cargo.toml", "kairos-host"),
        ("host/Cargo.toml", "kairos-stub"),
        ("host/Cargo.toml", "kairos-cognitive-loop"),
        ("plugins/stub/Cargo.toml", "kairos-host"),
        ("plugins/cognitive-loop/Cargo.toml", "kairos-host"),
        ("examples/hello-runner/Cargo.toml", "kairos-host"),
    ] {
        assert!(!depends(manifest, on), "{manifest} depends on {on}");
    }
}

#[test]
fn every_source_says_what_it_is_for_and_hides_nothing_unfinished() {
    // Put together, so that this file does not find itself.
    let unfinished = [["todo", "!("].concat(), ["unimplemented", "!("].concat(), ["#[ig", "nore"].concat()];
    let mut faults = vec![];
    for path in all_sources() {
        let text = fs::read_to_string(&path).expect("a source is text");
        let opening = text.lines().find(|line| !line.starts_with("#!["));
        if !opening.is_some_and(|line| line.starts_with("//!")) {
            faults.push(format!("{} does not open with what it is for", path.display()));
        }
        for word in &unfinished {
            if text.contains(word) {
                faults.push(format!("{} holds {word}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn only_the_stated_modules_name_their_library() {
    let mut faults = vec![];
    for path in all_sources() {
        let text = fs::read_to_string(&path).expect("a source is text");
        let shown = path.strip_prefix(workspace()).expect("it lies there").display().to_string();
        let uses = |library: &str| {
            text.contains(&format!("use {library}")) || text.contains(&format!("{library}::"))
        };
        let host = shown.starts_with("host/src/");
        if host && uses("jiff") && shown != "host/src/sys/zones.rs" {
            faults.push(format!("{shown} names jiff"));
        }
        if host && uses("rusqlite") && !shown.starts_with("host/src/store/sqlite/") {
            faults.push(format!("{shown} names rusqlite"));
        }
        if host && uses("libloading") && shown != "host/src/runner/library.rs" {
            faults.push(format!("{shown} names libloading"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn texts() -> Vec<(PathBuf, String)> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source is text");
        (path, text)
    };
    all_sources().into_iter().map(read).collect()
}

/// Names in backquotes of the invariants' table that look like tests.
fn named_tests(document: &str) -> Vec<String> {
    let table = document.lines().filter(|line| line.starts_with("| I"));
    table
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|word| word.contains('_') && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn invariants_and_the_seed_name_tests_that_exist() {
    let everything = texts();
    let architecture = fs::read_to_string(workspace().join("ARCHITECTURE.md")).expect("it is there");
    let named = named_tests(&architecture);
    assert!(named.len() >= 18, "each invariant names a test: {named:?}");
    let missing: Vec<&String> = named.iter().filter(|name| !is_proof(&everything, name)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names tests that do not exist: {missing:?}");
}

/// Cells of the last column of the comparison, each with the feature of its row.
fn compared(document: &str) -> Vec<(&str, &str)> {
    let rows = document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| feature"));
    rows.filter_map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        Some((*cells.first()?, *cells.last()?))
    })
    .collect()
}

#[test]
fn the_comparison_of_plugin_hosts_names_tests_that_exist() {
    let everything = texts();
    let document = fs::read_to_string(workspace().join("host/docs/plugin-hosts.md")).expect("it is there");
    let rows = compared(&document);
    assert!(rows.len() >= 28, "only {} rows were found", rows.len());
    for (feature, cell) in rows {
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{feature}: no test backs it");
        for name in names {
            let figure = cell.contains("measured by") && is_figure(&everything, name);
            assert!(figure || is_proof(&everything, name), "{feature}: there is no test {name}");
        }
    }
    assert!(!is_proof(&everything, "all_sources"), "what is no test proves nothing");
}

/// The sources above each function of that name: its attributes and its text.
fn above<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let head = format!("fn {name}(");
    let found = text.match_indices(&head);
    found.map(|(at, _)| text[..at].rsplit("\n\n").next().unwrap_or_default()).collect()
}

/// True for the name of a test. What is only measured proves nothing of itself: see [`is_figure`].
fn is_proof(everything: &[(PathBuf, String)], name: &str) -> bool {
    let is_test = |own: &&str| {
        own.lines().any(|line| {
            let line = line.trim();
            line == "#[test]" || line.starts_with("#[tokio::test")
        })
    };
    everything.iter().any(|(_, text)| above(text, name).iter().any(is_test))
}

/// True for `bench/function` of a benchmark, when the function says that it is where a figure comes from.
fn is_figure(everything: &[(PathBuf, String)], name: &str) -> bool {
    let Some((bench, function)) = name.split_once('/') else { return false };
    let file = workspace().join("tests/benches").join(format!("{bench}.rs"));
    let source = everything.iter().find(|(path, _)| *path == file);
    let marked = |own: &&str| own.lines().any(|line| line.trim().starts_with("/// Figure: "));
    source.is_some_and(|(_, text)| above(text, function).iter().any(marked))
}

#[test]
fn only_tests_are_proofs_and_only_what_is_marked_is_a_figure() {
    let text = "/// Text.\n#[test]\nfn held() {}\n\n/// Figure: the cost.\nfn costs() {}\n\nfn helps() {}\n\n\
                #[tokio::test(flavor = \"x\")]\nasync fn waits() {}\n\n// A #[test] of words.\nfn spoken() {}\n";
    let bench = workspace().join("tests/benches/made_up.rs");
    let everything = vec![(bench, text.to_owned())];
    assert!(is_proof(&everything, "held") && is_proof(&everything, "waits"));
    for name in ["costs", "helps", "spoken", "absent", "made_up/costs"] {
        assert!(!is_proof(&everything, name), "{name}");
    }
    assert!(is_figure(&everything, "made_up/costs"));
    for name in ["costs", "made_up/helps", "made_up/held", "other/costs", "made_up/absent"] {
        assert!(!is_figure(&everything, name), "{name}");
    }
}

#[test]
fn the_ritual_of_the_readme_is_what_ci_runs() {
    let read = |name: &str| fs::read_to_string(workspace().join(name)).expect("it is there");
    assert!(read("README.md").contains("cargo test --workspace"));
    assert!(read(".ci/run").lines().any(|line| line.trim() == "cargo test --workspace --locked"));
}

/// Lines beyond which a file holds more than one thing.
const FILE_MAX: usize = 600;

#[test]
fn no_source_is_longer_than_a_reader_holds_in_mind() {
    let mut long = vec![];
    for path in all_sources() {
        let lines = fs::read_to_string(&path).expect("a source is text").lines().count();
        if lines > FILE_MAX {
            long.push(format!("{} has {lines} lines", path.display()));
        }
    }
    assert!(long.is_empty(), "split by responsibility, at most {FILE_MAX} lines:\n{}", long.join("\n"));
}
