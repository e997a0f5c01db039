//! What keeps a store fit over the years: letting old things go, copies, and taking over what other
//! files tell. Nothing here is needed to run a mandate.

mod copies;
mod logs;
mod prune;
mod rebuild;
mod takeover;

pub use copies::{BackedUp, RESTORED, Restored, backup, restore};
pub use prune::Pruned;
pub use rebuild::{KnownSchedule, KnownSchedules};
pub use takeover::{Beside, KnownSpend, TakeOver, check_first_start, recover_from_wal};
