//! The one thread that starts workers, keeps a few blank ones ready, reads what they print and
//! sees the retired ones off.
//!
//! Workers are started by no other thread: the kernel ends them when the thread that started them
//! is gone, and this one lives for as long as any of them is wanted. It sleeps until something
//! happens.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::fork_server::ForkServer;
use super::handover::{Idle, tell_burning};
use super::output::{More, Output};
use super::process::{Handle, Process};
use super::spin::Crowd;
use crate::sys::clock::{Clock, SystemClock};
use crate::sys::priority;

/// Blank workers kept ready, so that a runner that died serves again before a new process could
/// have been started. One is enough: the next is started at once when it is taken.
const BLANKS: usize = 1;

/// Between two looks for idle workers; one that two of them have found idle is of no use now.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// Between two looks at what workers do that have nothing to do.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// Time for a retired worker to end by itself, before it is killed.
const RETIRE_GRACE: Duration = Duration::from_secs(1);

/// Time before a blank worker is tried again after the system refused one.
const REFILL_AGAIN: Duration = Duration::from_secs(1);

/// The token of the wake-up; others count from one.
const WAKE: u64 = 0;

/// The token of the fork server's end.
const SERVER: u64 = u64::MAX;

/// What other threads and the supervisor share.
pub struct Shared {
    pub(super) program: PathBuf,
    /// Its workers are for trials: they run where nobody else wants to, and none is kept ready.
    trials: bool,
    clock: SystemClock,
    /// What the readers of all its workers learn of the machine.
    pub(super) crowd: Arc<Crowd>,
    wake: OwnedFd,
    state: Mutex<State>,
    started: Condvar,
}

#[derive(Default)]
struct State {
    blanks: Vec<Process>,
    /// Why the last start failed, until one succeeds.
    failure: Option<String>,
    /// How many wait for a start.
    wanted: usize,
    /// Runners with cycles, for whose next death a blank worker is kept ready.
    served: usize,
    retired: VecDeque<Process>,
    /// Where runners keep theirs.
    idle: Vec<Weak<Idle>>,
    /// Another time than [`IDLE_TIME`].
    idle_time: Option<Duration>,
    closing: bool,
}

impl Shared {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's.
    pub fn start(
        program: PathBuf,
        clock: SystemClock,
        crowd: Arc<Crowd>,
        trials: bool,
    ) -> std::io::Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Self {
            program,
            trials,
            clock,
            crowd,
            wake,
            state: Mutex::default(),
            started: Condvar::new(),
        });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let thread = Thread {
            shared: Arc::clone(&shared),
            server: ForkServer::new(shared.program.clone()),
            epoll,
            outputs: BTreeMap::new(),
            leaving: BTreeMap::new(),
            next: WAKE + 1,
            refill_at: Duration::ZERO,
            swept: clock.monotonic(),
            looked: clock.monotonic(),
        };
        let name = if trials { "kairos-trials" } else { "kairos-workers" };
        std::thread::Builder::new().name(name.to_owned()).spawn(move || thread.run())?;
        Ok(shared)
    }

    /// A worker that is nobody's yet: a blank one, or as soon as one is started.
    ///
    /// # Errors
    /// Why none can be started.
    pub fn take(&self) -> Result<Process, String> {
        let mut state = self.state();
        state.wanted += 1;
        let mut tried = false;
        let process = loop {
            match state.blanks.pop() {
                Some(blank) if blank.handle.has_ended() => {}
                Some(blank) => break Ok(blank),
                None if state.closing => break Err("the workers are being stopped".to_owned()),
                None if tried && state.failure.is_some() => {
                    break Err(state.failure.clone().unwrap_or_default());
                }
                None => {
                    // An old failure says nothing of the next try.
                    state.failure = None;
                    tried = true;
                    self.wake();
                    state = self.started.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        state.wanted -= 1;
        drop(state);
        // Another one is made ready in its place.
        self.wake();
        process
    }

    /// A runner begins to run cycles in workers: from now on a blank one is kept for it.
    pub fn serve(&self) {
        self.state().served += 1;
        self.wake();
    }

    /// It will run no more of them.
    pub fn unserve(&self) {
        self.state().served -= 1;
    }

    /// Looks after a runner's idle workers from now on.
    pub fn watch(&self, idle: &Arc<Idle>) {
        self.state().idle.push(Arc::downgrade(idle));
        self.wake();
    }

    /// Changes how long workers stay idle.
    pub fn set_idle_time(&self, time: Duration) {
        self.state().idle_time = Some(time);
        self.wake();
    }

    /// Lets a worker end by itself, and sees to it that it does.
    pub fn retire(&self, process: Process) {
        let mut state = self.state();
        if !state.closing {
            state.retired.push_back(process);
            self.wake();
        }
    }

    /// Ends the thread, and with it every worker.
    pub fn close(&self) {
        self.state().closing = true;
        self.wake();
    }

    fn wake(&self) {
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker that was told to go.
struct Leaving {
    handle: Arc<Handle>,
    until: Duration,
}

struct Thread {
    shared: Arc<Shared>,
    server: ForkServer,
    epoll: OwnedFd,
    outputs: BTreeMap<u64, Output>,
    leaving: BTreeMap<u64, Leaving>,
    next: u64,
    refill_at: Duration,
    /// When idle workers were looked for last.
    swept: Duration,
    /// When it was last looked at what they do.
    looked: Duration,
}

impl Thread {
    fn run(mut self) {
        // What it starts inherits it, from the first instruction on.
        if self.shared.trials
            && let Err(error) = priority::only_when_idle()
        {
            tracing::debug!(%error, "runner_trials_as_urgent_as_others");
        }
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        while self.tend() {
            let timeout = self.next_time().map(|left| Timespec::try_from(left).unwrap_or_default());
            events.clear();
            // An error means a signal, or a machine that is out of memory; both pass.
            let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref());
            for event in &events {
                self.see(event.data.u64());
            }
        }
        let now = self.shared.clock.monotonic();
        self.outputs.values_mut().for_each(|output| output.last_words(now));
    }

    /// Does what is wanted; false when it is the end.
    fn tend(&mut self) -> bool {
        let now = self.shared.clock.monotonic();
        loop {
            let mut state = self.shared.state();
            if state.closing {
                state.blanks.clear();
                state.retired.clear();
                self.shared.started.notify_all();
                return false;
            }
            if let Some(process) = state.retired.pop_front() {
                drop(state);
                self.see_off(process, now);
                continue;
            }
            let spare = if state.served > 0 && !self.shared.trials { BLANKS } else { 0 };
            let missing = (state.wanted + spare).saturating_sub(state.blanks.len());
            let may = state.wanted > 0 && state.failure.is_none() || now >= self.refill_at;
            drop(state);
            if missing == 0 || !may {
                break;
            }
            self.spawn(now);
        }
        self.leaving.retain(|_, leaving| now < leaving.until);
        self.look(now);
        self.sweep(now);
        true
    }

    /// Ends those that work on although they have nothing to do.
    fn look(&mut self, now: Duration) {
        if now.saturating_sub(self.looked) < LOOK_TIME {
            return;
        }
        self.looked = now;
        let idle: Vec<Arc<Idle>> = self.shared.state().idle.iter().filter_map(Weak::upgrade).collect();
        for process in idle.iter().flat_map(|idle| idle.burning(now)) {
            tell_burning(&process);
        }
    }

    /// Sees off what has been idle for long.
    fn sweep(&mut self, now: Duration) {
        let idle: Vec<Arc<Idle>> = {
            let mut state = self.shared.state();
            if now.saturating_sub(self.swept) < state.idle_time.unwrap_or(IDLE_TIME) {
                return;
            }
            state.idle.retain(|idle| idle.strong_count() > 0);
            state.idle.iter().filter_map(Weak::upgrade).collect()
        };
        self.swept = now;
        for process in idle.iter().flat_map(|idle| idle.sweep()) {
            self.see_off(process, now);
        }
    }

    fn spawn(&mut self, now: Duration) {
        let started = Process::spawn(&mut self.server, self.shared.clock, Arc::clone(&self.shared.crowd))
            .and_then(|started| {
                let token = self.token();
                let (handle, label) = (&started.process.handle, &started.process.label);
                let output = Output::new(started.output, handle.pid(), Arc::clone(label));
                epoll::add(&self.epoll, &output, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
                self.outputs.insert(token, output);
                Ok(started.process)
            });
        if let Some(server) = self.server.unwatched() {
            // One that cannot be watched is waited for when it is next needed.
            let _ = epoll::add(&self.epoll, server, epoll::EventData::new_u64(SERVER), epoll::EventFlags::IN);
        }
        let mut state = self.shared.state();
        match started {
            Ok(process) => {
                state.failure = None;
                state.blanks.push(process);
            }
            Err(error) => {
                let program = self.shared.program.display();
                self.refill_at = now + REFILL_AGAIN;
                state.failure = Some(format!("a worker cannot be started from {program}: {error}"));
                tracing::error!(%program, %error, "runner_worker_not_started");
            }
        }
        self.shared.started.notify_all();
    }

    fn see_off(&mut self, process: Process, now: Duration) {
        let Process { handle, channel, .. } = process;
        drop(channel);
        handle.hang_up();
        let token = self.token();
        let data = epoll::EventData::new_u64(token);
        // One that cannot be watched is killed by its drop.
        if epoll::add(&self.epoll, &*handle, data, epoll::EventFlags::IN).is_ok() {
            self.leaving.insert(token, Leaving { handle, until: now + RETIRE_GRACE });
        }
    }

    fn see(&mut self, token: u64) {
        let now = self.shared.clock.monotonic();
        if token == WAKE {
            let mut count = [0; 8];
            // Only to empty it.
            let _ = rustix::io::read(&self.shared.wake, &mut count);
        } else if token == SERVER {
            self.server.bury();
        } else if let Some(leaving) = self.leaving.remove(&token) {
            leaving.handle.end();
        } else if let Some(output) = self.outputs.get_mut(&token)
            && output.pump(now) == More::Never
        {
            output.last_words(now);
            self.outputs.remove(&token);
        }
    }

    /// How long until something is to be done without an event.
    fn next_time(&self) -> Option<Duration> {
        let now = self.shared.clock.monotonic();
        let (refill, idle, idle_time) = {
            let state = self.shared.state();
            let idle: Vec<Arc<Idle>> = state.idle.iter().filter_map(Weak::upgrade).collect();
            (state.failure.is_some().then_some(self.refill_at), idle, state.idle_time.unwrap_or(IDLE_TIME))
        };
        // Never with the other lock in hand: runners take theirs first.
        let sweep = idle.iter().any(|idle| !idle.lock().is_empty()).then_some(self.swept + idle_time);
        // Also while all of them run: nobody wakes this thread when a cycle ends.
        let look = (!idle.is_empty()).then_some(self.looked + LOOK_TIME);
        let leaving = self.leaving.values().map(|leaving| leaving.until);
        leaving.chain(refill).chain(sweep).chain(look).min().map(|at| at.saturating_sub(now))
    }

    fn token(&mut self) -> u64 {
        let token = self.next;
        self.next += 1;
        token
    }
}
