//! Tests of reading daemon.yml.

use super::*;
use crate::config::Env;
use crate::config::reader::Origin;

const FULL: &str = r#"
tick_interval: 10
graceful_timeout: 120
pid_path: .kairos/run/daemon.pid
max_concurrent_cycles: 1
chronos:  {max_catch_up_per_minute: 10}
budget:   {daily_calls: 10000, daily_tokens: null, daily_usd: null, timezone: UTC}
heartbeat: {interval: 10}
store:    {retention_days: 30}
wal:      {dir: .kairos/wal, on_error: refuse, retention_days: 30}
attach:   {host: 127.0.0.1, port: 9847}
default_runner: cognitive
runners:
  cognitive: {plugin: cognitive-loop, isolation: process, deadline: 10m, params: {}}
  quick:     {plugin: ./my/libquick.so, isolation: sandbox}
llm:
  default: claude
  providers:
    claude: {kind: anthropic, base_url: "https://api.anthropic.com", model: claude-sonnet-4-5, api_key: {env: ANTHROPIC_API_KEY}, max_tokens: 2048}
    local:  {kind: openai, base_url: "http://127.0.0.1:11434/v1", model: qwen3, price: {input_usd_per_mtok: 0, output_usd_per_mtok: 0.25}}
    canned: {kind: scripted, file: .kairos/config/replies.yml}
tools: {mcpServers: {}, policy: []}
"#;

fn parse_with(text: &str, env: &Env) -> Result<(DaemonConfig, Report), Report> {
    DaemonConfig::parse(text.as_bytes(), "daemon.yml", &env.overrides(), &Zones::bundled())
}

fn good(text: &str) -> DaemonConfig {
    match parse_with(text, &Env::default()) {
        Ok((config, _)) => config,
        Err(report) => panic!("{text}\n{report}"),
    }
}

fn bad(text: &str) -> String {
    match parse_with(text, &Env::default()) {
        Ok(_) => panic!("accepted: {text}"),
        Err(report) => report.to_string(),
    }
}

#[test]
fn full_file_is_read() {
    let config = good(FULL);
    assert_eq!(config.runners["quick"].isolation, Some(Isolation::Sandbox));
    assert_eq!(config.runners["cognitive"].deadline, 10 * MINUTE);
    let local = &config.llm.providers["local"];
    assert_eq!(local.price.unwrap().output_nano_usd_per_mtok, 250_000_000);
    assert_eq!(local.model.as_deref(), Some("qwen3"));
    let claude = &config.llm.providers["claude"].kind;
    let llm::ProviderKind::Anthropic(endpoint) = claude else { panic!("{claude:?}") };
    assert_eq!(endpoint.api_key, Some(llm::SecretSource::Env("ANTHROPIC_API_KEY".into())));
    assert_eq!(config.llm.default.as_deref(), Some("claude"));
}

#[test]
fn empty_file_and_written_defaults_mean_the_same() {
    let (empty, full) = (DaemonConfig::defaults(), good(FULL));
    assert_eq!(good("# nothing\n"), empty);
    assert_eq!(empty.budget, full.budget);
    assert_eq!((empty.tick_interval, empty.graceful_timeout), (full.tick_interval, full.graceful_timeout));
    assert_eq!((&empty.wal, &empty.attach), (&full.wal, &full.attach));
    assert_eq!((empty.default_runner.as_str(), empty.runners.len()), ("cognitive", 1));
    assert_eq!(empty.runners["cognitive"].isolation, None, "what nobody chose stays open");
    assert_eq!(empty.llm, LlmConfig::default());
}

#[test]
fn files_of_the_reference_are_accepted() {
    let config = good("mode: daemon\ntick_interval: 5\nbudget:\n  daily_limit: 300\n");
    assert_eq!((config.budget.daily_calls, config.tick_interval), (Some(300), 5 * SECOND));
    assert_eq!(good("budget: {daily_calls: null}").budget.daily_calls, None);
    assert_eq!(good("{\"budget\": {\"daily_calls\": 7}}").budget.daily_calls, Some(7), "JSON works too");
}

#[test]
fn limits_of_a_runner_are_read_with_their_units() {
    let config =
        good("runners: {a: {memory: 1.5GiB, stop_grace: 0s}, b: {memory: 67108864}}\ndefault_runner: a");
    let (a, b) = (&config.runners["a"], &config.runners["b"]);
    assert_eq!((a.memory, a.stop_grace), (Some(3 << 29), Duration::ZERO));
    assert_eq!((b.memory, b.stop_grace), (Some(64 << 20), 10 * SECOND));
    for (memory, remedy) in
        [("2GB", "`512MiB`"), ("1MiB", "write a size, 64MiB to 1TiB"), ("[1]", "`512MiB`")]
    {
        let text = bad(&format!("runners: {{a: {{memory: {memory}}}}}"));
        assert!(text.contains("runners.a.memory") && text.contains(remedy), "{text}");
    }
}

#[test]
fn runners_and_providers_have_a_default_that_exists() {
    assert_eq!(good("runners: {stub: {}}").default_runner, "stub");
    assert_eq!(good("runners: {stub: {}}").runners["stub"].plugin, "stub");
    assert_eq!(good("runners: {stub: {}, cognitive: {}}").default_runner, "cognitive");
    assert_eq!(good("llm: {providers: {c: {kind: scripted}}}").llm.default.as_deref(), Some("c"));
}

/// A file in which something is wrong in every part.
const ALL_WRONG: &str = r#"tick_intervall: 5
graceful_timeout: soon
max_concurrent_cycles: 0
max_concurrent_cycles: 2
budget:
  daily_calls: -1
  daily_limit: 5
  daily_usd: "12"
  timezone: Europe/Pariss
wal: {on_error: refuze, dir: 5}
attach: {host: 0.0.0.0, port: 70000}
heartbeat: often
default_runner: cognitiv
runners:
  cognitive: {plugin: "", isolation: none, deadline: 0, colour: red}
llm:
  default: claud
  providers:
    claude: {kind: anthropic, api_key: sk-ant-12345}
    b: {kind: openai}
    c: {modle: x}
tools: {mcpServers: {fs: {args: []}}, policy: {a: 1}}
"#;

#[test]
fn every_problem_is_reported_in_one_pass() {
    let report = bad(ALL_WRONG);
    assert!(!report.contains("12345"), "a secret is never repeated");
    insta::assert_snapshot!(report, @r#"
daemon.yml:1:1: tick_intervall: unknown key
    -> did you mean `tick_interval`?
daemon.yml:2:19: graceful_timeout: "soon" is not a duration
    -> write a number of seconds, or numbers with units: `500ms`, `90s`, `10m`, `1h30m`, `7d`
daemon.yml:3:24: max_concurrent_cycles: 0 is out of range
    -> write a whole number, 1 to 1024
daemon.yml:4:1: max_concurrent_cycles: the key stands here for the second time, first on line 3
    -> remove one of the two
daemon.yml:6:16: budget.daily_calls: -1 is out of range
    -> write a whole number from 0
daemon.yml:7:16: budget.daily_limit: says the same as `daily_calls`, which is there too
    -> keep `daily_calls`
daemon.yml:8:14: budget.daily_usd: expected a number, found the text "12"
    -> write a number such as `12.50`
daemon.yml:9:13: budget.timezone: unknown timezone "Europe/Pariss"
    -> did you mean `Europe/Paris`?
daemon.yml:10:17: wal.on_error: "refuze" is not known
    -> did you mean `refuse`?
daemon.yml:10:30: wal.dir: expected a text, found the number 5
    -> put it in quotes: "5"
daemon.yml:11:16: attach.host: "0.0.0.0" is not a loopback address
    -> write `127.0.0.1` or `::1`; reach it from elsewhere through a tunnel
daemon.yml:11:31: attach.port: 70000 is out of range
    -> write a whole number, 0 to 65535
daemon.yml:12:12: heartbeat: expected a map, found the text "often"
    -> write `key: value` pairs
daemon.yml:13:17: default_runner: no runner has the name "cognitiv"
    -> did you mean `cognitive`?
daemon.yml:15:23: runners.cognitive.plugin: the text is empty
    -> write a text or remove the key
daemon.yml:15:38: runners.cognitive.isolation: "none" is not known
    -> write one of `in_process`, `process`, `sandbox`
daemon.yml:15:54: runners.cognitive.deadline: "0" is out of range
    -> write a duration, 100ms to 7d
daemon.yml:15:57: runners.cognitive.colour: unknown key
    -> known here: deadline, grants, isolation, memory, params, plugin, stop_grace
daemon.yml:17:12: llm.default: no provider has the name "claud"
    -> did you mean `claude`?
daemon.yml:19:40: llm.providers.claude.api_key: a secret must not stand in this file
    -> write `{env: NAME}`, `{file: PATH}` or `{credential: NAME}`
daemon.yml:20:8: llm.providers.b.base_url: is missing
    -> write a URL such as `http://127.0.0.1:11434/v1`
daemon.yml:21:8: llm.providers.c.kind: is missing
    -> write `anthropic`, `openai` or `scripted`
daemon.yml:21:9: llm.providers.c.modle: unknown key
    -> did you mean `model`?
daemon.yml:22:26: tools.mcpServers.fs: has neither `command` nor `url`
    -> say how the server is reached
daemon.yml:22:47: tools.policy: expected a list, found a map
    -> write `- ` before each rule
25 errors and 0 warnings
"#);
}

#[test]
fn environment_outranks_the_file_and_is_named_when_it_is_wrong() {
    let env: Env = [("KAIROS_ATTACH_PORT", "0")].into_iter().collect();
    let (config, _) = parse_with("attach: {port: 5}", &env).unwrap();
    assert_eq!(config.attach.port, 0);
    let port = config.effective.iter().find(|known| known.key == "attach.port").unwrap();
    assert_eq!(port.origin, Origin::Env("KAIROS_ATTACH_PORT".into()));
    let env: Env = [("KAIROS_ATTACH_PORT", "http")].into_iter().collect();
    insta::assert_snapshot!(parse_with("attach: {port: 5}", &env).unwrap_err(), @r#"
$KAIROS_ATTACH_PORT: attach.port: expected a whole number, found the text "http"
    -> write a whole number, 0 to 65535
1 error and 0 warnings
"#);
}

#[test]
fn reload_says_what_took_effect_and_what_needs_a_restart() {
    let old = good("tick_interval: 5\nattach: {port: 1}\nrunners: {a: {}}");
    let new =
        good("tick_interval: 5s\nattach: {port: 2}\nbudget: {daily_calls: 5}\nrunners: {a: {deadline: 5m}}");
    let diff = DaemonConfig::diff(&old, &new);
    assert_eq!(diff.took_effect, ["budget.daily_calls", "runners.a.deadline"]);
    assert_eq!(diff.needs_restart, ["attach.port"]);
    assert_eq!(DaemonConfig::diff(&old, &old), Diff::default());
    let gone = DaemonConfig::diff(&good("runners: {a: {}, b: {}}\ndefault_runner: a"), &old);
    assert!(gone.took_effect.contains(&"runners.b.plugin".to_owned()), "{gone:?}");
}

#[test]
fn dump_never_holds_secrets_of_tools() {
    let config =
        good("tools: {mcpServers: {gh: {command: x, env: {TOKEN: hunter2}, headers: {a: hunter2}}}}");
    let shown = serde_json::to_string(&config.effective).unwrap();
    assert!(!shown.contains("hunter2") && shown.contains("***"), "{shown}");
    assert_eq!(config.tools.mcp_servers["gh"]["env"]["TOKEN"], "hunter2");
}

#[test]
fn table_of_keys_is_what_the_reader_asks_for() {
    // All kinds of provider, so that all their keys are asked for.
    let text = "runners: {NAME: {}}\ncommands: {NAME: {argv: [x]}}\nllm: {providers: {a: {kind: anthropic}, o: {kind: openai, base_url: 'http://x'}, \
                s: {kind: scripted}}, default: a}";
    let asked = good(text).effective;
    for known in &asked {
        assert!(
            keys::DAEMON.iter().any(|key| keys::matches(key.path, &known.key)),
            "{} is not in the table",
            known.key
        );
    }
    for key in keys::DAEMON {
        assert!(
            asked.iter().any(|known| keys::matches(key.path, &known.key)),
            "nobody asks for {}",
            key.path
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_give_a_config_or_a_report(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = DaemonConfig::parse(&bytes, "f", &[], &Zones::bundled());
    }

    #[test]
    fn any_value_under_any_key_gives_a_config_or_a_report(at in 0..keys::DAEMON.len(), value in "[ -~]{0,12}") {
        let path = keys::DAEMON[at].path.replace('*', "n");
        let mut text = String::new();
        for (depth, part) in path.split('.').enumerate() {
            text.push_str(&format!("\n{}{part}:", "  ".repeat(depth)));
        }
        text.push_str(&format!(" {value}\n"));
        if let Err(report) = parse_with(&text, &Env::default()) {
            proptest::prop_assert!(!report.is_ok());
        }
    }
}

#[test]
fn grants_and_the_demanded_sandbox_are_read_and_bad_ones_refused() {
    let config = good(
        "sandbox: {require: full}\ndefault_runner: a\nrunners: {a: {grants: {read: [docs], write: [out, notes/x, /srv/out]}}, b: {}}",
    );
    assert_eq!(config.sandbox_require, Level::Full);
    assert_eq!(config.runners["a"].grants.read, [PathBuf::from("docs")]);
    assert_eq!(config.runners["a"].grants.write, ["out", "notes/x", "/srv/out"].map(PathBuf::from));
    assert!(config.runners["b"].grants.is_empty());
    assert_eq!(good("").sandbox_require, Level::Partial);
    let text = "wal: {dir: logs}\nsandbox: {require: none}\nrunners: {a: {grants: {read: [/, ../x, .kairos/run, logs/x], write: [.]}}}";
    let report = bad(text);
    for says in [
        "sandbox.require",
        "\"/\" is the whole machine",
        "\"../x\" leads outside",
        "\".kairos/run\" reaches",
        "\"logs/x\" reaches",
        "\".\" is the whole root",
    ] {
        assert!(report.contains(says), "{says}: {report}");
    }
}
