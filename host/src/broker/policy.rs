//! What a cycle may do with which tool. Pure: names in, a verdict out.
//!
//! The minimal policy: the phase `observe` only looks; nothing writes to the daemon's own
//! directory or to git's; only its shared parts can be read; a mandate narrows further and
//! never widens. Looking while observing is bounded by `observe_policies`, everything else by
//! `allowed_actions`.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use kairos_plugin_api::Mandate;

use super::tools::{Access, Touch};

/// The phase that only looks.
pub const OBSERVE: &str = "observe";
/// The daemon's own directory below the workspace: configuration, keys, state.
const OWN: &str = ".kairos";
/// The parts of it that are made to be read by agents.
pub const SHARED: [&str; 4] = ["context", "knowledge", "memory", "skills"];
/// Where a write is code that git runs later.
const GIT: &str = ".git";

/// Why a call is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Observing only looks.
    #[error("{tool} changes things, and the phase observe only looks")]
    ObserveLooks {
        /// The tool.
        tool: String,
    },
    /// The mandate's own list does not hold the tool.
    #[error("{tool} is not among the mandate's {list}")]
    NotListed {
        /// The tool.
        tool: String,
        /// Which list.
        list: &'static str,
    },
    /// The place is protected.
    #[error("{place} is protected")]
    Protected {
        /// The part of the path that is.
        place: String,
    },
}

/// The policy in force.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    kept: Arc<[PathBuf]>,
}

impl Policy {
    /// One by which nothing writes to these places either; relative to the workspace, without links.
    #[must_use]
    pub fn keeping(kept: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { kept: kept.into_iter().collect() }
    }

    /// Whether a call may run.
    ///
    /// # Errors
    /// Why not.
    pub fn allow(
        &self,
        tool: &str,
        touch: &Touch,
        phase: Option<&str>,
        mandate: &Mandate,
    ) -> Result<(), Denied> {
        let observing = phase == Some(OBSERVE);
        if observing && touch.access == Access::Write {
            return Err(Denied::ObserveLooks { tool: tool.to_owned() });
        }
        let (list, words) = if observing {
            ("observe_policies", &mandate.observe_policies)
        } else {
            ("allowed_actions", &mandate.allowed_actions)
        };
        if let Some(words) = words
            && !words.iter().any(|word| covers(word, tool, touch.access))
        {
            return Err(Denied::NotListed { tool: tool.to_owned(), list });
        }
        let Some(path) = touch.path.as_deref() else { return Ok(()) };
        let kept = self.kept.iter().find(|kept| path.starts_with(kept));
        match kept.filter(|_| touch.access == Access::Write) {
            Some(kept) => Err(Denied::Protected { place: kept.display().to_string() }),
            None => place(path, touch.access),
        }
    }
}

/// A word of a mandate's list: a tool's name, a start of one (`fs.*`), or a word of the
/// reference: `code_edit` reads and edits, `read_only` looks, `noop` does nothing.
fn covers(word: &str, tool: &str, access: Access) -> bool {
    match word {
        "code_edit" => matches!(tool, "fs.edit" | "fs.read"),
        "read_only" => access == Access::Read,
        "*" => true,
        _ => match word.strip_suffix(".*") {
            Some(start) => tool.strip_prefix(start).is_some_and(|rest| rest.starts_with('.')),
            None => word == tool,
        },
    }
}

fn place(path: &Path, access: Access) -> Result<(), Denied> {
    let parts: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    // At every depth: a workspace inside the workspace has secrets of its own.
    for (at, part) in parts.iter().enumerate() {
        if *part == OWN {
            let shared = parts.get(at + 1).is_some_and(|next| SHARED.iter().any(|shared| next == shared));
            if access == Access::Write || !shared {
                return Err(Denied::Protected { place: OWN.to_owned() });
            }
        }
        if *part == GIT && access == Access::Write {
            return Err(Denied::Protected { place: GIT.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(tool: &str, path: &str, phase: Option<&str>, bounds: Value) -> bool {
        let mut mandate = json!({"schema": 1, "id": "m"});
        mandate.as_object_mut().unwrap().extend(bounds.as_object().unwrap().clone());
        let mandate: Mandate = serde_json::from_value(mandate).unwrap();
        let access = if tool == "fs.edit" { Access::Write } else { Access::Read };
        let touch = Touch { access, path: Some(path.into()) };
        Policy::keeping(["logs/wal".into()]).allow(tool, &touch, phase, &mandate).is_ok()
    }

    #[test]
    fn observing_looks_and_acting_edits() {
        assert!(check("fs.read", "a", Some("observe"), json!({})));
        assert!(!check("fs.edit", "a", Some("observe"), json!({})));
        assert!(check("fs.edit", "a", Some("act"), json!({})));
        assert!(check("fs.edit", "a", None, json!({})));
    }

    #[test]
    fn mandates_narrow() {
        let cases = [
            (json!({"allowed_actions": ["fs.read"]}), "fs.edit", "act", false),
            (json!({"allowed_actions": ["fs.edit"]}), "fs.edit", "act", true),
            (json!({"allowed_actions": ["fs.edit"]}), "fs.read", "act", false),
            (json!({"allowed_actions": ["code_edit"]}), "fs.edit", "act", true),
            (json!({"allowed_actions": ["code_edit"]}), "fs.read", "act", true),
            (json!({"allowed_actions": ["read_only"]}), "fs.read", "act", true),
            (json!({"allowed_actions": ["read_only"]}), "fs.edit", "act", false),
            (json!({"allowed_actions": ["fs.*"]}), "fs.edit", "act", true),
            (json!({"allowed_actions": ["f.*", "fs", "fs.edi", "noop"]}), "fs.edit", "act", false),
            (json!({"allowed_actions": []}), "fs.read", "act", false),
            (json!({"allowed_actions": []}), "fs.read", "observe", true),
            (json!({"observe_policies": []}), "fs.read", "observe", false),
            (json!({"observe_policies": ["fs.read"]}), "fs.read", "observe", true),
            (json!({"observe_policies": ["*"]}), "fs.edit", "observe", false),
            (json!({"observe_policies": []}), "fs.edit", "act", true),
        ];
        for (bounds, tool, phase, allowed) in cases {
            assert_eq!(check(tool, "a", Some(phase), bounds.clone()), allowed, "{tool} {phase} {bounds}");
        }
    }

    #[test]
    fn protected_places_stay_protected_whatever_a_mandate_says() {
        let wide = json!({"allowed_actions": ["*"], "observe_policies": ["*"]});
        let cases = [
            (".kairos/config/daemon.yml", false, false),
            (".kairos/run/token", false, false),
            (".kairos/state/store.db", false, false),
            (".kairos", false, false),
            ("sub/.kairos/config/x", false, false),
            (".kairos/memory/notes.md", true, false),
            (".git/hooks/pre-commit", true, false),
            ("sub/.git/config", true, false),
            (".gitignore", true, true),
            ("kairos/config", true, true),
            ("logs/wal", true, false),
            ("logs/wal/m1.wal.jsonl", true, false),
            ("logs/other", true, true),
        ];
        for (path, read, write) in cases {
            for phase in [None, Some("act"), Some("observe")] {
                assert_eq!(check("fs.read", path, phase, wide.clone()), read, "{path}");
            }
            assert_eq!(check("fs.edit", path, Some("act"), wide.clone()), write, "{path}");
        }
    }
}
