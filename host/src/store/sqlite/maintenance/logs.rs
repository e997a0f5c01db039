//! The lines of logs as their files see them: what is not archived yet, and what may be forgotten.

use chrono::{DateTime, Utc};
use rusqlite::Row;
use serde_json::json;

use super::super::row::{Mandate, number};
use super::super::txn::{About, first};
use crate::domain::mandate::MandateEvent;
use crate::store::sqlite::SqliteStore;
use crate::store::{Pending, Result, WalHead};

/// Lines of ended mandates stay until their archive is durable; each mandate is found by skipping
/// over its own lines, so the cost follows what is not archived.
const UNARCHIVED: &str = "WITH RECURSIVE held(n) AS (SELECT min(mandate) FROM walrec UNION ALL \
     SELECT (SELECT min(mandate) FROM walrec WHERE mandate > held.n) FROM held WHERE held.n IS NOT NULL) \
     SELECT id, ended IS NOT NULL, seq, crc FROM held JOIN mandate USING(n)";

impl SqliteStore {
    /// Mandates whose lines are still in the store.
    ///
    /// # Errors
    /// Of reading.
    pub fn unarchived_logs(&self) -> Result<Vec<WalHead>> {
        self.look(|conn| super::super::txn::all(conn, UNARCHIVED, [], head))
    }

    /// Where the log of one mandate stands; `None` for an unknown mandate.
    ///
    /// # Errors
    /// Of reading.
    pub fn log_head(&self, mandate: &str) -> Result<Option<WalHead>> {
        let id = mandate.to_owned();
        self.look(move |conn| {
            first(conn, "SELECT id, ended IS NOT NULL, seq, crc FROM mandate WHERE id=?1", [id], head)
        })
    }

    /// Forgets the lines of archived logs up to these numbers; the heads stay as their seals. Lazy.
    pub fn forget_lines(&self, mandates: Vec<(String, u64)>) -> Pending<()> {
        self.request(
            move |txn| {
                for (id, upto) in mandates {
                    txn.exec(
                        "DELETE FROM walrec WHERE mandate=(SELECT n FROM mandate WHERE id=?1) AND seq<=?2",
                        (id, upto.cast_signed()),
                    )?;
                }
                Ok(())
            },
            true,
        )
    }

    /// Sends an open mandate to review; an ended one, or one that is there already, only gets an event.
    pub fn log_disagrees(
        &self,
        mandate: &str,
        reason: &'static str,
        detail: String,
        now: DateTime<Utc>,
    ) -> Pending<()> {
        let id = mandate.to_owned();
        self.run(move |txn| {
            let mut mandate = Mandate::load(txn.conn, &id)?;
            if let Ok(state) = mandate.state.next(MandateEvent::NeedsReview) {
                mandate.state = state;
                mandate.reason = Some(reason.to_owned());
                mandate.place = None;
                mandate.save(txn.conn)?;
            }
            let about = About { schedule: mandate.schedule.as_deref(), mandate: Some(&id) };
            txn.event(now, "mandate_review", about, json!({"reason": reason, "detail": detail}))
        })
    }
}

fn head(row: &Row<'_>) -> rusqlite::Result<WalHead> {
    Ok(WalHead { mandate: row.get(0)?, ended: row.get(1)?, seq: number(row, 2)?, crc: row.get(3)? })
}
