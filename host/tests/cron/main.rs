//! Cron against a table of tricky cases and against a brute-force oracle, on real zones.

mod cases;
mod oracle;
