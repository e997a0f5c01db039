//! Chronos: owns the clock of the agent. It knows when each schedule is due, fires what is due
//! and starts it in the same commit, and carries out the commands on schedules. It never waits
//! for a runner and never looks into a cycle.
//!
//! ```text
//! specs --compile--> Table <--states-- store
//!                      |  soonest
//! wait_until_due <-----+-----> tick --decide--> store.fire(+claim) --> Table, Claims
//! ```
//!
//! The table follows the store: a cursor moves in memory after it moved on disk. When a commit
//! fails or its answer is never read, the same window is looked at again; the store refuses what
//! it has recorded already. Evaluations and commands take turns, each to its end.

mod adopt;
mod backfill;
mod commands;
mod pace;
mod table;
mod tick;
mod view;
mod wait;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

pub use adopt::Loaded;
pub use commands::Trigger;
pub use table::{RejectCause, Rejected, Table};
pub use tick::TickOutcome;
pub use view::{Upcoming, preview};
pub use wait::Wake;

use self::pace::{Pace, Watch};
use crate::domain::schedule::ScheduleSpec;
use crate::store::Store;
use crate::sys::clock::Clock;
use crate::sys::entropy::Entropy;
use crate::sys::zones::Zones;

/// A clock before this is not set yet: no release of this program is older. 2026-01-01.
pub const EARLIEST: i64 = 1_767_225_600;
/// Catch-up fires in any minute, unless the configuration says otherwise.
pub const MAX_CATCH_UP_PER_MINUTE: u32 = 10;

/// The schedules of a configuration.
#[derive(Clone, Debug, Default)]
pub struct ScheduleSet {
    /// Those that are sound.
    pub specs: Vec<ScheduleSpec>,
    /// Names of those that are set aside for a mistake: they do not fire, and their place in time
    /// is kept.
    pub kept: HashSet<String>,
    /// The runner of those that name none.
    pub default_runner: Option<String>,
    /// At most so many catch-up fires in any minute; [`MAX_CATCH_UP_PER_MINUTE`] when absent.
    pub max_catch_up_per_minute: Option<u32>,
}

/// What chronos stands on.
#[derive(Clone)]
pub struct Seams {
    /// Where everything is recorded.
    pub store: Arc<dyn Store>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance, for ids of triggered mandates.
    pub entropy: Arc<dyn Entropy>,
    /// Zone data.
    pub zones: Arc<Zones>,
}

/// See the module. Shared behind an `Arc`; all methods may be called from any thread.
pub struct Chronos {
    seams: Seams,
    /// One evaluation or command at a time, commit included: the table must not change between
    /// the decision and the commit that it leads to. Held across a commit, never across a runner.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    wake: Notify,
}

struct State {
    table: Table,
    pace: Pace,
    watch: Watch,
    /// Schedules that came while the clock was not set.
    deferred: Option<ScheduleSet>,
}

impl Chronos {
    /// Without schedules; [`Chronos::load`] brings them.
    #[must_use]
    pub fn new(seams: Seams) -> Self {
        let state = State {
            table: Table::default(),
            pace: Pace::new(MAX_CATCH_UP_PER_MINUTE),
            watch: Watch::default(),
            deferred: None,
        };
        Self { seams, turn: tokio::sync::Mutex::new(()), state: Mutex::new(state), wake: Notify::new() }
    }

    /// When there is something to do: an occurrence is due, a pause ends, or the next schedule may
    /// catch up. `None` while nothing is in sight. A time in the past means now.
    #[must_use]
    pub fn next_due(&self) -> Option<DateTime<Utc>> {
        let (now, monotonic) = (self.seams.clock.now(), self.seams.clock.monotonic());
        let mut state = self.state();
        let due = state.table.soonest();
        let resume = state.table.first_resume().map(|(until, _)| until);
        let mut next = due.into_iter().chain(resume).min().and_then(time_of);
        if state.table.anyone_waits() {
            let turn = now + state.pace.next_turn(monotonic);
            next = Some(next.map_or(turn, |next| next.min(turn)));
        }
        let held = state.pace.held(monotonic);
        next.map(|next| if held.is_zero() { next } else { next.max(now + held) })
    }

    /// How many schedules are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state().table.len()
    }

    /// True without any schedule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many schedules wait for their turn to catch up.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().table.waiting()
    }

    /// Looks for newer zone data and uses it. True if there was some. To be called daily.
    pub fn refresh_zones(&self) -> bool {
        let changed = self.seams.zones.reload();
        if changed {
            self.state().table.renew_zones(&self.seams.zones);
            self.wake.notify_one();
        }
        changed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves at worst a due time that is too early or too late by one
        // evaluation; the store's cursors decide.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> DateTime<Utc> {
        self.seams.clock.now()
    }
}

impl std::fmt::Debug for Chronos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chronos").field("schedules", &self.len()).finish_non_exhaustive()
    }
}

/// Unix seconds as a time; `None` outside of what chrono covers.
fn time_of(seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(seconds, 0)
}

/// Unix seconds of an occurrence or cursor as a time.
fn time(seconds: i64) -> DateTime<Utc> {
    time_of(seconds).expect("occurrences and cursors lie in the years that chrono covers")
}

#[cfg(test)]
mod tests;
