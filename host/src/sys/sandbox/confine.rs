//! `kairos confine`, a hidden command: confines itself, then becomes another program, or only says
//! how far it got. Children are confined by it, never between fork and exec.
//!
//! `kairos confine -- PROGRAM ARGS..` reads what is granted from the environment variable
//! [`GRANTS`], which the program does not inherit. It ends with 125 when the sandbox is too weak or
//! the grants are wrong, 126 when the program cannot be run, 127 when it is not there.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Confinement, Reached, SandboxError, enter};

/// The variable with the [`Confinement`] as JSON. It holds no secret.
pub const GRANTS: &str = "KAIROS_CONFINEMENT";

/// The word by which the program's `main` comes here.
pub const COMMAND: &str = "confine";

const REFUSED: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NOT_THERE: u8 = 127;

/// A command that runs `target` under a confinement, by way of the `kairos` program. Arguments,
/// directory and descriptors are the caller's to add; the environment is empty but for the grants.
#[must_use]
pub fn prepare(kairos: &Path, wanted: &Confinement, target: &OsStr) -> Command {
    let grants = serde_json::to_string(wanted).expect("a confinement has text keys and numbers only");
    let mut command = Command::new(kairos);
    command.env_clear().env(GRANTS, grants).arg(COMMAND).arg("--").arg(target);
    command
}

/// What a runner's sandbox reaches on this machine, found by a process of the `kairos` program.
///
/// # Errors
/// It could not be started or did not answer.
pub fn probe(kairos: &Path) -> Result<Reached, SandboxError> {
    let output = Command::new(kairos)
        .env_clear()
        .args([COMMAND, "--probe"])
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
        [word] if word == "--probe" => say_level(),
        [word, target, rest @ ..] if word == "--" => become_program(target, rest),
        _ => Err((2, "usage: kairos confine --probe | kairos confine -- PROGRAM ARGS..".to_owned())),
    };
    match outcome {
        Ok(()) => 0,
        Err((code, message)) => {
            eprintln!("kairos confine: {message}");
            code
        }
    }
}

fn say_level() -> Result<(), (u8, String)> {
    let reached = enter(&Confinement::runner(None)).map_err(|error| (REFUSED, error.to_string()))?;
    let text = serde_json::to_string(&reached).expect("names and reasons are text");
    io::Write::write_all(&mut io::stdout(), format!("{text}\n").as_bytes())
        .map_err(|error| (1, error.to_string()))
}

fn become_program(target: &OsStr, arguments: &[OsString]) -> Result<(), (u8, String)> {
    let refused = |error: SandboxError| (REFUSED, error.to_string());
    let wanted = handed_over().map_err(refused)?;
    let reached = enter(&wanted).map_err(refused)?;
    if reached.level < wanted.require {
        return Err(refused(SandboxError::TooWeak { reached, wanted: wanted.require }));
    }
    if wanted.die_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
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
