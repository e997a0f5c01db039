//! Pure rules: no IO, no clock, no tokio. Time and chance arrive as arguments, so that live
//! code, recovery and simulation all decide alike.

pub mod budget;
pub mod canonical;
pub mod cron;
pub mod generation;
pub mod handover;
pub mod ids;
pub mod mandate;
pub mod missed;
pub mod overlap;
pub mod record;
pub mod schedule;
pub mod talk;
pub mod verdict;
