//! The `kairos` program. Everything it does lives in the library.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use kairos_host::runner::worker;
use kairos_host::sys::descriptors;
use kairos_host::sys::sandbox::confine;
use kairos_host::{cli, config};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // First of all: what somebody forgot to close is nobody's here, and would be in every sandbox.
    if let Err(error) = no_strangers(arguments.get(1)) {
        say(&format!("what was left open by whoever started it cannot be closed: {error}"));
        return ExitCode::FAILURE;
    }
    // What confines itself has one thread and reads nothing before.
    let code = match arguments.get(1).and_then(|word| word.to_str()) {
        Some(confine::COMMAND) => confine::main(&arguments[2..]),
        // A worker has no configuration, no command line and no runtime.
        Some(worker::COMMAND) => worker::main(),
        _ => command(arguments),
    };
    ExitCode::from(code)
}

/// A worker runs foreign code in this very process, everybody else only in programs that it starts.
fn no_strangers(word: Option<&OsString>) -> std::io::Result<()> {
    let worker = word.is_some_and(|word| word == worker::COMMAND);
    if worker { descriptors::close() } else { descriptors::keep_from_programs() }
}

fn command(arguments: Vec<OsString>) -> u8 {
    match std::env::current_dir() {
        Ok(cwd) => cli::main(arguments, config::Env::of_process(), cwd),
        Err(error) => {
            say(&format!("the current directory cannot be read: {error}"));
            1
        }
    }
}

fn say(trouble: &str) {
    // A closed stderr leaves the exit code to speak.
    let _ = writeln!(std::io::stderr(), "kairos: {trouble}");
}
