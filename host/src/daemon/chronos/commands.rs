//! Commands on schedules. Each takes its turn with the ticks, commits, and then lets the table
//! follow. None of them costs more for having been away long.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::adopt::{BY_CONFIG, floor, runs};
use super::tick::{TickOutcome, read_again};
use super::{Chronos, time};
use crate::daemon::mailbox::Backfilled;
use crate::domain::ids;
use crate::domain::missed::{all_missed, reason};
use crate::domain::schedule::Overlap;
use crate::store::{self, Added, Error, NewMandate, Origin, Pause, PauseSchedule, ResumeSchedule};

/// A schedule that is to run now, beside its rule.
#[derive(Clone, Debug, Default)]
pub struct Trigger {
    /// The client's own id for this request: asking twice makes one mandate.
    pub request_id: Option<String>,
    /// In place of the schedule's overlap policy.
    pub overlap: Option<Overlap>,
    /// Laid over the schedule's parameters.
    pub params: Map<String, Value>,
}

impl Chronos {
    /// Holds a schedule back. Its occurrences are recorded as `paused` when it goes on.
    ///
    /// # Errors
    /// Unknown or disabled schedule, an end that is past, or the store's.
    pub async fn pause(
        &self,
        name: &str,
        until: Option<DateTime<Utc>>,
        note: Option<String>,
        by: &str,
    ) -> store::Result<()> {
        let _turn = self.turn.lock().await;
        let now = self.now();
        let index = self.index(name)?;
        self.refuse_disabled(index, name)?;
        if until.is_some_and(|until| until <= now) {
            return Err(Error::Invalid("the pause would end in the past".to_owned()));
        }
        let pause = Pause { since: now, until, note, by: by.to_owned() };
        let request = PauseSchedule { name: name.to_owned(), pause: pause.clone() };
        self.seams.store.pause_schedule(request).await?;
        let mut state = self.state();
        state.table.change_extra(index, |extra| extra.pause = Some(pause));
        state.table.rearm(index);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Lets a schedule go on from now. What it missed is recorded as `paused`; with `backfill` each
    /// occurrence of the pause gets a mandate after all.
    ///
    /// # Errors
    /// Unknown or disabled schedule, one that is not paused, or the store's.
    pub async fn resume(&self, name: &str, backfill: bool) -> store::Result<Backfilled> {
        let turn = self.turn.lock().await;
        let now = self.now();
        let index = self.index(name)?;
        self.refuse_disabled(index, name)?;
        if !self.is_paused(index) {
            // The store may know of a pause that nobody told us about.
            let known = self.seams.store.schedule(name)?;
            read_again(&mut self.state().table, index, known.as_ref());
            if !self.is_paused(index) {
                return Err(Error::Conflict(format!("schedule {name:?} is not paused")));
            }
        }
        let from = time(self.state().table.cursor(index));
        self.end_pause(index, now).await?;
        drop(turn);
        self.wake.notify_one();
        if !backfill {
            return Ok(Backfilled::default());
        }
        self.backfill(name, from, floor(now), false, None).await
    }

    /// Leaves the next occurrence out, and tells which one that is.
    ///
    /// # Errors
    /// Unknown schedule, one without a next occurrence, or the store's.
    pub async fn skip_next(&self, name: &str) -> store::Result<DateTime<Utc>> {
        let _turn = self.turn.lock().await;
        let index = self.index(name)?;
        let now = self.now().timestamp();
        let nominal = {
            let state = self.state();
            let none = Vec::new();
            let skipped = state.table.extra(index).map_or(&none, |extra| &extra.skip);
            let mut at = state.table.next(index, now.max(state.table.cursor(index)));
            while skipped.contains(&at) {
                at = state.table.next(index, at);
            }
            super::time_of(at)
        };
        let nominal =
            nominal.ok_or_else(|| Error::Conflict(format!("schedule {name:?} has no next occurrence")))?;
        self.seams.store.skip_next(name.to_owned(), nominal).await?;
        self.state().table.change_extra(index, |extra| extra.skip.push(nominal.timestamp()));
        Ok(nominal)
    }

    /// Makes a mandate of a schedule now. Allowed while it is paused; moves no cursor.
    ///
    /// # Errors
    /// Unknown schedule, a refusal of its overlap policy, or the store's.
    pub async fn trigger(&self, name: &str, trigger: Trigger) -> store::Result<Added> {
        let _turn = self.turn.lock().await;
        let now = self.now();
        let mut chance = [0; 4];
        self.seams.entropy.fill(&mut chance);
        let mut mandate = self.mandate_of(name, Origin::Manual, now)?;
        mandate.id = ids::manual(now, chance);
        mandate.request_id = trigger.request_id;
        mandate.nominal = Some(now);
        mandate.bounds.params.extend(trigger.params);
        if let Some(overlap) = trigger.overlap {
            mandate.overlap = overlap;
        }
        self.seams.store.add(mandate).await
    }

    /// Takes a schedule's state from the store again: something else changed it, such as a pause
    /// after failures. An unknown name is no error.
    ///
    /// # Errors
    /// The store's.
    pub async fn refresh(&self, name: &str) -> store::Result<()> {
        let _turn = self.turn.lock().await;
        let Ok(index) = self.index(name) else { return Ok(()) };
        let known = self.seams.store.schedule(name)?;
        read_again(&mut self.state().table, index, known.as_ref());
        self.wake.notify_one();
        Ok(())
    }

    /// Ends the pauses whose time has come. Occurrences after the end of a pause are ordinary ones.
    pub(super) async fn end_pauses(
        &self,
        now: DateTime<Utc>,
        outcome: &mut TickOutcome,
    ) -> store::Result<()> {
        loop {
            let first = self.state().table.first_resume();
            let Some((until, index)) = first.filter(|(until, _)| *until <= now.timestamp()) else {
                return Ok(());
            };
            self.end_pause(index, time(until)).await?;
            outcome.resumed.push(self.state().table.spec(index).name.to_string());
        }
    }

    async fn end_pause(&self, index: u32, at: DateTime<Utc>) -> store::Result<()> {
        let (request, cursor) = {
            let state = self.state();
            let table = &state.table;
            let settled = table.extra(index).map_or(&[][..], |extra| &extra.settled);
            let from = table.cursor(index);
            let cursor = from.max(at.timestamp());
            let missed = runs(all_missed(&table.rule(index), from, cursor, settled, reason::PAUSED));
            let name = table.spec(index).name.to_string();
            (ResumeSchedule { name, cursor: time(cursor), missed }, cursor)
        };
        self.seams.store.resume_schedule(request).await?;
        let mut state = self.state();
        state.table.change_extra(index, |extra| {
            extra.pause = None;
            extra.skip.retain(|at| *at > cursor);
            extra.settled.retain(|at| *at > cursor);
        });
        state.table.place(index, cursor);
        Ok(())
    }

    /// A mandate of a schedule that no rule fired, still without an id.
    pub(super) fn mandate_of(
        &self,
        name: &str,
        origin: Origin,
        now: DateTime<Utc>,
    ) -> store::Result<NewMandate> {
        let index = self.index(name)?;
        let state = self.state();
        let spec = state.table.spec(index);
        let policy = &spec.policy;
        let runner = policy.runner.clone().ok_or_else(|| {
            Error::Invalid(format!("schedule {name:?} names no runner and there is no default one"))
        })?;
        Ok(NewMandate {
            id: String::new(),
            origin,
            request_id: None,
            schedule: Some(name.to_owned()),
            nominal: None,
            goal: spec.goal.to_string(),
            runner,
            scope: policy.project_scope.clone(),
            overlap: policy.concurrency,
            bounds: policy.bounds.clone(),
            again: false,
            now,
        })
    }

    pub(super) fn index(&self, name: &str) -> store::Result<u32> {
        let found = self.state().table.find(name);
        found.ok_or_else(|| Error::NotFound { kind: "schedule", name: name.to_owned() })
    }

    fn is_paused(&self, index: u32) -> bool {
        self.state().table.extra(index).is_some_and(|extra| extra.pause.is_some())
    }

    fn refuse_disabled(&self, index: u32, name: &str) -> store::Result<()> {
        let state = self.state();
        let pause = state.table.extra(index).and_then(|extra| extra.pause.as_ref());
        if pause.is_some_and(|pause| pause.by == BY_CONFIG) {
            return Err(Error::Conflict(format!(
                "schedule {name:?} is disabled in the configuration; set `enabled: true` there"
            )));
        }
        Ok(())
    }
}
