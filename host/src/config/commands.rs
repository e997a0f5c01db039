//! The part of daemon.yml about programs that runners may ask for: `commands`. Everything about a
//! program stands here and nothing of it in a runner's request, so that an operator reads in one
//! place what can be started on the machine.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Component, Path};
use std::time::Duration;

use serde_json::Value;

use super::daemon::{BudgetConfig, RunnerConfig, list};
use super::llm::{Price, SecretSource, read_price, secret_of};
use super::reader::{Context, MapReader, join};
use super::report::{nearest, quoted};
use super::yaml::{Kind, Node, Scalar};

/// The plugin whose runners may run any command, unless a command says otherwise.
const PLUGIN: &str = "command";
const TIMES: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(7 * 86_400);
const GRACES: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(600);
/// LLM calls of an agent whose maximum is not configured.
const AGENT_CALLS: u64 = 50;

/// One program.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandConfig {
    /// Program and arguments; not empty.
    pub argv: Vec<String>,
    /// How its output is read.
    pub preset: PresetWord,
    /// What it is given to read; by itself what its preset reads.
    pub input: Option<InputWord>,
    /// How it gets that.
    pub prompt: PromptWord,
    /// Where it starts, as written; relative to the root.
    pub cwd: String,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Names of variables it gets from the daemon's environment.
    pub inherit: Vec<String>,
    /// Variables whose values are secret.
    pub secrets: BTreeMap<String, SecretSource>,
    /// False runs it unconfined.
    pub sandbox: bool,
    /// True lets it reach the network.
    pub network: bool,
    /// What it may read, as written.
    pub read: Vec<String>,
    /// What it may change, as written.
    pub write: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// Between asking it to end and killing it.
    pub grace: Duration,
    /// Most it may write, in bytes.
    pub max_output_bytes: u64,
    /// What it leaves free on the file systems that it may write to, in bytes.
    pub keep_free_bytes: u64,
    /// Most LLM calls of a run.
    pub max_calls: u64,
    /// Most tokens of a run, sent and received together.
    pub max_tokens: u64,
    /// Most a run costs, in billionths of a US dollar.
    pub max_cost_nano_usd: u64,
    /// What its tokens cost, if it does not say so itself.
    pub price: Option<Price>,
    /// True when it may run again after it was cut short.
    pub retry_safe: bool,
    /// Runners that may ask for it.
    pub runners: Vec<String>,
}

/// How a program's output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresetWord {
    /// Kairos' protocol.
    Jsonl,
    /// Exit code and text.
    Plain,
    /// Claude Code.
    Claude,
    /// Codex.
    Codex,
    /// Goose.
    Goose,
    /// aider.
    Aider,
}

/// What a program is given to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputWord {
    /// The mandate as JSON.
    Mandate,
    /// A prompt in plain text.
    Prompt,
    /// Nothing.
    Nothing,
}

/// How a program gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptWord {
    /// On standard input.
    Stdin,
    /// As its last argument.
    Arg,
}

impl RunnerConfig {
    /// True for a runner of the plugin whose runners run commands.
    #[must_use]
    pub fn is_of_commands(&self) -> bool {
        self.plugin == PLUGIN || self.plugin.rsplit('/').next() == Some("libcommand.so")
    }

    /// The command that it runs unless a mandate names another one.
    #[must_use]
    pub fn command(&self) -> Option<&str> {
        self.params.get("command").filter(|_| self.is_of_commands())?.as_str()
    }
}

const PRESETS: &[(&str, PresetWord)] = &[
    ("jsonl", PresetWord::Jsonl),
    ("plain", PresetWord::Plain),
    ("claude", PresetWord::Claude),
    ("codex", PresetWord::Codex),
    ("goose", PresetWord::Goose),
    ("aider", PresetWord::Aider),
];

impl PresetWord {
    fn is_agent(self) -> bool {
        !matches!(self, Self::Jsonl | Self::Plain)
    }
}

/// Reads `commands`.
pub(super) fn read(
    top: &mut MapReader<'_>,
    ctx: &mut Context<'_>,
    runners: &BTreeMap<String, RunnerConfig>,
    budget: &BudgetConfig,
) -> BTreeMap<String, CommandConfig> {
    let mut commands = BTreeMap::new();
    for (name, map) in top.named("commands", ctx) {
        commands.insert(name.to_owned(), command(map, ctx, runners, budget));
    }
    for (name, runner) in runners {
        asked_for(top, ctx, (name, runner), &commands);
    }
    commands
}

/// A runner's command is there, and open to it.
fn asked_for(
    top: &mut MapReader<'_>,
    ctx: &mut Context<'_>,
    (name, runner): (&String, &RunnerConfig),
    commands: &BTreeMap<String, CommandConfig>,
) {
    let Some(command) = runner.command() else { return };
    let (message, remedy) = match commands.get(command) {
        Some(found) if found.runners.contains(name) => return,
        Some(_) => {
            let message = format!("the command {} is not open to this runner", quoted(command));
            (message, format!("add `{name}` to `runners` of the command"))
        }
        None => {
            let message = format!("no command has the name {}", quoted(command));
            (message, known(command, commands.keys()))
        }
    };
    let mut span = top.span();
    let mut node = top.node("runners");
    for step in [name, "params", "command"] {
        let Some(Kind::Map(map)) = node.map(|node| &node.kind) else { break };
        node = map.get(step);
        span = node.map_or(span, |node| node.span);
    }
    ctx.error(span, &format!("{}.params.command", join("runners", name)), message, remedy);
}

/// The remedy for a name that is none of these commands.
pub fn known<'n>(name: &str, commands: impl Iterator<Item = &'n String> + Clone) -> String {
    match nearest(name, commands.clone().map(String::as_str)) {
        Some(known) => format!("did you mean `{known}`?"),
        None if commands.clone().next().is_none() => format!("add `{name}` to `commands`"),
        None => format!("known: {}", list(commands)),
    }
}

fn command(
    mut map: MapReader<'_>,
    ctx: &mut Context<'_>,
    runners: &BTreeMap<String, RunnerConfig>,
    budget: &BudgetConfig,
) -> CommandConfig {
    let argv = map.texts("argv", ctx).unwrap_or_default();
    if argv.is_empty() {
        let key = map.key("argv");
        ctx.error(map.span(), &key, "is missing", "write the program and its arguments: `[claude, -p]`");
    }
    let preset = map.choice("preset", ctx, PresetWord::Jsonl, PRESETS);
    let inputs =
        &[("mandate", InputWord::Mandate), ("prompt", InputWord::Prompt), ("nothing", InputWord::Nothing)];
    let input = map.opt_choice("input", ctx, inputs);
    let prompt = map.choice(
        "prompt",
        ctx,
        PromptWord::Stdin,
        &[("stdin", PromptWord::Stdin), ("arg", PromptWord::Arg)],
    );
    let cwd = map.text("cwd", ctx, Some(".")).unwrap_or_default();
    let env = environment(&mut map, ctx);
    let inherit = map.texts("inherit", ctx).unwrap_or_default();
    let secrets = secrets(&mut map, ctx);
    let sandbox = map.choice("sandbox", ctx, true, &[("on", true), ("off", false)]);
    let network = map.boolean("network", ctx, false);
    let (read, write) = (granted(&mut map, "read", ctx), granted(&mut map, "write", ctx));
    if !sandbox && (!read.is_empty() || !write.is_empty()) {
        let key = map.key("sandbox");
        ctx.warn(map.span(), &key, "without a sandbox `read` and `write` bind nothing", "take them out");
    }
    let timeout = map.duration("timeout", ctx, Duration::from_secs(540), TIMES);
    let grace = map.duration("grace", ctx, Duration::from_secs(5), GRACES);
    let max_output_bytes = map.count("max_output_bytes", ctx, 4 << 20, 1024..=64 << 20);
    let keep_free_bytes = map.count("keep_free_bytes", ctx, 64 << 20, 0..=1 << 50);
    let calls = map.opt_count("max_calls", ctx, None, 0..=1_000_000);
    let command = CommandConfig {
        argv,
        preset,
        input,
        prompt,
        cwd,
        env,
        inherit,
        secrets,
        sandbox,
        network,
        read,
        write,
        timeout,
        grace,
        max_output_bytes,
        keep_free_bytes,
        max_calls: calls.unwrap_or(if preset.is_agent() { AGENT_CALLS } else { 0 }),
        max_tokens: map.opt_count("max_tokens", ctx, None, 0..=1 << 50).unwrap_or(0),
        max_cost_nano_usd: map.opt_decimal("max_cost_usd", ctx).unwrap_or(0),
        price: read_price(&mut map, ctx),
        retry_safe: map.choice("retry", ctx, false, &[("review", false), ("safe", true)]),
        runners: asked_by(&mut map, ctx, runners),
    };
    fits(&map, ctx, &command, budget);
    map.finish(ctx);
    command
}

/// Paths of a grant: of the root, of the home directory, or absolute. Whether they are there, and
/// beside what the daemon keeps for itself, is looked at when a run starts.
fn granted(map: &mut MapReader<'_>, name: &'static str, ctx: &mut Context<'_>) -> Vec<String> {
    let span = map.node(name).map_or(map.span(), |node| node.span);
    let paths = map.texts(name, ctx).unwrap_or_default();
    for path in &paths {
        let components = Path::new(path).components();
        let (message, remedy) = if components.clone().any(|part| part == Component::ParentDir) {
            ("has `..` in it", "write an absolute path for what lies outside of the root")
        } else if components.clone().eq([Component::RootDir]) {
            ("is the whole machine", "grant single directories")
        } else {
            continue;
        };
        ctx.error(span, &map.key(name), format!("{} {message}", quoted(path)), remedy);
    }
    paths
}

/// A reservation that no day has room for would make its mandates wait for ever.
fn fits(map: &MapReader<'_>, ctx: &mut Context<'_>, command: &CommandConfig, budget: &BudgetConfig) {
    let cases = [
        ("max_calls", command.max_calls, "budget.daily_calls", budget.daily_calls),
        ("max_tokens", command.max_tokens, "budget.daily_tokens", budget.daily_tokens),
        ("max_cost_usd", command.max_cost_nano_usd, "budget.daily_usd", budget.daily_usd_nano),
    ];
    for (name, most, day, limit) in cases {
        if limit.is_some_and(|limit| most > limit) {
            let remedy = format!("lower it, or raise `{day}`");
            let message = format!("is more than `{day}` allows in a whole day, so it never runs");
            ctx.warn(map.span(), &map.key(name), message, remedy);
        }
    }
}

fn asked_by(
    map: &mut MapReader<'_>,
    ctx: &mut Context<'_>,
    runners: &BTreeMap<String, RunnerConfig>,
) -> Vec<String> {
    let span = map.node("runners").map_or(map.span(), |node| node.span);
    let Some(named) = map.texts("runners", ctx) else {
        let of_plugin = runners.iter().filter(|(_, runner)| runner.is_of_commands());
        return of_plugin.map(|(name, _)| name.clone()).collect();
    };
    for name in named.iter().filter(|name| !runners.contains_key(*name)) {
        let remedy = match nearest(name, runners.keys().map(String::as_str)) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("known: {}", list(runners.keys())),
        };
        ctx.error(span, &map.key("runners"), format!("no runner has the name {}", quoted(name)), remedy);
    }
    named
}

/// Values are not shown in a dump: secrets stand here by mistake more often than not.
fn environment(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> BTreeMap<String, String> {
    let node = map.node("env");
    let path = map.key("env");
    let hidden = |value: &mut Value| {
        for value in value.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
            *value = "***".into();
        }
    };
    map.json_map("env", ctx, hidden);
    let mut found = BTreeMap::new();
    for (name, key, value) in entries(node, &path) {
        match value.scalar() {
            Some(Scalar::Text(text)) if !text.contains('\0') => {
                if looks_secret(name) {
                    let message = "looks like a secret, which must not stand in this file";
                    ctx.warn(value.span, &key, message, "move it to `secrets`");
                }
                check_name(name, &key, value, ctx);
                found.insert(name.to_owned(), text.to_owned());
            }
            _ => ctx.error(value.span, &key, "is no text", "put the value in quotes"),
        }
    }
    found
}

fn looks_secret(name: &str) -> bool {
    ["KEY", "TOKEN", "SECRET", "PASSWORD"].iter().any(|end| name.ends_with(end))
}

fn secrets(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> BTreeMap<String, SecretSource> {
    let node = map.node("secrets");
    let path = map.key("secrets");
    let mut found = BTreeMap::new();
    if let Some(node) = node.filter(|node| !node.is_null() && !matches!(node.kind, Kind::Map(_))) {
        // Not repeated: it may be the secret itself.
        ctx.error(node.span, &path, "expected a map", "write `{NAME: {env: NAME}}`");
    }
    let mut shown = serde_json::Map::new();
    for (name, key, value) in entries(node, &path) {
        check_name(name, &key, value, ctx);
        if let Some(source) = secret_of(value, &key, ctx) {
            shown.insert(name.to_owned(), value.to_json());
            found.insert(name.to_owned(), source);
        }
    }
    if let Some(Kind::Map(inside)) = node.map(|node| &node.kind) {
        for (entry, line) in &inside.duplicates {
            let message = format!("the key stands here for the second time, first on line {line}");
            ctx.error(entry.key_span, &format!("{path}.{}", entry.key), message, "remove one of the two");
        }
    }
    map.record("secrets", ctx, "map of sources of secrets", shown.into(), node.map(|node| node.span));
    found
}

fn check_name(name: &str, key: &str, node: &Node, ctx: &mut Context<'_>) {
    if name.is_empty() || name.contains(['=', '\0']) {
        ctx.error(node.span, key, "is no name of a variable", "write letters, digits and `_`");
    }
}

fn entries<'n>(node: Option<&'n Node>, path: &str) -> Vec<(&'n str, String, &'n Node)> {
    let Some(Kind::Map(map)) = node.map(|node| &node.kind) else { return vec![] };
    let each = map.entries.iter();
    each.map(|entry| (&*entry.key, format!("{path}.{}", entry.key), &entry.value)).collect()
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
