//! One look at the clock: pauses that end, schedules that are due, schedules whose turn it is to
//! catch up. What is decided is committed in chunks, each with as many starts as there are free
//! slots, and the table follows the commits.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::adopt::{floor, runs};
use super::pace::{STEP, Step};
use super::table::{Extra, Table};
use super::{Chronos, EARLIEST, State, time};
use crate::daemon::claims::Claims;
use crate::domain::missed::{self, Verdict, Window, identity};
use crate::store::{self, Evaluation, Fire, FireOutcome, FireRequest, NewEvent};

/// Most evaluations of one commit, so that no commit takes long.
const CHUNK: usize = 256;

/// What one tick did.
#[derive(Clone, Debug, Default)]
pub struct TickOutcome {
    /// Schedules that were looked at closely.
    pub evaluated: usize,
    /// New mandates: (schedule, mandate id, nominal time).
    pub fired: Vec<(String, String, DateTime<Utc>)>,
    /// Occurrences that the store dropped: (schedule, nominal time, reason).
    pub dropped: Vec<(String, DateTime<Utc>, &'static str)>,
    /// Occurrences that ended as missed without that, over all reasons.
    pub missed: u64,
    /// Cycles that were started in the same commits.
    pub started: usize,
    /// Schedules whose pause ended by itself.
    pub resumed: Vec<String>,
    /// True when some schedules wait for their turn to catch up.
    pub waiting: bool,
}

/// A decision that is to be committed.
struct Planned {
    index: u32,
    verdict: Verdict,
}

impl Chronos {
    /// Fires what is due at `now`. At most as many catch-up fires as the limit of a minute allows;
    /// the other late schedules keep their cursor and wait for their turn.
    ///
    /// # Errors
    /// The store's. What was not committed stays due.
    pub async fn tick(&self, now: DateTime<Utc>, claims: &dyn Claims) -> store::Result<TickOutcome> {
        self.tick_paced(now, claims, false).await
    }

    /// Like [`Chronos::tick`], but everything late catches up at once: for a run that is to end.
    ///
    /// # Errors
    /// The store's.
    pub async fn tick_unpaced(&self, now: DateTime<Utc>, claims: &dyn Claims) -> store::Result<TickOutcome> {
        self.tick_paced(now, claims, true).await
    }

    async fn tick_paced(
        &self,
        now: DateTime<Utc>,
        claims: &dyn Claims,
        all: bool,
    ) -> store::Result<TickOutcome> {
        let _turn = self.turn.lock().await;
        let mut outcome = TickOutcome::default();
        if now.timestamp() < EARLIEST {
            return Ok(outcome);
        }
        let done = self.tick_in_turn(now, claims, all, &mut outcome).await;
        let mut state = self.state();
        match done {
            Ok(()) => {
                state.pace.go_on();
                outcome.waiting = state.table.anyone_waits();
                Ok(outcome)
            }
            Err(error) => {
                state.pace.hold(self.seams.clock.monotonic());
                Err(error)
            }
        }
    }

    async fn tick_in_turn(
        &self,
        now: DateTime<Utc>,
        claims: &dyn Claims,
        all: bool,
        outcome: &mut TickOutcome,
    ) -> store::Result<()> {
        let deferred = self.state().deferred.take();
        if let Some(set) = deferred
            && let Err(error) = self.take_in(set.clone(), now).await
        {
            self.state().deferred = Some(set);
            return Err(error);
        }
        self.watch_clock(now).await?;
        self.end_pauses(now, outcome).await?;

        let on_time = {
            let mut state = self.state();
            // A tick that nobody waited for to its end may have left some behind.
            state.table.give_back();
            state.table.take_due(now.timestamp())
        };
        for chunk in on_time.chunks(CHUNK) {
            let planned = chunk.iter().map(|index| self.plan(*index, now, 0)).collect();
            self.commit_planned(planned, now, claims, outcome).await?;
        }
        loop {
            let planned = self.plan_catch_up(now, all);
            if planned.is_empty() {
                return Ok(());
            }
            self.commit_planned(planned, now, claims, outcome).await?;
        }
    }

    /// Decides about one schedule.
    fn plan(&self, index: u32, now: DateTime<Utc>, allowance: u32) -> Planned {
        let state = self.state();
        let table = &state.table;
        let (skip, settled) =
            table.extra(index).map_or((&[][..], &[][..]), |extra| (&extra.skip[..], &extra.settled[..]));
        let window = Window {
            cursor: table.cursor(index),
            now: now.timestamp(),
            skip,
            settled,
            identity: identity(&table.spec(index).name),
            allowance,
        };
        Planned { index, verdict: missed::decide(&table.rule(index), table.policy(index), &window) }
    }

    /// Decides about the schedules whose turn it is to catch up.
    fn plan_catch_up(&self, now: DateTime<Utc>, all: bool) -> Vec<Planned> {
        let monotonic = self.seams.clock.monotonic();
        let mut allowance = if all { u32::MAX } else { self.state().pace.allowance(monotonic) };
        let mut planned = Vec::new();
        while allowance > 0 && planned.len() < CHUNK {
            let Some(index) = self.state().table.take_waiting() else { break };
            let plan = self.plan(index, now, allowance);
            allowance -= plan.verdict.catch_ups();
            planned.push(plan);
        }
        planned
    }

    async fn commit_planned(
        &self,
        planned: Vec<Planned>,
        now: DateTime<Utc>,
        claims: &dyn Claims,
        outcome: &mut TickOutcome,
    ) -> store::Result<()> {
        outcome.evaluated += planned.len();
        let evaluations: Vec<Evaluation> = {
            let state = self.state();
            let recorded = planned.iter().filter(|plan| plan.verdict.records());
            recorded.map(|plan| evaluation(&state.table, plan)).collect()
        };
        let mut committed = FireOutcome::default();
        if !evaluations.is_empty() {
            committed = self.fire(evaluations, now, claims, outcome).await?;
        }
        // The store knows better about those: another cursor, or a pause that came in between.
        let mut again = Vec::new();
        for name in &committed.stale {
            again.push((name.clone(), self.seams.store.schedule(name)?));
        }
        let mut state = self.state();
        let State { table, pace, .. } = &mut *state;
        for Planned { index, verdict } in planned {
            let name = &table.spec(index).name;
            match again.iter().find(|(stale, _)| **stale == **name) {
                Some((_, known)) => read_again(table, index, known.as_ref()),
                None => {
                    outcome.missed += verdict.missed.iter().map(|run| run.count).sum::<u64>();
                    pace.took(verdict.catch_ups(), self.seams.clock.monotonic());
                    apply(table, index, &verdict, now);
                }
            }
        }
        table.settle_taken();
        Ok(())
    }

    /// Commits evaluations with a claim, and hands over what the commit started.
    async fn fire(
        &self,
        evaluations: Vec<Evaluation>,
        now: DateTime<Utc>,
        claims: &dyn Claims,
        outcome: &mut TickOutcome,
    ) -> store::Result<FireOutcome> {
        let (claim, permits) =
            claims.request(now).map_or((None, None), |(claim, permits)| (Some(claim), Some(permits)));
        let gate = claim.as_ref().map_or_else(|| claims.gate(now), |claim| claim.gate.clone());
        let mut committed = self.seams.store.fire(FireRequest { now, evaluations, claim, gate }).await?;
        if !committed.cancel.is_empty() {
            claims.cancel(std::mem::take(&mut committed.cancel));
        }
        outcome.started += committed.claim.claimed.len();
        match permits {
            Some(permits) => claims.started(std::mem::take(&mut committed.claim), permits),
            None if !committed.fired.is_empty() => claims.queued(),
            None => {}
        }
        for (schedule, mandate, nominal) in &committed.fired {
            tracing::debug!(%schedule, %mandate, %nominal, "schedule_fired");
        }
        for (schedule, nominal, reason) in &committed.dropped {
            tracing::info!(%schedule, %nominal, reason, "occurrence_dropped");
        }
        outcome.fired.append(&mut committed.fired);
        outcome.dropped.append(&mut committed.dropped);
        Ok(committed)
    }

    /// Deals with a wall clock that was set.
    async fn watch_clock(&self, now: DateTime<Utc>) -> store::Result<()> {
        let monotonic = self.seams.clock.monotonic();
        let step = self.state().watch.look(now, monotonic);
        match step {
            Step::None => {}
            Step::Forward(seconds) => self.clock_event("clock_stepped_forward", seconds, 0, now).await?,
            Step::Back(seconds) => {
                let behind = self.set_cursors_back(now).await?;
                if behind > 0 || seconds > STEP {
                    self.clock_event("clock_stepped_back", seconds, behind, now).await?;
                }
            }
        }
        self.state().watch.note(now, monotonic);
        Ok(())
    }

    /// Schedules whose cursor lies further ahead than a correction of the clock explains start
    /// again from now; what fired already does not fire again. Those that are less ahead wait.
    async fn set_cursors_back(&self, now: DateTime<Utc>) -> store::Result<usize> {
        let ahead: Vec<(u32, String)> = {
            let state = self.state();
            let far = |index: &u32| state.table.cursor(*index) > now.timestamp() + STEP;
            let named = |index| (index, state.table.spec(index).name.to_string());
            state.table.indexes().filter(far).map(named).collect()
        };
        for (index, name) in &ahead {
            let Some(known) = self.seams.store.schedule(name)? else { continue };
            let back = {
                let state = self.state();
                self.set_back(Some(state.table.rule(*index)), &known, now)?
            };
            self.seams.store.adopt(vec![back.adopt]).await?;
            let mut state = self.state();
            state.table.change_extra(*index, |extra| extra.settled = back.settled);
            state.table.place(*index, now.timestamp());
        }
        Ok(ahead.len())
    }

    pub(super) async fn clock_event(
        &self,
        kind: &'static str,
        seconds: i64,
        schedules: usize,
        now: DateTime<Utc>,
    ) -> store::Result<()> {
        tracing::warn!(seconds, schedules, "{kind}");
        let details = json!({"seconds": seconds, "schedules": schedules});
        self.seams.store.event(NewEvent { at: now, kind, schedule: None, mandate: None, details }).await
    }
}

fn evaluation(table: &Table, plan: &Planned) -> Evaluation {
    let Planned { index, verdict } = plan;
    let fires = verdict.fires.iter().map(|fire| Fire {
        nominal: time(fire.nominal),
        not_before: time(fire.nominal) + fire.delay,
        catch_up: fire.catch_up,
    });
    Evaluation {
        spec: table.spec(*index).clone(),
        expect_cursor: time(table.cursor(*index)),
        cursor: time(verdict.cursor),
        fires: fires.collect(),
        missed: runs(verdict.missed.clone()),
    }
}

/// Moves a schedule on after its commit.
fn apply(table: &mut Table, index: u32, verdict: &Verdict, now: DateTime<Utc>) {
    if !verdict.records() && !verdict.waiting {
        // Only settled times lay in the window: the store's cursor has not moved, so ours must not.
        let next = table.next(index, now.timestamp());
        table.set_due(index, next);
        return;
    }
    if table.extra(index).is_some() {
        let passed = |at: &i64| *at > verdict.cursor;
        table.change_extra(index, |extra| {
            extra.skip.retain(passed);
            extra.settled.retain(passed);
        });
    }
    table.place(index, verdict.cursor);
    if verdict.waiting {
        table.wait(index);
    }
}

/// Takes a schedule's state from the store.
pub(super) fn read_again(table: &mut Table, index: u32, known: Option<&store::ScheduleState>) {
    let Some(known) = known else {
        table.set_due(index, super::table::NEVER);
        return;
    };
    let skip: Vec<i64> = known.skip.iter().map(|at| floor(*at).timestamp()).collect();
    table.change_extra(index, |extra| {
        *extra = Extra { pause: known.pause.clone(), skip, settled: std::mem::take(&mut extra.settled) };
    });
    table.place(index, known.cursor.timestamp());
}
