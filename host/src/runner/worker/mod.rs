//! Worker processes: the same program as the daemon, one plugin each, one cycle at a time.
//!
//! ```text
//! daemon                                        worker (kairos worker)
//! client  -- Run ---------------- socket -----> serve ---> runner
//!         <-- Call, Ask, Log --                        <-- calls of the context
//!         --- Answer, Refusal, Stopping ------>
//!         <-- Done | Failed ---
//!         --- Nudge, Drain -- second socket --> ear
//! supervisor <-- output ----- pipe, fd 1, 2 --- whatever the plugin prints
//!            --- the other ends of these -----> fork server, which each worker is forked from
//! ```
//!
//! The daemon holds each worker by its pidfd: a death is an event, named by signal and phase. A
//! worker ends with its daemon, however that ends. Nothing here may let a plugin's fault become
//! the daemon's.

mod channel;
mod client;
mod entry;
mod factory;
mod fork_server;
pub mod frame;
mod handover;
mod output;
mod process;
mod protocol;
mod rest;
mod serve;
mod spin;
mod supervisor;

pub use client::Worker;
pub use entry::{COMMAND, main};
pub use factory::{MEMORY_BYTES, WorkerFactory, WorkerSpec};
