//! The lines of a mandate's log that go with each of the store's transactions.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::fail::Res;
use super::ledger;
use super::row::Mandate;
use super::txn::Txn;
use crate::domain::canonical;
use crate::domain::mandate::CycleStatus;
use crate::domain::record::{self, Append, PHASES, PlanCommit, PlanFinalize, PlanOrigin, Transition};
use crate::store::{BeginStep, StepKind};

/// The plan of the record that is open.
#[must_use]
pub fn plan(mandate: &Mandate) -> String {
    record::plan_id(&mandate.id, mandate.cycle, mandate.epoch)
}

/// Opens a plan. A plan without phases is one step, which begins at once.
pub fn start(txn: &mut Txn<'_>, mandate: &mut Mandate, now: DateTime<Utc>) -> Res<()> {
    let origin = PlanOrigin {
        kind: mandate.origin.word(),
        schedule: mandate.schedule.as_deref(),
        nominal_at: mandate.nominal,
        created_at: mandate.created,
        goal: &mandate.goal,
        scope: mandate.scope.as_deref(),
        request_id: mandate.request.as_deref(),
        bounds: &mandate.bounds,
    };
    let commit = record::plan_commit(&PlanCommit {
        mandate: &mandate.id,
        cycle: mandate.cycle,
        attempt: mandate.epoch,
        phases: mandate.phases,
        runner: &mandate.runner,
        generation: mandate.generation.as_deref().unwrap_or_default(),
        origin,
        at: now,
    });
    let begin = (!mandate.phases).then(|| {
        let step = record::phase_step_id("cycle", mandate.cycle);
        record::transition(&plan(mandate), &step, &Transition::Executing { pre_hash: None }, now)
    });
    txn.lines(mandate, [Some(commit), begin].into_iter().flatten())
}

/// A phase begins; the one before it is done. Only the five of a plan have lines.
pub fn phase(
    txn: &mut Txn<'_>,
    mandate: &mut Mandate,
    before: Option<&str>,
    name: &str,
    now: DateTime<Utc>,
) -> Res<()> {
    let known = |name: &&str| mandate.phases && PHASES.contains(name);
    let plan = plan(mandate);
    let done = before.filter(known).map(|before| completed_phase(&plan, before, mandate.cycle, now));
    let begun = Some(name).filter(known).map(|name| {
        let step = record::phase_step_id(name, mandate.cycle);
        record::transition(&plan, &step, &Transition::Executing { pre_hash: None }, now)
    });
    txn.lines(mandate, done.into_iter().chain(begun))
}

fn completed_phase(plan: &str, name: &str, cycle: u32, now: DateTime<Utc>) -> serde_json::Map<String, Value> {
    // A phase has no result of its own; its hash is that of its name and plan.
    let hash = canonical::hash(&Value::from(format!("{plan}/{name}")));
    let done = Transition::Completed {
        post_hash: &hash,
        result_hash: &hash,
        recovered: false,
        evidence: None,
        usage: None,
    };
    record::transition(plan, &record::phase_step_id(name, cycle), &done, now)
}

/// An effect begins. `again` when its step has a line already.
pub fn begin(txn: &mut Txn<'_>, mandate: &mut Mandate, step: &BeginStep, again: bool) -> Res<()> {
    let plan = plan(mandate);
    let id = record::effect_step_id(step.kind.word(), step.cycle, step.seq);
    let hash_of = |key: &str| step.intent.get(key).and_then(Value::as_str);
    let pre_hash = hash_of("pre_hash");
    let append = (!again).then(|| {
        record::append(&Append {
            step_id: &id,
            plan_id: &plan,
            step: step.seq,
            kind: step.kind.word(),
            name: &step.name,
            phase: step.phase.as_deref(),
            idem_key: &step.key,
            params_hash: &step.params_hash,
            pre_hash,
            expected_post_hash: hash_of("post_hash"),
            repeatable: step.intent.get("repeatable").and_then(Value::as_bool).unwrap_or(false),
            reserved: step.reserve,
            day: step.gate.as_ref().map(|gate| gate.day.as_str()),
            at: step.now,
        })
    });
    let begun = record::transition(&plan, &id, &Transition::Executing { pre_hash }, step.now);
    txn.lines(mandate, append.into_iter().chain([begun]))
}

/// An effect turns into something else.
pub fn turn(
    txn: &mut Txn<'_>,
    mandate: &mut Mandate,
    kind: StepKind,
    seq: u32,
    to: &Transition<'_>,
    now: DateTime<Utc>,
) -> Res<()> {
    let id = record::effect_step_id(kind.word(), mandate.cycle, seq);
    let line = record::transition(&plan(mandate), &id, to, now);
    txn.lines(mandate, [line])
}

/// Closes the open plan: its last phase, then the plan. `mandate` has its new state already.
pub fn finalize(
    txn: &mut Txn<'_>,
    mandate: &mut Mandate,
    status: CycleStatus,
    (summary, error): (Option<&str>, Option<&str>),
    now: DateTime<Utc>,
) -> Res<()> {
    let plan = plan(mandate);
    let last = if mandate.phases {
        mandate.noted.last().filter(|name| PHASES.contains(&name.as_str())).cloned()
    } else {
        Some("cycle".to_owned())
    };
    let last = last.map(|name| match status {
        CycleStatus::Ok => completed_phase(&plan, &name, mandate.cycle, now),
        CycleStatus::Paused | CycleStatus::Interrupted | CycleStatus::RolledBack | CycleStatus::Error => {
            let failed = Transition::Failed {
                error_class: status.as_str(),
                error_msg: error.or(mandate.reason.as_deref()).unwrap_or_default(),
                usage: None,
            };
            record::transition(&plan, &record::phase_step_id(&name, mandate.cycle), &failed, now)
        }
    });
    let close = close(txn, mandate, status, (summary, error), now)?;
    txn.lines(mandate, last.into_iter().chain([close]))
}

/// Says where a mandate went whose last plan was closed before: it ended while it waited for its
/// next cycle. Without this its log would still have it wait.
pub fn restate(txn: &mut Txn<'_>, mandate: &mut Mandate, now: DateTime<Utc>) -> Res<()> {
    if mandate.seq == 0 || mandate.cycle == 0 {
        return Ok(());
    }
    let status = txn.first(
        "SELECT status FROM cycle WHERE mandate=?1 AND cycle=?2 AND attempt=?3",
        (mandate.n, mandate.cycle, mandate.attempt),
        |row| row.get::<_, Option<String>>(0),
    )?;
    let status = status.flatten().as_deref().and_then(CycleStatus::parse).unwrap_or(CycleStatus::Interrupted);
    let close = close(txn, mandate, status, (None, None), now)?;
    txn.lines(mandate, [close])
}

fn close(
    txn: &Txn<'_>,
    mandate: &Mandate,
    status: CycleStatus,
    (summary, error): (Option<&str>, Option<&str>),
    now: DateTime<Utc>,
) -> Res<serde_json::Map<String, Value>> {
    let plan = plan(mandate);
    let usage = ledger::of_cycle(txn.conn, mandate.n, mandate.cycle, mandate.epoch)?;
    let unmetered = ledger::unmetered(txn.conn, mandate.n, mandate.cycle, mandate.epoch)?;
    Ok(record::plan_finalize(&PlanFinalize {
        plan_id: &plan,
        mandate: &mandate.id,
        cycle: mandate.cycle,
        attempt: mandate.attempt,
        status,
        state: mandate.state,
        reason: mandate.reason.as_deref(),
        usage,
        unmetered: &unmetered,
        summary,
        error,
        at: now,
    }))
}
