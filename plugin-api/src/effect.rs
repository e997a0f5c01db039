//! The effects a cycle can ask the host for, and their answers.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::CallError;
use crate::usage::Usage;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlmMessage {
    /// `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A request to a language model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlmRequest {
    /// Which configured provider; the host's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Which model; the provider's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The system prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The conversation, oldest first.
    pub messages: Vec<LlmMessage>,
    /// Most tokens to receive; the provider's configured figure when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// JSON schema that the reply should satisfy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_schema: Option<Value>,
}

impl LlmRequest {
    /// A conversation that begins with `prompt`; everything else as the operator configured it.
    #[must_use]
    pub fn user(prompt: impl Into<String>) -> Self {
        let message = LlmMessage { role: "user".to_owned(), content: prompt.into() };
        Self { messages: vec![message], ..Self::default() }
    }

    /// The same with a system prompt.
    #[must_use]
    pub fn with_system(mut self, system: impl Into<String>) -> Self {
        self.system = Some(system.into());
        self
    }
}

/// The model's answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlmReply {
    /// The text of the answer.
    pub text: String,
    /// The model that answered.
    pub model: String,
    /// Why it stopped, in the provider's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// What the call cost, every attempt included.
    pub usage: Usage,
}

/// A request to run a tool, `fs.read` for example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments, a JSON object.
    #[serde(default)]
    pub args: Value,
}

/// What the tool answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolReply {
    /// True when the tool did what was asked; false when it ran and says it could not.
    pub ok: bool,
    /// Its output; a message under `error` when `ok` is false.
    pub output: Value,
}

impl ToolReply {
    /// The output of a tool that did it.
    ///
    /// # Errors
    /// `failed` with the tool's own message, of one that could not.
    pub fn into_output(self) -> Result<Value, CallError> {
        if self.ok {
            return Ok(self.output);
        }
        let message = self.output["error"].as_str().unwrap_or("the tool could not do it");
        Err(CallError { detail: self.output.clone(), ..CallError::failed(message) })
    }
}
