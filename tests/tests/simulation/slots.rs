//! Slots in which cycles take their simulated time and end one way or another. Stands where
//! dispatch stands in the daemon, and watches what it is given.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use chrono::{DateTime, NaiveTime, TimeDelta, Utc};
use kairos_host::daemon::claims::{Claims, Permits};
use kairos_host::domain::mandate::CycleEnd;
use kairos_host::domain::schedule::Overlap;
use kairos_host::store::*;
use kairos_host::sys::clock::{Clock, ManualClock};
use kairos_host::sys::entropy::SeededEntropy;
use kairos_plugin_api::Usage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::faulty::Faulty;

const SLOTS: usize = 3;

/// Awaits something that is known at once, as everything is in a simulation.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the simulation would wait for ever"),
    }
}

pub struct Slots {
    store: Arc<Faulty>,
    clock: ManualClock,
    rng: Arc<SeededEntropy>,
    state: Mutex<State>,
}

struct State {
    free: Arc<Semaphore>,
    calls: Option<u64>,
    running: Vec<Run>,
    stop: HashSet<String>,
    look: bool,
    day: String,
    next_ready: Option<DateTime<Utc>>,
    blocked: bool,
    finished: u64,
    complaints: Vec<String>,
    /// Overlap policy of each schedule that ever fired, to judge what runs beside what.
    beside: HashMap<String, bool>,
}

struct Run {
    cycle: ClaimedCycle,
    ends: Duration,
    slot: Option<OwnedSemaphorePermit>,
}

/// What ending some cycles led to.
#[derive(Default)]
pub struct Ended {
    pub auto_paused: Vec<String>,
}

impl Slots {
    pub fn new(store: Arc<Faulty>, clock: ManualClock, rng: Arc<SeededEntropy>, calls: Option<u64>) -> Self {
        let state = State {
            free: Arc::new(Semaphore::new(SLOTS)),
            calls,
            running: Vec::new(),
            stop: HashSet::new(),
            look: true,
            day: String::new(),
            next_ready: None,
            blocked: false,
            finished: 0,
            complaints: Vec::new(),
            beside: HashMap::new(),
        };
        Self { store, clock, rng, state: Mutex::new(state) }
    }

    /// Nothing in memory is left.
    pub fn reboot(&mut self, store: Arc<Faulty>) {
        self.store = store;
        let mut state = self.state();
        state.free = Arc::new(Semaphore::new(SLOTS));
        state.running.clear();
        state.stop.clear();
        state.look = true;
        state.next_ready = None;
    }

    /// Continues what ran when the process died.
    pub fn take_over(&self, recovered: Recovered) {
        let mut state = self.state();
        for cycle in recovered.running {
            let slot = Arc::clone(&state.free).try_acquire_owned().ok();
            let ends = self.clock.monotonic() + self.any_span();
            state.running.push(Run { cycle, ends, slot });
        }
    }

    pub fn allow_all(&self) {
        self.state().calls = None;
    }

    pub fn policy(&self, schedule: &str, overlap: Overlap) {
        self.state().beside.insert(schedule.to_owned(), overlap == Overlap::Allow);
    }

    /// Something may be ready.
    pub fn look(&self) {
        self.state().look = true;
    }

    /// A person stops it.
    pub fn stop(&self, mandate: &str) {
        let mut state = self.state();
        state.stop.insert(mandate.to_owned());
        let now = self.clock.monotonic();
        for run in state.running.iter_mut().filter(|run| run.cycle.mandate.id == mandate) {
            run.ends = now;
        }
    }

    pub fn running(&self) -> HashSet<String> {
        self.state().running.iter().map(|run| run.cycle.mandate.id.clone()).collect()
    }

    pub fn finished(&self) -> u64 {
        self.state().finished
    }

    pub fn complaints(&self) -> Vec<String> {
        std::mem::take(&mut self.state().complaints)
    }

    pub fn next_end(&self) -> Option<Duration> {
        self.state().running.iter().map(|run| run.ends).min()
    }

    /// When a look at the queue makes sense again.
    pub fn next_wake(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let state = self.state();
        let midnight = (now.date_naive() + TimeDelta::days(1)).and_time(NaiveTime::MIN).and_utc();
        let look = state.look && state.free.available_permits() > 0;
        let blocked = state.blocked.then_some(midnight);
        look.then_some(now).into_iter().chain(state.next_ready).chain(blocked).min()
    }

    /// Ends the cycles whose time has come.
    pub fn end_cycles(&self) -> Ended {
        let mut ended = Ended::default();
        loop {
            let monotonic = self.clock.monotonic();
            let run = {
                let mut state = self.state();
                let due = state.running.iter().position(|run| run.ends <= monotonic);
                due.map(|index| state.running.remove(index))
            };
            let Some(mut run) = run else { return ended };
            let request = self.any_end(&run);
            let id = run.cycle.mandate.id.clone();
            let permits = Permits(run.slot.take());
            match self.store.finish(request).wait() {
                Ok(finished) => {
                    let mut state = self.state();
                    state.finished += 1;
                    state.stop.remove(&id);
                    state.look = true;
                    drop(state);
                    ended.auto_paused.extend(finished.auto_paused);
                    self.started(finished.claim, permits);
                }
                Err(Error::Full { .. }) => {
                    run.ends = monotonic + Duration::from_secs(5);
                    run.slot = permits.0;
                    self.state().running.push(run);
                }
                Err(Error::Closed) => return ended,
                Err(error) => self.state().complaints.push(format!("finish of {id}: {error}")),
            }
        }
    }

    /// Starts what may start.
    pub fn claim(&self) {
        let now = self.clock.now();
        let day = day_of(now);
        {
            let mut state = self.state();
            let ready = state.next_ready.is_some_and(|ready| ready <= now);
            if !state.look && !ready && state.day == day {
                return;
            }
            state.day = day;
            state.look = false;
        }
        let Some((request, permits)) = self.request(now) else { return };
        match self.store.claim(request).wait() {
            Ok(outcome) => self.started(outcome, permits),
            Err(Error::Full { .. }) => self.look(),
            Err(Error::Closed) => {}
            Err(error) => self.state().complaints.push(format!("claim: {error}")),
        }
    }

    fn any_end(&self, run: &Run) -> FinishRequest {
        let mandate = &run.cycle.mandate;
        let stopped = self.state().stop.contains(&mandate.id);
        let end = match self.rng.next_u64() % 100 {
            _ if stopped => CycleEnd::Cancelled,
            0..70 => CycleEnd::Done,
            70..78 => CycleEnd::More,
            78..92 => CycleEnd::Error,
            92..95 => CycleEnd::Checkpoint,
            95..98 => CycleEnd::Interrupted,
            _ => CycleEnd::Review,
        };
        let claimed = Usage {
            llm_calls: self.rng.next_u64() % 6,
            input_tokens: self.rng.next_u64() % 5000,
            output_tokens: self.rng.next_u64() % 900,
            cost_nano_usd: self.rng.next_u64() % 1_000_000,
        };
        let now = self.clock.now();
        FinishRequest {
            mandate: mandate.id.clone(),
            cycle: mandate.cycle,
            attempt: mandate.attempt,
            now,
            day: day_of(now),
            end,
            reason: None,
            report: None,
            error: None,
            claimed,
            state_puts: HashMap::new(),
            pause_after_failures: Some(3),
            // Its own slot is free as soon as it has ended.
            claim: run.slot.is_some().then(|| self.claim_request(now, 1)),
        }
    }

    fn claim_request(&self, now: DateTime<Utc>, max: usize) -> ClaimRequest {
        let offer = RunnerOffer { generation: "g1".to_owned(), phases: false, commands: None };
        let offers = Arc::new(HashMap::from([("stub".to_owned(), offer)]));
        ClaimRequest { now, max, gate: self.gate(now), offers }
    }

    fn any_span(&self) -> Duration {
        let long = self.rng.next_u64().is_multiple_of(12);
        let bound = if long { 30 * 3600 } else { 1200 };
        Duration::from_secs(1 + self.rng.next_u64() % bound)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no user of it panics")
    }

    /// I4: nothing starts on a day whose calls are used up. Overlap: nothing runs beside its key.
    fn judge(&self, state: &mut State, cycle: &ClaimedCycle) {
        let now = self.clock.now();
        let used = self.store.booked().get(&day_of(now)).map_or(0, |usage| usage.llm_calls);
        if state.calls.is_some_and(|calls| used >= calls) {
            state.complaints.push(format!("{} starts with {used} calls used", cycle.mandate.id));
        }
        let key = |cycle: &ClaimedCycle| {
            let scope = cycle.mandate.project_scope.clone().map(|scope| format!("scope {scope}"));
            scope.or_else(|| cycle.mandate.schedule.clone())
        };
        for run in &state.running {
            let other = &run.cycle;
            let allowed = cycle.mandate.schedule == other.mandate.schedule
                && cycle.mandate.schedule.as_ref().is_some_and(|name| state.beside.get(name) == Some(&true));
            if key(cycle).is_some() && key(cycle) == key(other) && !allowed {
                state.complaints.push(format!("{} runs beside {}", cycle.mandate.id, other.mandate.id));
            }
        }
    }
}

impl Claims for Slots {
    fn request(&self, now: DateTime<Utc>) -> Option<(ClaimRequest, Permits)> {
        let free = Arc::clone(&self.state().free);
        let count = free.available_permits();
        let permits = free.try_acquire_many_owned(u32::try_from(count).ok()?).ok().filter(|_| count > 0)?;
        Some((self.claim_request(now, count), Permits(Some(permits))))
    }

    fn gate(&self, now: DateTime<Utc>) -> Option<BudgetGate> {
        let limits = Limits { calls: self.state().calls, ..Limits::default() };
        Some(BudgetGate { day: day_of(now), limits })
    }

    fn started(&self, outcome: ClaimOutcome, mut permits: Permits) {
        let mut state = self.state();
        state.next_ready = outcome.next_ready;
        state.blocked = outcome.blocked.is_some();
        for cycle in outcome.claimed {
            let slot = permits.take_one();
            if slot.is_none() {
                state.complaints.push(format!("{} starts without a slot", cycle.mandate.id));
            }
            self.judge(&mut state, &cycle);
            let ends = self.clock.monotonic() + self.any_span();
            state.running.push(Run { cycle, ends, slot });
        }
    }

    fn cancel(&self, mandates: Vec<String>) {
        for mandate in mandates {
            self.stop(&mandate);
        }
    }

    fn queued(&self) {
        self.look();
    }
}

fn day_of(now: DateTime<Utc>) -> String {
    now.format("%Y-%m-%d").to_string()
}
