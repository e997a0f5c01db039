//! One suite over every kind of runner backend: what a cycle asks and answers must not depend on
//! where its runner lives.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kairos_host::domain::handover::{HandOver, InstanceState};
use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::{
    Builtin, Generation, Isolation, Launcher, PluginStore, RunnerConfig, RunnerError, Runners, SearchPath,
    WorkerFactory, map, method,
};
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report, State, Status, code};
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

/// A kind of backend whose runner counts the cycles it begins and hands the count over.
struct Counting {
    kind: &'static str,
    /// Cycles that run at once have an instance each.
    each: bool,
    /// Instances are for one schedule.
    confined: bool,
    start: fn(&Path) -> Arc<Generation>,
}

const COUNTING: &[Counting] = &[
    Counting { kind: "builtin", each: false, confined: false, start: counting_builtin },
    Counting {
        kind: "rust_abi",
        each: false,
        confined: false,
        start: |root| variant(root, Isolation::InProcess),
    },
    Counting { kind: "worker", each: true, confined: false, start: |root| variant(root, Isolation::Process) },
    Counting { kind: "sandbox", each: true, confined: true, start: |root| variant(root, Isolation::Sandbox) },
    Counting { kind: "c_abi", each: false, confined: false, start: c_abi },
    Counting { kind: "c_worker", each: true, confined: true, start: c_worker },
];

fn counting_builtin(_: &Path) -> Arc<Generation> {
    let runner = Builtin::of::<Counter>("counter", &json!({})).unwrap();
    Arc::new(Generation::of("counter", Arc::new(runner)))
}

fn variant(root: &Path, isolation: Isolation) -> Arc<Generation> {
    plugin(root, kairos_tests::plugin("variant_runner").to_str().unwrap(), isolation)
}

/// What the variant runner and the C fixture do, linked in.
struct Counter(AtomicU64);

impl CycleRunner for Counter {
    fn new(_: &Value) -> Result<Self, CallError> {
        Ok(Self(AtomicU64::new(0)))
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        if mandate.params.contains_key("prompt") {
            ctx.llm(&LlmRequest::user("p"))?;
            while !ctx.should_stop() {
                std::thread::yield_now();
            }
        }
        Ok(Report::ok())
    }

    fn export_state(&self) -> Result<Option<State>, CallError> {
        let data = json!({"ran": self.0.load(Ordering::SeqCst)});
        Ok(Some(State { schema: "variant/1".to_owned(), data }))
    }

    fn import_state(&self, state: State) -> Result<(), CallError> {
        let ran = state.data["ran"].as_u64().ok_or_else(|| CallError::invalid("no count in the state"))?;
        self.0.store(ran, Ordering::SeqCst);
        Ok(())
    }
}

/// A cycle for each of these schedules, all of them at once.
fn cycles(generation: &Generation, schedules: &[&str]) {
    let hosts: Vec<FakeHost> = schedules.iter().map(|_| FakeHost::new().reply("go")).collect();
    let begun = schedules.iter().zip(&hosts).map(|(schedule, host)| {
        let mut mandate = Mandate::new("m", "g").with_param("sleep_ms", 3_600_000).with_param("prompt", "p");
        mandate.schedule = Some((*schedule).to_owned());
        generation.start(mandate, Arc::new(host.clone()))
    });
    let begun: Vec<_> = begun.collect();
    while hosts.iter().any(|host| host.steps().is_empty()) {
        std::thread::yield_now();
    }
    hosts.iter().for_each(FakeHost::stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for cycle in begun {
        runtime.block_on(async { tokio::time::timeout(PATIENCE, cycle).await }).unwrap().unwrap().ok();
    }
}

/// Counts and whose they are, in order.
fn counts(states: &HandOver) -> Vec<(u64, Option<&str>)> {
    let of = |state: &InstanceState| state.state.data["ran"].as_u64().unwrap();
    let mut counts: Vec<_> = states.0.iter().map(|state| (of(state), state.owner.as_deref())).collect();
    counts.sort_unstable();
    counts
}

#[test]
fn state_goes_from_version_to_version_and_back() {
    for Counting { kind, confined, start, .. } in COUNTING {
        let root = tempfile::tempdir().unwrap();
        let owner = confined.then_some("s");
        let old = start(root.path());
        for _ in 0..3 {
            cycles(&old, &["s"]);
        }
        let states = old.hand_over().unwrap();
        assert_eq!(counts(&states), [(3, owner)], "{kind}");
        let new = start(root.path());
        new.take_over(states.clone()).unwrap();
        assert_eq!(new.hand_over().unwrap(), states, "{kind}: before a cycle has run");
        cycles(&new, &["s"]);
        let states = new.hand_over().unwrap();
        assert_eq!(counts(&states), [(4, owner)], "{kind}");
        // The instance that is still there becomes what its state is by now.
        old.take_over(states).unwrap();
        cycles(&old, &["s"]);
        assert_eq!(counts(&old.hand_over().unwrap()), [(5, owner)], "{kind}");
    }
}

#[test]
fn each_instance_hands_its_own_state_to_one_other() {
    for Counting { kind, each, confined, start } in COUNTING {
        let root = tempfile::tempdir().unwrap();
        let old = start(root.path());
        cycles(&old, &["a", "b"]);
        cycles(&old, &["a"]);
        let states = old.hand_over().unwrap();
        match (each, confined) {
            (_, true) => assert_eq!(counts(&states), [(1, Some("b")), (2, Some("a"))], "{kind}"),
            (true, _) => assert_eq!(counts(&states), [(1, None), (2, None)], "{kind}"),
            _ => assert_eq!(counts(&states), [(3, None)], "{kind}"),
        }
        let new = start(root.path());
        new.take_over(states).unwrap();
        // One more each: in a sandbox by schedule, and for none that nobody left anything for.
        cycles(&new, &["b", "a"]);
        let states = new.hand_over().unwrap();
        match (each, confined) {
            (_, true) => {
                assert_eq!(counts(&states), [(2, Some("b")), (3, Some("a"))], "{kind}");
                cycles(&new, &["c"]);
                let states = new.hand_over().unwrap();
                assert_eq!(counts(&states), [(1, Some("c")), (2, Some("b")), (3, Some("a"))], "{kind}");
            }
            (true, _) => assert_eq!(counts(&states), [(2, None), (3, None)], "{kind}"),
            _ => assert_eq!(counts(&states), [(5, None)], "{kind}"),
        }
    }
}

#[test]
fn a_state_that_an_instance_refuses_is_told_and_handed_on() {
    for Counting { kind, confined, start, .. } in COUNTING {
        let root = tempfile::tempdir().unwrap();
        let new = start(root.path());
        let state = State { schema: "variant/1".to_owned(), data: json!({"walked": 1}) };
        let owner = confined.then(|| "s".to_owned());
        let refused = InstanceState { id: 7, owner, state, aside: false };
        match new.take_over(HandOver(vec![refused.clone()])) {
            Err(RunnerError::Call(error)) => assert!(error.message.contains("no count"), "{kind}: {error}"),
            other => panic!("{kind}: {other:?}"),
        }
        cycles(&new, &["s"]);
        let states = new.hand_over().unwrap();
        let aside: Vec<_> = states.0.iter().filter(|state| state.aside).collect();
        assert_eq!(aside, [&InstanceState { aside: true, ..refused }], "{kind}");
        assert_eq!(states.0.len(), 2, "{kind}: and its own, which began without");
    }
}

#[test]
fn states_that_no_worker_has_room_for_wait_and_go_to_those_that_start_later() {
    let names: Vec<String> = (0..18).map(|n| format!("s{n:02}")).collect();
    let schedules: Vec<&str> = names.iter().map(String::as_str).collect();
    for (isolation, owned) in [(Isolation::Sandbox, true), (Isolation::Process, false)] {
        let root = tempfile::tempdir().unwrap();
        // All at once: more than are kept idle, so that some leave their state when they end.
        let old = variant(root.path(), isolation);
        cycles(&old, &schedules);
        let states = old.hand_over().unwrap();
        let expected = |ran: u64| -> Vec<(u64, Option<&str>)> {
            schedules.iter().map(|schedule| (ran, owned.then_some(*schedule))).collect()
        };
        assert_eq!(counts(&states), expected(1), "{isolation}");
        let new = variant(root.path(), isolation);
        new.take_over(states).unwrap();
        cycles(&new, &schedules);
        assert_eq!(counts(&new.hand_over().unwrap()), expected(2), "{isolation}");
        // Fewer cycles at once than before: what nobody has taken up goes on all the same.
        let last = variant(root.path(), isolation);
        last.take_over(new.hand_over().unwrap()).unwrap();
        cycles(&last, &schedules[..1]);
        let states = last.hand_over().unwrap();
        let sum: u64 = counts(&states).iter().map(|count| count.0).sum();
        assert_eq!((states.0.len(), sum), (18, 2 * 18 + 1), "{isolation}");
    }
}

#[test]
fn nothing_without_an_owner_reaches_a_sandbox_and_nothing_of_it_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let open = variant(root.path(), Isolation::Process);
    cycles(&open, &["a"]);
    let confined = variant(root.path(), Isolation::Sandbox);
    confined.take_over(open.hand_over().unwrap()).unwrap();
    cycles(&confined, &["a", "b"]);
    let states = confined.hand_over().unwrap();
    assert_eq!(counts(&states), [(1, None), (1, Some("a")), (1, Some("b"))]);
    // Outside of a sandbox again, each goes to an instance.
    open.take_over(states).unwrap();
    cycles(&open, &["a", "b", "c"]);
    assert_eq!(counts(&open.hand_over().unwrap()), [(2, None), (2, None), (2, None)]);
}
