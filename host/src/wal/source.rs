//! What the projection needs of the store: the lines it is a copy of. Never called on the store's
//! writer thread.

use chrono::{DateTime, Utc};

use crate::store::{self, Pending, SqliteStore, Store, WalHead};

/// The store, as the log files see it.
pub trait Source: Send + Sync + 'static {
    /// Mandates whose lines are still in the store: all open ones, and ended ones that have not
    /// been archived. Costs as much as there are of these.
    ///
    /// # Errors
    /// Whatever reading says.
    fn unarchived(&self) -> store::Result<Vec<WalHead>>;

    /// Lines from that number on, in order. Text under number 0 stands before the first sealed
    /// line: what the reference wrote, several lines in one.
    ///
    /// # Errors
    /// Whatever reading says; an unknown mandate has no lines.
    fn lines(&self, mandate: &str, from: u64) -> store::Result<Vec<String>>;

    /// Where the log of a mandate stands; `None` if the store does not know it.
    ///
    /// # Errors
    /// Whatever reading says.
    fn head(&self, mandate: &str) -> store::Result<Option<WalHead>>;

    /// Lets the lines of ended mandates go, whose archives are durable up to that number. Lazy.
    fn archived(&self, mandates: Vec<(String, u64)>) -> Pending<()>;

    /// Sends an open mandate to review with that reason; an ended one only gets an event.
    fn to_review(
        &self,
        mandate: &str,
        reason: &'static str,
        detail: String,
        now: DateTime<Utc>,
    ) -> Pending<()>;

    /// Takes in a log that the store does not know: an unfinished mandate goes to review. False when
    /// it is known after all. Blocks.
    ///
    /// # Errors
    /// Of the store.
    fn adopt(&self, mandate: &str, bytes: Vec<u8>, now: DateTime<Utc>) -> store::Result<bool>;
}

impl Source for SqliteStore {
    fn unarchived(&self) -> store::Result<Vec<WalHead>> {
        self.unarchived_logs()
    }

    fn lines(&self, mandate: &str, from: u64) -> store::Result<Vec<String>> {
        self.wal_lines(mandate, from)
    }

    fn head(&self, mandate: &str) -> store::Result<Option<WalHead>> {
        self.log_head(mandate)
    }

    fn archived(&self, mandates: Vec<(String, u64)>) -> Pending<()> {
        self.forget_lines(mandates)
    }

    fn to_review(
        &self,
        mandate: &str,
        reason: &'static str,
        detail: String,
        now: DateTime<Utc>,
    ) -> Pending<()> {
        self.log_disagrees(mandate, reason, detail, now)
    }

    fn adopt(&self, mandate: &str, bytes: Vec<u8>, now: DateTime<Utc>) -> store::Result<bool> {
        self.adopt_log(mandate, bytes, now)
    }
}
