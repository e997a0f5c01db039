//! The quickstart's configuration, script and plugin work together: every mandate moves the board
//! by one step, from whatever state it finds it in.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kairos_host::broker::llm::{Price, ProviderKind, ProviderSpec, Providers, ScriptSource};
use kairos_host::broker::policy::Policy;
use kairos_host::broker::stop::StopSignal;
use kairos_host::broker::tools::{Tools, Workspace};
use kairos_host::broker::{Broker, Settling};
use kairos_host::config::schedules::{Around, SchedulesFile};
use kairos_host::config::{self, DaemonConfig};
use kairos_host::domain::mandate::{CycleEnd, MandateState};
use kairos_host::domain::schedule::{Overlap, ScheduleSpec};
use kairos_host::runner::{Generation, Launcher, PluginStore, RunnerConfig, Runners, SearchPath};
use kairos_host::store::{
    BudgetGate, ClaimRequest, FinishRequest, Limits, NewMandate, Origin, RunnerOffer, SqliteStore,
};
use kairos_host::sys::clock::SystemClock;
use kairos_host::sys::entropy::SystemEntropy;
use kairos_host::sys::zones::Zones;
use kairos_plugin_api::{Report, Usage};

const DAY: &str = "2026-11-22";
const PATIENCE: Duration = Duration::from_secs(30);

/// The example's root in a directory of its own, and what the daemon would build from it.
struct Quickstart {
    root: tempfile::TempDir,
    board: ScheduleSpec,
    broker: Arc<Broker>,
    generation: Arc<Generation>,
    made: u32,
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart")
}

impl Quickstart {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let config = root.path().join(".kairos/config");
        fs::create_dir_all(&config).unwrap();
        for entry in fs::read_dir(example().join(".kairos/config")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), config.join(entry.file_name())).unwrap();
        }
        let zones = Zones::bundled();
        let daemon = fs::read(config.join("daemon.yml")).unwrap();
        let (daemon, warnings) = DaemonConfig::parse(&daemon, "daemon.yml", &[], &zones)
            .unwrap_or_else(|report| panic!("{report:?}"));
        assert_eq!(warnings.warnings(), 0, "{warnings:?}");
        let runner = &daemon.runners["cognitive"];
        assert_eq!((runner.plugin.as_str(), runner.isolation), ("cognitive-loop", None));
        let schedules = fs::read(config.join("schedules.yml")).unwrap();
        let around = Around { zones: &zones, runners: &["cognitive".to_owned()], now: None };
        let schedules = SchedulesFile::parse(&schedules, "schedules.yml", around);
        assert!(schedules.report.is_ok() && schedules.quarantined.is_empty(), "{schedules:?}");
        let [board] = schedules.schedules.as_slice() else { panic!("one schedule") };
        Self {
            broker: broker(root.path(), &daemon),
            generation: generation(root.path()),
            board: board.clone(),
            root,
            made: 0,
        }
    }

    fn text(&self) -> String {
        fs::read_to_string(self.root.path().join("work/board.md")).unwrap()
    }

    /// Runs one mandate of the schedule, as the daemon does, and gives its report.
    fn run_one(&mut self) -> Report {
        self.made += 1;
        let now = self.broker.clock.now();
        let store = &self.broker.store;
        let mandate = NewMandate {
            id: format!("board-{}", self.made),
            origin: Origin::Manual,
            request_id: None,
            schedule: Some(self.board.name.to_string()),
            nominal: None,
            goal: self.board.goal.to_string(),
            runner: "cognitive".to_owned(),
            scope: None,
            overlap: Overlap::Queue,
            bounds: self.board.policy.bounds.clone(),
            again: false,
            now,
        };
        store.add(mandate).wait().unwrap();
        let offer = RunnerOffer {
            generation: self.generation.identity().generation.clone(),
            phases: true,
            commands: None,
        };
        let offers = Arc::new(HashMap::from([("cognitive".to_owned(), offer)]));
        let claim = ClaimRequest { now, max: 1, gate: None, offers };
        let claimed = store.claim(claim).wait().unwrap().claimed.pop().unwrap();
        let seen = claimed.mandate.clone();
        let services = self.broker.cycle(claimed, StopSignal::new(), None);
        let report = self.cycle(seen.clone(), Arc::clone(&services));
        assert!(services.outcome().is_none(), "{:?}", services.outcome());
        let finish = FinishRequest {
            mandate: seen.id,
            cycle: seen.cycle,
            attempt: seen.attempt,
            now,
            day: DAY.to_owned(),
            end: CycleEnd::Done,
            reason: None,
            report: Some(report.clone()),
            error: None,
            claimed: services.claimed_beyond(&report),
            state_puts: services.state_puts(),
            pause_after_failures: None,
            claim: None,
        };
        let finished = store.finish(finish).wait().unwrap();
        services.settle_up(Settling::Certainly).unwrap();
        assert_eq!(finished.state, MandateState::Succeeded);
        assert_eq!((finished.usage.llm_calls, report.llm_calls), (3, 3), "metered once, not claimed again");
        report
    }

    fn cycle(
        &self,
        mandate: kairos_plugin_api::Mandate,
        host: Arc<kairos_host::broker::CycleServices>,
    ) -> Report {
        let outcome = self.generation.start(mandate, host);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let outcome = runtime.block_on(async { tokio::time::timeout(PATIENCE, outcome).await });
        outcome.expect("in time").expect("the thread lives").unwrap()
    }
}

fn broker(root: &Path, daemon: &DaemonConfig) -> Arc<Broker> {
    let provider = &daemon.llm.providers["canned"];
    let config::llm::ProviderKind::Scripted { file } = &provider.kind else { panic!("scripted") };
    let (value, lines) =
        config::replies::read(&root.join(file)).unwrap_or_else(|report| panic!("{report:?}"));
    let price = provider.price.map(|price| Price {
        input_nano_usd_per_mtok: price.input_nano_usd_per_mtok,
        output_nano_usd_per_mtok: price.output_nano_usd_per_mtok,
    });
    let spec = ProviderSpec {
        name: "canned".to_owned(),
        kind: ProviderKind::Scripted(ScriptSource { file: Some(file.clone()), value, lines }),
        model: None,
        max_tokens: provider.max_tokens,
        price,
    };
    let limits = Limits { calls: daemon.budget.daily_calls, ..Limits::default() };
    let gate = BudgetGate { day: DAY.to_owned(), limits };
    Arc::new(Broker {
        store: Arc::new(SqliteStore::in_memory().unwrap()),
        clock: Arc::new(SystemClock::default()),
        entropy: Arc::new(SystemEntropy),
        gate: Arc::new(move || gate.clone()),
        providers: Providers::build(daemon.llm.default.clone(), &[spec]).unwrap(),
        tools: Tools::builtin(&Workspace::open(root).unwrap()),
        policy: Policy::default(),
    })
}

fn generation(root: &Path) -> Arc<Generation> {
    // Cargo puts the plugins that tests depend on beside the test programs.
    let exe = std::env::current_exe().unwrap();
    let search = SearchPath::new(root, exe.parent(), None);
    let configs = vec![RunnerConfig::new("cognitive", "cognitive-loop")];
    let runners = Runners::load(
        configs,
        Launcher::in_process(search, PluginStore::new(root.join(".kairos/plugins/store"))),
    );
    runners.current("cognitive").unwrap()
}

#[test]
fn every_mandate_moves_the_board_by_one_step_and_the_round_begins_anew() {
    let mut quickstart = Quickstart::new();
    let mut ticked = Vec::new();
    for _ in 0..9 {
        let report = quickstart.run_one();
        assert_eq!(report.summary.as_deref(), Some("The board moved on by one step."));
        ticked.push(quickstart.text().matches("- [x]").count());
    }
    assert_eq!(ticked, [1, 2, 3, 0, 1, 2, 3, 0, 1]);
    let spent = quickstart.broker.store.day(DAY).unwrap().spent;
    assert_eq!(spent.llm_calls, 27);
    let tokens = spent.input_tokens * 3000 + spent.output_tokens * 15_000;
    assert!(spent.input_tokens > 0 && spent.cost_nano_usd == tokens, "{spent:?}");
}

#[test]
fn the_board_is_made_again_when_it_is_gone_and_left_alone_when_it_is_somebody_elses() {
    let mut quickstart = Quickstart::new();
    quickstart.run_one();
    fs::remove_dir_all(quickstart.root.path().join("work")).unwrap();
    quickstart.run_one();
    assert_eq!(quickstart.text().matches("- [x]").count(), 1);
    fs::write(quickstart.root.path().join("work/board.md"), "mine\n").unwrap();
    let report = quickstart.run_one();
    assert_eq!(report.summary.as_deref(), Some("The board was left as it is."));
    assert_eq!(quickstart.text(), "mine\n");
    assert_eq!(Usage::ZERO, quickstart.broker.store.day(DAY).unwrap().reserved);
}

#[test]
fn the_example_runs_as_it_is_with_its_runner_in_a_worker() -> anyhow::Result<()> {
    let root = kairos_tests::Root::new();
    for name in ["daemon.yml", "schedules.yml", "replies.yml"] {
        let text = fs::read_to_string(example().join(".kairos/config").join(name))?;
        // Where the tests' plugins lie is not where an installed one would.
        let found = kairos_tests::plugin("cognitive_loop").display().to_string();
        let text = text.replace("plugin: cognitive-loop", &format!("plugin: {found:?}"));
        root.write(&format!("config/{name}"), &text);
    }
    assert_eq!(root.cli(&["config", "check"]).code, 0);
    let _daemon = root.start()?;
    root.wait_for("a step", || {
        let list = root.json(&["mandate", "list", "--state", "succeeded"]);
        (!list.as_array()?.is_empty()).then_some(())
    })?;
    assert!(fs::read_to_string(root.path().join("work/board.md"))?.contains("- [x]"));
    assert_eq!(root.json(&["plugin", "list"])[0]["isolation"], "process");
    assert!(root.json(&["budget", "show"])["spent"]["calls"].as_u64().unwrap() >= 3);
    Ok(())
}

#[test]
fn what_the_example_makes_is_ignored_by_git_and_what_it_is_made_of_is_not() {
    let rules = fs::read_to_string(example().join(".gitignore")).unwrap();
    let rules: Vec<&str> = rules.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(rules, ["/.kairos/*", "!/.kairos/config/", "/work/"]);
}
