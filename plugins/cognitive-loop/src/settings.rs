//! What a mandate, or the daemon's configuration of this runner, can set.

use kairos_plugin_api::CallError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Args;

/// `files` is short for observing each of them with `fs.read`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Files to read before thinking.
    files: Option<Vec<String>>,
    /// Tool calls to make before thinking.
    observe: Option<Vec<Look>>,
    /// Which of the host's providers; its default when absent.
    pub provider: Option<String>,
    /// Which model; the provider's when absent.
    pub model: Option<String>,
}

/// One tool call of the observe phase.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// The tool.
    pub tool: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Args,
}

impl Settings {
    /// From parameters; absent ones are fine, unknown ones are not.
    pub fn read(params: &Value) -> Result<Self, CallError> {
        if params.is_null() {
            return Ok(Self::default());
        }
        Self::deserialize(params).map_err(|error| CallError::invalid(format!("params: {error}")))
    }

    /// Fills what is absent from `defaults`.
    pub fn or(self, defaults: &Self) -> Self {
        let looks = self.files.is_some() || self.observe.is_some();
        let inherited =
            |from: &Self| if looks { (None, None) } else { (from.files.clone(), from.observe.clone()) };
        let (files, observe) = inherited(defaults);
        Self {
            files: self.files.or(files),
            observe: self.observe.or(observe),
            provider: self.provider.or_else(|| defaults.provider.clone()),
            model: self.model.or_else(|| defaults.model.clone()),
        }
    }

    /// What to look at, in order.
    pub fn looks(&self) -> Vec<Look> {
        let read = |path: &String| Look {
            tool: "fs.read".to_owned(),
            args: json!({ "path": path }).as_object().cloned().unwrap_or_default(),
        };
        let files = self.files.iter().flatten().map(read);
        files.chain(self.observe.iter().flatten().cloned()).collect()
    }
}
