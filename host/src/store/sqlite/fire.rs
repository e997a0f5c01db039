//! A fire: cursor, outcomes, mandates and queue of many schedules in one transaction, and the
//! start of cycles with it. The overlap is decided here, so that nothing has to be taken back.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::claim;
use super::fail::Res;
use super::ledger;
use super::queue::{self, Candidate, Placed};
use super::row::micros;
use super::schedules::{self, Known};
use super::txn::{About, Txn};
use crate::domain::ids;
use crate::domain::schedule::OnBudget;
use crate::store::{Evaluation, Fire, FireOutcome, FireRequest, MissedRun, Origin};

/// The runner of schedules that name none, where the configuration has not filled one in.
pub const DEFAULT_RUNNER: &str = "default";

/// Records evaluations, see [`crate::store::Store::fire`].
pub fn fire(txn: &mut Txn<'_>, request: &FireRequest) -> Res<FireOutcome> {
    let mut outcome = FireOutcome::default();
    let no_budget = ledger::blocked(txn.conn, request.gate.as_ref())?.is_some();
    for evaluation in &request.evaluations {
        evaluate(txn, evaluation, request.now, no_budget, &mut outcome)?;
    }
    if let Some(claim) = &request.claim {
        outcome.claim = claim::claim(txn, claim)?;
    }
    Ok(outcome)
}

fn evaluate(
    txn: &mut Txn<'_>,
    evaluation: &Evaluation,
    now: DateTime<Utc>,
    no_budget: bool,
    outcome: &mut FireOutcome,
) -> Res<()> {
    let name = &*evaluation.spec.name;
    let known = schedules::find(txn.conn, name)?;
    let Some(mut known) = known.filter(|known| {
        let same = micros(known.state.cursor) == micros(evaluation.expect_cursor);
        // A pause that came in between wins over an evaluation that did not know of it.
        same && known.state.pause.is_none()
    }) else {
        outcome.stale.push(name.to_owned());
        return Ok(());
    };
    // Outcomes are recorded in the order of their times, so that runs of equal outcome meet.
    let mut missed = evaluation.missed.iter().peekable();
    for fire in &evaluation.fires {
        while let Some(run) = missed.next_if(|run| run.from < fire.nominal) {
            schedules::missed(txn, &known, std::slice::from_ref(run), now)?;
        }
        if settled(txn, &known, fire.nominal)? {
            continue;
        }
        let dropped = if known.state.skip.contains(&fire.nominal) {
            Some("paused")
        } else if no_budget && evaluation.spec.policy.on_budget == OnBudget::Skip {
            Some("budget")
        } else {
            one(txn, evaluation, fire, &mut known, now, outcome)?
        };
        if let Some(reason) = dropped {
            let run = MissedRun { from: fire.nominal, to: fire.nominal, count: 1, reason };
            schedules::missed(txn, &known, &[run], now)?;
            outcome.dropped.push((name.to_owned(), fire.nominal, reason));
        }
    }
    for run in missed {
        schedules::missed(txn, &known, std::slice::from_ref(run), now)?;
    }
    known.state.cursor = evaluation.cursor;
    known.state.skip.retain(|at| *at > evaluation.cursor);
    schedules::save(txn, &known)
}

/// True when the occurrence has its outcome already: it fired before the clock was set back, or a
/// backfill ran ahead.
fn settled(txn: &Txn<'_>, known: &Known, nominal: DateTime<Utc>) -> Res<bool> {
    let found = txn.first(
        "SELECT 1 FROM occurrence WHERE schedule=?1 AND first=?2",
        (known.n, micros(nominal)),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Fires one occurrence; gives the reason if its overlap policy drops it.
fn one(
    txn: &mut Txn<'_>,
    evaluation: &Evaluation,
    fire: &Fire,
    known: &mut Known,
    now: DateTime<Utc>,
    outcome: &mut FireOutcome,
) -> Res<Option<&'static str>> {
    let spec = &evaluation.spec;
    let name = &*spec.name;
    let id = free_id(txn, fire.nominal, name)?;
    let candidate = Candidate {
        id: &id,
        origin: Origin::Schedule,
        request: None,
        schedule: Some(name),
        nominal: Some(fire.nominal),
        not_before: (fire.not_before > fire.nominal).then_some(fire.not_before),
        goal: &spec.goal,
        runner: spec.policy.runner.as_deref().unwrap_or(DEFAULT_RUNNER),
        scope: spec.policy.project_scope.as_deref(),
        overlap: spec.policy.concurrency,
        bounds: &spec.policy.bounds,
        now,
    };
    let n = match queue::enqueue(txn, &candidate, &mut outcome.cancel)? {
        Placed::Made(n) => n,
        Placed::Dropped(reason) => return Ok(Some(reason)),
    };
    txn.exec(
        "INSERT INTO occurrence(schedule, first, last, count, outcome, mandate, decided) \
         VALUES(?1, ?2, ?2, 1, 'fired', ?3, ?4)",
        (known.n, micros(fire.nominal), n, micros(now)),
    )?;
    known.state.last_nominal = Some(fire.nominal);
    known.state.last_fired = Some(now);
    let about = About { schedule: Some(name), mandate: Some(&id) };
    let details = json!({"nominal": fire.nominal, "catch_up": fire.catch_up});
    txn.event(now, "schedule_fired", about, details)?;
    outcome.fired.push((name.to_owned(), id, fire.nominal));
    Ok(None)
}

/// The id of an occurrence's mandate with the first ordinal that is free.
pub fn free_id(txn: &Txn<'_>, nominal: DateTime<Utc>, schedule: &str) -> Res<String> {
    let mut ordinal = 0;
    loop {
        let id = ids::scheduled(nominal, schedule, ordinal);
        let taken = txn.first("SELECT 1 FROM mandate WHERE id=?1", [&id], |_| Ok(()))?;
        if taken.is_none() {
            return Ok(id);
        }
        ordinal += 1;
    }
}
