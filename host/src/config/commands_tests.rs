//! What `commands` means when it is right, and what is said when it is not.

use super::*;
use crate::config::DaemonConfig;
use crate::sys::zones::Zones;

fn parse(text: &str) -> Result<DaemonConfig, String> {
    DaemonConfig::parse(text.as_bytes(), "daemon.yml", &[], &Zones::bundled())
        .map(|(config, _)| config)
        .map_err(|report| report.to_string())
}

#[test]
fn a_command_needs_its_argv_only_and_belongs_to_the_runners_of_the_plugin() {
    let config = parse(
        "default_runner: agent\nrunners: {agent: {plugin: command}, other: {plugin: x}, own: {plugin: ./t/libcommand.so}}\n\
         commands:\n  a: {argv: [claude, -p], preset: claude}\n  b: {argv: [./x.sh]}\n  c: {argv: [x], runners: [other]}\n",
    )
    .unwrap();
    let a = &config.commands["a"];
    assert_eq!((a.argv.len(), a.preset, a.max_calls), (2, PresetWord::Claude, AGENT_CALLS));
    assert!(a.sandbox && !a.network && !a.retry_safe);
    assert_eq!(a.runners, ["agent", "own"]);
    assert_eq!((config.commands["b"].preset, config.commands["b"].max_calls), (PresetWord::Jsonl, 0));
    assert_eq!(config.commands["c"].runners, ["other"]);
}

#[test]
fn everything_that_can_be_said_is_read() {
    let config = parse(
        "commands:\n  a:\n    argv: [aider, --message]\n    preset: aider\n    input: prompt\n    prompt: arg\n    \
         cwd: work\n    env: {LANG: C.UTF-8}\n    inherit: [HOME]\n    secrets: {KEY: {env: MY_KEY}, B: {file: b.key}}\n    \
         sandbox: on\n    network: true\n    read: [~/.gitconfig]\n    write: [work]\n    timeout: 2m\n    grace: 1s\n    \
         max_output_bytes: 2048\n    max_calls: 3\n    max_tokens: 4\n    max_cost_usd: 0.5\n    \
         price: {input_usd_per_mtok: 3, output_usd_per_mtok: 15}\n    retry: safe\n",
    )
    .unwrap();
    let a = &config.commands["a"];
    assert_eq!((a.input, a.prompt), (Some(InputWord::Prompt), PromptWord::Arg));
    assert_eq!(a.secrets["KEY"], SecretSource::Env("MY_KEY".into()));
    assert_eq!((a.max_calls, a.max_tokens, a.max_cost_nano_usd), (3, 4, 500_000_000));
    assert_eq!((a.timeout, a.grace), (Duration::from_secs(120), Duration::from_secs(1)));
    assert!(a.retry_safe && a.network && a.price.is_some());
    let shown = serde_json::to_string(&config.effective).unwrap();
    assert!(shown.contains("MY_KEY") && !shown.contains("C.UTF-8"), "{shown}");
}

#[test]
fn mistakes_name_line_key_and_remedy_and_repeat_no_secret() {
    let cases = [
        ("commands: {a: {}}", "commands.a.argv", "write the program"),
        ("commands: {a: {argv: []}}", "commands.a.argv", "is missing"),
        ("commands: {a: {argv: [x], preset: cloude}}", "commands.a.preset", "did you mean `claude`"),
        ("commands: {a: {argv: [x], secrets: {K: sk-12345}}}", "commands.a.secrets.K", "must not stand"),
        ("commands: {a: {argv: [x], secrets: sk-12345}}", "commands.a.secrets", "expected a map"),
        ("commands: {a: {argv: [x], env: {K: 7}}}", "commands.a.env.K", "quotes"),
        ("commands: {a: {argv: [x], runners: [nobody]}}", "commands.a.runners", "no runner has the name"),
        ("commands: {a: {argv: [x], sandbox: maybe}}", "commands.a.sandbox", "`on`, `off`"),
        ("commands: {a: {argv: [x], timout: 3s}}", "commands.a.timout", "did you mean `timeout`"),
        ("commands: {a: {argv: [x], max_output_bytes: 3}}", "commands.a.max_output_bytes", "out of range"),
    ];
    for (text, key, words) in cases {
        let report = parse(text).unwrap_err();
        assert!(report.contains("daemon.yml:1:"), "{report}");
        assert!(report.contains(key) && report.contains(words), "{text}\n{report}");
        assert!(!report.contains("sk-12345"), "{report}");
    }
}

#[test]
fn what_no_day_has_room_for_is_warned_of() {
    let text = "budget: {daily_usd: 1}\ncommands: {a: {argv: [x], max_cost_usd: 2, env: {API_KEY: x}}}";
    let (_, report) = DaemonConfig::parse(text.as_bytes(), "daemon.yml", &[], &Zones::bundled()).unwrap();
    let report = report.to_string();
    assert!(
        report.contains("raise `budget.daily_usd`") && report.contains("move it to `secrets`"),
        "{report}"
    );
}
