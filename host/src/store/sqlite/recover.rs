//! Boot is recovery. What it looks at are the open mandates and the open reservations, both found
//! through partial indexes, never the history. It may be cut short anywhere and run again.

use chrono::{DateTime, Utc};
use rusqlite::Connection;
use serde_json::json;

use super::fail::{Res, conflict};
use super::row::{Mandate, Record, micros};
use super::txn::{About, Txn, all};
use super::{claim, finish, ledger, lines, queue};
use crate::domain::mandate::{
    BOOT_DEATH, CRASH_LOOP, CycleStatus, MandateEvent, MandateState, ROLLED_BACK_AFTER_ACT,
};
use crate::store::{ClaimedCycle, RecoverRequest, Recovered};

/// Finds the running mandates; must go through the index of open ones.
pub const RUNNING: &str = "SELECT n FROM mandate WHERE state='running' AND ended IS NULL ORDER BY n";

/// Finds what a version has brought to the crash limit; must go through the same index.
pub const CRASH_LOOPED: &str = "SELECT m.id FROM mandate m INDEXED BY mandate_open \
     JOIN cycle c ON c.mandate=m.n AND c.cycle=m.cycle AND c.attempt=m.attempt \
     WHERE m.state='review' AND m.ended IS NULL AND m.reason='crash_loop' AND m.runner=?1 AND c.generation=?2 \
     AND c.started>=?3 ORDER BY m.n";

/// The reason of a mandate that is in review since whatever ran it died too often.
const LOOPED: &str = "crash_loop";

/// See [`crate::store::Store::recover`].
pub fn recover(txn: &mut Txn<'_>, request: &RecoverRequest, unclean: bool) -> Res<Recovered> {
    let unknown_calls = ledger::give_up(txn, None)?;
    let mut recovered = Recovered { unclean, unknown_calls, ..Recovered::default() };
    for n in txn.all(RUNNING, [], |row| row.get::<_, i64>(0))? {
        let mut mandate = Mandate::load_number(txn.conn, n)?;
        if unclean {
            mandate.deaths += BOOT_DEATH;
        }
        txn.exec(
            "UPDATE cycle SET status=?4, ended=?5 WHERE mandate=?1 AND cycle=?2 AND attempt=?3 AND status IS NULL",
            (
                n,
                mandate.cycle,
                mandate.attempt,
                CycleStatus::Interrupted.as_str(),
                micros(request.now),
            ),
        )?;
        if mandate.deaths >= CRASH_LOOP {
            recovered.crash_loops.push(give_to_person(txn, mandate, request)?);
        } else {
            recovered.running.push(go_on(txn, mandate, request)?);
        }
    }
    if unclean {
        let details = json!({"running": recovered.running.len(), "unknown_calls": unknown_calls});
        txn.event(request.now, "recovered", About::default(), details)?;
    }
    Ok(recovered)
}

fn go_on(txn: &mut Txn<'_>, mut mandate: Mandate, request: &RecoverRequest) -> Res<ClaimedCycle> {
    // A person's stop is not forgotten by a crash; starting clears only the words.
    let reason = mandate.reason.take();
    let (n, stop) = (mandate.n, mandate.stop);
    let cycle = claim::start(txn, mandate, None, request.now)?;
    if stop {
        txn.exec("UPDATE mandate SET reason=?2 WHERE n=?1", (n, reason))?;
    }
    Ok(cycle)
}

fn give_to_person(txn: &mut Txn<'_>, mut mandate: Mandate, request: &RecoverRequest) -> Res<String> {
    mandate.state = mandate.state.next(MandateEvent::NeedsReview)?;
    mandate.reason = Some(LOOPED.to_owned());
    mandate.save(txn.conn)?;
    let about = About { schedule: mandate.schedule.as_deref(), mandate: Some(&mandate.id) };
    txn.event(request.now, "mandate_review", about, json!({"reason": LOOPED}))?;
    Ok(mandate.id)
}

/// See [`crate::store::GenerationStore::crash_looped`].
pub fn crash_looped(conn: &Connection, runner: &str, sha256: &str, since: DateTime<Utc>) -> Res<Vec<String>> {
    all(conn, CRASH_LOOPED, (runner, sha256, micros(since)), |row| row.get(0))
}

/// See [`crate::store::GenerationStore::run_crash_looped_again`].
pub fn run_again(txn: &mut Txn<'_>, id: &str, why: &str, now: DateTime<Utc>) -> Res<MandateState> {
    let mut mandate = Mandate::load(txn.conn, id)?;
    if mandate.state != MandateState::Review || mandate.reason.as_deref() != Some(LOOPED) {
        return conflict(format!("mandate {id} does not wait for a person because of a crash loop"));
    }
    mandate.deaths = mandate.deaths.saturating_sub(BOOT_DEATH);
    txn.exec(
        "UPDATE cycle SET status=?4, error=?5 WHERE mandate=?1 AND cycle=?2 AND attempt=?3",
        (mandate.n, mandate.cycle, mandate.attempt, CycleStatus::RolledBack.as_str(), why),
    )?;
    if finish::has_acted(txn, &mandate)? {
        mandate.reason = Some(ROLLED_BACK_AFTER_ACT.to_owned());
    } else if mandate.stop {
        // Somebody had asked for its end before.
        queue::end(txn, &mut mandate, MandateEvent::Cancel, Some("stopped"), now)?;
    } else {
        lines::finalize(txn, &mut mandate, CycleStatus::RolledBack, (None, Some(why)), now)?;
        mandate.state = mandate.state.next(MandateEvent::ResolveRedo)?;
        mandate.place = Some(queue::front(txn)?);
        mandate.record = Record::Afresh;
        mandate.reason = Some("rolled_back".to_owned());
    }
    mandate.save(txn.conn)?;
    let about = About { schedule: mandate.schedule.as_deref(), mandate: Some(&mandate.id) };
    let details = json!({"cycle": mandate.cycle, "attempt": mandate.attempt, "status": CycleStatus::RolledBack,
        "state": mandate.state, "reason": mandate.reason, "error": why});
    txn.event(now, "cycle_finished", about, details)?;
    Ok(mandate.state)
}
