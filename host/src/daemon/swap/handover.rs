//! The states of a runner's instances on their way from the version that serves to its candidate: at a
//! cycle boundary, before the flip. What cannot be handed over is refused, and nothing is changed by
//! that.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::pipeline::Swap;
use super::view::Refusal;
use super::{Inner, on_thread, show};
use crate::domain::handover::HandOver;
use crate::runner::{Generation, PluginFile, RunnerError};

/// New cycles of a slot wait for as long as one of these lives.
pub(super) struct Held {
    inner: Weak<Inner>,
    runner: String,
    number: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.change_holds(&self.runner, |holds| holds.retain(|(number, _)| *number != self.number));
        }
    }
}

/// What an export gave, or why it gave nothing.
type Exported = Result<Result<HandOver, RunnerError>, Refusal>;

impl Inner {
    /// Lets new cycles of a runner wait until the guard goes; `why` is for people.
    pub(super) fn held(&self, runner: &str, why: String) -> Held {
        let mut number = 0;
        self.change_holds(runner, |holds| {
            number = holds.last().map_or(0, |(last, _)| last + 1);
            holds.push((number, why));
        });
        Held { inner: self.this.clone(), runner: runner.to_owned(), number }
    }

    /// The one that came last says why.
    fn change_holds(&self, runner: &str, change: impl FnOnce(&mut Vec<(u64, String)>)) {
        {
            // Told under the lock, so that the last word is the last change's.
            let mut table = self.table();
            let holds = table.holds.entry(runner.to_owned()).or_default();
            change(holds);
            self.parts.runners.hold(runner, holds.last().map(|(_, why)| why.clone()));
            if holds.is_empty() {
                table.holds.remove(runner);
            }
        }
        self.parts.dispatch.runners_changed();
    }

    /// A swap was given up while the version that serves exports its state. That call cannot be ended,
    /// since what it is asked of serves: new cycles wait for its return, and the swap does not.
    fn leave_to_export(&self, swap: &Swap, held: Held, exporting: JoinHandle<Exported>) {
        let runner = &swap.plan.runner;
        let limit = swap.settings.shadow_deadline;
        let why = format!(
            "new cycles wait until the version that serves has answered export_state of {}, which was given \
             up; for {} s at most (swap.shadow_deadline)",
            swap.view.borrow().id,
            limit.as_secs_f64()
        );
        let told = self.held(runner, why);
        drop(held);
        self.runtime.spawn(async move {
            // It ends by its own limit. What it gives is still the instances' own.
            drop(exporting.await);
            drop(told);
        });
    }

    /// Hands the states of all instances over at a cycle boundary, if there are any. New cycles wait
    /// from then until the guard goes, so that nothing is forgotten between export and flip.
    pub(super) async fn hand_over(
        &self,
        swap: &Swap,
        plugin: &PluginFile,
        ready: &Arc<Generation>,
    ) -> Result<(Option<Held>, Option<HandOver>), Refusal> {
        let told = |what: &str| show(&swap.view, |seen| seen.handover = Some(what.to_owned()));
        if swap.plan.cold {
            told("cold");
            return Ok((None, None));
        }
        let Some(serves) = swap.serves.as_ref() else {
            told("none");
            return Ok((None, None));
        };
        let listed = self.schemas_of(serves).await;
        // What keeps no state says so in its manifest, and nobody waits for it.
        if listed.as_ref().is_some_and(Vec::is_empty) {
            told("none");
            return Ok((None, None));
        }
        let runner = swap.plan.runner.as_str();
        let limit = swap.settings.shadow_deadline;
        // What takes time is done while cycles still begin.
        let (next, count) = (Arc::clone(ready), serves.instances());
        let warm = on_thread("load", limit, &*self.parts.clock, move || next.warm(count));
        swap.halts.or(warm).await?.map_err(|error| state_error("import_failed", &error))?;
        let held = self.boundary(swap).await?;
        let limit = swap.settings.shadow_deadline;
        let serves = Arc::clone(serves);
        let clock = Arc::clone(&self.parts.clock);
        let mut exporting = self.runtime.spawn(async move {
            on_thread("export_state", limit, &*clock, move || serves.hand_over()).await
        });
        let exported = match swap.halts.or(async { Ok((&mut exporting).await) }).await {
            Ok(exported) => exported.unwrap_or_else(|panic| Err(Refusal::new("panic", panic.to_string()))),
            Err(given_up) => {
                self.leave_to_export(swap, held, exporting);
                return Err(given_up);
            }
        };
        let exported = exported.map_err(|refusal| export_refused(&refusal, limit))?;
        let states = exported.map_err(|error| state_error("export_failed", &error))?;
        readable(swap, &states, listed.as_deref(), &plugin.manifest.states)?;
        // On the way back: better without the newer states than not at all.
        let states = states.read_by(&plugin.manifest.states);
        let (next, given) = (Arc::clone(ready), states.clone());
        let importing = on_thread("import_state", limit, &*self.parts.clock, move || next.take_over(given));
        let imported = swap.halts.or(importing).await;
        let imported = imported.and_then(|taken| taken.map_err(|error| state_error("import_failed", &error)));
        // It will never serve, whatever it is doing. A thread of this process is left to itself.
        imported.inspect_err(|_| ready.give_up())?;
        let aside = states.0.iter().filter(|state| state.aside).count();
        let told_as = states.told();
        tracing::info!(runner, states = told_as, aside, "runner_state_handed_over");
        told(if swap.plan.back.is_some() && told_as == "none" && aside > 0 { "cold" } else { &told_as });
        Ok((Some(held), Some(states)))
    }

    /// Comes to a moment when no cycle runs; new ones wait until the guard goes.
    async fn boundary(&self, swap: &Swap) -> Result<Held, Refusal> {
        let runner = swap.plan.runner.as_str();
        let limit = swap.settings.drain_timeout;
        let why = format!(
            "new cycles wait while swap {} hands the state over, once the running ones have ended; since {}, \
             for {} s at most (swap.drain_timeout); `kairos plugin swap {runner} --abort` gives it up",
            swap.view.borrow().id,
            self.parts.clock.now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            limit.as_secs_f64()
        );
        let held = self.held(runner, why);
        let idle = async { Ok(self.parts.dispatch.runner_idle(runner, limit).await) };
        if !swap.halts.or(idle).await? {
            let message = format!("its cycles did not come to a boundary within {} s", limit.as_secs_f64());
            let remedy = "try again later, raise swap.drain_timeout, or begin without the state: --cold";
            return Err(Refusal::new("no_boundary", message).remedy(remedy));
        }
        Ok(held)
    }

    /// The schemas that a version lists; none when its file cannot be read any more.
    pub(super) async fn schemas_of(&self, generation: &Generation) -> Option<Vec<String>> {
        let (runners, sha256) = (Arc::clone(&self.parts.runners), generation.identity().generation.clone());
        let read =
            tokio::task::spawn_blocking(move || runners.kept(&sha256).map(|plugin| plugin.manifest.states));
        read.await.ok()?.ok()
    }
}

/// Whether the states are of schemas that both versions list: the one that `wrote` them, where it
/// is known what it lists, and the one that `reads` them.
fn readable(
    swap: &Swap,
    states: &HandOver,
    wrote: Option<&[String]>,
    reads: &[String],
) -> Result<(), Refusal> {
    if let Some(state) = wrote.and_then(|wrote| states.unreadable(wrote)) {
        let message = format!(
            "the version that serves exported state of schema {:?}, which its manifest does not list",
            state.state.schema
        );
        return Err(Refusal::new("export_failed", message).remedy("begin without the state: --cold"));
    }
    match states.unreadable(reads).filter(|_| swap.plan.back.is_none()) {
        None => Ok(()),
        Some(state) => {
            let message = format!(
                "the version that serves keeps state of schema {:?}\nthe candidate reads {reads:?}",
                state.state.schema
            );
            let remedy = "list the schema in the candidate's manifest, or begin without the state: --cold";
            Err(Refusal::new("state_unreadable", message).remedy(remedy))
        }
    }
}

/// It is the version that serves that was called, so its silence says nothing of the candidate.
fn export_refused(refusal: &Refusal, limit: Duration) -> Refusal {
    let what = match refusal.code.as_str() {
        "hung" => format!("gave no answer within {} s", limit.as_secs_f64()),
        _ => format!("failed: {}", refusal.message),
    };
    Refusal::new("export_failed", format!("export_state of the version that serves {what}"))
        .remedy("begin without the state: --cold")
}

fn state_error(code: &str, error: &RunnerError) -> Refusal {
    Refusal::new(code, format!("its state could not be handed over: {error}"))
        .remedy("begin without the state: --cold")
}
