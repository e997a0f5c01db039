//! Configuration: layers (defaults, file, environment, command line) -> a checked struct that cannot
//! be wrong. Every problem of a file is found in one pass, with its place and a remedy; `config
//! check`, `config dump` and the boot use the same code. Never imported below the command line.

pub mod commands;
pub mod daemon;
pub mod docs;
pub mod document;
pub mod edit;
pub mod env;
pub mod keys;
pub mod llm;
pub mod load;
pub mod paths;
pub mod reader;
pub mod reference;
pub mod replies;
pub mod report;
mod scalars;
pub mod schedules;
mod splice;
pub mod swap;
pub mod values;
pub mod yaml;

pub use daemon::{DaemonConfig, Diff, Isolation, RunnerConfig, WalOnError};
pub use env::Env;
pub use paths::Paths;
pub use report::{Level, Problem, Report};
pub use schedules::{Quarantined, SchedulesFile};
