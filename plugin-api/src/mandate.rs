//! The goal a runner is asked to pursue, as it is handed to one cycle.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One mandate, as one cycle sees it. Unknown fields are ignored, so a newer host can add some.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mandate {
    /// Payload schema, [`crate::PAYLOAD_SCHEMA`] at the time of writing.
    pub schema: u32,
    /// Unique in the store of this daemon.
    pub id: String,
    /// Which cycle of the mandate this is, from 1.
    #[serde(default = "one")]
    pub cycle: u32,
    /// Which try of this cycle this is, from 1; above 1 after a crash, a stop or a pause.
    #[serde(default = "one")]
    pub attempt: u32,
    /// What is to be reached, in the words of the person who asked.
    #[serde(default)]
    pub goal: String,
    /// Name of the schedule that fired it; none for a mandate made by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The time it was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nominal_at: Option<DateTime<Utc>>,
    /// Mandates of one scope never run at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_scope: Option<String>,
    /// Cycles after which the mandate ends even if the runner wants more.
    #[serde(default = "ten")]
    pub max_cycles: u32,
    /// Cycles between two checkpoints for a person to look, where the runner supports them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u32>,
    /// How much risk acts may carry: `low`, `medium`; runners may know more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk_budget: Option<String>,
    /// Narrows what the cycle may do; never widens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_actions: Option<Vec<String>>,
    /// Narrows what the observe phase may look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observe_policies: Option<Vec<String>>,
    /// Free parameters for the runner.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub params: Map<String, Value>,
}

impl Mandate {
    /// A first cycle of a mandate with nothing but a goal; tests begin with it.
    #[must_use]
    pub fn new(id: impl Into<String>, goal: impl Into<String>) -> Self {
        Self {
            schema: crate::PAYLOAD_SCHEMA,
            id: id.into(),
            cycle: 1,
            attempt: 1,
            goal: goal.into(),
            schedule: None,
            nominal_at: None,
            project_scope: None,
            max_cycles: ten(),
            checkpoint_every: None,
            risk_budget: None,
            allowed_actions: None,
            observe_policies: None,
            params: Map::new(),
        }
    }

    /// The same with one parameter more.
    #[must_use]
    pub fn with_param(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.params.insert(key.into(), value.into());
        self
    }

    /// The parameters as a type of the runner's own.
    ///
    /// # Errors
    /// `invalid`, naming what does not fit.
    pub fn params_as<T: serde::de::DeserializeOwned>(&self) -> Result<T, crate::CallError> {
        serde_json::from_value(Value::Object(self.params.clone()))
            .map_err(|error| crate::CallError::invalid(format!("params of the mandate: {error}")))
    }
}

fn one() -> u32 {
    1
}

fn ten() -> u32 {
    10
}
