//! The contract between the Kairos daemon and a cycle runner.
//!
//! A runner decides, the host does: every LLM call and tool call of a cycle goes
//! through the host, which budgets, records, executes and, after a crash, replays it.
//! Control is typed, payloads are JSON bytes with a schema number, so that one
//! encoding serves a runner in the daemon's process, in a worker, or in another language.
//!
//! This crate must never depend on the host, and no std, tokio or tracing type may
//! cross the boundary that it defines.

pub mod abi;
pub mod adapter;
pub mod c_abi;
pub mod context;
pub mod effect;
pub mod error;
mod forward;
#[doc = include_str!("../GUIDE.md")]
pub mod guide {
    #[allow(unused_imports, reason = "for the links of the text")]
    use crate::testing;
}
pub mod mandate;
pub mod manifest;
pub mod report;
pub mod runner;
pub mod testing;
pub mod usage;

pub use context::{Context, HostCalls};
pub use effect::{LlmMessage, LlmReply, LlmRequest, ToolCall, ToolReply};
pub use error::{CallError, code};
pub use mandate::Mandate;
pub use report::{Report, Status};
pub use runner::{CycleRunner, State};
pub use usage::Usage;

/// The number that stands in every payload as `schema`. A payload of a higher number may
/// hold fields this version does not know; they are ignored.
pub const PAYLOAD_SCHEMA: u32 = 1;

/// The samples of the README are compiled and run with the tests.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct Readme;
