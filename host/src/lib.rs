//! Kairos: a daemon that owns an agent's clock (chronos), wallet (budget), memory (store and
//! write-ahead log) and pulse (heartbeat), and lends them, one cycle at a time, to a runner.
//!
//! Arrows point one way, top to bottom; nobody imports upward (a test holds this):
//!
//! ```text
//! cli, wiring
//!       boot
//!   config   exit   telemetry
//!       attach
//!       daemon
//!   wal   runner   broker
//!       store
//!        sys
//!       domain  ->  kairos-plugin-api (payload types)
//! ```

pub mod attach;
pub mod boot;
pub mod broker;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod domain;
pub mod exit;
pub mod runner;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod wal;
pub mod wiring;
