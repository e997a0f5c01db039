//! What an author writes: one plain trait, no ABI in sight.
//!
//! [`CycleRunner`] is implemented by a type, [`export_runner!`](crate::export_runner) makes a
//! plugin of it. The same type can be linked into a program and driven by a test's
//! [`FakeHost`](crate::testing::FakeHost) or by an embedding host.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::context::Context;
use crate::error::CallError;
use crate::mandate::Mandate;
use crate::report::Report;

/// State handed from one version of a runner to the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Names the form of `data`, `notes/1` for example; listed in the manifest of those who
    /// write or read it.
    pub schema: String,
    /// The state itself.
    pub data: Value,
}

/// Something that runs cycles.
///
/// One instance serves many cycles, several at once if the operator allows that: what it keeps
/// in itself must be safe to share, and what must outlive a restart belongs into
/// [`Context::state_put`]. Every method may panic: the panic becomes an error of the cycle, and
/// the instance is replaced by a fresh one.
pub trait CycleRunner: Sized + Send + Sync + 'static {
    /// Makes an instance. `params` is the runner's own section of the daemon's configuration,
    /// an object (empty when there is none).
    ///
    /// # Errors
    /// Parameters that cannot be used, best as [`CallError::invalid`]: the runner is then
    /// unavailable and its mandates wait, with this message shown.
    fn new(params: &Value) -> Result<Self, CallError>;

    /// Runs one cycle to its end. Called on a thread of its own; may block.
    ///
    /// # Errors
    /// Whatever kept the cycle from its work. Errors of [`Context`] calls are best returned as
    /// they are, with `?`.
    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError>;

    /// A nudge that running cycles should look at [`Context::should_stop`]; called from another
    /// thread. Needed only by a runner that waits for something other than the host.
    fn cancel(&self) {}

    /// Proves that the instance could work. Called before it serves.
    ///
    /// # Errors
    /// Why it could not.
    fn probe(&self) -> Result<(), CallError> {
        Ok(())
    }

    /// The state for a successor, if there is any: an instance of the next version, or of this one
    /// after this instance had to make room. Called between cycles; the instance may run more of
    /// them afterwards, when the successor is not taken.
    ///
    /// # Errors
    /// Why the state cannot be had; the successor is then refused, unless it may start without.
    fn export_state(&self) -> Result<Option<State>, CallError> {
        Ok(None)
    }

    /// Takes over a predecessor's state, of a schema listed in the manifest, in place of what this
    /// instance has. Called between cycles.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn import_state(&self, state: State) -> Result<(), CallError> {
        let _ = state;
        Ok(())
    }

    /// No new cycle will come; running ones may finish.
    fn begin_drain(&self) {}
}

/// Runs one cycle in Rust, without an ABI between: the outcome is what a host would see, except
/// that a panic goes on unwinding.
///
/// # Errors
/// As [`Context::settle`] says.
pub fn run_cycle<R: CycleRunner>(runner: &R, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
    ctx.settle(runner.run_cycle(mandate, ctx))
}
