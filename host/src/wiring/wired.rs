//! A wired daemon, driven by hand or by its own loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use super::runner::RUNNER;
use crate::daemon::attach_server::AttachServer;
use crate::daemon::chronos::{Chronos, TickOutcome};
use crate::daemon::claims::{Claims, Permits};
use crate::daemon::dispatch::{Dispatch, OneCycle};
use crate::daemon::engine::Engine;
use crate::daemon::mailbox::{Command, CommandError, Inbox, Mailbox, Phase, Reply};
use crate::daemon::wallet::Wallet;
use crate::domain::schedule::{MandateBounds, Overlap};
use crate::store::{
    self, Added, BudgetGate, ClaimOutcome, ClaimRequest, DayTotals, NewMandate, Origin, Store,
};
use crate::sys::clock::Clock;
use crate::wal::Wal;

/// A mandate as a program makes it.
#[derive(Clone, Debug, Default)]
pub struct EmbeddedMandate {
    /// Unique; the name stands in for it when absent, and is what the runner then sees as its id.
    pub id: Option<String>,
    /// For people.
    pub name: String,
    /// What is to be reached.
    pub goal: String,
    /// Mandates of one scope never run at the same time.
    pub project_scope: Option<String>,
    /// Free parameters for the runner.
    pub params: Map<String, Value>,
}

/// Everything a wiring has made.
pub(super) struct Made {
    pub engine: Arc<Engine>,
    pub store: Arc<dyn Store>,
    pub wallet: Arc<Wallet>,
    pub clock: Arc<dyn Clock>,
    pub attach_server: Option<Arc<dyn AttachServer>>,
    pub log: Option<Arc<Wal>>,
    pub mailbox: Mailbox,
    pub inbox: Inbox,
    pub graceful_timeout: Duration,
}

/// See the module. Shared behind an `Arc` where several tasks drive it; [`Wired::unwire`] ends it.
pub struct Wired {
    engine: Arc<Engine>,
    store: Arc<dyn Store>,
    wallet: Arc<Wallet>,
    clock: Arc<dyn Clock>,
    attach_server: Option<Arc<dyn AttachServer>>,
    log: Option<Arc<Wal>>,
    mailbox: Mailbox,
    inbox: Mutex<Inbox>,
    graceful_timeout: Duration,
    unwired: AtomicBool,
}

/// Lets chronos fire and starts nothing: cycles are the caller's to run.
struct ByHand {
    wallet: Arc<Wallet>,
    dispatch: Dispatch,
}

impl Claims for ByHand {
    fn request(&self, _: DateTime<Utc>) -> Option<(ClaimRequest, Permits)> {
        None
    }
    fn gate(&self, now: DateTime<Utc>) -> Option<BudgetGate> {
        self.wallet.gate(now)
    }
    fn started(&self, _: ClaimOutcome, _: Permits) {}
    fn cancel(&self, mandates: Vec<String>) {
        Claims::cancel(&self.dispatch, mandates);
    }
    fn queued(&self) {}
}

impl Wired {
    pub(super) fn new(made: Made) -> Self {
        Self {
            engine: made.engine,
            store: made.store,
            wallet: made.wallet,
            clock: made.clock,
            attach_server: made.attach_server,
            log: made.log,
            mailbox: made.mailbox,
            inbox: Mutex::new(made.inbox),
            graceful_timeout: made.graceful_timeout,
            unwired: AtomicBool::new(false),
        }
    }

    /// Looks at the schedules once and queues what is due. Trouble is logged; none then.
    pub async fn tick(&self) -> Option<TickOutcome> {
        let by_hand = ByHand { wallet: Arc::clone(&self.wallet), dispatch: self.engine.dispatch().clone() };
        self.engine.tick(Arc::new(by_hand)).await
    }

    /// Runs one cycle of one queued mandate, if the budget allows. Beats when a beat is due, also
    /// while the cycle runs and when there was none.
    ///
    /// # Errors
    /// The store refused the claim; that is logged as well.
    pub async fn run_one_cycle(&self) -> Result<OneCycle, store::Error> {
        let dispatch = self.engine.dispatch();
        let mut changes = dispatch.changes();
        let mut cycle = std::pin::pin!(dispatch.run_one());
        let done = loop {
            // Before it runs there is nothing new to say; afterwards there is, and then it beats.
            let beat_at = dispatch.active_mandate_id().and_then(|_| self.engine.beat_due_at());
            let beat_due = async {
                match beat_at {
                    Some(at) => self.clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                done = &mut cycle => break done,
                () = beat_due => self.engine.emit_if_due().await,
                Ok(()) = changes.changed() => {}
            }
        };
        self.engine.emit_if_due().await;
        if let Err(error) = &done {
            tracing::error!(%error, "daemon_ooda_cycle_failed");
        }
        done
    }

    /// Queues a mandate made by hand.
    ///
    /// # Errors
    /// The store's; [`store::Error::Conflict`] when the id is taken.
    pub async fn enqueue(&self, mandate: EmbeddedMandate) -> Result<Added, CommandError> {
        let EmbeddedMandate { id, name, goal, project_scope, params } = mandate;
        let id = id.unwrap_or(name);
        if id.is_empty() {
            return Err(CommandError::Refused("a mandate needs an id or a name".to_owned()));
        }
        let mandate = NewMandate {
            id,
            origin: Origin::Manual,
            request_id: None,
            schedule: None,
            nominal: None,
            goal,
            runner: RUNNER.to_owned(),
            scope: project_scope,
            overlap: Overlap::default(),
            bounds: MandateBounds { params, ..MandateBounds::default() },
            again: false,
            now: self.clock.now(),
        };
        Ok(self.store.add(mandate).await?)
    }

    /// Runs the daemon's own loop: fires what is due, runs what is queued, beats and answers the
    /// mailbox, until `shutdown` comes through it. Then it is unwired.
    pub async fn run(&self) {
        let mut inbox = self.inbox.lock().await;
        let beats = self.engine.beat();
        self.engine.dispatch().look();
        loop {
            match self.engine.run_until_control(&mut inbox).await {
                Some(Command::Reload(reply)) => {
                    let why = "this daemon is part of a program and has no files to read again";
                    reply.give(Err::<_, CommandError>(CommandError::Refused(why.to_owned())));
                }
                Some(Command::StatusDump(reply)) => {
                    let engine = Arc::clone(&self.engine);
                    let beat = tokio::task::spawn_blocking(move || json!(engine.beat_now())).await;
                    reply.give(beat.map_err(|panic| CommandError::Refused(panic.to_string())));
                }
                Some(Command::Shutdown(reply)) => {
                    reply.give(Ok::<(), CommandError>(()));
                    break;
                }
                Some(Command::Work(work)) => self.engine.execute(work).await,
                None => break,
            }
        }
        self.take_down(&mut inbox).await;
        if let Some(beats) = beats
            && let Err(error) = beats.await
        {
            tracing::error!(%error, "daemon_heartbeat_failed");
        }
    }

    /// Takes the wiring down: the attach server is stopped, running cycles end or are interrupted,
    /// the log and the store are closed. A loop that runs ends first. Never fails; doing it again
    /// does nothing.
    pub async fn unwire(&self) {
        let (reply, _) = Reply::pair();
        // Nobody reads it when no loop runs, and it is refused with the rest when the phase ends.
        let _ = self.mailbox.post(Command::Shutdown(reply));
        let mut inbox = self.inbox.lock().await;
        self.take_down(&mut inbox).await;
        self.engine.emit().await;
    }

    async fn take_down(&self, inbox: &mut Inbox) {
        if self.unwired.swap(true, Ordering::AcqRel) {
            return;
        }
        inbox.enter(Phase::Draining);
        if let Some(server) = &self.attach_server
            && let Err(error) = server.stop()
        {
            tracing::error!(error = %error, "attach_server_stop_failed");
        }
        let drained = self.engine.dispatch().drain(self.graceful_timeout).await;
        if !drained.interrupted.is_empty() || !drained.unrecorded.is_empty() {
            tracing::warn!(?drained, "daemon_graceful_timeout_exceeded");
        }
        if let Some(log) = self.log.clone() {
            // Joins its thread.
            let _ = tokio::task::spawn_blocking(move || log.close()).await;
        }
        if let Err(error) = self.store.close().await {
            tracing::error!(%error, "daemon_store_close_failed");
        }
        inbox.enter(Phase::Stopped);
    }

    /// Ends when no cycle runs; what ran is recorded then.
    pub async fn idle(&self) {
        self.engine.dispatch().idle().await;
    }

    /// The mandate whose cycle runs, the longest running if there are several.
    #[must_use]
    pub fn active_mandate_id(&self) -> Option<String> {
        self.engine.dispatch().active_mandate_id()
    }

    /// When the last cycle ended, however it did.
    #[must_use]
    pub fn last_cycle_at(&self) -> Option<DateTime<Utc>> {
        self.engine.dispatch().last_cycle_at()
    }

    /// Mandates that wait in the queue; 0 once it is unwired.
    #[must_use]
    pub fn queue_depth(&self) -> u64 {
        self.store.counts().map_or(0, |counts| counts.queued)
    }

    /// Where the daemon stands.
    #[must_use]
    pub fn state(&self) -> Phase {
        self.mailbox.phase()
    }

    /// What today has cost so far.
    ///
    /// # Errors
    /// The store's.
    pub fn spent_today(&self) -> Result<DayTotals, store::Error> {
        self.store.day(&self.wallet.day(self.clock.now()))
    }

    /// Where commands go.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Where everything is recorded, for reading.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Knows the schedules.
    #[must_use]
    pub fn chronos(&self) -> &Arc<Chronos> {
        self.engine.chronos()
    }
}
