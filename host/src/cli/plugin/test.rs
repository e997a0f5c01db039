//! `kairos plugin test`: a plugin played through scenarios, with what differs from what they expect.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value, json};

use super::scenario::{self, Verdict};
use super::{Context, find};
use crate::boot::plugins;
use crate::cli::output::emit;
use crate::exit::{Failure, classify, code};
use crate::runner::manifest::PluginFile;
use crate::runner::{
    Isolation, Launcher, LoadError, Pace, PluginStore, RunnerBackend, RunnerConfig, SearchPath,
};
use crate::sys::place::Place;
use crate::sys::sandbox::Reached;

/// What to test.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = include_str!("scenario/format.txt"))]
pub struct TestArgs {
    /// The file, or a plugin's name as `daemon.yml` has it
    pub file: PathBuf,
    /// A scenario, see below; may be given several times
    #[arg(long = "scenario", value_name = "FILE", required = true)]
    pub scenarios: Vec<PathBuf>,
    /// Write the result as JUnit XML, too: a file, which is replaced whole, or a fifo or device
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Where the runner runs
    #[arg(long, value_enum, default_value_t = Apart::Sandbox)]
    pub isolation: Apart,
}

/// How far apart from this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Apart {
    /// In a process that confines itself
    Sandbox,
    /// In a process of its own
    Process,
    /// In this process, for a debugger
    InProcess,
}

impl From<Apart> for Isolation {
    fn from(apart: Apart) -> Self {
        match apart {
            Apart::Sandbox => Self::Sandbox,
            Apart::Process => Self::Process,
            Apart::InProcess => Self::InProcess,
        }
    }
}

/// What came of a plugin's scenarios.
struct Tested {
    plugin: PluginFile,
    reached: Option<Reached>,
    verdicts: Vec<Verdict>,
}

/// Plays all scenarios and says what differs. The JUnit file is written whatever comes of it: one of
/// an earlier run would speak for this one.
///
/// # Errors
/// A bad scenario: exit 2. A plugin that does not load, or something that differs: exit 1.
pub fn run(args: &TestArgs, context: &Context) -> anyhow::Result<()> {
    let tested = play(args, context);
    if let Some(junit) = &args.junit {
        let written = keep(&context.cwd.join(junit), args, &tested);
        // Of two failures the first is what a person looks for; the other comes with it.
        if let (Err(first), Err(second)) = (&tested, &written) {
            let failure = classify(first);
            let message = format!("{}\nand {} is not written: {second:#}", failure.message, junit.display());
            return Err(Failure { message, ..failure }.into());
        }
        written?;
    }
    let Tested { plugin, reached, verdicts } = tested?;
    let isolation = Isolation::from(args.isolation).to_string();
    let mut view = scenario::json(&verdicts);
    view["plugin"] = json!({"name": plugin.manifest.name, "version": plugin.manifest.version,
        "sha256": plugin.sha256});
    view["isolation"] = isolation.clone().into();
    view["sandbox"] = json!(reached);
    let level = reached.map_or(String::new(), |reached| format!(", {reached}"));
    let head = format!("{} {}, {isolation}{level}", plugin.manifest.name, plugin.manifest.version);
    emit(context.style, &view, |_| format!("{head}\n{}", scenario::human(&verdicts)))?;
    if verdicts.iter().all(Verdict::passed) {
        return Ok(());
    }
    let failed = verdicts.iter().filter(|verdict| !verdict.passed()).count();
    let message = format!("{failed} of {} scenarios not as expected", verdicts.len());
    Err(Failure::new(code::FAILED, "scenario_differs", message).into())
}

fn play(args: &TestArgs, context: &Context) -> anyhow::Result<Tested> {
    let scenarios = read_all(&args.scenarios, context)?;
    let path = find(&args.file, context).map_err(not_loaded)?;
    let dir = tempfile::tempdir()?;
    let search = SearchPath::new(dir.path(), None, None);
    // Whoever tests a plugin says how far apart it runs; whether it is trusted is for daemons.
    let launcher = Launcher::with_workers(search, PluginStore::new(dir.path()), plugins::workers()?);
    let plugin = PluginFile::open(&path).map_err(not_loaded)?;
    let reached = OnceCell::new();
    let start = |params: &Map<String, Value>| -> Result<Arc<dyn RunnerBackend>, LoadError> {
        let config = RunnerConfig {
            isolation: Some(args.isolation.into()),
            params: Value::Object(params.clone()),
            ..RunnerConfig::new(&plugin.manifest.name, path.to_string_lossy())
        };
        let backend = launcher.launch(&config, &plugin, Pace::Usual)?;
        if let Some(sandbox) = backend.sandbox() {
            let _ = reached.set(sandbox);
        }
        Ok(backend)
    };
    let mut verdicts = vec![];
    for scenario in scenarios {
        let played = scenario::play(&scenario, &start).map_err(not_loaded)?;
        let checks = scenario::judge(&scenario, &played);
        verdicts.push(Verdict { scenario, played, checks });
    }
    Ok(Tested { plugin, reached: reached.into_inner(), verdicts })
}

/// Writes the JUnit file of a test, or of what kept it from being one.
fn keep(junit: &Path, args: &TestArgs, tested: &anyhow::Result<Tested>) -> anyhow::Result<()> {
    let xml = match tested {
        Ok(tested) => scenario::junit(&tested.plugin.manifest.name, &tested.verdicts)?,
        Err(error) => scenario::junit_of_failure(&args.file.to_string_lossy(), &classify(error))?,
    };
    Ok(Place::named(junit)?.write(xml.as_bytes())?)
}

/// All of them, or everything that is wrong with any.
fn read_all(paths: &[PathBuf], context: &Context) -> anyhow::Result<Vec<scenario::Scenario>> {
    let mut scenarios = vec![];
    let mut wrong = vec![];
    for path in paths {
        match scenario::read(&context.cwd.join(path), &path.to_string_lossy()) {
            Ok(scenario) => scenarios.push(scenario),
            Err(report) => wrong.push(report.to_string()),
        }
    }
    if wrong.is_empty() {
        return Ok(scenarios);
    }
    Err(Failure::new(code::USAGE, "bad_scenario", wrong.join("\n")).into())
}

fn not_loaded(error: LoadError) -> Failure {
    Failure::new(code::FAILED, error.code(), format!("the plugin does not load: {error}"))
        .remedy(error.remedy())
}
