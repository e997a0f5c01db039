//! The parts of daemon.yml about language models and tools. A secret's value never enters here:
//! only where it is to be found.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::daemon::list;
use super::reader::{Context, MapReader};
use super::report::{nearest, quoted};
use super::yaml::{Kind, Node};

/// All providers and which one serves requests that name none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LlmConfig {
    /// Names one of `providers`; `None` only when there are none.
    pub default: Option<String>,
    /// By name.
    pub providers: BTreeMap<String, ProviderConfig>,
}

/// One provider.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderConfig {
    /// What it talks to.
    pub kind: ProviderKind,
    /// The model of requests that name none.
    pub model: Option<String>,
    /// Most tokens of a reply to requests that name no figure.
    pub max_tokens: Option<u64>,
    /// What it costs; the host's own table when absent.
    pub price: Option<Price>,
}

/// What a provider talks to.
#[derive(Clone, Debug, PartialEq)]
pub enum ProviderKind {
    /// The Anthropic messages API.
    Anthropic(Endpoint),
    /// An API in the manner of OpenAI's chat completions.
    OpenAi(Endpoint),
    /// Replies from a file, for tests and first steps.
    Scripted {
        /// As written; relative to the root.
        file: PathBuf,
    },
}

/// An HTTP service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Begins with `http://` or `https://`.
    pub base_url: String,
    /// Where its key is; none for a local one.
    pub api_key: Option<SecretSource>,
}

/// Where a secret is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A variable of the environment.
    Env(String),
    /// The first line of a file; relative to the root.
    File(PathBuf),
    /// A credential of the service manager, by name.
    Credential(String),
}

/// Billionths of a US dollar per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Tokens sent.
    pub input_nano_usd_per_mtok: u64,
    /// Tokens received.
    pub output_nano_usd_per_mtok: u64,
}

/// Tools beyond the built-in ones; kept as written for the part that serves them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolsConfig {
    /// MCP servers by name.
    pub mcp_servers: Map<String, Value>,
    /// Rules in order.
    pub policy: Vec<Value>,
}

#[derive(Clone, Copy, PartialEq)]
enum KindWord {
    Anthropic,
    OpenAi,
    Scripted,
}

/// Reads `llm`.
pub(super) fn read_llm(top: &mut MapReader<'_>, ctx: &mut Context<'_>) -> LlmConfig {
    let mut map = top.map("llm", ctx);
    let at = map.node("default").map(|node| node.span);
    let mut providers = BTreeMap::new();
    let mut names = Vec::new();
    for (name, provider) in map.named("providers", ctx) {
        names.push(name.to_owned());
        if let Some(provider) = read_provider(provider, ctx) {
            providers.insert(name.to_owned(), provider);
        }
    }
    let default = map.text("default", ctx, names.first().map(String::as_str));
    let key = map.key("default");
    match (&default, at) {
        (Some(name), Some(at)) if !names.contains(name) => {
            let remedy = match nearest(name, names.iter().map(String::as_str)) {
                Some(known) => format!("did you mean `{known}`?"),
                None if names.is_empty() => "add it to `llm.providers`".to_owned(),
                None => format!("known: {}", list(names.iter())),
            };
            ctx.error(at, &key, format!("no provider has the name {}", quoted(name)), remedy);
        }
        (Some(name), None) if names.len() > 1 => {
            let message = format!("several providers and no default; {} stands first", quoted(name));
            ctx.error(map.span(), &key, message, format!("write `default: {name}`, or another"));
        }
        _ => {}
    }
    map.finish(ctx);
    LlmConfig { default, providers }
}

fn read_provider(mut map: MapReader<'_>, ctx: &mut Context<'_>) -> Option<ProviderConfig> {
    const KINDS: &[(&str, KindWord)] =
        &[("anthropic", KindWord::Anthropic), ("openai", KindWord::OpenAi), ("scripted", KindWord::Scripted)];
    let kind = map.opt_choice("kind", ctx, KINDS);
    let kind_is_there = map.node("kind").is_some();
    let model = map.text("model", ctx, None);
    let max_tokens = map.opt_count("max_tokens", ctx, None, 1..=10_000_000);
    let price = read_price(&mut map, ctx);
    let built = match kind {
        None => {
            if !kind_is_there {
                let key = map.key("kind");
                ctx.error(map.span(), &key, "is missing", "write `anthropic`, `openai` or `scripted`");
            }
            // What belongs to it cannot be told, so nothing of it is unknown.
            for name in ["base_url", "api_key", "file"] {
                map.node(name);
            }
            None
        }
        Some(KindWord::Scripted) => {
            let file = map.text("file", ctx, Some(".kairos/config/replies.yml")).unwrap_or_default();
            Some(ProviderKind::Scripted { file: file.into() })
        }
        Some(KindWord::Anthropic) => {
            Some(ProviderKind::Anthropic(read_endpoint(&mut map, ctx, Some("https://api.anthropic.com"))))
        }
        Some(KindWord::OpenAi) => Some(ProviderKind::OpenAi(read_endpoint(&mut map, ctx, None))),
    };
    map.finish(ctx);
    Some(ProviderConfig { kind: built?, model, max_tokens, price })
}

fn read_endpoint(map: &mut MapReader<'_>, ctx: &mut Context<'_>, default: Option<&str>) -> Endpoint {
    let span = map.node("base_url").map_or(map.span(), |node| node.span);
    let base_url = map.text("base_url", ctx, default).unwrap_or_default();
    if !base_url.starts_with("http://") && !base_url.starts_with("https://") {
        let key = map.key("base_url");
        let message = if base_url.is_empty() {
            "is missing".to_owned()
        } else {
            format!("{} is no URL", quoted(&base_url))
        };
        ctx.error(span, &key, message, "write a URL such as `http://127.0.0.1:11434/v1`");
    } else if base_url.split_once("://").is_some_and(|(_, rest)| rest.contains('@')) {
        let key = map.key("base_url");
        ctx.error(span, &key, "holds a user or a password", "take it out and use `api_key`");
    }
    Endpoint { base_url, api_key: read_secret(map, ctx) }
}

fn read_secret(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> Option<SecretSource> {
    let key = map.key("api_key");
    let node = map.node("api_key").filter(|node| !node.is_null());
    let Some(node) = node else {
        map.record("api_key", ctx, "source of a secret", Value::Null, None);
        return None;
    };
    let source = secret_of(node, &key, ctx)?;
    map.record("api_key", ctx, "source of a secret", node.to_json(), Some(node.span));
    Some(source)
}

/// Where a secret is to be found. Never repeats a value.
pub(super) fn secret_of(node: &Node, key: &str, ctx: &mut Context<'_>) -> Option<SecretSource> {
    const REMEDY: &str = "write `{env: NAME}`, `{file: PATH}` or `{credential: NAME}`";
    if let Kind::Scalar(..) = node.kind {
        // The value itself is not repeated: reports are shown and sent around.
        ctx.error(node.span, key, "a secret must not stand in this file", REMEDY);
        return None;
    }
    let mut inner = MapReader::new(key, Some(node), ctx);
    // Not traced one by one: the whole is one key.
    let trace = ctx.trace.take();
    let env = inner.text("env", ctx, None).map(SecretSource::Env);
    let file = inner.text("file", ctx, None).map(|path| SecretSource::File(path.into()));
    let credential = inner.text("credential", ctx, None).map(SecretSource::Credential);
    ctx.trace = trace;
    inner.finish(ctx);
    let mut sources: Vec<SecretSource> = [env, file, credential].into_iter().flatten().collect();
    if sources.len() != 1 {
        ctx.error(node.span, key, format!("names {} sources, one is needed", sources.len()), REMEDY);
        return None;
    }
    sources.pop()
}

pub(super) fn read_price(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> Option<Price> {
    let there = map.node("price").is_some_and(|node| !node.is_null());
    let mut price = map.map("price", ctx);
    let input = price.opt_decimal("input_usd_per_mtok", ctx);
    let output = price.opt_decimal("output_usd_per_mtok", ctx);
    let (key, span) = (price.path().to_owned(), price.span());
    price.finish(ctx);
    match (input, output) {
        (Some(input), Some(output)) => {
            Some(Price { input_nano_usd_per_mtok: input, output_nano_usd_per_mtok: output })
        }
        _ => {
            if there {
                let remedy = "write both `input_usd_per_mtok` and `output_usd_per_mtok`";
                ctx.error(span, &key, "is not complete", remedy);
            }
            None
        }
    }
}

/// Reads `tools`.
pub(super) fn read_tools(top: &mut MapReader<'_>, ctx: &mut Context<'_>) -> ToolsConfig {
    let mut map = top.map("tools", ctx);
    let servers = map.node("mcpServers");
    let mcp_servers = map.json_map("mcpServers", ctx, redact_servers);
    if let Some(Kind::Map(entries)) = servers.map(|node| &node.kind) {
        for entry in &entries.entries {
            check_server(&map.key("mcpServers"), &entry.key, &entry.value, ctx);
        }
    }
    let policy = read_policy(&mut map, ctx);
    map.finish(ctx);
    ToolsConfig { mcp_servers, policy }
}

fn check_server(path: &str, name: &str, node: &Node, ctx: &mut Context<'_>) {
    let key = format!("{path}.{name}");
    let Kind::Map(map) = &node.kind else {
        let message = format!("expected a map, found {}", node.describe());
        ctx.error(node.span, &key, message, "write `{command: PROGRAM, args: []}` or `{url: URL}`");
        return;
    };
    if map.get("command").is_none() && map.get("url").is_none() {
        ctx.error(node.span, &key, "has neither `command` nor `url`", "say how the server is reached");
    }
}

/// Environment and headers of a server hold secrets more often than not.
fn redact_servers(servers: &mut Value) {
    let Some(servers) = servers.as_object_mut() else { return };
    for server in servers.values_mut() {
        for secret in ["env", "headers"] {
            for value in
                server.get_mut(secret).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
            {
                *value = "***".into();
            }
        }
    }
}

fn read_policy(map: &mut MapReader<'_>, ctx: &mut Context<'_>) -> Vec<Value> {
    let key = map.key("policy");
    let node = map.node("policy").filter(|node| !node.is_null());
    let mut rules = Vec::new();
    match node.map(|node| &node.kind) {
        None => {}
        Some(Kind::List(items)) => {
            for (at, item) in items.iter().enumerate() {
                match &item.kind {
                    Kind::Map(_) => {
                        super::reader::report_duplicates(item, &format!("{key}[{at}]"), ctx);
                        rules.push(item.to_json());
                    }
                    _ => {
                        let message = format!("expected a map, found {}", item.describe());
                        ctx.error(item.span, &format!("{key}[{at}]"), message, "write a rule as a map");
                    }
                }
            }
        }
        Some(_) => {
            let node = node.expect("its kind was just seen");
            let message = format!("expected a list, found {}", node.describe());
            ctx.error(node.span, &key, message, "write `- ` before each rule");
        }
    }
    map.record("policy", ctx, "list of maps", Value::Array(rules.clone()), node.map(|node| node.span));
    rules
}
