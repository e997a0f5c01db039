//! The end of a cycle: usage, state, what follows for the mandate and its schedule, and the start
//! of the next cycles, in one transaction.

use serde_json::json;

use super::fail::{Res, conflict};
use super::ledger::{self, Account, Kind};
use super::row::{Mandate, Record, micros, time};
use super::schedules;
use super::txn::{About, Txn};
use super::{claim, lines, queue, recent};
use crate::domain::mandate::{
    AfterCycle, CycleEnd, CycleStatus, MandateEvent, MandateState, ROLLED_BACK_AFTER_ACT, RUNNER_DEATH,
    after_cycle,
};
use crate::store::{FinishRequest, Finished};

/// Ends a cycle, see [`crate::store::Store::finish`].
pub fn finish(txn: &mut Txn<'_>, request: &FinishRequest) -> Res<Finished> {
    let mut mandate = running(txn, &request.mandate, request.cycle, request.attempt)?;
    // Whoever made these calls is gone; a straggler that settles later still corrects the figure.
    ledger::give_up(txn, Some(mandate.n))?;
    let account = Account {
        mandate: mandate.n,
        cycle: request.cycle,
        attempt: request.attempt,
        seq: None,
        day: &request.day,
    };
    ledger::book_some(txn, account, Kind::Claim, request.claimed, request.now)?;

    let end = end_of(&mandate, request.end);
    // What has landed must not land again: a person looks at it before anything is done afresh.
    let acted = end == CycleEnd::RolledBack && has_acted(txn, &mandate)?;
    let bounds = &mandate.bounds;
    let after = if acted {
        AfterCycle::Review
    } else {
        after_cycle(end, mandate.cycle, bounds.max_cycles, mandate.errors, mandate.deaths)
    };
    // A death is no answer of the runner: it neither counts as a failure nor makes up for one. What
    // a version on trial failed is its own fault, not that of the work.
    (mandate.errors, mandate.deaths) = match end {
        CycleEnd::Died => (mandate.errors, mandate.deaths + RUNNER_DEATH),
        CycleEnd::RolledBack => (mandate.errors, mandate.deaths),
        CycleEnd::Error => (mandate.errors + 1, 0),
        _ => (0, 0),
    };
    recent::keep(txn, &mandate, request, end)?;
    mandate.state = mandate.state.next(MandateEvent::CycleEnded(after))?;
    let stopped = (end == CycleEnd::Cancelled).then(|| mandate.reason.take()).flatten();
    let acted = acted.then(|| ROLLED_BACK_AFTER_ACT.to_owned());
    mandate.reason = stopped
        .or(acted)
        .or_else(|| request.reason.clone())
        .or_else(|| after.reason().map(ToOwned::to_owned));
    end_cycle(txn, &mandate, request, end)?;
    let auto_paused = follow(txn, &mut mandate, request, end, after)?;
    mandate.save(txn.conn)?;

    let usage = ledger::of_cycle(txn.conn, mandate.n, mandate.cycle, 0)?;
    let claim = match &request.claim {
        Some(claim) => claim::claim(txn, claim)?,
        None => crate::store::ClaimOutcome::default(),
    };
    Ok(Finished { state: mandate.state, reason: mandate.reason, usage, auto_paused, claim })
}

/// The mandate, if that attempt of that cycle is the one that runs. Anything else is a straggler
/// whose work belongs to somebody else by now.
pub fn running(txn: &Txn<'_>, id: &str, cycle: u32, attempt: u32) -> Res<Mandate> {
    let mandate = Mandate::load(txn.conn, id)?;
    does_run(id, mandate.state, (mandate.cycle, mandate.attempt), (cycle, attempt))?;
    Ok(mandate)
}

/// Refuses what comes from another cycle and attempt than the one `at` which the mandate runs.
pub fn does_run(id: &str, state: MandateState, at: (u32, u32), (cycle, attempt): (u32, u32)) -> Res<()> {
    if state != MandateState::Running || at != (cycle, attempt) {
        return conflict(format!(
            "cycle {cycle}, attempt {attempt} of mandate {id} does not run: it is {state} at cycle {}, attempt {}",
            at.0, at.1
        ));
    }
    Ok(())
}

/// Somebody asked this mandate to stop: whatever its cycle wants next, it ends. Work that was done
/// stays done, and a doubt stays a doubt.
fn end_of(mandate: &Mandate, end: CycleEnd) -> CycleEnd {
    match end {
        CycleEnd::Done | CycleEnd::Review => end,
        _ if mandate.stop => CycleEnd::Cancelled,
        _ => end,
    }
}

/// True when a tool of this record changed something, or nobody can tell that it did not. Reads may
/// be repeated, and a tool that says it could not has not.
pub fn has_acted(txn: &Txn<'_>, mandate: &Mandate) -> Res<bool> {
    let found = txn.first(
        "SELECT 1 FROM step WHERE mandate=?1 AND cycle=?2 AND epoch=?3 AND kind IN ('tool', 'propose') \
         AND NOT (json_extract(intent, '$.repeatable') IS 1 AND json_extract(intent, '$.post_hash') IS NULL) \
         AND NOT (state='done' AND coalesce(json_extract(result, '$.ok.ok'), 0)=0) LIMIT 1",
        (mandate.n, mandate.cycle, mandate.epoch),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

fn end_cycle(txn: &Txn<'_>, mandate: &Mandate, request: &FinishRequest, end: CycleEnd) -> Res<()> {
    let status = end.status();
    let summary = request.report.as_ref().and_then(|report| report.summary.as_deref());
    txn.exec(
        "UPDATE cycle SET status=?4, ended=?5, summary=?6, error=?7 WHERE mandate=?1 AND cycle=?2 AND attempt=?3",
        (
            mandate.n,
            mandate.cycle,
            mandate.attempt,
            status.as_str(),
            micros(request.now),
            summary,
            &request.error,
        ),
    )?;
    let about = About { schedule: mandate.schedule.as_deref(), mandate: Some(&mandate.id) };
    let details = json!({"cycle": mandate.cycle, "attempt": mandate.attempt, "status": status,
        "state": mandate.state, "reason": mandate.reason, "error": request.error});
    txn.event(request.now, "cycle_finished", about, details)?;
    if end == CycleEnd::Died {
        let details = json!({"runner": mandate.runner, "generation": mandate.generation,
            "cycle": mandate.cycle, "attempt": mandate.attempt, "error": request.error});
        txn.event(request.now, "runner_died", about, details)?;
    }
    Ok(())
}

/// Closes the plan if the cycle is over, and puts the mandate where it belongs. Gives the schedule
/// that its failure paused.
fn follow(
    txn: &mut Txn<'_>,
    mandate: &mut Mandate,
    request: &FinishRequest,
    end: CycleEnd,
    after: AfterCycle,
) -> Res<Option<String>> {
    let goes_on = matches!(
        after,
        AfterCycle::SameCycle
            | AfterCycle::SameCycleAfterDeath
            | AfterCycle::PauseBudget
            | AfterCycle::PauseApproval
            | AfterCycle::Review
            | AfterCycle::CrashLoop
    );
    if !goes_on {
        let summary = request.report.as_ref().and_then(|report| report.summary.as_deref());
        lines::finalize(txn, mandate, end.status(), (summary, request.error.as_deref()), request.now)?;
    }
    if matches!(end, CycleEnd::Done | CycleEnd::More | CycleEnd::Checkpoint) {
        put_state(txn, mandate, request)?;
    }
    mandate.record = match after {
        AfterCycle::RetryCycle | AfterCycle::RunAgain => Record::Afresh,
        _ if goes_on => Record::Continue,
        _ => Record::Next,
    };
    match after {
        AfterCycle::Succeed | AfterCycle::SucceedAtCap | AfterCycle::Fail | AfterCycle::Cancel => {
            queue::ended(txn, mandate, request.now)?;
            return schedules::pause_if_failing(txn, mandate, request.pause_after_failures, request.now);
        }
        AfterCycle::NextCycle | AfterCycle::RetryCycle => mandate.place = Some(queue::back(txn)?),
        // It had its turn already.
        AfterCycle::SameCycle | AfterCycle::SameCycleAfterDeath | AfterCycle::RunAgain => {
            mandate.place = Some(queue::front(txn)?);
        }
        AfterCycle::PauseBudget => mandate.parked = Some(request.day.clone()),
        AfterCycle::PauseCheckpoint
        | AfterCycle::PauseApproval
        | AfterCycle::Review
        | AfterCycle::CrashLoop => {}
    }
    Ok(None)
}

/// The runner's state changes become the next version. Former versions stay while a cycle that
/// started from them may have to see them again.
fn put_state(txn: &Txn<'_>, mandate: &Mandate, request: &FinishRequest) -> Res<()> {
    if request.state_puts.is_empty() {
        return Ok(());
    }
    let owner = mandate.owner();
    let last = txn
        .first("SELECT max(since) FROM state WHERE owner=?1", [&owner], |row| row.get::<_, Option<i64>>(0))?
        .flatten()
        .unwrap_or(0);
    let version = last + 1;
    for (key, value) in &request.state_puts {
        txn.exec(
            "UPDATE state SET until=?3 WHERE owner=?1 AND key=?2 AND until IS NULL",
            (&owner, key, version),
        )?;
        txn.exec(
            "INSERT INTO state(owner, key, since, value) VALUES(?1, ?2, ?3, ?4)",
            (&owner, key, version, value.to_string()),
        )?;
    }
    let looked_at = txn.first(
        "SELECT 1 FROM mandate WHERE schedule=?1 AND ended IS NULL AND record=1 AND n<>?2 LIMIT 1",
        (&mandate.schedule, mandate.n),
        |_| Ok(()),
    )?;
    if looked_at.is_none() {
        txn.exec("DELETE FROM state WHERE owner=?1 AND until IS NOT NULL", [&owner])?;
    }
    Ok(())
}

/// Gives a claimed cycle back, see [`crate::store::Store::unstart`].
pub fn unstart(txn: &mut Txn<'_>, id: &str, cycle: u32, attempt: u32, reason: String) -> Res<()> {
    let mut mandate = running(txn, id, cycle, attempt)?;
    let started = txn.first(
        "SELECT started FROM cycle WHERE mandate=?1 AND cycle=?2 AND attempt=?3",
        (mandate.n, mandate.cycle, mandate.attempt),
        |row| time(row, 0),
    )?;
    txn.exec(
        "DELETE FROM cycle WHERE mandate=?1 AND cycle=?2 AND attempt=?3",
        (mandate.n, mandate.cycle, mandate.attempt),
    )?;
    let at = started.unwrap_or(mandate.created);
    let stopped = mandate.stop.then(|| mandate.reason.take().unwrap_or_else(|| "stopped".to_owned()));
    // As if an interruption: back to the front of the line.
    mandate.state = mandate.state.next(MandateEvent::CycleEnded(AfterCycle::SameCycle))?;
    mandate.place = Some(queue::front(txn)?);
    mandate.reason = Some(reason);
    if mandate.attempt == mandate.epoch {
        // Its record was empty. The plan's line stays in the log and is closed; the next start
        // commits the plan again.
        lines::finalize(txn, &mut mandate, CycleStatus::Interrupted, (None, None), at)?;
        if mandate.attempt == 1 {
            mandate.cycle -= 1;
            mandate.record = Record::Next;
        } else {
            mandate.record = Record::Afresh;
        }
    }
    mandate.attempt -= 1;
    if let Some(why) = stopped {
        queue::end(txn, &mut mandate, MandateEvent::Cancel, Some(&why), at)?;
    }
    mandate.save(txn.conn)
}
