//! A watched directory: a plugin file that is complete in it, by a rename or by the end of its
//! writing, is swapped in for every runner whose plugin has its name. The directory may come, go,
//! and be replaced; while it is not watched that is told once, and shown.
//!
//! ```text
//! road -> listener (a thread) -> watch (a task) -> offer -> swap
//!           |   ^
//!         inventory: what a look has not seen before
//! ```

mod inventory;
mod listener;
mod offer;
mod road;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::listener::{Listener, Told, Why};
use self::road::Road;
use super::Swaps;
use crate::sys::files;

pub use self::road::Unwatched;

/// Names that wait; the kernel keeps further ones.
const WAITING: usize = 64;
/// When there was no thread to be had, it is tried again after so long.
const NO_THREAD: Duration = Duration::from_secs(60);

/// The directory as people see it.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    path: PathBuf,
    /// What the path leads to, or why nothing is watched.
    at: Result<PathBuf, Why>,
    since: DateTime<Utc>,
}

impl Watched {
    /// For status.
    pub fn view(&self) -> Value {
        let why = self.at.as_ref().err();
        json!({
            "path": self.path.display().to_string(),
            "watched": why.is_none(),
            "directory": self.at.as_ref().ok().map(|at| at.display().to_string()),
            "since": self.since.to_rfc3339_opts(SecondsFormat::AutoSi, true),
            "code": why.map(|why| why.code),
            "why": why.map(|why| why.message.as_str()),
            "remedy": why.map(|why| why.remedy),
        })
    }

    /// While it is not watched: that, in a line.
    pub fn reason(&self) -> Option<String> {
        let why = self.at.as_ref().err()?;
        let since = self.since.to_rfc3339_opts(SecondsFormat::Secs, true);
        Some(format!("plugins.watch: {} is not watched since {since}: {}", self.path.display(), why.message))
    }
}

/// Whether that directory could be watched now: its real path. Watches nothing.
///
/// # Errors
/// Why not.
pub fn watchable(dir: &Path) -> Result<PathBuf, Unwatched> {
    Road::walk(dir).end.map(|(at, _)| at)
}

/// Watches for as long as it is polled. `dir` is absolute; with `make` it is made where it is not there
/// at the start. To be run as a task of its own.
pub async fn watch(swaps: Swaps, dir: PathBuf, make: bool) {
    if make && let Err(error) = files::create_dirs(&dir) {
        // Why that is bad is told with the watch.
        tracing::debug!(%error, "plugins_directory_not_made");
    }
    loop {
        match listening(&swaps, &dir) {
            Ok((mut told, _ends)) => {
                while let Some(told) = told.recv().await {
                    take(&swaps, &dir, told).await;
                }
                lost(&swaps, &dir, Why { message: "the thread that watches has ended".to_owned(), ..NONE })
                    .await;
            }
            Err(error) => {
                let message = format!("no thread to watch with: {error}");
                lost(&swaps, &dir, Why { message, ..NONE }).await;
            }
        }
        let clock = &swaps.0.parts.clock;
        clock.sleep_until(clock.monotonic() + NO_THREAD).await;
    }
}

const NONE: Why = Why {
    code: "no_thread",
    message: String::new(),
    remedy: "see to the limits of the daemon; it is tried again by itself",
};

/// A thread that listens until the second part is dropped.
fn listening(swaps: &Swaps, dir: &Path) -> std::io::Result<(mpsc::Receiver<Told>, OwnedFd)> {
    let (ends, alive) = pipe_with(PipeFlags::CLOEXEC)?;
    let (tell, told) = mpsc::channel(WAITING);
    let listener = Listener { dir: dir.to_owned(), clock: Arc::clone(&swaps.0.parts.clock), ends, tell };
    std::thread::Builder::new().name("kairos-watch".to_owned()).spawn(move || listener.run())?;
    Ok((told, alive))
}

async fn take(swaps: &Swaps, dir: &Path, told: Told) {
    match told {
        Told::Watched(at) => found_again(swaps, dir, at).await,
        Told::Unwatched(why) => lost(swaps, dir, why).await,
        Told::Overflow => {
            let why = "more happened at once than the kernel keeps (fs.inotify.max_queued_events); the directory \
                       is looked through instead";
            tracing::warn!(dir = %dir.display(), why, "plugins_events_lost");
        }
        Told::Found(names) => {
            offer::found(swaps, names.into_iter().map(|name| dir.join(name)).collect()).await;
        }
        Told::Complete(name) => offer::appeared(swaps, &dir.join(name)).await,
        Told::Begun(name) => {
            let why = "it is not complete before it is closed, or renamed into place";
            offer::waits(swaps, &dir.join(name), why);
        }
    }
}

/// It is watched: at the start, after it was not, or it is another one than before.
async fn found_again(swaps: &Swaps, dir: &Path, at: PathBuf) {
    let (path, place) = (dir.display().to_string(), at.display().to_string());
    let before = swaps.set_watched(dir, Ok(at));
    tracing::info!(dir = path, directory = place, "plugins_watched");
    if before.is_some_and(|before| before.at.is_err()) {
        swaps.0.event("plugins_watched", json!({"path": path, "directory": place})).await;
    }
}

/// It is not. Told once, whatever else becomes the reason meanwhile; status has the newest.
async fn lost(swaps: &Swaps, dir: &Path, why: Why) {
    let Why { code, message, remedy } = why.clone();
    let before = swaps.set_watched(dir, Err(why));
    if before.is_some_and(|before| before.at.is_err()) {
        return tracing::debug!(dir = %dir.display(), code, why = message, "plugins_not_watched_still");
    }
    tracing::warn!(dir = %dir.display(), code, why = message, remedy, "plugins_not_watched");
    let details = json!({"path": dir.display().to_string(), "code": code, "why": message, "remedy": remedy});
    swaps.0.event("plugins_not_watched", details).await;
}

impl Swaps {
    /// The watched directory, for status; null where none is configured.
    #[must_use]
    pub fn watched(&self) -> Value {
        self.0
            .watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map_or(Value::Null, Watched::view)
    }

    /// While a directory is to be watched and is not: that, in a line.
    #[must_use]
    pub fn unwatched(&self) -> Option<String> {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.reason()
    }

    /// How it is from now on; gives how it was.
    fn set_watched(&self, dir: &Path, at: Result<PathBuf, Why>) -> Option<Watched> {
        let mut watched = self.0.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match watched.as_ref() {
            Some(before) if before.at.is_err() && at.is_err() => before.since,
            _ => self.0.parts.clock.now(),
        };
        watched.replace(Watched { path: dir.to_owned(), at, since })
    }
}
