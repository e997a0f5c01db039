//! Which file a slot is served from: the configured one, or what was swapped in since. The same for the
//! daemon and for who only looks at what a start would serve.

use std::collections::{BTreeMap, BTreeSet};

use super::launch::{Launcher, RunnerConfig};
use super::load_error::LoadError;
use super::manifest::PluginFile;
use super::plugin_store::PluginStore;
use super::swap::{Pin, Pins};

/// The file of a slot.
#[derive(Debug)]
pub struct Chosen {
    /// What is to serve it, or why nothing can.
    pub plugin: Result<PluginFile, LoadError>,
    /// What is wrong with the file that should serve it by rights, when another one does.
    pub in_place_of: Option<Instead>,
}

/// A file whose place another one takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instead {
    /// There is nothing usable where the configuration says; what was swapped in serves.
    Configured(LoadError),
    /// What was swapped in is gone; the configured file serves.
    SwappedIn(LoadError),
}

impl Chosen {
    /// By the pin that counts, which may name the configured file itself: where that lies, more may
    /// speak for it than was kept with the copy. A pinned file that is gone is no reason to serve
    /// nothing.
    pub(super) fn by(
        configured: Result<PluginFile, LoadError>,
        pin: Option<Pin>,
        open: impl FnOnce(&str) -> Result<PluginFile, LoadError>,
    ) -> Self {
        let same = |pin: &Pin| configured.as_ref().is_ok_and(|plugin| plugin.sha256 == pin.sha256);
        let Some(pin) = pin.filter(|pin| !same(pin)) else {
            return Self { plugin: configured, in_place_of: None };
        };
        match (open(&pin.sha256), configured) {
            (Ok(pinned), configured) => {
                Self { plugin: Ok(pinned), in_place_of: configured.err().map(Instead::Configured) }
            }
            (Err(error), Err(_)) => Self { plugin: Err(error), in_place_of: None },
            (Err(error), Ok(configured)) => {
                Self { plugin: Ok(configured), in_place_of: Some(Instead::SwappedIn(error)) }
            }
        }
    }
}

/// What the last daemon has left of swaps: for a look at what the next start serves.
pub struct Served {
    pins: Pins,
    kept: PluginStore,
}

impl Served {
    /// By these pins and these versions that must not serve by themselves; kept files lie in `kept`.
    #[must_use]
    pub fn new(
        serves: BTreeMap<String, Pin>,
        barred: BTreeMap<String, BTreeSet<String>>,
        kept: PluginStore,
    ) -> Self {
        Self { pins: Pins::new(serves, barred), kept }
    }

    /// Where kept files are.
    #[must_use]
    pub fn kept(&self) -> &PluginStore {
        &self.kept
    }

    /// The file that a start would serve a slot of this entry from.
    #[must_use]
    pub fn file_of(&self, launcher: &Launcher, config: &RunnerConfig) -> Chosen {
        let configured = launcher.find(&config.plugin);
        let sha256 = configured.as_ref().ok().map(|plugin| plugin.sha256.as_str());
        let pin = self.pins.pin(&config.name, sha256).cloned();
        Chosen::by(configured, pin, |sha256| self.kept.open(sha256))
    }
}
