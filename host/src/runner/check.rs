//! `plugin check`: would this file be a runner here, and if not, why not.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::load_error::LoadError;
use super::manifest::PluginFile;
use super::{CAbi, PluginStore, library};

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
    /// Schemas of state it knows.
    pub states: Vec<String>,
    /// True when it goes through the five phases.
    pub phases: bool,
    /// What is wrong.
    pub errors: Vec<CheckError>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckError {
    /// The stable word.
    pub code: &'static str,
    /// For people; up to three lines.
    pub message: String,
}

/// Checks a file. It is read first and mapped only if it looks right; a private copy is mapped,
/// for the life of this process, so this is for short-lived commands and not for the daemon.
#[must_use]
pub fn check(path: &Path) -> CheckReport {
    let mut report = CheckReport::default();
    match inspect(path, &mut report) {
        Ok(()) => report.loads = true,
        Err(error) => {
            report.errors.push(CheckError { code: error.code(), message: error.to_string() });
        }
    }
    report
}

fn inspect(path: &Path, report: &mut CheckReport) -> Result<(), LoadError> {
    let plugin = PluginFile::open(path)?;
    let manifest = &plugin.manifest;
    report.abi = Some(format!("{} {}", manifest.abi, manifest.api));
    report.name = Some(manifest.name.clone());
    report.version = Some(manifest.version.clone());
    report.sha256 = Some(plugin.sha256.clone());
    report.size = Some(plugin.bytes.len() as u64);
    report.rustc = Some(manifest.rustc.clone());
    report.capabilities.clone_from(&manifest.capabilities);
    report.states.clone_from(&manifest.states);
    report.phases = manifest.phases;
    library::check_manifest(manifest)?;
    // The file itself could be overwritten while it is mapped, which kills the process.
    let dir = tempfile::tempdir().map_err(|error| LoadError::Io {
        action: "make a copy of",
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let copy = PluginStore::new(dir.path()).keep(&plugin)?;
    if manifest.abi == "c" {
        CAbi::check(&copy, manifest)
    } else {
        library::load(&copy, manifest).map(|_| ())
    }
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
            let none = "nothing from the host".to_owned();
            let wants = Some(self.capabilities.join(", ")).filter(|wants| !wants.is_empty());
            line("wants", &wants.unwrap_or(none));
            line("phases", if self.phases { "yes" } else { "no" });
        }
        line("state", &self.states.join(", "));
        line("loads", if self.loads { "yes" } else { "no" });
        for error in &self.errors {
            line("error", &format!("{}: {}", error.code, error.message.replace('\n', "\n         ")));
        }
        text
    }
}
