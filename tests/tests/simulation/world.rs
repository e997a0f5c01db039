//! The world of one simulation: schedules, a clock that can be set, slots in which cycles take
//! their time, and everything that may go wrong, all from one seed.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use kairos_host::daemon::chronos::{Chronos, ScheduleSet, Seams, Trigger};
use kairos_host::domain::mandate::MandateState;
use kairos_host::domain::schedule::{Dst, MissedPolicy, OnBudget, Overlap, SchedulePolicy, ScheduleSpec};
use kairos_host::store::*;
use kairos_host::sys::clock::{Clock, ManualClock};
use kairos_host::sys::entropy::SeededEntropy;
use kairos_host::sys::zones::Zones;

use crate::check::Checker;
use crate::faulty::{Fault, Faulty, Sabotage};
use crate::slots::{Slots, block_on};

const ZONES: [&str; 7] = [
    "UTC",
    "Europe/Paris",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Asia/Kathmandu",
];
const CRONS: [&str; 14] = [
    "0 9 * * *",
    "30 2 * * *",
    "0,30 2 * * *",
    "0 */6 * * *",
    "17 */8 * * *",
    "15 8-18/5 * * 1-5",
    "0 0 1 * *",
    "0 12 13 * 5",
    "45 1 * * *",
    "30 0 7 * * *",
    "0 0 * * SUN",
    "@daily",
    "20 4 */3 * *",
    "5 22 * * MON-FRI",
];
const SCOPES: [&str; 2] = ["garden", "kitchen"];
/// Calls a day that the budget allows.
const CALLS: u64 = 40;

pub struct World {
    rng: Arc<SeededEntropy>,
    clock: ManualClock,
    zones: Arc<Zones>,
    store: Arc<Faulty>,
    chronos: Chronos,
    slots: Slots,
    specs: Vec<ScheduleSpec>,
    /// Taken out of the configuration, for now.
    away: Vec<ScheduleSpec>,
    checker: Checker,
    disturb_at: Duration,
    log: VecDeque<String>,
    pub wrong: Vec<String>,
    pub figures: Figures,
}

/// What a simulation has seen, so that a quiet one does not pass for a good one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub fired: u64,
    pub missed: u64,
    pub cycles: u64,
    pub crashes: u64,
    pub commands: u64,
    pub clock_steps: u64,
    pub set_backs: usize,
}

impl World {
    pub fn new(seed: u64, schedules: usize, sabotage: Option<Sabotage>) -> Self {
        let rng = Arc::new(SeededEntropy::new(seed));
        let start: DateTime<Utc> = "2026-02-27T08:13:00Z".parse().expect("it is a time");
        let clock = ManualClock::at(start + TimeDelta::seconds((rng.next_u64() % 1_000_000) as i64));
        let zones = Arc::new(Zones::bundled());
        let store = Arc::new(Faulty::new(SqliteStore::in_memory().expect("there is memory"), sabotage));
        let chronos = chronos_on(&store, &clock, &rng, &zones);
        let slots = Slots::new(Arc::clone(&store), clock.clone(), Arc::clone(&rng), Some(CALLS));
        let mut world = Self {
            checker: Checker::new(Arc::clone(&zones)),
            rng,
            clock,
            zones,
            store,
            chronos,
            slots,
            specs: Vec::new(),
            away: Vec::new(),
            disturb_at: Duration::ZERO,
            log: VecDeque::new(),
            wrong: Vec::new(),
            figures: Figures::default(),
        };
        for n in 0..schedules {
            let spec = world.any_schedule(&format!("s{n}"));
            world.slots.policy(&spec.name, spec.policy.concurrency);
            world.specs.push(spec);
        }
        world.load();
        world
    }

    /// Lives for so long, or until something is wrong.
    pub fn live(&mut self, span: Duration) {
        let end = self.clock.monotonic() + span;
        while self.clock.monotonic() < end && self.wrong.is_empty() {
            let wake = self.next_wake().min(self.disturb_at).min(end);
            let late = if self.one_in(4) { self.below(4000) } else { 0 };
            self.clock.advance(wake.saturating_sub(self.clock.monotonic()) + Duration::from_millis(late));
            if self.clock.monotonic() >= self.disturb_at {
                self.disturb_at = self.clock.monotonic() + Duration::from_secs(600 + self.below(16 * 3600));
                self.disturb();
            }
            self.work();
        }
    }

    /// Lets everything come to rest, and checks.
    pub fn settle(&mut self) {
        if !self.wrong.is_empty() {
            return;
        }
        self.note("settles");
        self.disturb_at = Duration::MAX;
        // A clock that was set back a little holds a schedule for three hours at most.
        self.clock.advance(Duration::from_secs(4 * 3600));
        self.crash(Duration::ZERO);
        self.slots.allow_all();
        for _ in 0..2000 {
            if self.chronos.waiting() == 0 && self.chronos.next_due().is_none_or(|due| due > self.clock.now())
            {
                break;
            }
            self.clock.advance(self.next_wake().saturating_sub(self.clock.monotonic()));
            self.work();
        }
        self.checker.observe(&*self.store);
        let awake = self.awake();
        self.wrong.extend(self.checker.overdue(self.clock.now().timestamp(), &awake));
        // Nothing fires any more; what is queued runs out.
        self.away.append(&mut self.specs);
        self.load();
        for _ in 0..20_000 {
            let counts = self.store.counts().expect("the store reads");
            if counts.queued == 0 && counts.running.is_empty() {
                break;
            }
            self.clock
                .advance(self.next_wake().saturating_sub(self.clock.monotonic()) + Duration::from_secs(1));
            self.slots.look();
            self.work();
        }
        self.check_end();
    }

    fn check_end(&mut self) {
        self.check(true);
        for row in self.store.mandates(&MandateFilter::default()).expect("the store reads") {
            if matches!(row.state, MandateState::Queued | MandateState::Running) {
                self.wrong.push(format!("mandate {} is {} in the end", row.id, row.state));
            }
        }
        for name in self.specs.iter().chain(&self.away).map(|spec| &spec.name) {
            for row in self.store.occurrences(name, 0).unwrap_or_default() {
                if row.outcome == "missed" {
                    self.figures.missed += row.count;
                }
            }
        }
        self.figures.set_backs = self.checker.set_backs;
        self.figures.cycles = self.slots.finished();
    }

    /// Why it went wrong, with what came before.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for wrong in self.wrong.iter().take(12) {
            let _ = writeln!(text, "  {wrong}");
        }
        let _ = writeln!(text, "last events:");
        for line in &self.log {
            let _ = writeln!(text, "  {line}");
        }
        text
    }

    // --- the daemon's loop -------------------------------------------------------------------

    fn next_wake(&self) -> Duration {
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        let far = monotonic + Duration::from_secs(86_400);
        let from_wall = |at: DateTime<Utc>| monotonic + (at - now).to_std().unwrap_or_default();
        let due = self.chronos.next_due().map_or(far, from_wall);
        let slots = self.slots.next_wake(now).map_or(far, from_wall);
        due.min(slots).min(self.slots.next_end().unwrap_or(far)).min(far)
    }

    fn work(&mut self) {
        let now = self.clock.now();
        if self.chronos.next_due().is_some_and(|due| due <= now) {
            self.tick();
        }
        let finished = self.slots.end_cycles();
        for schedule in finished.auto_paused {
            self.note(&format!("auto-pause of {schedule}"));
            let done = block_on(self.chronos.refresh(&schedule));
            self.answer("refresh", done);
        }
        self.slots.claim();
        if self.store.is_dead() {
            let away = if self.one_in(3) { self.below(6 * 3600) } else { 0 };
            self.crash(Duration::from_secs(away));
        }
        self.wrong.append(&mut self.slots.complaints());
    }

    fn tick(&mut self) {
        let done = block_on(self.chronos.tick(self.clock.now(), &self.slots));
        if let Ok(outcome) = &done {
            self.figures.fired += outcome.fired.len() as u64;
            for (name, _, nominal) in &outcome.fired {
                self.note(&format!("fired {name} {nominal}"));
            }
        }
        self.answer("tick", done);
        self.checker.observe(&*self.store);
    }

    fn load(&mut self) {
        let set = ScheduleSet {
            specs: self.specs.clone(),
            default_runner: Some("stub".to_owned()),
            ..ScheduleSet::default()
        };
        let done = block_on(self.chronos.load(set));
        if let Ok(loaded) = &done {
            assert!(loaded.rejected.is_empty(), "{:?}", loaded.rejected);
        }
        self.answer("load", done);
        self.checker.observe(&*self.store);
    }

    /// Everything in memory is gone; after a while somebody starts the daemon again.
    fn crash(&mut self, away: Duration) {
        self.figures.crashes += 1;
        self.note(&format!("crash, away for {} s", away.as_secs()));
        self.clock.advance(away);
        for attempt in 0.. {
            assert!(attempt < 50, "it never comes up");
            self.store = Arc::new(self.store.reboot());
            self.slots.reboot(Arc::clone(&self.store));
            self.chronos = chronos_on(&self.store, &self.clock, &self.rng, &self.zones);
            if self.disturb_at != Duration::MAX && self.one_in(4) {
                // It may die again while it comes up.
                self.store.plan(self.below(8) as u32, Fault::Lost);
            }
            let recovered = self.store.recover(RecoverRequest { now: self.clock.now() }).wait();
            match recovered {
                Ok(recovered) => self.slots.take_over(recovered),
                Err(_) => continue,
            }
            self.load();
            if !self.store.is_dead() {
                break;
            }
        }
        self.check(false);
        self.tick();
    }

    fn check(&mut self, full: bool) {
        self.checker.observe(&*self.store);
        let booked = self.store.booked();
        let wrong = self.checker.check(&*self.store, full.then_some(&booked), &self.slots.running());
        self.wrong.extend(wrong);
    }

    fn awake(&self) -> HashSet<String> {
        let states = self.store.schedules().expect("the store reads");
        let paused: HashSet<String> =
            states.into_iter().filter(|state| state.pause.is_some()).map(|state| state.name).collect();
        self.specs.iter().map(|spec| spec.name.to_string()).filter(|name| !paused.contains(name)).collect()
    }

    fn answer<T>(&mut self, what: &str, done: Result<T>) {
        match done {
            Ok(_) | Err(Error::Closed | Error::Full { .. } | Error::Conflict(_) | Error::NotFound { .. }) => {
            }
            Err(error) => self.wrong.push(format!("{what}: {error}")),
        }
    }

    fn note(&mut self, what: &str) {
        if self.log.len() == 60 {
            self.log.pop_front();
        }
        let line = format!("{} (+{} s) {what}", self.clock.now(), self.clock.monotonic().as_secs());
        self.log.push_back(line);
    }

    // --- what may happen -----------------------------------------------------------------------

    fn disturb(&mut self) {
        match self.below(100) {
            0..8 => {
                let away = match self.below(10) {
                    0 => self.below(9 * 86_400),
                    1..4 => self.below(20 * 3600),
                    _ => self.below(600),
                };
                self.crash(Duration::from_secs(away));
            }
            8..16 => {
                let fault = [Fault::Lost, Fault::Unanswered, Fault::Refused][self.below(3) as usize];
                let after = self.below(6) as u32;
                self.note(&format!("plans {fault:?} after {after}"));
                self.store.plan(after, fault);
            }
            16..24 => self.step_clock(),
            24..34 => self.edit(),
            _ => self.command(),
        }
        self.checker.observe(&*self.store);
    }

    fn step_clock(&mut self) {
        self.figures.clock_steps += 1;
        let seconds = match self.below(8) {
            0..4 => self.below(7200) as i64 - 3600,
            4 => -((3 * 3600 + self.below(30 * 3600)) as i64),
            5 => (3 * 3600 + self.below(200 * 3600)) as i64,
            _ => {
                // Forward, a while in the wrong time, and back.
                let far = (4 * 3600 + self.below(400 * 3600)) as i64;
                self.set_clock(far);
                self.clock.advance(Duration::from_secs(self.below(3600)));
                self.work();
                -far
            }
        };
        self.set_clock(seconds);
    }

    fn set_clock(&mut self, by: i64) {
        self.note(&format!("clock set by {by} s"));
        self.clock.step_wall(self.clock.now() + TimeDelta::seconds(by));
        if by.abs() > 3 * 3600 {
            // The daemon looks within half a minute, due or not.
            self.tick();
        }
    }

    fn edit(&mut self) {
        self.figures.commands += 1;
        let places = self.specs.len() as u64;
        match self.below(5) {
            0 if places > 2 => {
                let spec = self.specs.swap_remove(self.below(places) as usize);
                self.note(&format!("removes {}", spec.name));
                self.away.push(spec);
            }
            1 if !self.away.is_empty() => {
                let spec = self.away.remove(0);
                self.note(&format!("adds {} again", spec.name));
                self.specs.push(spec);
            }
            2 => {
                let index = self.below(places) as usize;
                let policy = Arc::make_mut(&mut self.specs[index].policy);
                policy.enabled = !policy.enabled;
                let line =
                    format!("{} enabled: {}", self.specs[index].name, self.specs[index].policy.enabled);
                self.note(&line);
            }
            3 => {
                let index = self.below(places) as usize;
                let (cron, zone) = (self.pick(&CRONS), self.pick(&ZONES));
                self.specs[index].cron = cron.into();
                self.specs[index].timezone = zone.into();
                let line = format!("{} is now {cron} in {zone}", self.specs[index].name);
                self.note(&line);
            }
            _ => self.note("reloads"),
        }
        self.load();
    }

    fn command(&mut self) {
        self.figures.commands += 1;
        let index = self.below(self.specs.len() as u64) as usize;
        let name = self.specs[index].name.to_string();
        let now = self.clock.now();
        match self.below(8) {
            0 => {
                let until =
                    (!self.one_in(3)).then(|| now + TimeDelta::seconds(1 + self.below(5 * 86_400) as i64));
                self.note(&format!("pauses {name} until {until:?}"));
                let done = block_on(self.chronos.pause(&name, until, None, "operator"));
                self.answer("pause", done);
            }
            1 | 2 => {
                let backfill = self.one_in(3);
                self.note(&format!("resumes {name}, backfill {backfill}"));
                let done = block_on(self.chronos.resume(&name, backfill));
                self.answer("resume", done);
            }
            3 => {
                let done = block_on(self.chronos.skip_next(&name));
                self.note(&format!("skips the next of {name}: {done:?}"));
                self.answer("skip", done);
            }
            4 => {
                let request_id = (!self.one_in(2)).then(|| format!("r{}", self.below(40)));
                self.note(&format!("triggers {name}"));
                let done =
                    block_on(self.chronos.trigger(&name, Trigger { request_id, ..Trigger::default() }));
                self.answer("trigger", done);
            }
            5 => {
                let from = now - TimeDelta::seconds(self.below(4 * 86_400) as i64);
                let again = self.one_in(3);
                self.note(&format!("backfills {name} from {from}, again {again}"));
                let done = block_on(self.chronos.backfill(&name, from, now, again, None));
                self.answer("backfill", done);
            }
            _ => self.command_mandate(now),
        }
        self.slots.look();
    }

    fn command_mandate(&mut self, now: DateTime<Utc>) {
        let rows = self.store.mandates(&MandateFilter { limit: 20, ..MandateFilter::default() });
        let rows = rows.expect("the store reads");
        if rows.is_empty() {
            return;
        }
        let row = &rows[self.below(rows.len() as u64) as usize];
        let command = match row.state {
            MandateState::Queued | MandateState::Running => MandateCommand::Stop { note: None },
            MandateState::Review => {
                let verdict = [Resolution::Done, Resolution::Redo, Resolution::Fail][self.below(3) as usize];
                MandateCommand::Resolve { verdict, note: "looked at it".to_owned() }
            }
            state if state.is_end() => MandateCommand::Retry,
            _ => MandateCommand::Resume,
        };
        self.note(&format!("{command:?} of {} which is {}", row.id, row.state));
        let done = self.store.command(row.id.clone(), command, now).wait();
        if let Ok(done) = &done
            && done.stop_running
        {
            self.slots.stop(&row.id);
        }
        self.answer("command", done);
    }

    // --- chance --------------------------------------------------------------------------------

    fn any_schedule(&self, name: &str) -> ScheduleSpec {
        let overlaps = [
            Overlap::Queue,
            Overlap::QueueOne,
            Overlap::Reject,
            Overlap::Allow,
            Overlap::AllowQueued,
            Overlap::Replace,
        ];
        let policies = [MissedPolicy::Skip, MissedPolicy::CatchUpOnce, MissedPolicy::CatchUpBounded];
        let policy = SchedulePolicy {
            enabled: !self.one_in(8),
            project_scope: self.one_in(3).then(|| self.pick(&SCOPES).to_owned()),
            missed_policy: self.pick(&policies),
            max_catch_up_runs: 1 + self.below(6) as u32,
            stale_after: Duration::from_secs(3600 + self.below(72 * 3600)),
            start_deadline: self.one_in(4).then(|| Duration::from_secs(60 + self.below(40 * 3600))),
            concurrency: self.pick(&overlaps),
            jitter: Duration::from_secs(if self.one_in(3) { self.below(7200) } else { 0 }),
            dst: if self.one_in(4) { Dst::Literal } else { Dst::Cron },
            on_budget: if self.one_in(3) { OnBudget::Skip } else { OnBudget::Hold },
            pause_after_failures: self.one_in(3).then(|| 1 + self.below(3) as u32),
            ..SchedulePolicy::default()
        };
        ScheduleSpec {
            name: name.into(),
            cron: self.pick(&CRONS).into(),
            timezone: self.pick(&ZONES).into(),
            goal: "water the plants".into(),
            policy: Arc::new(policy),
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.rng.next_u64() % bound.max(1)
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

fn chronos_on(
    store: &Arc<Faulty>,
    clock: &ManualClock,
    rng: &Arc<SeededEntropy>,
    zones: &Arc<Zones>,
) -> Chronos {
    Chronos::new(Seams {
        store: Arc::clone(store) as Arc<dyn Store>,
        clock: Arc::new(clock.clone()),
        entropy: Arc::clone(rng) as _,
        zones: Arc::clone(zones),
    })
}
