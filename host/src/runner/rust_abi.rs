//! A Rust plugin in this process, as a [`RunnerBackend`].
//!
//! Holds one instance, shared by all cycles, and makes a new one when it was retired by a panic.
//! The panic guard is the plugin's; what this side must never do is let one of its own panics
//! reach the plugin.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kairos_plugin_api::abi::{
    Answer, HostBox, HostCtx, NO_DEADLINE, RResult, RSlice, RStr, RunnerBox, RunnerModRef,
};
use kairos_plugin_api::adapter::{Setup, error_from};
use kairos_plugin_api::manifest::Manifest;
use kairos_plugin_api::{CallError, Mandate, Report, State, code};
use serde_json::Value;

use super::library;
use super::load_error::LoadError;
use super::{HostCalls, RunnerBackend, RunnerError, RunnerIdentity, report_of};

/// A loaded plugin with its instance.
pub struct RustAbi {
    identity: RunnerIdentity,
    module: RunnerModRef,
    setup: Vec<u8>,
    home: Arc<dyn HostCalls>,
    instance: Mutex<Arc<RunnerBox>>,
}

impl RustAbi {
    /// Maps the file at `path`, of the store, and makes an instance. `home` receives what the
    /// runner logs outside of cycles.
    ///
    /// # Errors
    /// See [`library::load`]; also `panic_in_new` and `setup_refused`.
    pub fn load(
        path: &Path,
        sha256: &str,
        manifest: &Manifest,
        setup: &Setup,
        home: Arc<dyn HostCalls>,
    ) -> Result<Self, LoadError> {
        let module = library::load(path, manifest)?;
        let setup = serde_json::to_vec(setup)
            .map_err(|error| LoadError::SetupRefused(CallError::from(error).into()))?;
        let instance = construct(module, &setup, &home).map_err(|error| match error.code.as_str() {
            code::PANIC => LoadError::PanicInNew(error.message),
            _ => LoadError::SetupRefused(error.into()),
        })?;
        let identity = RunnerIdentity::of(manifest, sha256);
        Ok(Self { identity, module, setup, home, instance: Mutex::new(Arc::new(instance)) })
    }

    fn instance(&self) -> Arc<RunnerBox> {
        Arc::clone(&self.instance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a fresh instance in the place of `retired`, unless another thread already did.
    fn replace(&self, retired: &Arc<RunnerBox>) -> Result<Arc<RunnerBox>, RunnerError> {
        let mut slot = self.instance.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&slot, retired) {
            tracing::warn!(runner = %self.identity.name, generation = %self.identity.generation, "runner_instance_replaced");
            *slot = Arc::new(construct(self.module, &self.setup, &self.home).map_err(to_runner_error)?);
        }
        Ok(Arc::clone(&slot))
    }

    /// Calls the instance; one that was retired before did not begin, so a fresh one is asked.
    fn ask(&self, call: impl Fn(&RunnerBox) -> Answer) -> Result<Vec<u8>, RunnerError> {
        let instance = self.instance();
        let answer = answer_of(call(&instance));
        match answer {
            Err(error) if error.code == code::RETIRED => {
                let fresh = self.replace(&instance)?;
                answer_of(call(&fresh)).map_err(to_runner_error)
            }
            answer => answer.map_err(to_runner_error),
        }
    }
}

impl RunnerBackend for RustAbi {
    fn identity(&self) -> &RunnerIdentity {
        &self.identity
    }

    fn run_cycle(&self, mandate: &Mandate, host: Arc<dyn HostCalls>) -> Result<Report, RunnerError> {
        let mandate = serde_json::to_vec(mandate).map_err(|error| RunnerError::Call(error.into()))?;
        report_of(&self.run_cycle_json(&mandate, host)?)
    }

    fn run_cycle_json(&self, mandate: &[u8], host: Arc<dyn HostCalls>) -> Result<Vec<u8>, RunnerError> {
        self.ask(|runner| runner.run_cycle(RSlice::from_slice(mandate), host_box(&host)))
    }

    fn cancel(&self) {
        self.instance().cancel();
    }

    fn probe(&self) -> Result<(), RunnerError> {
        self.ask(|runner| runner.probe()).map(|_| ())
    }

    fn export_state(&self) -> Result<Option<State>, RunnerError> {
        let state = self.ask(|runner| runner.export_state())?;
        serde_json::from_slice(&state)
            .map_err(|error| RunnerError::Call(CallError::invalid(format!("exported state: {error}"))))
    }

    fn import_state(&self, state: State) -> Result<(), RunnerError> {
        let state = serde_json::to_vec(&state).map_err(|error| RunnerError::Call(error.into()))?;
        self.ask(|runner| runner.import_state(RSlice::from_slice(&state))).map(|_| ())
    }

    fn begin_drain(&self) {
        self.instance().begin_drain();
    }
}

fn construct(module: RunnerModRef, setup: &[u8], home: &Arc<dyn HostCalls>) -> Result<RunnerBox, CallError> {
    match module.new_runner()(host_box(home), RSlice::from_slice(setup)) {
        RResult::ROk(instance) => Ok(instance),
        RResult::RErr(error) => Err(error_from(&error)),
    }
}

fn answer_of(answer: Answer) -> Result<Vec<u8>, CallError> {
    match answer {
        RResult::ROk(bytes) => Ok(bytes.into_vec()),
        RResult::RErr(error) => Err(error_from(&error)),
    }
}

/// A level as it crosses the boundary: from 1, error, to 5, trace.
pub(super) fn level_of(number: u32) -> tracing::Level {
    match number {
        0 | 1 => tracing::Level::ERROR,
        2 => tracing::Level::WARN,
        3 => tracing::Level::INFO,
        4 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    }
}

pub(super) fn to_runner_error(error: CallError) -> RunnerError {
    match error.code.as_str() {
        code::PANIC => RunnerError::Panic(error.message),
        code::BAD_REPORT => RunnerError::BadReport(error.message),
        _ => RunnerError::Call(error),
    }
}

fn host_box(host: &Arc<dyn HostCalls>) -> HostBox {
    HostBox::from_value(Bridge(Arc::clone(host)), abi_stable::sabi_trait::TD_Opaque)
}

/// This host, as the plugin sees it. A panic that left one of these would end the process.
struct Bridge(Arc<dyn HostCalls>);

impl HostCtx for Bridge {
    fn call(&self, method: RStr<'_>, request: RSlice<'_, u8>) -> Answer {
        let answer = catch_unwind(AssertUnwindSafe(|| self.0.call(method.as_str(), request.as_slice())))
            .unwrap_or_else(|_| Err(CallError::failed("the host panicked in this call")));
        match answer {
            Ok(bytes) => RResult::ROk(bytes.into()),
            Err(error) => RResult::RErr(serde_json::to_vec(&error).unwrap_or_default().into()),
        }
    }

    fn should_stop(&self) -> bool {
        // A host that panics here is in no state to have work done for it.
        catch_unwind(AssertUnwindSafe(|| self.0.should_stop())).unwrap_or(true)
    }

    fn deadline_ms(&self) -> i64 {
        let deadline = catch_unwind(AssertUnwindSafe(|| self.0.deadline())).unwrap_or(None);
        deadline.map_or(NO_DEADLINE, |deadline| deadline.timestamp_millis())
    }

    fn log(&self, level: u32, target: RStr<'_>, message: RStr<'_>, fields: RSlice<'_, u8>) {
        let fields = serde_json::from_slice(fields.as_slice()).unwrap_or(Value::Null);
        // A log line is not worth an end of anything.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            self.0.log(level_of(level), target.as_str(), message.as_str(), &fields);
        }));
    }
}
