//! Reads a scenario file: every problem of it at once, each with file, line, key and remedy.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kairos_plugin_api::context::method;
use kairos_plugin_api::testing::ANY;
use kairos_plugin_api::{CallError, LlmReply, Mandate, ToolReply, Usage, code};
use serde_json::{Map, Value};

use super::drive::OUTCOMES;
use super::{Expect, Fault, LogMatch, Reply, Scenario, StepMatch, Strike, Text};
use crate::config::document;
use crate::config::reader::{Context, MapReader, nothing_secret, report_duplicates};
use crate::config::report::{Report, nearest};
use crate::config::yaml::{Kind, Node, Scalar, Span};

/// How long a call of the runner may really take when the scenario does not say.
const TIMEOUT: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(86_400);
/// 2026-01-01T00:00:00Z, a time that no test depends on by accident.
const START: i64 = 1_767_225_600;

/// All keys of the replies of every kind.
const REPLY_KEYS: [&str; 9] =
    ["llm", "tool", "decision", "error", "model", "stop_reason", "usage", "output", "refuses"];
const CODES: [&str; 13] = [
    code::STOPPED,
    code::BUDGET_EXHAUSTED,
    code::DENIED,
    code::PAUSED,
    code::DIVERGED,
    code::BUSY,
    code::INVALID,
    code::UNSUPPORTED,
    code::FAILED,
    code::DEADLINE,
    code::PANIC,
    code::RETIRED,
    code::BAD_REPORT,
];
const STATUSES: [&str; 3] = ["ok", "paused", "error"];
const AMOUNTS: [&str; 4] = ["llm_calls", "input_tokens", "output_tokens", "cost_nano_usd"];

/// Reads the file; `shown` is its name in problems.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(path: &Path, shown: &str) -> Result<Scenario, Report> {
    let mut document = document::open(path, shown, "`kairos plugin new` writes one to start from")?;
    let root = std::mem::replace(&mut document.root, Node::plain(""));
    let unread = std::mem::take(&mut document.unread);
    let scenario = scenario(&root, &unread, &mut document.context());
    document.report.sort();
    if document.report.is_ok() { Ok(scenario) } else { Err(document.report) }
}

/// `unread` are keys of whose values nothing is known but that they are wrong.
fn scenario(root: &Node, unread: &[Box<str>], ctx: &mut Context<'_>) -> Scenario {
    let file = Arc::clone(&ctx.file);
    let mut map = MapReader::new("", Some(root), ctx);
    let stem = Path::new(&*file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = map.text("name", ctx, stem.as_deref()).unwrap_or_default();
    let params = map.json_map("params", ctx, nothing_secret);
    let mandate = mandate(map.map("mandate", ctx), ctx);
    let start = DateTime::from_timestamp(START, 0).expect("a valid time");
    let at = place(&mut map, "now");
    let now = map.text("now", ctx, None).map_or(start, |text| {
        text.parse::<DateTime<Utc>>().unwrap_or_else(|_| {
            ctx.error(at, "now", "not a time", "write it as `2026-01-31T09:00:00Z`");
            start
        })
    });
    let deadline = map.opt_duration("deadline", ctx, Duration::from_millis(1)..=365 * DAY);
    let timeout = map.duration("timeout", ctx, TIMEOUT, Duration::from_millis(10)..=DAY);
    let state = map.json_map("state", ctx, nothing_secret);
    let replies = each(&mut map, "replies", ctx, reply);
    let faults = each(&mut map, "faults", ctx, fault);
    let cuts = map.opt_choice("cuts", ctx, &[("all", true), ("none", false)]).unwrap_or(false);
    let expect = expectations(&mut map, ctx);
    if expect.is_empty() && !unread.iter().any(|key| &**key == "expect") {
        ctx.error(map.span(), "expect", "nothing is expected", "write for example `expect: {status: ok}`");
    }
    map.finish(ctx);
    Scenario { file, name, params, mandate, now, deadline, timeout, state, replies, faults, cuts, expect }
}

fn mandate(mut map: MapReader<'_>, ctx: &mut Context<'_>) -> Mandate {
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let counts = 1..=u64::from(u32::MAX);
    let id = map.text("id", ctx, Some("scenario")).unwrap_or_default();
    let goal = map.text("goal", ctx, None).unwrap_or_default();
    let mut mandate = Mandate::new(id, goal);
    mandate.cycle = small(map.count("cycle", ctx, 1, counts.clone()));
    mandate.max_cycles = small(map.count("max_cycles", ctx, 10, counts.clone()));
    mandate.checkpoint_every = map.opt_count("checkpoint_every", ctx, None, counts).map(small);
    mandate.schedule = map.text("schedule", ctx, None);
    mandate.project_scope = map.text("project_scope", ctx, None);
    mandate.risk_budget = map.text("risk_budget", ctx, None);
    mandate.allowed_actions = map.texts("allowed_actions", ctx);
    mandate.observe_policies = map.texts("observe_policies", ctx);
    mandate.params = map.json_map("params", ctx, nothing_secret);
    map.finish(ctx);
    mandate
}

/// Reads each item of a list.
fn each<T>(
    map: &mut MapReader<'_>,
    key: &'static str,
    ctx: &mut Context<'_>,
    read: impl Fn(&Node, String, &mut Context<'_>) -> Option<T>,
) -> Vec<T> {
    let path = map.key(key);
    match map.node(key) {
        Some(node) if !node.is_null() => match &node.kind {
            Kind::List(items) => items
                .iter()
                .enumerate()
                .filter_map(|(at, item)| read(item, format!("{path}[{at}]"), ctx))
                .collect(),
            _ => {
                let found = node.describe();
                ctx.error(node.span, &path, format!("expected a list, found {found}"), "write `- ...` items");
                vec![]
            }
        },
        _ => vec![],
    }
}

fn reply(node: &Node, path: String, ctx: &mut Context<'_>) -> Option<Reply> {
    let mut map = MapReader::new(path, Some(node), ctx);
    let (llm, decision) = (map.node("llm"), map.node("decision"));
    let tool = map.text("tool", ctx, None);
    let given = usize::from(llm.is_some()) + usize::from(decision.is_some()) + usize::from(tool.is_some());
    let mut reply = None;
    if given != 1 {
        let remedy = "write one of `llm: TEXT`, `tool: NAME` and `decision: VALUE`";
        ctx.error(node.span, map.path(), "a reply is to one call", remedy);
        // Which keys belong to it is not known then, but each is one of some reply.
        for known in REPLY_KEYS {
            map.node(known);
        }
    } else if let Some(llm) = llm {
        reply = Some(Reply::Llm(llm_reply(&mut map, llm, ctx)));
    } else if let Some(name) = tool {
        let answer = tool_reply(&mut map, node, ctx);
        reply = Some(Reply::Tool(name, answer));
    } else if let Some(decision) = decision {
        report_duplicates(decision, &map.key("decision"), ctx);
        reply = Some(Reply::Decision(decision.to_json()));
    }
    map.finish(ctx);
    reply
}

fn llm_reply(map: &mut MapReader<'_>, node: &Node, ctx: &mut Context<'_>) -> Result<LlmReply, CallError> {
    let mut error = call_error(map, ctx);
    let text = if node.is_null() { String::new() } else { a_text(node, &map.key("llm"), ctx) };
    let model = map.text("model", ctx, Some("scripted")).unwrap_or_default();
    let stop_reason = map.text("stop_reason", ctx, Some("end_turn"));
    let cost = map.node("usage").is_some();
    let usage = usage(map, ctx, 1);
    // A failed call may have cost something, too.
    if let Some(error) = error.as_mut().filter(|_| cost) {
        let mut detail = error.detail.as_object().cloned().unwrap_or_default();
        detail.insert("usage".to_owned(), serde_json::json!(usage));
        error.detail = Value::Object(detail);
    }
    if error.is_none() && node.is_null() {
        ctx.error(
            node.span,
            &map.key("llm"),
            "no text",
            "write the reply's text, or `error: {code: failed}`",
        );
    }
    error.map_or(Ok(LlmReply { text, model, stop_reason, usage }), Err)
}

/// What the host meters for a call; of one to a model, at least that it was one.
fn usage(map: &mut MapReader<'_>, ctx: &mut Context<'_>, llm_calls: u64) -> Usage {
    let mut amounts = map.map("usage", ctx);
    let mut amount = |name, default| amounts.count(name, ctx, default, 0..=u64::MAX);
    let usage = Usage {
        llm_calls: amount(AMOUNTS[0], llm_calls),
        input_tokens: amount(AMOUNTS[1], 0),
        output_tokens: amount(AMOUNTS[2], 0),
        cost_nano_usd: amount(AMOUNTS[3], 0),
    };
    amounts.finish(ctx);
    usage
}

fn tool_reply(
    map: &mut MapReader<'_>,
    node: &Node,
    ctx: &mut Context<'_>,
) -> Result<(ToolReply, Usage), CallError> {
    let error = call_error(map, ctx);
    let cost = place(map, "usage");
    let usage = usage(map, ctx, 0);
    let refusal = map.text("refuses", ctx, None);
    let output = map.node("output");
    if let Some(output) = output {
        report_duplicates(output, &map.key("output"), ctx);
    }
    let given = usize::from(error.is_some()) + usize::from(refusal.is_some()) + usize::from(output.is_some());
    if given != 1 {
        let remedy = "write one of `output: VALUE`, `refuses: TEXT` (it ran and could not) and `error: {code: denied}`";
        ctx.error(node.span, map.path(), "a tool answers in one way", remedy);
    }
    if let Some(error) = error {
        if !usage.is_zero() {
            let remedy = "leave `usage` out, or write `refuses: TEXT`: it ran and could not";
            ctx.error(cost, &map.key("usage"), "a call that did not run costs nothing", remedy);
        }
        return Err(error);
    }
    let reply = match refusal {
        Some(message) => ToolReply { ok: false, output: serde_json::json!({ "error": message }) },
        None => ToolReply { ok: true, output: output.map_or(Value::Null, Node::to_json) },
    };
    Ok((reply, usage))
}

/// `error: {code, message, detail}`.
fn call_error(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> Option<CallError> {
    let node = map.node("error")?;
    let mut inside = MapReader::new(map.key("error"), Some(node), ctx);
    let word = inside.text("code", ctx, Some(code::FAILED)).unwrap_or_default();
    not_misspelt(&word, CODES, place(&mut inside, "code"), &inside.key("code"), ctx);
    let message = inside.text("message", ctx, Some("the scenario says so")).unwrap_or_default();
    let detail = inside.json_map("detail", ctx, nothing_secret);
    inside.finish(ctx);
    let detail = if detail.is_empty() { Value::Null } else { Value::Object(detail) };
    Some(CallError { detail, ..CallError::new(&word, message) })
}

fn fault(node: &Node, path: String, ctx: &mut Context<'_>) -> Option<Fault> {
    let mut map = MapReader::new(path, Some(node), ctx);
    let call = map.text("call", ctx, Some(ANY)).unwrap_or_default();
    if call != ANY {
        known_call(&call, place(&mut map, "call"), &map.key("call"), ctx);
    }
    let nth = usize::try_from(map.count("nth", ctx, 1, 1..=1_000_000)).unwrap_or(1);
    let mut strikes = vec![];
    let message = map.text("message", ctx, Some("the scenario says so")).unwrap_or_default();
    if let Some(word) = map.text("answer", ctx, None) {
        not_misspelt(&word, CODES, place(&mut map, "answer"), &map.key("answer"), ctx);
        strikes.push(Strike::Answer(CallError::new(&word, message)));
    }
    if let Some(time) = map.opt_duration("takes", ctx, Duration::from_millis(1)..=365 * DAY) {
        strikes.push(Strike::Takes(time));
    }
    if map.boolean("cancel", ctx, false) {
        strikes.push(Strike::Cancel);
    }
    if map.boolean("deadline", ctx, false) {
        strikes.push(Strike::Deadline);
    }
    if map.boolean("crash", ctx, false) {
        strikes.push(Strike::Crash);
    }
    let span = map.span();
    let shown = map.path().to_owned();
    map.finish(ctx);
    let what = strikes.pop();
    if what.is_none() || !strikes.is_empty() {
        let remedy =
            "write one of `answer: CODE`, `takes: 30s`, `cancel: true`, `deadline: true` and `crash: true`";
        ctx.error(span, &shown, "a fault does one thing", remedy);
    }
    Some(Fault { call, nth, what: what? })
}

fn known_call(call: &str, at: Span, key: &str, ctx: &mut Context<'_>) {
    if method::ALL.contains(&call) || call.strip_prefix("tool:").is_some_and(|name| !name.is_empty()) {
        return;
    }
    let remedy = match nearest(call, method::ALL) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("known are {} and `tool:NAME`", method::ALL.join(", ")),
    };
    ctx.error(at, key, "no such call", remedy);
}

/// Codes and outcomes are open-ended, but a word that is nearly a known one is a slip.
fn not_misspelt<'k>(
    word: &str,
    known: impl IntoIterator<Item = &'k str> + Clone,
    at: Span,
    key: &str,
    ctx: &mut Context<'_>,
) {
    if known.clone().into_iter().any(|known| known == word) {
        return;
    }
    if let Some(near) = nearest(word, known) {
        ctx.error(at, key, "not a known word", format!("did you mean `{near}`?"));
    }
}

/// A map for one run, or a list with one for each.
fn expectations(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> Vec<Expect> {
    match map.node("expect") {
        None => vec![],
        Some(node) => match &node.kind {
            Kind::List(items) => {
                let runs = items.iter().enumerate();
                runs.map(|(at, item)| expect(item, format!("expect[{at}]"), ctx)).collect()
            }
            _ => vec![expect(node, "expect".to_owned(), ctx)],
        },
    }
}

/// Where the value of a key stands; the map itself when it is not there.
fn place(map: &mut MapReader<'_>, key: &'static str) -> Span {
    map.node(key).map_or(map.span(), |node| node.span)
}

fn expect(node: &Node, path: String, ctx: &mut Context<'_>) -> Expect {
    let mut map = MapReader::new(path, Some(node), ctx);
    let expect = Expect {
        status: a_status(&mut map, ctx),
        more: a_switch(&mut map, "more", ctx),
        summary: a_match(&mut map, "summary", ctx),
        error: a_match(&mut map, "error", ctx),
        usage: amounts(&mut map, "usage", ctx),
        metered: amounts(&mut map, "metered", ctx),
        steps: map.node("steps").is_some().then(|| each(&mut map, "steps", ctx, step)),
        state: map.json_map("state", ctx, nothing_secret),
        phases: map.texts("phases", ctx),
        logs: each(&mut map, "logs", ctx, log_line),
        attempts: map.opt_count("attempts", ctx, None, 1..=u64::MAX),
    };
    map.finish(ctx);
    expect
}

/// A known word, or `{code: WORD}` for any other: a typo must not be taken for a code of the runner's.
fn a_status(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> Option<String> {
    let node = map.node("status")?;
    if matches!(node.kind, Kind::Map(_)) {
        let mut inside = MapReader::new(map.key("status"), Some(node), ctx);
        let word = inside.text("code", ctx, None);
        if word.is_none() {
            ctx.error(node.span, inside.path(), "which code?", "write `status: {code: WORD}`");
        }
        inside.finish(ctx);
        return word;
    }
    let word = map.text("status", ctx, None)?;
    let known: Vec<&str> = STATUSES.into_iter().chain(CODES).chain(OUTCOMES).collect();
    if !known.contains(&word.as_str()) {
        let near = nearest(&word, known.iter().copied()).map(|near| format!("did you mean `{near}`? "));
        let remedy = format!(
            "{}known are {}; a code of the runner's own is `status: {{code: WORD}}`",
            near.unwrap_or_default(),
            known.join(", ")
        );
        ctx.error(node.span, &map.key("status"), "not a known status", remedy);
    }
    Some(word)
}

fn a_switch(map: &mut MapReader<'_>, key: &'static str, ctx: &mut Context<'_>) -> Option<bool> {
    map.node(key).map(|_| map.boolean(key, ctx, false))
}

fn amounts(map: &mut MapReader<'_>, key: &'static str, ctx: &mut Context<'_>) -> Map<String, Value> {
    let mut inside = map.map(key, ctx);
    let mut found = Map::new();
    for name in AMOUNTS {
        if let Some(amount) = inside.opt_count(name, ctx, None, 0..=u64::MAX) {
            found.insert(name.to_owned(), amount.into());
        }
    }
    inside.finish(ctx);
    found
}

/// A text, or `{contains: TEXT}`.
fn a_match(map: &mut MapReader<'_>, key: &'static str, ctx: &mut Context<'_>) -> Option<Text> {
    let node = map.node(key)?;
    if !matches!(node.kind, Kind::Map(_)) {
        return Some(Text::Is(a_text(node, &map.key(key), ctx)));
    }
    let mut inside = MapReader::new(map.key(key), Some(node), ctx);
    let part = inside.text("contains", ctx, None);
    if part.is_none() {
        ctx.error(node.span, inside.path(), "nothing to look for", "write a text or `{contains: TEXT}`");
    }
    inside.finish(ctx);
    part.map(Text::Contains)
}

/// A call's word, or a map about it.
fn step(node: &Node, path: String, ctx: &mut Context<'_>) -> Option<StepMatch> {
    if !matches!(node.kind, Kind::Map(_)) {
        let call = a_text(node, &path, ctx);
        known_call(&call, node.span, &path, ctx);
        return Some(StepMatch { call, ..StepMatch::default() });
    }
    let mut map = MapReader::new(path, Some(node), ctx);
    let call = map.text("call", ctx, None);
    match &call {
        Some(call) => known_call(call, place(&mut map, "call"), &map.key("call"), ctx),
        None => ctx.error(node.span, map.path(), "which call?", "write `call: llm` or `call: tool:NAME`"),
    }
    let args = map.node("args");
    if let Some(args) = args {
        report_duplicates(args, &map.key("args"), ctx);
    }
    let found = StepMatch {
        phase: map.text("phase", ctx, None),
        args: args.map(Node::to_json),
        contains: map.text("contains", ctx, None),
        error: map.text("error", ctx, None),
        call: call.unwrap_or_default(),
    };
    map.finish(ctx);
    Some(found)
}

fn log_line(node: &Node, path: String, ctx: &mut Context<'_>) -> Option<LogMatch> {
    use tracing::Level;
    if !matches!(node.kind, Kind::Map(_)) {
        return Some(LogMatch { level: None, contains: a_text(node, &path, ctx) });
    }
    let mut map = MapReader::new(path, Some(node), ctx);
    let words = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let level = map.opt_choice("level", ctx, &words);
    let contains = map.text("contains", ctx, None).unwrap_or_default();
    map.finish(ctx);
    Some(LogMatch { level, contains })
}

/// A text that may be empty.
fn a_text(node: &Node, key: &str, ctx: &mut Context<'_>) -> String {
    if let Some(Scalar::Text(text)) = node.scalar() {
        return text.to_owned();
    }
    let remedy = match &node.kind {
        Kind::Scalar(raw, _) if !raw.is_empty() => format!("put it in quotes: \"{raw}\""),
        _ => "write a text".to_owned(),
    };
    ctx.error(node.span, key, format!("expected a text, found {}", node.describe()), remedy);
    String::new()
}
