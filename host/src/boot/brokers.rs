//! The broker that new cycles get. A reload puts another one here; cycles that run keep theirs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::fitness::Fitness;
use crate::broker::stop::StopSignal;
use crate::broker::tools::process::Live;
use crate::broker::{Broker, CycleServices, Seen};
use crate::daemon::dispatch::ports::{OpenServices, Services};
use crate::store::ClaimedCycle;

/// See the module.
pub struct Brokers {
    current: RwLock<Arc<Broker>>,
    fitness: RwLock<Arc<Fitness>>,
    /// The services of cycles, by mandate, for whoever looks at one.
    running: Mutex<HashMap<String, Weak<CycleServices>>>,
    /// Programs that run for cycles, whichever broker started them.
    pub live: Arc<Live>,
}

impl Brokers {
    /// Begins with this one.
    #[must_use]
    pub fn new(broker: Arc<Broker>, fitness: Fitness, live: Arc<Live>) -> Self {
        Self {
            current: RwLock::new(broker),
            fitness: RwLock::new(Arc::new(fitness)),
            running: Mutex::default(),
            live,
        }
    }

    /// From now on new cycles get this one.
    pub fn set(&self, broker: Arc<Broker>, fitness: Fitness) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = broker;
        *self.fitness.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fitness);
    }

    /// What can be seen of a mandate's running cycle.
    #[must_use]
    pub fn seen(&self, mandate: &str) -> Option<Seen> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let services = running.get(mandate)?.upgrade()?;
        drop(running);
        Some(services.seen())
    }

    fn fitness(&self) -> Arc<Fitness> {
        Arc::clone(&self.fitness.read().unwrap_or_else(PoisonError::into_inner))
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
        let services = self.current().cycle(cycle.clone(), stop, deadline);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, services| services.strong_count() > 0);
        running.insert(cycle.mandate.id.clone(), Arc::downgrade(&services));
        drop(running);
        services
    }

    fn unfit(&self) -> BTreeMap<String, String> {
        self.fitness().all_unfit()
    }

    fn unfit_for(&self, runner: &str, params: &Map<String, Value>) -> Option<String> {
        self.fitness().unfit_for(runner, params)
    }

    fn commands(&self) -> BTreeMap<String, Vec<String>> {
        self.fitness().commands()
    }
}
