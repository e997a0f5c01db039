//! A mandate as its log alone tells it, put into the store: for a store that is gone, a log the
//! store has never heard of, and the reference's files.
//!
//! Steps have only hashes in a log, so no cycle is ever gone on with: it begins anew if that does
//! no harm, else a person looks at it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kairos_plugin_api::Usage;
use serde_json::{Map, Value, json};

use super::super::fail::Res;
use super::super::ledger::{self, Account, Kind};
use super::super::queue;
use super::super::row::micros;
use super::super::schedules;
use super::super::txn::{About, Txn};
use crate::domain::mandate::{CycleStatus, MandateState};
use crate::domain::record::{self, DAMAGED, Head, History, Plan, UNCERTAIN};
use crate::domain::schedule::{MandateBounds, ScheduleSpec, overlap_key};

/// What the configuration and the published views know of a schedule.
#[derive(Clone, Debug)]
pub struct KnownSchedule {
    /// The rule.
    pub spec: ScheduleSpec,
    /// The runner of its mandates.
    pub runner: String,
    /// Up to here everything had been evaluated, if that is known.
    pub cursor: Option<DateTime<Utc>>,
    /// When it fired last.
    pub last_fired: Option<DateTime<Utc>>,
}

/// Schedules by name.
pub type KnownSchedules = HashMap<String, KnownSchedule>;

/// How far a log is believed about work that is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is all there is: what can be begun anew without harm is queued.
    Sole,
    /// A store is there and does not know it: a person decides about unfinished work.
    Stranger,
}

/// A log and where it was found.
#[derive(Clone, Debug)]
pub struct Log {
    /// Its mandate, by its name.
    pub mandate: String,
    /// Its bytes, unpacked.
    pub bytes: Vec<u8>,
    /// It is archived: its lines need not come back into the store.
    pub packed: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// Where the mandate stands.
    pub state: MandateState,
    /// Why, if its log does not say it.
    pub reason: Option<String>,
    /// Its plans.
    pub cycles: usize,
    /// What it used.
    pub usage: Usage,
}

/// Puts a mandate into the store; `None` if it is there already.
pub fn insert(
    txn: &mut Txn<'_>,
    log: &Log,
    known: &KnownSchedules,
    trust: Trust,
    now: DateTime<Utc>,
) -> Res<Option<Rebuilt>> {
    let there = txn.first("SELECT 1 FROM mandate WHERE id=?1", [&log.mandate], |_| Ok(()))?;
    if there.is_some() {
        return Ok(None);
    }
    let history = History::read(&log.bytes);
    let draft = Draft::of(log, &history, known, trust, now);
    let n = draft.insert(txn)?;
    if !(log.packed && draft.state.is_end()) {
        keep_lines(txn, n, &log.bytes, &history)?;
    }
    for plan in &history.plans {
        draft.cycle(txn, n, plan, now)?;
    }
    let mut usage = Usage::ZERO;
    for (day, amount) in history.usage_by_day() {
        usage = usage.plus(amount);
        let account =
            Account { mandate: n, cycle: draft.cycle, attempt: draft.attempt, seq: None, day: &day };
        ledger::book_some(txn, account, Kind::Call, amount, now)?;
    }
    draft.outcome(txn, n, now)?;
    let about = About { schedule: draft.schedule.as_deref(), mandate: Some(&log.mandate) };
    let details = json!({"state": draft.state, "reason": draft.reason, "cycles": history.plans.len()});
    txn.event(now, "mandate_rebuilt", about, details)?;
    let (state, reason) = (draft.state, draft.reason);
    Ok(Some(Rebuilt { state, reason, cycles: history.plans.len(), usage }))
}

/// The row that is to be.
struct Draft {
    id: String,
    request: Option<String>,
    origin: String,
    schedule: Option<String>,
    nominal: Option<DateTime<Utc>>,
    goal: String,
    runner: String,
    scope: Option<String>,
    bounds: MandateBounds,
    state: MandateState,
    reason: Option<String>,
    created: DateTime<Utc>,
    ended: Option<DateTime<Utc>>,
    cycle: u32,
    attempt: u32,
    errors: u32,
    /// 0 the next cycle, 2 this one afresh, as in the schema.
    record: i64,
    head: Head,
}

impl Draft {
    fn of(log: &Log, history: &History, known: &KnownSchedules, trust: Trust, now: DateTime<Utc>) -> Self {
        let empty = Map::new();
        let commit =
            history.plans.iter().rev().map(|plan| &plan.commit).find(|commit| commit.contains_key("goal"));
        let commit = commit.unwrap_or(&empty);
        // A log of the reference bears the name of its schedule.
        let schedule = text(commit, "schedule")
            .or_else(|| known.contains_key(&log.mandate).then(|| log.mandate.clone()));
        let spec = schedule.as_ref().and_then(|name| known.get(name));
        let goal = text(commit, "goal").or_else(|| spec.map(|known| known.spec.goal.to_string()));
        let runner = text(commit, "runner").or_else(|| spec.map(|known| known.runner.clone()));
        let bounds = commit.get("bounds").and_then(|value| serde_json::from_value(value.clone()).ok());
        let bounds = bounds.or_else(|| spec.map(|known| known.spec.policy.bounds.clone()));
        let scope =
            text(commit, "scope").or_else(|| spec.and_then(|known| known.spec.policy.project_scope.clone()));
        let (mut state, mut reason) = history.standing();
        let unknown =
            goal.is_none() || runner.is_none() || bounds.is_none() || commit.contains_key("left_out");
        if !state.is_end() && (unknown || trust == Trust::Stranger) && reason.as_deref() != Some(DAMAGED) {
            state = MandateState::Review;
            reason = Some(UNCERTAIN.to_owned());
        }
        let last = history.plans.last();
        let last_ts = history.last_ts.as_deref().and_then(when);
        let first_ts = history.plans.first().and_then(|plan| plan.first_ts.as_deref()).and_then(when);
        let open = last.is_some_and(|plan| plan.end.is_none());
        let failed_once = reason.as_deref() == Some("error_once");
        Self {
            id: log.mandate.clone(),
            request: text(commit, "client_id"),
            origin: text(commit, "origin")
                .filter(|word| ["schedule", "manual", "backfill"].contains(&word.as_str()))
                .unwrap_or_else(|| if schedule.is_some() { "schedule" } else { "manual" }.to_owned()),
            nominal: text(commit, "nominal_at").as_deref().and_then(when),
            schedule,
            goal: goal.unwrap_or_default(),
            runner: runner.unwrap_or_else(|| "unknown".to_owned()),
            scope,
            bounds: bounds.unwrap_or_default(),
            created: text(commit, "created_at").as_deref().and_then(when).or(first_ts).unwrap_or(now),
            ended: state.is_end().then_some(last_ts.unwrap_or(now)),
            state,
            reason,
            cycle: last.map_or(0, Plan::cycle),
            attempt: last.map_or(0, attempt),
            errors: u32::from(failed_once),
            record: if open || failed_once { 2 } else { 0 },
            head: history.scan.head,
        }
    }

    fn insert(&self, txn: &Txn<'_>) -> Res<i64> {
        let place = if self.state == MandateState::Queued { Some(queue::back(txn)?) } else { None };
        // The client's id of a request is unique; a log that repeats one is not the first.
        let taken = match &self.request {
            Some(request) => {
                txn.first("SELECT 1 FROM mandate WHERE request=?1", [request], |_| Ok(()))?.is_some()
            }
            None => false,
        };
        let request = self.request.as_ref().filter(|_| !taken);
        txn.exec(
            "INSERT INTO mandate(id, request, origin, schedule, nominal, goal, runner, scope, okey, bounds, state, \
             reason, created, ended, place, cycle, attempt, epoch, record, errors, seq, crc) \
             VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?17,?18,?19,?20,?21)",
            rusqlite::params![
                self.id,
                request,
                self.origin,
                self.schedule,
                self.nominal.map(micros),
                self.goal,
                self.runner,
                self.scope,
                overlap_key(self.scope.as_deref(), self.schedule.as_deref()),
                json!(self.bounds).to_string(),
                self.state.as_str(),
                self.reason,
                micros(self.created),
                self.ended.map(micros),
                place,
                self.cycle,
                self.attempt,
                self.record,
                self.errors,
                self.head.seq.cast_signed(),
                self.head.crc,
            ],
        )?;
        Ok(txn.conn.last_insert_rowid())
    }

    fn cycle(&self, txn: &Txn<'_>, n: i64, plan: &Plan, now: DateTime<Utc>) -> Res<()> {
        let end = plan.end.clone().unwrap_or_default();
        let status = text(&end, "cycle_status").as_deref().and_then(CycleStatus::parse).or(
            match text(&end, "status").as_deref() {
                Some("succeeded") => Some(CycleStatus::Ok),
                Some("failed") => Some(CycleStatus::Error),
                _ => Some(CycleStatus::Interrupted),
            },
        );
        let started = plan.first_ts.as_deref().and_then(when).unwrap_or(now);
        let ended = plan.last_ts.as_deref().and_then(when).unwrap_or(now);
        txn.exec(
            "INSERT OR REPLACE INTO cycle(mandate, cycle, attempt, epoch, runner, generation, status, started, ended, \
             summary, error) VALUES(?1,?2,?3,?3,?4,?5,?6,?7,?8,?9,?10)",
            (
                n,
                plan.cycle(),
                attempt(plan),
                text(&plan.commit, "runner").unwrap_or_else(|| self.runner.clone()),
                text(&plan.commit, "generation").unwrap_or_default(),
                status.map(CycleStatus::as_str),
                micros(started),
                micros(ended),
                text(&end, "summary"),
                text(&end, "error"),
            ),
        )?;
        Ok(())
    }

    /// The occurrence that fired it keeps its outcome, and is never fired again.
    fn outcome(&self, txn: &Txn<'_>, n: i64, now: DateTime<Utc>) -> Res<()> {
        let (Some(schedule), Some(nominal)) = (&self.schedule, self.nominal) else { return Ok(()) };
        if self.origin != "schedule" {
            return Ok(());
        }
        txn.exec(
            "INSERT OR IGNORE INTO schedule(name, rule, cursor) VALUES(?1, ?2, ?3)",
            (schedule, UNKNOWN_RULE, micros(nominal)),
        )?;
        let mut known = schedules::load(txn.conn, schedule)?;
        known.state.cursor = known.state.cursor.max(nominal);
        if known.state.last_nominal.is_none_or(|last| last < nominal) {
            known.state.last_nominal = Some(nominal);
            known.state.last_fired = Some(self.created);
        }
        schedules::save(txn, &known)?;
        let covered = txn.first(
            "SELECT last FROM occurrence WHERE schedule=?1 AND first<=?2 ORDER BY first DESC LIMIT 1",
            (known.n, micros(nominal)),
            |row| row.get::<_, i64>(0),
        )?;
        if covered.is_none_or(|last| last < micros(nominal)) {
            txn.exec(
                "INSERT INTO occurrence(schedule, first, last, count, outcome, mandate, decided) \
                 VALUES(?1, ?2, ?2, 1, 'fired', ?3, ?4)",
                (known.n, micros(nominal), n, micros(now)),
            )?;
        }
        Ok(())
    }
}

/// Rule of a schedule that only logs speak of; the configuration's takes its place.
pub const UNKNOWN_RULE: &str = "";

/// The good lines of a log, so that its file is healed by them. What stands before the first sealed
/// line is one text under number 0.
fn keep_lines(txn: &Txn<'_>, n: i64, bytes: &[u8], history: &History) -> Res<()> {
    let put = |seq: u64, line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        txn.exec(
            "INSERT INTO walrec(mandate, seq, line) VALUES(?1, ?2, ?3)",
            (n, seq.cast_signed(), line.as_ref()),
        )
    };
    let scan = &history.scan;
    if let Some(legacy) = bytes[..scan.legacy_end].strip_suffix(b"\n") {
        put(0, legacy)?;
    }
    for line in bytes[scan.legacy_end..scan.valid_end].split(|c| *c == b'\n') {
        if let Some(head) = record::line_head(line) {
            put(head.seq, line)?;
        }
    }
    Ok(())
}

/// Registers a schedule whose cursor is known, or moves its cursor on; never back.
pub fn schedule(txn: &mut Txn<'_>, known: &KnownSchedule) -> Res<()> {
    let name: &str = &known.spec.name;
    let rule = known.spec.rule_id();
    let former = schedules::find(txn.conn, name)?;
    let cursor = former.as_ref().map(|former| former.state.cursor).max(known.cursor);
    let Some(cursor) = cursor else { return Ok(()) };
    txn.exec(
        "INSERT INTO schedule(name, rule, cursor, last_fired) VALUES(?1, ?2, ?3, ?4) ON CONFLICT(name) DO UPDATE SET \
         rule=iif(rule=?5, ?2, rule), cursor=?3, last_fired=coalesce(max(last_fired, ?4), last_fired, ?4)",
        (name, rule, micros(cursor), known.last_fired.map(micros), UNKNOWN_RULE),
    )?;
    Ok(())
}

/// Makes sure that a day of the ledger counts at least this much; what is missing is booked on
/// nobody, as of unknown origin.
pub fn cover(txn: &Txn<'_>, day: &str, amount: Usage, now: DateTime<Utc>) -> Res<Usage> {
    let missing = amount.minus(ledger::day(txn.conn, day)?.spent);
    let account = Account { mandate: NOBODY, cycle: 0, attempt: 0, seq: None, day };
    ledger::book_some(txn, account, Kind::Claim, missing, now)?;
    Ok(missing)
}

/// Number that no mandate has: owner of usage whose mandate is not known, or not any more.
pub const NOBODY: i64 = 0;

fn attempt(plan: &Plan) -> u32 {
    let stated = plan.commit.get("attempt").and_then(Value::as_u64);
    stated.and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(1)
}

fn text(line: &Map<String, Value>, key: &str) -> Option<String> {
    line.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn when(stamp: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(stamp).ok().map(|at| at.with_timezone(&Utc))
}
