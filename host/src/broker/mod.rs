//! What a cycle may do: every LLM call and every tool call passes here, is judged by policy,
//! reserved in the budget, recorded, executed and settled, or answered from the record.
//!
//! Nothing here knows who runs the cycle. Everything here is called on runner threads and may
//! block; nothing here may be called on an async runtime's thread.

pub mod llm;
pub mod policy;
pub mod stop;
pub mod tools;
