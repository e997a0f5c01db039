//! Mandates for occurrences of the past. A backfill moves no cursor and asks nothing of the
//! missed policy. Asked again after it was cut short it goes on where it stopped, because each
//! occurrence makes at most one mandate.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use super::{Chronos, time};
use crate::daemon::mailbox::Backfilled;
use crate::domain::missed::Occurrences;
use crate::domain::schedule::Overlap;
use crate::store::{self, Added, Error, MandateFilter, NewMandate, Origin, Pending};

/// Requests on their way at a time: enough for one commit to hold many, few enough to stay short.
const IN_FLIGHT: usize = 64;

impl Chronos {
    /// How many occurrences lie in `(from, to]`; `None` for an unknown schedule. Closed form.
    #[must_use]
    pub fn backfill_count(&self, name: &str, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<u64> {
        let state = self.state();
        let index = state.table.find(name)?;
        let to = to.timestamp().min(state.table.cursor(index));
        Some(state.table.rule(index).count(from.timestamp(), to))
    }

    /// Makes a mandate for each occurrence in `(from, to]` that lies behind the schedule's cursor:
    /// what lies ahead is chronos' own to fire. Occurrences that have a mandate are left alone
    /// unless `again` is set; then `request_id` keeps a repeated request from making them twice.
    ///
    /// # Errors
    /// Unknown schedule, a full queue after it made some, or the store's. Asking again goes on.
    pub async fn backfill(
        &self,
        name: &str,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        again: bool,
        request_id: Option<&str>,
    ) -> store::Result<Backfilled> {
        let mut mandate = self.mandate_of(name, Origin::Backfill, self.now())?;
        mandate.overlap = Overlap::Queue;
        mandate.again = again;
        let mut made = Backfilled::default();
        let mut at = from.timestamp();
        loop {
            let batch = self.next_batch(name, at, to.timestamp())?;
            let Some(last) = batch.last() else { return Ok(made) };
            at = *last;
            let asked: Vec<(i64, Pending<Added>)> = batch
                .iter()
                .map(|nominal| {
                    let request = request_id.map(|request| format!("bf:{request}:{name}:{nominal}"));
                    let one =
                        NewMandate { nominal: Some(time(*nominal)), request_id: request, ..mandate.clone() };
                    (*nominal, self.seams.store.add(one))
                })
                .collect();
            self.collect(name, asked, &mut made).await?;
        }
    }

    /// The next occurrences after `from`. Read anew for each batch: a reload may come in between.
    fn next_batch(&self, name: &str, from: i64, to: i64) -> store::Result<Vec<i64>> {
        let index = self.index(name)?;
        let state = self.state();
        let to = to.min(state.table.cursor(index));
        let rule = state.table.rule(index);
        let following = std::iter::successors(rule.next_after(from), |at| rule.next_after(*at));
        Ok(following.take_while(|at| *at <= to).take(IN_FLIGHT).collect())
    }

    async fn collect(
        &self,
        name: &str,
        asked: Vec<(i64, Pending<Added>)>,
        made: &mut Backfilled,
    ) -> store::Result<()> {
        let mut refused = None;
        let mut taken = None;
        for (nominal, answer) in asked {
            match answer.await {
                Ok(added) if added.created => made.created.push(added.id),
                Ok(_) => made.occupied.push(time(nominal)),
                Err(Error::Conflict(why)) => {
                    let taken = match &mut taken {
                        Some(taken) => taken,
                        none => none.insert(self.with_mandates(name)?),
                    };
                    if taken.contains(&nominal) {
                        made.occupied.push(time(nominal));
                    } else {
                        refused.get_or_insert(Error::Conflict(why));
                    }
                }
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        match refused {
            Some(Error::Conflict(why)) => {
                let count = made.created.len();
                Err(Error::Conflict(format!("{why}; {count} made so far, ask again to go on")))
            }
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Nominal times of a schedule that have a mandate, to tell a taken one from another refusal.
    fn with_mandates(&self, name: &str) -> store::Result<HashSet<i64>> {
        let filter = MandateFilter { schedule: Some(name.to_owned()), ..MandateFilter::default() };
        let rows = self.seams.store.mandates(&filter)?;
        Ok(rows.iter().filter_map(|row| row.nominal_at).map(|at| at.timestamp()).collect())
    }
}
