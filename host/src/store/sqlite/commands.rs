//! A person's commands on a mandate.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::fail::Res;
use super::row::{Mandate, Record};
use super::txn::{About, Txn};
use super::{lines, queue};
use crate::domain::mandate::{CycleStatus, MandateEvent, MandateState};
use crate::store::{Commanded, MandateCommand, Resolution};

/// Carries a command out, see [`crate::store::Store::command`].
pub fn command(txn: &mut Txn<'_>, id: &str, command: &MandateCommand, now: DateTime<Utc>) -> Res<Commanded> {
    let mut mandate = Mandate::load(txn.conn, id)?;
    let mut stop_running = false;
    let note = match command {
        MandateCommand::Stop { note } if mandate.state == MandateState::Running => {
            mandate.stop = true;
            mandate.reason = Some(note.clone().unwrap_or_else(|| "stopped".to_owned()));
            stop_running = true;
            note.as_deref()
        }
        MandateCommand::Stop { note } => {
            let reason = note.as_deref().unwrap_or("stopped");
            queue::end(txn, &mut mandate, MandateEvent::Cancel, Some(reason), now)?;
            note.as_deref()
        }
        MandateCommand::Retry => {
            retry(txn, &mut mandate)?;
            None
        }
        MandateCommand::Resume => {
            go_on(txn, &mut mandate, MandateEvent::Resume, "resumed")?;
            None
        }
        MandateCommand::Deny { note } => {
            let reason = note.as_deref().unwrap_or("denied");
            queue::end(txn, &mut mandate, MandateEvent::Deny, Some(reason), now)?;
            note.as_deref()
        }
        MandateCommand::Expire => {
            queue::end(txn, &mut mandate, MandateEvent::Expire, Some("expired"), now)?;
            None
        }
        MandateCommand::Resolve { verdict, note } => {
            resolve(txn, &mut mandate, *verdict, note, now)?;
            Some(note.as_str())
        }
    };
    mandate.save(txn.conn)?;
    let about = About { schedule: mandate.schedule.as_deref(), mandate: Some(id) };
    let details = json!({"command": word(command), "note": note, "state": mandate.state});
    txn.event(now, "mandate_commanded", about, details)?;
    Ok(Commanded { state: mandate.state, stop_running })
}

fn word(command: &MandateCommand) -> &'static str {
    match command {
        MandateCommand::Stop { .. } => "stop",
        MandateCommand::Retry => "retry",
        MandateCommand::Resume => "resume",
        MandateCommand::Deny { .. } => "deny",
        MandateCommand::Expire => "expire",
        MandateCommand::Resolve { verdict: Resolution::Done, .. } => "resolve_done",
        MandateCommand::Resolve { verdict: Resolution::Redo, .. } => "resolve_redo",
        MandateCommand::Resolve { verdict: Resolution::Fail, .. } => "resolve_fail",
    }
}

/// Back into the queue, in front: it had its turn already.
fn go_on(txn: &Txn<'_>, mandate: &mut Mandate, event: MandateEvent, reason: &str) -> Res<()> {
    mandate.state = mandate.state.next(event)?;
    mandate.place = Some(queue::front(txn)?);
    mandate.reason = Some(reason.to_owned());
    mandate.parked = None;
    Ok(())
}

/// An ended one begins again from its first cycle; what it did and cost so far stays on record.
fn retry(txn: &Txn<'_>, mandate: &mut Mandate) -> Res<()> {
    mandate.state = mandate.state.next(MandateEvent::Retry)?;
    mandate.place = Some(queue::back(txn)?);
    mandate.reason = Some("retry".to_owned());
    mandate.ended = None;
    mandate.cycle = 0;
    mandate.attempt = 0;
    mandate.epoch = 0;
    mandate.noted.clear();
    mandate.record = Record::Next;
    mandate.errors = 0;
    mandate.deaths = 0;
    Ok(())
}

fn resolve(
    txn: &mut Txn<'_>,
    mandate: &mut Mandate,
    verdict: Resolution,
    note: &str,
    now: DateTime<Utc>,
) -> Res<()> {
    let event = match verdict {
        Resolution::Done => MandateEvent::ResolveDone,
        Resolution::Fail => MandateEvent::ResolveFail,
        Resolution::Redo => {
            let diverged = mandate.reason.as_deref() == Some("diverged");
            go_on(txn, mandate, MandateEvent::ResolveRedo, note)?;
            mandate.deaths = 0;
            return redo(txn, mandate, diverged, now);
        }
    };
    queue::end(txn, mandate, event, Some(note), now)
}

/// The step under review and all after it are forgotten. A run that left its record has no such
/// step: its cycle begins with an empty one.
fn redo(txn: &mut Txn<'_>, mandate: &mut Mandate, diverged: bool, now: DateTime<Utc>) -> Res<()> {
    let forgotten = txn.exec(
        "DELETE FROM step WHERE mandate=?1 AND cycle=?2 AND epoch=?3 AND seq >= (SELECT min(seq) FROM step \
         WHERE mandate=?1 AND cycle=?2 AND epoch=?3 AND state='needs_review')",
        (mandate.n, mandate.cycle, mandate.epoch),
    )?;
    if forgotten == 0 && diverged && mandate.record == Record::Continue {
        lines::finalize(txn, mandate, CycleStatus::Interrupted, (None, Some("diverged")), now)?;
        mandate.record = Record::Afresh;
    }
    Ok(())
}

/// Why mandates of a runner wait. It belongs to the runner and not to the mandates, so that a
/// runner with a long queue costs one row.
pub fn note_wait(txn: &Txn<'_>, runner: &str, reason: Option<&str>) -> Res<()> {
    let key = format!("wait:{runner}");
    match reason {
        Some(reason) => txn.exec(
            "INSERT INTO meta(key, value) VALUES(?1, ?2) ON CONFLICT(key) DO UPDATE SET value=?2 WHERE value<>?2",
            (key, reason),
        )?,
        None => txn.exec("DELETE FROM meta WHERE key=?1", [key])?,
    };
    Ok(())
}
