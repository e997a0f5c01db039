//! `schedules.yml`: a bad schedule is set aside with all its problems, the others run.
//!
//! The list is read item by item and equal policies and zones are shared, because a file may hold a
//! million schedules.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::daemon::zone_problem;
use super::reader::{Context, Effective, MapReader, nothing_secret};
use super::report::{Problem, Report, nearest, quoted};
use super::scalars::a_text;
use super::yaml::{self, Kind, Node, Span, Stream, Style};
use crate::domain::cron::{Cron, Zone};
use crate::domain::schedule::{
    Dst, MandateBounds, MissedPolicy, OnBudget, Overlap, SchedulePolicy, ScheduleSpec,
};
use crate::sys::zones::Zones;

/// Larger schedules.yml files are refused.
pub const SIZE_MAX: u64 = 512 << 20;
/// Longest name of a schedule, in bytes.
pub const NAME_MAX: usize = 10 << 10;
/// Longest cron expression, in bytes.
const CRON_MAX: usize = 4 << 10;
/// Most problems that are kept of one schedule.
const PROBLEMS_KEPT: usize = 32;

const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(366 * 86_400);

/// A checked schedules.yml.
#[derive(Debug, Default)]
pub struct SchedulesFile {
    /// False when the file as a whole cannot be read: then nothing is known about its schedules, and
    /// those of an earlier reading stay.
    pub readable: bool,
    /// The good ones, in the order of the file.
    pub schedules: Vec<ScheduleSpec>,
    /// The bad ones.
    pub quarantined: Vec<Quarantined>,
    /// Problems of the file itself, and warnings.
    pub report: Report,
}

/// A schedule that does not run until it is corrected.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Quarantined {
    /// Its name, or `schedules[N]` when it has none.
    pub name: String,
    /// Its line in the file.
    pub line: u32,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// What the schedules refer to.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// Time zones.
    pub zones: &'a Zones,
    /// Names of the configured runners; empty when they are not known.
    pub runners: &'a [String],
    /// The time now, for warnings about what a cron expression will surprise with; `None` for none.
    pub now: Option<DateTime<Utc>>,
}

impl SchedulesFile {
    /// Reads the bytes of schedules.yml. `file` names it in problems.
    #[must_use]
    pub fn parse(bytes: &[u8], file: &str, around: Around<'_>) -> Self {
        let file: Arc<str> = file.into();
        let mut report = Report::default();
        let Some(text) = yaml::text_of(bytes, &file, &mut report) else {
            return Self { report, ..Self::default() };
        };
        let mut items = Items::new(file.clone(), around);
        let mut take = |node: Node, report: &mut Report| items.add(&node, report);
        let stream = Stream { key: "schedules", take: &mut take };
        let Some(root) = yaml::load(text, &file, &mut report, Some(stream)) else {
            // Half a file must not pass for a whole one: the other half would look deleted.
            return Self { report, ..Self::default() };
        };
        let mut ctx = Context { file, report: &mut report, schedule: None, overrides: &[], trace: None };
        let mut top = MapReader::new("", Some(&root), &mut ctx);
        let list = top.node("schedules");
        let outline = ctx.report.errors();
        top.finish(&mut ctx);
        // Without the list, an unknown key may be its misspelt name.
        let mut readable = outline == 0 && (list.is_some() || ctx.report.is_ok());
        match list.map(|node| (&node.kind, node)) {
            // Not streamed: it came by an alias or a merge.
            Some((Kind::List(rest), _)) => rest.iter().for_each(|node| items.add(node, &mut report)),
            Some((_, node)) if !node.is_null() => {
                let message = format!("expected a list, found {}", node.describe());
                ctx.error(node.span, "schedules", message, "write `- name: ...` for each schedule");
                readable = false;
            }
            _ => {}
        }
        // An error of the file's outline leaves it open which schedules are meant.
        let (schedules, quarantined) =
            if readable { (items.good, items.bad) } else { (Vec::new(), Vec::new()) };
        Self { readable, schedules, quarantined, report }
    }

    /// Everything that is wrong, that of the quarantined schedules included.
    #[must_use]
    pub fn full_report(&self) -> Report {
        let mut full = self.report.clone();
        for problem in self.quarantined.iter().flat_map(|schedule| &schedule.problems) {
            full.push(problem.clone());
        }
        full.sort();
        full
    }
}

/// The keys of one entry with their defaults, for the generated reference.
pub(super) fn documented(zones: &Zones) -> Vec<Effective> {
    let mut report = Report::default();
    let file: Arc<str> = "".into();
    let Some(node) = yaml::load("{name: NAME, cron: '0 9 * * *'}", &file, &mut report, None) else {
        return Vec::new();
    };
    let mut items = Items::new(file.clone(), Around { zones, runners: &[], now: None });
    let mut ctx =
        Context { file, report: &mut report, schedule: None, overrides: &[], trace: Some(Vec::new()) };
    items.read(&node, "", &mut ctx);
    ctx.trace.unwrap_or_default()
}

/// A zone's shared name and its data.
type KnownZone = (Arc<str>, Arc<Zone>);

struct Items<'a> {
    file: Arc<str>,
    around: Around<'a>,
    count: usize,
    good: Vec<ScheduleSpec>,
    bad: Vec<Quarantined>,
    lines: HashMap<Arc<str>, u32>,
    zones: HashMap<String, Result<KnownZone, (String, String)>>,
    policies: HashMap<u64, Vec<Arc<SchedulePolicy>>>,
}

impl<'a> Items<'a> {
    fn new(file: Arc<str>, around: Around<'a>) -> Self {
        Self {
            file,
            around,
            count: 0,
            good: Vec::new(),
            bad: Vec::new(),
            lines: HashMap::new(),
            zones: HashMap::new(),
            policies: HashMap::new(),
        }
    }

    fn add(&mut self, node: &Node, file_report: &mut Report) {
        let path = format!("schedules[{}]", self.count);
        self.count += 1;
        let mut report = Report::default();
        let mut ctx = Context {
            file: self.file.clone(),
            report: &mut report,
            schedule: None,
            overrides: &[],
            trace: None,
        };
        let spec = self.read(node, &path, &mut ctx);
        let name = ctx.schedule.take();
        match spec.filter(|_| report.is_ok()) {
            Some(spec) => {
                self.good.push(spec);
                file_report.extend(report);
            }
            None => {
                let mut problems = report.take();
                problems.truncate(PROBLEMS_KEPT);
                let name = name.map_or(path, |name| name.to_string());
                self.bad.push(Quarantined { name, line: node.span.start.line, problems });
            }
        }
    }

    fn read(&mut self, node: &Node, path: &str, ctx: &mut Context<'_>) -> Option<ScheduleSpec> {
        let mut map = MapReader::new(path, Some(node), ctx);
        if !matches!(node.kind, Kind::Map(_)) {
            if node.is_null() {
                ctx.error(node.span, path, "the entry is empty", "remove it or write a schedule");
            }
            return None;
        }
        let name = self.read_name(&mut map, ctx);
        ctx.schedule.clone_from(&name);
        let cron = read_cron(&mut map, ctx);
        let zone = self.read_zone(&mut map, ctx);
        let (policy, goal) = self.read_policy(&mut map, ctx);
        if let (Some((cron, compiled)), Some((_, zone)), Some(now)) = (&cron, &zone, self.around.now) {
            let span = map.node("cron").map(|node| node.span).unwrap_or_default();
            for warning in compiled.warnings(zone, policy.dst, now) {
                ctx.warn(span, &map.key("cron"), format!("{}: {warning}", quoted(cron)), "");
            }
        }
        map.finish(ctx);
        let (name, cron, timezone) = (name?, cron?.0, zone?.0);
        let goal = goal.map_or_else(|| Box::from(&*name), String::into_boxed_str);
        Some(ScheduleSpec { cron, timezone, goal, policy: self.shared(policy), name })
    }

    fn read_name(&mut self, map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> Option<Arc<str>> {
        let key = map.key("name");
        let Some(node) = map.node("name") else {
            ctx.error(map.span(), &key, "is missing", "give the schedule a name");
            return None;
        };
        let name: Arc<str> = match a_text(node, NAME_MAX) {
            Ok(name) => name.into(),
            Err((message, remedy)) => {
                ctx.error(node.span, &key, message, remedy);
                return None;
            }
        };
        map.record("name", ctx, "text", serde_json::Value::Null, None);
        let line = node.span.start.line;
        if let Some(first) = self.lines.get(&name) {
            ctx.schedule = Some(name.clone());
            let message = format!("a schedule of this name stands on line {first}, this one on line {line}");
            ctx.error(node.span, &key, message, "give one of the two another name");
        } else {
            self.lines.insert(name.clone(), line);
        }
        Some(name)
    }

    fn read_zone(&mut self, map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> Option<KnownZone> {
        let span = map.node("timezone").map(|node| node.span).unwrap_or_default();
        let written = map.text("timezone", ctx, Some("UTC"))?;
        let found = self.zones.entry(written).or_insert_with_key(|name| match self.around.zones.get(name) {
            Ok(zone) => Ok((name.as_str().into(), zone)),
            Err(error) => Err(zone_problem(&error)),
        });
        match found {
            Ok(zone) => Some(zone.clone()),
            Err((message, remedy)) => {
                ctx.error(span, &map.key("timezone"), message.clone(), remedy.clone());
                None
            }
        }
    }

    fn read_policy(
        &mut self,
        map: &mut MapReader<'_>,
        ctx: &mut Context<'_>,
    ) -> (SchedulePolicy, Option<String>) {
        let usual = SchedulePolicy::default();
        let enabled = map.boolean("enabled", ctx, true);
        let project_scope = map.text("project_scope", ctx, None);
        let runner = map.text("runner", ctx, None);
        self.check_runner(runner.as_deref(), map, ctx);
        let missed_policy = map.choice("missed_policy", ctx, usual.missed_policy, MISSED);
        let runs = map.count("max_catch_up_runs", ctx, u64::from(usual.max_catch_up_runs), 1..=10_000);
        let stale_after = map.duration("stale_after", ctx, usual.stale_after, Duration::from_secs(1)..=YEAR);
        let start_deadline = map.opt_duration("start_deadline", ctx, Duration::from_secs(1)..=YEAR);
        let concurrency = map.choice("concurrency", ctx, usual.concurrency, OVERLAP);
        let jitter = map.duration("jitter", ctx, Duration::ZERO, Duration::ZERO..=DAY);
        let dst = map.choice("dst", ctx, usual.dst, &[("cron", Dst::Cron), ("literal", Dst::Literal)]);
        let on_budget = map.choice(
            "on_budget",
            ctx,
            usual.on_budget,
            &[("hold", OnBudget::Hold), ("skip", OnBudget::Skip)],
        );
        let failures = map.opt_count("pause_after_failures", ctx, None, 1..=1_000_000);
        let (bounds, goal) = read_mandate(map, ctx);
        let policy = SchedulePolicy {
            enabled,
            project_scope,
            runner,
            missed_policy,
            max_catch_up_runs: a_u32(runs),
            stale_after,
            start_deadline,
            concurrency,
            jitter,
            dst,
            on_budget,
            pause_after_failures: failures.map(a_u32),
            bounds,
        };
        (policy, goal)
    }

    /// Only a warning: its mandates wait until the runner is there, and say so.
    fn check_runner(&self, runner: Option<&str>, map: &mut MapReader<'_>, ctx: &mut Context<'_>) {
        let Some(runner) = runner else { return };
        let known = self.around.runners;
        if known.is_empty() || known.iter().any(|name| name == runner) {
            return;
        }
        let remedy = match nearest(runner, known.iter().map(String::as_str)) {
            Some(like) => format!("did you mean `{like}`?"),
            None => "add it to `runners` in daemon.yml; until then its mandates stay queued".to_owned(),
        };
        let span = map.node("runner").map(|node| node.span).unwrap_or_default();
        ctx.warn(span, &map.key("runner"), format!("no runner has the name {}", quoted(runner)), remedy);
    }

    fn shared(&mut self, policy: SchedulePolicy) -> Arc<SchedulePolicy> {
        // Neighbours are alike more often than not; comparing is cheaper than hashing.
        if let Some(last) = self.good.last().filter(|last| *last.policy == policy) {
            return last.policy.clone();
        }
        let alike = self.policies.entry(policy_hash(&policy)).or_default();
        if let Some(known) = alike.iter().find(|known| ***known == policy) {
            return known.clone();
        }
        let policy = Arc::new(policy);
        alike.push(policy.clone());
        policy
    }
}

const MISSED: &[(&str, MissedPolicy)] = &[
    ("skip", MissedPolicy::Skip),
    ("catch_up_once", MissedPolicy::CatchUpOnce),
    ("catch_up_bounded", MissedPolicy::CatchUpBounded),
];

const OVERLAP: &[(&str, Overlap)] = &[
    ("queue", Overlap::Queue),
    ("queue_one", Overlap::QueueOne),
    ("reject", Overlap::Reject),
    ("allow", Overlap::Allow),
    ("allow_queued", Overlap::AllowQueued),
    ("replace", Overlap::Replace),
];

/// Keys that runners of the reference read; here they are parameters.
const REFERENCE_PARAMS: [&str; 3] = ["allow_llm_upload", "decide_hints", "post_commit"];

/// All ranges of counts here end far below `u32::MAX`.
fn a_u32(value: u64) -> u32 {
    u32::try_from(value).expect("the range of the key ends below u32::MAX")
}

fn read_cron(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> Option<(Box<str>, Cron)> {
    let key = map.key("cron");
    let Some(node) = map.node("cron") else {
        ctx.error(map.span(), &key, "is missing", "write a cron expression such as `\"0 9 * * 1-5\"`");
        return None;
    };
    let cron = match a_text(node, CRON_MAX) {
        Ok(cron) => cron,
        Err((message, remedy)) => {
            ctx.error(node.span, &key, message, remedy);
            return None;
        }
    };
    map.record("cron", ctx, "text", serde_json::Value::Null, None);
    match Cron::parse(&cron) {
        Ok(compiled) => Some((cron.into_boxed_str(), compiled)),
        Err(error) => {
            let message = format!("{}: {}", quoted(&cron), error.message);
            let remedy = match (&error.hint, &error.allowed) {
                (Some(hint), _) => hint.clone(),
                (None, Some(allowed)) => format!("allowed here: {allowed}"),
                (None, None) => "correct the expression".to_owned(),
            };
            ctx.error(inside(node, &cron, error.column), &key, message, remedy);
            None
        }
    }
}

/// The place of a character inside a scalar, when it stands in the file as it reads; else its start.
fn inside(node: &Node, text: &str, column: usize) -> Span {
    let quotes = match node.style {
        Style::Plain => 0,
        Style::Quoted => 1,
        _ => return node.span,
    };
    let Span { mut start, end } = node.span;
    if end.index - start.index == text.chars().count() + 2 * quotes {
        let ahead = quotes + column.saturating_sub(1);
        start.index += ahead;
        start.column += u32::try_from(ahead).unwrap_or(0);
    }
    Span { start, end }
}

fn read_mandate(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> (MandateBounds, Option<String>) {
    let mut mandate = map.map("mandate", ctx);
    let goal = mandate.text("goal", ctx, None);
    let usual = MandateBounds::default();
    let mut bounds = MandateBounds {
        max_cycles: a_u32(mandate.count("max_cycles", ctx, u64::from(usual.max_cycles), 1..=1_000_000)),
        checkpoint_every: mandate.opt_count("checkpoint_every", ctx, None, 1..=1_000_000).map(a_u32),
        risk_budget: mandate.text("risk_budget", ctx, None),
        allowed_actions: mandate.texts("allowed_actions", ctx),
        observe_policies: mandate.texts("observe_policies", ctx),
        params: mandate.json_map("params", ctx, nothing_secret),
    };
    for name in REFERENCE_PARAMS {
        let Some(node) = mandate.node(name) else { continue };
        let key = mandate.key(name);
        ctx.warn(node.span, &key, "is read as a parameter", format!("move it to `params.{name}`"));
        bounds.params.entry(name).or_insert_with(|| node.to_json());
    }
    mandate.finish(ctx);
    (bounds, goal)
}

fn policy_hash(policy: &SchedulePolicy) -> u64 {
    let SchedulePolicy {
        enabled,
        project_scope,
        runner,
        missed_policy,
        max_catch_up_runs,
        stale_after,
        start_deadline,
        concurrency,
        jitter,
        dst,
        on_budget,
        pause_after_failures,
        bounds,
    } = policy;
    let mut hasher = DefaultHasher::new();
    (enabled, project_scope, runner, missed_policy, max_catch_up_runs, stale_after).hash(&mut hasher);
    (start_deadline, concurrency, jitter, dst, on_budget, pause_after_failures).hash(&mut hasher);
    let MandateBounds {
        max_cycles,
        checkpoint_every,
        risk_budget,
        allowed_actions,
        observe_policies,
        params,
    } = bounds;
    (max_cycles, checkpoint_every, risk_budget, allowed_actions, observe_policies).hash(&mut hasher);
    // Values with fractions have no hash of their own; equal ones have equal text.
    if !params.is_empty() {
        serde_json::to_string(params).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
#[path = "schedules_tests.rs"]
mod tests;
