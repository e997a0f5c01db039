//! Replacing versions of runners while cycles run.
//!
//! ```text
//! file -> keep -> probe -> shadow -> standby -> hand-over -> flip -> canary -> drain -> done
//!           \       \        \         \           \                    \
//!            +-------+--------+---------+-----------+-> refused          +-> rolled back
//! ```
//!
//! Until the flip the version that serves is not touched, except that new cycles wait for a moment
//! while its state is handed over. Every step is in the store before it counts: a daemon that dies
//! before the flip's commit comes back with the old version, one that dies after it with the new
//! one on trial. One swap of a slot at a time.

mod canary;
mod halt;
mod handover;
mod pipeline;
pub mod shadow;
mod start;
mod trial;
mod view;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch as channel;

pub use start::{adopt, barred, pins, refuse_entries};
pub use view::{Refusal, Stage, SwapView};
pub use watch::{Unwatched, watch, watchable};

use self::halt::{Halts, Preparing};
use self::trial::Trial;
use super::dispatch::Dispatch;
use crate::runner::{Runners, plain};
use crate::store::{GenerationRow, GenerationStore, NewEvent, Store};
use crate::sys::clock::Clock;
use crate::sys::entropy::Entropy;

/// Swaps that are remembered for whoever asks; their history is in the store.
const VIEWS_MAX: usize = 64;
/// Remarks on watched files that are remembered; then each may be made once more.
const REPORTED_MAX: usize = 1024;
/// Generations that failed their trial and may still have cycles under way.
const ROLLED_BACK_MAX: usize = 256;

/// How swaps are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Recorded cycles that a candidate is run on.
    pub shadow_cycles: usize,
    /// Billionths of them that may differ.
    pub tolerance: u64,
    /// Time for one of them, and for each other call of a candidate.
    pub shadow_deadline: Duration,
    /// Cycles of a trial; 0 for none.
    pub canary_cycles: u32,
    /// Longest trial.
    pub canary_time: Duration,
    /// Billionths of its cycles that may report an error.
    pub canary_error_rate: u64,
    /// Billionths: so many times the recorded usage is too much.
    pub canary_cost_factor: u64,
    /// How long a version's last cycles are waited for.
    pub drain_timeout: Duration,
    /// Bytes that stay mapped, at most.
    pub max_leaked: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shadow_cycles: 10,
            tolerance: 0,
            shadow_deadline: Duration::from_secs(30),
            canary_cycles: 10,
            canary_time: Duration::from_secs(3600),
            canary_error_rate: 100_000_000,
            canary_cost_factor: 2_000_000_000,
            drain_timeout: Duration::from_secs(900),
            max_leaked: 512 << 20,
        }
    }
}

/// What swaps work with.
pub struct Parts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// For ids.
    pub entropy: Arc<dyn Entropy>,
    /// Lives and recorded cycles.
    pub generations: Arc<dyn GenerationStore>,
    /// For events.
    pub store: Arc<dyn Store>,
    /// The slots.
    pub runners: Arc<Runners>,
    /// The cycles.
    pub dispatch: Dispatch,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct SwapRequest {
    /// The slot.
    pub runner: String,
    /// The candidate's file.
    pub file: PathBuf,
    /// Begin without the state of the version that serves.
    pub cold: bool,
    /// It may be another plugin than the one that serves, by its manifest's name.
    pub other_plugin: bool,
}

/// The handle; clones are the same.
#[derive(Clone)]
pub struct Swaps(Arc<Inner>);

struct Inner {
    /// For tasks that outlive a call.
    this: Weak<Inner>,
    parts: Parts,
    settings: RwLock<Settings>,
    table: Mutex<Table>,
    /// The watched directory, if one is configured.
    watched: Mutex<Option<watch::Watched>>,
    /// Counts up whenever a slot becomes free for the next swap.
    freed: channel::Sender<u64>,
    runtime: tokio::runtime::Handle,
}

#[derive(Default)]
struct Table {
    /// Slots with a swap under way, up to the flip.
    preparing: BTreeMap<String, Preparing>,
    /// Why new cycles of slots wait, each with its number.
    holds: BTreeMap<String, Vec<(u64, String)>>,
    /// Slots with a version on trial.
    trials: BTreeMap<String, Arc<Trial>>,
    /// (runner, sha256) of versions that failed their trial.
    rolled_back: VecDeque<(String, String)>,
    views: VecDeque<(String, Arc<channel::Sender<SwapView>>)>,
    /// What was said of files where a directory is watched, so that each thing is said once.
    reported: BTreeSet<String>,
    /// The daemon stops, so nothing begins any more.
    stopping: bool,
}

impl Table {
    /// True when it has not been said of a watched file before.
    fn news(&mut self, said: String) -> bool {
        if self.reported.len() >= REPORTED_MAX {
            self.reported.clear();
        }
        self.reported.insert(said)
    }
}

impl Swaps {
    /// Does nothing until it is asked. Its tasks live on the current tokio runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let swaps = Self(Arc::new_cyclic(|this| Inner {
            this: this.clone(),
            parts,
            settings: RwLock::new(settings),
            table: Mutex::default(),
            watched: Mutex::default(),
            freed: channel::Sender::new(0),
            runtime: tokio::runtime::Handle::current(),
        }));
        let trials: Arc<dyn super::dispatch::ports::Trials> = Arc::clone(&swaps.0) as _;
        swaps.0.parts.dispatch.connect_trials(Arc::downgrade(&trials));
        swaps
    }

    /// Takes new settings; a trial under way keeps those it began with.
    pub fn configure(&self, settings: Settings) {
        *self.0.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Begins a swap and gives its view; the rest happens by itself.
    ///
    /// # Errors
    /// `conflict` while another one of this slot is under way, `unknown_runner`.
    pub fn start(&self, request: SwapRequest) -> Result<SwapView, Refusal> {
        let file = plain(&request.file);
        let source = file.display().to_string();
        let plan = pipeline::Plan {
            runner: request.runner,
            source: pipeline::Source::File(file),
            origin: Some(source.clone()),
            cold: request.cold,
            other_plugin: request.other_plugin,
            exactly: None,
            back: None,
        };
        self.0.begin(plan, source)
    }

    /// As [`Swaps::start`], of a file whose content somebody has looked at: of no other.
    fn start_exactly(&self, runner: &str, file: PathBuf, sha256: String) -> Result<SwapView, Refusal> {
        let source = file.display().to_string();
        let plan = pipeline::Plan {
            runner: runner.to_owned(),
            source: pipeline::Source::File(file),
            origin: Some(source.clone()),
            cold: false,
            other_plugin: false,
            exactly: Some(sha256),
            back: None,
        };
        self.0.begin(plan, source)
    }

    /// Gives a slot back to the version before: the one that stands by, if one is on trial, else the
    /// one that served last, which is probed first. `who` says who wants it, and why, as in "taken
    /// back by the operator". Gives the view of that swap.
    ///
    /// # Errors
    /// `conflict`, `unknown_runner`, `nothing_before`.
    pub async fn roll_back(&self, runner: &str, who: &str) -> Result<SwapView, Refusal> {
        let trial = self.0.table().trials.get(runner).cloned();
        if let Some(trial) = trial {
            self.0.take_back_by_hand(&trial, who).await?;
            return Ok(trial.view.borrow().clone());
        }
        let before = self.0.version_before(runner).await?;
        let plan = pipeline::Plan {
            runner: runner.to_owned(),
            source: pipeline::Source::Kept(before.life.sha256.clone()),
            origin: before.life.source.clone(),
            cold: false,
            other_plugin: true,
            exactly: None,
            back: Some(who.to_owned()),
        };
        self.0.begin(plan, before.life.sha256)
    }

    /// Ends trials that a reload has ended: to be called once it is recorded what serves now.
    pub async fn configured_anew(&self) {
        self.0.end_stale_trials().await;
    }

    /// A swap by its id, as it stands.
    #[must_use]
    pub fn view(&self, id: &str) -> Option<SwapView> {
        self.0.view(id).map(|view| view.borrow().clone())
    }

    /// A swap once it has moved beyond `step`, or after `limit` as it stands then.
    pub async fn view_after(&self, id: &str, step: u64, limit: Duration) -> Option<SwapView> {
        let mut view = self.0.view(id)?.subscribe();
        let clock = &self.0.parts.clock;
        tokio::select! {
            // The sender is in the table; should it be forgotten meanwhile, what was seen last stays.
            _ = view.wait_for(|view| view.step > step) => {}
            () = clock.sleep_until(clock.monotonic() + limit) => {}
        }
        let seen = view.borrow().clone();
        Some(seen)
    }

    /// The swap under way or the trial of a slot.
    #[must_use]
    pub fn open(&self, runner: &str) -> Option<SwapView> {
        let id = {
            let table = self.0.table();
            let trial = table.trials.get(runner).map(|trial| trial.view.borrow().id.clone());
            table.preparing.get(runner).map(|swap| swap.id.clone()).or(trial)
        };
        self.view(&id?)
    }

    /// What status shows: mapped images, their cap, how long flips took.
    #[must_use]
    pub fn status(&self) -> Value {
        let leaked = self.0.parts.runners.leaked();
        let held = self.0.parts.runners.leaked_by_replaced();
        let cap = self.0.settings().max_leaked;
        let open: Vec<String> = {
            let table = self.0.table();
            table.preparing.keys().chain(table.trials.keys()).cloned().collect()
        };
        let under_way: Vec<Value> =
            open.iter().filter_map(|runner| self.open(runner)).map(|swap| swap.in_short()).collect();
        let advice = (held > cap).then_some("restart the daemon, or use isolation process or sandbox");
        json!({
            "open": open,
            "under_way": under_way,
            "images": leaked.images,
            "image_bytes": leaked.bytes,
            "leaked_bytes": held,
            "max_leaked_bytes": cap,
            "advice": advice,
            "flips": self.0.parts.runners.flips(),
        })
    }

    /// Ends when the slot is free for a swap.
    pub async fn free(&self, runner: &str) {
        let mut freed = self.0.freed.subscribe();
        loop {
            freed.borrow_and_update();
            let busy = {
                let table = self.0.table();
                table.preparing.contains_key(runner) || table.trials.contains_key(runner)
            };
            // The sender is ours.
            if !busy || freed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Inner {
    fn this(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn view(&self, id: &str) -> Option<Arc<channel::Sender<SwapView>>> {
        let table = self.table();
        table.views.iter().find(|(known, _)| known == id).map(|(_, view)| Arc::clone(view))
    }

    /// Registers a swap of a slot that has none.
    fn register(
        &self,
        runner: &str,
        source: String,
    ) -> Result<(Arc<channel::Sender<SwapView>>, Halts), Refusal> {
        let mut chance = [0; 4];
        self.parts.entropy.fill(&mut chance);
        let now = self.parts.clock.now();
        let id = format!("swap-{}-{}", now.format("%Y%m%dT%H%M%SZ"), hex::encode(chance));
        let mut table = self.table();
        if table.stopping {
            return Err(Refusal::stopping());
        }
        if let Some(other) = table.preparing.get(runner) {
            let message = format!("a swap of runner {runner} is under way: {}", other.id);
            let remedy = format!("wait for its end, or give it up: kairos plugin swap {runner} --abort");
            return Err(Refusal::new("conflict", message).remedy(remedy));
        }
        if table.trials.contains_key(runner) {
            let message = format!("the version that serves runner {runner} is on trial");
            let remedy =
                format!("wait for the end of the trial, or take it back: kairos plugin rollback {runner}");
            return Err(Refusal::new("conflict", message).remedy(remedy));
        }
        let preparing = Preparing::new(id.clone());
        let halts = preparing.halts();
        table.preparing.insert(runner.to_owned(), preparing);
        let view = Arc::new(channel::Sender::new(SwapView::new(id.clone(), runner, source, now)));
        table.views.push_back((id, Arc::clone(&view)));
        if table.views.len() > VIEWS_MAX {
            table.views.pop_front();
        }
        Ok((view, halts))
    }

    fn unregister(&self, runner: &str) {
        self.table().preparing.remove(runner);
        self.freed.send_modify(|count| *count += 1);
    }

    fn remember_rolled_back(&self, runner: &str, sha256: &str) {
        let mut table = self.table();
        table.rolled_back.push_back((runner.to_owned(), sha256.to_owned()));
        if table.rolled_back.len() > ROLLED_BACK_MAX {
            table.rolled_back.pop_front();
        }
    }

    fn forget_rolled_back(&self, runner: &str, sha256: &str) {
        self.table().rolled_back.retain(|known| known != &(runner.to_owned(), sha256.to_owned()));
    }

    fn was_rolled_back(&self, runner: &str, sha256: &str) -> bool {
        self.table().rolled_back.iter().any(|known| known.0 == runner && known.1 == sha256)
    }

    /// The version that served a slot before the one that does.
    async fn version_before(&self, runner: &str) -> Result<GenerationRow, Refusal> {
        use crate::domain::generation::GenerationState as S;
        let serves = self.parts.runners.current(runner);
        let (generations, name) = (Arc::clone(&self.parts.generations), runner.to_owned());
        let read = tokio::task::spawn_blocking(move || generations.generations(Some(&name), 0)).await;
        let rows = read.unwrap_or(Err(crate::store::Error::Closed))?;
        // Of an empty slot: what would serve it if that could be had.
        let sha256 = match serves {
            Ok(serves) => Some(serves.identity().generation.clone()),
            Err(error @ crate::runner::LoadError::UnknownRunner(_)) => return Err(error.into()),
            Err(_) => rows.iter().find(|row| row.state == S::Active).map(|row| row.life.sha256.clone()),
        };
        let served = |row: &GenerationRow| {
            matches!(row.state, S::Retired | S::Draining | S::Standby)
                && Some(&row.life.sha256) != sha256.as_ref()
                && row.trail.iter().any(|entry| entry.state == S::Active)
        };
        rows.into_iter().find(served).ok_or_else(|| {
            Refusal::new("nothing_before", format!("no other version has served runner {runner}"))
        })
    }

    /// An event; a store that does not take it now says so elsewhere.
    async fn event(&self, kind: &'static str, details: Value) {
        let event = NewEvent { at: self.parts.clock.now(), kind, schedule: None, mandate: None, details };
        if let Err(error) = self.parts.store.event(event).await {
            tracing::warn!(%error, kind, "event_not_recorded");
        }
    }
}

/// Changes what people see of a swap.
fn show(view: &channel::Sender<SwapView>, change: impl FnOnce(&mut SwapView)) {
    view.send_modify(|seen| {
        change(seen);
        seen.step += 1;
    });
}

/// A swap comes to its next stage.
fn enter(view: &channel::Sender<SwapView>, stage: Stage, clock: &dyn Clock) {
    let at = clock.now();
    show(view, |seen| (seen.stage, seen.since) = (stage, at));
}

/// A swap ends without serving, or serves no more. In one step: who looks sees the reason with the stage.
fn end(view: &channel::Sender<SwapView>, stage: Stage, why: Refusal, clock: &dyn Clock) {
    let at = clock.now();
    show(view, |seen| (seen.stage, seen.since, seen.refusal) = (stage, at, Some(why)));
}

/// Calls foreign code on a thread of its own, which is left to itself when it does not answer in
/// time: not even the runtime's end waits for it.
async fn on_thread<T: Send + 'static>(
    what: &'static str,
    limit: Duration,
    clock: &dyn Clock,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new().name(format!("kairos-{what}")).spawn(move || {
        // Nobody listens any more when it came too late.
        let _ = send.send(work());
    });
    if let Err(error) = spawned {
        return Err(Refusal::new("no_thread", format!("no thread to call the candidate on: {error}")));
    }
    tokio::select! {
        biased;
        answer = receive => answer.map_err(|_| Refusal::new("panic", format!("{what} panicked"))),
        () = clock.sleep_until(clock.monotonic() + limit) => {
            let message = format!("{what} of the candidate gave no answer within {} s", limit.as_secs_f64());
            Err(Refusal::new("hung", message))
        }
    }
}
