//! One swap from its file to the flip. Whatever goes wrong before the flip's commit ends here as a
//! refusal with a word, and the version that serves has noticed nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::halt::Halts;
use super::start::is_judgement;
use super::trial::Trial;
use super::view::{Refusal, Stage, SwapView};
use super::{Inner, Settings, end, enter, on_thread, shadow, show};
use crate::domain::generation::{GenerationEvent, GenerationState};
use crate::domain::handover::HandOver;
use crate::runner::manifest::fingerprint;
use crate::runner::{Generation, Isolation, LoadError, Pace, Pin, PluginFile, RunnerConfig};
use crate::store::{self, GenerationMove, GenerationRow, Life, NewRefusal, Refused};
use crate::sys::priority;

/// Longest time that a call on a trial in the background has: below what its worker has to answer,
/// so that lateness is never taken for a crash.
const BACKGROUND_MAX: Duration = Duration::from_secs(8);

/// Where a candidate comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A file of the operator.
    File(PathBuf),
    /// A kept file, by its sha256.
    Kept(String),
}

/// A swap that is to be carried out.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub runner: String,
    pub source: Source,
    /// Where the file lay when somebody named it.
    pub origin: Option<String>,
    /// Without the state of the version that serves.
    pub cold: bool,
    /// The candidate need not have the name of what serves in its manifest.
    pub other_plugin: bool,
    /// The candidate must have this sha256: that of the content that somebody has looked at.
    pub exactly: Option<String>,
    /// It has served before: it is probed and serves, without replay and trial. Says who wants that.
    pub back: Option<String>,
}

/// Everything that is known of a swap under way.
pub(super) struct Swap {
    pub plan: Plan,
    pub view: Arc<watch::Sender<SwapView>>,
    pub settings: Settings,
    pub config: RunnerConfig,
    /// None while nothing can be had for the slot: then there is nothing to take over from, and nothing
    /// that could stand by.
    pub serves: Option<Arc<Generation>>,
    pub configured: Option<String>,
    /// The candidate's.
    pub isolation: Isolation,
    pub halts: Halts,
}

/// The candidate's row in the store, once it has one.
#[derive(Default)]
struct Recorded(Option<i64>);

/// Frees the slot for the next swap, also when the task that carries this one out panics.
struct Registered {
    inner: Arc<Inner>,
    runner: String,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.inner.unregister(&self.runner);
    }
}

impl Inner {
    /// Registers a swap and carries it out on a task of its own.
    pub(super) fn begin(self: &Arc<Self>, plan: Plan, source: String) -> Result<SwapView, Refusal> {
        let config = self.parts.runners.config(&plan.runner)?.ok_or_else(|| {
            let message = format!("runner {} is part of this program", plan.runner);
            Refusal::new("not_a_plugin", message).remedy("only runners from plugin files can be swapped")
        })?;
        let serves = self.parts.runners.current(&plan.runner).ok();
        let (view, halts) = self.register(&plan.runner, source)?;
        let registered = Registered { inner: Arc::clone(self), runner: plan.runner.clone() };
        show(&view, |seen| seen.from = serves.as_ref().map(|serves| serves.identity().generation.clone()));
        let seen = view.borrow().clone();
        let settings = self.settings();
        let (configured, isolation) = (None, Isolation::Sandbox);
        let swap = Swap { plan, view, settings, config, serves, configured, isolation, halts };
        let inner = Arc::clone(self);
        self.runtime.spawn(async move {
            inner.carry_out(swap).await;
            drop(registered);
        });
        Ok(seen)
    }

    async fn carry_out(self: &Arc<Self>, mut swap: Swap) {
        let mut recorded = Recorded::default();
        if let Err(refusal) = self.prepare_and_flip(&mut swap, &mut recorded).await {
            let id = swap.view.borrow().id.clone();
            let Refusal { code, message, remedy } = &refusal;
            tracing::warn!(
                runner = swap.plan.runner,
                swap = id,
                code,
                why = message,
                remedy = remedy.as_deref(),
                "swap_refused"
            );
            if let Err(error) = self.record_refusal(&swap, recorded.0, &refusal).await {
                tracing::warn!(%error, swap = id, "swap_refusal_not_recorded");
            }
            let details = json!({"swap": id, "runner": swap.plan.runner, "source": swap.view.borrow().source,
                "stage": swap.view.borrow().stage, "code": code, "message": message, "remedy": remedy});
            self.event("swap_refused", details).await;
            end(&swap.view, Stage::Refused, refusal, &*self.parts.clock);
        }
    }

    /// What history says of a candidate that never serves; of one without a row yet, all of it.
    async fn record_refusal(&self, swap: &Swap, row: Option<i64>, why: &Refusal) -> store::Result<()> {
        let (seen, at) = (swap.view.borrow().clone(), self.parts.clock.now());
        let refused = Refused {
            stage: seen.stage.as_str().to_owned(),
            code: why.code.clone(),
            message: why.message.clone(),
        };
        if let Some(n) = row {
            if let Some(sha256) =
                seen.generation.as_ref().filter(|_| is_judgement(&refused.stage, &refused.code))
            {
                self.parts.runners.bar(&swap.plan.runner, sha256);
            }
            let reason = Some(format!("{}: {}", why.code, why.message));
            let step = GenerationMove {
                details: seen.shadow.as_ref().map(|report| json!({"shadow": report})),
                refused: Some(refused),
                ..GenerationMove::new(n, GenerationEvent::Refuse, reason)
            };
            return self.parts.generations.move_generations(vec![step], at).await;
        }
        let sha256 = match (&seen.generation, &swap.plan.source) {
            (Some(sha256), _) | (None, Source::Kept(sha256)) => Some(sha256.clone()),
            (None, Source::File(path)) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || fingerprint(&path)).await.unwrap_or_default()
            }
        };
        let identity = seen.name.zip(seen.version);
        let (runner, source) = (seen.runner, seen.source);
        let new = NewRefusal { runner, source, sha256, identity, swap: Some(seen.id), refused, at };
        self.parts.generations.refuse_file(new).await.map(drop)
    }

    async fn prepare_and_flip(
        self: &Arc<Self>,
        swap: &mut Swap,
        recorded: &mut Recorded,
    ) -> Result<(), Refusal> {
        let halts = swap.halts.clone();
        let plugin = Arc::new(halts.or(self.keep(swap)).await?);
        let (old, next) = self.record(swap, &plugin).await?;
        recorded.0 = Some(next);
        let ready = halts.or(self.make_ready(swap, &plugin, next)).await?;
        enter(&swap.view, Stage::Handover, &*self.parts.clock);
        let (held, state) = self.hand_over(swap, &plugin, &ready).await?;
        self.still_wanted(swap, &plugin).await?;
        self.comes_to_its_flip(&swap.plan.runner)?;
        enter(&swap.view, Stage::Flip, &*self.parts.clock);
        self.flip(swap, (old, next), ready, state).await?;
        drop(held);
        Ok(())
    }

    /// Everything before the hand-over: nobody but the candidate notices any of it.
    async fn make_ready(
        &self,
        swap: &Swap,
        plugin: &Arc<PluginFile>,
        next: i64,
    ) -> Result<Arc<Generation>, Refusal> {
        let mut probed = false;
        match self.try_out(swap, plugin, next, Pace::Background, &mut probed).await {
            // On a machine without an idle moment that says nothing of the candidate.
            Err(late) if late.is_late() => {
                let (runner, why) = (&swap.plan.runner, &late.message);
                tracing::info!(runner, generation = plugin.sha256, why, "swap_tried_without_yielding");
                self.try_out(swap, plugin, next, Pace::Usual, &mut probed).await?;
            }
            other => other?,
        }
        enter(&swap.view, Stage::Standby, &*self.parts.clock);
        let ready = self.stand_by(swap, plugin).await?;
        let details = swap.view.borrow().shadow.as_ref().map(|report| json!({"shadow": report}));
        let step = GenerationMove { details, ..GenerationMove::new(next, GenerationEvent::Ready, None) };
        self.parts.generations.move_generations(vec![step], self.parts.clock.now()).await?;
        Ok(ready)
    }

    /// Reads the file, checks it as far as that goes without running it, and keeps it.
    async fn keep(&self, swap: &mut Swap) -> Result<PluginFile, Refusal> {
        let (runners, source) = (Arc::clone(&self.parts.runners), swap.plan.source.clone());
        let (config, view, exactly) =
            (swap.config.clone(), Arc::clone(&swap.view), swap.plan.exactly.clone());
        let same = if swap.plan.other_plugin { None } else { self.plugin_of(swap).await? };
        let read = tokio::task::spawn_blocking(move || {
            let plugin = match &source {
                // Reading and hashing it takes milliseconds, which nobody waits for.
                Source::File(path) => priority::at_leisure(|| PluginFile::open(path))?,
                Source::Kept(sha256) => runners.kept(sha256)?,
            };
            show(&view, |seen| {
                seen.generation = Some(plugin.sha256.clone());
                seen.name = Some(plugin.manifest.name.clone());
                seen.version = Some(plugin.manifest.version.clone());
            });
            if exactly.is_some_and(|sha256| sha256 != plugin.sha256) {
                return Err(LoadError::Changed { path: plugin.origin.unwrap_or_default() }.into());
            }
            if let Some(known) = same.filter(|known| *known != plugin.manifest.name) {
                return Err(other_plugin(&config.name, &known, &plugin));
            }
            // Before anything of it runs: whether it may, where the operator wants it to.
            let isolation = runners.isolation_for(&config, &plugin)?;
            runners.keep(&plugin)?;
            Ok::<_, Refusal>((plugin, isolation, runners.sources(&config).configured))
        });
        let (plugin, isolation, configured) = read
            .await
            .map_err(|panic| Refusal::new("panic", format!("the file's reader failed: {panic}")))??;
        swap.configured = configured;
        swap.isolation = isolation;
        if swap.serves.as_ref().is_some_and(|serves| serves.identity().generation == plugin.sha256) {
            let message = format!("runner {} is served by this very file already", swap.plan.runner);
            return Err(Refusal::new("already_active", message));
        }
        Ok(plugin)
    }

    /// The name of the plugin that serves the slot, or that an empty one is for.
    async fn plugin_of(&self, swap: &Swap) -> Result<Option<String>, Refusal> {
        match &swap.serves {
            Some(serves) => Ok(Some(serves.identity().name.clone())),
            None => Ok(self.should_serve(&swap.plan.runner).await?.map(|row| row.life.name)),
        }
    }

    /// Rows for the version that serves and for the candidate.
    async fn record(&self, swap: &Swap, plugin: &PluginFile) -> Result<(Option<i64>, i64), Refusal> {
        let at = self.parts.clock.now();
        let new = |sha256: &str, name: &str, version: &str, abi: &str, isolation: String| Life {
            runner: swap.plan.runner.clone(),
            sha256: sha256.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
            abi: abi.to_owned(),
            isolation,
            swap: None,
            configured: swap.configured.clone(),
            source: None,
        };
        let old = match &swap.serves {
            Some(serves) => {
                let (identity, isolation) = (serves.identity(), serves.isolation().to_string());
                let old =
                    new(&identity.generation, &identity.name, &identity.version, &identity.abi, isolation);
                Some(self.parts.generations.adopt_generation(old, "configured".to_owned(), at).await?)
            }
            None => self.should_serve(&swap.plan.runner).await?.map(|row| {
                show(&swap.view, |seen| seen.from = Some(row.life.sha256));
                row.n
            }),
        };
        let swap_id = Some(swap.view.borrow().id.clone());
        let manifest = &plugin.manifest;
        let next =
            new(&plugin.sha256, &manifest.name, &manifest.version, &manifest.abi, swap.isolation.to_string());
        let source = swap.plan.origin.clone();
        let next = Life { swap: swap_id, source, ..next };
        let next = self.parts.generations.add_generation(next, at).await?;
        Ok((old, next))
    }

    /// The version that an empty slot is for.
    async fn should_serve(&self, runner: &str) -> Result<Option<GenerationRow>, Refusal> {
        let (generations, name) = (Arc::clone(&self.parts.generations), runner.to_owned());
        let read = tokio::task::spawn_blocking(move || generations.generations(Some(&name), 0)).await;
        let rows = read.unwrap_or(Err(crate::store::Error::Closed))?;
        Ok(rows.into_iter().find(|row| row.state == GenerationState::Active))
    }

    /// Probe and shadow: what an instance that never serves can tell of it. `probed` becomes true
    /// once the first is recorded.
    async fn try_out(
        &self,
        swap: &Swap,
        plugin: &Arc<PluginFile>,
        row: i64,
        pace: Pace,
        probed: &mut bool,
    ) -> Result<(), Refusal> {
        let limit = match pace {
            Pace::Usual => swap.settings.shadow_deadline,
            Pace::Background => (swap.settings.shadow_deadline / 4).min(BACKGROUND_MAX),
        };
        enter(&swap.view, Stage::Probe, &*self.parts.clock);
        let candidate = self.probe(swap, plugin, pace, limit).await?;
        if !*probed {
            self.moved(row, GenerationEvent::Probe).await?;
            *probed = true;
        }
        if swap.plan.back.is_some() {
            return Ok(());
        }
        enter(&swap.view, Stage::Shadow, &*self.parts.clock);
        self.shadow(swap, candidate, limit).await
    }

    /// Loads it apart from everything that serves, and asks whether it works.
    async fn probe(
        &self,
        swap: &Swap,
        plugin: &Arc<PluginFile>,
        pace: Pace,
        limit: Duration,
    ) -> Result<Arc<Generation>, Refusal> {
        let (runners, plugin) = (Arc::clone(&self.parts.runners), Arc::clone(plugin));
        let config = swap.config.clone();
        let work = move || {
            let backend = runners.on_trial(&config, &plugin, pace).map_err(Refusal::from)?;
            Ok(Arc::new(Generation::of("trial", backend)))
        };
        on_thread("probe", limit, &*self.parts.clock, work).await?
    }

    async fn shadow(&self, swap: &Swap, candidate: Arc<Generation>, limit: Duration) -> Result<(), Refusal> {
        let recorded = self.recorded(&swap.plan.runner, swap.settings.shadow_cycles).await?;
        let view = Arc::clone(&swap.view);
        let report =
            shadow::replay(&candidate, recorded, limit, swap.settings.tolerance, &*self.parts.clock, |_| {
                show(&view, |_| ())
            })
            .await;
        let refusal = report.refusal();
        show(&swap.view, |seen| seen.shadow = Some(report));
        refusal.map_or(Ok(()), Err)
    }

    pub(super) async fn recorded(
        &self,
        runner: &str,
        limit: usize,
    ) -> Result<Vec<crate::store::RecordedCycle>, Refusal> {
        let (generations, runner) = (Arc::clone(&self.parts.generations), runner.to_owned());
        let read = tokio::task::spawn_blocking(move || generations.recent_cycles(&runner, limit)).await;
        Ok(read.unwrap_or(Err(crate::store::Error::Closed))?)
    }

    /// Loads it as it will serve.
    async fn stand_by(&self, swap: &Swap, plugin: &Arc<PluginFile>) -> Result<Arc<Generation>, Refusal> {
        if swap.isolation == Isolation::InProcess {
            let held = self.parts.runners.leaked_with(plugin.bytes.len() as u64);
            let most = swap.settings.max_leaked;
            if held > most {
                let mib = |bytes: u64| bytes.div_ceil(1 << 20);
                let message = format!(
                    "replaced versions would hold {} MiB of this process; swap.max_leaked is {} MiB",
                    mib(held),
                    mib(most)
                );
                let remedy = "restart the daemon, or give the runner isolation process or sandbox";
                return Err(Refusal::new("leak_cap", message).remedy(remedy));
            }
        }
        let (runners, plugin) = (Arc::clone(&self.parts.runners), Arc::clone(plugin));
        let name = swap.plan.runner.clone();
        let work = move || runners.prepare(&name, &plugin).map_err(Refusal::from);
        on_thread("load", swap.settings.shadow_deadline, &*self.parts.clock, work).await?
    }

    /// Whether the entry and the trust are still those that the candidate was made ready for, and the
    /// slot is served by what it is to replace: cycles may have been waited for meanwhile.
    async fn still_wanted(&self, swap: &Swap, plugin: &Arc<PluginFile>) -> Result<(), Refusal> {
        let (runners, plugin) = (Arc::clone(&self.parts.runners), Arc::clone(plugin));
        let (config, runner) = (swap.config.clone(), swap.plan.runner.clone());
        let asked = move || {
            let same = runners.config(&runner)?.as_ref() == Some(&config);
            Ok::<_, LoadError>((same, runners.isolation_for(&config, &plugin)?))
        };
        let (same, isolation) = tokio::task::spawn_blocking(asked)
            .await
            .map_err(|panic| Refusal::new("panic", format!("the trust's reader failed: {panic}")))??;
        let serves = self.parts.runners.current(&swap.plan.runner).ok();
        let unmoved = match (&serves, &swap.serves) {
            (Some(now), Some(then)) => Arc::ptr_eq(now, then),
            (now, then) => now.is_none() && then.is_none(),
        };
        if same && unmoved && isolation == swap.isolation { Ok(()) } else { Err(came_between()) }
    }

    /// The commit, then the flip: from here on the candidate serves.
    async fn flip(
        self: &Arc<Self>,
        swap: &Swap,
        (old, next): (Option<i64>, i64),
        ready: Arc<Generation>,
        handover: Option<HandOver>,
    ) -> Result<(), Refusal> {
        use GenerationEvent as E;
        let runner = swap.plan.runner.as_str();
        let back = swap.plan.back.as_deref();
        // What nothing stands by for cannot be on trial.
        let former = old.zip(swap.serves.clone());
        let on_trial = former.filter(|_| swap.settings.canary_cycles > 0 && back.is_none());
        let leaves = match (back, &on_trial) {
            (Some(_), _) => E::RollBack,
            (None, Some(_)) => E::StandBack,
            (None, None) => E::Drain,
        };
        let returns = back.map(|who| format!("the version after it was {who}"));
        let canary = on_trial.is_some();
        let activate = GenerationMove { canary, handover, ..GenerationMove::new(next, E::Activate, returns) };
        let mut moves = vec![activate];
        moves.extend(old.map(|old| GenerationMove::new(old, leaves, back.map(ToOwned::to_owned))));
        let baseline =
            if canary { self.recorded(runner, crate::store::RECENT_MAX).await? } else { Vec::new() };
        self.parts.generations.move_generations(moves, self.parts.clock.now()).await?;
        let trial = on_trial.map(|(old, former)| {
            let former = (former, swap.config.clone());
            Trial::new(Arc::clone(&swap.view), &swap.settings, &baseline, (old, next), former)
        });
        let to = &ready.identity().generation;
        self.forget_rolled_back(runner, to);
        if let Some(trial) = &trial {
            // Before the first cycle can end on it.
            self.table().trials.insert(runner.to_owned(), Arc::clone(trial));
        }
        let former = match self.take_slot(swap, &ready) {
            Ok(former) => former,
            Err(error) => {
                self.table().trials.remove(runner);
                tracing::warn!(runner, %error, "swap_found_another_slot");
                return Err(self.take_back((old, next), leaves).await);
            }
        };
        let from = swap.view.borrow().from.clone();
        if let (Some(from), Some(_)) = (&from, back) {
            self.parts.runners.bar(runner, from);
        }
        self.parts.dispatch.runner_replaced(runner);
        tracing::info!(runner, generation = to, from, swap = swap.view.borrow().id, "runner_swapped");
        let view = Arc::clone(&swap.view);
        if let Some(trial) = trial {
            enter(&view, Stage::Canary, &*self.parts.clock);
            self.watch_trial(trial);
            return Ok(());
        }
        enter(&view, Stage::Drain, &*self.parts.clock);
        let row = old.filter(|_| back.is_none());
        match former {
            Some(former) => self.spawn_drain(runner.to_owned(), former, row, Some(view), &swap.settings),
            None => {
                if let Some(row) = row {
                    // Should it fail, the next start ends what drains.
                    let _ = self.moved(row, E::Drained).await;
                }
                enter(&view, Stage::Done, &*self.parts.clock);
            }
        }
        Ok(())
    }

    /// Puts the candidate in the slot: what served until then.
    fn take_slot(&self, swap: &Swap, ready: &Arc<Generation>) -> Result<Option<Arc<Generation>>, LoadError> {
        let (runners, runner) = (&self.parts.runners, swap.plan.runner.as_str());
        let pin = Pin { sha256: ready.identity().generation.clone(), configured: swap.configured.clone() };
        match &swap.serves {
            Some(serves) => {
                let pin = (pin.configured.as_ref() != Some(&pin.sha256)).then_some(pin);
                runners.flip(runner, serves, Arc::clone(ready), pin, &*self.parts.clock).map(Some)
            }
            None => runners.fill(runner, None, Ok(Arc::clone(ready)), pin).map(|()| None),
        }
    }

    /// The slot got another generation while the flip was committed: a reload. The store must say
    /// again what is true; the next start or reload adopts what serves then.
    async fn take_back(&self, (old, next): (Option<i64>, i64), left: GenerationEvent) -> Refusal {
        use GenerationEvent as E;
        let mut moves = vec![GenerationMove::new(next, E::RollBack, Some(came_between().message))];
        if let Some(old) = old.filter(|_| left != E::RollBack) {
            moves.push(GenerationMove::new(old, E::Activate, None));
        }
        if let Err(error) = self.parts.generations.move_generations(moves, self.parts.clock.now()).await {
            tracing::error!(%error, "swap_not_taken_back");
        }
        came_between()
    }

    async fn moved(&self, n: i64, event: GenerationEvent) -> Result<(), Refusal> {
        let step = GenerationMove::new(n, event, None);
        Ok(self.parts.generations.move_generations(vec![step], self.parts.clock.now()).await?)
    }
}

fn other_plugin(runner: &str, known: &str, candidate: &PluginFile) -> Refusal {
    let (name, file) = (&candidate.manifest.name, candidate.origin.as_deref().unwrap_or(Path::new("")));
    let file = file.display();
    let message =
        format!("runner {runner} is plugin {known}, and {file} is no version of it but plugin {name}");
    Refusal::new("other_plugin", message).remedy(format!(
        "to point the runner at another plugin, name it under `runners: {{{runner}: {{plugin: ..}}}}` in daemon.yml \
         and run `kairos reload`; to try it on the cycles of {known} all the same: \
         kairos plugin swap {runner} {file} --other-plugin"
    ))
}

fn came_between() -> Refusal {
    Refusal::new("conflict", "the runner was configured anew while it was swapped").remedy("try again")
}
