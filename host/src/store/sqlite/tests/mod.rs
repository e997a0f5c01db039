//! The contract of every operation, on a file and in memory alike.
#![allow(clippy::disallowed_methods, reason = "tests make files of their own")]

mod bench;
mod commits;
mod cycles;
mod files;
mod fires;
mod generations;
mod maintenance;
mod recovery;
mod steps;

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use kairos_plugin_api::Usage;
use serde_json::json;

use self::bench::*;
use super::*;
use crate::domain::mandate::{CycleEnd, CycleStatus, MandateState};
use crate::domain::schedule::{MandateBounds, Overlap, SchedulePolicy, ScheduleSpec};
