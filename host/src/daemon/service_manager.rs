//! The service manager's side of the daemon's life: ready, reloading, stopping, and a watchdog that is fed
//! only by real progress. Without a manager (no `NOTIFY_SOCKET`) all of this does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Says that the daemon serves.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that the configuration is being read again; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "service_manager_clock"),
    }
}

/// Says that the daemon ends, and how long that may take.
pub fn stopping(grace: Duration) {
    let micros = u32::try_from(grace.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// Feeds the watchdog. To be called only when the loop and the store's writer have both made progress.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is due: half of what the manager allows. None when it does not watch.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "service_manager_unreachable");
    }
}
