//! Mandates made by hand, by a trigger or by a backfill.

use chrono::{DateTime, Utc};

use super::fail::{Res, conflict};
use super::fire::free_id;
use super::queue::{self, Candidate, Placed};
use super::row::micros;
use super::schedules;
use super::txn::Txn;
use crate::store::{Added, Error, NewMandate, Origin};

/// Makes one, see [`crate::store::Store::add`].
pub fn add(txn: &mut Txn<'_>, new: &NewMandate) -> Res<Added> {
    if let Some(request) = &new.request_id {
        let known =
            txn.first("SELECT id FROM mandate WHERE request=?1", [request], |row| row.get::<_, String>(0))?;
        if let Some(id) = known {
            return Ok(Added { id, created: false, cancel: Vec::new() });
        }
    }
    let id = match (new.origin, &new.schedule, new.nominal) {
        (Origin::Backfill, Some(schedule), Some(nominal)) => {
            let occupant = txn.first(
                "SELECT id FROM mandate WHERE schedule=?1 AND nominal=?2",
                (schedule, micros(nominal)),
                |row| row.get::<_, String>(0),
            )?;
            if let (Some(id), false) = (occupant, new.again) {
                return conflict(format!("this occurrence has mandate {id}; --again makes another"));
            }
            free_id(txn, nominal, schedule)?
        }
        (Origin::Backfill, ..) => {
            return Err(Error::Invalid("a backfill needs a schedule and a nominal time".to_owned()).into());
        }
        _ => {
            let taken = txn.first("SELECT 1 FROM mandate WHERE id=?1", [&new.id], |_| Ok(()))?;
            if taken.is_some() {
                return conflict(format!("mandate id {:?} is taken", new.id));
            }
            new.id.clone()
        }
    };
    let candidate = Candidate {
        id: &id,
        origin: new.origin,
        request: new.request_id.as_deref(),
        schedule: new.schedule.as_deref(),
        nominal: new.nominal,
        not_before: None,
        goal: &new.goal,
        runner: &new.runner,
        scope: new.scope.as_deref(),
        overlap: new.overlap,
        bounds: &new.bounds,
        now: new.now,
    };
    let mut cancel = Vec::new();
    match queue::enqueue(txn, &candidate, &mut cancel)? {
        Placed::Made(n) => {
            if let (Origin::Backfill, Some(schedule), Some(nominal)) =
                (new.origin, &new.schedule, new.nominal)
            {
                fill_outcome(txn, schedule, nominal, n, new.now)?;
            }
            Ok(Added { id, created: true, cancel })
        }
        Placed::Dropped("queue_full") => conflict("the queue of its scope or schedule is full"),
        Placed::Dropped(reason) => conflict(format!(
            "its overlap policy does not allow it now ({reason}): another one runs or waits"
        )),
    }
}

/// An occurrence without an outcome has one now. One that was missed stays missed: that is what
/// happened at its time.
fn fill_outcome(
    txn: &Txn<'_>,
    schedule: &str,
    nominal: DateTime<Utc>,
    mandate: i64,
    now: DateTime<Utc>,
) -> Res<()> {
    let Some(known) = schedules::find(txn.conn, schedule)? else { return Ok(()) };
    let last = txn.first(
        "SELECT last FROM occurrence WHERE schedule=?1 AND first<=?2 ORDER BY first DESC LIMIT 1",
        (known.n, micros(nominal)),
        |row| row.get::<_, i64>(0),
    )?;
    if last.is_none_or(|last| last < micros(nominal)) {
        txn.exec(
            "INSERT INTO occurrence(schedule, first, last, count, outcome, mandate, decided) \
             VALUES(?1, ?2, ?2, 1, 'fired', ?3, ?4)",
            (known.n, micros(nominal), mandate, micros(now)),
        )?;
    }
    Ok(())
}
