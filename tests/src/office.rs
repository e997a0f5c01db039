//! An office with one agent in it: a root whose runner runs a command, and the command, a small shell
//! program that prints what real agents print.

#![allow(
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "a harness"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::{Root, plugin};

/// A root with an agent beside it: `{dir}/agent` is the script, `{dir}/work` the place it may change.
pub struct Office {
    /// The root.
    pub root: Root,
    /// Where the agent and its place lie.
    pub dir: PathBuf,
}

impl Office {
    /// `more` are keys of the command, each on a line of its own.
    pub fn new(script: &str, more: &str) -> Self {
        Self::within(Root::named("root"), script, more, "")
    }

    /// As [`Office::new`], on this root and with these keys of daemon.yml.
    pub fn within(root: Root, script: &str, more: &str, daemon: &str) -> Self {
        let dir = root.aside().to_owned();
        fs::create_dir_all(dir.join("work")).expect("it is ours");
        let agent = dir.join("agent");
        fs::write(&agent, format!("#!/bin/bash\n{script}\n")).expect("it is ours");
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let office = Self { root, dir };
        office.configure(more, daemon);
        office
    }

    /// Writes daemon.yml once more.
    pub fn configure(&self, more: &str, daemon: &str) {
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

    /// A file of the agent's.
    pub fn work(&self, name: &str) -> PathBuf {
        self.dir.join("work").join(name)
    }

    /// Waits for a file that the agent makes, and gives its text.
    pub fn wait_file(&self, name: &str) -> Result<String> {
        self.root.wait_for(name, || fs::read_to_string(self.work(name)).ok().filter(|text| !text.is_empty()))
    }

    /// Waits until the mandate has ended or waits for a person.
    pub fn end(&self, id: &str) -> Result<Value> {
        self.root.wait_state(
            id,
            &["succeeded", "failed", "review", "paused_budget", "paused_checkpoint", "denied"],
        )
    }

    /// What the ledger says was spent.
    pub fn spent(&self) -> Value {
        self.root.json(&["budget", "show"])["spent"].clone()
    }
}

/// A recorded output of an agent.
pub fn fixture(name: &str) -> PathBuf {
    let fixtures = "../host/src/broker/tools/process/fixtures";
    Path::new(env!("CARGO_MANIFEST_DIR")).join(fixtures).join(name).canonicalize().expect("it is ours")
}

/// An agent that prints a recorded output; it is told its goal on standard input.
pub fn prints(name: &str) -> String {
    format!("cat >work.txt\ncat <<'END'\n{}END", fs::read_to_string(fixture(name)).expect("it is ours"))
}

/// The last cycle of a shown mandate.
pub fn last_cycle(mandate: &Value) -> &Value {
    mandate["cycles"].as_array().and_then(|cycles| cycles.last()).unwrap_or(&Value::Null)
}

/// True while a process of that number lives.
pub fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
