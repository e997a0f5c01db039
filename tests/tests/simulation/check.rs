//! What must hold of the store, whatever happened. The checker looks at the store from outside:
//! it follows the cursors, counts the occurrences of each rule one by one, and compares.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta};
use kairos_host::domain::cron::{Cron, Zone};
use kairos_host::domain::mandate::MandateState;
use kairos_host::domain::schedule::Dst;
use kairos_host::store::{MandateFilter, MandateRow, OccurrenceRow, Origin, ScheduleState, Store};
use kairos_host::sys::zones::Zones;
use kairos_plugin_api::Usage;

/// A rule was in force over `(start, end]`.
struct Epoch {
    rule: Option<(Cron, Arc<Zone>, Dst)>,
    start: i64,
    end: i64,
}

impl Epoch {
    /// One by one, and not by the closed form that is under test.
    fn occurrences(&self) -> Vec<i64> {
        let Some((cron, zone, dst)) = &self.rule else { return Vec::new() };
        std::iter::successors(cron.next_after(zone, *dst, self.start), |at| cron.next_after(zone, *dst, *at))
            .take_while(|at| *at <= self.end)
            .collect()
    }
}

/// What the checker remembers of one schedule.
#[derive(Default)]
struct Track {
    rule: String,
    cursor: i64,
    epochs: Vec<Epoch>,
    /// Fired, and the clock was set back behind them since.
    ahead: BTreeSet<i64>,
    /// Rows that are not judged any more: the clock went back to before an edit, and which rule
    /// their counts belong to cannot be told from outside.
    baseline: HashMap<(i64, Option<String>), OccurrenceRow>,
}

/// Follows the store through a simulation.
pub struct Checker {
    zones: Arc<Zones>,
    tracks: BTreeMap<String, Track>,
    pub set_backs: usize,
}

impl Checker {
    pub fn new(zones: Arc<Zones>) -> Self {
        Self { zones, tracks: BTreeMap::new(), set_backs: 0 }
    }

    /// Looks at the cursors; to be called after everything that may move them.
    pub fn observe(&mut self, store: &dyn Store) {
        for state in store.schedules().expect("the store reads") {
            let fresh = !self.tracks.contains_key(&state.name);
            let track = self.tracks.entry(state.name.clone()).or_default();
            let cursor = state.cursor.timestamp();
            if fresh {
                track.begin(&state, cursor, &self.zones);
                continue;
            }
            if cursor < track.cursor {
                self.set_backs += 1;
                track.set_back(&state, cursor, store);
            }
            if state.rule != track.rule {
                if let Some(last) = track.epochs.last_mut() {
                    last.end = last.end.max(cursor);
                }
                track.begin(&state, cursor, &self.zones);
            }
            track.cursor = cursor;
            track.epochs.last_mut().expect("a track has an epoch").end = cursor;
        }
    }

    /// All that is wrong. `booked` is the usage of every finish that was carried out, by day, if
    /// the ledger is to be checked; `running` the mandates that somebody runs.
    pub fn check(
        &self,
        store: &dyn Store,
        booked: Option<&HashMap<String, Usage>>,
        running: &HashSet<String>,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let mandates = store.mandates(&MandateFilter::default()).expect("the store reads");
        let fires = self.check_occurrences(store, &mandates, &mut wrong);
        check_mandates(&mandates, &fires, running, &mut wrong);
        if let Some(booked) = booked {
            check_ledger(store, &mandates, booked, &mut wrong);
        }
        wrong
    }

    /// I1 and I11: each occurrence up to the cursor has exactly one outcome. Gives the fires.
    /// A backfill fills in what never had an outcome, and is no excuse for one that got lost.
    fn check_occurrences(
        &self,
        store: &dyn Store,
        mandates: &[MandateRow],
        wrong: &mut Vec<String>,
    ) -> HashMap<(String, i64), String> {
        let mut fires = HashMap::new();
        let backfills = mandates.iter().filter(|row| row.origin == Origin::Backfill);
        let backfills: HashSet<&String> = backfills.map(|row| &row.id).collect();
        for (name, track) in &self.tracks {
            let rows = store.occurrences(name, 0).expect("the store reads");
            let mut say = |what: String| wrong.push(format!("schedule {name}: {what}"));
            let mut fired = track.ahead.clone();
            for row in rows.iter().filter(|row| row.outcome == "fired") {
                let nominal = row.from.timestamp();
                let backfilled = row.mandate.as_ref().is_some_and(|id| backfills.contains(id));
                if !backfilled {
                    fired.insert(nominal);
                }
                if row.count != 1 || row.to != row.from {
                    say(format!("a fire of {} occurrences at {}", row.count, row.from));
                }
                match &row.mandate {
                    Some(id) => drop(fires.insert((name.clone(), nominal), id.clone())),
                    None => say(format!("fired {} without a mandate", row.from)),
                }
            }
            track.check(&rows, &fired, &mut say);
        }
        fires
    }

    /// True when every due occurrence has its outcome: nothing is forgotten in the dark.
    pub fn overdue(&self, now: i64, awake: &HashSet<String>) -> Vec<String> {
        let late = |track: &Track| {
            let epoch = Epoch {
                rule: track.epochs.last().and_then(|epoch| epoch.rule.clone()),
                start: track.cursor,
                end: now,
            };
            epoch.occurrences().into_iter().filter(|at| !track.ahead.contains(at)).count()
        };
        self.tracks
            .iter()
            .filter(|(name, _)| awake.contains(*name))
            .filter(|(_, track)| late(track) > 0)
            .map(|(name, track)| format!("schedule {name}: {} due occurrences without outcome", late(track)))
            .collect()
    }
}

impl Track {
    fn begin(&mut self, state: &ScheduleState, start: i64, zones: &Zones) {
        let mut parts = state.rule.split('|');
        let mut rule = || {
            let (cron, zone, dst) = (parts.next()?, parts.next()?, parts.next()?);
            let dst = if dst == "Literal" { Dst::Literal } else { Dst::Cron };
            Some((Cron::parse(cron).ok()?, zones.get(zone).ok()?, dst))
        };
        let rule = rule();
        self.epochs.push(Epoch { rule, start, end: start });
        self.rule.clone_from(&state.rule);
        self.cursor = start;
    }

    /// The clock was set back: what lies after the cursor is open again, except what fired.
    fn set_back(&mut self, state: &ScheduleState, cursor: i64, store: &dyn Store) {
        let rows = store.occurrences(&state.name, 0).expect("the store reads");
        let fired_after = |row: &&OccurrenceRow| row.outcome == "fired" && row.from.timestamp() > cursor;
        self.ahead.extend(rows.iter().filter(fired_after).map(|row| row.from.timestamp()));
        let last = self.epochs.last_mut().expect("a track has an epoch");
        if cursor >= last.start {
            last.end = cursor;
            return;
        }
        last.start = cursor;
        last.end = cursor;
        let last = self.epochs.pop().expect("it was just there");
        self.epochs.clear();
        self.epochs.push(last);
        self.baseline = rows.into_iter().map(|row| (key(&row), row)).collect();
    }

    fn check(&self, rows: &[OccurrenceRow], fired: &BTreeSet<i64>, say: &mut impl FnMut(String)) {
        let mut expected = BTreeSet::new();
        for epoch in &self.epochs {
            for at in epoch.occurrences() {
                if !expected.insert(at) {
                    say(format!("the checker saw {} in two epochs", shown(at)));
                }
            }
        }
        let judged: Vec<OccurrenceRow> = rows.iter().filter_map(|row| self.judged(row)).collect();
        for row in judged.iter().filter(|row| row.outcome == "fired") {
            let at = row.from.timestamp();
            if fired.contains(&at) && !expected.contains(&at) && !self.ahead.contains(&at) {
                say(format!("fired {}, which is no occurrence of its rule", row.from));
            }
        }
        let mut missed: Vec<&OccurrenceRow> = judged.iter().filter(|row| row.outcome == "missed").collect();
        missed.sort_by_key(|row| row.from);
        for pair in missed.windows(2) {
            if pair[0].to >= pair[1].from {
                say(format!("runs overlap: to {} and from {}", pair[0].to, pair[1].from));
            }
        }
        let mut accounted: u64 = 0;
        for row in &missed {
            let (from, to) = (row.from.timestamp(), row.to.timestamp());
            let members = expected.range(from..=to).filter(|at| !fired.contains(at)).count() as u64;
            if members != row.count {
                let why = row.reason.as_deref().unwrap_or("?");
                say(format!("{why} {} to {} says {} but holds {members}", row.from, row.to, row.count));
            }
            accounted += row.count;
        }
        accounted += expected.iter().filter(|at| fired.contains(at)).count() as u64;
        if accounted != expected.len() as u64 {
            say(format!("{} occurrences and {accounted} outcomes", expected.len()));
        }
    }
}

impl Track {
    /// A row, or what has become of it since the baseline.
    fn judged(&self, row: &OccurrenceRow) -> Option<OccurrenceRow> {
        let Some(before) = self.baseline.get(&key(row)) else { return Some(row.clone()) };
        let grown = row.count.checked_sub(before.count).filter(|grown| *grown > 0)?;
        Some(OccurrenceRow { from: before.to + TimeDelta::seconds(1), count: grown, ..row.clone() })
    }
}

fn key(row: &OccurrenceRow) -> (i64, Option<String>) {
    (row.from.timestamp(), row.reason.clone())
}

fn shown(at: i64) -> String {
    DateTime::from_timestamp(at, 0).map_or_else(|| at.to_string(), |at| at.to_rfc3339())
}

/// I2 and I11: a mandate for each fire and a fire for each mandate; nothing runs unseen.
fn check_mandates(
    rows: &[MandateRow],
    fires: &HashMap<(String, i64), String>,
    running: &HashSet<String>,
    wrong: &mut Vec<String>,
) {
    let mut seen: HashMap<(String, i64), String> = HashMap::new();
    let known: HashSet<&String> = rows.iter().map(|row| &row.id).collect();
    for row in rows {
        if row.state == MandateState::Running {
            if !running.contains(&row.id) {
                wrong.push(format!("mandate {} runs and nobody runs it", row.id));
            }
        } else if running.contains(&row.id) {
            wrong.push(format!("mandate {} is {} and somebody runs it", row.id, row.state));
        }
        if row.state.is_end() != row.ended_at.is_some() {
            wrong.push(format!("mandate {} is {} and ended at {:?}", row.id, row.state, row.ended_at));
        }
        if row.origin == Origin::Schedule {
            let (Some(schedule), Some(nominal)) = (&row.schedule, row.nominal_at) else {
                wrong.push(format!("mandate {} was fired by nobody", row.id));
                continue;
            };
            let place = (schedule.clone(), nominal.timestamp());
            if fires.get(&place) != Some(&row.id) {
                wrong.push(format!("mandate {} has no fire of its own", row.id));
            }
            if let Some(other) = seen.insert(place, row.id.clone()) {
                wrong.push(format!("{other} and {} are of one occurrence", row.id));
            }
        }
    }
    for (place, id) in fires {
        if !known.contains(id) {
            wrong.push(format!("the fire of {} has no mandate {id}", place.0));
        }
    }
}

/// I4: the ledger says what was booked, and so do the cycles.
fn check_ledger(
    store: &dyn Store,
    mandates: &[MandateRow],
    booked: &HashMap<String, Usage>,
    wrong: &mut Vec<String>,
) {
    let mut total = Usage::ZERO;
    for (day, usage) in booked {
        let totals = store.day(day).expect("the store reads");
        if totals.spent != *usage {
            wrong.push(format!("day {day}: the ledger says {:?}, booked were {usage:?}", totals.spent));
        }
        if !totals.reserved.is_zero() {
            wrong.push(format!("day {day}: {:?} is reserved and nothing is under way", totals.reserved));
        }
        total = total.plus(*usage);
    }
    let mut of_cycles = Usage::ZERO;
    for row in mandates {
        for cycle in store.cycles(&row.id).expect("the store reads") {
            of_cycles = of_cycles.plus(cycle.usage);
        }
    }
    if of_cycles != total {
        wrong.push(format!("the cycles used {of_cycles:?}, booked were {total:?}"));
    }
}
