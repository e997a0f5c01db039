//! What a reload finds beyond the configuration's own text: plugin files that were replaced where
//! they lie, and a trust list that says something else by now.

use std::collections::BTreeSet;
use std::path::Path;

use crate::daemon::mailbox::RunnerNews;
use crate::daemon::swap::{SwapRequest, Swaps};
use crate::runner::trust::list::TrustList;
use crate::runner::{Noticed, Runners};

/// Who was trusted when somebody looked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trusted {
    files: BTreeSet<String>,
    keys: BTreeSet<String>,
}

impl Trusted {
    /// As the list says now. One that cannot be read trusts nothing.
    pub(super) fn read(list: &Path) -> Self {
        let list = TrustList::read(list).unwrap_or_default();
        Self {
            files: list.plugins.into_iter().map(|plugin| plugin.sha256).collect(),
            keys: list.keys.into_iter().map(|key| key.key).collect(),
        }
    }

    /// What is otherwise since `before`, for people.
    pub(super) fn since(&self, before: &Self) -> Option<String> {
        let count = |now: &BTreeSet<String>, then: &BTreeSet<String>| now.difference(then).count();
        let parts = [
            (count(&self.files, &before.files), "plugin", "added"),
            (count(&before.files, &self.files), "plugin", "removed"),
            (count(&self.keys, &before.keys), "key", "added"),
            (count(&before.keys, &self.keys), "key", "removed"),
        ];
        let said: Vec<String> = parts
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, what, how)| format!("{count} {what}{} {how}", if count == 1 { "" } else { "s" }))
            .collect();
        (!said.is_empty()).then(|| format!("trust: {}; it counts from now on", said.join(", ")))
    }
}

/// The runners that something serves.
pub(super) fn served(runners: &Runners) -> BTreeSet<String> {
    runners.status().into_iter().filter(|slot| slot.identity.is_some()).map(|slot| slot.name).collect()
}

/// Of these, the ones that are still configured and that nothing serves any more. Says so in the log.
pub(super) fn out_of_service(runners: &Runners, served: &BTreeSet<String>) -> Vec<RunnerNews> {
    let lost = runners.status().into_iter().filter(|slot| served.contains(&slot.name));
    let news = lost.filter_map(|slot| Some((slot.name, slot.error?))).map(|(runner, error)| {
        let (message, remedy) = (error.message, error.remedy);
        tracing::error!(runner, code = error.code, why = message, remedy, "runner_out_of_service");
        RunnerNews { runner, serves: false, code: error.code.to_owned(), message, remedy }
    });
    news.collect()
}

/// Looks at the files of every runner that serves, and does what follows: a replaced file goes
/// through a swap with all of its checks, what is trusted otherwise by now moves to where it belongs.
/// Says each thing in a line. Blocks for files and for loading.
pub(super) fn look(runners: &Runners, swaps: &Swaps) -> Vec<String> {
    let names = runners.status().into_iter().filter(|slot| slot.identity.is_some()).map(|slot| slot.name);
    let said: Vec<String> = names.filter_map(|name| one(runners, swaps, &name)).collect();
    said.iter().for_each(|line| tracing::info!(line, "daemon_reload_noticed"));
    said
}

fn one(runners: &Runners, swaps: &Swaps, name: &str) -> Option<String> {
    let short = |sha256: &str| sha256.chars().take(12).collect::<String>();
    // A builtin, or one that has no file to look at any more: nothing to say.
    Some(match runners.look(name).ok()? {
        Noticed::Nothing => return None,
        Noticed::Changed { file, sha256 } => {
            let what = format!("runner {name}: {} is another file now ({})", file.display(), short(&sha256));
            // Whoever names a file in daemon.yml says which plugin it is to be.
            let (runner, other_plugin) = (name.to_owned(), true);
            match swaps.start(SwapRequest { runner, file, cold: false, other_plugin }) {
                Ok(view) => format!("{what}; swap {} has begun, see `kairos plugin list`", view.id),
                Err(refusal) => format!("{what}, and is not swapped in now: {refusal}"),
            }
        }
        Noticed::Barred { file, sha256 } => format!(
            "runner {name}: {} is a version that was refused or taken back ({}), so it does not serve by \
             itself; `kairos plugin swap {name} {}` tries it again",
            file.display(),
            short(&sha256),
            file.display()
        ),
        Noticed::Unusable(error) => {
            format!("runner {name}: the configured plugin cannot be used: {error}; what serves goes on")
        }
        Noticed::Elsewhere(isolation) => match runners.load_again(name) {
            Ok(_) => {
                format!("runner {name}: by the trust that it has now it runs with isolation {isolation}")
            }
            Err(error) => format!("runner {name}: not available any more: {error}"),
        },
        Noticed::Forbidden(_) => match runners.load_again(name) {
            Ok(_) => return None,
            Err(error) => format!("runner {name}: not available any more: {error}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_in_the_trust_list_is_counted() {
        let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let before = Trusted { files: set(&["a", "b"]), keys: set(&[]) };
        let now = Trusted { files: set(&["b", "c", "d"]), keys: set(&["k"]) };
        assert_eq!(now.since(&now), None);
        let said = now.since(&before);
        let expected = "trust: 2 plugins added, 1 plugin removed, 1 key added; it counts from now on";
        assert_eq!(said.as_deref(), Some(expected));
    }
}
