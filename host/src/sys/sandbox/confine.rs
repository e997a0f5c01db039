//! `kairos confine`, a hidden command: confines itself, then becomes another program, or only says
//! how far it got. Children are confined by it, never between fork and exec.
//!
//! `kairos confine -- PROGRAM ARGS..` reads what is granted from the environment variable
//! [`GRANTS`], which the program does not inherit. It ends with 125 when the sandbox is too weak or
//! the grants are wrong, 126 when the program cannot be run, 127 when it is not there.
//!
//! `--guard PID`, the number of the caller, leaves a [`guardian`] behind, outside of the walls: nothing
//! the program starts outlives it or the caller. `--open` confines nothing. `--try` runs nothing.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use super::{Confinement, Reached, SandboxError, enter};
use crate::sys::guardian;

/// The variable with the [`Confinement`] as JSON. It holds no secret.
pub const GRANTS: &str = "KAIROS_CONFINEMENT";

/// The word by which the program's `main` comes here.
pub const COMMAND: &str = "confine";

const GUARD: &str = "--guard";
const OPEN: &str = "--open";
const TRY: &str = "--try";
const PROBE: &str = "--probe";
/// With [`PROBE`]: what a tool would get.
const TOOL: &str = "tool";

const REFUSED: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NOT_THERE: u8 = 127;

/// A command that runs `target` under a confinement, by way of the `kairos` program. Arguments,
/// directory and descriptors are the caller's to add; the environment is empty but for the grants.
#[must_use]
pub fn prepare(kairos: &Path, wanted: &Confinement, target: &OsStr) -> Command {
    let mut command = Command::new(kairos);
    command.env_clear().env(GRANTS, grants(wanted)).arg(COMMAND).arg("--").arg(target);
    command
}

/// As [`prepare`], with a guardian that ends all that the program started when it ends, or when the
/// calling thread does. Without a confinement it is only that.
#[must_use]
pub fn accompanied(kairos: &Path, wanted: Option<&Confinement>, target: &OsStr) -> Command {
    let mut command = Command::new(kairos);
    command.env_clear().args([COMMAND, GUARD]).arg(std::process::id().to_string());
    match wanted {
        Some(wanted) => command.env(GRANTS, grants(wanted)),
        None => command.arg(OPEN),
    };
    command.arg("--").arg(target);
    command
}

/// Whether a program could be confined like this, found by a process that confines itself and ends.
///
/// # Errors
/// Why not, for people.
pub fn trial(kairos: &Path, wanted: &Confinement) -> Result<(), String> {
    let output = Command::new(kairos)
        .env_clear()
        .env(GRANTS, grants(wanted))
        .args([COMMAND, TRY])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", kairos.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.strip_prefix("kairos confine: ").unwrap_or(&said).trim().to_owned())
}

fn grants(wanted: &Confinement) -> String {
    serde_json::to_string(wanted).expect("a confinement has text keys and numbers only")
}

/// What a runner's sandbox reaches on this machine, found by a process of the `kairos` program.
///
/// # Errors
/// It could not be started or did not answer.
pub fn probe(kairos: &Path) -> Result<Reached, SandboxError> {
    probed(kairos, &[COMMAND, PROBE])
}

/// As [`probe`], of a tool's sandbox.
///
/// # Errors
/// See there.
pub fn probe_tools(kairos: &Path) -> Result<Reached, SandboxError> {
    probed(kairos, &[COMMAND, PROBE, TOOL])
}

fn probed(kairos: &Path, arguments: &[&str]) -> Result<Reached, SandboxError> {
    let output = Command::new(kairos)
        .env_clear()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| SandboxError::Probe(format!("{}: {error}", kairos.display())))?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        SandboxError::Probe(format!("{}, {}", output.status, said.trim()))
    })
}

/// The command itself; what it returns is the exit code. Returns only when no program was run.
#[must_use]
pub fn main(arguments: &[OsString]) -> u8 {
    let outcome = match arguments {
        [word] if word == PROBE => say_level(&Confinement::runner(None)),
        [word, whose] if word == PROBE && whose == TOOL => say_level(&Confinement::tool()),
        [word] if word == TRY => confine().map(drop),
        [word, target, rest @ ..] if word == "--" => become_program(target, rest, true),
        [guard, parent, word, target, rest @ ..] if guard == GUARD && word == "--" => {
            accompany(parent).and_then(|()| become_program(target, rest, true))
        }
        [guard, parent, open, word, target, rest @ ..] if guard == GUARD && open == OPEN && word == "--" => {
            accompany(parent).and_then(|()| become_program(target, rest, false))
        }
        _ => Err((2, "usage: kairos confine --probe | kairos confine -- PROGRAM ARGS..".to_owned())),
    };
    match outcome {
        Ok(()) => 0,
        Err((code, message)) => {
            // A closed stderr leaves the exit code to speak.
            let _ = writeln!(io::stderr(), "kairos confine: {message}");
            code
        }
    }
}

fn say_level(wanted: &Confinement) -> Result<(), (u8, String)> {
    let reached = enter(wanted).map_err(|error| (REFUSED, error.to_string()))?;
    let text = serde_json::to_string(&reached).expect("names and reasons are text");
    io::stdout().write_all(format!("{text}\n").as_bytes()).map_err(|error| (1, error.to_string()))
}

/// Leaves a guardian behind.
fn accompany(parent: &OsStr) -> Result<(), (u8, String)> {
    let parent = parent.to_str().and_then(|text| Pid::from_raw(text.parse().ok()?));
    let parent = parent.ok_or_else(|| (2, "--guard wants the number of the calling process".to_owned()))?;
    guardian::accompanied(parent).map_err(|error| (REFUSED, format!("guardian: {error}")))
}

fn confine() -> Result<Confinement, (u8, String)> {
    let refused = |error: SandboxError| (REFUSED, error.to_string());
    let wanted = handed_over().map_err(refused)?;
    let reached = enter(&wanted).map_err(refused)?;
    if reached.level < wanted.require {
        return Err(refused(SandboxError::TooWeak { reached, wanted: wanted.require }));
    }
    Ok(wanted)
}

fn become_program(target: &OsStr, arguments: &[OsString], confined: bool) -> Result<(), (u8, String)> {
    let dies_with_parent = if confined { confine()?.die_with_parent } else { true };
    if dies_with_parent {
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|error| (REFUSED, format!("prctl: {error}")))?;
    }
    let error = Command::new(target).args(arguments).env_remove(GRANTS).exec();
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_THERE } else { CANNOT_RUN };
    Err((code, format!("{}: {error}", target.display())))
}

#[expect(clippy::disallowed_methods, reason = "what a parent hands over, not configuration")]
fn handed_over() -> Result<Confinement, SandboxError> {
    let text = std::env::var(GRANTS).map_err(|error| SandboxError::Wanted(format!("{GRANTS}: {error}")))?;
    serde_json::from_str(&text).map_err(|error| SandboxError::Wanted(error.to_string()))
}
