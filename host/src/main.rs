//! The `kairos` program. Everything it does lives in the library.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

use kairos_host::runner::worker;
use kairos_host::sys::sandbox::confine;
use kairos_host::{cli, config};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // First of all: what confines itself has one thread and reads nothing before.
    let code = match arguments.get(1).and_then(|word| word.to_str()) {
        Some(confine::COMMAND) => confine::main(&arguments[2..]),
        // A worker has no configuration, no command line and no runtime.
        Some(worker::COMMAND) => worker::main(),
        _ => command(arguments),
    };
    ExitCode::from(code)
}

fn command(arguments: Vec<OsString>) -> u8 {
    match std::env::current_dir() {
        Ok(cwd) => cli::main(arguments, config::Env::of_process(), cwd),
        Err(error) => {
            eprintln!("kairos: the current directory cannot be read: {error}");
            1
        }
    }
}
