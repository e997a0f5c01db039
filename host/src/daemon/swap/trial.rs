//! A version on trial, and the end of the one before it: passed, its predecessor's last cycles are
//! waited for; failed, the predecessor has the slot again at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kairos_plugin_api::Usage;
use serde_json::json;
use tokio::sync::{Notify, watch};

use super::canary::{Counters, Counts, Decision};
use super::view::{Refusal, Stage, SwapView};
use super::{Inner, Settings, end, enter, on_thread, show};
use crate::daemon::dispatch::STOP_GRACE;
use crate::daemon::dispatch::ports::{OnTrial, TrialCycle, Trials};
use crate::domain::generation::GenerationEvent;
use crate::runner::{self, Generation, LoadError, RunnerConfig};
use crate::store::{GenerationMove, RecordedCycle};

/// A version that has just taken its slot.
pub(super) struct Trial {
    pub view: Arc<watch::Sender<SwapView>>,
    settings: Settings,
    rows: (i64, i64),
    /// Stands by, with its state as it was.
    former: Arc<Generation>,
    /// The entry that it was made by.
    config: RunnerConfig,
    counters: Mutex<Counters>,
    /// None while it is open, then how it ended. Held while the end is recorded.
    ended: tokio::sync::Mutex<Option<Result<(), String>>>,
    /// It has passed, or failed.
    decided: Notify,
    /// How long it goes on from its beginning here.
    time: Duration,
}

/// Who ends a trial.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// A person.
    Hand,
    /// The version's own failures.
    Failure,
}

/// What the version before begins with when it gets its place back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum States {
    /// With its own as they were at the flip: what a version that failed has done to them is not
    /// to be trusted, and nobody waits for its cycles.
    AsAtTheFlip,
    /// With what the version on trial has made of them.
    Back,
}

impl Trial {
    pub fn new(
        view: Arc<watch::Sender<SwapView>>,
        settings: &Settings,
        recorded: &[RecordedCycle],
        rows: (i64, i64),
        former: (Arc<Generation>, RunnerConfig),
    ) -> Arc<Self> {
        Self::for_time(view, settings, Counters::new(recorded), rows, former, settings.canary_time)
    }

    /// One that goes on after a start, for the rest of its time and by its books.
    pub fn for_time(
        view: Arc<watch::Sender<SwapView>>,
        settings: &Settings,
        counters: Counters,
        rows: (i64, i64),
        (former, config): (Arc<Generation>, RunnerConfig),
        time: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            view,
            settings: settings.clone(),
            rows,
            former,
            config,
            counters: Mutex::new(counters),
            ended: tokio::sync::Mutex::new(None),
            decided: Notify::new(),
            time,
        })
    }

    /// Its window is over.
    pub fn is_decided(&self) {
        self.decided.notify_one();
    }

    /// What is wrong with it when its window ends.
    fn at_its_end(&self) -> Option<String> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.at_its_end(&self.settings)
    }

    fn book(&self, counts: Counts, usage: Usage) -> Decision {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let decision = counters.book(counts, usage, &self.settings);
        let shown = counters.view(&self.settings);
        drop(counters);
        show(&self.view, |seen| seen.canary = Some(shown));
        decision
    }
}

impl Trials for Inner {
    fn ended<'a>(&'a self, cycle: TrialCycle<'a>) -> Pin<Box<dyn Future<Output = OnTrial> + Send + 'a>> {
        Box::pin(self.cycle_ended(cycle))
    }
}

impl Inner {
    async fn cycle_ended(&self, cycle: TrialCycle<'_>) -> OnTrial {
        let trial = {
            let table = self.table();
            let trial = table.trials.get(cycle.runner);
            trial.filter(|trial| trial.is_of(cycle.generation)).cloned()
        };
        let Some(trial) = trial else {
            // A cycle that its trial left behind.
            return if self.was_rolled_back(cycle.runner, cycle.generation) {
                OnTrial::RunAgain("its version was rolled back".to_owned())
            } else {
                OnTrial::Keep
            };
        };
        if !cycle.begun {
            // Before it counts here: no cycle's end will tell the next start of it.
            let noted = self.parts.generations.note_not_begun(trial.rows.1).await;
            if let Err(error) = noted {
                tracing::warn!(runner = cycle.runner, %error, "runner_trial_not_counted");
            }
        }
        match trial.book(Counts::of(cycle.verdict), cycle.usage) {
            Decision::GoOn => OnTrial::Keep,
            Decision::Pass => {
                trial.decided.notify_one();
                OnTrial::Keep
            }
            Decision::RollBack(why) => match self.end_by_failure(&trial, &why).await {
                Ok(()) => OnTrial::RunAgain(format!("rolled back: {why}")),
                // Passed meanwhile, or the store takes nothing now: the end counts as it is.
                Err(_) => OnTrial::Keep,
            },
        }
    }

    /// Takes a version on trial back because a person, `who`, wants it: what it has done to the states of its
    /// instances goes back with it, unless its cycles do not come to a boundary in time.
    pub(super) async fn take_back_by_hand(&self, trial: &Arc<Trial>, who: &str) -> Result<(), Refusal> {
        let runner = trial.view.borrow().runner.clone();
        let returns = format!("the version after it was {who}");
        let keeps = self.schemas_of(&trial.former).await.is_none_or(|schemas| !schemas.is_empty());
        if !keeps {
            return self.end_trial_badly(trial, who, returns, (By::Hand, States::AsAtTheFlip)).await;
        }
        let why = format!(
            "new cycles wait while the version on trial is taken back, for {} s at most",
            STOP_GRACE.as_secs()
        );
        let _held = self.held(&runner, why);
        let idle = self.parts.dispatch.runner_idle(&runner, STOP_GRACE).await;
        let states = if idle { States::Back } else { States::AsAtTheFlip };
        if !idle {
            tracing::warn!(
                runner,
                why = "its cycles do not come to a boundary",
                "runner_state_not_taken_back"
            );
        }
        self.end_trial_badly(trial, who, returns, (By::Hand, states)).await
    }

    /// Gives the version before what the instances of the one on trial keep now, as far as it reads
    /// it. What cannot be had stays as it was at the flip.
    async fn states_back(&self, trial: &Trial, runner: &str, failed: &str) {
        let Ok(serves) = self.parts.runners.current(runner) else { return };
        let Some(schemas) = self.schemas_of(&trial.former).await else { return };
        if serves.identity().generation != failed {
            return;
        }
        let former = Arc::clone(&trial.former);
        let work = move || {
            let states = serves.hand_over()?.read_by(&schemas);
            let told = states.told();
            former.take_over(states).map(|()| told)
        };
        let limit = trial.settings.shadow_deadline;
        match on_thread("export_state", limit, &*self.parts.clock, work).await {
            Ok(Ok(states)) => tracing::info!(runner, states, "runner_state_taken_back"),
            Ok(Err(error)) => tracing::warn!(runner, why = %error, "runner_state_not_taken_back"),
            Err(refusal) => tracing::warn!(runner, why = %refusal, "runner_state_not_taken_back"),
        }
    }

    /// Gives the slot back to the version before, since the one on trial has failed.
    pub(super) async fn end_by_failure(&self, trial: &Arc<Trial>, why: &str) -> Result<(), Refusal> {
        let returns = format!("the version after it failed its trial: {why}");
        let ended = self.end_trial_badly(trial, why, returns, (By::Failure, States::AsAtTheFlip)).await;
        ended.inspect_err(|refusal| {
            let runner = trial.view.borrow().runner.clone();
            tracing::error!(runner, %refusal, "swap_not_rolled_back");
        })
    }

    /// Gives the slot back to the version before. `why` is the reason for the one on trial, `returns`
    /// that for the one before. Recorded, flipped and offered when this returns.
    pub(super) async fn end_trial_badly(
        &self,
        trial: &Arc<Trial>,
        why: &str,
        returns: String,
        (by, states): (By, States),
    ) -> Result<(), Refusal> {
        let mut ended = trial.ended.lock().await;
        match &*ended {
            None => {}
            Some(Err(_)) => return Ok(()),
            Some(Ok(())) => return Err(Refusal::new("conflict", "its trial has ended well already")),
        }
        // A person asks again; what a version has failed at counts until the last cycle has ended.
        if by == By::Hand && self.is_stopping() {
            return Err(Refusal::stopping());
        }
        let (runner, failed) = {
            let seen = trial.view.borrow();
            (seen.runner.clone(), seen.generation.clone().unwrap_or_default())
        };
        let serves = match self.parts.runners.current(&runner) {
            Ok(serves) if serves.identity().generation != failed => {
                let message = format!("runner {runner} is served by another file now, and the trial is over");
                return Err(Refusal::new("conflict", message).remedy("look at `kairos plugin list`"));
            }
            serves => serves.ok(),
        };
        if states == States::Back {
            self.states_back(trial, &runner, &failed).await;
        }
        let former = match self.former_as_wanted_now(trial, &runner).await {
            // A person is told, and what serves goes on; a version that failed serves no more.
            Err((refusal, _)) if by == By::Hand => return Err(refusal),
            former => former,
        };
        let (old, next) = trial.rows;
        let back = vec![
            GenerationMove::new(next, GenerationEvent::RollBack, Some(why.to_owned())),
            GenerationMove::new(old, GenerationEvent::Activate, Some(returns)),
        ];
        self.parts.generations.move_generations(back, self.parts.clock.now()).await?;
        *ended = Some(Err(why.to_owned()));
        let returned = self.return_to(&runner, trial, serves, former).await;
        // Cycles that it began and that are still under way are its own; their failures are done again.
        self.remember_rolled_back(&runner, &failed);
        self.parts.runners.bar(&runner, &failed);
        self.table().trials.remove(&runner);
        self.freed.send_modify(|count| *count += 1);
        self.parts.dispatch.runner_replaced(&runner);
        match returned {
            Ok(Some(failed)) => self.spawn_drain(runner.clone(), failed, None, None, &trial.settings),
            Ok(None) => {}
            // A reload put something else in the slot; that serves.
            Err(error) => tracing::error!(runner, %error, "swap_rolled_back_without_a_flip"),
        }
        tracing::warn!(runner, generation = failed, why, "runner_rolled_back");
        end(&trial.view, Stage::RolledBack, Refusal::new("rolled_back", why), &*self.parts.clock);
        trial.decided.notify_one();
        Ok(())
    }

    /// The version before, as its entry and the trust of now want it: the instance that stands by if
    /// it is still that, else a fresh one, with its states. The reason for a slot, if there is none.
    async fn former_as_wanted_now(
        &self,
        trial: &Arc<Trial>,
        runner: &str,
    ) -> Result<Arc<Generation>, (Refusal, LoadError)> {
        let (runners, name, trial) = (Arc::clone(&self.parts.runners), runner.to_owned(), Arc::clone(trial));
        let limit = trial.settings.shadow_deadline;
        let work = move || {
            let plugin = runners.kept(&trial.former.identity().generation)?;
            let config = runners.config(&name)?.ok_or_else(|| LoadError::UnknownRunner(name.clone()))?;
            let isolation = runners.isolation_for(&config, &plugin)?;
            if config == trial.config && isolation == trial.former.isolation() {
                return Ok(Arc::clone(&trial.former));
            }
            let fresh = runners.prepare(&name, &plugin)?;
            let states = trial.former.hand_over().and_then(|states| fresh.take_over(states));
            if let Err(error) = states {
                tracing::warn!(runner = name, why = %error, "runner_state_not_taken_back");
            }
            tracing::info!(runner = name, %isolation, "runner_predecessor_loaded_again");
            Ok::<_, LoadError>(fresh)
        };
        match on_thread("load", limit, &*self.parts.clock, work).await {
            Ok(loaded) => loaded.map_err(|error| (Refusal::from(error.clone()), error)),
            Err(refusal) => Err((refusal.clone(), LoadError::ProbeFailed(refusal.message))),
        }
    }

    /// Gives the slot back, or empties it if nothing can be put there: what served until now.
    async fn return_to(
        &self,
        runner: &str,
        trial: &Trial,
        serves: Option<Arc<Generation>>,
        former: Result<Arc<Generation>, (Refusal, LoadError)>,
    ) -> Result<Option<Arc<Generation>>, LoadError> {
        let runners = &self.parts.runners;
        let pin = self.pin_of(runner, &trial.former).await;
        match (former, serves) {
            (Ok(former), Some(serves)) => {
                runners.flip(runner, &serves, former, pin, &*self.parts.clock).map(Some)
            }
            (former, serves) => {
                let sha256 = trial.former.identity().generation.clone();
                let pin = pin.unwrap_or_else(|| runner::Pin { configured: Some(sha256.clone()), sha256 });
                if let Err((_, error)) = &former {
                    tracing::error!(runner, %error, remedy = %error.remedy(), "runner_predecessor_lost");
                }
                runners.fill(runner, serves.as_ref(), former.map_err(|(_, error)| error), pin)?;
                Ok(serves)
            }
        }
    }

    /// Ends what a reload has ended: trials of versions that serve no more, since the configuration
    /// names another file by now. To be called when the store knows.
    pub(super) async fn end_stale_trials(&self) {
        let trials: Vec<Arc<Trial>> = self.table().trials.values().cloned().collect();
        for trial in trials {
            let mut ended = trial.ended.lock().await;
            let runner = trial.view.borrow().runner.clone();
            let (stale, removed) = match self.parts.runners.current(&runner) {
                Ok(serves) => (!trial.is_of(&serves.identity().generation), false),
                Err(LoadError::UnknownRunner(_)) => (true, true),
                Err(_) => (false, false),
            };
            if ended.is_some() || !stale {
                continue;
            }
            let why = if removed { "the runner was removed" } else { "the configuration names another file" };
            if removed {
                // Of a runner that is there the store knows it from who serves now.
                let step = GenerationMove::new(trial.rows.0, GenerationEvent::Withdraw, Some(why.to_owned()));
                let ended = self.parts.generations.move_generations(vec![step], self.parts.clock.now()).await;
                if let Err(error) = ended {
                    tracing::error!(runner, %error, "swap_trial_end_not_recorded");
                }
            }
            *ended = Some(Err(why.to_owned()));
            self.table().trials.remove(&runner);
            self.freed.send_modify(|count| *count += 1);
            tracing::info!(runner, "runner_trial_ended_by_configuration");
            let refusal = Refusal::new("conflict", format!("its trial is over: {why}"));
            end(&trial.view, Stage::RolledBack, refusal, &*self.parts.clock);
            trial.decided.notify_one();
        }
    }

    /// What serves a slot in place of the configured file when this generation does.
    async fn pin_of(&self, runner: &str, generation: &Generation) -> Option<runner::Pin> {
        let config = self.parts.runners.config(runner).ok().flatten()?;
        let runners = Arc::clone(&self.parts.runners);
        let sources = tokio::task::spawn_blocking(move || runners.sources(&config)).await.ok()?;
        let sha256 = generation.identity().generation.clone();
        (sources.configured.as_ref() != Some(&sha256))
            .then_some(runner::Pin { sha256, configured: sources.configured })
    }

    /// Waits for the end of a trial on a task of its own.
    pub(super) fn watch_trial(self: &Arc<Self>, trial: Arc<Trial>) {
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            let clock = &inner.parts.clock;
            tokio::select! {
                () = trial.decided.notified() => {}
                () = clock.sleep_until(clock.monotonic() + trial.time) => {}
            }
            inner.end_trial_in_time(&trial).await;
        });
    }

    /// Its window is over: it has passed, unless it cannot serve just then, or was too dear.
    async fn end_trial_in_time(self: &Arc<Self>, trial: &Arc<Trial>) {
        if trial.ended.lock().await.is_some() || self.is_stopping() {
            return;
        }
        let runner = trial.view.borrow().runner.clone();
        let held =
            self.parts.dispatch.cannot_begin(&runner).map(|why| format!("it cannot begin cycles: {why}"));
        let gone =
            || self.parts.runners.current(&runner).err().map(|error| format!("it cannot be had: {error}"));
        let Some(why) = held.or_else(gone).or_else(|| trial.at_its_end()) else {
            return self.end_trial_well(trial).await;
        };
        // What cannot be recorded is tried again by the next start.
        let _ = self.end_by_failure(trial, &why).await;
    }

    async fn end_trial_well(self: &Arc<Self>, trial: &Arc<Trial>) {
        let mut ended = trial.ended.lock().await;
        // One that is open when the daemon stops is taken up by the next start.
        if ended.is_some() || self.is_stopping() {
            return;
        }
        let (runner, generation) = {
            let seen = trial.view.borrow();
            (seen.runner.clone(), seen.generation.clone().unwrap_or_default())
        };
        let (old, _) = trial.rows;
        let step =
            GenerationMove::new(old, GenerationEvent::Drain, Some("its successor has passed".to_owned()));
        if let Err(error) = self.parts.generations.move_generations(vec![step], self.parts.clock.now()).await
        {
            // The trial stays open in the store; the next start takes it up.
            tracing::error!(runner, %error, "swap_trial_end_not_recorded");
        }
        *ended = Some(Ok(()));
        self.table().trials.remove(&runner);
        self.freed.send_modify(|count| *count += 1);
        tracing::info!(runner, generation, "runner_passed_its_trial");
        enter(&trial.view, Stage::Drain, &*self.parts.clock);
        let (former, view) = (Arc::clone(&trial.former), Arc::clone(&trial.view));
        self.spawn_drain(runner, former, Some(old), Some(view), &trial.settings);
    }

    /// Waits for the last cycles of a version that serves no more, then stops them, then waits no
    /// longer. `row` is retired then.
    pub(super) fn spawn_drain(
        &self,
        runner: String,
        former: Arc<Generation>,
        row: Option<i64>,
        view: Option<Arc<watch::Sender<SwapView>>>,
        settings: &Settings,
    ) {
        let Some(inner) = self.this() else { return };
        let limit = settings.drain_timeout;
        let call = settings.shadow_deadline;
        self.runtime.spawn(async move {
            let reason = inner.drain(&former, limit, call).await;
            if inner.is_stopping() {
                // The next start finds it and says so.
                return drop(tokio::task::spawn_blocking(move || drop(former)).await);
            }
            if let Some(n) = row {
                let step = GenerationMove::new(n, GenerationEvent::Drained, Some(reason.to_owned()));
                let at = inner.parts.clock.now();
                if let Err(error) = inner.parts.generations.move_generations(vec![step], at).await {
                    tracing::warn!(%error, runner, "generation_not_retired");
                }
            }
            let sha256 = &former.identity().generation;
            let serves = inner.parts.runners.current(&runner);
            // It may be back by now.
            if serves.is_ok_and(|serves| serves.identity().generation != *sha256) {
                inner.parts.runners.unpin(&runner, sha256);
            }
            tracing::info!(runner, generation = sha256, reason, "generation_retired");
            inner
                .event(
                    "generation_retired",
                    json!({"runner": runner, "generation": sha256, "reason": reason}),
                )
                .await;
            if let Some(view) = view {
                enter(&view, Stage::Done, &*inner.parts.clock);
            }
            // The instance goes, and with it a process of its own. Foreign code may run then.
            drop(tokio::task::spawn_blocking(move || drop(former)).await);
        });
    }

    async fn drain(&self, former: &Arc<Generation>, limit: Duration, call: Duration) -> &'static str {
        let told = Arc::clone(former);
        // Only a hint for the runner; one that does not take it is drained all the same.
        let _ = on_thread("begin_drain", call, &*self.parts.clock, move || told.begin_drain()).await;
        let sha256 = former.identity().generation.as_str();
        if self.parts.dispatch.generation_idle(sha256, limit).await {
            return "drained";
        }
        self.parts.dispatch.interrupt_generation(sha256);
        let grace = former.stop_grace().unwrap_or(STOP_GRACE);
        if self.parts.dispatch.generation_idle(sha256, grace).await {
            return "interrupted after swap.drain_timeout";
        }
        let left = self.parts.dispatch.abandon_generation(sha256);
        let killed = left.iter().filter(|mandate| former.kill(mandate)).count();
        if killed == left.len() { "killed after swap.drain_timeout" } else { "stuck: a thread does not end" }
    }
}

impl Trial {
    fn is_of(&self, generation: &str) -> bool {
        self.view.borrow().generation.as_deref() == Some(generation)
    }
}
