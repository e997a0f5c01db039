//! What an operator's script sees of a daemon that it steers: each answer says what became of it, and
//! each exit code has one meaning.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use anyhow::Result;
use kairos_tests::{Root, plugin};
use serde_json::{Value, json};

const GOOD: &str = "{name: good, cron: '0 9 * * *', mandate: {goal: a}}";

/// What a reload says on stdout, and its exit code and the code of its error.
fn reload(root: &Root) -> (Value, i32, String) {
    let ran = root.cli(&["reload", "--json"]);
    let said: Value = serde_json::from_str(&ran.stdout).unwrap();
    let error = serde_json::from_str::<Value>(&ran.stderr).unwrap_or_default();
    (said["reload"].clone(), ran.code, error["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_reload_says_of_each_file_whether_it_counts() -> Result<()> {
    let root = Root::new().daemon_yml("").schedules_yml(&format!("schedules: [{GOOD}]"));
    let _daemon = root.start()?;
    let (said, code, _) = reload(&root);
    assert_eq!(
        (&said["daemon_yml"], &said["schedules_yml"], code),
        (&json!("unchanged"), &json!("unchanged"), 0)
    );
    // A good daemon.yml and a bad schedule.
    root.set_daemon_yml("heartbeat: {interval: 3}");
    let bad = format!("schedules: [{GOOD}, {{name: bad, cron: '61 * * * *'}}]");
    root.write("config/schedules.yml", &bad);
    let human = root.cli(&["reload"]);
    assert_eq!(human.code, 2, "{}", human.stdout);
    assert!(human.stdout.contains("daemon.yml: in effect: heartbeat.interval"), "{}", human.stdout);
    assert!(human.stdout.contains("schedules.yml: in effect but for bad, as before"), "{}", human.stdout);
    assert!(
        human.stderr.contains("schedules.yml:1:") && human.stderr.contains("remedy:"),
        "{}",
        human.stderr
    );
    root.set_daemon_yml("heartbeat: {interval: 4}");
    let (said, code, word) = reload(&root);
    assert_eq!(
        (&said["daemon_yml"], &said["schedules_yml"]),
        (&json!("in_effect"), &json!("in_part")),
        "{said}"
    );
    assert_eq!((code, word.as_str(), &said["quarantined"]), (2, "partly_applied", &json!(["bad"])));
    // A bad daemon.yml and nothing new elsewhere.
    root.set_daemon_yml("heartbeat: {intervall: 3}");
    root.write("config/schedules.yml", &format!("schedules: [{GOOD}]"));
    let (said, code, word) = reload(&root);
    assert_eq!(
        (&said["daemon_yml"], &said["schedules_yml"]),
        (&json!("refused"), &json!("unchanged")),
        "{said}"
    );
    assert_eq!((code, word.as_str()), (2, "config_invalid"));
    // What is merely worth a look is told and fails nothing.
    root.set_daemon_yml("");
    let warned = "schedules: [{name: good, cron: '0 9 * * *', runner: stubb, mandate: {goal: a}}]";
    root.write("config/schedules.yml", warned);
    let (said, code, _) = reload(&root);
    assert_eq!((code, said["problems"].as_array().unwrap().len()), (0, 0), "{said}");
    assert!(said["warnings"].to_string().contains("stubb"), "{said}");
    Ok(())
}

#[test]
fn a_stop_that_cuts_cycles_off_says_so_and_which() -> Result<()> {
    let root = Root::new();
    let text = format!(
        "graceful_timeout: 0.1\ndefault_runner: agent\nrunners: {{agent: {{plugin: {:?}, params: {{command: nap}}}}}}\n\
         commands: {{nap: {{argv: [sleep, '1000'], preset: plain, sandbox: off, grace: 0.1}}}}\n",
        plugin("command").display().to_string()
    );
    root.write("config/daemon.yml", &text);
    let mut daemon = root.start()?;
    let clean = root.cli(&["stop", "--json"]);
    assert_eq!(clean.code, 0, "{}", clean.stderr);
    assert_eq!(serde_json::from_str::<Value>(&clean.stdout)?["cut_off"], json!([]));
    assert!(daemon.wait()?.success());
    let mut daemon = root.start()?;
    let id = root.add("long", &[]);
    root.wait_state(&id, &["running"])?;
    let cut = root.cli(&["stop"]);
    assert_eq!(cut.code, 9, "{} {}", cut.stdout, cut.stderr);
    assert!(cut.stdout.contains("stopped"), "{}", cut.stdout);
    assert!(cut.stderr.contains("1 cycles were cut off") && cut.stderr.contains(&id), "{}", cut.stderr);
    assert!(cut.stderr.contains("go on after the next start"), "{}", cut.stderr);
    assert_eq!(daemon.wait()?.code(), Some(9));
    // What the one before cut off is no news of the next.
    let mut daemon = root.start()?;
    root.wait_state(&id, &["review"])?;
    let next = root.cli(&["stop", "--json"]);
    assert_eq!(next.code, 0, "{} {}", next.stdout, next.stderr);
    assert_eq!(serde_json::from_str::<Value>(&next.stdout)?["cut_off"], json!([]));
    assert!(daemon.wait()?.success());
    Ok(())
}

#[test]
fn why_says_what_is_to_become_of_an_occurrence_and_3_that_nothing_is_recorded() -> Result<()> {
    let root = Root::new().daemon_yml("").schedules_yml(&format!("schedules: [{GOOD}]"));
    let _daemon = root.start()?;
    let next = root.json(&["schedule", "next", "good", "-n", "2"]);
    let at = |n: usize| next[n]["nominal_at"].as_str().unwrap().to_owned();
    root.json(&["schedule", "skip-next", "good"]);
    for (at, says) in [(at(0), "somebody asked to skip it"), (at(1), "still to come")] {
        let ran = root.cli(&["why", "good", &at]);
        assert_eq!(ran.code, 3, "{}", ran.stdout);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
    assert!(root.cli(&["why", "--help"]).stdout.contains("exit 3"));
    Ok(())
}
