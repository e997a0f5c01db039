//! The engine: chronos, dispatch, heartbeat and mailbox put together for a program that embeds a
//! daemon. The binary's lifecycle drives the same parts, with signals and a service manager beside.
//!
//! A turn looks at the schedules and then at the queue. Each part fails for itself: trouble is
//! logged where it happens and the others go on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::chronos::{Chronos, TickOutcome};
use super::claims::Claims;
use super::dispatch::Dispatch;
use super::dispatch::ports::ScheduleSide;
use super::heartbeat::{self, Beat, Heartbeat, Pulse};
use super::mailbox::{Command, Inbox, Phase, Work};
use super::vitals::Vitals;
use super::work::Hands;
use crate::store::Store;
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
    ticks: Arc<AtomicU64>,
    vitals: Arc<Vitals>,
}

impl Engine {
    /// An engine that does nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        connect(&parts.dispatch, &parts.chronos);
        let ticks = Arc::new(AtomicU64::new(0));
        let vitals = Vitals::new(
            Arc::clone(&parts.clock),
            Arc::clone(&parts.store),
            parts.dispatch.clone(),
            parts.phase.clone(),
            Arc::clone(&ticks),
        );
        Arc::new(Self {
            parts,
            tick_interval: watch::Sender::new(DEFAULT_TICK),
            heartbeat_interval: watch::Sender::new(heartbeat::DEFAULT_INTERVAL),
            ticks,
            vitals: Arc::new(vitals),
        })
    }

    /// Takes new timings; both count from now on.
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

    /// How things are now. Reads the store.
    #[must_use]
    pub fn beat_now(&self) -> Beat {
        self.vitals.beat()
    }

    /// The heartbeat's task; ends when the phase is [`Phase::Stopped`]. None without a heartbeat.
    #[must_use]
    pub fn beat(&self) -> Option<tokio::task::JoinHandle<()>> {
        let heart = Arc::clone(self.parts.heartbeat.as_ref()?);
        let pulse: Arc<dyn Pulse> = Arc::clone(&self.vitals) as _;
        let beats = heart.run(pulse, self.heartbeat_interval.subscribe(), self.parts.phase.clone());
        Some(tokio::spawn(beats))
    }

    /// When the next beat is due on the clock's monotonic side; none without a heartbeat.
    #[must_use]
    pub fn beat_due_at(&self) -> Option<Duration> {
        self.parts.heartbeat.as_ref().map(|heart| heart.due_at(*self.heartbeat_interval.borrow()))
    }

    /// Writes a beat if one is due.
    pub async fn emit_if_due(&self) {
        if let Some(heart) = &self.parts.heartbeat {
            let interval = *self.heartbeat_interval.borrow();
            let pulse: Arc<dyn Pulse> = Arc::clone(&self.vitals) as _;
            heart.beat_if_due(&pulse, interval).await;
        }
    }

    /// Writes a beat now.
    pub async fn emit(&self) {
        if let Some(heart) = &self.parts.heartbeat {
            let pulse: Arc<dyn Pulse> = Arc::clone(&self.vitals) as _;
            heart.beat(&pulse).await;
        }
    }

    /// One look at the schedules, with `claims` for what they fire; none when it failed. Goes on
    /// in a task of its own when this future is dropped, because cycles may have been claimed.
    pub async fn tick(&self, claims: Arc<dyn Claims>) -> Option<TickOutcome> {
        self.ticks.fetch_add(1, Ordering::Relaxed);
        let (chronos, clock) = (Arc::clone(&self.parts.chronos), Arc::clone(&self.parts.clock));
        let error = match tokio::spawn(async move { chronos.tick(clock.now(), &*claims).await }).await {
            Ok(Ok(outcome)) => return Some(outcome),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        tracing::error!(error, "daemon_chronos_tick_failed");
        None
    }

    /// Runs turns whenever something is due and carries out commands, until a command comes that
    /// is not about work: shutdown, reload, status. None when every sender of the mailbox is gone.
    /// Cancel-safe.
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
                () = self.until_due() => {
                    self.tick(Arc::new(self.parts.dispatch.clone())).await;
                    self.parts.dispatch.wake();
                }
                // Its next wake may be another one now.
                Ok(()) = changes.changed() => {}
            }
        }
    }

    /// Carries out one command and answers it.
    pub async fn execute(&self, work: Work) {
        let Parts { store, chronos, dispatch, clock, .. } = &self.parts;
        let hands = Hands { store: &**store, chronos, dispatch: Some(dispatch), clock: &**clock };
        hands.carry_out(work).await;
    }

    /// Ends when a turn has something to do, after the tick interval at the latest.
    async fn until_due(&self) {
        let clock = &self.parts.clock;
        let wake = self.parts.dispatch.next_wake();
        let left = wake.map(|wake| (wake - clock.now()).to_std().unwrap_or_default());
        let longest = *self.tick_interval.borrow();
        let sleep = left.unwrap_or(longest).min(longest);
        tokio::select! {
            _ = self.parts.chronos.wait_until_due() => {}
            () = clock.sleep_until(clock.monotonic() + sleep) => {}
        }
    }
}

/// Introduces chronos to dispatch: failure limits one way, automatic pauses the other.
pub fn connect(dispatch: &Dispatch, chronos: &Arc<Chronos>) {
    let side: Arc<dyn ScheduleSide> = Arc::clone(chronos) as _;
    dispatch.connect(Arc::downgrade(&side) as Weak<dyn ScheduleSide>);
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
