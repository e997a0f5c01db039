//! A store that refuses operations by name, as one on a full or dying disk does.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use kairos_host::store::*;

use super::reads::reads_pass_to;

/// The real store behind a veil.
pub struct Veil {
    inner: SqliteStore,
    refuses: Mutex<HashMap<&'static str, Error>>,
}

impl Veil {
    pub fn new(inner: SqliteStore) -> Self {
        Self { inner, refuses: Mutex::default() }
    }

    /// From now on `operation` is answered so.
    pub fn refuse(&self, operation: &'static str, error: Error) {
        self.refuses.lock().unwrap_or_else(PoisonError::into_inner).insert(operation, error);
    }

    /// From now on everything is let through.
    pub fn lift(&self) {
        self.refuses.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn refused(&self, operation: &str) -> Option<Error> {
        self.refuses.lock().unwrap_or_else(PoisonError::into_inner).get(operation).cloned()
    }
}

/// What a full disk says.
pub fn full() -> Error {
    Error::Full { path: "store.db".into() }
}

impl Store for Veil {
    fn recover(&self, request: RecoverRequest) -> Pending<Recovered> {
        self.inner.recover(request)
    }
    fn close(&self) -> Pending<()> {
        self.inner.close()
    }
    fn adopt(&self, schedules: Vec<Adopt>) -> Pending<()> {
        self.refused("adopt").map_or_else(|| self.inner.adopt(schedules), |error| Pending::ready(Err(error)))
    }
    fn fire(&self, request: FireRequest) -> Pending<FireOutcome> {
        self.refused("fire").map_or_else(|| self.inner.fire(request), |error| Pending::ready(Err(error)))
    }
    fn pause_schedule(&self, pause: PauseSchedule) -> Pending<()> {
        self.refused("pause_schedule")
            .map_or_else(|| self.inner.pause_schedule(pause), |error| Pending::ready(Err(error)))
    }
    fn resume_schedule(&self, resume: ResumeSchedule) -> Pending<()> {
        self.refused("resume_schedule")
            .map_or_else(|| self.inner.resume_schedule(resume), |error| Pending::ready(Err(error)))
    }
    fn skip_next(&self, schedule: String, nominal: DateTime<Utc>) -> Pending<()> {
        self.refused("skip_next")
            .map_or_else(|| self.inner.skip_next(schedule, nominal), |error| Pending::ready(Err(error)))
    }
    fn event(&self, event: NewEvent) -> Pending<()> {
        self.refused("event").map_or_else(|| self.inner.event(event), |error| Pending::ready(Err(error)))
    }
    fn add(&self, mandate: NewMandate) -> Pending<Added> {
        self.refused("add").map_or_else(|| self.inner.add(mandate), |error| Pending::ready(Err(error)))
    }
    fn claim(&self, request: ClaimRequest) -> Pending<ClaimOutcome> {
        self.refused("claim").map_or_else(|| self.inner.claim(request), |error| Pending::ready(Err(error)))
    }
    fn unstart(&self, mandate: String, cycle: u32, attempt: u32, reason: String) -> Pending<()> {
        self.refused("unstart").map_or_else(
            || self.inner.unstart(mandate, cycle, attempt, reason),
            |error| Pending::ready(Err(error)),
        )
    }
    fn note_wait(&self, runner: String, reason: Option<String>) -> Pending<()> {
        self.refused("note_wait")
            .map_or_else(|| self.inner.note_wait(runner, reason), |error| Pending::ready(Err(error)))
    }
    fn finish(&self, request: FinishRequest) -> Pending<Finished> {
        self.refused("finish").map_or_else(|| self.inner.finish(request), |error| Pending::ready(Err(error)))
    }
    fn command(&self, id: String, command: MandateCommand, now: DateTime<Utc>) -> Pending<Commanded> {
        self.refused("command")
            .map_or_else(|| self.inner.command(id, command, now), |error| Pending::ready(Err(error)))
    }
    fn begin_step(&self, step: BeginStep) -> Pending<BegunStep> {
        self.refused("begin_step")
            .map_or_else(|| self.inner.begin_step(step), |error| Pending::ready(Err(error)))
    }
    fn settle_step(&self, step: SettleStep) -> Pending<()> {
        self.refused("settle_step")
            .map_or_else(|| self.inner.settle_step(step), |error| Pending::ready(Err(error)))
    }
    fn note(&self, note: CycleNote) -> Pending<()> {
        self.refused("note").map_or_else(|| self.inner.note(note), |error| Pending::ready(Err(error)))
    }
    reads_pass_to!(inner);
}
