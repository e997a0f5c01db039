//! The start of cycles: in queue order, one per overlap key, on offered runners, within the budget.
//! What it looks at follows the number of cycles it starts, not the length of the queue.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kairos_plugin_api::Usage;
use serde_json::{Value, json};

use super::fail::Res;
use super::row::{self, Mandate, Record, micros};
use super::txn::{About, Txn};
use super::{ledger, lines, queue};
use crate::domain::mandate::{MandateEvent, MandateState};
use crate::store::{BudgetGate, ClaimOutcome, ClaimRequest, ClaimedCycle, RunnerOffer};

/// Waiting mandates of one runner that are read at a time.
const PAGE: i64 = 32;

/// Starts what may start, see [`crate::store::Store::claim`].
pub fn claim(txn: &mut Txn<'_>, request: &ClaimRequest) -> Res<ClaimOutcome> {
    queue::promote(txn, request.now)?;
    let mut outcome = ClaimOutcome::default();
    match ledger::blocked(txn.conn, request.gate.as_ref())? {
        Some(block) => {
            let mut lines = Lines::new(request);
            // It holds work back only if there is some.
            outcome.blocked = lines.next(txn)?.map(|_| block);
        }
        None => {
            unpark(txn, request.gate.as_ref())?;
            let mut lines = Lines::new(request);
            while outcome.claimed.len() < request.max {
                let Some(next) = lines.next(txn)? else { break };
                let offer = &request.offers[&next.runner];
                let mandate = Mandate::load_number(txn.conn, next.n)?;
                outcome.claimed.push(start(txn, mandate, Some(offer), request.now)?);
            }
        }
    }
    outcome.next_ready = queue::next_ready(txn)?;
    Ok(outcome)
}

/// Mandates that the budget stopped in the middle go on once the ledger has turned to another day.
fn unpark(txn: &mut Txn<'_>, gate: Option<&BudgetGate>) -> Res<()> {
    let parked = txn.all(
        "SELECT n FROM mandate WHERE state='paused_budget' AND ended IS NULL AND parked IS NOT ?1 ORDER BY n DESC",
        [gate.map(|gate| &gate.day)],
        |row| row.get::<_, i64>(0),
    )?;
    for n in parked {
        let mut mandate = Mandate::load_number(txn.conn, n)?;
        mandate.state = mandate.state.next(MandateEvent::Resume)?;
        mandate.place = Some(queue::front(txn)?);
        mandate.parked = None;
        mandate.save(txn.conn)?;
    }
    Ok(())
}

/// The queue as this request may take from it: the lines of the offered runners, merged by place.
struct Lines<'a> {
    request: &'a ClaimRequest,
    lines: Vec<Line>,
}

struct Line {
    runner: String,
    /// As in the offer, as a list in JSON.
    commands: Option<String>,
    /// Place behind which the next page begins.
    after: i64,
    /// Read and not yet looked at, last first.
    page: Vec<Waiting>,
    done: bool,
}

#[derive(Clone, Debug)]
struct Waiting {
    n: i64,
    place: i64,
    runner: String,
    key: Option<String>,
    beside: bool,
    schedule: Option<String>,
}

impl<'a> Lines<'a> {
    fn new(request: &'a ClaimRequest) -> Self {
        let lines = request
            .offers
            .iter()
            .map(|(runner, offer)| Line {
                runner: runner.clone(),
                commands: offer.commands.as_ref().map(|commands| json!(commands).to_string()),
                after: i64::MIN,
                page: Vec::new(),
                done: false,
            })
            .collect();
        Self { request, lines }
    }

    /// The next one that may start.
    fn next(&mut self, txn: &Txn<'_>) -> Res<Option<Waiting>> {
        if self.request.max == 0 {
            return Ok(None);
        }
        loop {
            for line in &mut self.lines {
                line.fill(txn)?;
            }
            let first = self.lines.iter_mut().filter(|line| !line.page.is_empty());
            let Some(line) = first.min_by_key(|line| line.page.last().map(|waiting| waiting.place)) else {
                return Ok(None);
            };
            if let Some(waiting) = line.page.pop()
                && !busy(txn, &waiting)?
            {
                return Ok(Some(waiting));
            }
        }
    }
}

impl Line {
    fn fill(&mut self, txn: &Txn<'_>) -> Res<()> {
        if self.done || !self.page.is_empty() {
            return Ok(());
        }
        self.page = txn.all(
            "SELECT n, place, okey, beside, schedule FROM mandate WHERE runner=?1 AND place IS NOT NULL AND place>?2 \
             AND (?4 IS NULL OR coalesce(json_extract(bounds, '$.params.command'), '') IN (SELECT value FROM json_each(?4))) \
             ORDER BY place LIMIT ?3",
            (&self.runner, self.after, PAGE, &self.commands),
            |row| {
                Ok(Waiting {
                    n: row.get(0)?,
                    place: row.get(1)?,
                    runner: self.runner.clone(),
                    key: row.get(2)?,
                    beside: row.get(3)?,
                    schedule: row.get(4)?,
                })
            },
        )?;
        if let Some(last) = self.page.last() {
            self.after = last.place;
        }
        self.done = i64::try_from(self.page.len()).is_ok_and(|read| read < PAGE);
        self.page.reverse();
        Ok(())
    }
}

/// True while another mandate of its overlap key runs.
fn busy(txn: &Txn<'_>, waiting: &Waiting) -> Res<bool> {
    let Some(key) = &waiting.key else { return Ok(false) };
    // One that may run beside its own schedule minds only the others.
    let own = waiting.schedule.as_ref().filter(|_| waiting.beside);
    let found = txn.first(
        "SELECT 1 FROM mandate WHERE okey=?1 AND state='running' AND ended IS NULL \
         AND (?2 IS NULL OR schedule IS NOT ?2) LIMIT 1",
        (key, own),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Starts one cycle, or goes on with the one that is open; without an offer only the latter.
pub fn start(
    txn: &mut Txn<'_>,
    mut mandate: Mandate,
    offer: Option<&RunnerOffer>,
    now: DateTime<Utc>,
) -> Res<ClaimedCycle> {
    if mandate.state != MandateState::Running {
        mandate.state = mandate.state.next(MandateEvent::Start)?;
    }
    mandate.place = None;
    mandate.reason = None;
    match mandate.record {
        Record::Continue => mandate.attempt += 1,
        Record::Next => {
            mandate.cycle += 1;
            // Above 1 only after a retry, which goes through the same numbers again.
            mandate.attempt = last_attempt(txn, &mandate)? + 1;
        }
        Record::Afresh => mandate.attempt = last_attempt(txn, &mandate)? + 1,
    }
    let owner = mandate.owner();
    if mandate.record != Record::Continue {
        mandate.epoch = mandate.attempt;
        mandate.noted.clear();
        mandate.as_of = txn
            .first("SELECT max(since) FROM state WHERE owner=?1", [&owner], |row| {
                row.get::<_, Option<i64>>(0)
            })?
            .flatten()
            .unwrap_or(0);
        if let Some(offer) = offer {
            mandate.generation = Some(offer.generation.clone());
            mandate.phases = offer.phases;
        }
        lines::start(txn, &mut mandate, now)?;
    }
    mandate.record = Record::Continue;
    mandate.save(txn.conn)?;
    let generation = mandate.generation.clone().unwrap_or_default();
    txn.exec(
        "INSERT INTO cycle(mandate, cycle, attempt, epoch, runner, generation, started) \
         VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (mandate.n, mandate.cycle, mandate.attempt, mandate.epoch, &mandate.runner, &generation, micros(now)),
    )?;
    let about = About { schedule: mandate.schedule.as_deref(), mandate: Some(&mandate.id) };
    let details = json!({"cycle": mandate.cycle, "attempt": mandate.attempt, "runner": mandate.runner});
    txn.event(now, "mandate_started", about, details)?;
    hand_over(txn, mandate, generation, &owner)
}

fn last_attempt(txn: &Txn<'_>, mandate: &Mandate) -> Res<u32> {
    let sql = "SELECT max(attempt) FROM cycle WHERE mandate=?1 AND cycle=?2";
    let last = txn.first(sql, (mandate.n, mandate.cycle), |row| row.get::<_, Option<u32>>(0))?;
    Ok(last.flatten().unwrap_or(0))
}

fn hand_over(txn: &Txn<'_>, mandate: Mandate, generation: String, owner: &str) -> Res<ClaimedCycle> {
    let again = mandate.attempt > mandate.epoch;
    let steps = if again { recorded(txn, &mandate)? } else { Vec::new() };
    let booked = if again {
        ledger::of_cycle(txn.conn, mandate.n, mandate.cycle, mandate.epoch)?
    } else {
        Usage::ZERO
    };
    let state = if mandate.as_of == 0 { HashMap::new() } else { state_as_of(txn, owner, mandate.as_of)? };
    let runner = mandate.runner.clone();
    Ok(ClaimedCycle { mandate: handed_out(mandate), runner, generation, steps, state, booked })
}

/// A mandate at its present cycle and attempt, as the runner sees it.
pub fn handed_out(mandate: Mandate) -> kairos_plugin_api::Mandate {
    let mut seen = kairos_plugin_api::Mandate::new(mandate.id, mandate.goal);
    seen.cycle = mandate.cycle;
    seen.attempt = mandate.attempt;
    seen.schedule = mandate.schedule;
    seen.nominal_at = mandate.nominal;
    seen.project_scope = mandate.scope;
    seen.max_cycles = mandate.bounds.max_cycles;
    seen.checkpoint_every = mandate.bounds.checkpoint_every;
    seen.risk_budget = mandate.bounds.risk_budget;
    seen.allowed_actions = mandate.bounds.allowed_actions;
    seen.observe_policies = mandate.bounds.observe_policies;
    seen.params = mandate.bounds.params;
    seen
}

fn recorded(txn: &Txn<'_>, mandate: &Mandate) -> Res<Vec<crate::store::StepRow>> {
    let sql = row::select_steps!("AND cycle=?2 AND epoch=?3 ORDER BY seq");
    txn.all(sql, (mandate.n, mandate.cycle, mandate.epoch), row::step)
}

/// The runner's state at that version.
pub fn state_as_of(txn: &Txn<'_>, owner: &str, version: i64) -> Res<HashMap<String, Value>> {
    let rows = txn.all(
        "SELECT key, value FROM state WHERE owner=?1 AND since<=?2 AND (until IS NULL OR until>?2)",
        (owner, version),
        |row| Ok((row.get::<_, String>(0)?, row::json::<Value>(row, 1)?)),
    )?;
    Ok(rows.into_iter().collect())
}
