//! What a cycle says when it ends.

use serde::{Deserialize, Serialize};

use crate::usage::Usage;

/// How a cycle ended, in the runner's own judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The cycle did its work.
    Ok,
    /// The cycle stops here until somebody resumes the mandate.
    Paused,
    /// The cycle did not do its work; see [`Report::error`].
    Error,
}

/// The total of one cycle. The host books, per field, what it metered itself plus whatever
/// is claimed here beyond that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub status: Status,
    /// LLM calls of the whole cycle.
    #[serde(default)]
    pub llm_calls: u64,
    /// Tokens sent.
    #[serde(default)]
    pub input_tokens: u64,
    /// Tokens received.
    #[serde(default)]
    pub output_tokens: u64,
    /// True asks for another cycle of the same mandate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// What went wrong, when the status is `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Report {
    /// A cycle that went well and used nothing; the seed's default result.
    #[must_use]
    pub fn ok() -> Self {
        Self {
            status: Status::Ok,
            llm_calls: 0,
            input_tokens: 0,
            output_tokens: 0,
            more: false,
            summary: None,
            error: None,
        }
    }

    /// A cycle that failed for the stated reason.
    #[must_use]
    pub fn error(message: impl Into<String>) -> Self {
        Self { status: Status::Error, error: Some(message.into()), ..Self::ok() }
    }

    /// A cycle that stops here until somebody resumes the mandate.
    #[must_use]
    pub fn paused(summary: impl Into<String>) -> Self {
        Self { status: Status::Paused, summary: Some(summary.into()), ..Self::ok() }
    }

    /// The same with a line for people.
    #[must_use]
    pub fn with_summary(mut self, summary: impl Into<String>) -> Self {
        self.summary = Some(summary.into());
        self
    }

    /// The same, asking for another cycle.
    #[must_use]
    pub fn with_more(mut self) -> Self {
        self.more = true;
        self
    }

    /// The claimed usage; a report carries no cost.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            llm_calls: self.llm_calls,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            cost_nano_usd: 0,
        }
    }
}
