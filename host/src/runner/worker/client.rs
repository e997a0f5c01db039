//! A runner in worker processes, as a [`RunnerBackend`].
//!
//! A worker runs one cycle at a time; as many as run at once have a process each, and idle ones
//! are kept for the next. The thread that asks for a cycle reads the worker's frames and answers
//! its calls itself: nothing hops between threads on the way. The daemon never trusts what
//! comes: a frame that does not belong there ends that worker and nothing else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use kairos_plugin_api::{CallError, Mandate, Report, code};

use super::channel::Trouble;
use super::factory::{Loaded, WorkerFactory, WorkerSpec};
use super::frame::{Frame, FrameError, Kind, encode, split_call};
use super::handover::{Idle, Instance, SERVICE_TIME};
use super::process::{Handle, Process};
use super::protocol::{LogLine, error_from_wire};
use crate::domain::handover::Waiting;
use crate::runner::load_error::LoadError;
use crate::runner::{
    Death, HostCalls, Instances, Isolation, Pace, RunnerBackend, RunnerError, RunnerIdentity, method,
    report_of,
};
use crate::sys::sandbox::Reached;

/// The `deadline` of a cycle that has all the time.
pub(super) const NO_DEADLINE: i64 = i64::MAX;

/// A runner in processes of its own.
pub struct Worker {
    factory: WorkerFactory,
    spec: WorkerSpec,
    identity: RunnerIdentity,
    /// The weakest sandbox that one of its processes got, where they are confined.
    reached: Mutex<Option<Reached>>,
    idle: Arc<Idle>,
    running: Mutex<BTreeMap<u64, Running>>,
    next: AtomicU64,
    /// Set with its first cycle. Trials run none and need no spare worker.
    serves: OnceLock<()>,
    /// States that were left behind, for instances to come.
    waiting: Mutex<Waiting>,
    asked: Mutex<Asked>,
}

/// The processes that are made or asked something outside of cycles, for [`Instances::give_up`].
#[derive(Default)]
pub(super) struct Asked {
    pub given_up: bool,
    pub handles: Vec<Arc<Handle>>,
}

/// Takes a process out of [`Asked`].
struct Asking<'a>(&'a Worker, Arc<Handle>);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asked = self.0.asked();
        if let Some(at) = asked.handles.iter().position(|handle| Arc::ptr_eq(handle, &self.1)) {
            asked.handles.swap_remove(at);
        }
    }
}

struct Running {
    mandate: String,
    handle: Arc<Handle>,
}

/// Takes a cycle's process out of the books, however the cycle ends.
struct Registered<'a>(&'a Worker, u64);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.running().remove(&self.1);
    }
}

impl Worker {
    pub(super) fn new(factory: WorkerFactory, spec: WorkerSpec, loaded: Loaded, process: Process) -> Self {
        let idle = Arc::new(Idle::new(Instance::fresh(process)));
        factory.shared().watch(&idle);
        Self {
            factory,
            spec,
            identity: loaded.identity,
            reached: Mutex::new(loaded.reached),
            idle,
            running: Mutex::default(),
            next: AtomicU64::new(0),
            serves: OnceLock::new(),
            waiting: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    pub(super) fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a process be ended for as long as the guard lives; at once, if it is not wanted any more.
    fn asking(&self, handle: &Arc<Handle>) -> Asking<'_> {
        let mut asked = self.asked();
        asked.handles.push(Arc::clone(handle));
        if asked.given_up {
            handle.kill();
        }
        drop(asked);
        Asking(self, Arc::clone(handle))
    }

    /// An idle instance that may serve `owner`, or a fresh one, with what was left for one like it.
    /// `register` hears of its process before it is loaded, so that a load that hangs can be ended.
    fn instance(
        &self,
        owner: Option<&str>,
        register: impl Fn(&Arc<Handle>),
    ) -> Result<Instance, RunnerError> {
        while let Some(mut instance) = self.take_idle(owner) {
            if instance.process.handle.has_ended() {
                // It died with nothing to do: a thread of its own, or somebody's kill.
                self.announce(&instance.process.bury(&Trouble::Ended, None));
                continue;
            }
            register(&instance.process.handle);
            return self.ready(&mut instance, owner).map(|()| instance);
        }
        let mut instance = self.started(register)?;
        self.ready(&mut instance, owner).map(|()| instance)
    }

    /// A new instance that no cycle waits for yet.
    pub(super) fn spare(&self) -> Result<Instance, RunnerError> {
        let made = self.factory.loaded(&self.spec, Pace::Background);
        let (process, loaded) = made.map_err(|error| no_worker(&error))?;
        self.note_sandbox(loaded.reached);
        Ok(Instance::fresh(process))
    }

    /// A new instance, made in a process of its own.
    pub(super) fn started(&self, register: impl FnOnce(&Arc<Handle>)) -> Result<Instance, RunnerError> {
        let mut process = self.factory.blank().map_err(|error| no_worker(&error))?;
        register(&process.handle);
        let _asking = self.asking(&process.handle);
        let loaded =
            self.factory.load(&mut process, &self.spec, Pace::Usual).map_err(|error| no_worker(&error))?;
        self.note_sandbox(loaded.reached);
        Ok(Instance::fresh(process))
    }

    /// The machine may give a later process less than the first one got.
    fn note_sandbox(&self, reached: Option<Reached>) {
        let mut weakest = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(before), Some(now)) = (&*weakest, &reached)
            && now.level < before.level
        {
            *weakest = reached;
        }
    }

    /// A state that it does not take is told and set aside; it begins without then.
    fn ready(&self, instance: &mut Instance, owner: Option<&str>) -> Result<(), RunnerError> {
        match self.take_up(instance, owner) {
            Err(error @ RunnerError::Died(_)) => Err(error),
            _ => Ok(()),
        }
    }

    /// A question outside of cycles.
    pub(super) fn ask(
        &self,
        process: &mut Process,
        kind: Kind,
        payload: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>, RunnerError> {
        let until = Some(self.factory.until(limit));
        let _asking = self.asking(&process.handle);
        let mut talk = Talk { worker: self, process, host: None, phase: None };
        match talk.ask(kind, &[payload], until) {
            Ok(answer) => answer,
            Err(trouble) => Err(self.died(process, &trouble, None)),
        }
    }

    /// Lets a process end by itself.
    pub(super) fn retire(&self, process: Process) {
        self.factory.retire(process);
    }

    fn died(&self, process: &Process, trouble: &Trouble, phase: Option<String>) -> RunnerError {
        let death = process.bury(trouble, phase);
        RunnerError::Died(death)
    }

    /// Says that a process died outside of a cycle; deaths in cycles are said by who runs them.
    fn announce(&self, death: &Death) {
        let (runner, generation) = (&self.spec.runner, &self.identity.generation);
        tracing::warn!(runner, generation, how = %death, "runner_worker_died_idle");
    }

    pub(super) fn idle(&self) -> MutexGuard<'_, Vec<Instance>> {
        self.idle.lock()
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn isolation_is(&self, isolation: Isolation) -> bool {
        self.spec.isolation() == isolation
    }

    /// Whether instances have anything to hand over at all; those that have not are not asked.
    pub(super) fn keeps_state(&self) -> bool {
        !self.spec.manifest.states.is_empty()
    }

    pub(super) fn runner(&self) -> &str {
        &self.spec.runner
    }

    pub(super) fn now(&self) -> Duration {
        self.factory.until(Duration::ZERO)
    }

    pub(super) fn running_now(&self) -> usize {
        self.running().len()
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> Vec<Arc<Handle>> {
        self.running().values().map(|running| Arc::clone(&running.handle)).collect()
    }
}

impl RunnerBackend for Worker {
    fn identity(&self) -> &RunnerIdentity {
        &self.identity
    }

    fn isolation(&self) -> Isolation {
        self.spec.isolation()
    }

    fn sandbox(&self) -> Option<Reached> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn run_cycle(&self, mandate: &Mandate, host: Arc<dyn HostCalls>) -> Result<Report, RunnerError> {
        let payload = serde_json::to_vec(mandate).map_err(|error| RunnerError::Call(error.into()))?;
        let deadline = host.deadline().map_or(NO_DEADLINE, |deadline| deadline.timestamp_millis());
        self.serves.get_or_init(|| self.factory.shared().serve());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let owner = mandate.schedule.as_deref();
        let registered = Registered(self, number);
        let mut instance = self.instance(owner, |handle| {
            let running = Running { mandate: mandate.id.clone(), handle: Arc::clone(handle) };
            self.running().insert(number, running);
        })?;
        self.engage(&mut instance, owner);
        let process = &mut instance.process;
        let mut talk = Talk { worker: self, process, host: Some(&*host), phase: None };
        let outcome = talk.ask(Kind::Run, &[&deadline.to_le_bytes(), &payload], None);
        let phase = talk.phase.take();
        drop(registered);
        match outcome {
            Ok(answer) => {
                if matches!(answer, Err(RunnerError::Panic(_))) {
                    // A fresh instance takes its place in there, and its state is gone.
                    instance.state = None;
                }
                self.give_back(instance);
                report_of(&answer?)
            }
            Err(trouble) => Err(self.died(&instance.process, &trouble, phase)),
        }
    }

    fn cancel(&self) {
        self.handles().iter().for_each(|handle| handle.nudge());
    }

    fn kill(&self, mandate: &str) -> bool {
        let running = self.running();
        let mut found = false;
        // Under the lock, so that it cannot be another cycle's process by now.
        for running in running.values().filter(|running| running.mandate == mandate) {
            running.handle.kill();
            found = true;
        }
        found
    }

    fn probe(&self) -> Result<(), RunnerError> {
        // Any that is free will do; it is kept.
        let fresh = |idle: &Instance| idle.owner.is_none() && !idle.process.handle.has_ended();
        let idle = {
            let mut idle = self.idle();
            idle.iter().rposition(fresh).map(|at| idle.remove(at))
        };
        let mut instance = idle.map_or_else(|| self.started(|_| ()), Ok)?;
        let answer = self.ask(&mut instance.process, Kind::Probe, &[], SERVICE_TIME);
        if !matches!(answer, Err(RunnerError::Died(_))) {
            self.idle().push(instance);
        }
        answer.map(drop)
    }

    fn instances(&self) -> Option<&dyn Instances> {
        Some(self)
    }

    fn begin_drain(&self) {
        self.handles().iter().for_each(|handle| handle.drain());
        self.idle().iter().for_each(|idle| idle.process.handle.drain());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.serves.get().is_some() {
            self.factory.shared().unserve();
        }
        let idle = std::mem::take(&mut *self.idle());
        idle.into_iter().for_each(|idle| self.factory.retire(idle.process));
    }
}

/// One question to a worker, and what it asks and says until it has answered.
struct Talk<'a> {
    worker: &'a Worker,
    process: &'a mut Process,
    /// Answers its calls; none outside of cycles.
    host: Option<&'a dyn HostCalls>,
    /// The phase that it last said it was in.
    phase: Option<String>,
}

impl Talk<'_> {
    fn ask(
        &mut self,
        kind: Kind,
        parts: &[&[u8]],
        until: Option<Duration>,
    ) -> Result<Result<Vec<u8>, RunnerError>, Trouble> {
        let id = self.process.next_id();
        let frame = match encode(kind, id, parts) {
            Ok(frame) => frame,
            Err(error) => return Ok(Err(RunnerError::Call(CallError::invalid(error.to_string())))),
        };
        self.send(&frame, until)?;
        loop {
            let handle = Arc::clone(&self.process.handle);
            let frame = self.process.channel.receive(&*handle, until)?;
            match frame.kind {
                Kind::Done if frame.id == id => return Ok(Ok(frame.payload)),
                Kind::Failed if frame.id == id => return Ok(Err(error_from_wire(&frame.payload))),
                // Of a cycle before this one, by a thread that outlived it.
                Kind::Done | Kind::Failed if frame.id < id => {}
                _ => {
                    if let Some(answer) = self.serve(&frame)? {
                        self.send(&answer, until)?;
                    }
                }
            }
        }
    }

    fn send(&mut self, frame: &[u8], until: Option<Duration>) -> Result<(), Trouble> {
        match self.process.channel.send(frame, &*self.process.handle, until) {
            // What it said before it closed may be a whole answer; reading finds out.
            Err(Trouble::Closed) => Ok(()),
            sent => sent,
        }
    }

    /// Does what a frame in mid-cycle asks for: the answer's frame, where it has one.
    fn serve(&mut self, frame: &Frame) -> Result<Option<Vec<u8>>, Trouble> {
        let host = self.host.unwrap_or(&*self.worker.spec.home);
        match frame.kind {
            Kind::Call => {
                let bad = Trouble::Broken(FrameError::BadPayload(frame.kind));
                let (name, request) = split_call(&frame.payload).ok_or(bad)?;
                let answer = host.call(name, request);
                if name == method::PHASE && answer.is_ok() {
                    self.phase = phase_of(request);
                }
                Ok(Some(answer_frame(frame.id, answer)))
            }
            Kind::Ask => {
                let stop = [u8::from(host.should_stop())];
                Ok(Some(encode(Kind::Stopping, frame.id, &[&stop]).expect("a byte fits")))
            }
            Kind::Log => {
                let line: LogLine = serde_json::from_slice(&frame.payload)
                    .map_err(|_| Trouble::Broken(FrameError::BadPayload(frame.kind)))?;
                line.say(host);
                Ok(None)
            }
            other => Err(Trouble::Broken(FrameError::OutOfPlace(other))),
        }
    }
}

fn answer_frame(id: u64, answer: Result<Vec<u8>, CallError>) -> Vec<u8> {
    let frame = match answer {
        Ok(bytes) => encode(Kind::Answer, id, &[&bytes]),
        Err(error) => encode(Kind::Refusal, id, &[&serde_json::to_vec(&error).unwrap_or_default()]),
    };
    frame.unwrap_or_else(|error| {
        let error = CallError::new(code::FAILED, format!("the answer is too large: {error}"));
        let error = serde_json::to_vec(&error).unwrap_or_default();
        encode(Kind::Refusal, id, &[&error]).expect("a short message fits")
    })
}

fn phase_of(request: &[u8]) -> Option<String> {
    let request: serde_json::Value = serde_json::from_slice(request).ok()?;
    Some(request.get("name")?.as_str()?.to_owned())
}

/// A cycle found no process to run in.
fn no_worker(error: &LoadError) -> RunnerError {
    RunnerError::Unavailable(error.told())
}
