//! The thread that listens: walks to the directory, looks at what lies in it, and tells names until
//! the way there has changed; then it walks again. It watches first and looks then, so that what
//! appears in between is seen at least once. It decides nothing about plugins.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use tokio::sync::mpsc;

use super::inventory::{Inventory, Listing, is_plugin, list};
use super::road::{Identity, Road, Sign, Unwatched};
use crate::sys::clock::Clock;

/// What no event tells is seen after so long: a file system mounted over the directory, files that
/// another machine wrote, directories on the way that may be passed and not read.
const SLOW: Duration = Duration::from_secs(60);
/// Where the end of what is wrong has no event it is tried again so soon, then half as often each time.
const SOON: Duration = Duration::from_secs(1);
/// Who removes a directory or a link to make it anew is done in a moment, and nothing was lost.
const MOMENT: Duration = Duration::from_millis(100);
/// So many of them.
const MOMENTS: usize = 3;

/// What the thread tells.
#[derive(Debug)]
pub(super) enum Told {
    /// The directory is watched; this is its real path.
    Watched(PathBuf),
    /// It is not.
    Unwatched(Why),
    /// Events were lost; everything is looked at again.
    Overflow,
    /// A look has found these, which were not there at the last one.
    Found(Vec<OsString>),
    /// This is complete.
    Complete(OsString),
    /// This has been begun.
    Begun(OsString),
}

/// Why it is not watched, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Why {
    pub code: &'static str,
    pub message: String,
    pub remedy: &'static str,
}

impl From<&Unwatched> for Why {
    fn from(error: &Unwatched) -> Self {
        Self { code: error.code(), message: error.to_string(), remedy: error.remedy() }
    }
}

/// Nobody listens any more, or it is to end.
struct Ended;

pub(super) struct Listener {
    pub dir: PathBuf,
    pub clock: Arc<dyn Clock>,
    /// Closed at the other end when the thread is to end.
    pub ends: OwnedFd,
    pub tell: mpsc::Sender<Told>,
}

impl Listener {
    /// Until the end. To be run on a thread of its own.
    pub fn run(self) {
        let inventory = Inventory::default();
        let mut state = State { listener: self, inventory, at: None, why: None, begun: false };
        let mut soon = SOON;
        loop {
            let Ok(road) = state.walk() else { return };
            let pause = if road.is_blind() { soon } else { SLOW };
            soon = if road.is_blind() { (soon * 2).min(SLOW) } else { SOON };
            let until = state.listener.clock.monotonic() + pause;
            if state.hear(&road, until).is_err() {
                return;
            }
        }
    }

    fn say(&self, told: Told) -> Result<(), Ended> {
        self.tell.blocking_send(told).map_err(|_| Ended)
    }

    /// Waits for a sign, or as long as that.
    fn wait(&self, road: &Road, limit: Duration) -> Result<(), Ended> {
        let limit = Timespec::try_from(limit).expect("a minute fits");
        let mut ready = vec![PollFd::new(&self.ends, PollFlags::IN)];
        let queue = road.queue();
        ready.extend(queue.as_ref().map(|queue| PollFd::new(queue, PollFlags::IN)));
        // One that a signal ended is waited for again by the caller; nothing else can be wrong with it.
        let _ = poll(&mut ready, Some(&limit));
        if ready[0].revents().is_empty() { Ok(()) } else { Err(Ended) }
    }
}

struct State {
    listener: Listener,
    inventory: Inventory,
    /// The directory that is watched.
    at: Option<(PathBuf, Identity)>,
    /// Why none is, as it was told last.
    why: Option<Why>,
    /// False until the first look.
    begun: bool,
}

impl State {
    /// Walks, looks, and tells what is new.
    fn walk(&mut self) -> Result<Road, Ended> {
        let (mut road, mut listing) = self.look();
        for _ in 0..MOMENTS {
            if road.end.is_ok() || self.at.is_none() {
                break;
            }
            self.listener.wait(&road, MOMENT)?;
            (road, listing) = self.look();
        }
        match &road.end {
            Ok(end) => {
                self.why = None;
                if self.at.as_ref() != Some(end) {
                    self.at = Some(end.clone());
                    self.listener.say(Told::Watched(end.0.clone()))?;
                }
                if self.begun {
                    let new = self.inventory.look(listing);
                    if !new.is_empty() {
                        self.listener.say(Told::Found(new))?;
                    }
                } else {
                    self.inventory.begin(listing);
                }
            }
            Err(error) => {
                self.at = None;
                let why = Why::from(error);
                if self.why.as_ref() != Some(&why) {
                    self.why = Some(why.clone());
                    self.listener.say(Told::Unwatched(why))?;
                }
                // It may be there all the same, and then its files have been there before.
                if let (false, true, Ok(listing)) = (self.begun, road.is_blind(), list(&self.listener.dir)) {
                    self.inventory.begin(listing);
                }
            }
        }
        self.begun = true;
        Ok(road)
    }

    /// Where the way leads, and what lies there.
    fn look(&self) -> (Road, Listing) {
        let mut road = Road::walk(&self.listener.dir);
        let listed = road.end.as_ref().ok().map(|(at, _)| (at.clone(), list(at)));
        match listed {
            None => (road, Listing::new()),
            Some((_, Ok(listing))) => (road, listing),
            Some((at, Err(error))) => {
                road.end = Err(Unwatched::of(at, error));
                (road, Listing::new())
            }
        }
    }

    /// Tells of files until the way may lead elsewhere, or something may have been missed.
    fn hear(&mut self, road: &Road, until: Duration) -> Result<(), Ended> {
        loop {
            let left = until.saturating_sub(self.listener.clock.monotonic());
            if left.is_zero() {
                return Ok(());
            }
            self.listener.wait(road, left)?;
            let Ok(signs) = road.signs() else { return Ok(()) };
            let mut again = false;
            let mut files: Vec<(OsString, bool)> = Vec::new();
            for sign in signs {
                match sign {
                    Sign::Way => again = true,
                    Sign::Overflow => {
                        again = true;
                        self.listener.say(Told::Overflow)?;
                    }
                    Sign::File { name, made } if is_plugin(&name) => {
                        let complete = !(made && self.is_written_to(&name));
                        match files.iter_mut().find(|(known, _)| *known == name) {
                            Some((_, known)) => *known |= complete,
                            None => files.push((name, complete)),
                        }
                    }
                    Sign::File { .. } => {}
                }
            }
            for (name, complete) in files {
                self.tell_of(name, complete)?;
            }
            if again {
                return Ok(());
            }
        }
    }

    fn tell_of(&mut self, name: OsString, complete: bool) -> Result<(), Ended> {
        let Some((at, _)) = &self.at else { return Ok(()) };
        if !complete {
            return self.listener.say(Told::Begun(name));
        }
        if self.inventory.appeared(at, &name) { self.listener.say(Told::Complete(name)) } else { Ok(()) }
    }

    /// Nobody closes a directory, a fifo or a link after writing: they are what they are at once.
    fn is_written_to(&self, name: &OsString) -> bool {
        let Some((at, _)) = &self.at else { return false };
        at.join(name).symlink_metadata().is_ok_and(|made| made.is_file())
    }
}
