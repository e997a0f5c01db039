//! The command line: one file a noun.
pub mod client;
pub mod config;
pub mod cron;
pub mod doctor;
pub mod exit;
pub mod init;
pub mod output;
