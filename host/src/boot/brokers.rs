//! The broker that new cycles get. A reload puts another one here; cycles that run keep theirs.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};

use super::fitness::Fitness;
use crate::broker::Broker;
use crate::broker::stop::StopSignal;
use crate::broker::tools::process::Live;
use crate::daemon::dispatch::ports::{OpenServices, Services};
use crate::store::ClaimedCycle;

/// See the module.
pub struct Brokers {
    current: RwLock<Arc<Broker>>,
    fitness: RwLock<Arc<Fitness>>,
    /// Programs that run for cycles, whichever broker started them.
    pub live: Arc<Live>,
}

impl Brokers {
    /// Begins with this one.
    #[must_use]
    pub fn new(broker: Arc<Broker>, fitness: Fitness, live: Arc<Live>) -> Self {
        Self { current: RwLock::new(broker), fitness: RwLock::new(Arc::new(fitness)), live }
    }

    /// From now on new cycles get this one.
    pub fn set(&self, broker: Arc<Broker>, fitness: Fitness) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = broker;
        *self.fitness.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fitness);
    }

    fn current(&self) -> Arc<Broker> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
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

    fn unfit(&self) -> BTreeMap<String, String> {
        let fitness = Arc::clone(&self.fitness.read().unwrap_or_else(PoisonError::into_inner));
        fitness.all_unfit()
    }
}
