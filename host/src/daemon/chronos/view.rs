//! What people see of schedules: the next fires with their local times, the last one, what became
//! of the rest, and why one stands still.

use std::collections::BTreeMap;

use chrono::{DateTime, FixedOffset, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use super::table::{RejectCause, Table};
use super::{Chronos, time};
use crate::domain::cron::Zone;
use crate::domain::missed::{Occurrences, reason};
use crate::domain::schedule::ScheduleSpec;
use crate::store;
use crate::sys::zones::Zones;

/// Decisions that [`Chronos::show`] lists, and those that it counts by reason.
const RECENT: usize = 30;
const COUNTED: usize = 1000;

/// One occurrence to come; those that somebody asked to skip are not among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Upcoming {
    /// Its nominal time.
    pub at: DateTime<Utc>,
    /// The same on the clock of the schedule's zone, RFC 3339 with offset.
    pub local: String,
}

/// The next `count` occurrences of a schedule that is not saved yet, after `from`.
///
/// # Errors
/// What is wrong with the schedule.
pub fn preview(
    spec: &ScheduleSpec,
    zones: &Zones,
    from: DateTime<Utc>,
    count: usize,
) -> Result<Vec<Upcoming>, RejectCause> {
    let (table, rejected) = Table::compile(vec![spec.clone()], zones, from.timestamp());
    match rejected.into_iter().next() {
        Some(rejected) => Err(rejected.cause),
        None => Ok(upcoming(&table, 0, from.timestamp(), count)),
    }
}

impl Chronos {
    /// The failures in a row after which a schedule pauses itself.
    #[must_use]
    pub fn pause_after_failures(&self, name: &str) -> Option<u32> {
        let state = self.state();
        state.table.policy(state.table.find(name)?).pause_after_failures
    }

    /// All schedules, shortly, each with its next `next` occurrences after `now`.
    #[must_use]
    pub fn list(&self, now: DateTime<Utc>, next: usize) -> Vec<Value> {
        let state = self.state();
        state.table.indexes().map(|index| glance(&state.table, index, now, next)).collect()
    }

    /// One schedule with its last fire, the outcomes of its occurrences by reason, and the latest
    /// decisions. `None` for an unknown one.
    ///
    /// # Errors
    /// The store's.
    pub fn show(&self, name: &str, now: DateTime<Utc>, next: usize) -> store::Result<Option<Value>> {
        let mut view = {
            let state = self.state();
            let Some(index) = state.table.find(name) else { return Ok(None) };
            glance(&state.table, index, now, next)
        };
        let known = self.seams.store.schedule(name)?;
        let rows = self.seams.store.occurrences(name, COUNTED)?;
        let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
        for row in &rows {
            *outcomes.entry(row.reason.as_deref().unwrap_or("fired")).or_default() += row.count;
        }
        view["outcomes"] = json!(outcomes);
        view["recent"] = json!(&rows[..rows.len().min(RECENT)]);
        if let Some(known) = known {
            view["last_fire"] = json!({"nominal_at": known.last_nominal, "fired_at": known.last_fired});
            view["failures"] = json!(known.failures);
        }
        Ok(Some(view))
    }

    /// The next `count` occurrences of a schedule after `now`; none of an unknown one.
    #[must_use]
    pub fn upcoming(&self, name: &str, now: DateTime<Utc>, count: usize) -> Vec<Upcoming> {
        let state = self.state();
        let found = state.table.find(name);
        found.map_or_else(Vec::new, |index| upcoming(&state.table, index, now.timestamp(), count))
    }

    /// Why a nominal time has no recorded outcome.
    #[must_use]
    pub fn why_unrecorded(&self, name: &str, nominal: DateTime<Utc>) -> String {
        let state = self.state();
        let table = &state.table;
        let Some(index) = table.find(name) else { return format!("schedule {name:?} not found") };
        let at = nominal.timestamp();
        if table.rule(index).count(at - 1, at) == 0 {
            return format!("{name:?} has no occurrence at {}", utc(at));
        }
        let extra = table.extra(index);
        if extra.is_some_and(|extra| extra.skip.contains(&at)) {
            return "it is to be left out: somebody asked to skip it".to_owned();
        }
        if at <= table.cursor(index) {
            return "it lies before this schedule was taken in, or its record was pruned".to_owned();
        }
        if let Some(pause) = extra.and_then(|extra| extra.pause.as_ref()) {
            return format!("the schedule is paused by {}; outcomes are recorded when it goes on", pause.by);
        }
        if at > self.now().timestamp() {
            return "it is still to come".to_owned();
        }
        "it waits for its turn to catch up".to_owned()
    }
}

fn glance(table: &Table, index: u32, now: DateTime<Utc>, next: usize) -> Value {
    let spec = table.spec(index);
    let policy = &spec.policy;
    let extra = table.extra(index);
    let pause = extra.and_then(|extra| extra.pause.as_ref());
    let cursor = table.cursor(index);
    let skip = extra.map_or(&[][..], |extra| &extra.skip);
    let pending = if pause.is_some() { 0 } else { table.rule(index).count(cursor, now.timestamp()) };
    json!({
        "name": &*spec.name,
        "cron": &*spec.cron,
        "timezone": &*spec.timezone,
        "enabled": policy.enabled,
        "runner": policy.runner,
        "project_scope": policy.project_scope,
        "goal": &*spec.goal,
        "missed_policy": policy.missed_policy,
        "concurrency": policy.concurrency,
        "state": if pause.is_some() { reason::PAUSED } else if pending > 0 { "catching_up" } else { "active" },
        "pause": pause,
        "skip": skip.iter().map(|at| utc(*at)).collect::<Vec<_>>(),
        "pending": pending,
        "evaluated_to": utc(cursor),
        "next": upcoming(table, index, now.timestamp().max(cursor), next),
    })
}

fn upcoming(table: &Table, index: u32, from: i64, count: usize) -> Vec<Upcoming> {
    let rule = table.rule(index);
    let zone = table.zone(index);
    let skip = table.extra(index).map_or(&[][..], |extra| &extra.skip);
    std::iter::successors(rule.next_after(from), |at| rule.next_after(*at))
        .filter(|at| !skip.contains(at))
        .take(count)
        .map(|at| Upcoming { at: time(at), local: local(zone, at) })
        .collect()
}

fn local(zone: &Zone, at: i64) -> String {
    let offset = i32::try_from(zone.offset_at(at)).ok().and_then(FixedOffset::east_opt);
    // Offsets of old times may have seconds, which RFC 3339 cannot say.
    offset.map_or_else(|| utc(at), |offset| time(at).with_timezone(&offset).to_rfc3339())
}

fn utc(at: i64) -> String {
    time(at).to_rfc3339_opts(SecondsFormat::Secs, true)
}
