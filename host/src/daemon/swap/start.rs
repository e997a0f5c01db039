//! What a start finds of swaps: which versions were swapped in, and trials that are not over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::canary::{Counters, Decision};
use super::trial::Trial;
use super::view::{Stage, SwapView};
use super::{Inner, Settings, Swaps, on_thread};
use crate::domain::generation::GenerationState;
use crate::domain::handover::HandOver;
use crate::runner::{Generation, Isolation, LoadError, NotTaken, Pin, Runners};
use crate::store::{
    self, ClaimedCycle, GenerationRow, GenerationStore, Life, NewRefusal, Recovered, Refused,
};

/// What serves in place of configured files, of rows that are open after a start: what was swapped
/// in, and whatever serves where a version is barred.
#[must_use]
pub fn pins(open: &[GenerationRow], barred: &BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, Pin> {
    let stays = |row: &&GenerationRow| row.life.swap.is_some() || barred.contains_key(&row.life.runner);
    let active = open.iter().filter(|row| row.state == GenerationState::Active);
    active
        .filter(stays)
        .map(|row| {
            (
                row.life.runner.clone(),
                Pin { sha256: row.life.sha256.clone(), configured: row.life.configured.clone() },
            )
        })
        .collect()
}

/// Versions that were found bad, by runner: the last that is known of them is that they were taken
/// back, or refused for what they did. `lives` are newest first.
#[must_use]
pub fn barred(lives: &[GenerationRow]) -> BTreeMap<String, BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    let mut barred: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in lives {
        let last = seen.insert((&row.life.runner, &row.life.sha256));
        let bad = match row.state {
            GenerationState::RolledBack => true,
            GenerationState::Refused => {
                row.refused.as_ref().is_some_and(|refused| is_judgement(&refused.stage, &refused.code))
            }
            _ => false,
        };
        if last && bad {
            barred.entry(row.life.runner.clone()).or_default().insert(row.life.sha256.clone());
        }
    }
    barred
}

/// What a candidate can be refused for while it is tried, without anything being wrong with it.
const SURROUNDINGS: [&str; 9] = [
    "aborted",
    "bad_grant",
    "io",
    "isolation_unavailable",
    "no_thread",
    "no_worker",
    "sandbox_unavailable",
    "stopping",
    "store",
];

/// True when a version was refused for what it does itself: by a stage that tries it.
pub(super) fn is_judgement(stage: &str, code: &str) -> bool {
    let judges = [Stage::Probe, Stage::Shadow].iter().any(|judges| judges.as_str() == stage);
    judges && !SURROUNDINGS.contains(&code)
}

/// Records which generations serve the slots now. A version that was swapped in ends when the
/// configuration names another file by now. Blocks for the files.
///
/// # Errors
/// The store's.
pub fn adopt(
    runners: &Runners,
    generations: &dyn GenerationStore,
    at: chrono::DateTime<chrono::Utc>,
) -> store::Result<()> {
    for status in runners.status() {
        let (Some(identity), Ok(Some(config))) = (status.identity, runners.config(&status.name)) else {
            continue;
        };
        let sources = runners.sources(&config);
        let source = sources.file.filter(|_| sources.configured.as_ref() == Some(&identity.generation));
        let life = Life {
            runner: status.name,
            sha256: identity.generation,
            name: identity.name,
            version: identity.version,
            abi: identity.abi,
            isolation: status.isolation.map(|isolation| isolation.to_string()).unwrap_or_default(),
            swap: None,
            configured: sources.configured,
            source: source.map(|file| file.display().to_string()),
        };
        generations.adopt_generation(life, "configured".to_owned(), at).wait()?;
    }
    Ok(())
}

/// Records the files that new entries of the configuration name and that were not put in force. One
/// that was judged bad does not serve by itself after the next start either.
///
/// # Errors
/// The store's.
pub fn refuse_entries(
    not_taken: &[NotTaken],
    generations: &dyn GenerationStore,
    at: chrono::DateTime<chrono::Utc>,
) -> store::Result<()> {
    for entry in not_taken {
        let stage = if entry.tried { Stage::Probe } else { Stage::Keep };
        let (code, message) = (entry.error.code.to_owned(), entry.error.message.clone());
        let file = entry.file.as_ref().map(|file| file.display().to_string());
        let new = NewRefusal {
            runner: entry.runner.clone(),
            source: file.unwrap_or_else(|| entry.plugin.clone()),
            sha256: entry.sha256.clone(),
            identity: entry.identity.clone(),
            swap: None,
            refused: Refused { stage: stage.as_str().to_owned(), code, message },
            at,
        };
        generations.refuse_file(new).wait()?;
    }
    Ok(())
}

impl Swaps {
    /// Takes up the trials that were open when the daemon stopped, and remembers versions that
    /// failed theirs, for the cycles they began. One that cannot be loaded, or with which the last
    /// daemon may have died, has failed its trial; what it had under way is queued again. To be called
    /// before cycles run.
    pub async fn resume(&self, open: Vec<GenerationRow>, recovered: Option<&mut Recovered>) {
        let inner = &self.0;
        let generations = Arc::clone(&inner.parts.generations);
        let read = tokio::task::spawn_blocking(move || generations.generations(None, super::ROLLED_BACK_MAX));
        for row in read.await.ok().and_then(Result::ok).unwrap_or_default().into_iter().rev() {
            match row.state {
                GenerationState::RolledBack => inner.remember_rolled_back(&row.life.runner, &row.life.sha256),
                GenerationState::Active => inner.forget_rolled_back(&row.life.runner, &row.life.sha256),
                _ => {}
            }
        }
        let mut nothing = Recovered::default();
        let recovered = recovered.unwrap_or(&mut nothing);
        for row in open.iter().filter(|row| row.canary && row.state == GenerationState::Active) {
            let former = open.iter().find(|other| {
                other.life.runner == row.life.runner && other.state == GenerationState::Standby
            });
            if let Some(former) = former {
                let looped = inner.crash_looped(row).await;
                let fault = inner.died_with(row, recovered, &looped);
                if let Some(why) = inner.resume_trial(row, former, fault).await {
                    inner.queue_again(row, recovered, &why).await;
                    inner.queue_looped_again(looped, &why).await;
                }
            }
        }
    }
}

/// What is wrong with a version that cannot be loaded.
const NOT_LOADED: &str = "it could not be loaded when the daemon started";

impl Inner {
    /// In process a version's crash is the daemon's: one that had a cycle open when the daemon came to
    /// an unclean end is not to be tried again.
    fn died_with(&self, row: &GenerationRow, recovered: &Recovered, looped: &[String]) -> Option<String> {
        let serves = self.parts.runners.current(&row.life.runner).ok();
        let in_process = serves.map_or(row.life.isolation == Isolation::InProcess.to_string(), |serves| {
            serves.isolation() == Isolation::InProcess
        });
        let died = |what: String| format!("the daemon died in its process while it ran {what}");
        if !(recovered.unclean && in_process) {
            return None;
        }
        let open = recovered.running.iter().find(|cycle| is_of(cycle, row));
        let open = open.map(|cycle| format!("cycle {} of mandate {}", cycle.mandate.cycle, cycle.mandate.id));
        // Of one that went to a person for that, recovery hands nothing back.
        open.or_else(|| looped.first().map(|id| format!("mandate {id}"))).map(died)
    }

    /// Mandates that are in review since a daemon died once too often while they ran, the last time
    /// on that version. From the store, so that a start which is cut short leaves nothing out.
    async fn crash_looped(&self, row: &GenerationRow) -> Vec<String> {
        let (generations, since) = (Arc::clone(&self.parts.generations), row.since);
        let (runner, sha256) = (row.life.runner.clone(), row.life.sha256.clone());
        let read =
            tokio::task::spawn_blocking(move || generations.crash_looped(&runner, &sha256, since)).await;
        read.unwrap_or(Err(store::Error::Closed)).unwrap_or_else(|error| {
            tracing::error!(runner = row.life.runner, %error, "daemon_crash_loops_not_read");
            Vec::new()
        })
    }

    /// Gives those back to the queue whose last death was that of a version which failed its trial.
    async fn queue_looped_again(&self, looped: Vec<String>, why: &str) {
        for mandate in looped {
            let (why, at) = (format!("rolled back: {why}"), self.parts.clock.now());
            match self.parts.generations.run_crash_looped_again(mandate.clone(), why, at).await {
                Ok(state) => tracing::info!(mandate, %state, "mandate_crash_not_its_own"),
                Err(error) => tracing::error!(mandate, %error, "daemon_cycle_not_queued_again"),
            }
        }
    }

    /// Gives the open cycles of a version that failed its trial back to the queue.
    async fn queue_again(&self, row: &GenerationRow, recovered: &mut Recovered, why: &str) {
        let (failed, others) = std::mem::take(&mut recovered.running)
            .into_iter()
            .partition::<Vec<ClaimedCycle>, _>(|cycle| is_of(cycle, row));
        recovered.running = others;
        for cycle in failed {
            if let Err(error) = self.parts.dispatch.run_again(&cycle, format!("rolled back: {why}")).await {
                tracing::error!(mandate = cycle.mandate.id, %error, "daemon_cycle_not_queued_again");
                recovered.running.push(cycle);
            }
        }
    }

    /// What is to serve the slot, if that is the version of that row; else the configuration names
    /// another file by now, and adopting it has ended the trial.
    async fn still_on_trial(&self, row: &GenerationRow) -> Option<Result<Arc<Generation>, LoadError>> {
        let serves = self.parts.runners.current(&row.life.runner);
        if let Ok(serves) = &serves {
            return (serves.identity().generation == row.life.sha256).then(|| Ok(Arc::clone(serves)));
        }
        let config = self.parts.runners.config(&row.life.runner).ok().flatten()?;
        let runners = Arc::clone(&self.parts.runners);
        let sources = tokio::task::spawn_blocking(move || runners.sources(&config)).await.ok()?;
        let named = sources.pin.map(|pin| pin.sha256).or(sources.configured);
        (named.as_ref() == Some(&row.life.sha256)).then_some(serves)
    }

    /// The version that stands by, loaded again.
    async fn stand_by_again(&self, former: &GenerationRow, limit: Duration) -> Option<Arc<Generation>> {
        let (runners, name, sha256) =
            (Arc::clone(&self.parts.runners), former.life.runner.clone(), former.life.sha256.clone());
        let load = move || runners.kept(&sha256).and_then(|plugin| runners.prepare(&name, &plugin));
        let (runner, generation) = (former.life.runner.as_str(), former.life.sha256.as_str());
        match on_thread("load", limit, &*self.parts.clock, load).await {
            Ok(Ok(standby)) => return Some(standby),
            Ok(Err(error)) => {
                tracing::error!(runner, generation, %error, remedy = %error.remedy(), "runner_predecessor_lost");
            }
            Err(refusal) => tracing::error!(runner, generation, %refusal, "runner_predecessor_lost"),
        }
        None
    }

    /// Both as they were at the flip: the one that serves with what it could read of it, the one that
    /// stands by with all of it, since it is its own.
    async fn give_states(
        &self,
        runner: &str,
        states: HandOver,
        serves: Option<Arc<Generation>>,
        standby: &Arc<Generation>,
        limit: Duration,
    ) {
        let own = self.schemas_of(standby).await.unwrap_or_default();
        let to = [(serves, states.clone()), (Some(Arc::clone(standby)), states.read_by(&own))];
        for (generation, states) in to {
            let Some(generation) = generation else { continue };
            let take = move || generation.take_over(states);
            match on_thread("import_state", limit, &*self.parts.clock, take).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(runner, %error, "runner_state_lost"),
                Err(refusal) => tracing::error!(runner, %refusal, "runner_state_lost"),
            }
        }
    }

    /// What the trial has shown so far: the cycles that this version has ended since its flip count.
    async fn books_of(&self, row: &GenerationRow, settings: &Settings) -> (Counters, Decision) {
        let recorded = self.recorded(&row.life.runner, crate::store::RECENT_MAX).await.unwrap_or_default();
        let before: Vec<_> =
            recorded.into_iter().filter(|cycle| cycle.generation != row.life.sha256).collect();
        let (generations, runner, sha256, since) = (
            Arc::clone(&self.parts.generations),
            row.life.runner.clone(),
            row.life.sha256.clone(),
            row.since,
        );
        let read =
            tokio::task::spawn_blocking(move || generations.ended_cycles(&runner, &sha256, since)).await;
        let ended = read.unwrap_or(Err(store::Error::Closed)).unwrap_or_else(|error| {
            tracing::error!(runner = row.life.runner, %error, "runner_trial_counted_afresh");
            Vec::new()
        });
        Counters::of(&before, &ended, row.not_begun(), settings)
    }

    /// Takes a trial up where it was. With a `fault`, or one that shows now, it ends at once: why.
    async fn resume_trial(
        self: &Arc<Self>,
        row: &GenerationRow,
        former: &GenerationRow,
        fault: Option<String>,
    ) -> Option<String> {
        let runner = row.life.runner.as_str();
        let serves = self.still_on_trial(row).await?;
        let config = self.parts.runners.config(runner).ok().flatten()?;
        let settings = self.settings();
        let limit = settings.shadow_deadline;
        let standby = self.stand_by_again(former, limit).await?;
        let unloaded = serves.as_ref().err().map(|error| format!("{NOT_LOADED}: {error}"));
        if let Some(states) = row.handover.clone() {
            self.give_states(runner, states, serves.ok(), &standby, limit).await;
        }
        let view = Arc::new(watch::Sender::new(view_of(row, former)));
        let past = (self.parts.clock.now() - row.since).to_std().unwrap_or(Duration::ZERO);
        let time = settings.canary_time.saturating_sub(past);
        let (counters, decision) = self.books_of(row, &settings).await;
        let shown = counters.view(&settings);
        view.send_modify(|seen| seen.canary = Some(shown));
        let rows = (former.n, row.n);
        let trial = Trial::for_time(Arc::clone(&view), &settings, counters, rows, (standby, config), time);
        {
            let mut table = self.table();
            table.views.push_back((row.life.swap.clone().unwrap_or_default(), view));
            table.trials.insert(runner.to_owned(), Arc::clone(&trial));
        }
        tracing::info!(runner, generation = row.life.sha256, "runner_trial_resumed");
        let passed = decision == Decision::Pass;
        let failed = match decision {
            Decision::RollBack(why) => Some(why),
            Decision::GoOn | Decision::Pass => None,
        };
        if let Some(why) = fault.or(unloaded).or(failed) {
            if self.end_by_failure(&trial, &why).await.is_ok() {
                return Some(why);
            }
        } else if passed {
            trial.is_decided();
        }
        self.watch_trial(trial);
        None
    }
}

fn is_of(cycle: &ClaimedCycle, row: &GenerationRow) -> bool {
    (&cycle.runner, &cycle.generation) == (&row.life.runner, &row.life.sha256)
}

/// A trial as people see it after a start.
fn view_of(row: &GenerationRow, former: &GenerationRow) -> SwapView {
    let id = row.life.swap.clone().unwrap_or_default();
    let mut seen = SwapView::new(id, &row.life.runner, row.life.sha256.clone(), row.since);
    seen.stage = Stage::Canary;
    seen.generation = Some(row.life.sha256.clone());
    seen.from = Some(former.life.sha256.clone());
    (seen.name, seen.version) = (Some(row.life.name.clone()), Some(row.life.version.clone()));
    seen
}
