//! The `kairos` program. Everything it does lives in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use kairos_host::{cli, config};

fn main() -> ExitCode {
    let cwd = match std::env::current_dir() {
        Ok(cwd) => cwd,
        Err(error) => {
            eprintln!("kairos: the current directory cannot be read: {error}");
            return ExitCode::from(1);
        }
    };
    ExitCode::from(cli::main(std::env::args_os().collect(), config::Env::of_process(), cwd))
}
