//! How far a confinement got: which layers are in force, and the one word that sums them up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What all layers together amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The process is not confined enough to speak of a sandbox.
    None,
    /// Files, system calls and privileges are confined; something else is not.
    Partial,
    /// Every layer that was asked for is in force.
    Full,
}

impl Level {
    /// The word of status and events.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Partial => "partial",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Names of the layers; they are read by people and scripts.
pub mod layer {
    /// No program started from here gains privileges.
    pub const NO_NEW_PRIVS: &str = "no_new_privs";
    /// Memory, open files, core dumps and the like are limited.
    pub const LIMITS: &str = "limits";
    /// A user namespace of its own.
    pub const USER_NAMESPACE: &str = "user_namespace";
    /// A network namespace of its own, without an interface that is up.
    pub const NETWORK_NAMESPACE: &str = "network_namespace";
    /// No capability is left, also for root.
    pub const CAPABILITIES: &str = "capabilities";
    /// Landlock: only granted files can be opened.
    pub const FILES: &str = "files";
    /// Landlock also binds truncation, moves between directories and device controls.
    pub const FILE_CHANGES: &str = "file_changes";
    /// Modes, owners, times and attributes are changed only of what may be changed. For tools.
    pub const METADATA: &str = "metadata";
    /// Landlock: no TCP.
    pub const TCP: &str = "tcp";
    /// Landlock: no signal and no abstract socket leads out.
    pub const SCOPES: &str = "scopes";
    /// Memory that was written cannot become code.
    pub const EXEC_GAIN: &str = "exec_gain";
    /// The filter of system calls.
    pub const SYSTEM_CALLS: &str = "system_calls";
    /// Nobody of the same user reads the process's memory or attaches to it.
    pub const NOT_DUMPABLE: &str = "not_dumpable";
}

/// Without these there is no sandbox at all.
const NEEDED: [&str; 3] = [layer::NO_NEW_PRIVS, layer::FILES, layer::SYSTEM_CALLS];

/// One layer and whether it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// One of [`layer`].
    pub name: String,
    /// Whether it holds.
    pub in_force: bool,
    /// Why it does not; empty when it does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What a confinement reached. Only layers that were asked for are listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The sum.
    pub level: Level,
    /// Its parts, in the order in which they were tried.
    pub layers: Vec<Layer>,
}

impl Reached {
    /// Sums layers up.
    #[must_use]
    pub fn of(layers: Vec<Layer>) -> Self {
        let holds = |name: &str| layers.iter().any(|layer| layer.in_force && layer.name == name);
        let level = if !NEEDED.iter().all(|name| holds(name)) {
            Level::None
        } else if layers.iter().all(|layer| layer.in_force) {
            Level::Full
        } else {
            Level::Partial
        };
        Self { level, layers }
    }

    /// The layers that do not hold.
    pub fn missing(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|layer| !layer.in_force)
    }

    /// True when that layer holds.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        self.layers.iter().any(|layer| layer.in_force && layer.name == name)
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level)?;
        let mut before = ": without ";
        for layer in self.missing() {
            write!(f, "{before}{} ({})", layer.name, layer.reason)?;
            before = ", ";
        }
        Ok(())
    }
}

/// Collects layers while they are tried.
#[derive(Default)]
pub(super) struct Tried(Vec<Layer>);

impl Tried {
    pub(super) fn put(&mut self, name: &str, outcome: Result<(), String>) -> bool {
        let in_force = outcome.is_ok();
        self.0.push(Layer { name: name.to_owned(), in_force, reason: outcome.err().unwrap_or_default() });
        in_force
    }

    pub(super) fn reached(self) -> Reached {
        Reached::of(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(missing: &[&str]) -> Reached {
        let mut tried = Tried::default();
        for name in [layer::NO_NEW_PRIVS, layer::LIMITS, layer::FILES, layer::SCOPES, layer::SYSTEM_CALLS] {
            tried.put(name, if missing.contains(&name) { Err("too old".to_owned()) } else { Ok(()) });
        }
        tried.reached()
    }

    #[test]
    fn the_level_is_full_only_when_nothing_is_missing_and_none_without_the_needed_layers() {
        assert_eq!(of(&[]).level, Level::Full);
        assert_eq!(of(&[layer::SCOPES]).level, Level::Partial);
        for needed in NEEDED {
            assert_eq!(of(&[needed]).level, Level::None, "without {needed}");
        }
        assert_eq!(Reached::of(vec![]).level, Level::None);
        assert!(Level::None < Level::Partial && Level::Partial < Level::Full);
    }

    #[test]
    fn what_is_missing_is_told_with_its_reason() {
        assert_eq!(of(&[layer::SCOPES]).to_string(), "partial: without scopes (too old)");
        assert_eq!(of(&[]).to_string(), "full");
        let text = serde_json::to_string(&of(&[layer::LIMITS])).unwrap();
        assert_eq!(serde_json::from_str::<Reached>(&text).unwrap(), of(&[layer::LIMITS]), "{text}");
    }
}
