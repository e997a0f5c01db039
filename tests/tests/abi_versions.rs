//! Old and new versions of the plugin API meet: what 1.x may do loads and runs in both
//! directions, anything else is refused in words. The mutants are built from plugin-api's real
//! sources with one change each.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::{LoadError, PluginStore, RunnerBackend, library, map};
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{Mandate, abi};
use kairos_tests::plugin;
use mutant_newer::abi::{RResult, RSlice};
use serde_json::{Value, json};

/// The plugin in a store of its own, with what its file says.
fn kept(name: &str, root: &Path) -> (PathBuf, PluginFile) {
    let file = PluginFile::open(&plugin(name)).unwrap();
    (PluginStore::new(root).keep(&file).unwrap(), file)
}

fn load(name: &str, root: &Path) -> Result<Box<dyn RunnerBackend>, LoadError> {
    let (path, file) = kept(name, root);
    map(&path, &file.sha256, &file.manifest, &Setup::new(json!({})), Arc::new(FakeHost::new()))
}

#[test]
fn a_newer_runner_loads_and_runs_in_this_older_host() {
    let root = tempfile::tempdir().unwrap();
    let (_, file) = kept("mutant_newer", root.path());
    assert_eq!(file.manifest.api, "1.1.0");
    let runner = load("mutant_newer", root.path()).unwrap();
    // It calls a method that this host does not have; its own default answers.
    let host = FakeHost::new().reply("hello from 1.1");
    let report = runner.run_cycle(&Mandate::new("m", "greet"), Arc::new(host.clone())).unwrap();
    assert_eq!(report.summary.as_deref(), Some("hello from 1.1"));
    assert_eq!(host.phases(), ["observe"]);
    runner.cancel();
    runner.probe().unwrap();
    assert_eq!(runner.export_state().unwrap(), None);
    runner.begin_drain();
}

/// What a host of 1.1 gives the runner, and what it was asked.
#[derive(Default)]
struct Asked(Mutex<Vec<String>>);

impl mutant_newer::HostCalls for Asked {
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, mutant_newer::CallError> {
        self.0.lock().unwrap().push(format!("{method} {}", String::from_utf8_lossy(request)));
        Ok(if method == "llm" { br#"{"text":"fine"}"#.to_vec() } else { b"{}".to_vec() })
    }

    fn should_stop(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn log(&self, _: tracing::Level, _: &str, message: &str, _: &Value) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

#[test]
fn an_older_runner_loads_and_runs_in_a_newer_host() {
    let root = tempfile::tempdir().unwrap();
    // The stub is of 1.0; the host is one whose types are those of 1.1.
    let (path, file) = kept("stub", root.path());
    assert_eq!(file.manifest.api, abi::API_VERSION);
    let module = library::root_of::<mutant_newer::abi::RunnerModRef>(&path, &file.manifest, "1.1.0").unwrap();
    assert!(module.added().is_none(), "a function that 1.0 did not have");
    let asked = Arc::new(Asked::default());
    let host = || mutant_newer::Host(asked.clone() as _).boxed();
    let setup = serde_json::to_vec(&Setup::new(json!({}))).unwrap();
    let runner = match module.new_runner()(host(), RSlice::from_slice(&setup)) {
        RResult::ROk(runner) => runner,
        RResult::RErr(error) => panic!("{}", String::from_utf8_lossy(&error)),
    };
    let mandate = Mandate::new("m", "g").with_param("prompt", "how?").with_param("log", "hear me");
    let mandate = serde_json::to_vec(&mandate).unwrap();
    let report: Value = match runner.run_cycle(RSlice::from_slice(&mandate), host()) {
        RResult::ROk(report) => serde_json::from_slice(&report).unwrap(),
        RResult::RErr(error) => panic!("{}", String::from_utf8_lossy(&error)),
    };
    assert_eq!(report["summary"], json!("cycle 1 of m"));
    assert_eq!(runner.describe(), 11, "a method that 1.0 did not have has its default body");
    runner.begin_drain();
    let asked = asked.0.lock().unwrap();
    assert!(asked.iter().any(|call| call.starts_with("llm") && call.contains("how?")), "{asked:?}");
    assert!(asked.iter().any(|line| line == "hear me"), "{asked:?}");
}

#[test]
fn an_older_runner_is_refused_by_a_host_that_thinks_it_newer() {
    // The other direction alone would take anything with less in it; only an older one may have less.
    let root = tempfile::tempdir().unwrap();
    let (path, mut file) = kept("stub", root.path());
    file.manifest.api = "1.2.0".to_owned();
    let error = library::root_of::<mutant_newer::abi::RunnerModRef>(&path, &file.manifest, "1.1.0");
    assert_eq!(error.err().unwrap().code(), "layout_mismatch");
}

#[test]
fn changes_that_no_minor_version_may_make_are_refused_in_three_lines() {
    let root = tempfile::tempdir().unwrap();
    for (name, word) in [
        ("mutant_renamed", "at: the root module\ndifference: member manifest was expected, about found"),
        ("mutant_retyped", "vtable > run_cycle > param_1\ndifference: type RSlice"),
        ("mutant_swapped", "vtable\ndifference: member cancel was expected, probe found"),
        ("mutant_cut", "a fixed part of members: "),
    ] {
        let error = load(name, root.path()).err().unwrap_or_else(|| panic!("{name} was taken"));
        println!("{name}: {error}");
        assert_eq!(error.code(), "layout_mismatch", "{name}: {error}");
        let text = error.to_string();
        assert_eq!(text.lines().count(), 3, "{name}: {text}");
        assert!(text.contains("plugin-api 1.0.0") && text.contains(word), "{name}: {text}");
        // Neither does a newer host take them for older ones.
        let (path, file) = kept(name, root.path());
        let newer = library::root_of::<mutant_newer::abi::RunnerModRef>(&path, &file.manifest, "1.1.0");
        assert_eq!(newer.err().map(|error| error.code()), Some("layout_mismatch"), "{name}");
    }
}
