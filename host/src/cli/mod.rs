//! The command line: one file a noun. Data goes to stdout, talk to stderr.

pub mod client;
pub mod cron;
pub mod exit;
pub mod output;
