//! A runner linked into this program, as a [`RunnerBackend`]: a closure or a [`CycleRunner`].
//! For embedding and tests. A panic in it is caught like a plugin's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use kairos_plugin_api::adapter::run_guarded;
use kairos_plugin_api::{CallError, Context, CycleRunner, Mandate, Report, State, code};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::load_error::LoadError;
use super::{HostCalls, RunnerBackend, RunnerError, RunnerIdentity};

type Run = Box<dyn Fn(&Mandate, &Context) -> Result<Report, RunnerError> + Send + Sync>;
type Nudge = Box<dyn Fn() + Send + Sync>;
type Probe = Box<dyn Fn() -> Result<(), CallError> + Send + Sync>;
type Export = Box<dyn Fn() -> Result<Option<State>, CallError> + Send + Sync>;
type Import = Box<dyn Fn(State) -> Result<(), CallError> + Send + Sync>;

/// Foreign code without a file.
pub struct Builtin {
    identity: RunnerIdentity,
    run: Run,
    cancel: Nudge,
    probe: Probe,
    export: Export,
    import: Import,
    drain: Nudge,
}

impl Builtin {
    /// A closure that reports.
    pub fn from_fn<F>(name: &str, run: F) -> Self
    where
        F: Fn(&Mandate, &Context) -> Result<Report, CallError> + Send + Sync + 'static,
    {
        Self::new(name, Box::new(move |mandate, ctx| caught(ctx, || run(mandate, ctx))))
    }

    /// A closure that returns any JSON, as embedding programs write them. What cannot be read as
    /// a report goes to `unusable`, which makes a report of it or an error.
    pub fn from_value_fn<F, U>(name: &str, run: F, unusable: U) -> Self
    where
        F: Fn(&Mandate, &Context) -> Result<Value, CallError> + Send + Sync + 'static,
        U: Fn(&Value) -> Result<Report, RunnerError> + Send + Sync + 'static,
    {
        let run = move |mandate: &Mandate, ctx: &Context| {
            let mut odd = None;
            let outcome = caught(ctx, || {
                let value = run(mandate, ctx)?;
                // An attempt that was ended is settled without a look at the value.
                Ok(serde_json::from_value(value.clone()).unwrap_or_else(|_| {
                    odd = Some(value);
                    Report::ok()
                }))
            })?;
            odd.map_or(Ok(outcome), |value| unusable(&value))
        };
        Self::new(name, Box::new(run))
    }

    /// A type of the plugin's own kind, linked in. It is made anew after a panic.
    ///
    /// # Errors
    /// `setup_refused`, `panic_in_new`.
    pub fn of<R: CycleRunner>(name: &str, params: &Value) -> Result<Self, LoadError> {
        let made = construct::<R>(params).map_err(|error| match error.code.as_str() {
            code::PANIC => LoadError::PanicInNew(error.message),
            _ => LoadError::SetupRefused(error.into()),
        })?;
        let slot = Arc::new(Mutex::new(Arc::new(made)));
        let instance = {
            let slot = Arc::clone(&slot);
            move || Arc::clone(&slot.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let params = params.clone();
        let run = {
            let instance = instance.clone();
            move |mandate: &Mandate, ctx: &Context| {
                let (outcome, panicked) = run_guarded(&*instance(), mandate, ctx);
                if panicked && let Ok(fresh) = construct::<R>(&params) {
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                }
                outcome.map_err(to_runner_error)
            }
        };
        let mut builtin = Self::new(name, Box::new(run));
        builtin.cancel = Box::new({
            let instance = instance.clone();
            move || instance().cancel()
        });
        builtin.probe = Box::new({
            let instance = instance.clone();
            move || instance().probe()
        });
        builtin.export = Box::new({
            let instance = instance.clone();
            move || instance().export_state()
        });
        builtin.import = Box::new({
            let instance = instance.clone();
            move |state| instance().import_state(state)
        });
        builtin.drain = Box::new(move || instance().begin_drain());
        Ok(builtin)
    }

    /// The same, going through the five phases and saying so.
    #[must_use]
    pub fn with_phases(mut self) -> Self {
        self.identity.phases = true;
        self
    }

    fn new(name: &str, run: Run) -> Self {
        let identity = RunnerIdentity {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: "builtin".to_owned(),
            generation: hex::encode(Sha256::digest(name)),
            phases: false,
        };
        Self {
            identity,
            run,
            cancel: Box::new(|| ()),
            probe: Box::new(|| Ok(())),
            export: Box::new(|| Ok(None)),
            import: Box::new(|_| Ok(())),
            drain: Box::new(|| ()),
        }
    }
}

impl RunnerBackend for Builtin {
    fn identity(&self) -> &RunnerIdentity {
        &self.identity
    }

    fn run_cycle(&self, mandate: &Mandate, host: Arc<dyn HostCalls>) -> Result<Report, RunnerError> {
        (self.run)(mandate, &Context::new(host))
    }

    fn cancel(&self) {
        // Its panic is its own affair; the cycles hear of the stop by should_stop.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.cancel)()));
    }

    fn probe(&self) -> Result<(), RunnerError> {
        guarded(|| (self.probe)())
    }

    fn export_state(&self) -> Result<Option<State>, RunnerError> {
        guarded(|| (self.export)())
    }

    fn import_state(&self, state: State) -> Result<(), RunnerError> {
        guarded(|| (self.import)(state))
    }

    fn begin_drain(&self) {
        let _ = catch_unwind(AssertUnwindSafe(|| (self.drain)()));
    }
}

fn guarded<T>(work: impl FnOnce() -> Result<T, CallError>) -> Result<T, RunnerError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(panic_error(&*payload)))
        .map_err(to_runner_error)
}

fn construct<R: CycleRunner>(params: &Value) -> Result<R, CallError> {
    catch_unwind(AssertUnwindSafe(|| R::new(params))).unwrap_or_else(|payload| Err(panic_error(&*payload)))
}

fn caught(ctx: &Context, run: impl FnOnce() -> Result<Report, CallError>) -> Result<Report, RunnerError> {
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| Err(panic_error(&*payload)));
    ctx.settle(outcome).map_err(to_runner_error)
}

fn panic_error(payload: &(dyn std::any::Any + Send)) -> CallError {
    CallError::new(code::PANIC, super::panic_text(payload))
}

fn to_runner_error(error: CallError) -> RunnerError {
    match error.code.as_str() {
        code::PANIC => RunnerError::Panic(error.message),
        _ => RunnerError::Call(error),
    }
}
