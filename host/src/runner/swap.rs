//! The part of a swap that touches the slots: which file a slot is for, the flip, and how long
//! it took. The pipeline around it is the daemon's.
//!
//! A flip replaces one pointer under the slots' lock. Cycles hold the generation they began on, so
//! it takes nothing from anybody; the former generation stays at hand for them by its sha256.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::generation::Generation;
use super::launch::{Isolation, Pace, RunnerConfig};
use super::load_error::LoadError;
use super::manifest::PluginFile;
use super::served::{Chosen, Instead};
use super::slot::Runners;
use super::{RunnerBackend, library};
use crate::sys::clock::Clock;

/// Flips whose times are kept.
const KEPT: usize = 4096;
/// Memory of its own that an image costs beside its file, in bytes. Measured.
const IMAGE_OVERHEAD: u64 = 88 << 10;

/// What a swap put in place of the configured file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// What serves.
    pub sha256: String,
    /// What the configuration named when it was swapped in. When that file is another one some
    /// day, the operator has changed his mind and the pin ends.
    pub configured: Option<String>,
}

/// The files behind a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// What the configuration names; none when there is no such plugin now.
    pub configured: Option<String>,
    /// Where that is.
    pub file: Option<PathBuf>,
    /// Why it is nothing that could serve, as far as looking at it tells.
    pub error: Option<LoadError>,
    /// The pin that counts.
    pub pin: Option<Pin>,
}

/// What a look at the files behind a slot that is served finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// Nothing that the slot does not know.
    Nothing,
    /// The configured file is another one than when the slot was filled.
    Changed {
        /// Where it is.
        file: PathBuf,
        /// What it is now.
        sha256: String,
    },
    /// It is another one, which was refused or taken back before and does not serve by itself.
    Barred {
        /// Where it is.
        file: PathBuf,
        /// What it is now.
        sha256: String,
    },
    /// There is nothing usable any more where the configuration says.
    Unusable(LoadError),
    /// By the trust that it has now, what serves belongs somewhere else.
    Elsewhere(Isolation),
    /// By the trust that it has now, what serves may not run where the operator wants it to.
    Forbidden(LoadError),
}

/// How long flips took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlipFigures {
    /// How many there were.
    pub count: u64,
    /// Median time in the critical section, in nanoseconds.
    pub held_p50_ns: u64,
    /// 99th percentile of it.
    pub held_p99_ns: u64,
    /// Longest.
    pub held_max_ns: u64,
    /// 99th percentile of the wait for it.
    pub waited_p99_ns: u64,
}

/// The account of flips.
#[derive(Default)]
pub(super) struct Flips(Mutex<Account>);

#[derive(Default)]
struct Account {
    count: u64,
    /// (waited, held) in nanoseconds, the last [`KEPT`].
    last: VecDeque<(u64, u64)>,
}

impl Flips {
    fn note(&self, waited: Duration, held: Duration) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut account = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        account.count += 1;
        if account.last.len() == KEPT {
            account.last.pop_front();
        }
        account.last.push_back((nanos(waited), nanos(held)));
    }

    pub(super) fn figures(&self) -> FlipFigures {
        let account = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sorted = |pick: fn(&(u64, u64)) -> u64| {
            let mut all: Vec<u64> = account.last.iter().map(pick).collect();
            all.sort_unstable();
            all
        };
        let (waited, held) = (sorted(|time| time.0), sorted(|time| time.1));
        FlipFigures {
            count: account.count,
            held_p50_ns: at(&held, 50),
            held_p99_ns: at(&held, 99),
            held_max_ns: held.last().copied().unwrap_or(0),
            waited_p99_ns: at(&waited, 99),
        }
    }
}

/// A percentile of sorted figures; 0 of none.
fn at(sorted: &[u64], percent: usize) -> u64 {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(0)
}

impl Runners {
    /// What swaps have put in place of configured files, by runner. To be set before the runners
    /// are configured.
    pub fn set_pins(&self, pins: BTreeMap<String, Pin>) {
        self.pins.write().unwrap_or_else(PoisonError::into_inner).serves = pins;
    }

    /// Versions that were refused or taken back: they do not serve again by themselves, not even when
    /// the configuration names them. To be set before the runners are configured.
    pub fn set_barred(&self, barred: BTreeMap<String, BTreeSet<String>>) {
        self.pins.write().unwrap_or_else(PoisonError::into_inner).barred = barred;
    }

    /// Whether a version is one of those.
    #[must_use]
    pub fn is_barred(&self, name: &str, sha256: &str) -> bool {
        self.pins.read().unwrap_or_else(PoisonError::into_inner).bars(name, sha256)
    }

    /// A version must not serve by itself from now on; what serves now stays in its place.
    pub fn bar(&self, name: &str, sha256: &str) {
        let serves = self.current(name).ok().map(|current| current.identity().generation.clone());
        let mut pins = self.pins.write().unwrap_or_else(PoisonError::into_inner);
        pins.barred.entry(name.to_owned()).or_default().insert(sha256.to_owned());
        if let Some(serves) = serves.filter(|serves| serves != sha256) {
            let pin = || Pin { configured: Some(serves.clone()), sha256: serves };
            pins.serves.entry(name.to_owned()).or_insert_with(pin);
        }
    }

    /// Looks at the files behind a slot. Reads them.
    ///
    /// # Errors
    /// There is no such runner, it is a builtin, or nothing serves it.
    pub fn look(&self, name: &str) -> Result<Noticed, LoadError> {
        let config = self.config(name)?.ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
        let serves = self.current(name)?;
        let sha256 = &serves.identity().generation;
        let kept = || self.launcher.open(sha256);
        let (plugin, found) = match self.launcher.find(&config.plugin) {
            Ok(plugin) if plugin.sha256 == *sha256 => (Ok(plugin), Noticed::Nothing),
            Ok(plugin) => {
                let (file, now) = (plugin.origin.unwrap_or_default(), plugin.sha256);
                let pins = self.pins.read().unwrap_or_else(PoisonError::into_inner);
                let found = if pins.bars(name, &now) {
                    Noticed::Barred { file, sha256: now }
                } else if pins.pin(name, Some(&now)).is_none() {
                    Noticed::Changed { file, sha256: now }
                } else {
                    Noticed::Nothing
                };
                drop(pins);
                (kept(), found)
            }
            Err(error) => (kept(), Noticed::Unusable(error)),
        };
        // Whatever became of the configured file: what serves must be trusted to.
        Ok(match plugin.and_then(|plugin| self.launcher.isolation_for(&config, &plugin)) {
            Ok(isolation) if isolation == serves.isolation() => found,
            Ok(isolation) => Noticed::Elsewhere(isolation),
            Err(error) => Noticed::Forbidden(error),
        })
    }

    /// Loads a slot afresh, from the file that it is served from. Cycles under way finish where they
    /// are.
    ///
    /// # Errors
    /// Why it cannot be had; the slot is empty then.
    pub fn load_again(&self, name: &str) -> Result<Arc<Generation>, LoadError> {
        let (config, pool) = {
            let slots = self.read();
            let slot = slots.get(name).ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
            (slot.config.clone(), Arc::clone(&slot.pool))
        };
        let config = config.ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
        let current = self.load_current(&config, &pool, None);
        if let Some(slot) = self.write().get_mut(name)
            && slot.config.as_ref() == Some(&config)
        {
            slot.current = current.clone();
        }
        current
    }

    /// The entry of a slot; none for a builtin.
    ///
    /// # Errors
    /// There is no such runner.
    pub fn config(&self, name: &str) -> Result<Option<RunnerConfig>, LoadError> {
        let slots = self.read();
        let slot = slots.get(name).ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
        Ok(slot.config.clone())
    }

    /// The isolation in which a runner of this entry is started on that file.
    ///
    /// # Errors
    /// `untrusted`, `isolation_unavailable`.
    pub fn isolation_for(&self, config: &RunnerConfig, plugin: &PluginFile) -> Result<Isolation, LoadError> {
        self.launcher.isolation_for(config, plugin)
    }

    /// The files behind a slot's entry. Reads the configured one.
    #[must_use]
    pub fn sources(&self, config: &RunnerConfig) -> Sources {
        let (configured, file, error) = match self.launcher.find(&config.plugin) {
            Ok(plugin) => (Some(plugin.sha256), plugin.origin, None),
            Err(error) => (None, None, Some(error)),
        };
        let pins = self.pins.read().unwrap_or_else(PoisonError::into_inner);
        let pin = pins.pin(&config.name, configured.as_deref()).cloned();
        Sources { configured, file, error, pin }
    }

    /// The file that a slot of this entry is served from: the configured one, or what was swapped
    /// in since.
    pub(super) fn file_of(&self, config: &RunnerConfig) -> Result<PluginFile, LoadError> {
        let configured = self.launcher.find(&config.plugin);
        let pin = {
            let pins = self.pins.read().unwrap_or_else(PoisonError::into_inner);
            let sha256 = configured.as_ref().ok().map(|plugin| plugin.sha256.as_str());
            if let Some(sha256) = sha256.filter(|sha256| pins.bars(&config.name, sha256)) {
                tracing::warn!(runner = %config.name, plugin = %config.plugin, generation = sha256,
                    "runner_file_barred");
            }
            pins.pin(&config.name, sha256).cloned()
        };
        let chosen = Chosen::by(configured, pin, |sha256| self.launcher.open(sha256));
        if let Some(Instead::SwappedIn(error)) = chosen.in_place_of {
            tracing::error!(runner = %config.name, %error, "runner_pin_lost");
        }
        chosen.plugin
    }

    /// Keeps a candidate's file.
    ///
    /// # Errors
    /// `io`.
    pub fn keep(&self, plugin: &PluginFile) -> Result<(), LoadError> {
        self.launcher.keep(plugin)
    }

    /// A kept file.
    ///
    /// # Errors
    /// `generation_gone`.
    pub fn kept(&self, sha256: &str) -> Result<PluginFile, LoadError> {
        self.launcher.open(sha256)
    }

    /// Removes kept files that nobody needs: how many.
    ///
    /// # Errors
    /// `io`.
    pub fn prune_kept(
        &self,
        used_before: SystemTime,
        needed: impl Fn(&str) -> bool,
    ) -> Result<usize, LoadError> {
        self.launcher.store().prune(used_before, needed)
    }

    /// An instance of a candidate for a trial, apart from everything that serves. It works, as far
    /// as it says itself.
    ///
    /// # Errors
    /// Why it cannot be had; `probe_failed`.
    pub fn on_trial(
        &self,
        config: &RunnerConfig,
        plugin: &PluginFile,
        pace: Pace,
    ) -> Result<Arc<dyn RunnerBackend>, LoadError> {
        match self.launcher.tried(config, plugin, pace) {
            // Without workers an instance of its own is as far apart as it gets.
            Err(LoadError::IsolationUnavailable(_)) => {
                let instance = self.launcher.launch(config, plugin, Pace::Usual)?;
                instance.probe().map_err(|error| LoadError::ProbeFailed(error.to_string()))?;
                Ok(instance)
            }
            other => other,
        }
    }

    /// A generation of that file for a slot, beside the one that serves. May take the time of a load.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn prepare(&self, name: &str, plugin: &PluginFile) -> Result<Arc<Generation>, LoadError> {
        let (config, pool) = {
            let slots = self.read();
            let slot = slots.get(name).ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
            (slot.config.clone(), Arc::clone(&slot.pool))
        };
        let config = config.ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
        Ok(Arc::new(self.load_file(&config, &pool, plugin, Pace::Background)?))
    }

    /// Bytes that versions which serve no more hold in this process for good.
    #[must_use]
    pub fn leaked_by_replaced(&self) -> u64 {
        let mapped = library::mapped();
        let serving = |path: &std::path::Path| {
            let name = path.file_stem().and_then(|name| name.to_str());
            self.read()
                .values()
                .filter_map(|slot| slot.current.as_ref().ok())
                .any(|current| name == Some(current.identity().generation.as_str()))
        };
        mapped.iter().filter(|(path, _)| !serving(path)).map(|(_, size)| size + IMAGE_OVERHEAD).sum()
    }

    /// The same with one more image of that size, which the one that serves now becomes in a swap.
    #[must_use]
    pub fn leaked_with(&self, size: u64) -> u64 {
        self.leaked_by_replaced() + size + IMAGE_OVERHEAD
    }

    /// Whether new cycles of a slot wait for a moment, and why. See [`super::RunnerStatus::held`].
    pub fn hold(&self, name: &str, held: Option<String>) {
        if let Some(slot) = self.write().get_mut(name) {
            slot.held = held;
        }
    }

    /// Why nothing may begin on a slot now, though it is served.
    #[must_use]
    pub fn held(&self, name: &str) -> Option<String> {
        self.read().get(name).and_then(|slot| slot.held.clone())
    }

    /// The flip: from now on new cycles of the slot begin on `next`, if they began on that very `from`
    /// until now. Gives the former generation, which stays at hand for the cycles it began until
    /// [`Runners::unpin`].
    ///
    /// # Errors
    /// Something else serves the slot by now, be it the same file configured or trusted otherwise.
    pub fn flip(
        &self,
        name: &str,
        from: &Arc<Generation>,
        next: Arc<Generation>,
        pin: Option<Pin>,
        clock: &dyn Clock,
    ) -> Result<Arc<Generation>, LoadError> {
        let asked = clock.monotonic();
        let sha256 = next.identity().generation.clone();
        let mut slots = self.write();
        let entered = clock.monotonic();
        let slot = slots.get_mut(name).ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
        let former = match &slot.current {
            Ok(current) if Arc::ptr_eq(current, from) => Arc::clone(current),
            _ => return Err(LoadError::GenerationGone(from.identity().generation.clone())),
        };
        slot.current = Ok(next);
        let again = slot.pinned.remove(&sha256);
        slot.pinned.insert(from.identity().generation.clone(), Arc::clone(&former));
        drop(slots);
        let left = clock.monotonic();
        self.flips.note(entered.saturating_sub(asked), left.saturating_sub(entered));
        // Foreign code may run when it goes; not under the lock.
        drop(again);
        self.serves_by(name, &sha256, pin);
        Ok(former)
    }

    /// Puts a generation in a slot that nothing serves; or the reason why nothing does, in the place of
    /// `from`.
    ///
    /// # Errors
    /// Something else is in the slot by now.
    pub fn fill(
        &self,
        name: &str,
        from: Option<&Arc<Generation>>,
        next: Result<Arc<Generation>, LoadError>,
        pin: Pin,
    ) -> Result<(), LoadError> {
        let mut slots = self.write();
        let slot = slots.get_mut(name).ok_or_else(|| LoadError::UnknownRunner(name.to_owned()))?;
        match (&slot.current, from) {
            (Err(_), None) => {}
            (Ok(current), Some(from)) if Arc::ptr_eq(current, from) => {}
            _ => return Err(LoadError::GenerationGone(pin.sha256)),
        }
        let former = std::mem::replace(&mut slot.current, next);
        drop(slots);
        drop(former);
        let sha256 = pin.sha256.clone();
        self.serves_by(name, &sha256, Some(pin));
        Ok(())
    }

    /// Remembers why this version serves: by a pin, or since the configuration names it.
    fn serves_by(&self, name: &str, sha256: &str, pin: Option<Pin>) {
        let mut pins = self.pins.write().unwrap_or_else(PoisonError::into_inner);
        match pin {
            Some(pin) => pins.serves.insert(name.to_owned(), pin),
            None => pins.serves.remove(name),
        };
        // Somebody wants it after all.
        if let Some(barred) = pins.barred.get_mut(name) {
            barred.remove(sha256);
        }
    }
}

/// What serves slots in place of their configured files.
#[derive(Default)]
pub(super) struct Pins {
    serves: BTreeMap<String, Pin>,
    /// sha256 of versions that do not serve by themselves, by runner.
    barred: BTreeMap<String, BTreeSet<String>>,
}

impl Pins {
    pub(super) fn new(serves: BTreeMap<String, Pin>, barred: BTreeMap<String, BTreeSet<String>>) -> Self {
        Self { serves, barred }
    }

    fn bars(&self, name: &str, sha256: &str) -> bool {
        self.barred.get(name).is_some_and(|barred| barred.contains(sha256))
    }

    /// What a swap has put there, where that is something else than the configured file.
    pub(super) fn swapped_in(&self, name: &str) -> Option<&str> {
        let pin = self.serves.get(name)?;
        (pin.configured.as_ref() != Some(&pin.sha256)).then_some(&pin.sha256)
    }

    /// The pin that counts when the configuration names that file.
    pub(super) fn pin(&self, name: &str, configured: Option<&str>) -> Option<&Pin> {
        let barred = configured.is_some_and(|sha256| self.bars(name, sha256));
        self.serves.get(name).filter(|pin| barred || counts(pin, configured))
    }
}

/// A pin counts for as long as the configuration names what it named then, or nothing at all.
fn counts(pin: &Pin, configured: Option<&str>) -> bool {
    match (configured, &pin.configured) {
        (None, _) => true,
        (Some(now), Some(then)) => now == then,
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{Builtin, Launcher, PluginStore, SearchPath};
    use crate::sys::clock::ManualClock;
    use kairos_plugin_api::Report;
    use std::path::Path;

    fn generation(name: &str) -> Arc<Generation> {
        let backend = Builtin::from_fn(name, |_, _| Ok(Report::ok()));
        Arc::new(Generation::of(name, Arc::new(backend)))
    }

    fn sha(generation: &Generation) -> &str {
        &generation.identity().generation
    }

    fn runners() -> Runners {
        let search = SearchPath::new(Path::new("/nowhere"), None, None);
        let runners = Runners::new(Launcher::in_process(search, PluginStore::new("/nowhere/store")));
        runners.insert("r", Arc::new(Builtin::from_fn("one", |_, _| Ok(Report::ok()))));
        runners
    }

    #[test]
    fn a_flip_serves_the_next_and_keeps_the_former_for_the_cycles_it_began() {
        let clock = ManualClock::at("2026-11-22T09:00:00Z".parse().unwrap());
        let runners = runners();
        let one = runners.current("r").unwrap();
        let two = generation("two");
        let former = runners.flip("r", &one, Arc::clone(&two), None, &clock).unwrap();
        assert!(Arc::ptr_eq(&former, &one));
        assert_eq!(sha(&runners.current("r").unwrap()), sha(&two));
        assert!(Arc::ptr_eq(&runners.pinned("r", sha(&one)).unwrap(), &one), "the same instance");
        assert_eq!(runners.flips().count, 1);
        // And back again.
        runners.flip("r", &two, Arc::clone(&one), None, &clock).unwrap();
        assert!(Arc::ptr_eq(&runners.current("r").unwrap(), &one));
        runners.unpin("r", sha(&two));
        assert!(runners.pinned("r", sha(&two)).is_err(), "a builtin has no file to come back from");
    }

    #[test]
    fn a_flip_from_what_serves_no_more_changes_nothing() {
        let clock = ManualClock::at("2026-11-22T09:00:00Z".parse().unwrap());
        let runners = runners();
        let one = runners.current("r").unwrap();
        let error = runners.flip("r", &generation("one"), generation("two"), None, &clock).unwrap_err();
        assert_eq!(error.code(), "generation_gone");
        assert!(Arc::ptr_eq(&runners.current("r").unwrap(), &one));
        assert_eq!(runners.flips().count, 0);
    }

    #[test]
    fn a_pin_ends_when_the_configured_file_is_another() {
        let pin = |configured: Option<&str>| Pin {
            sha256: "new".into(),
            configured: configured.map(ToOwned::to_owned),
        };
        for (pin, configured, holds) in [
            (pin(Some("a")), Some("a"), true),
            (pin(Some("a")), Some("b"), false),
            (pin(Some("a")), None, true),
            (pin(None), Some("b"), false),
            (pin(None), None, true),
        ] {
            assert_eq!(counts(&pin, configured), holds, "{pin:?} {configured:?}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_figures() {
        let figures: Vec<u64> = (1..=100).collect();
        assert_eq!((at(&figures, 50), at(&figures, 99), at(&figures, 100)), (50, 99, 100));
        assert_eq!(at(&[], 99), 0);
    }
}
