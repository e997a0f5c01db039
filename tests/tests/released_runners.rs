//! Runners of released versions of the plugin API, as somebody built them then: files that no build
//! of today's sources makes, loaded and run by today's host.
//!
//! There is one in C, of 14 KiB. None in Rust is kept: stripped it has half a MiB, for each minor,
//! for good; `plugin-api/abi/1.N.txt` says all that the loader compares of it, and `.ci/golden`
//! builds it from the sources of its day.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta};
use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::{LoadError, PluginStore, RunnerBackend, RunnerError, map};
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::context::method;
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{CallError, Mandate, State, Status, Usage, code};
use kairos_tests::hostile::checked;
use serde_json::{Value, json};

/// The file of 1.0 and its sum: it is never made again.
const C_1_0: &str = "f56261b8faea51a6a7bf10aecbdcda990987fb32dffcfe461170c149aaa0236c";

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/released/c-1.0.so")
}

fn load(root: &Path, params: Value, home: &FakeHost) -> Result<Box<dyn RunnerBackend>, LoadError> {
    let file = PluginFile::open(&file())?;
    assert_eq!(file.sha256, C_1_0, "a released runner is another one now");
    let path = PluginStore::new(root).keep(&file)?;
    map(&path, &file.sha256, &file.manifest, &Setup::new(params), Arc::new(home.clone()))
}

#[test]
fn a_c_runner_built_at_1_0_is_taken_by_the_check() {
    let report = checked(&file());
    assert!(report.loads, "{report:?}");
    assert_eq!((report.abi.as_deref(), report.name.as_deref()), (Some("c 1.0.0"), Some("released")));
}

#[test]
fn a_c_runner_built_at_1_0_runs_and_finds_all_of_its_host() {
    let root = tempfile::tempdir().unwrap();
    let home = FakeHost::new();
    let runner = load(root.path(), json!({}), &home).unwrap();
    runner.probe().unwrap();
    let host = FakeHost::new()
        .reply("so")
        .tool_reply("fs.read", json!({"content": "inside"}))
        .deadline(DateTime::UNIX_EPOCH + TimeDelta::days(40_000));
    let mut mandate = Mandate::new("m", "see");
    mandate.cycle = 2;
    let report = runner.run_cycle(&mandate, Arc::new(host.clone())).unwrap();
    assert_eq!(report.summary.as_deref(), Some("cycle 1, goal seen, stop 0, deadline set"));
    assert_eq!((report.status, report.more), (Status::Ok, true));
    assert_eq!((report.input_tokens, report.output_tokens), (7, 8));
    assert_eq!(host.phases(), ["observe"]);
    let asked: Vec<String> = host.steps().iter().map(|step| step.request.to_string()).collect();
    assert!(asked.iter().any(|request| request.contains("how?")), "{asked:?}");
    assert!(asked.iter().any(|request| request.contains("a.md")), "{asked:?}");
    let said = host.logs().into_iter().find(|line| line.message == "seen").unwrap();
    assert_eq!((said.level, said.fields), (tracing::Level::ERROR, json!({"n": 1})));
    let claimed = Usage { llm_calls: 1, input_tokens: 2, output_tokens: 3, cost_nano_usd: 4 };
    assert_eq!(host.claimed(), claimed);
}

#[test]
fn a_c_runner_built_at_1_0_hands_its_state_over_and_ends_as_it_is_told() {
    let root = tempfile::tempdir().unwrap();
    let home = FakeHost::new();
    let runner = load(root.path(), json!({}), &home).unwrap();
    let state = runner.export_state().unwrap();
    assert_eq!(state, Some(State { schema: "released/1".to_owned(), data: json!(0) }));
    runner.import_state(State { schema: "released/1".to_owned(), data: json!(40) }).unwrap();
    assert_eq!(runner.export_state().unwrap().unwrap().data, json!(40));
    match runner.import_state(State { schema: "other/1".to_owned(), data: json!(0) }) {
        Err(RunnerError::Call(error)) => assert_eq!(error, CallError::invalid("another schema")),
        other => panic!("{other:?}"),
    }
    let denied = CallError::new(code::DENIED, "not that one");
    let host = FakeHost::new().reply("so").fail_at(method::TOOL, 1, denied.clone());
    match runner.run_cycle(&Mandate::new("m", "see"), Arc::new(host)) {
        Err(RunnerError::Call(error)) => assert_eq!(error, denied),
        other => panic!("{other:?}"),
    }
    runner.cancel();
    assert!(runner.probe().unwrap_err().to_string().contains("it was cancelled"));
    runner.begin_drain();
    drop(runner);
    let said: Vec<String> = home.logs().iter().map(|line| line.message.clone()).collect();
    assert_eq!(said, ["created", "drained"]);
    let refused = load(root.path(), json!({"refuse": true}), &FakeHost::new()).err().unwrap();
    assert_eq!(refused.code(), "setup_refused", "{refused}");
}
