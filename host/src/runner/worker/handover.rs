//! The instances of a runner in workers, and how their states go from version to version.
//!
//! Each process has an instance. What one keeps in itself it hands over when it goes, whether its
//! version is replaced or there is no room for it; a fresh one takes up what waits. In a sandbox
//! an instance is for one schedule from its first cycle on, and takes up what an instance for
//! that schedule left and nothing else. A process that dies takes its state with it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::client::Worker;
use super::frame::Kind;
use super::process::Process;
use super::rest::Rest;
use crate::domain::handover::{HandOver, InstanceState, StateId};
use crate::runner::handover::{checked, fresh_id, tell_dropped};
use crate::runner::{Instances, Isolation, RunnerError};

/// Idle processes kept; the others of a burst end. As many as idle threads are kept.
pub(super) const MAX_IDLE: usize = 16;

/// Time for an answer outside of cycles. Cycles have their deadline.
pub(super) const SERVICE_TIME: Duration = Duration::from_secs(20);

/// Time for the state of a process that is to go, while a cycle's end waits behind it.
const LEAVE_TIME: Duration = Duration::from_secs(2);

/// A process, and what is known of the instance in it.
pub(super) struct Instance {
    pub process: Process,
    /// The schedule it is for; none yet, or it makes no difference.
    pub owner: Option<String>,
    /// The name of its state; none while it has run nothing and taken nothing over.
    pub state: Option<StateId>,
    /// True when the last sweep found it idle, and nobody has had it since.
    seen: bool,
    /// What it uses while it has nothing to do.
    rest: Rest,
    /// That, with what it started: takes a walk through `/proc`, so it is left to the supervisor's looks.
    below: Rest,
}

impl Instance {
    /// One that has done nothing yet.
    pub fn fresh(process: Process) -> Self {
        Self { process, owner: None, state: None, seen: false, rest: Rest::default(), below: Rest::default() }
    }

    /// Whether it works on with nothing to do; looked at while it waits, and when that ends.
    fn burns(&mut self, now: Duration) -> bool {
        self.rest.look(now, self.process.handle.processor_time())
    }

    /// The same with all that it started; only while it waits.
    fn burns_below(&mut self, now: Duration) -> bool {
        self.below.look(now, self.process.handle.processor_time_below())
    }

    /// It is given something to do.
    fn begins(&mut self) {
        self.rest.ends();
        self.below.ends();
    }
}

/// The processes of a runner that wait for a cycle, the longest idle first.
pub(super) struct Idle(Mutex<Vec<Instance>>);

impl Idle {
    pub fn new(first: Instance) -> Self {
        Self(Mutex::new(vec![first]))
    }

    pub fn lock(&self) -> MutexGuard<'_, Vec<Instance>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out those that work on with nothing to do.
    pub fn burning(&self, now: Duration) -> Vec<Process> {
        let burns = |instance: &mut Instance| instance.burns(now) || instance.burns_below(now);
        self.lock().extract_if(.., burns).map(|instance| instance.process).collect()
    }

    /// Takes out those that were idle at the last sweep already and have nothing to hand over; the
    /// next cycle makes a new one, which takes a few milliseconds.
    pub fn sweep(&self) -> Vec<Process> {
        let mut idle = self.lock();
        let old =
            |instance: &mut Instance| instance.state.is_none() && std::mem::replace(&mut instance.seen, true);
        idle.extract_if(.., old).map(|instance| instance.process).collect()
    }
}

impl Worker {
    fn sandboxed(&self) -> bool {
        self.isolation_is(Isolation::Sandbox)
    }

    /// An idle instance that may serve `owner`: its own before one that is nobody's. One that has
    /// worked on meanwhile is ended, and is none.
    pub(super) fn take_idle(&self, owner: Option<&str>) -> Option<Instance> {
        loop {
            let mut taken = self.taken(owner)?;
            if !taken.burns(self.now()) {
                taken.begins();
                return Some(taken);
            }
            tell_burning(&taken.process);
        }
    }

    fn taken(&self, owner: Option<&str>) -> Option<Instance> {
        let mut idle = self.idle();
        let at = if self.sandboxed() {
            let own = idle.iter().rposition(|idle| idle.owner.is_some() && idle.owner.as_deref() == owner);
            own.or_else(|| idle.iter().rposition(|idle| idle.owner.is_none()))?
        } else {
            idle.len().checked_sub(1)?
        };
        let mut taken = idle.remove(at);
        taken.seen = false;
        Some(taken)
    }

    /// Notes that a cycle of `owner` is about to run in it.
    pub(super) fn engage(&self, instance: &mut Instance, owner: Option<&str>) {
        if self.sandboxed() {
            instance.owner = owner.map(str::to_owned);
        }
        if self.keeps_state() {
            instance.state.get_or_insert_with(fresh_id);
        }
    }

    /// Keeps an instance for the next cycle. What a sandboxed one has seen of one schedule no other
    /// may see; mandates without a schedule have nothing in common, so there is no next one for it.
    pub(super) fn give_back(&self, mut instance: Instance) {
        if self.sandboxed() && instance.owner.is_none() {
            self.retire(instance.process);
            return;
        }
        if instance.burns(self.now()) {
            tell_burning(&instance.process);
            return;
        }
        let longest_idle = {
            let mut idle = self.idle();
            let full = idle.len() >= MAX_IDLE;
            let longest_idle = full.then(|| idle.remove(0));
            idle.push(instance);
            longest_idle
        };
        if let Some(instance) = longest_idle {
            self.let_go(instance);
        }
    }

    /// Lets a process end; what its instance keeps waits for the next one.
    fn let_go(&self, mut instance: Instance) {
        match self.export(&mut instance, LEAVE_TIME) {
            Ok(Some(state)) => self.keep(state),
            Ok(None) => {}
            Err(error) => tracing::warn!(runner = self.runner(), %error, "runner_state_lost"),
        }
        self.retire(instance.process);
    }

    fn keep(&self, state: InstanceState) {
        let dropped = self.waiting().keep(state);
        tell_dropped(self.runner(), &dropped, "too many states wait");
    }

    fn export(&self, instance: &mut Instance, limit: Duration) -> Result<Option<InstanceState>, RunnerError> {
        let Some(id) = instance.state.filter(|_| self.keeps_state()) else { return Ok(None) };
        instance.begins();
        let answer = self.ask(&mut instance.process, Kind::Export, &[], limit)?;
        let owner = instance.owner.clone();
        Ok(checked(&answer)?.map(|state| InstanceState { id, owner, state, aside: false }))
    }

    /// Whether an instance for `owner` may have that state.
    fn fits(&self, state: &InstanceState, owner: Option<&str>) -> bool {
        !self.sandboxed() || (state.owner.is_some() && state.owner.as_deref() == owner)
    }

    /// Gives a fresh instance what waits for one like it.
    ///
    /// # Errors
    /// It did not take it, and begins without; the state is set aside. Or it died of it.
    pub(super) fn take_up(&self, instance: &mut Instance, owner: Option<&str>) -> Result<(), RunnerError> {
        if instance.state.is_some() {
            return Ok(());
        }
        let taken = self.waiting().take(|state| self.fits(state, owner));
        let Some(mut state) = taken else { return Ok(()) };
        let payload = serde_json::to_vec(&state.state).map_err(|error| RunnerError::Call(error.into()))?;
        if self.sandboxed() {
            instance.owner = owner.map(str::to_owned);
        }
        instance.begins();
        let imported = self.ask(&mut instance.process, Kind::Import, &payload, SERVICE_TIME);
        match &imported {
            Ok(_) => instance.state = Some(state.id),
            // Not its doing.
            Err(RunnerError::Died(death)) if death.by_host => self.waiting().put_back(state),
            Err(error) => {
                let (runner, schema, schedule) = (self.runner(), &state.state.schema, state.owner.as_deref());
                tracing::error!(runner, schema, schedule, %error, "runner_state_not_taken");
                state.aside = true;
                self.keep(state);
            }
        }
        imported.map(drop)
    }

    /// A fresh instance: an idle one that has done nothing yet, or a new one while there is room.
    fn place(&self) -> Result<Option<Instance>, RunnerError> {
        {
            let mut idle = self.idle();
            let fresh = idle.iter().position(|idle| idle.state.is_none() && idle.owner.is_none());
            if let Some(at) = fresh {
                return Ok(Some(idle.remove(at)));
            }
            if idle.len() >= MAX_IDLE {
                return Ok(None);
            }
        }
        self.started(|_| ()).map(Some)
    }

    /// The schedule of the next state that an instance could have.
    fn next_owner(&self) -> Option<Option<String>> {
        let waiting = self.waiting();
        waiting.next(|state| self.fits(state, state.owner.as_deref())).map(|state| state.owner.clone())
    }
}

/// Before it is dropped, and killed with that. What its instance kept is lost, as when it dies.
pub(super) fn tell_burning(process: &Process) {
    let (runner, pid) = (process.label.get(), process.handle.pid());
    tracing::warn!(runner, pid, "runner_worker_ended_for_working_on");
}

impl Instances for Worker {
    fn count(&self) -> usize {
        let idle = self.idle().iter().filter(|idle| idle.state.is_some()).count();
        idle + self.running_now() + self.waiting().len()
    }

    fn warm(&self, count: usize) -> Result<(), RunnerError> {
        while self.idle().len() < count.min(MAX_IDLE) {
            let fresh = self.spare()?;
            self.idle().push(fresh);
        }
        Ok(())
    }

    fn hand_over(&self) -> Result<HandOver, RunnerError> {
        let mut states = vec![];
        let mut failed = None;
        let idle = std::mem::take(&mut *self.idle());
        for mut instance in idle {
            match self.export(&mut instance, SERVICE_TIME) {
                Ok(state) => states.extend(state),
                Err(RunnerError::Died(death)) => {
                    failed.get_or_insert(RunnerError::Died(death));
                    continue;
                }
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
            self.idle().push(instance);
        }
        states.extend(self.waiting().all());
        failed.map_or(Ok(HandOver(states)), Err)
    }

    fn take_over(&self, states: HandOver) -> Result<(), RunnerError> {
        let superseded: Vec<Instance> = {
            let mut idle = self.idle();
            let newer = |instance: &mut Instance| {
                instance.state.is_some_and(|id| states.0.iter().any(|state| !state.aside && state.id == id))
            };
            idle.extract_if(.., newer).collect()
        };
        superseded.into_iter().for_each(|instance| self.retire(instance.process));
        self.waiting().supersede(&states);
        states.0.into_iter().for_each(|state| self.keep(state));
        // As many as can be had now, so that what cannot be taken is known before it serves.
        let mut outcome = Ok(());
        while let Some(owner) = self.next_owner().filter(|_| !self.asked().given_up) {
            let Some(mut instance) = self.place()? else { break };
            let taken = self.take_up(&mut instance, owner.as_deref());
            let died = matches!(taken, Err(RunnerError::Died(_)));
            outcome = outcome.and(taken);
            if !died {
                self.idle().push(instance);
            }
        }
        outcome
    }

    fn give_up(&self) {
        let mut asked = self.asked();
        asked.given_up = true;
        asked.handles.iter().for_each(|handle| handle.kill());
    }
}
