//! Between an author's [`CycleRunner`] and the ABI, on the plugin's side.
//!
//! No panic may leave a plugin: abi_stable would end the whole daemon. The guard here catches
//! them in construction, in every call and in drop, panics of panic payloads included. An
//! instance that panicked is retired: it answers `retired` from then on, and the host makes a
//! new one. The image also gets a panic hook of its own, because the default one under
//! RUST_BACKTRACE keeps some 31 MiB of symbols per loaded plugin, for good.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::abi::{self, Answer, HostBox, RResult, RSlice, RStr, RVec, RunnerBox, RunnerMod, RunnerModRef};
use crate::context::{Context, HostCalls};
use crate::error::{CallError, code, from_panic};
use crate::forward;
use crate::mandate::Mandate;
use crate::report::Report;
use crate::runner::CycleRunner;

/// What an instance is made from; crosses the boundary as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Payload schema, [`crate::PAYLOAD_SCHEMA`] at the time of writing.
    pub schema: u32,
    /// The runner's section of the configuration.
    #[serde(default)]
    pub params: Value,
    /// Events above this level are not forwarded: `error`, `warn`, `info`, `debug` or `trace`.
    #[serde(default = "default_level")]
    pub log_level: String,
}

fn default_level() -> String {
    "info".to_owned()
}

impl Setup {
    /// A setup with these parameters, forwarding logs up to `info`.
    #[must_use]
    pub fn new(params: Value) -> Self {
        Self { schema: crate::PAYLOAD_SCHEMA, params, log_level: default_level() }
    }
}

/// What the macro ties together: a runner and the manifest of its plugin.
pub trait Export: 'static {
    /// The author's type.
    type Runner: CycleRunner;
    /// The bytes of the ELF section.
    fn manifest() -> &'static [u8];
}

impl<E: Export> abi::Root for E {
    fn root() -> RunnerModRef {
        use abi_stable::prefix_type::PrefixTypeTrait;
        RunnerMod { manifest: manifest::<E>, new_runner: new_runner::<E> }.leak_into_prefix()
    }
}

extern "C" fn manifest<E: Export>() -> RSlice<'static, u8> {
    RSlice::from_slice(E::manifest())
}

extern "C" fn new_runner<E: Export>(home: HostBox, setup: RSlice<'_, u8>) -> RResult<RunnerBox, RVec<u8>> {
    static HOOK: Once = Once::new();
    HOOK.call_once(forward::install_panic_hook);
    let made = caught(|| {
        let setup: Setup = serde_json::from_slice(setup.as_slice())
            .map_err(|error| CallError::invalid(format!("setup of the runner: {error}")))?;
        let home: Arc<dyn HostCalls> = Arc::new(Remote(home));
        forward::install(&home, &setup.log_level);
        let runner = forward::within(&home, || E::Runner::new(&setup.params))?;
        Ok(Guard { runner: ManuallyDrop::new(runner), retired: AtomicBool::new(false), home })
    });
    match made {
        Ok(guard) => RResult::ROk(RunnerBox::from_value(guard, abi_stable::sabi_trait::TD_Opaque)),
        Err(error) => RResult::RErr(error_bytes(&error)),
    }
}

/// A runner that never lets a panic out.
struct Guard<R: CycleRunner> {
    runner: ManuallyDrop<R>,
    retired: AtomicBool,
    home: Arc<dyn HostCalls>,
}

impl<R: CycleRunner> Guard<R> {
    /// Runs `work` on the instance, unless it is retired; retires it when that panics.
    fn enter<T: Serialize>(&self, work: impl FnOnce(&R) -> Result<T, CallError>) -> Answer {
        if self.retired.load(Ordering::Acquire) {
            return RResult::RErr(error_bytes(&retired()));
        }
        let outcome = caught(|| forward::within(&self.home, || work(&self.runner)));
        if outcome.as_ref().is_err_and(|error| error.code == code::PANIC) {
            self.retired.store(true, Ordering::Release);
        }
        encode(outcome)
    }
}

impl<R: CycleRunner> abi::Runner for Guard<R> {
    fn run_cycle(&self, mandate: RSlice<'_, u8>, host: HostBox) -> Answer {
        if self.retired.load(Ordering::Acquire) {
            return RResult::RErr(error_bytes(&retired()));
        }
        let host: Arc<dyn HostCalls> = Arc::new(Remote(host));
        let (outcome, panicked) = forward::within(&host, || {
            let mandate: Result<Mandate, _> = serde_json::from_slice(mandate.as_slice());
            match mandate {
                Ok(mandate) => run_guarded(&*self.runner, &mandate, &Context::new(Arc::clone(&host))),
                Err(error) => (Err(CallError::invalid(format!("mandate: {error}"))), false),
            }
        });
        if panicked {
            self.retired.store(true, Ordering::Release);
        }
        encode(outcome)
    }

    fn cancel(&self) {
        let _ = self.enter(|runner| {
            runner.cancel();
            Ok(())
        });
    }

    fn probe(&self) -> Answer {
        self.enter(R::probe)
    }

    fn export_state(&self) -> Answer {
        self.enter(R::export_state)
    }

    fn import_state(&self, state: RSlice<'_, u8>) -> Answer {
        self.enter(|runner| {
            let state = serde_json::from_slice(state.as_slice())
                .map_err(|error| CallError::invalid(format!("state: {error}")))?;
            runner.import_state(state)
        })
    }

    fn begin_drain(&self) {
        let _ = self.enter(|runner| {
            runner.begin_drain();
            Ok(())
        });
    }
}

impl<R: CycleRunner> Drop for Guard<R> {
    #[allow(unsafe_code, reason = "only so can a panicking destructor be caught")]
    fn drop(&mut self) {
        let _: Result<(), CallError> = caught(|| {
            // SAFETY: the guard itself is being dropped, so nobody uses the runner after this.
            unsafe { ManuallyDrop::drop(&mut self.runner) };
            Ok(())
        });
    }
}

/// Runs one cycle and catches a panic. True beside the outcome says that it panicked and the
/// instance should not be used again, even where the outcome is an answer that ended the
/// attempt before: `unwrap` on such an answer parks the mandate, it does not fail it.
pub fn run_guarded<R: CycleRunner>(
    runner: &R,
    mandate: &Mandate,
    ctx: &Context,
) -> (Result<Report, CallError>, bool) {
    let mut panicked = true;
    let outcome = caught(|| {
        let outcome = runner.run_cycle(mandate, ctx);
        panicked = false;
        outcome
    });
    (ctx.settle(outcome), panicked)
}

/// Calls `work`; a panic in it becomes an error of code `panic`.
fn caught<T>(work: impl FnOnce() -> Result<T, CallError>) -> Result<T, CallError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let mut error = from_panic(payload.as_ref());
        if let Some(place) = forward::last_panic_place() {
            error.message = format!("{} at {place}", error.message);
        }
        drop_quietly(payload);
        Err(error)
    })
}

/// A payload's own destructor may panic; what that leaves is given up.
fn drop_quietly(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}

fn retired() -> CallError {
    CallError::new(code::RETIRED, "this instance is retired after a panic")
}

fn encode<T: Serialize>(outcome: Result<T, CallError>) -> Answer {
    match outcome.and_then(|value| Ok(serde_json::to_vec(&value)?)) {
        Ok(bytes) => RResult::ROk(bytes.into()),
        Err(error) => RResult::RErr(error_bytes(&error)),
    }
}

fn error_bytes(error: &CallError) -> RVec<u8> {
    serde_json::to_vec(error).unwrap_or_default().into()
}

/// Reads the error side of an [`Answer`].
#[must_use]
pub fn error_from(bytes: &[u8]) -> CallError {
    serde_json::from_slice(bytes).unwrap_or_else(|_| {
        CallError::failed(format!("unreadable error: {}", String::from_utf8_lossy(bytes)))
    })
}

/// The host on the other side.
struct Remote(HostBox);

impl HostCalls for Remote {
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        match self.0.call(RStr::from_str(method), RSlice::from_slice(request)) {
            RResult::ROk(answer) => Ok(answer.into_vec()),
            RResult::RErr(error) => Err(error_from(&error)),
        }
    }

    fn should_stop(&self) -> bool {
        self.0.should_stop()
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        match self.0.deadline_ms() {
            abi::NO_DEADLINE => None,
            ms => DateTime::from_timestamp_millis(ms),
        }
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        let fields =
            if fields.is_null() { Vec::new() } else { serde_json::to_vec(fields).unwrap_or_default() };
        let (target, message) = (RStr::from_str(target), RStr::from_str(message));
        self.0.log(forward::level_number(level), target, message, RSlice::from_slice(&fields));
    }
}

/// Makes a plugin of a [`CycleRunner`]: exports the root symbol and writes the manifest.
///
/// Once per cdylib. Name and version default to those of the crate; any field of
/// [`Facts`](crate::manifest::Facts) may be given after the type:
///
/// ```text
/// export_runner!(MyRunner, name: "mine", phases: true, capabilities: &["llm", "tool:fs.read"]);
/// ```
///
/// A crate that is also linked as rlib beside other runners puts the call behind a feature that
/// is on by default, since there is one root symbol per program.
#[macro_export]
macro_rules! export_runner {
    ($runner:ty $(, $key:ident : $value:expr)* $(,)?) => {
        const _: () = {
            $crate::export_manifest!($($key: $value),*);

            struct Exported;

            impl $crate::adapter::Export for Exported {
                type Runner = $runner;
                fn manifest() -> &'static [u8] {
                    &MANIFEST
                }
            }

            $crate::export_root!(Exported);
        };
    };
}

/// The half of [`export_runner!`] that writes the manifest, as a static named `MANIFEST`. For
/// tests that build plugins no author would.
#[doc(hidden)]
#[macro_export]
macro_rules! export_manifest {
    ($($key:ident : $value:expr),* $(,)?) => {
        const FACTS: $crate::manifest::Facts = $crate::manifest::Facts {
            $($key: $value,)*
            ..$crate::manifest::Facts::new(
                env!("CARGO_PKG_NAME"),
                env!("CARGO_PKG_VERSION"),
                if cfg!(panic = "unwind") { "unwind" } else { "abort" },
            )
        };

        #[used]
        #[unsafe(link_section = ".kairos.manifest")]
        static MANIFEST: [u8; FACTS.json_len()] = FACTS.json();
    };
}

/// The other half: exports the root symbol, from a type that is an [`abi::Root`].
#[doc(hidden)]
#[macro_export]
macro_rules! export_root {
    ($root:ty) => {
        /// What the host looks for.
        #[unsafe(no_mangle)]
        pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::abi::LibHeader =
            $crate::abi::header::<$root>();
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_exported_symbol_has_the_name_the_loader_looks_for() {
        assert_eq!(crate::abi::ROOT_SYMBOL, "_1as_0lib_1header_0root_bmodule_bloader");
    }
}
