//! What crosses the boundary between a daemon and a Rust plugin: two trait objects, one root
//! module, bytes.
//!
//! This module, the [`adapter`](crate::adapter) and the host's loader are the only places that
//! name `abi_stable`. The layout below is frozen as of 1.0: `abi/1.0.txt`
//! describes it, and the test `abi_frozen` compares. It grows in one way only: a new function or
//! method after the last one, with a default body where it is a method. Never rename, reorder or
//! retype anything here, and never put a `cfg` on a member: cargo's feature unification would
//! change the ABI.
//!
//! Payloads are JSON bytes; an error is the JSON of a [`CallError`](crate::CallError), whose
//! code is an open-ended word.

#![allow(non_local_definitions, non_camel_case_types, missing_docs)]
#![allow(unsafe_code, reason = "abi_stable's generated code and its root module need it")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "those of generated code; ours has a note")]

pub use abi_stable::library::LibHeader;
use abi_stable::library::{__call_root_module_loader, CheckTypeLayout, RootModule, RootModuleResult};
use abi_stable::sabi_types::VersionStrings;
pub use abi_stable::std_types::{RBox, RResult, RSlice, RStr, RVec};
use abi_stable::{StableAbi, sabi_trait};

/// Name of the symbol that a plugin exports.
pub const ROOT_SYMBOL: &str = abi_stable::library::ROOT_MODULE_LOADER_NAME;

/// The version of this ABI. The host takes every plugin of the same major.
pub const API_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What [`HostCtx::deadline_ms`] says when there is no deadline.
pub const NO_DEADLINE: i64 = i64::MAX;

/// A result or an error, both JSON.
pub type Answer = RResult<RVec<u8>, RVec<u8>>;

/// The host as one cycle sees it. Implemented by the host; may be called from any thread of the
/// plugin, while the cycle runs.
#[sabi_trait]
pub trait HostCtx: Send + Sync {
    /// One call of the context, see [`crate::context::method`]; blocks.
    fn call(&self, method: RStr<'_>, request: RSlice<'_, u8>) -> Answer;

    /// True when the cycle should end soon.
    fn should_stop(&self) -> bool;

    /// Milliseconds since 1970 at which the cycle's time is over, or [`NO_DEADLINE`].
    fn deadline_ms(&self) -> i64;

    /// A log record. Levels from 1, error, to 5, trace; `fields` is a JSON object or empty.
    #[sabi(last_prefix_field)]
    fn log(&self, level: u32, target: RStr<'_>, message: RStr<'_>, fields: RSlice<'_, u8>);
}

/// An owned [`HostCtx`].
pub type HostBox = HostCtx_TO<'static, RBox<()>>;

/// One instance of a plugin's runner. Called from the host's threads, several at a time.
#[sabi_trait]
pub trait Runner: Send + Sync {
    /// `Mandate` -> `Report`; blocks until the cycle ends.
    fn run_cycle(&self, mandate: RSlice<'_, u8>, host: HostBox) -> Answer;

    /// Running cycles should look at `should_stop` now.
    fn cancel(&self);

    /// Nothing -> nothing: could the instance work?
    fn probe(&self) -> Answer;

    /// Nothing -> `State` or null.
    fn export_state(&self) -> Answer;

    /// `State` -> nothing.
    fn import_state(&self, state: RSlice<'_, u8>) -> Answer;

    /// No new cycle will come.
    #[sabi(last_prefix_field)]
    fn begin_drain(&self);
}

/// An owned [`Runner`].
pub type RunnerBox = Runner_TO<'static, RBox<()>>;

/// What a plugin exports.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RunnerModRef, prefix_fields = RunnerModPrefix)))]
pub struct RunnerMod {
    /// The manifest, the same bytes as in the ELF section.
    pub manifest: extern "C" fn() -> RSlice<'static, u8>,
    /// Makes an instance from a `Setup`. The host given here serves for logs outside of cycles;
    /// its calls answer `invalid`.
    #[sabi(last_prefix_field)]
    pub new_runner: extern "C" fn(home: HostBox, setup: RSlice<'_, u8>) -> RResult<RunnerBox, RVec<u8>>,
}

impl RootModule for RunnerModRef {
    abi_stable::declare_root_module_statics! {RunnerModRef}

    const BASE_NAME: &'static str = "kairos_runner";
    const NAME: &'static str = "kairos runner";
    const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
}

/// Something that makes a root module. [`export_runner!`](crate::export_runner) implements it.
pub trait Root: 'static {
    /// The module.
    fn root() -> RunnerModRef;
}

/// The value of the exported symbol.
#[must_use]
pub const fn header<E: Root>() -> LibHeader {
    // SAFETY: the module that `construct` gives away erased is a `RunnerModRef`, the type that
    // the header is made for.
    unsafe { LibHeader::from_constructor::<RunnerModRef>(construct::<E>, CheckTypeLayout::Yes) }
}

extern "C" fn construct<E: Root>() -> RootModuleResult {
    __call_root_module_loader(E::root)
}
