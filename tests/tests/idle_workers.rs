//! Workers that nobody needs end, and the runner serves again when somebody does. Alone in its program,
//! since it counts the program's children.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test waits with a deadline")]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kairos_host::runner::{
    Isolation, Launcher, PluginStore, RunnerConfig, Runners, SearchPath, WorkerFactory,
};
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{Mandate, Status};

/// Processes that this one started and that have not been waited for.
fn children() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.map(|task| of(task).split_whitespace().count()).sum()
}

#[test]
fn idle_workers_of_many_runners_end_and_each_serves_again() {
    let root = tempfile::tempdir().unwrap();
    let search = SearchPath::new(root.path(), std::env::current_exe().unwrap().parent(), None);
    let store = PluginStore::new(root.path().join("store"));
    let workers =
        WorkerFactory::new(kairos_tests::kairos()).unwrap().with_idle_time(Duration::from_millis(500));
    let config = |n: usize| RunnerConfig {
        isolation: Some(if n.is_multiple_of(2) { Isolation::Process } else { Isolation::Sandbox }),
        ..RunnerConfig::new(format!("r{n}"), "stub")
    };
    let launcher = Launcher::with_workers(search, store, workers);
    let runners = Runners::load((0..12).map(config).collect(), launcher);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for _ in 0..2 {
        for n in 0..12 {
            let generation = runners.current(&format!("r{n}")).unwrap();
            let cycle = generation.start(Mandate::new("m", "g"), Arc::new(FakeHost::new()));
            let outcome =
                runtime.block_on(async { tokio::time::timeout(kairos_tests::PATIENCE, cycle).await });
            assert_eq!(outcome.unwrap().unwrap().unwrap().status, Status::Ok, "r{n}");
        }
        let begun = Instant::now();
        // The one that is kept blank for all of them, and the one they are forked from.
        while children() > 2 {
            assert!(begun.elapsed() < kairos_tests::PATIENCE, "{} workers are left", children());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
