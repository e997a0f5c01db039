//! Roots for tests of swaps: a runner that exists in many versions, each with something of its own,
//! and what a test asks of it.

#![allow(clippy::missing_panics_doc, clippy::unwrap_used, reason = "in a test a panic is the answer")]

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::variant::version;
use crate::{Daemon, Ran, Root};

/// Settings under which nothing waits long.
pub const QUICK: &str =
    "swap: {shadow_deadline: 20s, canary_cycles: 3, canary_error_rate: 0, drain_timeout: 20s}";
/// The same without a trial.
pub const NO_TRIAL: &str = "swap: {canary_cycles: 0, drain_timeout: 20s}";

/// A root whose runner is a version in that mode, in process.
#[must_use]
pub fn root(mode: &str, settings: &str) -> Root {
    isolated(mode, settings, "in_process")
}

/// As [`root`], in that isolation.
#[must_use]
pub fn isolated(mode: &str, settings: &str, isolation: &str) -> Root {
    with_deadline(mode, settings, isolation, "20s")
}

/// As [`isolated`], with that time for each cycle.
#[must_use]
pub fn with_deadline(mode: &str, settings: &str, isolation: &str, deadline: &str) -> Root {
    let root = Root::new();
    let first = trusted(&root, mode);
    let text = format!(
        "default_runner: v\nrunners:\n  v: {{plugin: {:?}, isolation: {isolation}, deadline: {deadline}}}\n\
         llm:\n  providers:\n    canned: {{kind: scripted, file: .kairos/config/replies.yml}}\n{settings}\n",
        first.display().to_string()
    );
    root.write("config/daemon.yml", &text);
    root.write("config/replies.yml", "cycle: true\nreplies:\n  - {text: so be it}\n");
    root
}

/// A root in workers, and the file that keeps versions in mode `breaks` from being made.
#[must_use]
pub fn breakable(settings: &str) -> (Root, PathBuf) {
    with_file("plain", settings, "process", "broken")
}

/// A root whose runner is a version in that mode, two cycles at once, and a file that is not there, which
/// its versions know by that name.
#[must_use]
pub fn with_file(mode: &str, settings: &str, isolation: &str, name: &str) -> (Root, PathBuf) {
    let root = isolated(mode, &format!("max_concurrent_cycles: 2\n{settings}"), isolation);
    let file = root.aside().join(name);
    let text = std::fs::read_to_string(root.file("config/daemon.yml")).unwrap();
    let isolation = format!("isolation: {isolation}");
    let params = format!("{isolation}, params: {{{name}: {}}}", json!(file.display().to_string()));
    root.write("config/daemon.yml", &text.replace(&isolation, &params));
    (root, file)
}

/// A cycle that keeps the one worker there is until the test writes the file that it names.
///
/// # Errors
/// It does not begin.
pub fn occupied(root: &Root) -> Result<(String, PathBuf)> {
    let gate = root.aside().join("gate");
    let id = root.add("holds", &[&format!("gate={}", json!(gate.display().to_string()))]);
    root.wait_state(&id, &["running"])?;
    Ok((id, gate))
}

/// Where daemon.yml says that the plugin is.
#[must_use]
pub fn configured(root: &Root) -> PathBuf {
    let text = std::fs::read_to_string(root.file("config/daemon.yml")).unwrap();
    let path = text.split("plugin: \"").nth(1).unwrap().split('"').next().unwrap();
    PathBuf::from(path)
}

/// A version that may run unconfined.
#[must_use]
pub fn trusted(root: &Root, mode: &str) -> PathBuf {
    let file = version(root.aside(), mode);
    trust(root, &file);
    file
}

/// Trusts a file by its content.
pub fn trust(root: &Root, file: &Path) {
    let ran = root.cli(&["plugin", "trust", &file.display().to_string()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

/// Asks for a swap and waits for what becomes of it.
#[must_use]
pub fn swap(root: &Root, file: &Path) -> Ran {
    root.cli(&["plugin", "swap", "v", &file.display().to_string(), "--json"])
}

/// A swap that must come through: its view.
pub fn swapped(root: &Root, file: &Path) -> Value {
    let ran = swap(root, file);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

/// The word of a refusal, and the view that says more.
#[must_use]
pub fn refused(root: &Root, file: &Path) -> (String, Value) {
    refusal(&swap(root, file))
}

/// The same of a swap that has been asked for.
#[must_use]
pub fn refusal(ran: &Ran) -> (String, Value) {
    assert_eq!(ran.code, 1, "{} {}", ran.stdout, ran.stderr);
    let error: Value = serde_json::from_str(&ran.stderr).unwrap_or_else(|_| panic!("{}", ran.stderr));
    let view = serde_json::from_str(&ran.stdout).unwrap_or_default();
    (error["error"]["code"].as_str().unwrap().to_owned(), view)
}

/// Runs a mandate to its success: the summary of its last cycle.
///
/// # Errors
/// It ends otherwise.
pub fn run(root: &Root, params: &[&str]) -> Result<String> {
    let id = root.add("work", params);
    let row = root.wait_state(&id, &["succeeded", "failed", "review"])?;
    ensure!(row["state"] == "succeeded", "{row}");
    Ok(last_cycle(&row)["summary"].as_str().unwrap_or_default().to_owned())
}

/// The last cycle of a mandate.
#[must_use]
pub fn last_cycle(row: &Value) -> &Value {
    row["cycles"].as_array().unwrap().last().unwrap()
}

/// The slot as `plugin list` shows it.
#[must_use]
pub fn serving(root: &Root) -> Value {
    root.json(&["plugin", "list"])[0].clone()
}

/// The states of all its lives, newest first.
#[must_use]
pub fn states(root: &Root) -> Vec<String> {
    let history = root.json(&["plugin", "history", "v"]);
    history.as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap().to_owned()).collect()
}

/// Waits until the lives are in these states.
///
/// # Errors
/// They never are.
pub fn wait_states(root: &Root, wanted: &[&str]) -> Result<()> {
    root.wait_for(&format!("{wanted:?}"), || (states(root) == wanted).then_some(()))
}

/// Begins a swap to a version in that mode and waits until it has come to that stage: how it began.
///
/// # Errors
/// It never comes there.
pub fn begun_to(root: &Root, mode: &str, stage: &str) -> Result<Value> {
    let file = trusted(root, mode).display().to_string();
    let begun = root.json(&["plugin", "swap", "v", &file, "--no-wait"]);
    root.wait_for(stage, || {
        let seen = &serving(root)["swap"];
        (seen["id"] == begun["id"] && seen["stage"] == stage).then_some(())
    })?;
    Ok(begun)
}

/// Begins a swap and kills the daemon when it has come to that stage.
///
/// # Errors
/// It never comes there.
pub fn killed_at(root: &Root, daemon: &mut Daemon, mode: &str, stage: &str) -> Result<()> {
    begun_to(root, mode, stage)?;
    daemon.kill()
}
