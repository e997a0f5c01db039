//! What becomes of a plugin file that has appeared where a directory is watched: it is swapped in for
//! every runner whose plugin has its name. A bad file is told once, and nothing is tried again by
//! itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::daemon::swap::Swaps;
use crate::runner::manifest::fingerprint;
use crate::runner::{LoadError, PluginFile, RunnerStatus};

/// A bad file that was written to within this time may be one that somebody still writes to: a look
/// cannot tell, as an event can.
const SETTLED: Duration = Duration::from_secs(2);

/// A file as it was when it was read.
#[derive(Debug)]
struct Offer {
    file: PathBuf,
    /// From its manifest.
    name: String,
    sha256: String,
    modified: SystemTime,
}

impl Offer {
    async fn read(path: &Path) -> Option<Result<Self, LoadError>> {
        let file = path.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let modified = file.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let plugin = PluginFile::open(&file)?;
            let (name, sha256) = (plugin.manifest.name, plugin.sha256);
            Ok(Self { file, name, sha256, modified })
        });
        match read.await {
            Ok(read) => Some(read),
            Err(panic) => {
                tracing::error!(path = %path.display(), %panic, "watched_file_not_read");
                None
            }
        }
    }

    /// Whether it is still what a runner wants that is served under that name by now. A file that was
    /// replaced while it waited has a turn of its own.
    async fn still_stands(&self, swaps: &Swaps, runner: &str) -> bool {
        let file = self.file.clone();
        let now = tokio::task::spawn_blocking(move || fingerprint(&file)).await.unwrap_or_default();
        let serves = swaps.0.parts.runners.current(runner).ok();
        let wanted = serves.is_none_or(|serves| {
            serves.identity().name == self.name && serves.identity().generation != self.sha256
        });
        wanted && now.as_ref() == Some(&self.sha256)
    }
}

/// Swaps a file in that was just completed, where its name is that of a plugin that serves.
pub(super) async fn appeared(swaps: &Swaps, path: &Path) {
    match Offer::read(path).await {
        Some(Ok(offer)) => hand_out(swaps, offer, |_| true),
        Some(Err(error)) => report(swaps, path, &error),
        None => {}
    }
}

/// The same with files that a look has found, of which nobody has said in which order they came: of
/// each plugin the newest, unless it was found bad before.
pub(super) async fn found(swaps: &Swaps, paths: Vec<PathBuf>) {
    let mut offers = Vec::new();
    for path in paths {
        match Offer::read(&path).await {
            Some(Ok(offer)) => offers.push(offer),
            Some(Err(error)) if is_young(swaps, &path) => {
                waits(swaps, &path, &format!("it may not be complete yet: {error}"));
                swaps.0.runtime.spawn(settle(swaps.clone(), path));
            }
            Some(Err(error)) => report(swaps, &path, &error),
            None => {}
        }
    }
    for offer in newest(offers) {
        hand_out_unless_barred(swaps, offer);
    }
}

/// The newest of each plugin; of two of one time the last by name.
fn newest(offers: Vec<Offer>) -> Vec<Offer> {
    let mut of_name: BTreeMap<String, Offer> = BTreeMap::new();
    for offer in offers {
        let age = |offer: &Offer| (offer.modified, offer.file.clone());
        let older = match of_name.get(&offer.name) {
            Some(known) if age(known) > age(&offer) => Some(offer),
            _ => of_name.insert(offer.name.clone(), offer),
        };
        if let Some(older) = older {
            tracing::info!(path = %older.file.display(), plugin = older.name, "watched_file_older");
        }
    }
    of_name.into_values().collect()
}

fn hand_out_unless_barred(swaps: &Swaps, offer: Offer) {
    let (file, sha256) = (offer.file.clone(), offer.sha256.clone());
    hand_out(swaps, offer, |runner| {
        let barred = swaps.0.parts.runners.is_barred(runner, &sha256);
        if barred && swaps.0.table().news(format!("{}: {runner}: barred: {sha256}", file.display())) {
            let why = "this version was refused or taken back before, so it does not serve by itself";
            let remedy = format!("kairos plugin swap {runner} {} tries it again", file.display());
            tracing::warn!(runner, path = %file.display(), why, remedy, "watched_file_barred");
        }
        !barred
    });
}

/// Looks again at a bad file until nobody has written to it for a while.
async fn settle(swaps: Swaps, path: PathBuf) {
    let clock = Arc::clone(&swaps.0.parts.clock);
    loop {
        clock.sleep_until(clock.monotonic() + SETTLED).await;
        match Offer::read(&path).await {
            Some(Ok(offer)) => return hand_out_unless_barred(&swaps, offer),
            Some(Err(_)) if is_young(&swaps, &path) => {}
            Some(Err(error)) => return report(&swaps, &path, &error),
            None => return,
        }
    }
}

fn is_young(swaps: &Swaps, path: &Path) -> bool {
    let modified = path.metadata().and_then(|meta| meta.modified());
    let now = SystemTime::from(swaps.0.parts.clock.now());
    modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age < SETTLED))
}

/// Begins a swap for every runner that wants it and may have it.
fn hand_out(swaps: &Swaps, offer: Offer, may: impl Fn(&str) -> bool) {
    let runners = swaps.0.parts.runners.status();
    let of_name = |status: &&RunnerStatus| {
        status.plugin.is_some()
            && status
                .identity
                .as_ref()
                .is_some_and(|identity| identity.name == offer.name && identity.generation != offer.sha256)
    };
    let wanted: Vec<String> = runners.iter().filter(of_name).map(|status| status.name.clone()).collect();
    if wanted.is_empty() {
        let path = offer.file.display();
        let serves = runners.iter().find(|status| {
            status.identity.as_ref().is_some_and(|identity| identity.generation == offer.sha256)
        });
        match serves {
            Some(status) => tracing::info!(%path, runner = status.name, "watched_file_serves_already"),
            None => tracing::info!(%path, plugin = offer.name, "watched_file_of_nobody"),
        }
    }
    let offer = Arc::new(offer);
    for runner in wanted.into_iter().filter(|runner| may(runner)) {
        let (swaps, offer) = (swaps.clone(), Arc::clone(&offer));
        let inner = Arc::clone(&swaps.0);
        // Its turn may be a trial away; other files must not wait for it.
        inner.runtime.spawn(async move { take_turn(&swaps, runner, &offer).await });
    }
}

/// Waits until the slot is free, and begins, with the very content that was offered.
async fn take_turn(swaps: &Swaps, runner: String, offer: &Offer) {
    let file = &offer.file;
    loop {
        // Its turn may be a trial away.
        if let Some(open) = swaps.open(&runner) {
            let why =
                format!("runner {runner} is in a swap already: {} is at {}", open.id, open.stage.as_str());
            waits(swaps, file, &why);
        }
        swaps.free(&runner).await;
        if !offer.still_stands(swaps, &runner).await {
            let generation = &offer.sha256;
            return tracing::info!(runner, file = %file.display(), generation, "watched_file_superseded");
        }
        match swaps.start_exactly(&runner, file.clone(), offer.sha256.clone()) {
            Ok(view) => {
                return tracing::info!(runner, swap = view.id, file = %file.display(), "watched_file_swaps");
            }
            Err(refusal) if refusal.code == "conflict" => waits(swaps, file, &refusal.message),
            Err(refusal) => {
                let remedy = refusal.remedy.as_deref();
                return tracing::warn!(runner, %refusal, remedy, "watched_file_refused");
            }
        }
    }
}

/// Says once of a file for what it waits.
pub(super) fn waits(swaps: &Swaps, path: &Path, why: &str) {
    if swaps.0.table().news(format!("{}: {why}", path.display())) {
        tracing::info!(path = %path.display(), why, "watched_file_waits");
    }
}

fn report(swaps: &Swaps, path: &Path, error: &LoadError) {
    if let LoadError::Changed { .. } = error {
        // Whoever writes to it will have to close it.
        return waits(swaps, path, "somebody writes to it");
    }
    if path.symlink_metadata().is_err() {
        // Gone again, with its directory for example.
        return tracing::debug!(path = %path.display(), "watched_file_gone");
    }
    let seen = format!("{}: {}: {error}", path.display(), error.code());
    if swaps.0.table().news(seen) {
        tracing::warn!(path = %path.display(), code = error.code(), %error, remedy = %error.remedy(), "watched_file_bad");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_plugin_the_newest_file_is_offered() {
        let offer = |file: &str, name: &str, age: u64| Offer {
            file: file.into(),
            name: name.to_owned(),
            sha256: file.to_owned(),
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(age),
        };
        let offers = vec![
            offer("z.so", "a", 1),
            offer("new.so", "a", 9),
            offer("y.so", "a", 5),
            offer("c.so", "b", 1),
            offer("d.so", "b", 1),
        ];
        let files: Vec<_> = newest(offers).into_iter().map(|offer| offer.sha256).collect();
        assert_eq!(files, ["new.so", "d.so"]);
    }
}
