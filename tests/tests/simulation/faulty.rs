//! A store that fails when the simulation says so: a request is lost, carried out without an
//! answer, refused once, or, for the negative controls, changed behind everybody's back. All
//! other requests pass. Every answer is awaited inside, so that a run depends on its seed alone.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use chrono::{DateTime, Utc};
use kairos_host::store::*;
use kairos_plugin_api::Usage;

use super::reads::reads_pass_to;

/// What happens to one of the next writing requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies before it.
    Lost,
    /// The process dies after its commit, before its answer.
    Unanswered,
    /// The disk is full for this one.
    Refused,
}

/// What is wrong with this store for good; a checker that does not see it is worth nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Now and then a cursor moves and the occurrences behind it are not recorded.
    ForgetsMissed,
    /// Now and then a fire is left out while the cursor moves over it.
    ForgetsFires,
    /// Now and then a cycle's usage is booked twice.
    BooksTwice,
    /// Now and then an occurrence fires a second time.
    FiresTwice,
}

pub struct Faulty {
    inner: SqliteStore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    dead: bool,
    fault: Option<(u32, Fault)>,
    sabotage: Option<Sabotage>,
    requests: u64,
    /// Usage of every finish that was carried out, by day: what the ledger must say.
    booked: HashMap<String, Usage>,
}

impl Faulty {
    pub fn new(inner: SqliteStore, sabotage: Option<Sabotage>) -> Self {
        Self { inner, state: Mutex::new(State { sabotage, ..State::default() }) }
    }

    /// The same data after a crash, without what was only in memory.
    pub fn reboot(&self) -> Self {
        let inner = self.inner.crash(None).expect("a store in memory can be crashed");
        let mut state = self.state();
        let (sabotage, requests) = (state.sabotage, state.requests);
        let booked = std::mem::take(&mut state.booked);
        Self { inner, state: Mutex::new(State { sabotage, requests, booked, ..State::default() }) }
    }

    /// One of the next requests will fail.
    pub fn plan(&self, after: u32, fault: Fault) {
        self.state().fault = Some((after, fault));
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    pub fn booked(&self) -> HashMap<String, Usage> {
        self.state().booked.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no user of it panics")
    }

    /// True once in so many requests, for a store that is sabotaged like this.
    fn strikes(&self, sabotage: Sabotage) -> bool {
        let state = self.state();
        state.sabotage == Some(sabotage) && state.requests.is_multiple_of(7)
    }

    fn write<T>(&self, ask: impl FnOnce(&SqliteStore) -> Pending<T>) -> Pending<T> {
        let fault = {
            let mut state = self.state();
            state.requests += 1;
            if state.dead {
                return Pending::ready(Err(Error::Closed));
            }
            match &mut state.fault {
                Some((0, fault)) => {
                    let fault = *fault;
                    state.fault = None;
                    state.dead = fault != Fault::Refused;
                    Some(fault)
                }
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        match fault {
            Some(Fault::Lost) => Pending::ready(Err(Error::Closed)),
            Some(Fault::Refused) => Pending::ready(Err(Error::Full { path: "memory".to_owned() })),
            Some(Fault::Unanswered) => {
                let _ = ask(&self.inner).wait();
                Pending::ready(Err(Error::Closed))
            }
            None => Pending::ready(ask(&self.inner).wait()),
        }
    }
}

impl Store for Faulty {
    fn recover(&self, request: RecoverRequest) -> Pending<Recovered> {
        self.write(|store| store.recover(request))
    }
    fn close(&self) -> Pending<()> {
        self.write(Store::close)
    }
    fn adopt(&self, schedules: Vec<Adopt>) -> Pending<()> {
        self.write(|store| store.adopt(schedules))
    }

    fn fire(&self, mut request: FireRequest) -> Pending<FireOutcome> {
        if self.strikes(Sabotage::ForgetsMissed) {
            request.evaluations.iter_mut().for_each(|evaluation| evaluation.missed.clear());
        }
        if self.strikes(Sabotage::ForgetsFires) {
            request.evaluations.iter_mut().for_each(|evaluation| evaluation.fires.clear());
        }
        if self.strikes(Sabotage::FiresTwice) {
            for evaluation in &mut request.evaluations {
                // A second later it is another identity: the store cannot know.
                let again: Vec<Fire> = evaluation
                    .fires
                    .iter()
                    .map(|fire| Fire {
                        nominal: fire.nominal + chrono::TimeDelta::seconds(1),
                        ..fire.clone()
                    })
                    .collect();
                evaluation.fires.extend(again);
                evaluation.fires.sort_by_key(|fire| fire.nominal);
            }
        }
        self.write(|store| store.fire(request))
    }

    fn pause_schedule(&self, pause: PauseSchedule) -> Pending<()> {
        self.write(|store| store.pause_schedule(pause))
    }
    fn resume_schedule(&self, resume: ResumeSchedule) -> Pending<()> {
        self.write(|store| store.resume_schedule(resume))
    }
    fn skip_next(&self, schedule: String, nominal: DateTime<Utc>) -> Pending<()> {
        self.write(|store| store.skip_next(schedule, nominal))
    }
    fn event(&self, event: NewEvent) -> Pending<()> {
        self.write(|store| store.event(event))
    }
    fn add(&self, mandate: NewMandate) -> Pending<Added> {
        self.write(|store| store.add(mandate))
    }
    fn claim(&self, request: ClaimRequest) -> Pending<ClaimOutcome> {
        self.write(|store| store.claim(request))
    }
    fn unstart(&self, mandate: String, cycle: u32, attempt: u32, reason: String) -> Pending<()> {
        self.write(|store| store.unstart(mandate, cycle, attempt, reason))
    }
    fn note_wait(&self, runner: String, reason: Option<String>) -> Pending<()> {
        self.write(|store| store.note_wait(runner, reason))
    }

    fn finish(&self, mut request: FinishRequest) -> Pending<Finished> {
        let (day, usage) = (request.day.clone(), request.claimed);
        if self.strikes(Sabotage::BooksTwice) {
            request.claimed = usage.plus(usage);
        }
        let booked = &self.state;
        self.write(|store| {
            let answer = store.finish(request).wait();
            if answer.is_ok() {
                let mut state = booked.lock().expect("no user of it panics");
                let total = state.booked.entry(day).or_default();
                *total = total.plus(usage);
            }
            Pending::ready(answer)
        })
    }

    fn command(&self, id: String, command: MandateCommand, now: DateTime<Utc>) -> Pending<Commanded> {
        self.write(|store| store.command(id, command, now))
    }
    fn begin_step(&self, step: BeginStep) -> Pending<BegunStep> {
        self.write(|store| store.begin_step(step))
    }
    fn settle_step(&self, step: SettleStep) -> Pending<()> {
        self.write(|store| store.settle_step(step))
    }
    fn note(&self, note: CycleNote) -> Pending<()> {
        self.write(|store| store.note(note))
    }

    reads_pass_to!(inner);
}
