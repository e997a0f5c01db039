//! What dispatch needs of its neighbours, so that it can be driven without them.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use kairos_plugin_api::{Report, Usage};
use serde_json::{Map, Value};

use super::conclude::Verdict;
use crate::broker::stop::StopSignal;
use crate::broker::{Broker, CycleServices, Imposed, Settling};
use crate::runner::HostCalls;
use crate::store::{self, ClaimedCycle};
use crate::wal::Wal;

/// The broker's side of one attempt of a cycle.
pub trait Services: HostCalls {
    /// Why the host ended the attempt, if it did.
    fn outcome(&self) -> Option<Imposed>;
    /// What a report claims beyond what was metered and booked.
    fn claimed_beyond(&self, report: &Report) -> Usage;
    /// Usage of the calls that the host made for it, and what it booked by itself meanwhile.
    fn booked(&self) -> Usage {
        Usage::ZERO
    }
    /// The runner's state changes.
    fn state_puts(&self) -> HashMap<String, Value>;
    /// Makes sure that what was handed to the store is in it. May block.
    ///
    /// # Errors
    /// What the store did not take.
    fn settle_up(&self, how: Settling) -> store::Result<()>;
    /// True when nothing was handed to the store that is not known to be in it.
    fn is_settled(&self) -> bool;
}

impl Services for CycleServices {
    fn outcome(&self) -> Option<Imposed> {
        Self::outcome(self)
    }
    fn claimed_beyond(&self, report: &Report) -> Usage {
        Self::claimed_beyond(self, report)
    }
    fn booked(&self) -> Usage {
        self.metered().plus(self.deltas())
    }
    fn state_puts(&self) -> HashMap<String, Value> {
        Self::state_puts(self)
    }
    fn settle_up(&self, how: Settling) -> store::Result<()> {
        Self::settle_up(self, how)
    }
    fn is_settled(&self) -> bool {
        Self::is_settled(self)
    }
}

/// Opens the services of an attempt.
pub trait OpenServices: Send + Sync + 'static {
    /// `stop` is given when the attempt should end.
    fn open(
        &self,
        cycle: &ClaimedCycle,
        stop: Arc<StopSignal>,
        deadline: Option<DateTime<Utc>>,
    ) -> Arc<dyn Services>;

    /// Runners that are there and could yet do nothing now, with the reasons: what they need of the
    /// machine is missing. Their mandates wait. Asked before each claim, so it is quick.
    fn unfit(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// The same for one mandate, by its runner and parameters: it may ask for something else than
    /// its runner does by itself.
    fn unfit_for(&self, runner: &str, params: &Map<String, Value>) -> Option<String> {
        let _ = (runner, params);
        None
    }

    /// Of runners whose mandates may name a command: the names that could be served now, with an
    /// empty one when a mandate that names none could.
    fn commands(&self) -> BTreeMap<String, Vec<String>> {
        BTreeMap::new()
    }
}

impl OpenServices for Arc<Broker> {
    fn open(
        &self,
        cycle: &ClaimedCycle,
        stop: Arc<StopSignal>,
        deadline: Option<DateTime<Utc>>,
    ) -> Arc<dyn Services> {
        self.cycle(cycle.clone(), stop, deadline)
    }
}

/// The write-ahead log as dispatch sees it.
pub trait CycleLog: Send + Sync + 'static {
    /// Proves that the mandate's log can be written; the error says why it cannot, and the cycle
    /// is not to start.
    fn prepare<'a>(&'a self, mandate: &'a str) -> Prepared<'a>;
}

/// The answer of a [`CycleLog`], on its way.
pub type Prepared<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

impl CycleLog for Wal {
    fn prepare<'a>(&'a self, mandate: &'a str) -> Prepared<'a> {
        Box::pin(async move { Self::prepare(self, mandate).await.map_err(|error| error.to_string()) })
    }
}

/// The end of a cycle, for whoever watches generations on trial.
#[derive(Clone, Copy, Debug)]
pub struct TrialCycle<'a> {
    /// Its runner.
    pub runner: &'a str,
    /// The generation it ran on.
    pub generation: &'a str,
    /// Its mandate.
    pub mandate: &'a str,
    /// How it ended.
    pub verdict: &'a Verdict,
    /// What it used, metered or claimed.
    pub usage: Usage,
    /// False when its version could not even begin it. It is no end then, and nothing records it.
    pub begun: bool,
}

/// What a trial says to the end of a cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnTrial {
    /// It counts as it is.
    Keep,
    /// The generation's former one has the slot again, or always had it: a failure is done again there. Says why.
    RunAgain(String),
}

/// Watches generations on trial.
pub trait Trials: Send + Sync + 'static {
    /// A cycle has ended and is not recorded yet. What a roll back needs in the store is there
    /// when this answers.
    fn ended<'a>(&'a self, cycle: TrialCycle<'a>) -> Pin<Box<dyn Future<Output = OnTrial> + Send + 'a>>;
}

/// What dispatch needs to know of schedules when a cycle of theirs ends.
pub trait ScheduleSide: Send + Sync + 'static {
    /// Pause the schedule after so many failures in a row.
    fn failure_limit(&self, schedule: &str) -> Option<u32>;
    /// The store has paused it.
    fn auto_paused(self: Arc<Self>, schedule: &str);
}
