//! The steps of a running cycle: intent and reservation before an effect, result and real usage
//! after it, and what is recorded without a commit of its own.

use chrono::{DateTime, Utc};
use kairos_plugin_api::Usage;
use serde_json::{Value, json};

use super::fail::{Fail, Res, conflict};
use super::finish::{does_run, running};
use super::ledger::{self, Account, Kind, Standing};
use super::lines;
use super::row::{Mandate, Record, micros, word};
use super::txn::Txn;
use crate::domain::canonical;
use crate::domain::mandate::MandateState;
use crate::domain::record::{self, Head, Transition};
use crate::store::{
    BeginStep, BegunStep, BudgetGate, CycleNote, Error, NoteKind, SettleStep, StepKind, StepState,
};

struct Recorded {
    n: i64,
    state: StepState,
    kind: StepKind,
    key: String,
    intent: Value,
    usage: Option<i64>,
    attempt: u32,
}

fn find(txn: &Txn<'_>, mandate: i64, cycle: u32, epoch: u32, seq: u32) -> Res<Option<Recorded>> {
    txn.first(
        "SELECT n, state, kind, key, intent, usage, attempt FROM step \
         WHERE mandate=?1 AND cycle=?2 AND epoch=?3 AND seq=?4",
        (mandate, cycle, epoch, seq),
        |row| {
            Ok(Recorded {
                n: row.get(0)?,
                state: word(row, 1)?,
                kind: word(row, 2)?,
                key: row.get(3)?,
                intent: super::row::json(row, 4)?,
                usage: row.get(5)?,
                attempt: row.get(6)?,
            })
        },
    )
}

/// Commits an intent, see [`crate::store::Store::begin_step`].
pub fn begin(txn: &mut Txn<'_>, step: &BeginStep) -> Res<BegunStep> {
    let mut mandate = recording(txn, &step.mandate, step.cycle, step.attempt)?;
    let known = find(txn, mandate.n, mandate.cycle, mandate.epoch, step.seq)?;
    match &known {
        Some(known) if known.state != StepState::Executing => {
            return conflict(format!("step {} of {} has its result already", step.seq, step.mandate));
        }
        Some(known) if known.key != step.key => {
            return conflict(format!("step {} of {} was another one before", step.seq, step.mandate));
        }
        _ => {}
    }
    if let Some(block) = ledger::refused(txn.conn, step.gate.as_ref(), step.reserve)? {
        return Ok(BegunStep::Exhausted(block));
    }
    if let Some(row) = known.as_ref().and_then(|known| known.usage) {
        give_up_one(txn, row)?;
    }
    let usage = reserve(txn, &mandate, step)?;
    let intent = step.intent.to_string();
    match &known {
        Some(known) => txn.exec(
            "UPDATE step SET attempt=?2, name=?3, phase=?4, intent=?5, usage=?6, started=?7 WHERE n=?1",
            (known.n, step.attempt, &step.name, &step.phase, intent, usage, micros(step.now)),
        )?,
        None => txn.exec(
            "INSERT INTO step(mandate, cycle, epoch, seq, attempt, kind, name, phase, state, key, params_hash, \
             intent, started, usage) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,'executing',?9,?10,?11,?12,?13)",
            (
                mandate.n,
                step.cycle,
                mandate.epoch,
                step.seq,
                step.attempt,
                step.kind.word(),
                &step.name,
                &step.phase,
                &step.key,
                &step.params_hash,
                intent,
                micros(step.now),
                usage,
            ),
        )?,
    };
    lines::begin(txn, &mut mandate, step, known.is_some())?;
    save_head(txn, &mandate)?;
    Ok(BegunStep::Begun)
}

/// The mandate, if that attempt is the one whose record is open: it runs, or waits for a decision
/// that is being carried out.
fn recording(txn: &Txn<'_>, id: &str, cycle: u32, attempt: u32) -> Res<Mandate> {
    let mandate = Mandate::load(txn.conn, id)?;
    let open = match mandate.state {
        MandateState::Running => true,
        MandateState::PausedApproval => mandate.record == Record::Continue,
        _ => false,
    };
    if open && (mandate.cycle, mandate.attempt) == (cycle, attempt) {
        return Ok(mandate);
    }
    running(txn, id, cycle, attempt)
}

fn reserve(txn: &Txn<'_>, mandate: &Mandate, step: &BeginStep) -> Res<Option<i64>> {
    // A call that reserves nothing can still turn out to cost something.
    if step.reserve.is_zero() && step.kind != StepKind::Llm {
        return Ok(None);
    }
    let day = day_of(step.gate.as_ref(), step.now);
    let account = Account::of_step(mandate.n, (step.cycle, step.attempt, step.seq), &day);
    ledger::book(txn, account, Kind::Call, Standing::Reserved, step.reserve, step.now).map(Some)
}

/// Where no budget is kept the ledger still counts, by days in UTC.
fn day_of(gate: Option<&BudgetGate>, now: DateTime<Utc>) -> String {
    gate.map_or_else(|| now.format("%Y-%m-%d").to_string(), |gate| gate.day.clone())
}

fn give_up_one(txn: &Txn<'_>, row: i64) -> Res<()> {
    let open = txn.first("SELECT 1 FROM usage WHERE n=?1 AND state='reserved'", [row], |_| Ok(()))?;
    if open.is_some() {
        ledger::settle(txn, row, None)?;
    }
    Ok(())
}

/// Only the head of the log moved.
fn save_head(txn: &Txn<'_>, mandate: &Mandate) -> Res<()> {
    txn.exec(
        "UPDATE mandate SET seq=?2, crc=?3 WHERE n=?1",
        (mandate.n, mandate.seq.cast_signed(), mandate.crc),
    )?;
    Ok(())
}

/// Records a result, see [`crate::store::Store::settle_step`].
pub fn settle(txn: &mut Txn<'_>, step: &SettleStep) -> Res<()> {
    let mut mandate = Mandate::load(txn.conn, &step.mandate)?;
    let current = mandate.cycle == step.cycle && step.attempt >= mandate.epoch;
    let epoch = if current { mandate.epoch } else { epoch_of(txn, &mandate, step.cycle, step.attempt)? };
    let Some(known) = find(txn, mandate.n, step.cycle, epoch, step.seq)? else {
        let name = format!("{}/{}/{}", step.mandate, step.cycle, step.seq);
        return Err(Fail::Store(Error::NotFound { kind: "step", name }));
    };
    // An earlier attempt's call that outlived it: what it cost is counted where it stands open. A
    // later attempt may settle what an earlier one began: that is a recovery's verdict.
    let straggles = !current || step.attempt < known.attempt;
    if straggles {
        return settle_straggler(txn, &mandate, step);
    }
    if known.state == StepState::Done {
        return conflict(format!("step {} of {} has its result already", step.seq, step.mandate));
    }
    let booked = book(txn, &mandate, &known, step)?;
    let usage = booked.as_ref().map(|(usage, day)| (*usage, day.as_str()));
    let result = step.result.to_string();
    let plan_is_open = mandate.ended.is_none();
    match step.state {
        StepState::Executing => {
            // The row of usage stands for itself from now on; the next begin makes another.
            txn.exec("UPDATE step SET usage=NULL WHERE n=?1", [known.n])?;
            if plan_is_open {
                lines::turn(txn, &mut mandate, known.kind, step.seq, &Transition::Pending, step.now)?;
            }
        }
        StepState::NeedsReview => {
            txn.exec("UPDATE step SET state='needs_review', result=?2 WHERE n=?1", (known.n, result))?;
            if plan_is_open {
                let reason = step.result.get("reason").and_then(Value::as_str).unwrap_or("unknown_outcome");
                let to = Transition::NeedsReview { reason, usage };
                lines::turn(txn, &mut mandate, known.kind, step.seq, &to, step.now)?;
            }
        }
        StepState::Done => {
            txn.exec(
                "UPDATE step SET state='done', result=?2, recovered=?3, ended=?4 WHERE n=?1",
                (known.n, result, step.recovered, micros(step.now)),
            )?;
            if plan_is_open {
                let result_hash = canonical::hash(&step.result);
                let post_hash = known.intent.get("post_hash").and_then(Value::as_str).unwrap_or(&result_hash);
                let to = Transition::Completed {
                    post_hash,
                    result_hash: &result_hash,
                    recovered: step.recovered,
                    evidence: step.recovered.then_some("world_matches_post_hash"),
                    usage,
                };
                lines::turn(txn, &mut mandate, known.kind, step.seq, &to, step.now)?;
            }
        }
    }
    save_head(txn, &mandate)
}

/// Its real usage takes the place of what was reserved. Gives what was booked, and on which day.
fn book(
    txn: &Txn<'_>,
    mandate: &Mandate,
    known: &Recorded,
    step: &SettleStep,
) -> Res<Option<(Usage, String)>> {
    match (known.usage, step.usage) {
        (Some(row), real) => ledger::settle(txn, row, real),
        (None, Some(real)) if !real.is_zero() => {
            let day = day_of(None, step.now);
            let account = Account::of_step(mandate.n, (step.cycle, step.attempt, step.seq), &day);
            let row = ledger::book(txn, account, Kind::Call, Standing::Settled, real, step.now)?;
            txn.exec("UPDATE step SET usage=?2 WHERE n=?1", (known.n, row))?;
            Ok(Some((real, day)))
        }
        (None, _) => Ok(None),
    }
}

fn epoch_of(txn: &Txn<'_>, mandate: &Mandate, cycle: u32, attempt: u32) -> Res<u32> {
    let sql = "SELECT epoch FROM cycle WHERE mandate=?1 AND cycle=?2 AND attempt=?3";
    Ok(txn.first(sql, (mandate.n, cycle, attempt), |row| row.get(0))?.unwrap_or(0))
}

/// The row of usage of that very attempt gets its real figure; the step is somebody else's by now.
fn settle_straggler(txn: &Txn<'_>, mandate: &Mandate, step: &SettleStep) -> Res<()> {
    let row = txn.first(
        "SELECT n FROM usage WHERE mandate=?1 AND cycle=?2 AND attempt=?3 AND seq=?4 AND state<>'settled' \
         ORDER BY n DESC LIMIT 1",
        (mandate.n, step.cycle, step.attempt, step.seq),
        |row| row.get::<_, i64>(0),
    )?;
    if let (Some(row), Some(real)) = (row, step.usage) {
        ledger::settle(txn, row, Some(real))?;
    }
    Ok(())
}

/// Records a note, see [`crate::store::Store::note`]. Notes come in crowds: none may cost more than
/// its own size, whatever the mandate and its record have grown to.
pub fn note(txn: &mut Txn<'_>, note: &CycleNote) -> Res<()> {
    let now = standing(txn, note)?;
    match &note.what {
        NoteKind::Phase(name) => {
            now.runs(note)?;
            let mut mandate = Mandate::load_number(txn.conn, now.n)?;
            // The broker hands in each name once and at most so many.
            if mandate.noted.contains(name) {
                return Ok(());
            }
            let before = mandate.noted.last().cloned();
            lines::phase(txn, &mut mandate, before.as_deref(), name, note.now)?;
            mandate.noted.push(name.clone());
            txn.exec(
                "UPDATE mandate SET noted=?2 WHERE n=?1",
                (mandate.n, serde_json::json!(mandate.noted).to_string()),
            )?;
            save_head(txn, &mandate)
        }
        NoteKind::Answer { seq, name, value } => {
            now.runs(note)?;
            answer(txn, &now, note, *seq, name, value)
        }
        NoteKind::Usage { delta, day, seq: Some(seq) } => {
            now.runs(note)?;
            answer(txn, &now, note, *seq, "usage", &json!(delta))?;
            book_delta(txn, now.n, note, *delta, day)?;
            let plan = record::plan_id(&note.mandate, note.cycle, now.epoch);
            let id = record::effect_step_id(StepKind::Answer.word(), note.cycle, *seq);
            let line = record::stated_usage(&plan, &id, *delta, day, note.now);
            let mut head = now.head;
            txn.seal(&note.mandate, now.n, &mut head, [line])?;
            txn.exec(
                "UPDATE mandate SET seq=?2, crc=?3 WHERE n=?1",
                (now.n, head.seq.cast_signed(), head.crc),
            )?;
            Ok(())
        }
        // Usage is usage, also of an attempt that has ended.
        NoteKind::Usage { delta, day, seq: None } => book_delta(txn, now.n, note, *delta, day),
    }
}

/// What a note needs of its mandate.
struct StandingNow {
    n: i64,
    state: MandateState,
    cycle: u32,
    attempt: u32,
    epoch: u32,
    head: Head,
}

fn standing(txn: &Txn<'_>, note: &CycleNote) -> Res<StandingNow> {
    let sql = "SELECT n, state, cycle, attempt, epoch, seq, crc FROM mandate WHERE id=?1";
    let found = txn.first(sql, [&note.mandate], |row| {
        Ok(StandingNow {
            n: row.get(0)?,
            state: word(row, 1)?,
            cycle: row.get(2)?,
            attempt: row.get(3)?,
            epoch: row.get(4)?,
            head: Head { seq: super::row::number(row, 5)?, crc: row.get(6)? },
        })
    })?;
    found.ok_or_else(|| Fail::Store(Error::NotFound { kind: "mandate", name: note.mandate.clone() }))
}

impl StandingNow {
    /// Refuses the note of an attempt that does not run any longer.
    fn runs(&self, note: &CycleNote) -> Res<()> {
        let at = (self.cycle, self.attempt);
        does_run(&note.mandate, self.state, at, (note.cycle, note.attempt))
    }
}

fn book_delta(txn: &Txn<'_>, mandate: i64, note: &CycleNote, delta: Usage, day: &str) -> Res<()> {
    let account = Account { mandate, cycle: note.cycle, attempt: note.attempt, seq: None, day };
    ledger::book_some(txn, account, Kind::Delta, delta, note.now)
}

/// An answer is a step that is finished when it is recorded. It has no line of its own, as it
/// changes nothing in the world, unless it states usage.
fn answer(
    txn: &Txn<'_>,
    now: &StandingNow,
    note: &CycleNote,
    seq: u32,
    name: &str,
    value: &Value,
) -> Res<()> {
    if find(txn, now.n, note.cycle, now.epoch, seq)?.is_some() {
        return conflict(format!("step {seq} of {} is recorded already", note.mandate));
    }
    txn.exec(
        "INSERT INTO step(mandate, cycle, epoch, seq, attempt, kind, name, state, key, params_hash, intent, \
         result, started, ended) VALUES(?1,?2,?3,?4,?5,'answer',?6,'done','','','null',?7,?8,?8)",
        (now.n, note.cycle, now.epoch, seq, note.attempt, name, value.to_string(), micros(note.now)),
    )?;
    Ok(())
}
