//! All schedules of a daemon in memory: compiled rules, cursors and due times in plain vectors,
//! because there may be a million of them. What few schedules have (a pause, a time to be left
//! out) stands apart. It follows the store and is never ahead of it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use crate::domain::cron::{Cron, CronError, Zone};
use crate::domain::missed::{GRACE, Occurrences, Rule, identity};
use crate::domain::schedule::{SchedulePolicy, ScheduleSpec};
use crate::store::Pause;
use crate::sys::zones::{ZoneError, Zones};

/// Due time of a schedule that nothing but a command or a pause's end wakes.
pub(super) const NEVER: i64 = i64::MAX;
/// Due time of a schedule that waits for its turn to catch up.
pub(super) const WAITING: i64 = i64::MAX - 1;

/// A schedule that cannot be taken in; the others run.
#[derive(Debug, thiserror::Error)]
#[error("schedule {name:?}: {cause}")]
pub struct Rejected {
    /// Its name.
    pub name: Arc<str>,
    /// What is wrong with it.
    pub cause: RejectCause,
}

/// Why a schedule is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum RejectCause {
    /// Its expression.
    #[error(transparent)]
    Cron(#[from] CronError),
    /// Its zone.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// Another one of the same name came first.
    #[error("the name is taken by an earlier schedule")]
    Duplicate,
}

/// What only few schedules have.
#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    pub pause: Option<Pause>,
    /// Times that a person left out, sorted.
    pub skip: Vec<i64>,
    /// Times after the cursor that fired before the clock was set back, sorted.
    pub settled: Vec<i64>,
}

/// The schedules of a daemon. One index means the same schedule in every vector.
#[derive(Debug, Default)]
pub struct Table {
    specs: Vec<ScheduleSpec>,
    crons: Vec<Cron>,
    zone_of: Vec<u16>,
    zones: Vec<Arc<Zone>>,
    names: Names,
    cursor: Vec<i64>,
    due: Vec<i64>,
    soonest: i64,
    soonest_is_exact: bool,
    extras: HashMap<u32, Box<Extra>>,
    /// (oldest due occurrence, schedule); an entry counts only while its schedule is [`WAITING`].
    waiting: BinaryHeap<Reverse<(i64, u32)>>,
    /// Taken out of `waiting` for an evaluation that is not committed yet.
    in_flight: Vec<(i64, u32)>,
    /// (end of a pause, schedule).
    resumes: BTreeSet<(i64, u32)>,
}

impl Table {
    /// Compiles the rules. Cursors stand at `now` and nothing is due before [`Table::place`].
    #[must_use]
    pub fn compile(specs: Vec<ScheduleSpec>, zones: &Zones, now: i64) -> (Self, Vec<Rejected>) {
        let mut table = Self { names: Names::with_room(specs.len()), soonest: NEVER, ..Self::default() };
        table.specs.reserve_exact(specs.len());
        table.crons.reserve_exact(specs.len());
        table.zone_of.reserve_exact(specs.len());
        let mut known = HashMap::new();
        let mut rejected = Vec::new();
        for spec in specs {
            match table.compile_one(&spec, zones, &mut known) {
                Ok((cron, zone)) => {
                    table.crons.push(cron);
                    table.zone_of.push(zone);
                    table.specs.push(spec);
                }
                Err(cause) => rejected.push(Rejected { name: Arc::clone(&spec.name), cause }),
            }
        }
        table.cursor = vec![now; table.specs.len()];
        table.due = vec![NEVER; table.specs.len()];
        (table, rejected)
    }

    fn compile_one(
        &mut self,
        spec: &ScheduleSpec,
        zones: &Zones,
        known: &mut HashMap<Arc<str>, u16>,
    ) -> Result<(Cron, u16), RejectCause> {
        let cron = Cron::parse(&spec.cron)?;
        let zone = match known.get(&spec.timezone) {
            Some(zone) => *zone,
            None => {
                let zone = zones.get(&spec.timezone)?;
                let index = u16::try_from(self.zones.len()).expect("there are fewer zones than 65536");
                self.zones.push(zone);
                known.insert(Arc::clone(&spec.timezone), index);
                index
            }
        };
        let specs = &self.specs;
        if !self.names.insert(&spec.name, specs.len(), |index| &specs[index as usize].name) {
            return Err(RejectCause::Duplicate);
        }
        Ok((cron, zone))
    }

    /// How many schedules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.specs.len()
    }

    /// True without any schedule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// The schedule of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<u32> {
        self.names.find(name, |index| &self.specs[index as usize].name)
    }

    /// Sets where a schedule stands and finds when it is due.
    pub fn place(&mut self, index: u32, cursor: i64) {
        self.cursor[index as usize] = cursor;
        self.rearm(index);
    }

    /// Finds anew when a schedule is due, from its cursor.
    pub(super) fn rearm(&mut self, index: u32) {
        let asleep = self.extra(index).is_some_and(|extra| extra.pause.is_some());
        let due = if asleep { NEVER } else { self.next(index, self.cursor(index)) };
        self.set_due(index, due);
    }

    pub(super) fn next(&self, index: u32, from: i64) -> i64 {
        self.rule(index).next_after(from).unwrap_or(NEVER)
    }

    /// Puts a schedule in the line of those that catch up.
    pub(super) fn wait(&mut self, index: u32) {
        let oldest = self.next(index, self.cursor(index));
        self.set_due(index, WAITING);
        self.waiting.push(Reverse((oldest, index)));
    }

    pub(super) fn set_due(&mut self, index: u32, due: i64) {
        let place = &mut self.due[index as usize];
        let before = std::mem::replace(place, due);
        if due <= self.soonest {
            self.soonest = due;
        } else if before == self.soonest {
            self.soonest_is_exact = false;
        }
    }

    /// When the first schedule is due that does not wait for its turn.
    pub fn soonest(&mut self) -> Option<i64> {
        if !self.soonest_is_exact {
            self.soonest = self.due.iter().copied().min().unwrap_or(NEVER);
            self.soonest_is_exact = true;
        }
        (self.soonest < WAITING).then_some(self.soonest)
    }

    /// The schedules that are due and on time. Those that are late go to the line of those that
    /// catch up.
    pub fn take_due(&mut self, now: i64) -> Vec<u32> {
        if self.soonest().is_none_or(|soonest| soonest > now) {
            return Vec::new();
        }
        let (mut on_time, mut late) = (Vec::new(), Vec::new());
        for (index, due) in (0u32..).zip(&mut self.due) {
            if *due > now {
                continue;
            }
            if now - *due > GRACE {
                late.push(Reverse((*due, index)));
                *due = WAITING;
            } else {
                on_time.push(index);
            }
        }
        self.soonest_is_exact = false;
        self.waiting.append(&mut BinaryHeap::from(late));
        on_time
    }

    /// The next schedule to catch up, the one whose oldest missed occurrence is the oldest. It
    /// comes back with [`Table::give_back`] unless it is placed or waits anew.
    pub(super) fn take_waiting(&mut self) -> Option<u32> {
        while let Some(Reverse((oldest, index))) = self.waiting.pop() {
            if self.due[index as usize] == WAITING {
                self.in_flight.push((oldest, index));
                return Some(index);
            }
        }
        None
    }

    /// Puts back what was taken and not decided: the commit failed, or nobody waited for it.
    pub(super) fn give_back(&mut self) {
        self.waiting.extend(self.in_flight.drain(..).map(Reverse));
    }

    /// What was taken is decided.
    pub(super) fn settle_taken(&mut self) {
        self.in_flight.clear();
    }

    /// True when some schedule waits for its turn.
    pub(super) fn anyone_waits(&mut self) -> bool {
        while let Some(Reverse((_, index))) = self.waiting.peek() {
            if self.due[*index as usize] == WAITING {
                return true;
            }
            self.waiting.pop();
        }
        !self.in_flight.is_empty()
    }

    /// How many schedules wait for their turn. A scan.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.due.iter().filter(|due| **due == WAITING).count()
    }

    /// How many due occurrences have no outcome yet, over all schedules that are not paused.
    /// Closed form for each schedule.
    #[must_use]
    pub fn backlog(&self, now: i64) -> u64 {
        (0u32..)
            .zip(&self.due)
            .filter(|(_, due)| **due <= now || **due == WAITING)
            .map(|(index, _)| self.rule(index).count(self.cursor(index), now))
            .sum()
    }

    pub(super) fn spec(&self, index: u32) -> &ScheduleSpec {
        &self.specs[index as usize]
    }

    pub(super) fn policy(&self, index: u32) -> &SchedulePolicy {
        &self.specs[index as usize].policy
    }

    pub(super) fn cursor(&self, index: u32) -> i64 {
        self.cursor[index as usize]
    }

    /// The compiled rule of a schedule.
    #[must_use]
    pub fn rule(&self, index: u32) -> Rule<'_> {
        let at = index as usize;
        Rule {
            cron: &self.crons[at],
            zone: &self.zones[usize::from(self.zone_of[at])],
            dst: self.specs[at].policy.dst,
        }
    }

    pub(super) fn zone(&self, index: u32) -> &Arc<Zone> {
        &self.zones[usize::from(self.zone_of[index as usize])]
    }

    pub(super) fn indexes(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.specs.len()).expect("an index is 32 bits")
    }

    pub(super) fn extra(&self, index: u32) -> Option<&Extra> {
        self.extras.get(&index).map(|extra| &**extra)
    }

    /// Changes what only few have; nothing is kept for a schedule that has nothing of it.
    pub(super) fn change_extra(&mut self, index: u32, change: impl FnOnce(&mut Extra)) {
        let extra = self.extras.entry(index).or_default();
        let until = |extra: &Extra| extra.pause.as_ref().and_then(|pause| pause.until);
        if let Some(until) = until(extra) {
            self.resumes.remove(&(until.timestamp(), index));
        }
        change(extra);
        extra.skip.sort_unstable();
        extra.skip.dedup();
        extra.settled.sort_unstable();
        if let Some(until) = until(extra) {
            self.resumes.insert((until.timestamp(), index));
        }
        if extra.pause.is_none() && extra.skip.is_empty() && extra.settled.is_empty() {
            self.extras.remove(&index);
        }
    }

    /// The pause that ends first.
    pub(super) fn first_resume(&self) -> Option<(i64, u32)> {
        self.resumes.first().copied()
    }

    /// Fetches the zones again, after newer data was found.
    pub(super) fn renew_zones(&mut self, zones: &Zones) {
        for zone in &mut self.zones {
            // A zone that newer data no longer knows keeps its table.
            if let Ok(newer) = zones.get(zone.name()) {
                *zone = newer;
            }
        }
        for index in self.indexes() {
            if self.due[index as usize] != WAITING {
                self.rearm(index);
            }
        }
    }

    /// Bytes of memory behind this table, without the texts of the schedules themselves and what
    /// they share.
    #[must_use]
    pub fn bytes(&self) -> usize {
        use std::mem::size_of;
        /// An `Arc<str>` keeps two counters beside its text.
        const COUNTERS: usize = 2 * size_of::<usize>();
        self.specs.capacity() * size_of::<ScheduleSpec>()
            + self.specs.len() * COUNTERS
            + self.crons.capacity() * size_of::<Cron>()
            + self.zone_of.capacity() * size_of::<u16>()
            + (self.cursor.capacity() + self.due.capacity()) * size_of::<i64>()
            + self.names.0.capacity() * size_of::<u64>()
            + self.waiting.capacity() * size_of::<Reverse<(i64, u32)>>()
            + self.extras.capacity() * size_of::<(u32, Box<Extra>)>()
            + self.extras.len() * size_of::<Extra>()
    }
}

/// From name to index: open addressing, 16 bytes a schedule or a little more. A slot holds half
/// of a name's hash beside the index, so that other names are hardly ever looked at.
#[derive(Debug, Default)]
struct Names(Vec<u64>);

const FREE: u64 = u64::MAX;
const INDEX: u64 = 0xFFFF_FFFF;

impl Names {
    fn with_room(count: usize) -> Self {
        Self(vec![FREE; (count * 4 / 3 + 1).next_power_of_two()])
    }

    /// Where the name is, or else the slot where it belongs.
    fn locate<'a>(&self, name: &str, name_of: impl Fn(u32) -> &'a str) -> Result<u32, (usize, u64)> {
        let hash = identity(name);
        let mask = self.0.len() - 1;
        // FNV's low bits are its weak ones.
        let mut slot = (hash ^ (hash >> 32)) as usize & mask;
        loop {
            let held = self.0[slot];
            if held == FREE {
                return Err((slot, hash & !INDEX));
            }
            let index = (held & INDEX) as u32;
            if (held ^ hash) & !INDEX == 0 && name_of(index) == name {
                return Ok(index);
            }
            slot = (slot + 1) & mask;
        }
    }

    /// False when the name is there already.
    fn insert<'a>(&mut self, name: &str, index: usize, name_of: impl Fn(u32) -> &'a str) -> bool {
        let Err((slot, half)) = self.locate(name, name_of) else { return false };
        self.0[slot] = half | u64::from(u32::try_from(index).expect("an index is 32 bits"));
        true
    }

    fn find<'a>(&self, name: &str, name_of: impl Fn(u32) -> &'a str) -> Option<u32> {
        if self.0.is_empty() { None } else { self.locate(name, name_of).ok() }
    }
}
