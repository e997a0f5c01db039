//! What people see of a swap: where it stands, why it was refused, what its replay showed.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::shadow::ShadowReport;
use crate::runner::LoadError;
use crate::store;

/// Where a swap stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The file is read and kept in the plugin store.
    Keep,
    /// It is loaded apart from everything that serves, and asked whether it works.
    Probe,
    /// It is run on recorded cycles.
    Shadow,
    /// It is loaded as it will serve, and waits.
    Standby,
    /// The state of the version that serves is handed over.
    Handover,
    /// It takes the slot.
    Flip,
    /// It serves, on trial.
    Canary,
    /// It serves; the former version's last cycles end.
    Drain,
    /// It serves.
    Done,
    /// It never served.
    Refused,
    /// It served; the former version has the slot again.
    RolledBack,
}

impl Stage {
    /// The word of JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Probe => "probe",
            Self::Shadow => "shadow",
            Self::Standby => "standby",
            Self::Handover => "handover",
            Self::Flip => "flip",
            Self::Canary => "canary",
            Self::Drain => "drain",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
        }
    }

    /// True when whoever waits for a swap needs to wait no longer: it serves, or never will.
    #[must_use]
    pub fn is_decided(self) -> bool {
        match self {
            Self::Keep | Self::Probe | Self::Shadow | Self::Standby | Self::Handover | Self::Flip => false,
            Self::Canary | Self::Drain | Self::Done | Self::Refused | Self::RolledBack => true,
        }
    }
}

/// Why a swap is refused. The version that serves is not touched by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// A constant word.
    pub code: String,
    /// At most three lines.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Refusal {
    /// A refusal without a remedy.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), remedy: None }
    }

    /// The same with what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// True when all that is known is that something took too long.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(self.code.as_str(), "hung" | "load_timeout" | "shadow_hung")
    }
}

impl From<LoadError> for Refusal {
    fn from(error: LoadError) -> Self {
        Self::new(error.code(), error.to_string()).remedy(error.remedy())
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        let code = match &error {
            store::Error::Conflict(_) => "conflict",
            _ => "store",
        };
        Self::new(code, error.to_string())
    }
}

/// A swap as people see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SwapView {
    /// Its id.
    pub id: String,
    /// The slot.
    pub runner: String,
    /// Where the candidate came from: a path, or the sha256 of a kept file.
    pub source: String,
    /// Name and version of the candidate, once its manifest is read.
    pub name: Option<String>,
    /// See there.
    pub version: Option<String>,
    /// sha256 of the candidate.
    pub generation: Option<String>,
    /// sha256 of the version that served before.
    pub from: Option<String>,
    /// Where it stands.
    pub stage: Stage,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Counts up with every change of this view.
    pub step: u64,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// Why it was refused or rolled back.
    pub refusal: Option<Refusal>,
    /// What the replay showed.
    pub shadow: Option<ShadowReport>,
    /// `none`, `cold`, or the schema of the state that was handed over.
    pub handover: Option<String>,
    /// The trial so far.
    pub canary: Option<Value>,
}

impl SwapView {
    /// One that begins.
    #[must_use]
    pub fn new(id: String, runner: &str, source: String, at: DateTime<Utc>) -> Self {
        Self {
            id,
            runner: runner.to_owned(),
            source,
            name: None,
            version: None,
            generation: None,
            from: None,
            stage: Stage::Keep,
            since: at,
            step: 0,
            started_at: at,
            refusal: None,
            shadow: None,
            handover: None,
            canary: None,
        }
    }

    /// What a status says of it.
    #[must_use]
    pub fn in_short(&self) -> Value {
        json!({"runner": self.runner, "id": self.id, "stage": self.stage, "since": self.since,
            "started_at": self.started_at, "source": self.source, "generation": self.generation,
            "version": self.version, "from": self.from, "canary": self.canary})
    }
}
