//! Taking schedules in, at boot and on reload: where does each cursor stand from now on? A new
//! schedule starts now and never fires for the past. A changed, re-added or re-enabled one starts
//! now as well; what its former rule still owed is recorded, not fired.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::table::{Extra, Rejected, Table};
use super::{Chronos, EARLIEST, MAX_CATCH_UP_PER_MINUTE, ScheduleSet, pace, time};
use crate::domain::cron::{Cron, Zone};
use crate::domain::missed::{Occurrences, PlannedMiss, Rule, all_missed, reason};
use crate::domain::schedule::{Dst, SchedulePolicy, ScheduleSpec};
use crate::store::{self, Adopt, MissedRun, Pause, PauseSchedule, Pending, ResumeSchedule, ScheduleState};
use crate::sys::zones::Zones;

/// Rule of a schedule that was taken away; no expression reads like this.
const REMOVED: &str = "-";
/// Who paused a schedule that is `enabled: false`.
pub(super) const BY_CONFIG: &str = "config";
/// Schedules registered in one request, and requests on their way at a time.
const CHUNK: usize = 500;
const IN_FLIGHT: usize = 8;

/// What loading did.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Schedules that are in.
    pub active: usize,
    /// New ones, or ones whose rule changed.
    pub adopted: usize,
    /// Ones that are no longer configured.
    pub removed: usize,
    /// Ones that cannot be taken in.
    pub rejected: Vec<Rejected>,
    /// True when the clock is not set yet: they are taken in when it is.
    pub deferred: bool,
}

/// What has to be written before the table may be used.
#[derive(Default)]
struct Changes {
    adopts: Vec<Adopt>,
    pauses: Vec<PauseSchedule>,
    resumes: Vec<ResumeSchedule>,
}

impl Chronos {
    /// Takes the schedules of a configuration in, in place of those before. Commits what changes;
    /// when that fails the former schedules go on.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(&self, set: ScheduleSet) -> store::Result<Loaded> {
        let _turn = self.turn.lock().await;
        let now = self.now();
        if now.timestamp() < EARLIEST {
            tracing::warn!(%now, "clock_not_set");
            self.state().deferred = Some(set);
            return Ok(Loaded { deferred: true, ..Loaded::default() });
        }
        let loaded = self.take_in(set, now).await?;
        self.wake.notify_one();
        Ok(loaded)
    }

    pub(super) async fn take_in(&self, set: ScheduleSet, now: DateTime<Utc>) -> store::Result<Loaded> {
        let ScheduleSet { mut specs, kept, default_runner, max_catch_up_per_minute } = set;
        let store = &self.seams.store;
        fill_in_runner(&mut specs, default_runner.as_deref());
        let (mut table, rejected) = Table::compile(specs, &self.seams.zones, now.timestamp());
        let mut loaded = Loaded { active: table.len(), rejected, ..Loaded::default() };

        let mut settled: HashMap<String, Vec<i64>> = HashMap::new();
        for (name, nominal) in store.settled_ahead()? {
            settled.entry(name).or_default().push(nominal.timestamp());
        }
        let mut changes = Changes::default();
        let mut seen = vec![false; table.len()];
        let (mut set_back, mut furthest) = (0, 0);
        for state in store.schedules()? {
            let ahead = state.cursor.timestamp() - now.timestamp();
            if ahead > pace::STEP && state.rule != REMOVED {
                set_back += 1;
                furthest = furthest.max(ahead);
            }
            let Some(index) = table.find(&state.name) else {
                let rejected = loaded.rejected.iter().any(|rejected| *rejected.name == *state.name);
                if state.rule != REMOVED && !rejected && !kept.contains(&state.name) {
                    loaded.removed += 1;
                    let ahead = settled.remove(&state.name).unwrap_or_default();
                    changes.adopts.push(self.former(&state, &ahead, REMOVED, now)?.adopt);
                }
                continue;
            };
            seen[index as usize] = true;
            self.take_over(&mut table, index, state, &mut settled, now, &mut changes)?;
        }
        for index in table.indexes().filter(|index| !seen[*index as usize]) {
            let spec = table.spec(index);
            let (name, rule) = (spec.name.to_string(), spec.rule_id());
            changes.adopts.push(Adopt { name, rule, cursor: floor(now), missed: Vec::new() });
            table.place(index, now.timestamp());
            if !table.policy(index).enabled {
                disable(&mut table, index, now, &mut changes);
            }
        }
        loaded.adopted = changes.adopts.len() - loaded.removed;
        self.commit(changes).await?;
        if set_back > 0 {
            self.clock_event("clock_stepped_back", furthest, set_back, now).await?;
        }

        let mut state = self.state();
        state.table = table;
        state.deferred = None;
        state.pace.set_limit(max_catch_up_per_minute.unwrap_or(MAX_CATCH_UP_PER_MINUTE));
        state.watch.note(now, self.seams.clock.monotonic());
        tracing::info!(
            schedules = loaded.active,
            adopted = loaded.adopted,
            removed = loaded.removed,
            rejected = loaded.rejected.len(),
            "schedules_loaded"
        );
        Ok(loaded)
    }

    /// Places one schedule that the store knows.
    fn take_over(
        &self,
        table: &mut Table,
        index: u32,
        state: ScheduleState,
        settled: &mut HashMap<String, Vec<i64>>,
        now: DateTime<Utc>,
        changes: &mut Changes,
    ) -> store::Result<()> {
        let rule = table.spec(index).rule_id();
        let mut cursor = state.cursor.timestamp();
        let mut ahead = settled.remove(&state.name).unwrap_or_default();
        if state.rule != rule {
            let former = self.former(&state, &ahead, &rule, now)?;
            cursor = former.adopt.cursor.timestamp();
            ahead.extend(former.settled);
            changes.adopts.push(former.adopt);
        } else if cursor > now.timestamp() + pace::STEP {
            let back = self.set_back(Some(table.rule(index)), &state, now)?;
            cursor = now.timestamp();
            ahead = back.settled;
            changes.adopts.push(back.adopt);
        }
        let mut pause = state.pause;
        let enabled = table.policy(index).enabled;
        if enabled && pause.as_ref().is_some_and(|pause| pause.by == BY_CONFIG) {
            let until = cursor.max(now.timestamp());
            let missed = runs(all_missed(&table.rule(index), cursor, until, &ahead, reason::PAUSED));
            changes.resumes.push(ResumeSchedule { name: state.name, cursor: time(until), missed });
            pause = None;
            cursor = until;
        }
        let skip = state.skip.iter().map(DateTime::timestamp).collect();
        if pause.is_some() || !state.skip.is_empty() || !ahead.is_empty() {
            table.change_extra(index, |extra| *extra = Extra { pause, skip, settled: ahead });
        }
        table.place(index, cursor);
        if !enabled && table.extra(index).is_none_or(|extra| extra.pause.is_none()) {
            disable(table, index, now, changes);
        }
        Ok(())
    }

    /// Ends a former rule: its cursor goes to now and what it owed is recorded.
    fn former(
        &self,
        state: &ScheduleState,
        settled: &[i64],
        rule: &str,
        now: DateTime<Utc>,
    ) -> store::Result<SetBack> {
        let cursor = state.cursor.timestamp();
        // A rule that can no longer be read denotes nothing that could be counted.
        let former = FormerRule::parse(&state.rule, &self.seams.zones);
        let former = former.as_ref().map(FormerRule::rule);
        let mut back = if cursor > now.timestamp() + pace::STEP {
            self.set_back(former, state, now)?
        } else {
            let adopt = Adopt { cursor: state.cursor.max(floor(now)), ..unchanged(state) };
            SetBack { adopt, settled: Vec::new() }
        };
        if let Some(former) = former {
            let why = if state.pause.is_some() { reason::PAUSED } else { reason::EDITED };
            back.adopt.missed.extend(runs(all_missed(&former, cursor, now.timestamp(), settled, why)));
        }
        rule.clone_into(&mut back.adopt.rule);
        Ok(back)
    }

    /// Writes what loading decided, many schedules a commit.
    async fn commit(&self, changes: Changes) -> store::Result<()> {
        let store = &self.seams.store;
        let mut adopts = changes.adopts.into_iter();
        let mut on_the_way = Vec::new();
        loop {
            let chunk: Vec<Adopt> = adopts.by_ref().take(CHUNK).collect();
            if chunk.is_empty() {
                break;
            }
            on_the_way.push(store.adopt(chunk));
            if on_the_way.len() == IN_FLIGHT {
                settle(&mut on_the_way).await?;
            }
        }
        settle(&mut on_the_way).await?;
        for pause in changes.pauses {
            on_the_way.push(store.pause_schedule(pause));
        }
        for resume in changes.resumes {
            on_the_way.push(store.resume_schedule(resume));
        }
        settle(&mut on_the_way).await
    }

    /// Where a schedule stands after the clock was set back behind its cursor.
    pub(super) fn set_back(
        &self,
        rule: Option<Rule<'_>>,
        state: &ScheduleState,
        now: DateTime<Utc>,
    ) -> store::Result<SetBack> {
        let now = floor(now);
        let mut limit = 64;
        let rows = loop {
            let rows = self.seams.store.occurrences(&state.name, limit)?;
            if rows.len() < limit || rows.last().is_some_and(|row| row.from <= now) {
                break rows;
            }
            limit *= 4;
        };
        let mut settled = Vec::new();
        let mut missed = Vec::new();
        for row in rows.into_iter().filter(|row| row.to > now) {
            match (&row.reason, rule) {
                (None, _) => settled.push(row.from.timestamp()),
                // Runs after the cursor are taken back; of one across it the part before stays.
                (Some(reason), Some(rule)) if row.from <= now => {
                    let taken_back = rule.count(now.timestamp(), row.to.timestamp());
                    let count = row.count.saturating_sub(taken_back);
                    let run = MissedRun { from: row.from, to: now, count, reason: known_reason(reason) };
                    missed.extend((count > 0).then_some(run));
                }
                _ => {}
            }
        }
        settled.sort_unstable();
        Ok(SetBack { adopt: Adopt { cursor: now, missed, ..unchanged(state) }, settled })
    }
}

fn unchanged(state: &ScheduleState) -> Adopt {
    let ScheduleState { name, rule, cursor, .. } = state.clone();
    Adopt { name, rule, cursor, missed: Vec::new() }
}

/// See [`Chronos::set_back`].
pub(super) struct SetBack {
    pub adopt: Adopt,
    pub settled: Vec<i64>,
}

/// A rule that the store remembers and the configuration no longer has.
struct FormerRule {
    cron: Cron,
    zone: Arc<Zone>,
    dst: Dst,
}

impl FormerRule {
    /// Reads [`ScheduleSpec::rule_id`] back. An expression holds no bar.
    fn parse(rule_id: &str, zones: &Zones) -> Option<Self> {
        let mut parts = rule_id.split('|');
        let (cron, zone, dst) = (parts.next()?, parts.next()?, parts.next()?);
        let dst = [Dst::Cron, Dst::Literal].into_iter().find(|known| format!("{known:?}") == dst)?;
        Some(Self { cron: Cron::parse(cron).ok()?, zone: zones.get(zone).ok()?, dst })
    }

    fn rule(&self) -> Rule<'_> {
        Rule { cron: &self.cron, zone: &self.zone, dst: self.dst }
    }
}

async fn settle(on_the_way: &mut Vec<Pending<()>>) -> store::Result<()> {
    for pending in on_the_way.drain(..) {
        pending.await?;
    }
    Ok(())
}

/// A schedule that is `enabled: false` is paused by the configuration.
fn disable(table: &mut Table, index: u32, now: DateTime<Utc>, changes: &mut Changes) {
    let note = Some("enabled: false".to_owned());
    let pause = Pause { since: now, until: None, note, by: BY_CONFIG.to_owned() };
    table.change_extra(index, |extra| extra.pause = Some(pause.clone()));
    table.rearm(index);
    changes.pauses.push(PauseSchedule { name: table.spec(index).name.to_string(), pause });
}

/// Schedules that name no runner get the default one; equal policies stay shared.
fn fill_in_runner(specs: &mut [ScheduleSpec], default: Option<&str>) {
    let Some(default) = default else { return };
    // Keyed by address; the former policy is kept beside the new one, so that no address is used twice.
    type Filled = HashMap<*const SchedulePolicy, (Arc<SchedulePolicy>, Arc<SchedulePolicy>)>;
    let mut filled = Filled::new();
    for spec in specs.iter_mut().filter(|spec| spec.policy.runner.is_none()) {
        let (_, policy) = filled.entry(Arc::as_ptr(&spec.policy)).or_insert_with(|| {
            let policy = SchedulePolicy { runner: Some(default.to_owned()), ..(*spec.policy).clone() };
            (Arc::clone(&spec.policy), Arc::new(policy))
        });
        spec.policy = Arc::clone(policy);
    }
}

/// Runs of outcomes as the store takes them.
pub(super) fn runs(missed: Vec<PlannedMiss>) -> Vec<MissedRun> {
    missed
        .into_iter()
        .map(|run| MissedRun { from: time(run.from), to: time(run.to), count: run.count, reason: run.reason })
        .collect()
}

/// The second that a time lies in; cursors are whole seconds.
pub(super) fn floor(at: DateTime<Utc>) -> DateTime<Utc> {
    time(at.timestamp())
}

/// A reason read from the store, as the constant that it was written from.
fn known_reason(word: &str) -> &'static str {
    use crate::domain::overlap::{OVERLAP, QUEUE_FULL};
    const BUDGET: &str = "budget";
    let known = [
        reason::SKIP,
        reason::COALESCED,
        reason::CAP,
        reason::STALE,
        reason::DEADLINE,
        reason::PAUSED,
        reason::EDITED,
        OVERLAP,
        QUEUE_FULL,
        BUDGET,
    ];
    known.into_iter().find(|known| *known == word).unwrap_or(reason::SKIP)
}
