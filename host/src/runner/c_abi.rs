//! A C plugin in this process, as a [`RunnerBackend`]: the table that `kairos.h` describes.
//!
//! Nothing that comes out of C is believed further than it must be: the table is copied member by
//! member as far as the plugin has it, lengths and texts are looked at, and what is missing is
//! replaced by a default. A pointer that lies cannot be found out here; only a process of its own
//! is safe from that. No panic of this side may reach C.

#![allow(unsafe_code, reason = "calling C through pointers that it gave is unsafe by nature")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::{offset_of, size_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kairos_plugin_api::adapter::{Setup, error_from};
use kairos_plugin_api::c_abi::{self, Bytes, Entry, HostV1, PluginV1};
use kairos_plugin_api::manifest::Manifest;
use kairos_plugin_api::{CallError, Context, Mandate, Report, State};
use serde_json::Value;

use super::load_error::LoadError;
use super::rust_abi::{level_of, to_runner_error};
use super::{HostCalls, RunnerBackend, RunnerError, RunnerIdentity, library, report_of};

/// Most bytes of one payload. Larger ones are refused, since a length that was never written is
/// most often larger.
const MAX_PAYLOAD: usize = 64 << 20;

/// Most bytes of a table: room for a thousand functions.
const MAX_TABLE: usize = 8 << 10;

/// A loaded C plugin with its instance.
pub struct CAbi {
    identity: RunnerIdentity,
    table: PluginV1,
    runner: *mut c_void,
    /// What `create` was given; the plugin may keep it until `destroy`.
    _home: Arc<Side>,
}

// SAFETY: the header lets the host call a runner from any of its threads, several at a time where
// the trait does; `runner` is only handed back to the plugin, never looked into.
unsafe impl Send for CAbi {}
// SAFETY: as above.
unsafe impl Sync for CAbi {}

impl CAbi {
    /// Maps the file at `path`, of the store, and makes an instance. `home` receives what the
    /// runner logs outside of cycles.
    ///
    /// # Errors
    /// `wrong_major`, `not_a_runner`, `bad_table`, `bad_manifest`, `manifest_lies`, `load_failed`, `setup_refused`.
    pub fn load(
        path: &Path,
        sha256: &str,
        manifest: &Manifest,
        setup: &Setup,
        home: Arc<dyn HostCalls>,
    ) -> Result<Self, LoadError> {
        Self::start(library::load_c(path, manifest)?, sha256, manifest, setup, home)
    }

    /// Maps the file and looks at its table, without making an instance.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn check(path: &Path, manifest: &Manifest) -> Result<(), LoadError> {
        table_of(library::load_c(path, manifest)?, manifest).map(|_| ())
    }

    fn start(
        entry: Entry,
        sha256: &str,
        manifest: &Manifest,
        setup: &Setup,
        home: Arc<dyn HostCalls>,
    ) -> Result<Self, LoadError> {
        let table = table_of(entry, manifest)?;
        let refused = |error: CallError| LoadError::SetupRefused(error.into());
        let setup = serde_json::to_vec(setup).map_err(|error| refused(error.into()))?;
        let home = Side::of(home);
        let mut runner = std::ptr::null_mut();
        if let Some(create) = table.create {
            // SAFETY: a function of the header's type; `home` lives until after `destroy`, the
            // setup during the call.
            let call = |answer: &mut Bytes| unsafe {
                create(&raw const home.table, Bytes::of(&setup), &raw mut runner, answer)
            };
            answer_of(&table, std::ptr::null_mut(), call)
                .map_err(|fault| refused(fault.into_call("its constructor")))?;
        }
        let identity = RunnerIdentity::of(manifest, sha256);
        Ok(Self { identity, table, runner, _home: home })
    }

    fn ask(&self, call: impl FnOnce(&mut Bytes) -> u32) -> Result<Vec<u8>, Fault> {
        answer_of(&self.table, self.runner, call)
    }

    fn cycle(&self, mandate: &[u8], side: &Side) -> Result<Report, RunnerError> {
        let run_cycle = self.table.run_cycle.expect("a table without it is refused");
        // SAFETY: a function of the header's type; mandate and host outlive the call.
        let call = |answer: &mut Bytes| unsafe {
            run_cycle(self.runner, Bytes::of(mandate), &raw const side.table, answer)
        };
        match self.ask(call) {
            Ok(report) => report_of(text(&report).map_err(RunnerError::BadReport)?.as_bytes()),
            Err(Fault::Error(error)) => Err(to_runner_error(error)),
            Err(Fault::Unusable(reason)) => Err(RunnerError::BadReport(reason)),
        }
    }
}

impl RunnerBackend for CAbi {
    fn identity(&self) -> &RunnerIdentity {
        &self.identity
    }

    fn run_cycle(&self, mandate: &Mandate, host: Arc<dyn HostCalls>) -> Result<Report, RunnerError> {
        let mandate = serde_json::to_vec(mandate).map_err(|error| RunnerError::Call(error.into()))?;
        let side = Side::of(host);
        let outcome = self.cycle(&mandate, &side);
        if side.context.ending().is_none() {
            return outcome;
        }
        // What ended the attempt wins, as in the author's kit for Rust.
        let returned = outcome.map_err(|error| CallError::failed(error.to_string()));
        side.context.settle(returned).map_err(RunnerError::Call)
    }

    fn cancel(&self) {
        if let Some(cancel) = self.table.cancel {
            // SAFETY: a function of the header's type, with the instance it belongs to.
            unsafe { cancel(self.runner) };
        }
    }

    fn probe(&self) -> Result<(), RunnerError> {
        let Some(probe) = self.table.probe else { return Ok(()) };
        // SAFETY: as above.
        let answer = self.ask(|answer| unsafe { probe(self.runner, answer) });
        answer.map(|_| ()).map_err(|fault| to_runner_error(fault.into_call("probe")))
    }

    fn export_state(&self) -> Result<Option<State>, RunnerError> {
        let Some(export) = self.table.export_state else { return Ok(None) };
        // SAFETY: as above.
        let state = self.ask(|answer| unsafe { export(self.runner, answer) });
        let state = state.map_err(|fault| to_runner_error(fault.into_call("export_state")))?;
        if state.is_empty() {
            return Ok(None);
        }
        let bad = |reason: String| RunnerError::Call(CallError::invalid(format!("exported state: {reason}")));
        serde_json::from_str(text(&state).map_err(bad)?).map_err(|error| bad(error.to_string()))
    }

    fn import_state(&self, state: State) -> Result<(), RunnerError> {
        let Some(import) = self.table.import_state else { return Ok(()) };
        let state = serde_json::to_vec(&state).map_err(|error| RunnerError::Call(error.into()))?;
        // SAFETY: as above; the state outlives the call.
        let answer = self.ask(|answer| unsafe { import(self.runner, Bytes::of(&state), answer) });
        answer.map(|_| ()).map_err(|fault| to_runner_error(fault.into_call("import_state")))
    }

    fn begin_drain(&self) {
        if let Some(begin_drain) = self.table.begin_drain {
            // SAFETY: as above.
            unsafe { begin_drain(self.runner) };
        }
    }
}

impl Drop for CAbi {
    fn drop(&mut self) {
        if let Some(destroy) = self.table.destroy {
            // SAFETY: whoever drops this holds the last reference, so no call is under way.
            unsafe { destroy(self.runner) };
        }
    }
}

/// Asks the entry for its table and copies what this host knows of it.
fn table_of(entry: Entry, manifest: &Manifest) -> Result<PluginV1, LoadError> {
    let major = c_abi::MAJOR;
    let wrong = |found: String| LoadError::WrongMajor { found, host: format!("{major}.x") };
    // SAFETY: the library's word that the symbol of this name is this function.
    let theirs = unsafe { entry(u32::from(major)) };
    if theirs.is_null() {
        return Err(wrong(format!("{}, which does not serve major {major}", manifest.api)));
    }
    if !theirs.is_aligned() {
        return Err(LoadError::BadTable("it is not aligned".to_owned()));
    }
    // SAFETY: the first eight bytes, size and version, are there in every version of the table.
    let (size, found, minor) = unsafe { ((*theirs).size as usize, (*theirs).major, (*theirs).minor) };
    if found != major {
        return Err(wrong(format!("{found}.{minor}")));
    }
    let least = offset_of!(PluginV1, run_cycle) + size_of::<usize>();
    if !(least..=MAX_TABLE).contains(&size) {
        return Err(LoadError::BadTable(format!(
            "its size is {size}; {least} to {MAX_TABLE} bytes are expected: set it to sizeof(kairos_plugin_v1)"
        )));
    }
    // SAFETY: the table is at least `size` bytes long and lives as long as the library, for good.
    let table = unsafe { copy(theirs, size) };
    if table.run_cycle.is_none() {
        return Err(LoadError::BadTable("run_cycle is NULL".to_owned()));
    }
    // SAFETY: the plugin's own word for its own static bytes.
    let said = unsafe { borrowed(table.manifest) }.map_err(LoadError::BadManifest)?;
    let said: Manifest = serde_json::from_slice(said)
        .map_err(|error| LoadError::BadManifest(format!("that of the table: {error}")))?;
    if said != *manifest {
        return Err(LoadError::ManifestLies);
    }
    Ok(table)
}

/// A table with the members that lie whole within `size` bytes, and none for the others.
///
/// # Safety
/// `theirs` must point at `size` readable bytes, laid out as the header says.
unsafe fn copy(theirs: *const PluginV1, size: usize) -> PluginV1 {
    macro_rules! member {
        ($name:ident or $absent:expr) => {
            if offset_of!(PluginV1, $name) + size_of_val(&$absent) <= size {
                // SAFETY: it lies within the readable bytes.
                unsafe { (&raw const (*theirs).$name).read() }
            } else {
                $absent
            }
        };
    }
    let mut ours = PluginV1 {
        size: member!(size or 0),
        major: member!(major or 0),
        minor: member!(minor or 0),
        manifest: member!(manifest or Bytes::EMPTY),
        create: None,
        destroy: None,
        run_cycle: None,
        free_answer: None,
        cancel: None,
        probe: None,
        export_state: None,
        import_state: None,
        begin_drain: None,
    };
    ours.create = member!(create or ours.create);
    ours.destroy = member!(destroy or ours.destroy);
    ours.run_cycle = member!(run_cycle or ours.run_cycle);
    ours.free_answer = member!(free_answer or ours.free_answer);
    ours.cancel = member!(cancel or ours.cancel);
    ours.probe = member!(probe or ours.probe);
    ours.export_state = member!(export_state or ours.export_state);
    ours.import_state = member!(import_state or ours.import_state);
    ours.begin_drain = member!(begin_drain or ours.begin_drain);
    ours
}

/// Why a call of the plugin gave no result.
enum Fault {
    /// It said so.
    Error(CallError),
    /// What it gave cannot be read.
    Unusable(String),
}

impl Fault {
    fn into_call(self, what: &str) -> CallError {
        match self {
            Self::Error(error) => error,
            Self::Unusable(reason) => CallError::failed(format!("the answer of {what}: {reason}")),
        }
    }
}

/// Makes a call, copies its answer and gives the original back to the plugin.
fn answer_of(
    table: &PluginV1,
    runner: *mut c_void,
    call: impl FnOnce(&mut Bytes) -> u32,
) -> Result<Vec<u8>, Fault> {
    let mut answer = Bytes::EMPTY;
    let status = call(&mut answer);
    // SAFETY: the header's promise: the answer is readable until it is given back.
    let copied = unsafe { borrowed(answer) }.map(<[u8]>::to_vec);
    if let Some(free_answer) = table.free_answer
        && !answer.data.is_null()
    {
        // SAFETY: once, with what the plugin itself gave.
        unsafe { free_answer(runner, answer) };
    }
    match (status, copied) {
        (c_abi::OK, Ok(bytes)) => Ok(bytes),
        (_, Err(reason)) => Err(Fault::Unusable(reason)),
        (_, Ok(bytes)) if bytes.is_empty() => {
            Err(Fault::Error(CallError::failed(format!("the runner answered {status} and said nothing"))))
        }
        (_, Ok(bytes)) => Err(Fault::Error(error_from(&bytes))),
    }
}

/// What C points at, unless it cannot be.
///
/// # Safety
/// A pointer that is not null must be readable for the stated length, for as long as the result
/// is used.
unsafe fn borrowed<'a>(bytes: Bytes) -> Result<&'a [u8], String> {
    match (bytes.data.is_null(), bytes.len) {
        (_, 0) => Ok(&[]),
        (true, len) => Err(format!("{len} bytes at NULL")),
        (false, len) if len > MAX_PAYLOAD => {
            Err(format!("{len} bytes; no payload has more than {MAX_PAYLOAD}"))
        }
        // SAFETY: the caller's word; a length of at most `MAX_PAYLOAD` fits an isize.
        (false, len) => Ok(unsafe { std::slice::from_raw_parts(bytes.data, len) }),
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| format!("no UTF-8: {error}"))
}

/// This host, as the plugin sees it. Shared references only ever lead here, from any thread.
struct Side {
    table: HostV1,
    context: Context,
    host: Arc<dyn HostCalls>,
    /// Answers that were not given back yet, by their address. So a wrong or doubled
    /// `free_answer` harms nothing, and a forgotten one lasts only as long as the cycle.
    lent: Mutex<HashMap<usize, Box<[u8]>>>,
}

// SAFETY: the only raw pointer, `table.ctx`, leads back to this very value, which is `Sync` else.
unsafe impl Send for Side {}
// SAFETY: as above.
unsafe impl Sync for Side {}

impl Side {
    fn of(host: Arc<dyn HostCalls>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            table: HostV1 {
                size: u32::try_from(size_of::<HostV1>()).expect("a table is small"),
                major: c_abi::MAJOR,
                minor: c_abi::MINOR,
                ctx: this.as_ptr().cast_mut().cast(),
                call: Some(host_call),
                free_answer: Some(host_free_answer),
                should_stop: Some(host_should_stop),
                deadline_ms: Some(host_deadline_ms),
                log: Some(host_log),
            },
            context: Context::new(Arc::clone(&host)),
            host,
            lent: Mutex::default(),
        })
    }

    fn lend(&self, bytes: Vec<u8>) -> Bytes {
        if bytes.is_empty() {
            return Bytes::EMPTY;
        }
        let bytes = bytes.into_boxed_slice();
        let lent = Bytes::of(&bytes);
        self.lent.lock().unwrap_or_else(PoisonError::into_inner).insert(lent.data.addr(), bytes);
        lent
    }
}

/// Finds this side again and keeps a panic in it away from C.
///
/// # Safety
/// `ctx` must be null or that of a living [`Side`].
unsafe fn with<T>(ctx: *mut c_void, otherwise: T, work: impl FnOnce(&Side) -> T) -> T {
    // SAFETY: the caller's word.
    let Some(side) = (unsafe { ctx.cast::<Side>().as_ref() }) else { return otherwise };
    catch_unwind(AssertUnwindSafe(|| work(side))).unwrap_or(otherwise)
}

unsafe extern "C" fn host_call(ctx: *mut c_void, method: Bytes, request: Bytes, answer: *mut Bytes) -> u32 {
    // SAFETY: the header's promise: `ctx` is the one that came with this function, method and
    // request are readable during the call, `answer` is null or a place for an answer.
    unsafe {
        with(ctx, c_abi::ERROR, |side| {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let method = borrowed(method).and_then(text).map_err(|why| bad("method", &why))?;
                let request = borrowed(request).map_err(|why| bad("request", &why))?;
                side.context.call(method, request)
            }));
            let outcome =
                outcome.unwrap_or_else(|_| Err(CallError::failed("the host panicked in this call")));
            let (status, bytes) = match outcome {
                Ok(bytes) => (c_abi::OK, bytes),
                Err(error) => (c_abi::ERROR, serde_json::to_vec(&error).unwrap_or_default()),
            };
            if !answer.is_null() {
                answer.write(side.lend(bytes));
            }
            status
        })
    }
}

fn bad(what: &str, why: &str) -> CallError {
    CallError::invalid(format!("{what} of a host call: {why}"))
}

unsafe extern "C" fn host_free_answer(ctx: *mut c_void, answer: Bytes) {
    let free = |side: &Side| {
        let mut lent = side.lent.lock().unwrap_or_else(PoisonError::into_inner);
        drop(lent.remove(&answer.data.addr()));
    };
    // SAFETY: the header's promise about `ctx`.
    unsafe { with(ctx, (), free) }
}

unsafe extern "C" fn host_should_stop(ctx: *mut c_void) -> u32 {
    // A host that panics here is in no state to have work done for it.
    // SAFETY: the header's promise about `ctx`.
    unsafe { with(ctx, 1, |side| u32::from(side.context.should_stop())) }
}

unsafe extern "C" fn host_deadline_ms(ctx: *mut c_void) -> i64 {
    let deadline = |side: &Side| side.host.deadline().map_or(c_abi::NO_DEADLINE, |at| at.timestamp_millis());
    // SAFETY: the header's promise about `ctx`.
    unsafe { with(ctx, c_abi::NO_DEADLINE, deadline) }
}

unsafe extern "C" fn host_log(ctx: *mut c_void, level: u32, target: Bytes, message: Bytes, fields: Bytes) {
    // SAFETY: the header's promise: `ctx` is the one that came with this function, the bytes are
    // readable during the call.
    unsafe {
        with(ctx, (), |side| {
            let lossy = |bytes| String::from_utf8_lossy(borrowed(bytes).unwrap_or_default()).into_owned();
            let fields = serde_json::from_slice(borrowed(fields).unwrap_or_default()).unwrap_or(Value::Null);
            side.host.log(level_of(level), &lossy(target), &lossy(message), &fields);
        });
    }
}
