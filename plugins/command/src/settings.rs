//! The runner's parameters: which command, and what an agent that takes plain text is told. Those of
//! a mandate win over those of the runner.

use kairos_plugin_api::{CallError, Mandate};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Stands for the mandate's goal in a prompt.
const GOAL: &str = "{goal}";
/// Stands for the summary of the last run that went well.
const LAST: &str = "{last}";

/// What can be said in parameters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Which of `commands` in daemon.yml.
    command: Option<String>,
    /// The prompt, with `{goal}` and `{last}`; by itself the goal.
    prompt: Option<String>,
}

/// As [`Settings`], without any other key: a slip of the pen in daemon.yml is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Strict {
    command: Option<String>,
    prompt: Option<String>,
}

impl Settings {
    /// Those of the runner.
    ///
    /// # Errors
    /// `invalid`, naming what does not fit.
    pub fn of_runner(params: &Value) -> Result<Self, CallError> {
        if params.is_null() {
            return Ok(Self::default());
        }
        let Strict { command, prompt } = Strict::deserialize(params)
            .map_err(|error| CallError::invalid(format!("params of the runner: {error}")))?;
        Ok(Self { command, prompt })
    }

    /// Those of a mandate. It may have others, which only the agent understands.
    ///
    /// # Errors
    /// `invalid`, naming what does not fit.
    pub fn of_mandate(params: &Map<String, Value>) -> Result<Self, CallError> {
        Self::deserialize(Value::Object(params.clone()))
            .map_err(|error| CallError::invalid(format!("params of the mandate: {error}")))
    }

    /// These, filled up with others.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            command: self.command.or_else(|| other.command.clone()),
            prompt: self.prompt.or_else(|| other.prompt.clone()),
        }
    }

    /// The command's name.
    ///
    /// # Errors
    /// `invalid` when nobody said which.
    pub fn command(&self) -> Result<&str, CallError> {
        self.command.as_deref().ok_or_else(|| {
            CallError::invalid(
                "no command is named: set `params: {command: NAME}` of the runner in daemon.yml",
            )
        })
    }

    /// What an agent that takes plain text is told.
    #[must_use]
    pub fn prompt(&self, mandate: &Mandate, last: Option<&Value>) -> String {
        let template = self.prompt.as_deref().unwrap_or(GOAL);
        let last = last.and_then(|last| last.get("summary")).and_then(Value::as_str).unwrap_or_default();
        // In one pass: what was put in is not looked at again.
        let mut prompt = String::with_capacity(template.len() + mandate.goal.len());
        let mut rest = template;
        while let Some(at) = rest.find('{') {
            prompt.push_str(&rest[..at]);
            rest = &rest[at..];
            let (with, len) = if rest.starts_with(GOAL) {
                (mandate.goal.as_str(), GOAL.len())
            } else if rest.starts_with(LAST) {
                (last, LAST.len())
            } else {
                ("{", 1)
            };
            prompt.push_str(with);
            rest = &rest[len..];
        }
        prompt.push_str(rest);
        prompt
    }
}
