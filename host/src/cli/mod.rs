//! The command line: one file a noun.
pub mod client;
pub mod cron;
pub mod exit;
pub mod output;
