//! What an author of runners works with: scenarios, templates, the guide's walk.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test writes plain files and may panic")]

mod guide;
mod scenarios;
mod templates;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kairos_tests::{kairos, plugin, target_dir};
use tempfile::TempDir;

/// A directory of one author.
struct Desk(TempDir);

struct Tested {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn kairos(&self, args: &[&str]) -> Tested {
        let output = Command::new(kairos())
            .args(args)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Tested {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Plays a scenario of this text.
    fn play(&self, library: &str, scenario: &str, more: &[&str]) -> Tested {
        self.file("scenario.yml", scenario);
        let plugin = plugin(library);
        let args = ["plugin", "test", plugin.to_str().unwrap(), "--scenario", "scenario.yml"];
        self.kairos(&[&args, more].concat())
    }
}

/// Every line is somewhere in it.
fn says(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "{line}\nis missing in\n{text}");
    }
}

fn passes(library: &str, scenario: &str) {
    let tested = Desk::new().play(library, scenario, &[]);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
}

/// Lines of code of a runner: all that are neither blank nor a comment, `use` lines and closing braces
/// too, up to its tests.
fn own_lines(source: &str) -> usize {
    let code = source.split("#[cfg(test)]").next().unwrap();
    code.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

/// The text of the guide's blocks of one language below a heading.
fn blocks(heading: &str, language: &str) -> Vec<String> {
    let guide = fs::read_to_string(workspace().join("plugin-api/GUIDE.md")).unwrap();
    fenced(guide.split("\n## ").find(|section| section.starts_with(heading)).unwrap(), language)
}

fn fenced(section: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    section.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Runs a program in a directory; it must succeed.
fn succeeds(dir: &Path, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{args:?}: {}{}", said[0], said[1]);
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs commands of cargo on a new runner. Gives the plugin.
fn built(dir: &Path, commands: &[&str]) -> PathBuf {
    // The profile and the directory of this build: little is compiled again, nothing is fetched.
    let target = target_dir().parent().unwrap().to_owned();
    let mut common = vec!["--offline", "--target-dir", target.to_str().unwrap()];
    for setting in ["profile.dev.debug='line-tables-only'", "profile.dev.package.sha2.opt-level=3"] {
        common.extend(["--config", setting]);
    }
    for command in commands {
        succeeds(dir, cargo(), &[&[*command], &common[..]].concat());
    }
    let name = dir.file_name().unwrap().to_str().unwrap().replace('-', "_");
    target.join("debug").join(format!("lib{name}.so"))
}
