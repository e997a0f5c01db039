//! One cycle in its slot: log, services, runner, report, finish. Whatever happens on the way, the
//! cycle leaves the books and its end is recorded, or recovery finds it running.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use kairos_plugin_api::context::limit::TEXT_MAX;
use kairos_plugin_api::{Report, Usage};
use tokio::sync::oneshot;

use super::conclude::{Outcome, Seen, Stops, Verdict, conclude};
use super::ending::{Ended, Ran, Unrecorded};
use super::host_calls::CycleHost;
use super::ports::{OnTrial, Services, TrialCycle};
use super::slots::{HoldKind, Running};
use super::{Inner, OnLogError};
use crate::broker::Settling;
use crate::domain::mandate::CycleEnd;
use crate::domain::talk::shortened;
use crate::runner::{Death, Generation, RunnerError};
use crate::store::ClaimedCycle;

/// The reason of a cycle whose version cannot be had any more.
const GENERATION_GONE: &str = "generation_gone";

/// Why a claimed cycle did not run.
pub(super) struct NotStarted {
    pub(super) reason: String,
    /// What all work must wait for; none when only this runner's does.
    pub(super) hold: Option<HoldKind>,
    /// False when nothing is wrong.
    pub(super) trouble: bool,
    /// True when it is the version that could not begin.
    pub(super) of_version: bool,
}

/// Takes the cycle out of the books however its run ends, a panic of ours included.
struct Registered<'a> {
    inner: &'a Arc<Inner>,
    number: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let now = self.inner.parts.clock.now();
        let mut table = self.inner.table();
        table.running.remove(&self.number);
        table.last_cycle_at = Some(now);
        drop(table);
        self.inner.touch();
    }
}

impl Inner {
    /// Runs one cycle and records its end. With `chain` the same commit starts the next one, which
    /// is given back. The error is the reason why the cycle did not run, or was not recorded.
    pub(super) async fn attend(
        self: &Arc<Self>,
        cycle: ClaimedCycle,
        chain: bool,
    ) -> (Result<Ended, String>, Option<ClaimedCycle>) {
        let (number, running) = self.table().register(&cycle);
        let registered = Registered { inner: self, number };
        self.touch();
        if !self.table().accepting {
            // Claimed just before a drain began: better not started than interrupted.
            let not = NotStarted {
                reason: "the daemon stops".into(),
                hold: None,
                trouble: false,
                of_version: false,
            };
            self.unstart(&cycle, &running, &not).await;
            return (Err(not.reason), None);
        }
        let mut ran = match caught(self.run(&cycle, &running, number)).await {
            Ok(Ok(ran)) => ran,
            Ok(Err(not)) => match self.failed_to_start(&cycle, &not).await {
                Some(ran) => ran,
                None => {
                    self.unstart(&cycle, &running, &not).await;
                    return (Err(not.reason), None);
                }
            },
            Err(panic) => Ran {
                verdict: Verdict {
                    end: CycleEnd::Error,
                    reason: Some("host_panic".into()),
                    error: Some(format!("the daemon's own task panicked: {panic}")),
                },
                report: None,
                services: None,
            },
        };
        if ran.verdict.end != CycleEnd::RolledBack {
            self.ask_trial(&cycle, &mut ran, true).await;
        }
        let recorded = self.finish(&cycle, &running, &ran, chain).await;
        if let Some(services) = ran.services.clone().filter(|services| !services.is_settled()) {
            // Their commit was the finish's or an earlier one, so the answers are there.
            self.runtime.spawn_blocking(move || {
                if let Err(error) = services.settle_up(Settling::Certainly) {
                    tracing::error!(%error, "daemon_cycle_record_incomplete");
                }
            });
        }
        if matches!(recorded, Err(Unrecorded::Lost)) {
            // Before it leaves the books, so that a drain sees it in one place or the other.
            self.table().unrecorded.push(cycle.mandate.id.clone());
        }
        drop(registered);
        if matches!(ran.verdict.end, CycleEnd::Died | CycleEnd::Error) {
            // It can be in the queue again, and what it needs be held back or gone by now.
            self.note_waits();
        }
        self.ended(&cycle, &ran.verdict, recorded, chain)
    }

    async fn run(
        self: &Arc<Self>,
        cycle: &ClaimedCycle,
        running: &Running,
        number: u64,
    ) -> Result<Ran, NotStarted> {
        self.open_log(&cycle.mandate.id).await?;
        let open = Arc::clone(&*self.services.read().unwrap_or_else(PoisonError::into_inner));
        // What recovery handed back was claimed before anybody looked.
        if let Some(reason) = open.unfit_for(&cycle.runner, &cycle.mandate.params) {
            self.note_waits();
            return Err(NotStarted { reason, hold: None, trouble: true, of_version: false });
        }
        let generation = match self.generation(cycle).await {
            Ok(generation) => generation,
            Err(why) => return self.without_generation(cycle, why),
        };
        self.table().release(HoldKind::Runner);
        let clock = &self.parts.clock;
        let until = generation.deadline().map(|limit| clock.monotonic() + limit);
        let deadline = generation.deadline().map(|limit| clock.now() + limit);
        let services = open.open(cycle, Arc::clone(&running.signal), deadline);
        let host = Arc::new(CycleHost::new(Arc::clone(&services)));
        let answer = generation.start(cycle.mandate.clone(), Arc::clone(&host) as _);
        let outcome = self.await_report(answer, running, until, &generation, number).await;
        host.close();
        self.watch_deaths(cycle, &outcome)?;
        // The runner may have seen that its time is over before the timer here was heard.
        let late = until.is_some_and(|until| clock.monotonic() >= until);
        let stops = running.stops();
        let seen = Seen {
            stops: Stops { deadline: stops.deadline || late, ..stops },
            imposed: services.outcome(),
            saw_stop: host.saw_stop(),
            builtin: generation.identity().abi == "builtin",
        };
        let verdict = conclude(&outcome, &seen).shortened();
        self.settle_up(&services, running).await;
        Ok(Ran { verdict, report: report_of(&outcome).map(shortened_report), services: Some(services) })
    }

    /// Whoever watches generations on trial hears of the end before it is recorded: a failure that
    /// is the trial's is not the mandate's.
    async fn ask_trial(&self, cycle: &ClaimedCycle, ran: &mut Ran, begun: bool) {
        let Some(trials) = self.trials.get().and_then(std::sync::Weak::upgrade) else { return };
        let seen = TrialCycle {
            runner: &cycle.runner,
            generation: &cycle.generation,
            mandate: &cycle.mandate.id,
            verdict: &ran.verdict,
            usage: ran.services.as_ref().map_or(Usage::ZERO, |services| {
                let beyond =
                    ran.report.as_ref().map_or(Usage::ZERO, |report| services.claimed_beyond(report));
                services.booked().plus(beyond)
            }),
            begun,
        };
        if let OnTrial::RunAgain(reason) = trials.ended(seen).await
            && (matches!(ran.verdict.end, CycleEnd::Error | CycleEnd::Died)
                || ran.verdict.reason.as_deref() == Some(GENERATION_GONE))
        {
            // It says nothing of whoever serves in its place.
            self.table().breakers.forget(cycle.runner.as_str());
            ran.verdict.end = CycleEnd::RolledBack;
            ran.verdict.reason = None;
            let error = ran.verdict.error.take().unwrap_or_default();
            ran.verdict.error = Some(format!("{error} ({reason})"));
        }
    }

    /// Whoever watches generations on trial hears of one that could not even begin a cycle. The cycle's
    /// end, when that took its version's place away: it goes to whoever serves now.
    async fn failed_to_start(&self, cycle: &ClaimedCycle, not: &NotStarted) -> Option<Ran> {
        if !not.of_version {
            return None;
        }
        let verdict = Verdict {
            end: CycleEnd::Error,
            reason: Some("not_started".into()),
            error: Some(not.reason.clone()),
        };
        let mut ran = Ran { verdict, report: None, services: None };
        self.ask_trial(cycle, &mut ran, false).await;
        (ran.verdict.end == CycleEnd::RolledBack).then_some(ran)
    }

    /// What the services handed to the store must be in it, or ride on the finish, before the
    /// finish can be relied on.
    async fn settle_up(&self, services: &Arc<dyn Services>, running: &Running) {
        let mut stops = running.watch();
        while !services.is_settled() {
            let services = Arc::clone(services);
            let settled = tokio::task::spawn_blocking(move || services.settle_up(Settling::Lazily)).await;
            match settled {
                Ok(Ok(())) | Err(_) => return,
                Ok(Err(error)) if !self.wait_out(&error, &mut stops).await => return,
                Ok(Err(_)) => {}
            }
        }
    }

    async fn open_log(&self, mandate: &str) -> Result<(), NotStarted> {
        let Some(log) = self.parts.log.clone() else { return Ok(()) };
        match log.prepare(mandate).await {
            Ok(()) => {
                if self.table().release(HoldKind::Log) {
                    tracing::info!("daemon_wal_restored");
                }
                Ok(())
            }
            Err(error) if self.settings().on_log_error == OnLogError::Continue => {
                tracing::warn!(mandate, error, "daemon_wal_unavailable");
                Ok(())
            }
            Err(error) => {
                let reason = format!("write-ahead log: {error}");
                Err(NotStarted { reason, hold: Some(HoldKind::Log), trouble: true, of_version: false })
            }
        }
    }

    /// The generation that a cycle must run on is not to be had.
    fn without_generation(self: &Arc<Self>, cycle: &ClaimedCycle, why: String) -> Result<Ran, NotStarted> {
        let offers = Arc::clone(&self.offers.read().unwrap_or_else(PoisonError::into_inner));
        match offers.get(&cycle.runner) {
            None => {
                // Nothing of this runner is claimed until it is there again.
                self.note_waits();
                Err(NotStarted { reason: why, hold: None, trouble: true, of_version: false })
            }
            Some(offer) if offer.generation == cycle.generation => {
                Err(NotStarted { reason: why, hold: Some(HoldKind::Runner), trouble: true, of_version: true })
            }
            // What that generation began no other may continue; a person has to decide.
            Some(_) => Ok(Ran { verdict: generation_gone(why), report: None, services: None }),
        }
    }

    async fn generation(&self, cycle: &ClaimedCycle) -> Result<Arc<Generation>, String> {
        let runners = Arc::clone(&self.parts.runners);
        if let Ok(current) = runners.current(&cycle.runner)
            && current.identity().generation == cycle.generation
        {
            return Ok(current);
        }
        // Not the one that serves now: it may have to be loaded from the plugin store.
        let (runner, sha256) = (cycle.runner.clone(), cycle.generation.clone());
        let pinned = tokio::task::spawn_blocking(move || runners.pinned(&runner, &sha256)).await;
        match pinned {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        }
    }

    /// Waits for the report, the deadline and whoever stops the cycle. Not longer than the grace
    /// after a deadline or a person's stop; after a shutdown the drain decides.
    async fn await_report(
        self: &Arc<Self>,
        mut answer: oneshot::Receiver<Result<Report, RunnerError>>,
        running: &Running,
        until: Option<Duration>,
        generation: &Arc<Generation>,
        number: u64,
    ) -> Outcome {
        let clock = &self.parts.clock;
        let mut stops = running.watch();
        let mut give_up: Option<Duration> = None;
        let mut nudged = false;
        loop {
            let seen = *stops.borrow_and_update();
            if seen.abandon {
                return self.end(answer, running, generation, number).await;
            }
            if seen.any() && !nudged {
                nudged = true;
                let generation = Arc::clone(generation);
                // The runner's own cancel is foreign code and may block.
                tokio::task::spawn_blocking(move || generation.cancel());
            }
            if (seen.cancel || seen.deadline) && give_up.is_none() {
                let grace = generation.stop_grace().unwrap_or_else(|| self.settings().stop_grace);
                give_up = Some(clock.monotonic() + grace);
            }
            let timer = give_up.or(until.filter(|_| !seen.deadline));
            let sleep = async {
                match timer {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Ok(Ok(report)) => Outcome::Report(report),
                    Ok(Err(error)) => Outcome::Failed(error),
                    Err(_) => Outcome::Failed(RunnerError::Died(Death::without_process("its thread ended without an answer"))),
                },
                Ok(()) = stops.changed() => {}
                () = sleep => match give_up {
                    Some(_) => running.stop(|stops| stops.abandon = true),
                    None => running.stop(|stops| stops.deadline = true),
                },
            }
        }
    }
}

fn generation_gone(why: String) -> Verdict {
    Verdict { end: CycleEnd::Review, reason: Some(GENERATION_GONE.into()), error: Some(why) }
}

/// The report, also one that came after an answer that ended the attempt: what it claims was used.
fn report_of(outcome: &Outcome) -> Option<Report> {
    match outcome {
        Outcome::Report(report) => Some(report.clone()),
        Outcome::Failed(RunnerError::Call(error)) => {
            serde_json::from_value(error.detail.get("report")?.clone()).ok()
        }
        Outcome::Failed(_) | Outcome::Abandoned => None,
    }
}

/// A report whose texts are as long as texts may be.
fn shortened_report(report: Report) -> Report {
    let short = |text: Option<String>| text.map(|text| shortened(text, TEXT_MAX));
    Report { summary: short(report.summary), error: short(report.error), ..report }
}

/// Runs a future; a panic in it comes back as its text.
async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = Box::pin(future);
    poll_fn(move |context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(payload) => Poll::Ready(Err(match payload.downcast_ref::<&str>() {
            Some(text) => (*text).to_owned(),
            None => payload.downcast_ref::<String>().cloned().unwrap_or_default(),
        })),
    })
    .await
}
