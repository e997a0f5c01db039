//! What keeps a command from starting is found before a try is spent on it: by `config check`, by
//! `doctor`, and by the daemon, which lets the mandate wait and says why.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and touch files")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use kairos_tests::Root;
use kairos_tests::hostile::without;
use kairos_tests::office::Office;
use rustix::process::Signal;
use serde_json::{Value, json};

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

/// A second command beside the office's own, which is fit; keys of it.
fn second(office: &Office, more: &str) {
    let text = fs::read_to_string(office.root.file("config/daemon.yml")).unwrap();
    let work = office.dir.join("work");
    office.root.write("config/daemon.yml", &format!("{text}\n  second:\n    cwd: {work:?}\n{more}\n"));
}

/// The mandate waits for what its own parameters ask for.
fn waits(office: &Office, id: &str, words: &str) -> Result<()> {
    let shown = office.root.wait_for("the reason", || {
        let shown = office.root.json(&["mandate", "show", id]);
        shown["reason"].to_string().contains(words).then_some(shown)
    })?;
    assert_eq!((&shown["state"], &shown["cycles"]), (&json!("queued"), &json!([])), "{shown}");
    let listed = office.root.json(&["mandate", "list"]);
    let row = listed.as_array().unwrap().iter().find(|row| row["id"] == id).unwrap();
    assert_eq!(row["reason"], shown["reason"]);
    let reasons = office.root.json(&["status"])["reasons"].to_string();
    assert!(reasons.contains(words), "{reasons}");
    Ok(())
}

#[test]
fn a_mandate_that_names_a_command_that_cannot_start_waits_and_others_of_its_runner_do_not() -> Result<()> {
    let office = Office::new("echo done", "");
    second(&office, "    argv: [no-such-agent]\n");
    let _daemon = office.root.start()?;
    let cases = [
        ("second", "command second: argv: there is no program no-such-agent"),
        ("secund", "no command has the name \\\"secund\\\"; did you mean `second`?"),
    ];
    let mut held = vec![];
    for (command, words) in cases {
        let id = office.root.add("work", &[&format!("command={command}")]);
        waits(&office, &id, words)?;
        held.push(id);
    }
    // What asks for the runner's own command goes past them.
    let id = office.root.add("work", &[]);
    let shown = office.end(&id)?;
    assert_eq!((&shown["state"], &shown["reason"]), (&json!("succeeded"), &Value::Null), "{shown}");
    // Once it is there, the one that waits for it runs, and was never tried before.
    let agent = office.dir.join("agent").display().to_string();
    let text = fs::read_to_string(office.root.file("config/daemon.yml"))?;
    office.root.write("config/daemon.yml", &text.replace("no-such-agent", &agent));
    assert_eq!(office.root.cli(&["reload"]).code, 0);
    let shown = office.end(&held[0])?;
    assert_eq!((&shown["state"], shown["cycles"].as_array().unwrap().len()), (&json!("succeeded"), 1));
    assert_eq!(office.root.json(&["mandate", "show", &held[1]])["state"], "queued");
    Ok(())
}

#[test]
fn a_mandate_that_names_a_good_command_runs_although_its_runners_own_cannot_start() -> Result<()> {
    let office = Office::new("echo done", "");
    let agent = office.dir.join("agent").display().to_string();
    second(&office, &format!("    argv: [{agent:?}]\n    write: [{:?}]\n", office.dir.join("work")));
    let text = fs::read_to_string(office.root.file("config/daemon.yml"))?;
    office.root.write(
        "config/daemon.yml",
        &text.replacen(&format!("argv: [{agent:?}]"), "argv: [no-such-agent]", 1),
    );
    let _daemon = office.root.start()?;
    let own = office.root.add("work", &[]);
    waits(&office, &own, "there is no program no-such-agent")?;
    let id = office.root.add("work", &["command=second"]);
    assert_eq!(office.end(&id)?["state"], "succeeded");
    assert_eq!(office.root.json(&["mandate", "show", &own])["state"], "queued");
    Ok(())
}

#[test]
fn a_command_that_is_not_open_to_the_runner_holds_the_mandate() -> Result<()> {
    let office = Office::new("echo done", "");
    second(&office, "    argv: [/bin/true]\n    runners: [stub]\n");
    let _daemon = office.root.start()?;
    let id = office.root.add("work", &["command=second"]);
    waits(&office, &id, "command second: it is not open to runner agent")?;
    Ok(())
}

#[test]
fn a_cycle_that_recovery_continues_waits_too_until_its_command_can_start() -> Result<()> {
    let script = "[ -e again ] && exit 0; echo $$ >pid; sleep 1000";
    let office = Office::new(script, "retry: safe");
    let mut daemon = office.root.start()?;
    let id = office.root.add("in the middle", &[]);
    office.wait_file("pid")?;
    daemon.signal(Signal::KILL)?;
    daemon.wait()?;
    let (agent, later) = (office.dir.join("agent"), office.dir.join("later"));
    fs::rename(&agent, &later)?;
    fs::write(office.work("again"), "")?;
    let _daemon = office.root.start()?;
    let shown = office.root.wait_for("the reason", || {
        let shown = office.root.json(&["mandate", "show", &id]);
        shown["reason"].to_string().contains("there is no program").then_some(shown)
    })?;
    assert_eq!(shown["state"], "queued", "{shown}");
    let before = shown["cycles"].as_array().unwrap().len();
    fs::rename(&later, &agent)?;
    let shown = office.end(&id)?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(shown["cycles"].as_array().unwrap().len(), before + 1, "nothing was tried meanwhile: {shown}");
    Ok(())
}

#[test]
fn a_script_whose_interpreter_is_not_there_holds_its_mandates() -> Result<()> {
    let office = Office::new("true", "");
    fs::write(office.dir.join("agent"), "#!/usr/bin/env no-such-interpreter\n")?;
    found_ahead(&office, "commands.fake.argv", "is run by no-such-interpreter");
    let _daemon = office.root.start()?;
    let id = office.root.add("work", &[]);
    held(&office, &id, "is run by no-such-interpreter")?;
    Ok(())
}

#[test]
fn a_sandbox_that_refuses_a_command_holds_its_mandates() -> Result<()> {
    let root = Root::named("root");
    let program = without(root.aside());
    let office = Office::within(root.by(&program, &["landlock"]), "touch started", "", "");
    found_ahead(&office, "commands.fake.sandbox", "is demanded");
    let _daemon = office.root.start()?;
    let id = office.root.add("work", &[]);
    held(&office, &id, "sandbox: the sandbox is")?;
    assert!(!office.work("started").exists());
    Ok(())
}

#[test]
fn secrets_are_looked_up_in_the_daemons_environment_when_one_runs_and_it_is_said_which() -> Result<()> {
    const KEY: &str = "KAIROS_TEST_AGENT_KEY";
    let office = Office::new("true", &format!("secrets: {{KEY: {{env: {KEY}}}}}"));
    found_ahead(
        &office,
        "commands.fake.secrets.KEY",
        &format!("the environment of this command line has no {KEY}"),
    );
    let check = |with: bool| {
        let mut command = std::process::Command::new(kairos_tests::kairos());
        command.args(["config", "check", "--root"]).arg(office.root.path()).env_remove(KEY);
        if with {
            command.env(KEY, "123456789");
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(check(true).0, Some(0), "without a daemon it is this environment that counts");
    // The daemon lacks it, and this environment does not.
    let daemon = office.root.start()?;
    let (code, said) = check(true);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&format!("the daemon's environment has no {KEY}")), "{said}");
    drop(daemon);
    // The daemon has it, and this environment does not.
    let root = office.root.env(KEY, "123456789");
    let _daemon = root.start()?;
    let mut command = std::process::Command::new(kairos_tests::kairos());
    command.args(["config", "check", "--root"]).arg(root.path()).env_remove(KEY);
    let output = command.output()?;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
