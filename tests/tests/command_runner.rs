//! An agent CLI on a schedule, through a real daemon: what it may touch, what it costs, what becomes
//! of it when the daemon dies. The agents are small shell programs that print what real ones print.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::Result;
use kairos_host::config::DaemonConfig;
use kairos_host::sys::zones::Zones;
use kairos_tests::office::{Office, last_cycle, prints};
use kairos_tests::{Root, plugin};
use serde_json::{Value, json};

#[test]
fn each_agent_cli_runs_as_a_cycle_and_its_usage_and_cost_are_booked() -> Result<()> {
    let cases = [
        ("claude", "claude-success.json", (7, 116_203, 1637, 0.134_827_45), "Wrote notes/daily.md"),
        ("codex", "codex-success.jsonl", (3, 24_763, 122, 0.0), "The README now names"),
        ("goose", "goose-success.json", (3, 5100, 212, 0.0), "The notes are tidy."),
        ("aider", "aider-success.txt", (3, 14_650, 1762, 0.025), "I will add the missing test."),
        ("jsonl", "lines-success.jsonl", (2, 1000, 50, 0.0025), "3 files written"),
    ];
    let office = Office::new("", "");
    for (preset, name, (calls, input, output, cost), summary) in cases {
        fs::write(office.dir.join("agent"), format!("#!/bin/bash\n{}\n", prints(name)))?;
        office.configure(&format!("preset: {preset}"), "");
        let mut daemon = office.root.start()?;
        let before = office.spent()["calls"].as_u64().unwrap();
        let id = office.root.add("tidy the notes", &[]);
        let shown = office.root.wait_state(&id, &["succeeded"])?;
        let cycle = &shown["cycles"][0];
        let usage = &cycle["usage"];
        assert_eq!(cycle["status"], "ok", "{preset}: {shown}");
        assert_eq!(
            (&usage["llm_calls"], &usage["input_tokens"], &usage["output_tokens"]),
            (&json!(calls), &json!(input), &json!(output)),
            "{preset}"
        );
        let booked = usage["cost_usd"].as_f64().unwrap();
        assert!((booked - cost).abs() < 1e-8, "{preset}: {usage}");
        assert!(cycle["summary"].to_string().contains(summary), "{preset}: {cycle}");
        // The protocol's report asks for more, until the mandate's ten cycles are over.
        let cycles = if preset == "jsonl" { 10 } else { 1 };
        let after = office.spent()["calls"].as_u64().unwrap();
        assert_eq!(after - before, cycles * calls, "{preset}");
        let told = fs::read_to_string(office.work("work.txt"))?;
        assert!(told.contains("tidy the notes"), "{preset}: {told}");
        assert_eq!(daemon.stop()?, 0, "{}", daemon.stderr());
    }
    Ok(())
}

#[test]
fn a_failing_agent_fails_its_mandate_with_its_own_words_and_what_it_cost() -> Result<()> {
    let office = Office::new(&prints("claude-budget.json"), "preset: claude\nmax_cost_usd: 2");
    let _daemon = office.root.start()?;
    let id = office.root.add("too much", &[]);
    let shown = office.end(&id)?;
    assert_eq!(shown["state"], "failed", "{shown}");
    let cycle = last_cycle(&shown);
    assert!(cycle["error"].to_string().contains("agent_limit: Reached maximum budget"), "{cycle}");
    // A failed cycle is tried once more; both were paid.
    let cost = office.spent()["usd"].as_f64().unwrap();
    assert!((cost - 2.0 * 1.0412).abs() < 1e-6, "{cost}");
    Ok(())
}

#[test]
fn a_cut_report_fails_its_mandate_and_a_missing_one_is_said() -> Result<()> {
    let cut = r#"printf '{"type":"report","status":"error","error":"disk full, nothing was do'"#;
    let office = Office::new(cut, "");
    let _daemon = office.root.start()?;
    let id = office.root.add("cut", &[]);
    let shown = office.end(&id)?;
    assert_eq!(shown["state"], "failed", "{shown}");
    assert!(last_cycle(&shown)["error"].to_string().contains("bad_report: "), "{shown}");
    fs::write(office.dir.join("agent"), "#!/bin/bash\necho did it\n")?;
    let id = office.root.add("no report", &[]);
    let shown = office.end(&id)?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert!(last_cycle(&shown)["summary"].to_string().contains("without a report line"), "{shown}");
    office.root.wait_for("the warning in the log", || {
        let logs = office.root.cli(&["logs", "--mandate", &id]).stdout;
        (logs.contains("WARN") && logs.contains("1 line of its output is no message")).then_some(())
    })
}

#[test]
fn a_reservation_beyond_the_day_holds_the_agent_back_before_it_starts() -> Result<()> {
    let daemon = "budget: {daily_usd: 0.5}";
    let office = Office::within(Root::named("root"), "touch started", "max_cost_usd: 0.4", daemon);
    let _daemon = office.root.start()?;
    // It says nothing of its cost, so the first run counts as reserved.
    let first = office.root.add("first", &[]);
    assert_eq!(office.end(&first)?["state"], "succeeded");
    assert_eq!(office.spent()["usd"].as_f64(), Some(0.4));
    fs::remove_file(office.work("started"))?;
    let second = office.root.add("second", &[]);
    assert_eq!(office.end(&second)?["state"], "paused_budget");
    assert!(!office.work("started").exists());
    assert_eq!(office.spent()["usd"].as_f64(), Some(0.4), "nothing was spent on it");
    Ok(())
}

#[test]
fn a_secret_is_in_the_agents_environment_and_nowhere_else() -> Result<()> {
    const SECRET: &str = "sk-ant-0123456789-very-secret";
    let script = r#"read -r mandate
        [ ${#API_KEY} = 29 ] && touch seen
        echo "{\"type\":\"log\",\"level\":\"warn\",\"message\":\"key $API_KEY\"}"
        echo "{\"type\":\"progress\",\"message\":\"$API_KEY\"}"; echo "{\"type\":\"phase\",\"name\":\"$API_KEY\"}"
        echo "plain $API_KEY"; echo "err $API_KEY" >&2; tr '\0' ' ' </proc/$$/cmdline; echo
        echo "{\"type\":\"report\",\"status\":\"error\",\"error\":\"bad key $API_KEY\"}""#;
    let root = Root::named("root").env("AGENT_SECRET", SECRET);
    let office = Office::within(root, script, "secrets: {API_KEY: {env: AGENT_SECRET}}", "");
    let mut daemon = office.root.start()?;
    let id = office.root.add("leak it", &[]);
    let shown = office.end(&id)?;
    assert!(shown.to_string().contains("bad key ***"), "{shown}");
    assert!(office.work("seen").exists(), "the agent had it");
    assert_eq!(daemon.stop()?, 0);
    let mut files = 0;
    let mut look = vec![office.root.path().to_owned()];
    while let Some(path) = look.pop() {
        if path.is_dir() {
            look.extend(fs::read_dir(path)?.map(|entry| entry.unwrap().path()));
        } else if path.is_file() {
            let bytes = fs::read(&path)?;
            let found = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
            assert!(!found, "{} holds the secret", path.display());
            files += 1;
        }
    }
    assert!(files >= 3, "{files} files were looked through");
    assert!(!daemon.stderr().contains(SECRET) && !shown.to_string().contains(SECRET));
    assert!(!office.root.cli(&["config", "dump"]).stdout.contains(SECRET));
    Ok(())
}

#[test]
fn an_agent_touches_what_it_was_granted_and_nothing_else() -> Result<()> {
    let root = Root::named("root");
    let dir = root.aside().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    fs::write(dir.join("secret.txt"), "open sesame")?;
    fs::write(dir.join("granted.txt"), "read me")?;
    let script = format!(
        r#"try() {{ if "$@" 2>/dev/null; then echo "$1 yes" >>seen; else echo "$1 no" >>seen; fi; }}
        granted() {{ [ "$(cat {dir}/granted.txt)" = "read me" ]; }}; try granted
        outside() {{ cat {dir}/secret.txt; }}; try outside
        store() {{ cat {dir}/root/.kairos/state/store.db; }}; try store
        config() {{ cat {dir}/root/.kairos/config/daemon.yml; }}; try config
        change() {{ echo x >>{dir}/granted.txt; }}; try change
        beside() {{ touch {dir}/new; }}; try beside
        scratch() {{ echo x >"$TMPDIR/x"; }}; try scratch
        inside() {{ echo x >inside; }}; try inside
        network() {{ exec 3<>/dev/tcp/127.0.0.1/{port}; }}; try network"#,
        dir = dir.display()
    );
    let granted = format!("read: [{:?}]", dir.join("granted.txt"));
    let office = Office::within(root, &script, &granted, "");
    let expect = |network: &str| {
        [
            "granted yes",
            "outside no",
            "store no",
            "config no",
            "change no",
            "beside no",
            "scratch yes",
            "inside yes",
            network,
        ]
        .join("\n")
    };
    for (more, network) in [("", "network no"), ("\nnetwork: true", "network yes")] {
        office.configure(&format!("{granted}{more}"), "");
        let mut daemon = office.root.start()?;
        let id = office.root.add("look around", &[]);
        let shown = office.end(&id)?;
        assert_eq!(shown["state"], "succeeded", "{shown}");
        assert_eq!(fs::read_to_string(office.work("seen"))?.trim(), expect(network));
        fs::remove_file(office.work("seen"))?;
        assert_eq!(daemon.stop()?, 0);
    }
    // The same agent without a sandbox: what was refused was refused by it.
    office.configure("sandbox: off", "");
    let _daemon = office.root.start()?;
    let id = office.root.add("look around", &[]);
    assert_eq!(office.end(&id)?["state"], "succeeded");
    let seen = fs::read_to_string(office.work("seen"))?;
    assert!(!seen.contains(" no"), "{seen}");
    Ok(())
}

#[test]
fn what_a_running_command_says_is_seen_as_it_comes() -> Result<()> {
    let script = r#"echo '{"type":"phase","name":"gathering"}'; echo '{"type":"log","level":"warn","message":"3 are stale"}'
        echo '{"type":"usage","llm_calls":2,"input_tokens":10}'; echo '{"type":"progress","message":"half","fraction":0.5}'
        until [ -e go ]; do sleep 0.02; done"#;
    let office = Office::new(script, "max_calls: 5");
    let _daemon = office.root.start()?;
    let id = office.root.add("tell me", &[]);
    let seen = office.root.wait_for("its progress", || {
        let shown = office.root.json(&["mandate", "show", &id]);
        (shown["running"]["progress"]["message"] == "half").then(|| shown["running"].clone())
    })?;
    assert_eq!((&seen["phase"], &seen["progress"]["fraction"]), (&json!("gathering"), &json!(0.5)), "{seen}");
    assert!(seen["lines"].to_string().contains("warn: 3 are stale"), "{seen}");
    let human = office.root.cli(&["mandate", "show", &id]).stdout;
    for says in ["phase       gathering", "progress    half (50%)", "says        warn: 3 are stale"] {
        assert!(human.contains(says), "{says}: {human}");
    }
    let lines = office.root.wait_for("its lines in the log", || {
        let logs = office.root.cli(&["logs", "--mandate", &id, "--json"]).stdout;
        logs.contains("half").then_some(logs)
    })?;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |target: &str| {
        let of = |line: &&Value| line["event"] == "runner_log" && line["details"]["target"] == target;
        lines.iter().filter(of).map(|line| line["details"]["line"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((said("phase"), said("tool")), (vec!["gathering"], vec!["3 are stale"]), "{lines:#?}");
    assert!(said("progress").len() == 2 && said("progress")[1] == "half", "{lines:#?}");
    // What there is none of is not printed.
    let plain = lines.iter().find(|line| line["details"]["target"] == "phase").unwrap();
    assert!(plain["details"].get("fields").is_none() && plain["details"].get("dropped").is_none(), "{plain}");
    let human = office.root.cli(&["logs", "--mandate", &id]).stdout;
    assert!(!human.contains("dropped") && !human.contains("null"), "{human}");
    let other = office.root.cli(&["logs", "--mandate", "no-such-mandate"]);
    assert_eq!((other.code, other.stdout.as_str()), (0, ""));
    fs::write(office.work("go"), "")?;
    assert_eq!(office.end(&id)?["running"], Value::Null);
    Ok(())
}

#[test]
fn a_runner_that_was_not_named_may_not_run_a_command() -> Result<()> {
    let office = Office::new("touch started", "");
    let _daemon = office.root.start()?;
    let call = r#"tool={"name": "process.run", "args": {"command": "fake", "mandate": {}}}"#;
    let added = office.root.json(&["mandate", "add", "sneak", "--runner", "stub", "--param", call]);
    let shown = office.end(added["id"].as_str().unwrap())?;
    assert!(last_cycle(&shown)["error"].to_string().contains("not open to runner"), "{shown}");
    assert!(!office.work("started").exists());
    Ok(())
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

#[test]
fn the_readmes_configuration_is_right_as_it_stands() {
    let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
    let (_, section) = readme.split_once("## Your agent CLI on a schedule").unwrap();
    let sample = section.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let (config, report) = DaemonConfig::parse(sample.as_bytes(), "README.md", &[], &Zones::bundled())
        .unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(report.warnings(), 0, "{report}");
    assert_eq!(config.commands["claude"].runners, ["agent"]);
}

#[test]
fn the_example_runs_as_it_is_and_keeps_its_books() -> Result<()> {
    let root = Root::named("root");
    let example = workspace().join("examples/agent-cli");
    fs::create_dir_all(root.path().join("work"))?;
    fs::copy(example.join("agent"), root.path().join("agent"))?;
    for name in ["daemon.yml", "schedules.yml"] {
        let text = fs::read_to_string(example.join(".kairos/config").join(name))?;
        let found = plugin("command").display().to_string();
        root.write(
            &format!("config/{name}"),
            &text.replace("plugin: command", &format!("plugin: {found:?}")),
        );
    }
    let checked = root.cli(&["config", "check"]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""), "{}", checked.stdout);
    let _daemon = root.start()?;
    let shown = root.wait_for("a run", || {
        let list = root.json(&["mandate", "list", "--state", "succeeded,failed,review"]);
        list.as_array()?.first().cloned()
    })?;
    let shown = root.json(&["mandate", "show", shown["id"].as_str().unwrap()]);
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(shown["cycles"][0]["usage"]["cost_usd"].as_f64(), Some(0.0123));
    let notes = fs::read_to_string(root.path().join("work/notes.md"))?;
    assert!(notes.contains("Summarise yesterday's changes"), "{notes}");
    Ok(())
}
