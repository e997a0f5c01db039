//! Files whose code turns against whoever maps it. Each fault has its own code, whoever offers
//! them lives, and the runner beside them serves on: in the library and in a daemon.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the files of a test need not be durable")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kairos_host::runner::trust::TrustPolicy;
use kairos_host::runner::{
    Isolation, Launcher, LoadError, PluginStore, RunnerConfig, Runners, SearchPath, WorkerFactory,
};
use kairos_plugin_api::Mandate;
use kairos_plugin_api::testing::FakeHost;
use kairos_tests::hostile::{Chance, checked, hostile_bytes, hostile_c, patched};
use kairos_tests::{Root, kairos, plugin, target_dir};
use serde_json::{Value, json};

fn launcher(root: &Path, workers: WorkerFactory) -> Launcher {
    let search = SearchPath::new(root, Some(&target_dir().join("deps")), None);
    Launcher::with_workers(search, PluginStore::new(root.join(".kairos/state/plugins")), workers)
}

fn load(root: &Path, isolation: Isolation, workers: WorkerFactory) -> Result<(), LoadError> {
    let config = RunnerConfig { isolation: Some(isolation), ..RunnerConfig::new("bad", "./libbad.so") };
    Runners::load(vec![config], launcher(root, workers)).current("bad").map(|_| ())
}

/// It says that it is in C and has no entry of a plugin in C.
const CLAIMS_C: &str = r#"CLAIM="schema":1,"name":"hostile","version":"1.0.0","api":"1.0.0","abi":"c""#;

/// What a constructor does, the code of it and a word of its message.
const FAULTS: [(&[&str], &str, &str); 9] = [
    (&["CONSTRUCTOR", "DO_ABORT"], "crashed", "SIGABRT"),
    (&["CONSTRUCTOR", "DO_SEGFAULT"], "crashed", "SIGSEGV"),
    (&["CONSTRUCTOR", "DO_KILL"], "crashed", "SIGKILL"),
    (&["CONSTRUCTOR", "DO_EXIT"], "crashed", "0"),
    (&["CONSTRUCTOR", "DO_QUICK_EXIT"], "crashed", "7"),
    (&["CONSTRUCTOR", "DO_GARBAGE"], "crashed", ""),
    (&["CONSTRUCTOR", "DO_FLOOD"], "not_a_runner", "exports no runner"),
    (&[CLAIMS_C], "not_a_runner", "exports no runner"),
    (&["UNDEFINED"], "load_failed", "nobody_defines_this"),
];

#[test]
fn a_file_that_kills_whoever_maps_it_kills_a_worker_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let workers = WorkerFactory::new(kairos()).unwrap();
    for (defines, code, word) in FAULTS {
        let path = hostile_c(root.path(), "bad", defines);
        for isolation in [Isolation::Process, Isolation::InProcess] {
            let error = load(root.path(), isolation, workers.clone()).unwrap_err();
            assert_eq!(error.code(), code, "{defines:?} {isolation}: {error}");
            assert!(error.to_string().contains(word), "{defines:?} {isolation}: {error}");
        }
        let report = checked(&path);
        assert_eq!(report.errors.iter().map(|error| error.code).collect::<Vec<_>>(), [code], "{defines:?}");
        assert!(report.human().lines().count() <= 10, "{}", report.human());
    }
}

#[test]
fn a_file_that_never_finishes_loading_is_given_up() {
    let root = tempfile::tempdir().unwrap();
    let _ = hostile_c(root.path(), "bad", &["CONSTRUCTOR", "DO_HANG"]);
    let workers = WorkerFactory::new(kairos()).unwrap().with_load_time(Duration::from_secs(1));
    for isolation in [Isolation::Process, Isolation::InProcess] {
        let error = load(root.path(), isolation, workers.clone()).unwrap_err();
        assert_eq!(error.code(), "load_timeout", "{isolation}: {error}");
    }
}

#[test]
fn files_damaged_behind_their_headers_cost_a_worker_at_most() {
    let root = tempfile::tempdir().unwrap();
    let whole = fs::read(plugin("hostile_load")).unwrap();
    let small = hostile_bytes(&[]);
    let workers = WorkerFactory::new(kairos()).unwrap().with_load_time(Duration::from_secs(5));
    let seed = 0x5eed_0003;
    let mut chance = Chance::new(seed);
    for round in 0..40 {
        let mut bytes = if round % 4 == 0 { whole.clone() } else { small.clone() };
        for _ in 0..1 + chance.below(200) {
            // Past the headers, so that most get as far as the system's loader.
            let at = 0x200 + chance.below(bytes.len() - 0x200);
            bytes[at] = u8::try_from(chance.below(256)).unwrap();
        }
        fs::write(root.path().join("libbad.so"), &bytes).unwrap();
        // None of them is a runner, so each is some error; that there is one is what counts.
        let error = load(root.path(), Isolation::InProcess, workers.clone()).unwrap_err();
        assert!(!error.to_string().is_empty(), "seed {seed:#x}, round {round}");
    }
}

#[test]
fn an_untrusted_file_is_never_run_unconfined() {
    let root = tempfile::tempdir().unwrap();
    fs::copy(plugin("stub"), root.path().join("libbad.so")).unwrap();
    let search = SearchPath::new(root.path(), Some(&target_dir().join("deps")), None);
    let policy = TrustPolicy::new(root.path().join("trust.json"), &search);
    for isolation in [Isolation::Process, Isolation::InProcess] {
        let config = RunnerConfig { isolation: Some(isolation), ..RunnerConfig::new("bad", "./libbad.so") };
        let launcher = launcher(root.path(), WorkerFactory::new(kairos()).unwrap()).trusting(policy.clone());
        let error = Runners::load(vec![config], launcher).current("bad").unwrap_err();
        assert_eq!(error.code(), "untrusted", "{error}");
        assert!(error.remedy().contains("isolation: sandbox"), "{error}");
    }
    // The same bytes beside the executable are trusted.
    let config = RunnerConfig { isolation: Some(Isolation::Process), ..RunnerConfig::new("good", "stub") };
    let launcher = launcher(root.path(), WorkerFactory::new(kairos()).unwrap()).trusting(policy);
    let generation = Runners::load(vec![config], launcher).current("good").unwrap();
    generation.start(Mandate::new("m", "g"), Arc::new(FakeHost::new())).blocking_recv().unwrap().unwrap();
}

#[test]
fn what_spoke_for_a_file_speaks_for_its_kept_copy_when_the_file_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy(plugin("stub"), bin.join("libmine.so")).unwrap();
    let search = SearchPath::new(root.path(), Some(&bin), None);
    let store = PluginStore::new(root.path().join("store"));
    let workers = WorkerFactory::new(kairos()).unwrap();
    let runners = || {
        let launcher = Launcher::with_workers(search.clone(), store.clone(), workers.clone())
            .trusting(TrustPolicy::new(root.path().join("trust.json"), &search));
        let process = Some(Isolation::Process);
        Runners::load(
            vec![RunnerConfig { isolation: process, ..RunnerConfig::new("mine", "mine") }],
            launcher,
        )
    };
    let began = runners().current("mine").unwrap().identity().generation.clone();
    fs::remove_file(bin.join("libmine.so")).unwrap();
    // A copy of it that nothing speaks for does not make the kept one worse.
    fs::create_dir_all(root.path().join(".kairos/plugins")).unwrap();
    fs::copy(plugin("stub"), root.path().join(".kairos/plugins/libmine.so")).unwrap();
    let later = runners();
    assert_eq!(later.current("mine").unwrap_err().code(), "untrusted");
    let generation = later.pinned("mine", &began).unwrap();
    generation.start(Mandate::new("m", "g"), Arc::new(FakeHost::new())).blocking_recv().unwrap().unwrap();
    // What was kept to speak for it is gone: nothing does.
    fs::remove_file(root.path().join(format!("store/{began}.json"))).unwrap();
    assert_eq!(runners().pinned("mine", &began).unwrap_err().code(), "untrusted");
}

/// The code of what is wrong with the runner `bad`, as the daemon sees it.
fn fault(root: &Root) -> Option<String> {
    let listed = root.json(&["plugin", "list"]);
    let bad = listed.as_array()?.iter().find(|runner| runner["runner"] == "bad")?.clone();
    bad["code"].as_str().map(str::to_owned)
}

/// Puts a file in the place of the runner `bad` in one step, as an installer does.
fn offer(root: &Root, bytes: &[u8]) {
    let beside = root.path().join("new");
    fs::write(&beside, bytes).unwrap();
    fs::rename(beside, root.path().join("libbad.so")).unwrap();
}

fn serves(root: &Root) {
    let id = root.add("serve on", &[]);
    let state = root.wait_state(&id, &["succeeded", "failed", "review"]).unwrap();
    assert_eq!(state["state"], "succeeded");
}

#[test]
fn a_daemon_that_is_offered_bad_files_serves_on_and_takes_the_good_one_at_last() {
    let root = Root::new();
    root.set_daemon_yml("  bad: {plugin: ./libbad.so, isolation: in_process}");
    let mut daemon = root.start().unwrap();
    assert_eq!(fault(&root).as_deref(), Some("not_found"));
    let stub = fs::read(plugin("stub")).unwrap();
    let lying = patched(stub.clone(), "\"api\":\"1.0.0\"", "\"api\":\"9.0.0\"");
    let mut offers: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "empty"),
        (b"#!/bin/sh\n".to_vec(), "not_elf"),
        (stub[..stub.len() / 2].to_vec(), "truncated"),
        (hostile_bytes(&["SILENT"]), "no_manifest"),
        (hostile_bytes(&["HUGE"]), "bad_manifest"),
        (lying, "wrong_major"),
        (stub.clone(), "untrusted"),
    ];
    offers.extend(FAULTS.iter().map(|(defines, code, _)| (hostile_bytes(defines), *code)));
    let file = root.path().join("libbad.so");
    for (bytes, code) in offers {
        offer(&root, &bytes);
        // Those whose code is to run must be trusted; that does not make them safe.
        if bytes.len() < 1 << 20 {
            let _ = root.cli(&["plugin", "trust", file.to_str().unwrap()]);
        }
        root.json(&["reload"]);
        assert_eq!(fault(&root).as_deref(), Some(code));
        serves(&root);
    }
    root.json(&["plugin", "trust", file.to_str().unwrap()]);
    offer(&root, &stub);
    root.json(&["plugin", "trust", file.to_str().unwrap()]);
    root.json(&["reload"]);
    assert_eq!(fault(&root), None);
    let id = root.json(&["mandate", "add", "at last", "--runner", "bad"])["id"].as_str().unwrap().to_owned();
    let state = root.wait_state(&id, &["succeeded", "failed", "review"]).unwrap();
    assert_eq!(state["state"], "succeeded");
    assert_eq!(daemon.stop().unwrap(), 0);
}

#[test]
fn the_check_tells_what_a_file_may_do_and_where_it_would_run() {
    let root = Root::new();
    let stray = root.path().join("libmine.so");
    fs::copy(plugin("stub"), &stray).unwrap();
    let report = root.json(&["plugin", "check", stray.to_str().unwrap()]);
    assert_eq!((&report["loads"], &report["trusted"]), (&json!(true), &json!(false)));
    assert_eq!((&report["isolation"], &report["tried"]), (&json!("sandbox"), &json!("sandbox")));
    assert!(["full", "partial"].contains(&report["sandbox"].as_str().unwrap()), "{report}");
    root.json(&["plugin", "trust", stray.to_str().unwrap()]);
    let report = root.json(&["plugin", "check", stray.to_str().unwrap()]);
    assert_eq!((&report["trusted"], &report["isolation"]), (&json!(true), &json!("process")));
    let beside = root.json(&["plugin", "check", plugin("stub").to_str().unwrap()]);
    assert_eq!(beside["trust"], "came with the executable");
    let shown = root.cli(&["plugin", "check", stray.to_str().unwrap()]);
    assert!(shown.stdout.lines().count() <= 10 && shown.stdout.contains("trusted  yes"), "{}", shown.stdout);
    // A hostile one, without harm to the command.
    let bad = hostile_c(root.aside(), "bad", &["CONSTRUCTOR", "DO_SEGFAULT"]);
    let ran = root.cli(&["plugin", "check", bad.to_str().unwrap(), "--json"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["loads"], &report["errors"][0]["code"]), (&json!(false), &json!("crashed")));
}
