//! The engine: chronos, dispatch, heartbeat and mailbox put together. It is what the binary's
//! lifecycle and an embedding program both run; boot, signals and configuration are theirs.
//!
//! A turn looks at the schedules and then at the queue. Each part fails for itself: trouble is
//! logged where it happens and the others go on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::chronos::{Chronos, TickOutcome, Trigger};
use super::claims::Claims;
use super::dispatch::ports::ScheduleSide;
use super::dispatch::{Dispatch, Drained};
use super::heartbeat::{Beat, Heartbeat, Pulse};
use super::mailbox::{Command, CommandError, Inbox, Phase, Work};
use crate::store::{Added, Commanded, MandateCommand, NewMandate, Resolution, Store};
use crate::sys::clock::Clock;

/// Upper bound of a sleep, unless configured; the reference's tick.
pub const DEFAULT_TICK: Duration = Duration::from_secs(10);

/// What an engine is made of.
pub struct Parts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The commit point.
    pub store: Arc<dyn Store>,
    /// Knows when schedules are due.
    pub chronos: Arc<Chronos>,
    /// Runs cycles.
    pub dispatch: Dispatch,
    /// Says that the daemon lives.
    pub heartbeat: Option<Arc<Heartbeat>>,
    /// The daemon's phase, see [`super::mailbox::Mailbox::watch_phase`].
    pub phase: watch::Receiver<Phase>,
}

/// See the module. Shared behind an `Arc`.
pub struct Engine {
    parts: Parts,
    tick_interval: watch::Sender<Duration>,
    heartbeat_interval: watch::Sender<Duration>,
    ticks: AtomicU64,
    /// The last depth that could be read, for beats while the store cannot be.
    depth: AtomicU64,
}

impl Engine {
    /// An engine that does nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let side: Arc<dyn ScheduleSide> = Arc::clone(&parts.chronos) as _;
        parts.dispatch.connect(Arc::downgrade(&side) as Weak<dyn ScheduleSide>);
        Arc::new(Self {
            parts,
            tick_interval: watch::Sender::new(DEFAULT_TICK),
            heartbeat_interval: watch::Sender::new(super::heartbeat::DEFAULT_INTERVAL),
            ticks: AtomicU64::new(0),
            depth: AtomicU64::new(0),
        })
    }

    /// Takes new timings; they count from the next sleep on.
    pub fn set_timings(&self, tick_interval: Duration, heartbeat_interval: Duration) {
        self.tick_interval.send_replace(tick_interval);
        self.heartbeat_interval.send_replace(heartbeat_interval);
    }

    /// The part that runs cycles.
    #[must_use]
    pub fn dispatch(&self) -> &Dispatch {
        &self.parts.dispatch
    }

    /// The part that knows the schedules.
    #[must_use]
    pub fn chronos(&self) -> &Arc<Chronos> {
        &self.parts.chronos
    }

    /// Evaluations since the start.
    #[must_use]
    pub fn tick_count(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// The heartbeat's task; ends when the phase is [`Phase::Stopped`]. None without a heartbeat.
    #[must_use]
    pub fn beat(self: &Arc<Self>) -> Option<tokio::task::JoinHandle<()>> {
        let heart = Arc::clone(self.parts.heartbeat.as_ref()?);
        let pulse: Arc<dyn Pulse> = Arc::clone(self) as _;
        let beats = heart.run(pulse, self.heartbeat_interval.subscribe(), self.parts.phase.clone());
        Some(tokio::spawn(beats))
    }

    /// One look at the schedules, with `claims` for what they fire. Goes on in a task of its own
    /// when this future is dropped, because cycles may have been claimed already.
    pub async fn tick(self: &Arc<Self>, claims: Arc<dyn Claims>) -> Option<TickOutcome> {
        let engine = Arc::clone(self);
        self.ticks.fetch_add(1, Ordering::Relaxed);
        let task = tokio::spawn(async move {
            let now = engine.parts.clock.now();
            engine.parts.chronos.tick(now, &*claims).await
        });
        match task.await {
            Ok(Ok(outcome)) => Some(outcome),
            Ok(Err(error)) => {
                tracing::error!(%error, "daemon_chronos_tick_failed");
                None
            }
            Err(panic) => {
                tracing::error!(error = %panic, "daemon_chronos_tick_failed");
                None
            }
        }
    }

    /// One turn of the loop: the schedules, then the queue.
    pub async fn turn(self: &Arc<Self>) {
        self.tick(Arc::new(self.parts.dispatch.clone())).await;
        self.parts.dispatch.wake();
    }

    /// Runs turns whenever something is due and carries out commands, until a command comes that
    /// is the lifecycle's: shutdown, reload, status. None when every sender of the mailbox is
    /// gone. Cancel-safe.
    pub async fn run_until_control(self: &Arc<Self>, inbox: &mut Inbox) -> Option<Command> {
        let mut changes = self.parts.dispatch.changes();
        loop {
            tokio::select! {
                command = inbox.next() => match command? {
                    Command::Work(work) => {
                        let engine = Arc::clone(self);
                        // A long backfill must not keep the schedules waiting.
                        tokio::spawn(async move { engine.execute(work).await });
                    }
                    control => return Some(control),
                },
                () = self.until_due() => self.turn().await,
                // Its next wake may be another one now.
                Ok(()) = changes.changed() => {}
            }
        }
    }

    /// Ends when a turn has something to do, after the tick interval at the latest.
    async fn until_due(&self) {
        let clock = &self.parts.clock;
        let mut longest = *self.tick_interval.borrow();
        if let Some(wake) = self.parts.dispatch.next_wake() {
            longest = longest.min((wake - clock.now()).to_std().unwrap_or_default());
        }
        tokio::select! {
            _ = self.parts.chronos.wait_until_due() => {}
            () = clock.sleep_until(clock.monotonic() + longest) => {}
        }
    }

    /// Stops claiming and ends what runs, see [`Dispatch::drain`].
    pub async fn drain(&self, grace: Duration) -> Drained {
        self.parts.dispatch.drain(grace).await
    }

    /// Carries out one command and answers it.
    pub async fn execute(&self, work: Work) {
        let (chronos, dispatch) = (&self.parts.chronos, &self.parts.dispatch);
        match work {
            Work::AddMandate(mandate, reply) => reply.give(self.add(*mandate).await),
            Work::Mandate { id, command, reply } => reply.give(self.command(&id, command).await),
            Work::Trigger { schedule, request_id, reply } => {
                let trigger = Trigger { request_id, ..Trigger::default() };
                reply.give(chronos.trigger(&schedule, trigger).await.map(|added| self.added(added)));
            }
            Work::Backfill { schedule, from, to, again, reply } => {
                reply.give(chronos.backfill(&schedule, from, to, again, None).await);
                dispatch.look();
            }
            Work::PauseSchedule { schedule, until, note, reply } => {
                reply.give(chronos.pause(&schedule, until, note, "operator").await);
            }
            Work::ResumeSchedule { schedule, backfill, reply } => {
                reply.give(chronos.resume(&schedule, backfill).await.map(|_| ()));
                dispatch.look();
            }
            Work::SkipNext { schedule, reply } => reply.give(chronos.skip_next(&schedule).await),
        }
    }

    /// Queues a mandate and lets it start.
    ///
    /// # Errors
    /// The store's.
    pub async fn add(&self, mandate: NewMandate) -> Result<Added, CommandError> {
        let added = self.parts.store.add(mandate).await?;
        Ok(self.added(added))
    }

    fn added(&self, added: Added) -> Added {
        Claims::cancel(&self.parts.dispatch, added.cancel.clone());
        self.parts.dispatch.look();
        added
    }

    async fn command(&self, id: &str, command: MandateCommand) -> Result<Commanded, CommandError> {
        let dispatch = &self.parts.dispatch;
        let goes_on = matches!(
            command,
            MandateCommand::Retry
                | MandateCommand::Resume
                | MandateCommand::Resolve { verdict: Resolution::Redo, .. }
        );
        if goes_on {
            dispatch.forget_cancel(id);
        }
        let done = self.parts.store.command(id.to_owned(), command, self.parts.clock.now()).await?;
        if done.stop_running {
            dispatch.cancel(id);
        }
        if goes_on {
            dispatch.look();
        }
        Ok(done)
    }

    /// When the last cycle ended.
    #[must_use]
    pub fn last_cycle_at(&self) -> Option<DateTime<Utc>> {
        self.parts.dispatch.last_cycle_at()
    }
}

impl Pulse for Engine {
    fn beat(&self) -> Beat {
        let dispatch = &self.parts.dispatch;
        let mut reasons = dispatch.reasons();
        match self.parts.store.counts() {
            Ok(counts) => self.depth.store(counts.queued, Ordering::Relaxed),
            Err(error) => reasons.push(error.to_string()),
        }
        let stuck = dispatch.stuck();
        if !stuck.is_empty() {
            reasons.push(format!("{} runner threads do not end", stuck.len()));
        }
        Beat {
            pid: std::process::id(),
            ts: self.parts.clock.now(),
            last_cycle_at: dispatch.last_cycle_at(),
            active_mandate_id: dispatch.active_mandate_id(),
            queue_depth: self.depth.load(Ordering::Relaxed),
            tick_count: self.tick_count(),
            state: self.parts.phase.borrow().to_string(),
            active_mandate_ids: dispatch.active_mandate_ids(),
            reasons,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl ScheduleSide for Chronos {
    fn failure_limit(&self, schedule: &str) -> Option<u32> {
        self.pause_after_failures(schedule)
    }

    fn auto_paused(self: Arc<Self>, schedule: &str) {
        let name = schedule.to_owned();
        tokio::spawn(async move {
            if let Err(error) = self.refresh(&name).await {
                tracing::error!(schedule = name, %error, "chronos_refresh_failed");
            }
        });
    }
}
