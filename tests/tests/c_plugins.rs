//! C plugins with faults: in their table, in their answers, in how they use the host. Each is an
//! error with a code of its own, and the process lives on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Arc;

use chrono::DateTime;
use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::{LoadError, RunnerBackend, RunnerError, map};
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::context::method;
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{CallError, Mandate, Report, State, Status, code};
use kairos_tests::c_plugin::{compile, compiled};
use kairos_tests::hostile::checked;
use serde_json::{Value, json};

fn start(path: &Path, params: Value, home: &FakeHost) -> Result<Box<dyn RunnerBackend>, LoadError> {
    let file = PluginFile::open(path)?;
    map(path, &file.sha256, &file.manifest, &Setup::new(params), Arc::new(home.clone()))
}

/// The fixture with these faults in its table.
fn load(faults: &[&str]) -> Result<Box<dyn RunnerBackend>, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libfaults.so");
    compile("tests/fixtures/faults.c", faults, &path);
    let outcome = start(&path, json!({}), &FakeHost::new());
    // What `plugin check` says is what the host meets.
    let codes: Vec<_> = checked(&path).errors.iter().map(|error| error.code).collect();
    assert_eq!(codes, outcome.as_ref().err().map(LoadError::code).into_iter().collect::<Vec<_>>());
    outcome
}

fn run(runner: &dyn RunnerBackend, host: &FakeHost, fault: &str) -> Result<Report, RunnerError> {
    runner.run_cycle(&Mandate::new("m", "g").with_param("fault", fault), Arc::new(host.clone()))
}

#[test]
fn tables_that_cannot_be_used_have_their_own_codes() {
    for (faults, code, word) in [
        (&["NO_ENTRY"] as &[&str], "not_a_runner", "exports no runner"),
        (&["NO_TABLE"], "wrong_major", "does not serve major 1"),
        (&["OTHER_MAJOR"], "wrong_major", "plugin-api 2.0; this host takes 1.x"),
        (&["API=\"2.0.0\""], "wrong_major", "2.0.0"),
        (&["API=\"soon\""], "bad_manifest", "soon"),
        (&["SIZE=0"], "bad_table", "its size is 0"),
        (&["SIZE=40"], "bad_table", "its size is 40"),
        (&["SIZE=4000000000u"], "bad_table", "its size is 4000000000"),
        (&["NO_RUN"], "bad_table", "run_cycle is NULL"),
        (&["MISALIGNED"], "bad_table", "not aligned"),
        (&["OTHER_MANIFEST"], "manifest_lies", "something else than the section"),
        (&["NO_MANIFEST"], "bad_manifest", "bytes at NULL"),
    ] {
        let error = load(faults).err().unwrap_or_else(|| panic!("{faults:?} was taken"));
        assert_eq!(error.code(), code, "{faults:?}: {error}");
        assert!(error.to_string().contains(word), "{faults:?}: {error}");
    }
}

#[test]
fn a_c_runner_of_an_older_or_newer_minor_runs() {
    let report = run(&*load(&["NEWER"]).unwrap(), &FakeHost::new(), "none").unwrap();
    assert_eq!(report.status, Status::Ok);
    // What an older one does not have is done without.
    let older = load(&["OLDER"]).unwrap();
    assert_eq!(run(&*older, &FakeHost::new(), "none").unwrap().status, Status::Ok);
    older.cancel();
    older.begin_drain();
    older.probe().unwrap();
    assert_eq!(older.export_state().unwrap(), None);
    older.import_state(State { schema: "s/1".to_owned(), data: json!(1) }).unwrap();
}

#[test]
fn answers_that_cannot_be_used_are_errors() {
    let runner = load(&[]).unwrap();
    let run = |fault: &str| run(&*runner, &FakeHost::new(), fault);
    for (fault, word) in [
        ("nothing", "it answered nothing"),
        ("nowhere", "5 bytes at NULL"),
        ("endless", "no payload has more"),
        ("no_json", "expected value"),
        ("no_report", "splendid"),
        ("no_utf8", "UTF-8"),
    ] {
        match run(fault) {
            Err(RunnerError::BadReport(text)) => assert!(text.contains(word), "{fault}: {text}"),
            other => panic!("{fault}: {other:?}"),
        }
    }
    for (fault, expected) in [
        ("silent_error", CallError::failed("the runner answered 1 and said nothing")),
        ("odd_status", CallError::new("later_word", "new")),
        ("odd_error", CallError::failed("unreadable error: splendid")),
    ] {
        match run(fault) {
            Err(RunnerError::Call(error)) => assert_eq!(error, expected, "{fault}"),
            other => panic!("{fault}: {other:?}"),
        }
    }
    assert_eq!(run("none").unwrap().status, Status::Ok);
}

#[test]
fn misuse_of_the_host_is_borne() {
    let runner = load(&[]).unwrap();
    let host = FakeHost::new();
    assert_eq!(run(&*runner, &host, "misuse").unwrap().status, Status::Ok);
    assert!(host.logs().iter().any(|line| line.message.is_empty()), "{:?}", host.logs());
}

#[test]
fn an_answer_that_ends_the_attempt_cannot_be_swallowed() {
    let runner = load(&[]).unwrap();
    let parked = CallError::new(code::PAUSED, "waits for the budget");
    let host = FakeHost::new().fail_at(method::LLM, 1, parked);
    match run(&*runner, &host, "swallow") {
        Err(RunnerError::Call(error)) => {
            assert_eq!(error.code, code::PAUSED);
            assert_eq!(error.detail["report"]["status"], json!("ok"), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_instance_lives_from_create_to_destroy() {
    let dir = tempfile::tempdir().unwrap();
    let path = compiled("tests/fixtures/faults.c", "faults", dir.path());
    let home = FakeHost::new();
    let error = start(&path, json!({"fault": "refuse"}), &home).err().unwrap();
    assert_eq!((error.code(), home.logs().len()), ("setup_refused", 0));
    assert!(error.to_string().contains("params.fault says to refuse"), "{error}");
    let runner = start(&path, json!({}), &home).unwrap();
    assert_eq!(runner.identity().abi, "c");
    let host = FakeHost::new().deadline(DateTime::UNIX_EPOCH + chrono::TimeDelta::days(40_000));
    assert!(run(&*runner, &host, "none").unwrap().more, "it sees the deadline");
    runner.probe().unwrap();
    assert_eq!(runner.export_state().unwrap(), None);
    let state = State { schema: "s/1".to_owned(), data: json!({"n": 1}) };
    runner.import_state(state.clone()).unwrap();
    assert_eq!(runner.export_state().unwrap(), Some(state));
    let long = State { schema: "s/1".to_owned(), data: json!("x".repeat(100)) };
    match runner.import_state(long) {
        Err(RunnerError::Call(error)) => assert_eq!(error, CallError::invalid("too long")),
        other => panic!("{other:?}"),
    }
    runner.cancel();
    assert_eq!(run(&*runner, &FakeHost::new(), "none").unwrap().status, Status::Paused);
    assert!(runner.probe().unwrap_err().to_string().contains("cancelled for good"));
    runner.begin_drain();
    drop(runner);
    let said: Vec<String> = home.logs().iter().map(|line| line.message.clone()).collect();
    assert_eq!(said, ["created", "destroyed after the drain"]);
}

#[test]
fn the_example_in_c_counts_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = compiled("examples/c-runner/runner.c", "word-count", dir.path());
    let report = checked(&path);
    assert!(report.loads, "{report:?}");
    assert_eq!((report.abi.as_deref(), report.name.as_deref()), (Some("c 1.0.0"), Some("word-count")));
    assert!(report.human().contains("abi      c 1.0.0\n"), "{}", report.human());
    let runner = start(&path, Value::Null, &FakeHost::new()).unwrap();
    let mandate = Mandate::new("m", "Count.").with_param("file", "a.md");
    let content = "one \"two\"\tthree\n\nvier f\u{fc}nf\n";
    let host = FakeHost::new().tool_reply("fs.read", json!({"content": content}));
    let report = runner.run_cycle(&mandate, Arc::new(host.clone())).unwrap();
    assert_eq!(report.summary.as_deref(), Some("3 lines, 5 words"));
    assert_eq!(host.phases(), ["observe"]);
    assert_eq!(host.steps()[0].request, json!({"name": "fs.read", "args": {"path": "a.md"}}));
    let host = FakeHost::new().fail_at(method::TOOL, 1, CallError::new(code::DENIED, "not that one"));
    match runner.run_cycle(&mandate, Arc::new(host)) {
        Err(RunnerError::Call(error)) => assert_eq!(error, CallError::new(code::DENIED, "not that one")),
        other => panic!("{other:?}"),
    }
}
