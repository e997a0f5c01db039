//! The `kairos` program. Everything it does lives in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use kairos_host::{cli, config};

fn main() -> ExitCode {
    // Before anything else: a worker has no configuration, no command line and no runtime.
    if std::env::args_os().nth(1).is_some_and(|word| word == "worker") {
        return kairos_host::runner::worker::main();
    }
    let cwd = match std::env::current_dir() {
        Ok(cwd) => cwd,
        Err(error) => {
            eprintln!("kairos: the current directory cannot be read: {error}");
            return ExitCode::from(1);
        }
    };
    ExitCode::from(cli::main(std::env::args_os().collect(), config::Env::of_process(), cwd))
}
