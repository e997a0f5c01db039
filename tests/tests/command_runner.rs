//! An agent CLI on a schedule, through a real daemon: what it may touch, what it costs, what becomes
//! of it when the daemon dies. The agents are small shell programs that print what real ones print.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use kairos_host::config::DaemonConfig;
use kairos_host::sys::zones::Zones;
use kairos_tests::{Daemon, Root, plugin};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A root with an agent beside it: `{dir}/agent` is the script, `{dir}/work` the place it may change.
struct Office {
    root: Root,
    dir: PathBuf,
}

impl Office {
    /// `more` are keys of the command, each on a line of its own.
    fn new(script: &str, more: &str) -> Self {
        Self::within(Root::named("root"), script, more, "")
    }

    fn within(root: Root, script: &str, more: &str, daemon: &str) -> Self {
        let dir = root.aside().to_owned();
        fs::create_dir_all(dir.join("work")).unwrap();
        let agent = dir.join("agent");
        fs::write(&agent, format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
        let office = Self { root, dir };
        office.configure(more, daemon);
        office
    }

    fn configure(&self, more: &str, daemon: &str) {
        let (agent, work) = (self.dir.join("agent"), self.dir.join("work"));
        let more: String = more.lines().map(|line| format!("    {}\n", line.trim())).collect();
        let text = format!(
            "default_runner: agent\nrunners:\n  agent: {{plugin: {:?}, params: {{command: fake}}}}\n  \
             stub: {{plugin: {:?}}}\ncommands:\n  fake:\n    argv: [{agent:?}]\n    cwd: {work:?}\n    \
             write: [{work:?}]\n    grace: 0.2\n{more}{daemon}\n",
            plugin("command").display().to_string(),
            plugin("stub").display().to_string(),
        );
        self.root.write("config/daemon.yml", &text);
    }

    fn work(&self, name: &str) -> PathBuf {
        self.dir.join("work").join(name)
    }

    /// Waits for a file that the agent makes, and gives its text.
    fn wait_file(&self, name: &str) -> Result<String> {
        self.root.wait_for(name, || fs::read_to_string(self.work(name)).ok().filter(|text| !text.is_empty()))
    }

    fn end(&self, id: &str) -> Result<Value> {
        self.root.wait_state(
            id,
            &["succeeded", "failed", "review", "paused_budget", "paused_checkpoint", "denied"],
        )
    }

    fn spent(&self) -> Value {
        self.root.json(&["budget", "show"])["spent"].clone()
    }
}

fn fixture(name: &str) -> PathBuf {
    let fixtures = "../host/src/broker/tools/process/fixtures";
    Path::new(env!("CARGO_MANIFEST_DIR")).join(fixtures).join(name).canonicalize().unwrap()
}

/// An agent that prints a recorded output; it is told its goal on standard input.
fn prints(name: &str) -> String {
    format!("cat >work.txt\ncat <<'END'\n{}END", fs::read_to_string(fixture(name)).unwrap())
}

fn last_cycle(mandate: &Value) -> &Value {
    mandate["cycles"].as_array().and_then(|cycles| cycles.last()).unwrap_or(&Value::Null)
}

/// True while a process of that number lives.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

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

/// What `config check` finds, and that it and `doctor` fail for it.
fn found_ahead(office: &Office, key: &str, words: &str) {
    let checked = office.root.cli(&["config", "check", "--json"]);
    assert_eq!(checked.code, 2, "{}", checked.stdout);
    let checked: Value = serde_json::from_str(&checked.stdout).unwrap();
    let problem = &checked["problems"][0];
    assert_eq!(problem["key"], key, "{checked}");
    assert!(problem["line"].as_u64().unwrap() > 5, "{problem}");
    assert!(problem["message"].to_string().contains(words), "{problem}");
    assert!(!problem["remedy"].as_str().unwrap().is_empty(), "{problem}");
    let doctor = office.root.cli(&["doctor"]);
    assert_eq!(doctor.code, 1, "{}", doctor.stdout);
    assert!(
        doctor.stdout.contains(&format!("FAIL  commands: .kairos/config/daemon.yml:{}:", problem["line"]))
    );
    assert!(doctor.stdout.contains(key) && doctor.stdout.contains(words), "{}", doctor.stdout);
}

/// The mandate waits, says why, as does the status, and nothing of it was tried.
fn held(office: &Office, id: &str, words: &str) -> Result<()> {
    let shown = office.root.wait_for("the reason", || {
        let shown = office.root.json(&["mandate", "show", id]);
        shown["reason"].to_string().contains(words).then_some(shown)
    })?;
    assert_eq!((&shown["state"], &shown["cycles"]), (&json!("queued"), &json!([])), "{shown}");
    let reasons = office.root.json(&["status"])["reasons"].to_string();
    assert!(reasons.contains("runner agent: command fake") && reasons.contains(words), "{reasons}");
    let listed = office.root.json(&["plugin", "list"]);
    let agent = listed.as_array().unwrap().iter().find(|listed| listed["runner"] == "agent").unwrap();
    assert_eq!((&agent["state"], &agent["code"]), (&json!("not_ready"), &json!("not_ready")), "{agent}");
    Ok(())
}

#[test]
fn a_program_that_is_not_there_holds_mandates_until_it_is() -> Result<()> {
    let office = Office::new("touch started", "");
    let agent = office.dir.join("agent");
    fs::rename(&agent, office.dir.join("later"))?;
    found_ahead(&office, "commands.fake.argv", "there is no program");
    let _daemon = office.root.start()?;
    let id = office.root.add("work", &[]);
    held(&office, &id, "there is no program")?;
    // Another runner is not held up by it.
    let other = office.root.json(&["mandate", "add", "other", "--runner", "stub"]);
    office.root.wait_state(other["id"].as_str().unwrap(), &["succeeded"])?;
    fs::rename(office.dir.join("later"), &agent)?;
    let shown = office.end(&id)?;
    assert_eq!((&shown["state"], shown["cycles"].as_array().unwrap().len()), (&json!("succeeded"), 1));
    assert_eq!(office.root.json(&["status"])["reasons"], json!([]));
    assert_eq!(office.root.cli(&["config", "check"]).code, 0);
    // It is looked at again each time, not only at the start.
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o644))?;
    let id = office.root.add("more work", &[]);
    held(&office, &id, "cannot be executed")?;
    Ok(())
}

#[test]
fn a_secret_that_is_not_set_holds_mandates_and_a_reload_lets_them_go() -> Result<()> {
    let office = Office::new("[ ${#KEY} = 9 ] && touch started", "secrets: {KEY: {env: NO_SUCH_VARIABLE}}");
    found_ahead(&office, "commands.fake.secrets.KEY", "no NO_SUCH_VARIABLE");
    let _daemon = office.root.start()?;
    let id = office.root.add("work", &[]);
    held(&office, &id, "no NO_SUCH_VARIABLE")?;
    fs::write(office.root.path().join("key"), "123456789\n")?;
    office.configure("secrets: {KEY: {file: key}}", "");
    assert_eq!(office.root.cli(&["reload"]).code, 0);
    assert_eq!(office.end(&id)?["state"], "succeeded");
    assert!(office.work("started").exists());
    Ok(())
}

#[test]
fn a_grant_that_holds_the_daemons_own_directory_is_refused_before_anything_starts() -> Result<()> {
    let office = Office::new("touch started", "read: [.]");
    found_ahead(&office, "commands.fake.read", "the daemon's own directory");
    let _daemon = office.root.start()?;
    let id = office.root.add("look", &[]);
    held(&office, &id, "the daemon's own directory")?;
    assert!(!office.work("started").exists());
    assert_eq!(office.spent()["calls"], 0);
    Ok(())
}

#[test]
fn one_pass_leaves_what_cannot_start_and_says_why() -> Result<()> {
    let office = Office::new("touch started", "");
    fs::remove_file(office.dir.join("agent"))?;
    let _ = office.root.add("work", &[]);
    let once = office.root.cli(&["run", "--once", "--json"]);
    assert_eq!(once.code, 0, "{}", once.stderr);
    assert!(once.stdout.contains("there is no program"), "{}", once.stdout);
    Ok(())
}

#[test]
fn a_command_that_no_runner_could_have_meant_is_an_error_of_the_file() {
    let office = Office::new("true", "");
    let text = fs::read_to_string(office.root.path().join(".kairos/config/daemon.yml")).unwrap();
    office.root.write("config/daemon.yml", &text.replace("command: fake", "command: fack"));
    for args in [&["config", "check"][..], &["run", "--once"]] {
        let done = office.root.cli(args);
        assert_eq!(done.code, 2, "{}", done.stdout);
        let said = format!("{}{}", done.stdout, done.stderr);
        assert!(said.contains("daemon.yml:3:") && said.contains("runners.agent.params.command"), "{said}");
        assert!(said.contains("no command has the name \"fack\"") && said.contains("did you mean `fake`?"));
    }
    let schedule = "schedules: [{name: a, cron: '0 1 * * *', mandate: {params: {command: fack}}}]";
    office.root.write("config/daemon.yml", &text);
    office.root.write("config/schedules.yml", schedule);
    let checked = office.root.cli(&["config", "check"]);
    assert_eq!(checked.code, 2);
    assert!(
        checked.stdout.contains("schedule \"a\": mandate.params.command: no command"),
        "{}",
        checked.stdout
    );
}

#[test]
fn a_program_with_a_slash_lies_below_the_root_wherever_it_starts() -> Result<()> {
    let office = Office::new("true", "");
    let bin = office.root.path().join("bin");
    fs::create_dir_all(&bin)?;
    fs::write(bin.join("mine"), "#!/bin/sh\ntouch from-root\n")?;
    fs::set_permissions(bin.join("mine"), fs::Permissions::from_mode(0o755))?;
    let text = fs::read_to_string(office.root.path().join(".kairos/config/daemon.yml"))?;
    let agent = format!("argv: [{:?}]", office.dir.join("agent"));
    // By a path from the root, and by a name that is looked up in the configured PATH.
    for with in [
        "argv: [bin/mine]".to_owned(),
        format!("argv: [mine]\n    env: {{PATH: {:?}}}", format!("{}:/bin:/usr/bin", bin.display())),
    ] {
        let more = format!("{with}\n    read: [bin]");
        office.root.write("config/daemon.yml", &text.replace(&agent, &more));
        let _daemon = office.root.start()?;
        let id = office.root.add("where am I", &[]);
        assert_eq!(office.end(&id)?["state"], "succeeded", "{with}");
        fs::remove_file(office.work("from-root"))?;
    }
    Ok(())
}

const HANGS: &str =
    "echo $$ >pid; (trap '' TERM; echo $BASHPID >child; sleep 1000) & trap '' TERM; sleep 1000; wait";

#[test]
fn an_agent_that_hangs_is_ended_with_its_children() -> Result<()> {
    let office = Office::new(HANGS, "timeout: 0.5\nmax_calls: 3");
    let _daemon = office.root.start()?;
    let id = office.root.add("hang", &[]);
    let shown = office.end(&id)?;
    assert_eq!(shown["state"], "failed", "{shown}");
    assert!(last_cycle(&shown)["error"].to_string().contains("timeout"), "{shown}");
    assert!(!lives(&office.wait_file("pid")?) && !lives(&office.wait_file("child")?));
    assert_eq!(office.spent()["calls"], 6, "two tries, each counted as reserved");
    Ok(())
}

/// Starts a mandate whose agent hangs, and kills the daemon under it.
fn die_in_the_middle(office: &Office) -> Result<(String, Daemon)> {
    let mut daemon = office.root.start()?;
    let id = office.root.add("in the middle", &[]);
    let (pid, child) = (office.wait_file("pid")?, office.wait_file("child")?);
    assert!(lives(&pid));
    daemon.kill()?;
    // The agent itself goes with the daemon, its children when the step is looked at again.
    office.root.wait_for("the agent's end", || (!lives(&pid)).then_some(()))?;
    fs::write(office.work("survived"), "")?;
    let daemon = office.root.start()?;
    office.root.wait_for("the child's end", || (!lives(&child)).then_some(()))?;
    Ok((id, daemon))
}

#[test]
fn a_run_that_the_daemons_death_cut_short_is_for_a_person_and_counted() -> Result<()> {
    let office = Office::new(&format!("[ -e survived ] && exit 0; {HANGS}"), "max_calls: 3");
    let (id, _daemon) = die_in_the_middle(&office)?;
    let shown = office.end(&id)?;
    assert_eq!(shown["state"], "review", "{shown}");
    assert_eq!(office.spent()["calls"], 3, "what it may have spent");
    assert_eq!(office.root.json(&["budget", "show"])["reserved"]["calls"], 0);
    // A person says that it may run again.
    let resolved = office.root.cli(&["mandate", "resolve", &id, "--redo", "--note", "looked at it"]);
    assert_eq!(resolved.code, 0, "{}", resolved.stderr);
    assert_eq!(office.end(&id)?["state"], "succeeded");
    Ok(())
}

#[test]
fn a_run_that_may_be_repeated_is_repeated_after_the_daemons_death() -> Result<()> {
    let script = format!("if [ -e survived ]; then echo again >again; exit 0; fi; {HANGS}");
    let office = Office::new(&script, "max_calls: 3\nretry: safe");
    let (id, _daemon) = die_in_the_middle(&office)?;
    assert_eq!(office.end(&id)?["state"], "succeeded");
    assert_eq!(office.wait_file("again")?, "again\n");
    assert_eq!(office.spent()["calls"], 6, "the run that was cut short counts, too");
    Ok(())
}

#[test]
fn a_stop_lets_the_agent_finish_within_the_graceful_timeout() -> Result<()> {
    let script = "echo $$ >>pid; until [ -e go ]; do sleep 0.02; done";
    let office = Office::new(script, "");
    let mut daemon = office.root.start()?;
    let id = office.root.add("finish", &[]);
    office.wait_file("pid")?;
    daemon.signal(Signal::TERM)?;
    daemon.wait_said("STOPPING=1")?;
    fs::write(office.work("go"), "")?;
    assert_eq!(daemon.wait()?.code(), Some(0), "{}", daemon.stderr());
    assert_eq!(office.root.json(&["mandate", "show", &id])["state"], "succeeded");
    assert_eq!(fs::read_to_string(office.work("pid"))?.lines().count(), 1, "it ran once");
    Ok(())
}

#[test]
fn a_stop_that_cannot_wait_takes_the_agent_along_and_leaves_its_step_open() -> Result<()> {
    let script = format!("if [ -e survived ]; then exit 0; fi; {HANGS}");
    let office = Office::within(Root::named("root"), &script, "retry: safe", "graceful_timeout: 0.1");
    let mut daemon = office.root.start()?;
    let id = office.root.add("stop me", &[]);
    let (pid, child) = (office.wait_file("pid")?, office.wait_file("child")?);
    assert_eq!(daemon.stop()?, 9, "{}", daemon.stderr());
    office.root.wait_for("their end", || (!lives(&pid) && !lives(&child)).then_some(()))?;
    fs::write(office.work("survived"), "")?;
    let _daemon = office.root.start()?;
    assert_eq!(office.end(&id)?["state"], "succeeded");
    Ok(())
}

#[test]
fn a_person_who_cancels_ends_the_agent_at_once() -> Result<()> {
    let office = Office::new(HANGS, "max_calls: 3");
    let _daemon = office.root.start()?;
    let id = office.root.add("cancel me", &[]);
    let (pid, child) = (office.wait_file("pid")?, office.wait_file("child")?);
    let cancelled = office.root.cli(&["mandate", "stop", &id]);
    assert_eq!(cancelled.code, 0, "{}", cancelled.stderr);
    office.root.wait_state(&id, &["cancelled"])?;
    office.root.wait_for("their end", || (!lives(&pid) && !lives(&child)).then_some(()))?;
    assert_eq!(office.spent()["calls"], 3, "what it may have spent");
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
