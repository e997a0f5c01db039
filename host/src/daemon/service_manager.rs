//! The service manager's side of the daemon's life: ready, reloading, stopping, and a watchdog that is fed
//! only by real progress. Without a manager (no `NOTIFY_SOCKET`) all of this does nothing.
//!
//! A manager that does not read its socket must not stop the daemon, so a thread does the talking.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

/// Words that may wait for a slow manager; the next ones are dropped, they only repeat what is known.
const BACKLOG: usize = 16;

enum Word {
    Ready(String),
    Reloading,
    Stopping(Duration),
    Status(String),
    Alive,
}

/// The way to the service manager.
#[derive(Debug)]
pub struct ServiceManager(Option<SyncSender<Word>>);

impl ServiceManager {
    /// Starts the thread that talks. Without one (the system has none to give) nothing is said.
    #[must_use]
    pub fn connect() -> Self {
        let (words, heard) = sync_channel(BACKLOG);
        let started = thread::Builder::new().name("kairos-notify".to_owned()).spawn(move || talk(&heard));
        match started {
            Ok(_) => Self(Some(words)),
            Err(error) => {
                tracing::warn!(%error, "service_manager_unreachable");
                Self(None)
            }
        }
    }

    /// Says that the daemon serves.
    pub fn ready(&self, status: String) {
        self.say(Word::Ready(status));
    }

    /// Says that the configuration is being read again; [`ServiceManager::ready`] ends it.
    pub fn reloading(&self) {
        self.say(Word::Reloading);
    }

    /// Says that the daemon ends, and how long that may take.
    pub fn stopping(&self, grace: Duration) {
        self.say(Word::Stopping(grace));
    }

    /// One line for `systemctl status`.
    pub fn status(&self, line: String) {
        self.say(Word::Status(line));
    }

    /// Feeds the watchdog. To be called only when the loop and the store's writer have both made progress.
    pub fn alive(&self) {
        self.say(Word::Alive);
    }

    fn say(&self, word: Word) {
        if let Some(words) = &self.0 {
            // Full: the manager does not listen, and that is its own affair.
            let _ = words.try_send(word);
        }
    }
}

/// How often the watchdog wants to be fed: half of what the manager allows. None when it does not watch.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / 2)
}

fn talk(heard: &Receiver<Word>) {
    while let Ok(word) = heard.recv() {
        let told = match &word {
            Word::Ready(status) => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]),
            Word::Reloading => NotifyState::monotonic_usec_now()
                .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
            Word::Stopping(grace) => {
                let micros = u32::try_from(grace.as_micros()).unwrap_or(u32::MAX);
                sd_notify::notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)])
            }
            Word::Status(line) => sd_notify::notify(&[NotifyState::Status(line)]),
            Word::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
        };
        if let Err(error) = told {
            tracing::debug!(%error, "service_manager_unreachable");
        }
    }
}
