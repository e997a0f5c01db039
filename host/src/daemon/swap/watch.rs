//! A watched directory: a plugin file that is complete in it, by a rename or by the end of its
//! writing, is swapped in for every runner whose plugin has its name. A bad file is reported once.
//! Nothing polls; files that were there before are left alone.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::mpsc;

use super::Swaps;
use crate::runner::manifest::fingerprint;
use crate::runner::{LoadError, PluginFile};
use crate::sys::files;

/// Bytes of events that are read at once; one event is at most 272.
const BUFFER: usize = 4096;
/// Names that wait; the kernel keeps further ones.
const WAITING: usize = 64;

/// Watches until the directory is gone; never ends otherwise. To be run as a task of its own.
///
/// # Errors
/// The directory cannot be made or watched, or is gone.
pub async fn watch(swaps: Swaps, dir: PathBuf) -> std::io::Result<()> {
    files::create_dirs(&dir).map_err(|error| std::io::Error::other(error.to_string()))?;
    let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR;
    inotify::add_watch(&queue, &dir, flags)?;
    // The thread ends when this end of the pipe goes with the task.
    let (ends, _alive) = pipe_with(PipeFlags::CLOEXEC)?;
    let (send, mut receive) = mpsc::channel(WAITING);
    let thread = std::thread::Builder::new().name("kairos-watch".to_owned());
    let watched = dir.clone();
    thread.spawn(move || listen(&queue, &watched, &ends, &send))?;
    tracing::info!(dir = %dir.display(), "plugins_watched");
    loop {
        match receive.recv().await {
            Some(Ok(Appeared { name, complete: true })) => offered(&swaps, &dir.join(name)).await,
            Some(Ok(Appeared { name, complete: false })) => {
                let path = dir.join(name);
                waits(&swaps, &path, "it is not complete before it is closed, or renamed into place");
            }
            Some(Err(error)) => return Err(error),
            None => return Err(std::io::Error::other("the thread that watches has ended")),
        }
    }
}

/// A plugin's name in the directory.
#[derive(Debug, PartialEq, Eq)]
struct Appeared {
    name: PathBuf,
    /// False for one that has only been begun.
    complete: bool,
}

/// Tells the names of files that are complete or begun, until `ends` is closed or nobody listens.
fn listen(queue: &OwnedFd, dir: &Path, ends: &OwnedFd, tell: &mpsc::Sender<std::io::Result<Appeared>>) {
    loop {
        let mut ready = [PollFd::new(queue, PollFlags::IN), PollFd::new(ends, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) if !ready[1].revents().is_empty() => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return drop(tell.blocking_send(Err(error.into()))),
        }
        let names = match appeared(queue, dir) {
            Ok(names) => names.into_iter().map(Ok).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Vec::new(),
            Err(error) => vec![Err(error)],
        };
        for name in names {
            if tell.blocking_send(name).is_err() {
                return;
            }
        }
    }
}

/// The files that are complete now, and those that were begun and are not complete yet.
fn appeared(queue: &impl AsFd, dir: &Path) -> std::io::Result<Vec<Appeared>> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); BUFFER];
    let mut reader = inotify::Reader::new(queue, &mut buffer);
    let mut found: Vec<Appeared> = Vec::new();
    loop {
        let event = reader.next()?;
        if event.events().contains(ReadFlags::IGNORED) {
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the watched directory is gone"));
        }
        let made = event.events().contains(ReadFlags::CREATE);
        let name = event.file_name().and_then(|name| name.to_str().ok()).filter(|name| is_plugin(name));
        if let Some(name) = name.map(PathBuf::from) {
            let complete = !(made && is_written_to(&dir.join(&name)));
            match found.iter_mut().find(|known| known.name == name) {
                Some(known) => known.complete |= complete,
                None => found.push(Appeared { name, complete }),
            }
        }
        if reader.is_buffer_empty() {
            return Ok(found);
        }
    }
}

/// Nobody closes a directory, a fifo or a link after writing: they are what they are at once.
fn is_written_to(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|made| made.is_file())
}

/// Hidden names are of files that are still being copied.
fn is_plugin(name: &str) -> bool {
    !name.starts_with('.') && Path::new(name).extension().is_some_and(|extension| extension == "so")
}

/// Swaps a file in where its name is that of a plugin that serves.
async fn offered(swaps: &Swaps, path: &Path) {
    let at = path.to_owned();
    let read = tokio::task::spawn_blocking(move || PluginFile::open(&at)).await;
    let plugin = match read {
        Ok(Ok(plugin)) => plugin,
        Ok(Err(error)) => return report(swaps, path, &error),
        Err(panic) => return tracing::error!(path = %path.display(), %panic, "watched_file_not_read"),
    };
    let runners = swaps.0.parts.runners.status();
    let of_name = |status: &&crate::runner::RunnerStatus| {
        status.plugin.is_some()
            && status.identity.as_ref().is_some_and(|identity| {
                identity.name == plugin.manifest.name && identity.generation != plugin.sha256
            })
    };
    let wanted: Vec<String> = runners.iter().filter(of_name).map(|status| status.name.clone()).collect();
    if wanted.is_empty() {
        let name = plugin.manifest.name.as_str();
        let serves = runners.iter().find(|status| {
            status.identity.as_ref().is_some_and(|identity| identity.generation == plugin.sha256)
        });
        match serves {
            Some(status) => {
                tracing::info!(path = %path.display(), runner = status.name, "watched_file_serves_already");
            }
            None => tracing::info!(path = %path.display(), plugin = name, "watched_file_of_nobody"),
        }
    }
    for runner in wanted {
        let (swaps, file) = (swaps.clone(), path.to_owned());
        let (name, sha256) = (plugin.manifest.name.clone(), plugin.sha256.clone());
        let inner = Arc::clone(&swaps.0);
        // Its turn may be a trial away; other files must not wait for it.
        inner.runtime.spawn(async move { take_turn(&swaps, runner, Offer { file, name, sha256 }).await });
    }
}

/// A file as it was when it appeared.
struct Offer {
    file: PathBuf,
    /// From its manifest.
    name: String,
    sha256: String,
}

impl Offer {
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

/// Waits until the slot is free, and begins, with the very content that was offered.
async fn take_turn(swaps: &Swaps, runner: String, offer: Offer) {
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
            let generation = offer.sha256;
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
fn waits(swaps: &Swaps, path: &Path, why: &str) {
    if swaps.0.table().news(format!("{}: {why}", path.display())) {
        tracing::info!(path = %path.display(), why, "watched_file_waits");
    }
}

fn report(swaps: &Swaps, path: &Path, error: &LoadError) {
    if let LoadError::Changed { .. } = error {
        // Whoever writes to it will have to close it.
        return waits(swaps, path, "somebody writes to it");
    }
    let seen = format!("{}: {}: {error}", path.display(), error.code());
    if swaps.0.table().news(seen) {
        tracing::warn!(path = %path.display(), code = error.code(), %error, remedy = %error.remedy(), "watched_file_bad");
    }
}
