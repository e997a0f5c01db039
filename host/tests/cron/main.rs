//! Cron against a table of tricky cases and against a brute-force oracle, on real zones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cases;
mod oracle;
