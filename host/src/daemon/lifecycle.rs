//! The daemon's loop: sleeps until something is due or somebody asks for something, never polls,
//! and ends in one drain. A failing part is logged and never stops the others; only a store that
//! can no longer promise anything ends the daemon.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use super::chronos::Chronos;
use super::dispatch::{Dispatch, Drained};
use super::mailbox::{Command, CommandError, Inbox, Phase, Reloaded};
use super::service_manager::{self, ServiceManager};
use super::signals::{Asked, Signals};
use super::swap::Swaps;
use super::work::Hands;
use crate::store::{self, Store};
use crate::sys::clock::Clock;

/// Commands carried out at the same time; beyond it they wait in the mailbox.
const AT_ONCE: usize = 256;
/// After a failed tick the next one waits this long, unless something else wakes the loop.
const TICK_BACK_OFF: Duration = Duration::from_secs(1);

/// What only the one who configured the daemon can do.
pub trait Office: Send + Sync + 'static {
    /// Reads the configuration again and puts in force what can be.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Reloaded> + Send + '_>>;
    /// The status snapshot.
    fn status(&self) -> Value;
    /// One line for the service manager.
    fn line(&self) -> String;
    /// Time for a graceful stop.
    fn graceful_timeout(&self) -> Duration;
    /// Longest sleep between two looks.
    fn tick_interval(&self) -> Duration;
}

/// How the daemon ended.
#[derive(Debug)]
pub enum End {
    /// As asked, everything recorded.
    Clean,
    /// Some runners did not end in time; their mandates go on after the next start.
    GraceExceeded(Vec<String>),
    /// The store can promise nothing more.
    StoreFailed(store::Error),
    /// A second signal: now.
    SecondSignal,
}

/// The loop and what it drives.
pub struct Lifecycle {
    /// The schedules.
    pub chronos: Arc<Chronos>,
    /// The cycles.
    pub dispatch: Dispatch,
    /// What replaces versions of runners.
    pub swaps: Swaps,
    /// The commit point.
    pub store: Arc<dyn Store>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The mailbox's other end.
    pub inbox: Inbox,
    /// Who configured it.
    pub office: Arc<dyn Office>,
    /// Evaluations so far.
    pub ticks: Arc<AtomicU64>,
    /// Who started the daemon, if it wants to know.
    pub manager: ServiceManager,
}

impl Lifecycle {
    /// Runs until somebody asks for the end, or the store fails.
    pub async fn run(mut self, signals: &mut Signals) -> End {
        let mut fatal = self.dispatch.fatal();
        let mut changes = self.dispatch.changes();
        let mut jobs = JoinSet::new();
        let watchdog = service_manager::watchdog_period();
        let mut fed = self.clock.monotonic();
        let mut hold = Duration::ZERO;
        self.inbox.enter(Phase::Running);
        self.manager.ready(self.office.line());
        tracing::info!("daemon_started");
        loop {
            let wake = self.wake_at(hold, watchdog.map(|period| fed + period));
            tokio::select! {
                biased;
                asked = signals.next() => match asked {
                    Asked::Stop => break,
                    Asked::Reload => self.reload().await,
                    Asked::StatusDump => self.status_dump(),
                },
                _ = fatal.changed() => {
                    if let Some(error) = fatal.borrow().clone() {
                        return End::StoreFailed(error);
                    }
                }
                command = self.inbox.next(), if jobs.len() < AT_ONCE => match command {
                    // Every sender is gone, and with them everybody who could ask for the end.
                    None => break,
                    Some(Command::Shutdown(reply)) => {
                        reply.give(Ok::<_, CommandError>(()));
                        break;
                    }
                    Some(command) => self.serve(command, &mut jobs).await,
                },
                _ = jobs.join_next(), if !jobs.is_empty() => {}
                _ = changes.changed() => self.manager.status(self.office.line()),
                _ = self.chronos.wait_until_due(), if hold <= self.clock.monotonic() => {
                    match self.tick().await {
                        Ok(()) if hold > Duration::ZERO => {
                            hold = Duration::ZERO;
                            self.dispatch.store_accepts();
                        }
                        Ok(()) => {}
                        Err(error) if is_fatal(&error) => return End::StoreFailed(error),
                        Err(error) => {
                            // Said once; it is tried again all the time.
                            if hold == Duration::ZERO {
                                tracing::error!(%error, "daemon_chronos_tick_failed");
                            }
                            self.dispatch.store_refused(&error);
                            hold = self.clock.monotonic() + TICK_BACK_OFF;
                        }
                    }
                }
                () = self.clock.sleep_until(wake) => {}
            }
            self.dispatch.wake();
            if watchdog.is_some_and(|period| self.clock.monotonic() >= fed + period) {
                self.feed().await;
                fed = self.clock.monotonic();
            }
        }
        self.end(signals, jobs).await
    }

    /// Monotonic time of the next look that no event announces.
    fn wake_at(&self, hold: Duration, feed: Option<Duration>) -> Duration {
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        let left = self.dispatch.next_wake().map(|at| (at - now).to_std().unwrap_or(Duration::ZERO));
        let bound = left.unwrap_or(Duration::MAX).min(self.office.tick_interval());
        let held = (hold > monotonic).then_some(hold);
        let soonest = feed.into_iter().chain(held).fold(monotonic + bound, Duration::min);
        // A time that has passed means soon, not a loop that never rests.
        soonest.max(monotonic + Duration::from_millis(1))
    }

    async fn tick(&self) -> store::Result<()> {
        self.ticks.fetch_add(1, Ordering::Relaxed);
        let outcome = self.chronos.tick(self.clock.now(), &self.dispatch).await?;
        for (schedule, mandate, nominal) in &outcome.fired {
            tracing::info!(%schedule, %mandate, %nominal, "chronos_fired");
        }
        for (schedule, nominal, reason) in &outcome.dropped {
            tracing::info!(%schedule, %nominal, reason, "chronos_mandate_rejected");
        }
        Ok(())
    }

    async fn serve(&self, command: Command, jobs: &mut JoinSet<()>) {
        match command {
            Command::Shutdown(reply) => reply.give(Ok::<_, CommandError>(())),
            Command::Reload(reply) => {
                reply.give(Ok::<_, CommandError>(self.reloaded().await));
            }
            Command::StatusDump(reply) => {
                self.status_dump();
                reply.give(Ok::<_, CommandError>(self.office.status()));
            }
            Command::Work(work) => {
                let (store, chronos) = (Arc::clone(&self.store), Arc::clone(&self.chronos));
                let (dispatch, clock) = (self.dispatch.clone(), Arc::clone(&self.clock));
                // A task of its own: a backfill must not hold up the schedules.
                jobs.spawn(async move {
                    let hands = Hands {
                        store: &*store,
                        chronos: &chronos,
                        dispatch: Some(&dispatch),
                        clock: &*clock,
                    };
                    hands.carry_out(work).await;
                });
            }
        }
    }

    async fn reload(&self) {
        self.reloaded().await;
    }

    async fn reloaded(&self) -> Reloaded {
        self.manager.reloading();
        let reloaded = self.office.reload().await;
        if reloaded.problems.is_empty() {
            tracing::info!(applied = ?reloaded.applied, needs_restart = ?reloaded.needs_restart,
                noticed = ?reloaded.noticed, "daemon_config_reloaded");
        } else {
            tracing::warn!(problems = ?reloaded.problems, applied = ?reloaded.applied, "daemon_config_reload_failed");
        }
        self.manager.ready(self.office.line());
        reloaded
    }

    fn status_dump(&self) {
        tracing::info!(status = %self.office.status(), "daemon_status");
    }

    /// The watchdog is fed only when the writer answers too; this loop proves itself by being here.
    async fn feed(&self) {
        let alive = self.store.flush();
        if tokio::time::timeout(Duration::from_secs(5), alive).await.is_ok() {
            self.manager.alive();
        }
    }

    async fn end(mut self, signals: &mut Signals, mut jobs: JoinSet<()>) -> End {
        let grace = self.office.graceful_timeout();
        self.inbox.enter(Phase::Draining);
        self.manager.stopping(grace);
        tracing::info!(grace_s = grace.as_secs_f64(), "daemon_shutdown_begin");
        let (dispatch, swaps) = (self.dispatch.clone(), self.swaps.clone());
        // First of all: cycles that end now must not look like the boundary that a swap waits for.
        swaps.give_up_all();
        let drain = async {
            // What is done to a candidate on a thread is left to itself when it does not end.
            let given_up = tokio::time::timeout(grace, swaps.none_under_way());
            let (drained, given_up) = tokio::join!(dispatch.drain(grace), given_up);
            if given_up.is_err() {
                tracing::warn!("swaps_not_given_up_in_time");
            }
            drained
        };
        tokio::pin!(drain);
        let drained: Drained = loop {
            tokio::select! {
                biased;
                asked = signals.next() => match asked {
                    Asked::Stop => return End::SecondSignal,
                    Asked::StatusDump => self.status_dump(),
                    Asked::Reload => {}
                },
                drained = &mut drain => break drained,
                Some(command) = self.inbox.next() => self.serve(command, &mut jobs).await,
            }
        };
        // Commands that were accepted are answered, as far as they end soon.
        let answered = async { while jobs.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(1), answered).await.is_err() {
            jobs.abort_all();
        }
        self.inbox.enter(Phase::Stopped);
        let left: Vec<String> = drained.interrupted.into_iter().chain(drained.unrecorded).collect();
        if left.is_empty() {
            tracing::info!("daemon_stopped");
            End::Clean
        } else {
            tracing::warn!(mandates = ?left, "daemon_graceful_timeout_exceeded");
            End::GraceExceeded(left)
        }
    }
}

/// True when the store's writer is gone for good.
fn is_fatal(error: &store::Error) -> bool {
    matches!(error, store::Error::SyncFailed { .. } | store::Error::Damaged { .. } | store::Error::Closed)
}
