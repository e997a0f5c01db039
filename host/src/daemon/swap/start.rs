//! What a start finds of swaps: which versions were swapped in, and trials that are not over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::trial::Trial;
use super::view::{Stage, SwapView};
use super::{Inner, Swaps, on_thread};
use crate::domain::generation::GenerationState;
use crate::runner::{NotTaken, Pin, Runners};
use crate::store::{self, GenerationRow, GenerationStore, Life, NewRefusal, Refused};

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
    /// failed theirs, for the cycles they began. To be called before cycles run.
    pub async fn resume(&self, open: Vec<GenerationRow>) {
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
        for row in open.iter().filter(|row| row.canary && row.state == GenerationState::Active) {
            let former = open.iter().find(|other| {
                other.life.runner == row.life.runner && other.state == GenerationState::Standby
            });
            if let Some(former) = former {
                inner.resume_trial(row, former).await;
            }
        }
    }
}

impl Inner {
    async fn resume_trial(self: &Arc<Self>, row: &GenerationRow, former: &GenerationRow) {
        let runner = row.life.runner.as_str();
        let serves = match self.parts.runners.current(runner) {
            Ok(serves) if serves.identity().generation == row.life.sha256 => serves,
            // The configuration names another file by now; adopting it has ended the trial.
            _ => return,
        };
        let settings = self.settings();
        let (runners, name, sha256) =
            (Arc::clone(&self.parts.runners), runner.to_owned(), former.life.sha256.clone());
        let load = move || runners.kept(&sha256).and_then(|plugin| runners.prepare(&name, &plugin));
        let limit = settings.shadow_deadline;
        let standby = match on_thread("load", limit, &*self.parts.clock, load).await {
            Ok(Ok(standby)) => standby,
            Ok(Err(error)) => {
                return tracing::error!(runner, generation = former.life.sha256, %error, "runner_predecessor_lost");
            }
            Err(refusal) => {
                return tracing::error!(runner, generation = former.life.sha256, %refusal, "runner_predecessor_lost");
            }
        };
        if let Some(states) = row.handover.clone() {
            // Both as they were at the flip: the one that serves with what it could read of it, the
            // one that stands by with all of it, since it is its own.
            let own = self.schemas_of(&standby).await.unwrap_or_default();
            let to = [(serves, states.clone()), (Arc::clone(&standby), states.read_by(&own))];
            for (generation, states) in to {
                let take = move || generation.take_over(states);
                match on_thread("import_state", limit, &*self.parts.clock, take).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(runner, %error, "runner_state_lost"),
                    Err(refusal) => tracing::error!(runner, %refusal, "runner_state_lost"),
                }
            }
        }
        let id = row.life.swap.clone().unwrap_or_default();
        let mut seen = SwapView::new(id.clone(), runner, row.life.sha256.clone(), row.since);
        seen.stage = Stage::Canary;
        seen.generation = Some(row.life.sha256.clone());
        seen.from = Some(former.life.sha256.clone());
        (seen.name, seen.version) = (Some(row.life.name.clone()), Some(row.life.version.clone()));
        let view = Arc::new(watch::Sender::new(seen));
        let recorded = self.recorded(runner, crate::store::RECENT_MAX).await.unwrap_or_default();
        let before: Vec<_> =
            recorded.into_iter().filter(|cycle| cycle.generation != row.life.sha256).collect();
        let past = (self.parts.clock.now() - row.since).to_std().unwrap_or(Duration::ZERO);
        let time = settings.canary_time.saturating_sub(past);
        let rows = (former.n, row.n);
        let Ok(Some(config)) = self.parts.runners.config(runner) else { return };
        let trial = Trial::for_time(Arc::clone(&view), &settings, &before, rows, (standby, config), time);
        {
            let mut table = self.table();
            table.views.push_back((id, view));
            table.trials.insert(runner.to_owned(), Arc::clone(&trial));
        }
        tracing::info!(runner, generation = row.life.sha256, "runner_trial_resumed");
        self.watch_trial(trial);
    }
}
