//! Boot is recovery. What it looks at are the open mandates and the open reservations, both found
//! through partial indexes, never the history. It may be cut short anywhere and run again.

use serde_json::json;

use super::fail::Res;
use super::row::{Mandate, micros};
use super::txn::{About, Txn};
use super::{claim, ledger};
use crate::domain::mandate::{BOOT_DEATH, CRASH_LOOP, CycleStatus, MandateEvent};
use crate::store::{ClaimedCycle, RecoverRequest, Recovered};

/// Finds the running mandates; must go through the index of open ones.
pub const RUNNING: &str = "SELECT n FROM mandate WHERE state='running' AND ended IS NULL ORDER BY n";

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
    mandate.reason = Some("crash_loop".to_owned());
    mandate.save(txn.conn)?;
    let about = About { schedule: mandate.schedule.as_deref(), mandate: Some(&mandate.id) };
    txn.event(request.now, "mandate_review", about, json!({"reason": "crash_loop"}))?;
    Ok(mandate.id)
}
