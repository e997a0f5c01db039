//! The C ABI as Rust sees it: the mirror of `include/kairos.h`, which says what everything means.
//!
//! Only types live here; calling through them is the host's business. Header and mirror change
//! together: a test compiles the header and compares every offset. Both grow at the end only.

use std::ffi::c_void;

/// The header itself, for tools that write a runner's first files.
pub const HEADER: &str = include_str!("../include/kairos.h");

/// Name of the function that a plugin exports.
pub const ENTRY: &str = "kairos_plugin_entry_v1";

/// Major version of this ABI.
pub const MAJOR: u16 = 1;

/// Minor version of this ABI.
pub const MINOR: u16 = 0;

/// A call succeeded; its answer is the result.
pub const OK: u32 = 0;

/// A call did not; its answer is the JSON of a [`CallError`](crate::CallError).
pub const ERROR: u32 = 1;

/// What `deadline_ms` says when there is no deadline.
pub const NO_DEADLINE: i64 = i64::MAX;

/// `kairos_plugin_entry_v1`.
pub type Entry = unsafe extern "C" fn(host_abi_major: u32) -> *const PluginV1;

/// `kairos_bytes`: borrowed bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// May be null when `len` is 0.
    pub data: *const u8,
    /// How many.
    pub len: usize,
}

impl Bytes {
    /// No bytes.
    pub const EMPTY: Self = Self { data: std::ptr::null(), len: 0 };

    /// These bytes, which the caller keeps alive for as long as the other side may look.
    #[must_use]
    pub const fn of(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr(), len: bytes.len() }
    }
}

/// `kairos_host_v1`: the host, as one cycle sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostV1 {
    /// Size of this structure.
    pub size: u32,
    /// [`MAJOR`].
    pub major: u16,
    /// [`MINOR`].
    pub minor: u16,
    /// First argument of each function.
    pub ctx: *mut c_void,
    /// One call of the context.
    pub call: Option<unsafe extern "C" fn(*mut c_void, Bytes, Bytes, *mut Bytes) -> u32>,
    /// Frees an answer of `call`.
    pub free_answer: Option<unsafe extern "C" fn(*mut c_void, Bytes)>,
    /// Not 0 when the cycle should end.
    pub should_stop: Option<unsafe extern "C" fn(*mut c_void) -> u32>,
    /// Milliseconds since 1970, or [`NO_DEADLINE`].
    pub deadline_ms: Option<unsafe extern "C" fn(*mut c_void) -> i64>,
    /// A log record: level, target, message, fields.
    pub log: Option<unsafe extern "C" fn(*mut c_void, u32, Bytes, Bytes, Bytes)>,
}

/// `kairos_plugin_v1`: a runner.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PluginV1 {
    /// How much of this structure the plugin has.
    pub size: u32,
    /// Major version it was written for.
    pub major: u16,
    /// Minor version it was written for.
    pub minor: u16,
    /// The same as in the section.
    pub manifest: Bytes,
    /// Makes an instance: home, setup, instance, answer.
    pub create: Option<unsafe extern "C" fn(*const HostV1, Bytes, *mut *mut c_void, *mut Bytes) -> u32>,
    /// Ends an instance.
    pub destroy: Option<unsafe extern "C" fn(*mut c_void)>,
    /// Runs one cycle: instance, mandate, host, answer.
    pub run_cycle: Option<unsafe extern "C" fn(*mut c_void, Bytes, *const HostV1, *mut Bytes) -> u32>,
    /// Frees an answer of the plugin.
    pub free_answer: Option<unsafe extern "C" fn(*mut c_void, Bytes)>,
    /// Running cycles should look at `should_stop`.
    pub cancel: Option<unsafe extern "C" fn(*mut c_void)>,
    /// Could the instance work?
    pub probe: Option<unsafe extern "C" fn(*mut c_void, *mut Bytes) -> u32>,
    /// The state for a successor.
    pub export_state: Option<unsafe extern "C" fn(*mut c_void, *mut Bytes) -> u32>,
    /// Takes a predecessor's state over: instance, state, answer.
    pub import_state: Option<unsafe extern "C" fn(*mut c_void, Bytes, *mut Bytes) -> u32>,
    /// No new cycle will come.
    pub begin_drain: Option<unsafe extern "C" fn(*mut c_void)>,
}
