//! `plugin check`: would this file be a runner here, and if not, why not. The file is never mapped
//! into this process: a worker loads it and may die of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::launch::{Launcher, RunnerConfig};
use super::load_error::LoadError;
use super::manifest::PluginFile;

/// The answer. Serialised as `plugin check --json` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// True when it could serve.
    pub loads: bool,
    /// Which ABI and version, `rust 1.0.0`.
    pub abi: Option<String>,
    /// From the manifest.
    pub name: Option<String>,
    /// From the manifest.
    pub version: Option<String>,
    /// sha256 of the file in hex.
    pub sha256: Option<String>,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// The compiler it was built with.
    pub rustc: Option<String>,
    /// What it wants to call.
    pub capabilities: Vec<String>,
    /// Files that it wants in a sandbox.
    pub files: Vec<String>,
    /// Schemas of state it knows.
    pub states: Vec<String>,
    /// True when it goes through the five phases.
    pub phases: bool,
    /// True when something speaks for the file.
    pub trusted: bool,
    /// What, or why nothing does.
    pub trust: Option<String>,
    /// Where it would run here if the configuration says nothing.
    pub isolation: Option<String>,
    /// Where it was tried.
    pub tried: Option<String>,
    /// How far the worker that tried it was confined: `full`, `partial`.
    pub sandbox: Option<String>,
    /// What is worth knowing of a file that loads.
    pub notes: Vec<String>,
    /// What is wrong.
    pub errors: Vec<CheckError>,
}

/// Most lines of a message that a terminal is shown.
const MESSAGE_LINES: usize = 3;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckError {
    /// The stable word.
    pub code: &'static str,
    /// For people; up to three lines.
    pub message: String,
    /// What to do about it, in one line.
    pub remedy: String,
    /// Every place that was looked at, when nothing was found.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub looked: Vec<PathBuf>,
}

impl From<LoadError> for CheckError {
    fn from(error: LoadError) -> Self {
        Self {
            code: error.code(),
            message: error.to_string(),
            remedy: error.remedy().into_owned(),
            looked: error.looked().to_vec(),
        }
    }
}

impl From<LoadError> for CheckReport {
    /// Of what is not even there.
    fn from(error: LoadError) -> Self {
        Self { errors: vec![error.into()], ..Self::default() }
    }
}

/// Checks a file with the rules and the workers of `launcher`, which keeps a copy of it.
#[must_use]
pub fn check(path: &Path, launcher: &Launcher) -> CheckReport {
    let mut report = CheckReport::default();
    match inspect(path, launcher, &mut report) {
        Ok(()) => report.loads = true,
        // It came as far as its own constructor, which wants parameters that nobody gave here.
        Err(error) if error.code() == "setup_refused" => {
            report.loads = true;
            report.notes.push(format!("without params it {error}"));
        }
        Err(error) => {
            report.sandbox =
                report.sandbox.or_else(|| error.sandbox().map(|reached| reached.level.to_string()));
            report.errors.push(error.into());
        }
    }
    report
}

fn inspect(path: &Path, launcher: &Launcher, report: &mut CheckReport) -> Result<(), LoadError> {
    let plugin = PluginFile::open(path)?;
    let manifest = &plugin.manifest;
    report.abi = Some(format!("{} {}", manifest.abi, manifest.api));
    report.name = Some(manifest.name.clone());
    report.version = Some(manifest.version.clone());
    report.sha256 = Some(plugin.sha256.clone());
    report.size = Some(plugin.bytes.len() as u64);
    report.rustc = Some(manifest.rustc.clone());
    report.capabilities.clone_from(&manifest.capabilities);
    report.files.clone_from(&manifest.files);
    report.states.clone_from(&manifest.states);
    report.phases = manifest.phases;
    let trust = launcher.trust(&plugin);
    report.trusted = trust.holds();
    report.trust = Some(trust.to_string());
    let config = RunnerConfig::new(&manifest.name, path.display().to_string());
    // A file that may run nowhere is not tried either.
    report.isolation = Some(launcher.isolation_for(&config, &plugin)?.to_string());
    report.tried = Some(launcher.trial_isolation().to_string());
    if manifest.capabilities.iter().any(|wanted| wanted == "propose") {
        let note = "wants propose, but this version has no approvals: its proposals are answered unsupported";
        report.notes.push(note.to_owned());
    }
    if manifest.panic == "abort" {
        report.notes.push("built with panic=abort, so it cannot run in_process".to_owned());
    }
    let reached = launcher.try_out(&config, &plugin)?;
    report.sandbox = reached.map(|reached| reached.level.to_string());
    Ok(())
}

impl CheckReport {
    /// At most ten lines for a terminal.
    #[must_use]
    pub fn human(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            if !value.is_empty() {
                // Writing to a text cannot fail.
                let _ = writeln!(text, "{key:<9}{value}");
            }
        };
        if let (Some(name), Some(version)) = (&self.name, &self.version) {
            line("runner", &format!("{name} {version}"));
        }
        if let (Some(abi), Some(rustc)) = (&self.abi, &self.rustc) {
            let compiler = if rustc.is_empty() { String::new() } else { format!(", {rustc}") };
            line("abi", &format!("{abi}{compiler}"));
        }
        if let (Some(sha256), Some(size)) = (&self.sha256, self.size) {
            line("file", &format!("sha256 {sha256}, {size} bytes"));
        }
        if self.name.is_some() {
            line("wants", &self.wants());
        }
        if let Some(trust) = &self.trust {
            let place = self.isolation.as_ref().map_or("nothing here can run it".to_owned(), |isolation| {
                format!("runs as {isolation} unless configured")
            });
            line("trusted", &format!("{}: {trust}; {place}", if self.trusted { "yes" } else { "no" }));
        }
        let level = self.sandbox.as_ref().map(|level| format!(" {level}")).unwrap_or_default();
        let tried = self.tried.as_ref().map(|tried| format!(", tried in a worker ({tried}{level})"));
        line("loads", &format!("{}{}", if self.loads { "yes" } else { "no" }, tried.unwrap_or_default()));
        // What is worth knowing of a file that loads says nothing of one that does not.
        for note in self.notes.iter().filter(|_| self.loads) {
            line("note", &note.replace('\n', " "));
        }
        for error in &self.errors {
            let lines: Vec<&str> = error.message.lines().take(MESSAGE_LINES).collect();
            line("error", &format!("{}: {}", error.code, lines.join("\n         ")));
            line("remedy", &error.remedy);
        }
        text
    }

    /// As [`Self::human`], with every place that was looked at.
    #[must_use]
    pub fn verbose(&self) -> String {
        let mut text = self.human();
        for path in self.errors.iter().flat_map(|error| &error.looked) {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "looked   {}", path.display());
        }
        text
    }

    /// What it asks for, on one line.
    fn wants(&self) -> String {
        let nothing = vec!["nothing from the host".to_owned()];
        let mut parts =
            if self.capabilities.is_empty() { nothing } else { vec![self.capabilities.join(", ")] };
        parts.extend(self.files.iter().cloned());
        if self.phases {
            parts.push("goes through the phases".to_owned());
        }
        if !self.states.is_empty() {
            parts.push(format!("state {}", self.states.join(", ")));
        }
        parts.join("; ")
    }
}
