//! `daemon.yml`: from text to a struct that cannot be wrong, with every problem in one report.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::commands::{self, CommandConfig};
use super::keys;
use super::llm::{self, LlmConfig, ToolsConfig};
use super::reader::{Context, Effective, MapReader, Origin, Override, join, nothing_secret};
use super::report::{Report, nearest};
use super::swap::{self, SwapConfig};
use super::yaml::{self, Node};
use crate::sys::sandbox::{Grants, Level, refusal};
use crate::sys::zones::{ZoneError, Zones};

/// Larger daemon.yml files are refused.
pub const SIZE_MAX: u64 = 16 << 20;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The runner of a daemon whose file names none.
const COGNITIVE: &str = "cognitive";

/// A checked daemon.yml.
#[derive(Clone, Debug, PartialEq)]
pub struct DaemonConfig {
    /// Upper bound of a sleep of the scheduling loop.
    pub tick_interval: Duration,
    /// How long a stop waits for running cycles.
    pub graceful_timeout: Duration,
    /// The lock, as written; relative to the root.
    pub pid_path: PathBuf,
    /// Most cycles that run at once.
    pub max_concurrent_cycles: u32,
    /// Most catch-up fires per minute, over all schedules.
    pub max_catch_up_per_minute: u32,
    /// The wallet.
    pub budget: BudgetConfig,
    /// Time between two heartbeats.
    pub heartbeat_interval: Duration,
    /// Days that ended mandates stay in the store.
    pub store_retention_days: u32,
    /// The write-ahead log.
    pub wal: WalConfig,
    /// The control plane on TCP.
    pub attach: AttachConfig,
    /// The runner of schedules and mandates that name none.
    pub default_runner: String,
    /// The weakest sandbox in which a runner still starts.
    pub sandbox_require: Level,
    /// Runners by name.
    pub runners: BTreeMap<String, RunnerConfig>,
    /// Programs that runners may ask for, by name.
    pub commands: BTreeMap<String, CommandConfig>,
    /// The directory whose new plugin files are swapped in, as written; relative to the root.
    pub plugins_watch: Option<PathBuf>,
    /// How versions of runners are replaced.
    pub swap: SwapConfig,
    /// Language models.
    pub llm: LlmConfig,
    /// Tools.
    pub tools: ToolsConfig,
    /// Every key with the value that counts and its origin, secrets redacted.
    pub effective: Vec<Effective>,
}

/// The daily limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetConfig {
    /// LLM calls a day; `None` without a limit.
    pub daily_calls: Option<u64>,
    /// Input and output tokens a day together; `None` without a limit.
    pub daily_tokens: Option<u64>,
    /// Billionths of a US dollar a day; `None` without a limit.
    pub daily_usd_nano: Option<u64>,
    /// IANA name of the zone whose midnight turns the day; known to exist.
    pub timezone: String,
}

/// The per-mandate log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Its directory as written; relative to the root.
    pub dir: PathBuf,
    /// What happens to a cycle whose log cannot be opened.
    pub on_error: WalOnError,
    /// Days that archives stay.
    pub retention_days: u32,
}

/// What happens to a cycle whose log cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalOnError {
    /// It does not start.
    Refuse,
    /// It runs without one.
    Continue,
}

/// Where the attach server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachConfig {
    /// A loopback address.
    pub host: std::net::IpAddr,
    /// 0 lets the system choose.
    pub port: u16,
}

/// One runner.
#[derive(Clone, Debug, PartialEq)]
pub struct RunnerConfig {
    /// Name of a plugin, or a path when it holds a slash.
    pub plugin: String,
    /// Where it runs; `None` when the file does not say.
    pub isolation: Option<Isolation>,
    /// How long one cycle may take.
    pub deadline: Duration,
    /// Between asking a cycle to end and ending it.
    pub stop_grace: Duration,
    /// Most bytes that a worker may write to; `None` when the file does not say.
    pub memory: Option<u64>,
    /// Parameters for every mandate; those of the mandate win.
    pub params: Map<String, Value>,
    /// Files, as written, that it can have in a sandbox if it asks for them.
    pub grants: Grants,
}

/// Where a runner's code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// In the daemon, on threads of its own.
    InProcess,
    /// In a worker process.
    Process,
    /// In a worker process that confines itself first.
    Sandbox,
}

impl Isolation {
    const WORDS: [(&'static str, Self); 3] =
        [("in_process", Self::InProcess), ("process", Self::Process), ("sandbox", Self::Sandbox)];

    /// The word of the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::Process => "process",
            Self::Sandbox => "sandbox",
        }
    }
}

/// What a reload did with the keys that changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Diff {
    /// Changed and in force.
    pub took_effect: Vec<String>,
    /// Changed, but in force only after a restart.
    pub needs_restart: Vec<String>,
}

impl DaemonConfig {
    /// Reads the text of daemon.yml. `file` names it in problems.
    ///
    /// # Errors
    /// The report with at least one error. Warnings of a good file are in the second value.
    pub fn parse(
        bytes: &[u8],
        file: &str,
        overrides: &[Override],
        zones: &Zones,
    ) -> Result<(Self, Report), Report> {
        let file: Arc<str> = file.into();
        let mut report = Report::default();
        let root = yaml::text_of(bytes, &file, &mut report)
            .and_then(|text| yaml::load(text, &file, &mut report, None));
        let Some(root) = root else { return Err(report) };
        let mut ctx =
            Context { file, report: &mut report, schedule: None, overrides, trace: Some(Vec::new()) };
        let mut config = Self::read(&root, &mut ctx, zones);
        config.effective = ctx.trace.take().unwrap_or_default();
        report.sort();
        if report.is_ok() { Ok((config, report)) } else { Err(report) }
    }

    /// What an empty file means.
    #[must_use]
    pub fn defaults() -> Self {
        match Self::parse(b"", "", &[], &Zones::bundled()) {
            Ok((config, _)) => config,
            Err(report) => unreachable!("an empty file is right: {report}"),
        }
    }

    fn read(root: &Node, ctx: &mut Context<'_>, zones: &Zones) -> Self {
        let mut top = MapReader::new("", Some(root), ctx);
        let tick_interval = top.duration("tick_interval", ctx, 10 * SECOND, SECOND / 100..=HOUR);
        let graceful_timeout = top.duration("graceful_timeout", ctx, 120 * SECOND, Duration::ZERO..=DAY);
        let pid_path = top.text("pid_path", ctx, Some(".kairos/run/daemon.pid"));
        top.opt_choice("mode", ctx, &[("daemon", ())]);
        let cycles = top.count("max_concurrent_cycles", ctx, 1, 1..=1024);
        let mut chronos = top.map("chronos", ctx);
        let catch_up = chronos.count("max_catch_up_per_minute", ctx, 10, 1..=60_000);
        chronos.finish(ctx);
        let budget = read_budget(&mut top, ctx, zones);
        let mut heartbeat = top.map("heartbeat", ctx);
        let heartbeat_interval = heartbeat.duration("interval", ctx, 10 * SECOND, SECOND / 10..=HOUR);
        heartbeat.finish(ctx);
        let mut store = top.map("store", ctx);
        let store_retention_days = a_u32(store.count("retention_days", ctx, 30, 1..=36_500));
        store.finish(ctx);
        let wal = read_wal(&mut top, ctx);
        let attach = read_attach(&mut top, ctx);
        let mut sandbox = top.map("sandbox", ctx);
        let levels = [("partial", Level::Partial), ("full", Level::Full)];
        let sandbox_require = sandbox.choice("require", ctx, Level::Partial, &levels);
        sandbox.finish(ctx);
        // As `Self::kept`.
        let kept = [Path::new(pid_path.as_deref().unwrap_or_default()), &wal.dir];
        let (default_runner, runners) = read_runners(&mut top, ctx, &kept);
        let commands = commands::read(&mut top, ctx, &runners, &budget);
        let (plugins_watch, swap) = swap::read(&mut top, ctx);
        let llm = llm::read_llm(&mut top, ctx);
        let tools = llm::read_tools(&mut top, ctx);
        top.finish(ctx);
        Self {
            tick_interval,
            graceful_timeout,
            pid_path: pid_path.unwrap_or_default().into(),
            max_concurrent_cycles: a_u32(cycles),
            max_catch_up_per_minute: a_u32(catch_up),
            budget,
            heartbeat_interval,
            store_retention_days,
            wal,
            attach,
            default_runner,
            sandbox_require,
            runners,
            commands,
            plugins_watch,
            swap,
            llm,
            tools,
            effective: Vec::new(),
        }
    }

    /// Which keys differ, by when the new value counts. Order of the file's documentation.
    #[must_use]
    pub fn diff(old: &Self, new: &Self) -> Diff {
        let mut diff = Diff::default();
        let value = |config: &'_ Self, key: &str| {
            config.effective.iter().find(|known| known.key == key).map(|known| known.value.clone())
        };
        let mut seen: Vec<&str> = Vec::new();
        for key in new.effective.iter().chain(&old.effective).map(|known| known.key.as_str()) {
            if seen.contains(&key) || value(old, key) == value(new, key) {
                continue;
            }
            seen.push(key);
            match keys::takes_effect(key) {
                keys::When::Reload => diff.took_effect.push(key.to_owned()),
                keys::When::Restart => diff.needs_restart.push(key.to_owned()),
            }
        }
        diff
    }

    /// The dotted path of one of these keys.
    #[must_use]
    pub fn key_of(path: &[&str]) -> String {
        path.iter().fold(String::new(), |path, name| join(&path, name))
    }

    /// The line of the file that a key stands on, or what is in it, or else the nearest one around it.
    #[must_use]
    pub fn line_of(&self, key: &str) -> Option<u32> {
        let on_line = |known: &Effective| match known.origin {
            Origin::Line(line) => Some(line),
            _ => None,
        };
        let within = self.effective.iter().filter(|known| below(&known.key, key));
        if let Some(line) = within.filter_map(on_line).min() {
            return Some(line);
        }
        let mut key = key;
        loop {
            key = key.rsplit_once('.')?.0;
            if let Some(line) = self.effective.iter().find(|known| known.key == key).and_then(on_line) {
                return Some(line);
            }
        }
    }

    /// True when the file has this key, or one below it.
    #[must_use]
    pub fn says(&self, key: &str) -> bool {
        let is_said = |known: &Effective| matches!(known.origin, Origin::Line(_));
        self.effective.iter().any(|known| is_said(known) && below(&known.key, key))
    }

    /// Where the pid file goes below `root`.
    #[must_use]
    pub fn pid_file(&self, root: &Path) -> PathBuf {
        root.join(&self.pid_path)
    }

    /// The directory whose new plugins are swapped in, as an absolute path, and whether it lies in the
    /// root: then it is the daemon's to make.
    #[must_use]
    pub fn watched_plugins(&self, root: &Path) -> Option<(PathBuf, bool)> {
        let named = self.plugins_watch.as_ref()?;
        let dir = root.join(named);
        let ours = dir.starts_with(root) && !named.components().any(|step| step == Component::ParentDir);
        Some((std::path::absolute(&dir).unwrap_or(dir), ours))
    }

    /// What no runner may be granted besides `.kairos`; relative paths are of the root.
    #[must_use]
    pub fn kept(&self) -> Vec<PathBuf> {
        vec![self.pid_path.clone(), self.wal.dir.clone()]
    }

    /// Where the per-mandate logs go below `root`.
    #[must_use]
    pub fn wal_dir(&self, root: &Path) -> PathBuf {
        root.join(&self.wal.dir)
    }
}

/// All ranges of counts here end far below `u32::MAX`.
fn a_u32(value: u64) -> u32 {
    u32::try_from(value).expect("the range of the key ends below u32::MAX")
}

fn read_budget(top: &mut MapReader<'_>, ctx: &mut Context<'_>, zones: &Zones) -> BudgetConfig {
    let mut map = top.map("budget", ctx);
    // The reference's name for the same limit; two names at once would leave one without effect.
    let alias = map.node("daily_limit").map(|node| node.span);
    let mut daily_calls = map.opt_count("daily_calls", ctx, Some(10_000), 0..=u64::MAX);
    if let Some(span) = alias {
        if map.node("daily_calls").is_some() {
            let key = map.key("daily_limit");
            ctx.error(span, &key, "says the same as `daily_calls`, which is there too", "keep `daily_calls`");
        }
        let unused = ctx.trace.as_mut().and_then(Vec::pop);
        daily_calls = map.opt_count("daily_limit", ctx, Some(10_000), 0..=u64::MAX);
        if let (Some(unused), Some(last)) = (unused, ctx.trace.as_mut().and_then(|trace| trace.last_mut())) {
            last.key = unused.key;
        }
    }
    let daily_tokens = map.opt_count("daily_tokens", ctx, None, 0..=u64::MAX);
    let daily_usd_nano = map.opt_decimal("daily_usd", ctx);
    let span = map.node("timezone").map(|node| node.span).unwrap_or_default();
    let timezone = map.text("timezone", ctx, Some("UTC")).unwrap_or_default();
    if let Err(error) = zones.get(&timezone) {
        let (message, remedy) = zone_problem(&error);
        ctx.error(span, &map.key("timezone"), message, remedy);
    }
    map.finish(ctx);
    BudgetConfig { daily_calls, daily_tokens, daily_usd_nano, timezone }
}

/// Message and remedy for a zone that cannot be had.
pub(super) fn zone_problem(error: &ZoneError) -> (String, String) {
    match error {
        ZoneError::Unknown { name, suggestion } => {
            let remedy = match suggestion {
                Some(like) => format!("did you mean `{like}`?"),
                None => "write an IANA name such as `Europe/Paris` or `UTC`".to_owned(),
            };
            (format!("unknown timezone {}", super::report::quoted(name)), remedy)
        }
        other => (other.to_string(), "repair the system's zone data".to_owned()),
    }
}

fn read_wal(top: &mut MapReader<'_>, ctx: &mut Context<'_>) -> WalConfig {
    let mut map = top.map("wal", ctx);
    let wal = WalConfig {
        dir: map.text("dir", ctx, Some(".kairos/wal")).unwrap_or_default().into(),
        on_error: map.choice(
            "on_error",
            ctx,
            WalOnError::Refuse,
            &[("refuse", WalOnError::Refuse), ("continue", WalOnError::Continue)],
        ),
        retention_days: a_u32(map.count("retention_days", ctx, 30, 1..=36_500)),
    };
    map.finish(ctx);
    wal
}

fn read_attach(top: &mut MapReader<'_>, ctx: &mut Context<'_>) -> AttachConfig {
    let mut map = top.map("attach", ctx);
    let key = map.key("host");
    let outside = ctx.overrides.iter().any(|over| over.key == key);
    let span = map.node("host").filter(|_| !outside).map(|node| node.span).unwrap_or_default();
    let host = map.text("host", ctx, Some("127.0.0.1")).unwrap_or_default();
    let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
    let host = match host.parse::<std::net::IpAddr>() {
        _ if host == "localhost" => loopback,
        Ok(address) if address.is_loopback() => address,
        found => {
            let what = if found.is_ok() { "is not a loopback address" } else { "is not an address" };
            let message = format!("{} {what}", super::report::quoted(&host));
            ctx.error(
                span,
                &key,
                message,
                "write `127.0.0.1` or `::1`; reach it from elsewhere through a tunnel",
            );
            loopback
        }
    };
    let port = map.count("port", ctx, 9847, 0..=u64::from(u16::MAX));
    map.finish(ctx);
    AttachConfig { host, port: u16::try_from(port).expect("the range of the key is that of a port") }
}

/// True for a key and all that is in it.
fn below(known: &str, key: &str) -> bool {
    known.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn read_runners(
    top: &mut MapReader<'_>,
    ctx: &mut Context<'_>,
    kept: &[&Path],
) -> (String, BTreeMap<String, RunnerConfig>) {
    let at = top.node("default_runner").map(|node| node.span);
    let mut runners: BTreeMap<String, RunnerConfig> = BTreeMap::new();
    let mut first = None;
    for (name, map) in top.named("runners", ctx) {
        first.get_or_insert_with(|| name.to_owned());
        runners.insert(name.to_owned(), read_runner(map, name, ctx, kept));
    }
    if runners.is_empty() {
        let map = MapReader::new(format!("runners.{COGNITIVE}"), None, ctx);
        runners.insert(COGNITIVE.to_owned(), read_runner(map, "cognitive-loop", ctx, kept));
    }
    let usual =
        if runners.contains_key(COGNITIVE) { COGNITIVE.to_owned() } else { first.unwrap_or_default() };
    let default = top.text("default_runner", ctx, Some(&usual)).unwrap_or(usual);
    if !runners.contains_key(&default) {
        let remedy = match nearest(&default, runners.keys().map(String::as_str)) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("add it to `runners`; known: {}", list(runners.keys())),
        };
        let message = format!("no runner has the name {}", super::report::quoted(&default));
        ctx.error(at.unwrap_or_default(), "default_runner", message, remedy);
    } else if at.is_none() && default != COGNITIVE && runners.len() > 1 {
        let message =
            format!("several runners and no default; {} stands first", super::report::quoted(&default));
        ctx.error(
            top.span(),
            "default_runner",
            message,
            format!("write `default_runner: {default}`, or another"),
        );
    }
    (default, runners)
}

fn read_runner(mut map: MapReader<'_>, plugin: &str, ctx: &mut Context<'_>, kept: &[&Path]) -> RunnerConfig {
    let runner = RunnerConfig {
        plugin: map.text("plugin", ctx, Some(plugin)).unwrap_or_default(),
        isolation: map.opt_choice("isolation", ctx, &Isolation::WORDS),
        deadline: map.duration("deadline", ctx, 10 * MINUTE, SECOND / 10..=7 * DAY),
        stop_grace: map.duration("stop_grace", ctx, 10 * SECOND, Duration::ZERO..=HOUR),
        memory: map.opt_size("memory", ctx, 64 << 20..=1 << 40),
        params: map.json_map("params", ctx, nothing_secret),
        grants: read_grants(&mut map, ctx, kept),
    };
    map.finish(ctx);
    runner
}

fn read_grants(runner: &mut MapReader<'_>, ctx: &mut Context<'_>, kept: &[&Path]) -> Grants {
    let mut map = runner.map("grants", ctx);
    let mut paths = |name: &'static str| {
        let span = map.node(name).map(|node| node.span).unwrap_or_default();
        let paths = map.texts(name, ctx).unwrap_or_default();
        for path in &paths {
            if let Some((fault, remedy)) = refusal(path, kept) {
                let message = format!("{} {fault}", super::report::quoted(path));
                ctx.error(span, &map.key(name), message, remedy);
            }
        }
        paths.into_iter().map(PathBuf::from).collect()
    };
    let grants = Grants { read: paths("read"), write: paths("write") };
    map.finish(ctx);
    grants
}

/// Names in a message.
pub fn list<'n>(names: impl Iterator<Item = &'n String>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "daemon_tests.rs"]
mod tests;
