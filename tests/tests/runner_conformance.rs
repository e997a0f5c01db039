//! One suite over every kind of runner backend: what a cycle asks and answers must not depend on
//! where its runner lives.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::{
    Builtin, Generation, Isolation, Launcher, PluginStore, RunnerConfig, RunnerError, Runners, SearchPath,
    WorkerFactory, map, method,
};
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{CallError, Mandate, Report, Status, code};
use kairos_tests::c_plugin::compiled;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A kind of backend, and what it cannot do by its nature.
struct Backend {
    kind: &'static str,
    /// What its identity says.
    abi: &'static str,
    /// Its runners can panic. C has no panics.
    panics: bool,
    /// Its runners trace, and the events come by the host. A builtin's go to the program's own
    /// subscriber like all others; C does not trace.
    traces: bool,
    start: fn(&Path) -> Arc<Generation>,
}

/// Every kind there is; the stub runner stands behind each.
const BACKENDS: &[Backend] = &[
    Backend { kind: "builtin", abi: "builtin", panics: true, traces: false, start: builtin },
    Backend { kind: "rust_abi", abi: "rust", panics: true, traces: true, start: rust_abi },
    Backend { kind: "worker", abi: "rust", panics: true, traces: true, start: worker },
    Backend { kind: "sandbox", abi: "rust", panics: true, traces: true, start: sandbox },
    Backend { kind: "c_abi", abi: "c", panics: false, traces: false, start: c_abi },
    Backend { kind: "c_worker", abi: "c", panics: false, traces: false, start: c_worker },
];

fn builtin(_: &Path) -> Arc<Generation> {
    let runner = Builtin::of::<stub::Stub>("stub", &json!({})).unwrap().with_phases();
    Arc::new(Generation::of("stub", Arc::new(runner)))
}

fn rust_abi(root: &Path) -> Arc<Generation> {
    plugin(root, "stub", Isolation::InProcess)
}

fn worker(root: &Path) -> Arc<Generation> {
    plugin(root, "stub", Isolation::Process)
}

fn sandbox(root: &Path) -> Arc<Generation> {
    plugin(root, "stub", Isolation::Sandbox)
}

fn c_abi(root: &Path) -> Arc<Generation> {
    let path = compiled("tests/fixtures/conformance.c", "stub", root);
    let file = PluginFile::open(&path).unwrap();
    let home = Arc::new(FakeHost::new());
    let backend = map(&path, &file.sha256, &file.manifest, &Setup::new(json!({})), home).unwrap();
    Arc::new(Generation::of("stub", Arc::from(backend)))
}

/// A stranger's file, so in a worker that confines itself.
fn c_worker(root: &Path) -> Arc<Generation> {
    let path = compiled("tests/fixtures/conformance.c", "stub", root);
    plugin(root, path.to_str().unwrap(), Isolation::Sandbox)
}

fn plugin(root: &Path, plugin: &str, isolation: Isolation) -> Arc<Generation> {
    let config = RunnerConfig { isolation: Some(isolation), ..RunnerConfig::new("stub", plugin) };
    registry(root.to_owned(), vec![config]).current("stub").unwrap()
}

/// A backend under test, with what it needs to live.
struct Subject {
    kind: &'static str,
    backend: &'static Backend,
    generation: Arc<Generation>,
    _root: tempfile::TempDir,
}

fn subjects() -> impl Iterator<Item = Subject> {
    BACKENDS.iter().map(|backend| {
        let root = tempfile::tempdir().unwrap();
        Subject { kind: backend.kind, backend, generation: (backend.start)(root.path()), _root: root }
    })
}

fn registry(root: PathBuf, configs: Vec<RunnerConfig>) -> Runners {
    // Cargo puts the plugins that tests depend on beside the test programs.
    let exe = std::env::current_exe().unwrap();
    let search = SearchPath::new(&root, exe.parent(), None);
    let store = PluginStore::new(root.join(".kairos/plugins/store"));
    let workers = WorkerFactory::new(kairos_tests::kairos()).unwrap();
    Runners::load(configs, Launcher::with_workers(search, store, workers))
}

fn run(subject: &Subject, host: &FakeHost, params: Value) -> Result<Report, RunnerError> {
    let mut mandate = Mandate::new("m1", "be tested");
    mandate.params = params.as_object().unwrap().clone();
    let outcome = subject.generation.start(mandate, Arc::new(host.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, outcome).await })
        .unwrap_or_else(|_| panic!("{}: no outcome", subject.kind))
        .unwrap_or_else(|_| panic!("{}: the thread died", subject.kind))
}

#[test]
fn reports_come_through_whole() {
    for subject in subjects() {
        let kind = subject.kind;
        let params = json!({"llm_calls": 2, "input_tokens": 300, "output_tokens": 40, "more": true});
        let report = run(&subject, &FakeHost::new(), params).unwrap();
        assert_eq!(report.status, Status::Ok, "{kind}");
        assert_eq!((report.llm_calls, report.input_tokens, report.output_tokens), (2, 300, 40), "{kind}");
        assert!(report.more, "{kind}");
        assert_eq!(report.summary.as_deref(), Some("cycle 1 of m1"), "{kind}");
        let paused = run(&subject, &FakeHost::new(), json!({"status": "paused"})).unwrap();
        assert_eq!((paused.status, paused.more), (Status::Paused, false), "{kind}");
        let failed = run(&subject, &FakeHost::new(), json!({"status": "error"})).unwrap();
        assert_eq!(failed.status, Status::Error, "{kind}");
        assert_eq!(failed.error.as_deref(), Some("the mandate asked for an error"), "{kind}");
    }
}

#[test]
fn the_identity_says_who_runs() {
    for subject in subjects() {
        let identity = subject.generation.identity();
        assert_eq!((identity.name.as_str(), identity.abi.as_str()), ("stub", subject.backend.abi));
        assert_eq!(identity.generation.len(), 64);
        assert!(identity.phases, "{}", subject.kind);
        subject.generation.probe().unwrap();
    }
}

#[test]
fn host_calls_are_forwarded_with_their_answers() {
    for subject in subjects() {
        let kind = subject.kind;
        let host = FakeHost::new().reply("fine").tool_reply("fs.read", "text");
        let params = json!({
            "phases": true, "prompt": "how are you?",
            "tool": {"name": "fs.read", "args": {"path": "a.md"}},
        });
        run(&subject, &host, params).unwrap();
        assert_eq!(host.phases(), ["observe", "orient", "decide", "act", "reflect"], "{kind}");
        let steps = host.steps();
        assert_eq!(steps.len(), 2, "{kind}");
        assert_eq!(steps[0].request["messages"][0]["content"], json!("how are you?"), "{kind}");
        assert_eq!(steps[1].request, json!({"name": "fs.read", "args": {"path": "a.md"}}), "{kind}");
    }
}

#[test]
fn errors_keep_their_code_and_detail() {
    for subject in subjects() {
        let kind = subject.kind;
        let mut parked = CallError::new(code::PAUSED, "waits for Ada");
        parked.detail = json!({"proposal": "p7"});
        for error in [parked, CallError::new(code::DENIED, "not here"), CallError::new("later_word", "new")] {
            let host = FakeHost::new().fail_at(method::TOOL, 1, error.clone());
            match run(&subject, &host, json!({"tool": "fs.edit"})) {
                Err(RunnerError::Call(got)) => assert_eq!(got, error, "{kind}"),
                other => panic!("{kind}: {other:?}"),
            }
        }
        match run(&subject, &FakeHost::new(), json!({"sleep": 3})) {
            Err(RunnerError::Call(error)) => {
                assert_eq!(error.code, code::INVALID, "{kind}");
                assert!(error.message.contains("unknown field `sleep`"), "{kind}: {}", error.message);
            }
            other => panic!("{kind}: {other:?}"),
        }
    }
}

#[test]
fn a_stop_is_seen_in_the_middle_of_work() {
    for subject in subjects() {
        let host = FakeHost::new().reply("x");
        let stopper = host.clone();
        // The work begins by asking the model; the stop comes while it sleeps after that.
        let waiter = std::thread::spawn(move || {
            while stopper.steps().is_empty() {
                std::thread::yield_now();
            }
            stopper.stop();
        });
        let outcome = run(&subject, &host, json!({"prompt": "begin", "sleep_ms": 3_600_000}));
        waiter.join().unwrap();
        match outcome {
            Err(RunnerError::Call(error)) => assert_eq!(error.code, code::STOPPED, "{}", subject.kind),
            other => panic!("{}: {other:?}", subject.kind),
        }
    }
}

#[test]
fn a_panic_is_an_error_and_the_next_cycle_runs() {
    for subject in subjects().filter(|subject| subject.backend.panics) {
        for _ in 0..3 {
            match run(&subject, &FakeHost::new(), json!({"panic": true})) {
                Err(RunnerError::Panic(text)) => {
                    assert!(text.contains("the mandate asked for a panic"), "{}: {text}", subject.kind);
                }
                other => panic!("{}: {other:?}", subject.kind),
            }
            let report = run(&subject, &FakeHost::new(), json!({})).unwrap();
            assert_eq!(report.status, Status::Ok, "{}", subject.kind);
        }
    }
}

#[test]
fn logs_arrive_at_the_cycles_host() {
    for subject in subjects() {
        let host = FakeHost::new();
        run(&subject, &host, json!({"log": "hear me"})).unwrap();
        let logs = host.logs();
        assert!(logs.iter().any(|line| line.target == "runner" && line.message == "hear me"), "{logs:?}");
        let traced = logs.iter().find(|line| line.target == "stub");
        assert_eq!(traced.is_some(), subject.backend.traces, "{}: {logs:?}", subject.kind);
        if let Some(line) = traced {
            assert_eq!((line.message.as_str(), &line.fields), ("asked to log", &json!({"line": "hear me"})));
        }
    }
}

#[test]
fn many_cycles_run_at_once() {
    for subject in subjects() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let hosts: Vec<FakeHost> = (0..20).map(|_| FakeHost::new().reply("go")).collect();
        let cycles: Vec<_> = hosts
            .iter()
            .map(|host| {
                let mandate =
                    Mandate::new("m", "g").with_param("sleep_ms", 3_600_000).with_param("prompt", "p");
                subject.generation.start(mandate, Arc::new(host.clone()))
            })
            .collect();
        // All of them are in the middle of their work before the first is allowed to end.
        while hosts.iter().any(|host| host.steps().is_empty()) {
            std::thread::yield_now();
        }
        hosts.iter().for_each(FakeHost::stop);
        for cycle in cycles {
            let outcome = runtime.block_on(async { tokio::time::timeout(PATIENCE, cycle).await });
            assert!(matches!(outcome, Ok(Ok(Err(RunnerError::Call(_))))), "{}", subject.kind);
        }
    }
}
