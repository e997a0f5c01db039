//! The contract of a cycle's services, on a real store: what is recorded is never done again,
//! whatever is cut where.
#![allow(clippy::disallowed_methods, reason = "tests prepare and read files of their own")]

mod bench;
mod conformance;
mod crash;
mod floods;
mod rules;

use serde_json::{Value, json};

use self::bench::*;
use super::*;
