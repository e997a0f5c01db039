//! A provider whose replies come from a file: for tests, demonstrations and dry runs. It never
//! touches the network.
//!
//! Each cycle starts at the top of the script. A call takes the first reply that matches it and
//! was not used in this cycle; with `cycle: true` used replies come round again once none is
//! left. So the reply is a function of the cycle's own calls, in their order: the same on every
//! start of the daemon, for every mandate, and in a replay.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kairos_plugin_api::{LlmReply, LlmRequest, Usage};
use serde::Deserialize;
use serde_json::Value;

use super::{DEFAULT_MAX_TOKENS, LlmCall, LlmError, LlmProvider, Position, ProviderSpec, input_bound};
use crate::broker::stop::{Interrupt, Patience};

/// Bytes that count as one token where the script does not say.
const BYTES_PER_TOKEN: u64 = 4;

/// A script as it was read, before it is understood. The file's form is none of the broker's
/// business.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScriptSource {
    /// Where it comes from, for messages.
    pub file: Option<PathBuf>,
    /// `{cycle?, model?, replies: [..]}`, or the list alone.
    pub value: Value,
    /// The line of each reply, as far as known.
    pub lines: Vec<u32>,
}

/// A script that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ScriptError {
    /// The provider it is for.
    pub provider: String,
    /// The file, if one is configured.
    pub file: Option<PathBuf>,
    /// The line, from 1, where it is known.
    pub line: Option<u32>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        write!(f, "LLM provider {:?}: {}", self.provider, self.message)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    #[serde(default)]
    cycle: bool,
    #[serde(default)]
    model: Option<String>,
    replies: Vec<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reply {
    #[serde(default, rename = "match")]
    when: Match,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    json: Option<Value>,
    #[serde(default)]
    usage: Option<Tokens>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    delay_ms: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {
    #[serde(default)]
    phase: Option<String>,
    #[serde(default)]
    cycle: Option<u32>,
    #[serde(default)]
    contains: Option<OneOrMany>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
}

/// The provider.
#[derive(Clone, Debug)]
pub struct Scripted {
    replies: Vec<Reply>,
    comes_round: bool,
    model: String,
    max_tokens: u64,
}

impl Scripted {
    /// Understands a script.
    ///
    /// # Errors
    /// With the line of the reply at fault.
    pub fn new(spec: &ProviderSpec, source: &ScriptSource) -> Result<Self, ScriptError> {
        let wrong = |line: Option<u32>, message: String| ScriptError {
            provider: spec.name.clone(),
            file: source.file.clone(),
            line,
            message,
        };
        let head = match &source.value {
            Value::Array(replies) => Head { cycle: false, model: None, replies: replies.clone() },
            other => Head::deserialize(other).map_err(|error| wrong(None, error.to_string()))?,
        };
        let mut replies = Vec::new();
        for (at, value) in head.replies.into_iter().enumerate() {
            let line = source.lines.get(at).copied();
            let reply: Reply = serde_json::from_value(value)
                .map_err(|error| wrong(line, format!("replies[{at}]: {error}")))?;
            let given = [reply.text.is_some(), reply.json.is_some(), reply.error.is_some()];
            if given.into_iter().filter(|given| *given).count() != 1 {
                return Err(wrong(line, format!("replies[{at}]: give one of `text`, `json`, `error`")));
            }
            replies.push(reply);
        }
        Ok(Self {
            replies,
            comes_round: head.cycle,
            model: spec.model.clone().or(head.model).unwrap_or_else(|| "scripted".to_owned()),
            max_tokens: spec.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
        })
    }

    /// The reply to a call, and the position after it.
    fn next(&self, call: &LlmCall<'_>, position: &Position) -> Option<(&Reply, Position)> {
        let matching: Vec<usize> =
            (0..self.replies.len()).filter(|at| self.replies[*at].when.holds(call)).collect();
        let mut used = position.used.clone();
        let free = matching.iter().find(|at| !used.contains(at));
        let at = match free {
            Some(at) => *at,
            None if self.comes_round => {
                used.retain(|at| !matching.contains(at));
                *matching.first()?
            }
            None => return None,
        };
        used.push(at);
        Some((&self.replies[at], Position { used }))
    }
}

impl LlmProvider for Scripted {
    fn estimate(&self, call: &LlmCall<'_>, position: &Position) -> Usage {
        let general = Usage {
            llm_calls: 1,
            input_tokens: input_bound(call.request),
            output_tokens: call.request.max_tokens.unwrap_or(self.max_tokens),
            cost_nano_usd: 0,
        };
        // What the script will claim is known, so the reservation covers it.
        self.next(call, position).map_or(general, |(reply, _)| general.max(reply.usage(call.request)))
    }

    fn complete(
        &self,
        call: &LlmCall<'_>,
        position: &mut Position,
        patience: &Patience<'_>,
    ) -> Result<LlmReply, LlmError> {
        let Some((reply, after)) = self.next(call, position) else {
            return Err(LlmError::Failed {
                message: format!(
                    "the script has no reply left for call {} of this cycle (phase {})",
                    position.used.len() + 1,
                    call.phase.unwrap_or("none")
                ),
                usage: Usage::ZERO,
            });
        };
        if reply.delay_ms > 0 {
            // Nothing was spent: nobody outside heard of the call.
            let given_up = |why: Interrupt| LlmError::Interrupted { why, usage: Some(Usage::ZERO) };
            patience.wait(Duration::from_millis(reply.delay_ms)).map_err(given_up)?;
        }
        *position = after;
        let usage = reply.usage(call.request);
        if let Some(message) = &reply.error {
            return Err(LlmError::Failed { message: message.clone(), usage });
        }
        Ok(LlmReply {
            text: reply.body(),
            model: call.request.model.clone().unwrap_or_else(|| self.model.clone()),
            stop_reason: Some("end_turn".to_owned()),
            usage,
        })
    }

    fn replayed(&self, call: &LlmCall<'_>, position: &mut Position) {
        if let Some((_, after)) = self.next(call, position) {
            *position = after;
        }
    }
}

impl Reply {
    fn body(&self) -> String {
        match (&self.text, &self.json) {
            (Some(text), _) => text.clone(),
            (None, Some(json)) => json.to_string(),
            (None, None) => String::new(),
        }
    }

    fn usage(&self, request: &LlmRequest) -> Usage {
        let tokens = self.usage.unwrap_or_else(|| Tokens {
            input_tokens: input_bound(request).div_ceil(BYTES_PER_TOKEN),
            output_tokens: (self.body().len() as u64).div_ceil(BYTES_PER_TOKEN),
        });
        Usage {
            llm_calls: 1,
            input_tokens: tokens.input_tokens,
            output_tokens: tokens.output_tokens,
            cost_nano_usd: 0,
        }
    }
}

impl Match {
    fn holds(&self, call: &LlmCall<'_>) -> bool {
        let said = |text: &str| {
            call.request.messages.iter().any(|message| message.content.contains(text))
                || call.request.system.as_deref().is_some_and(|system| system.contains(text))
        };
        self.phase.as_deref().is_none_or(|phase| call.phase == Some(phase))
            && self.cycle.is_none_or(|cycle| call.cycle == cycle)
            && match &self.contains {
                None => true,
                Some(OneOrMany::One(text)) => said(text),
                Some(OneOrMany::Many(texts)) => texts.iter().all(|text| said(text)),
            }
    }
}

#[cfg(test)]
#[path = "scripted_tests.rs"]
mod tests;
