//! The broker that new cycles get. A reload puts another one here; cycles that run keep theirs.

use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};

use crate::broker::Broker;
use crate::broker::stop::StopSignal;
use crate::daemon::dispatch::ports::{OpenServices, Services};
use crate::store::ClaimedCycle;

/// See the module.
pub struct Brokers(RwLock<Arc<Broker>>);

impl Brokers {
    /// Begins with this one.
    #[must_use]
    pub fn new(broker: Arc<Broker>) -> Self {
        Self(RwLock::new(broker))
    }

    /// From now on new cycles get this one.
    pub fn set(&self, broker: Arc<Broker>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = broker;
    }

    fn current(&self) -> Arc<Broker> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OpenServices for Brokers {
    fn open(
        &self,
        cycle: &ClaimedCycle,
        stop: Arc<StopSignal>,
        deadline: Option<DateTime<Utc>>,
    ) -> Arc<dyn Services> {
        self.current().open(cycle, stop, deadline)
    }
}
