//! Dispatch: takes queued mandates when a slot and the budget allow, runs their cycles, and books
//! what came of them. The store decides what starts and what follows; dispatch never looks at a
//! schedule, never holds a lock across a runner's call, and never blocks the runtime: store
//! answers are awaited, runners have threads of their own.
//!
//! ```text
//! chronos fires ----- claim in the same commit ----+
//! queued / wake ----- store.claim -----------------+--> slot: log, services, runner, report
//! finish of a cycle - claim in the same commit ----+          |
//!        ^---------------- store.finish <---------------------+
//! ```

mod breaker;
mod claiming;
mod conclude;
mod cycle;
mod deaths;
mod ending;
mod host_calls;
pub mod ports;
mod sandboxes;
mod slots;
mod waits;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Semaphore, watch};

pub use conclude::{Outcome, Seen, Stops, Verdict, conclude};
pub use ending::Ended;
pub use slots::Stuck;
pub use waits::HeldBack;

use self::ports::{CycleLog, OpenServices, ScheduleSide, Trials};
use self::slots::{HoldKind, Table};
use super::claims::{Claims, Permits};
use super::wallet::Wallet;
use crate::runner::Runners;
use crate::store::{self, BudgetBlock, BudgetGate, ClaimOutcome, ClaimRequest, ClaimedCycle, Offers, Store};
use crate::sys::clock::Clock;

/// Time a runner gets to end after a deadline or a person's stop, before its process is killed, or
/// its thread left to itself.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// Time that interrupted cycles get to be recorded at the end of a drain.
const RECORD_GRACE: Duration = Duration::from_secs(5);
/// A drain looks at least so often whether everything has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Most slots; beyond it threads and memory are the limit, not this number.
const SLOTS_MAX: usize = 1 << 16;

/// What is to happen when a mandate's log cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLogError {
    /// The cycle does not start; the mandate waits.
    #[default]
    Refuse,
    /// It runs without its file; the store has the record all the same.
    Continue,
}

/// What a reload may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most cycles that run at once.
    pub slots: usize,
    /// See [`OnLogError`].
    pub on_log_error: OnLogError,
    /// See [`STOP_GRACE`].
    pub stop_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { slots: 1, on_log_error: OnLogError::default(), stop_grace: STOP_GRACE }
    }
}

/// What dispatch works with.
pub struct Parts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The commit point.
    pub store: Arc<dyn Store>,
    /// The runners.
    pub runners: Arc<Runners>,
    /// The broker; [`Dispatch::set_services`] replaces it.
    pub services: Arc<dyn OpenServices>,
    /// The write-ahead log; none runs without.
    pub log: Option<Arc<dyn CycleLog>>,
    /// Day and limits.
    pub wallet: Arc<Wallet>,
}

/// The handle; clones are the same dispatch. It stops claiming when [`Dispatch::drain`] is called.
#[derive(Clone)]
pub struct Dispatch(Arc<Inner>);

struct Inner {
    parts: Parts,
    settings: RwLock<Settings>,
    services: RwLock<Arc<dyn OpenServices>>,
    offers: RwLock<Offers>,
    slots: Arc<Semaphore>,
    table: Mutex<Table>,
    /// Counts up whenever something happened that the loop may care for.
    changed: watch::Sender<u64>,
    fatal: watch::Sender<Option<store::Error>>,
    schedules: OnceLock<Weak<dyn ScheduleSide>>,
    trials: OnceLock<Weak<dyn Trials>>,
    runtime: tokio::runtime::Handle,
}

/// What became of one hand-driven cycle.
#[derive(Clone, Debug)]
pub enum OneCycle {
    /// Nothing waits, or nothing that may start now.
    Idle,
    /// The day's budget is used up; the queue stays as it is.
    Blocked(BudgetBlock),
    /// It ran.
    Ran(Box<Ended>),
    /// It was claimed and given back, with that reason.
    Held(String),
}

/// What a drain left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Mandates whose runner did not end in time; their cycle is recorded as interrupted, they go on after the next start.
    pub interrupted: Vec<String>,
    /// Mandates of which even that could not be recorded; recovery finds them running.
    pub unrecorded: Vec<String>,
}

impl Dispatch {
    /// Claims nothing until [`Dispatch::start`]. Its tasks live on the current tokio runtime, of
    /// whatever flavour.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let slots = settings.slots.clamp(1, SLOTS_MAX);
        let dispatch = Self(Arc::new(Inner {
            services: RwLock::new(Arc::clone(&parts.services)),
            parts,
            settings: RwLock::new(settings),
            offers: RwLock::default(),
            slots: Arc::new(Semaphore::new(slots)),
            table: Mutex::default(),
            changed: watch::Sender::new(0),
            fatal: watch::Sender::new(None),
            schedules: OnceLock::new(),
            trials: OnceLock::new(),
            runtime: tokio::runtime::Handle::current(),
        }));
        dispatch.0.read_offers();
        dispatch
    }

    /// Introduces the schedules' side; the first call counts.
    pub fn connect(&self, schedules: Weak<dyn ScheduleSide>) {
        let _ = self.0.schedules.set(schedules);
    }

    /// Introduces who watches generations on trial; the first call counts.
    pub fn connect_trials(&self, trials: Weak<dyn Trials>) {
        let _ = self.0.trials.set(trials);
    }

    /// Begins to claim; first come the cycles that recovery handed back.
    pub fn start(&self, recovered: Vec<ClaimedCycle>) {
        self.begin(recovered);
        self.0.kick();
    }

    /// As [`Dispatch::start`], for hand-driven use: only [`Dispatch::run_one`] starts anything.
    pub fn begin(&self, recovered: Vec<ClaimedCycle>) {
        let mut table = self.0.table();
        table.accepting = true;
        table.wanted = true;
        table.backlog.extend(recovered);
        drop(table);
        self.0.note_sandboxes();
    }

    /// Looks for work if something changed since the last look: a hold is over, a mandate became
    /// ready, the day turned. The loop calls it whenever it wakes.
    pub fn wake(&self) {
        let now = self.0.parts.clock.now();
        let monotonic = self.0.parts.clock.monotonic();
        let (retry_runners, let_go) = {
            let mut table = self.0.table();
            let let_go = table.breakers.release(monotonic);
            if table.next_ready.is_some_and(|ready| ready <= now) {
                (table.next_ready, table.wanted) = (None, true);
            }
            // A blocked budget may have turned its day; asking costs one read of the ledger.
            if table.blocked.is_some() || table.retry_at().is_some_and(|at| at <= monotonic) {
                table.wanted = true;
            }
            (table.retry_runners.as_ref().is_some_and(|hold| hold.retry_at <= monotonic), let_go)
        };
        if let_go {
            self.runners_changed();
        }
        if retry_runners {
            self.0.retry_runners();
        }
        self.0.kick();
    }

    /// When [`Dispatch::wake`] should be called, at the latest.
    #[must_use]
    pub fn next_wake(&self) -> Option<DateTime<Utc>> {
        let (now, monotonic) = (self.0.parts.clock.now(), self.0.parts.clock.monotonic());
        let table = self.0.table();
        let retry = table.retry_at().map(|at| now + at.saturating_sub(monotonic));
        let day = table.blocked.as_ref().map(|_| self.0.parts.wallet.next_day(now));
        retry.into_iter().chain(table.next_ready).chain(day).min()
    }

    /// Counts up when a cycle started or ended, or a reason to wait came or went.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Set when the store's writer has retired: the daemon must stop, exit code 8.
    #[must_use]
    pub fn fatal(&self) -> watch::Receiver<Option<store::Error>> {
        self.0.fatal.subscribe()
    }

    /// Takes new settings. Fewer slots than are in use: none is taken away from a running cycle.
    pub fn configure(&self, settings: Settings) {
        let before = std::mem::replace(
            &mut *self.0.settings.write().unwrap_or_else(PoisonError::into_inner),
            settings,
        );
        let (old, new) = (before.slots.clamp(1, SLOTS_MAX), settings.slots.clamp(1, SLOTS_MAX));
        {
            let mut table = self.0.table();
            if new > old {
                let kept = table.surplus.min(new - old);
                table.surplus -= kept;
                self.0.slots.add_permits(new - old - kept);
            } else {
                table.surplus += old - new - self.0.slots.forget_permits(old - new);
            }
            table.wanted = true;
        }
        self.0.kick();
    }

    /// Cycles that begin from now on get their services from here.
    pub fn set_services(&self, services: Arc<dyn OpenServices>) {
        *self.0.services.write().unwrap_or_else(PoisonError::into_inner) = services;
    }

    /// Another version serves that runner: what its predecessor died of does not hold it back.
    pub fn runner_replaced(&self, runner: &str) {
        self.0.table().breakers.forget(runner);
        self.runners_changed();
    }

    /// The set of runners, or what one offers, has changed.
    pub fn runners_changed(&self) {
        self.0.read_offers();
        self.0.table().wanted = true;
        self.0.note_sandboxes();
        self.0.note_waits();
        self.0.kick();
    }

    /// Ends when no cycle of that runner is under way; false when `limit` passed before. Claims that
    /// were on their way when its offer ended are waited for, too.
    pub async fn runner_idle(&self, runner: &str, limit: Duration) -> bool {
        self.none_of(limit, |of, _| of == runner).await
    }

    /// As [`Dispatch::runner_idle`], for the cycles that a generation began.
    pub async fn generation_idle(&self, generation: &str, limit: Duration) -> bool {
        self.none_of(limit, |_, of| of == generation).await
    }

    async fn none_of(&self, limit: Duration, is: impl Fn(&str, &str) -> bool) -> bool {
        let clock = Arc::clone(&self.0.parts.clock);
        let end = clock.monotonic() + limit;
        // The writer answers in turn: behind this every earlier claim has its answer.
        if self.0.parts.store.flush().await.is_err() {
            return false;
        }
        let mut changes = self.0.changed.subscribe();
        loop {
            changes.borrow_and_update();
            let busy = {
                let table = self.0.table();
                let slots = self.0.settings().slots.clamp(1, SLOTS_MAX) + table.surplus;
                // A slot that is taken and runs nothing is between a claim and its cycle.
                slots > table.running.len() + self.0.slots.available_permits()
                    || table.running.values().any(|running| is(&running.runner, &running.generation))
                    || table.backlog.iter().any(|cycle| is(&cycle.runner, &cycle.generation))
            };
            if !busy {
                return true;
            }
            if clock.monotonic() >= end {
                return false;
            }
            tokio::select! {
                Ok(()) = changes.changed() => {}
                () = clock.sleep_until(end.min(clock.monotonic() + LOOK_AGAIN)) => {}
            }
        }
    }

    /// Asks the cycles on that generation to end; they are interrupted and go on later.
    pub fn interrupt_generation(&self, generation: &str) {
        self.0.running_on(generation).iter().for_each(|running| running.stop(|stops| stops.shutdown = true));
    }

    /// Waits no longer for the cycles on that generation. Gives their mandates.
    pub fn abandon_generation(&self, generation: &str) -> Vec<String> {
        let left = self.0.running_on(generation);
        left.iter().for_each(|running| running.stop(|stops| stops.abandon = true));
        left.iter().map(|running| running.mandate.clone()).collect()
    }

    /// Asks a mandate's running cycle to end, for good. The store must know of it already.
    pub fn cancel(&self, mandate: &str) {
        let running = self.0.table().find_to_cancel(mandate);
        if let Some(running) = running {
            running.stop(|stops| stops.cancel = true);
        }
    }

    /// The mandate may run again: a cancel that still lies about does not count.
    pub fn forget_cancel(&self, mandate: &str) {
        self.0.table().forget_cancel(mandate);
    }

    /// Claims one mandate and runs one cycle of it to its end. For driving by hand. Goes on by
    /// itself when this future is dropped: a claimed cycle must not be lost half way.
    ///
    /// # Errors
    /// The store refused the claim.
    pub async fn run_one(&self) -> Result<OneCycle, store::Error> {
        let inner = Arc::clone(&self.0);
        let task = self.0.runtime.spawn(async move { inner.one().await });
        match task.await {
            Ok(done) => done,
            Err(error) => Ok(OneCycle::Held(format!("the host's own task failed: {error}"))),
        }
    }

    /// Stops claiming, asks running cycles to end, waits `grace` for them, and then records what
    /// is left as interrupted. Their mandates go on after the next start.
    pub async fn drain(&self, grace: Duration) -> Drained {
        {
            let mut table = self.0.table();
            table.accepting = false;
            table.running.values().for_each(|running| running.stop(|stops| stops.shutdown = true));
        }
        let mut left = Vec::new();
        if !self.0.idle_within(grace).await {
            left = self.active_mandate_ids();
            let running: Vec<_> = self.0.table().running.values().cloned().collect();
            running.iter().for_each(|running| running.stop(|stops| stops.abandon = true));
            self.0.idle_within(RECORD_GRACE).await;
        }
        let mut unrecorded = std::mem::take(&mut self.0.table().unrecorded);
        unrecorded.extend(self.active_mandate_ids());
        let interrupted = left.into_iter().filter(|id| !unrecorded.contains(id)).collect();
        Drained { interrupted, unrecorded }
    }

    /// Ends when no cycle runs.
    pub async fn idle(&self) {
        let mut changes = self.0.changed.subscribe();
        while !self.0.table().running.is_empty() {
            // The sender is ours, so a change is all that can come.
            let _ = changes.changed().await;
        }
    }

    /// The store refused somebody else's write: that holds work back and is a reason to show, too.
    pub fn store_refused(&self, error: &store::Error) {
        self.0.store_fails(error);
    }

    /// The store takes writes again.
    pub fn store_accepts(&self) {
        self.0.store_works();
    }

    /// Mandates that run, the longest first.
    #[must_use]
    pub fn active_mandate_ids(&self) -> Vec<String> {
        self.0.table().running.values().map(|running| running.mandate.clone()).collect()
    }

    /// The mandate that has run longest.
    #[must_use]
    pub fn active_mandate_id(&self) -> Option<String> {
        self.0.table().running.values().next().map(|running| running.mandate.clone())
    }

    /// When the last cycle ended.
    #[must_use]
    pub fn last_cycle_at(&self) -> Option<DateTime<Utc>> {
        self.0.table().last_cycle_at
    }

    /// Why nothing of this runner starts, if that is so now.
    #[must_use]
    pub fn unserved(&self, runner: &str) -> Option<String> {
        let missing = self.0.parts.runners.current(runner).err().map(|error| error.to_string());
        missing.or_else(|| self.0.unfit().remove(runner))
    }

    /// Why waiting work does not start, and what is less than it could be, for people.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let trouble = self.0.runner_trouble();
        let degraded = self.0.parts.runners.degraded().into_iter();
        // What cannot serve at all is told once.
        let degraded: Vec<String> =
            degraded.filter(|(runner, _)| !trouble.contains_key(runner)).map(|(_, told)| told).collect();
        let mut reasons = self.0.table().reasons();
        reasons.extend(trouble.into_iter().map(|(runner, why)| format!("runner {runner}: {why}")));
        reasons.extend(degraded);
        reasons
    }

    /// Set while a runner that is there is not tried, because it keeps dying.
    #[must_use]
    pub fn held_back(&self, runner: &str) -> Option<HeldBack> {
        self.0.held_back(runner)
    }

    /// Why nothing of this runner could begin when it was tried last, if that is so.
    #[must_use]
    pub fn cannot_begin(&self, runner: &str) -> Option<String> {
        self.0.table().breakers.trouble(runner).map(ToOwned::to_owned)
    }

    /// Threads that did not end when they were asked to.
    #[must_use]
    pub fn stuck(&self) -> Vec<Stuck> {
        self.0.table().stuck.values().cloned().collect()
    }

    /// Does the next look for a caller that saw something being queued.
    pub fn look(&self) {
        self.0.table().wanted = true;
        self.0.kick();
    }
}

impl Claims for Dispatch {
    fn request(&self, now: DateTime<Utc>) -> Option<(ClaimRequest, Permits)> {
        self.0.claim(now)
    }

    fn gate(&self, now: DateTime<Utc>) -> Option<BudgetGate> {
        self.0.parts.wallet.gate(now)
    }

    fn started(&self, outcome: ClaimOutcome, permits: Permits) {
        self.0.take(outcome, permits);
    }

    fn cancel(&self, mandates: Vec<String>) {
        for mandate in mandates {
            Self::cancel(self, &mandate);
        }
    }

    fn queued(&self) {
        self.look();
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running_on(&self, generation: &str) -> Vec<Arc<slots::Running>> {
        let table = self.table();
        table.running.values().filter(|running| running.generation == generation).cloned().collect()
    }

    fn settings(&self) -> Settings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing runs and no claim is under way; false when `limit` passed before.
    async fn idle_within(&self, limit: Duration) -> bool {
        let clock = &self.parts.clock;
        let mut changes = self.changed.subscribe();
        let end = clock.monotonic() + limit;
        loop {
            changes.borrow_and_update();
            if self.is_idle() {
                return true;
            }
            if clock.monotonic() >= end {
                return false;
            }
            tokio::select! {
                biased;
                Ok(()) = changes.changed() => {}
                // A claim of chronos that failed gives its slots back without a word.
                () = clock.sleep_until(end.min(clock.monotonic() + LOOK_AGAIN)) => {}
            }
        }
    }

    /// Nothing runs, and every slot is at home: none is set aside for a claim.
    fn is_idle(&self) -> bool {
        let table = self.table();
        let slots = self.settings().slots.clamp(1, SLOTS_MAX) + table.surplus;
        table.running.is_empty() && self.slots.available_permits() >= slots
    }

    /// Sorts a store's error: one that passes holds work back, one that does not ends the daemon.
    fn store_fails(&self, error: &store::Error) {
        match error {
            store::Error::Full { .. } | store::Error::ReadOnly { .. } => {
                let now = self.parts.clock.monotonic();
                if self.table().hold(HoldKind::Store, &error.to_string(), now) {
                    tracing::error!(%error, "daemon_store_refuses");
                }
                self.touch();
            }
            store::Error::SyncFailed { .. } | store::Error::Closed => {
                self.table().accepting = false;
                self.fatal.send_if_modified(|fatal| {
                    let news = fatal.is_none();
                    if news {
                        *fatal = Some(error.clone());
                    }
                    news
                });
            }
            other => tracing::error!(error = %other, "daemon_ooda_cycle_failed"),
        }
    }

    fn store_works(&self) {
        if self.table().release(HoldKind::Store) {
            tracing::info!("daemon_store_restored");
            self.touch();
        }
    }
}
