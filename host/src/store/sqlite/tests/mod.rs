//! The contract of every operation, on a file and in memory alike.
#![allow(clippy::disallowed_methods, reason = "tests make files of their own")]

mod bench;
mod cycles;
mod fires;
mod maintenance;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use kairos_plugin_api::Usage;
use serde_json::json;

use self::bench::*;
use super::*;
use crate::domain::mandate::{CycleEnd, CycleStatus, MandateState};
use crate::domain::schedule::{MandateBounds, Overlap, SchedulePolicy, ScheduleSpec};
