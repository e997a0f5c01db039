//! Language models: who answers a request, what is reserved for it and what it costs.
//!
//! A provider only talks to its model. It never records, never checks a budget and never
//! retries past a stop: the journal does the first two, [`Patience`] says when to give up.

mod price;
mod scripted;

use std::collections::BTreeMap;
use std::sync::Arc;

use kairos_plugin_api::{LlmReply, LlmRequest, Usage};

pub use price::Price;
pub use scripted::{ScriptError, ScriptSource, Scripted};

use super::stop::{Interrupt, Patience};

/// Tokens to receive when neither request nor configuration says how many.
pub const DEFAULT_MAX_TOKENS: u64 = 2048;
/// Longest text of a reply, in bytes; a longer one is a failed call, paid all the same.
pub const REPLY_MAX: usize = 4 << 20;

/// One call, as a provider sees it.
#[derive(Clone, Copy, Debug)]
pub struct LlmCall<'a> {
    /// What is asked.
    pub request: &'a LlmRequest,
    /// The phase that asks, if the runner named one.
    pub phase: Option<&'a str>,
    /// The cycle that asks, from 1.
    pub cycle: u32,
}

/// What a provider remembers of one cycle: a function of the calls of that cycle, so that a
/// replay arrives at the same. Never kept beyond the attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Replies of a script that are used up, by index.
    pub used: Vec<usize>,
}

/// Why a call gave no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LlmError {
    /// The request cannot be served as it is; nothing was spent.
    #[error("{0}")]
    Invalid(String),
    /// The call was made and did not work.
    #[error("{message}")]
    Failed {
        /// Why, for people.
        message: String,
        /// What it cost nevertheless.
        usage: Usage,
    },
    /// The call was given up.
    #[error("the call was given up")]
    Interrupted {
        /// Why.
        why: Interrupt,
        /// What it cost, where that is known; otherwise the reservation counts.
        usage: Option<Usage>,
    },
}

/// A source of replies. Called on runner threads, may block.
pub trait LlmProvider: Send + Sync + 'static {
    /// What a call can cost at most: calls, tokens; the money is filled in by the caller.
    fn estimate(&self, call: &LlmCall<'_>, position: &Position) -> Usage;
    /// Makes the call.
    ///
    /// # Errors
    /// See [`LlmError`].
    fn complete(
        &self,
        call: &LlmCall<'_>,
        position: &mut Position,
        patience: &Patience<'_>,
    ) -> Result<LlmReply, LlmError>;
    /// A call that this cycle made before is being replayed from the record.
    fn replayed(&self, call: &LlmCall<'_>, position: &mut Position) {
        let _ = (call, position);
    }
}

/// A provider as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderSpec {
    /// Its name, which requests use.
    pub name: String,
    /// What it talks to.
    pub kind: ProviderKind,
    /// The model to name in replies where the script names none.
    pub model: Option<String>,
    /// Tokens to receive where a request does not say.
    pub max_tokens: Option<u64>,
    /// What tokens cost; nothing when absent.
    pub price: Option<Price>,
}

/// What a provider talks to.
#[derive(Clone, Debug, PartialEq)]
pub enum ProviderKind {
    /// Replies from a file.
    Scripted(ScriptSource),
    /// A word the configuration knows (`anthropic`, `openai`) and this version does not serve.
    Unserved(String),
}

/// A provider together with its price.
#[derive(Clone)]
pub struct Priced {
    /// Its name.
    pub name: Arc<str>,
    provider: Arc<dyn LlmProvider>,
    price: Price,
}

impl Priced {
    /// What to reserve for a call.
    #[must_use]
    pub fn estimate(&self, call: &LlmCall<'_>, position: &Position) -> Usage {
        self.price.applied(self.provider.estimate(call, position))
    }

    /// Makes the call; usage carries its cost.
    ///
    /// # Errors
    /// See [`LlmError`].
    pub fn complete(
        &self,
        call: &LlmCall<'_>,
        position: &mut Position,
        patience: &Patience<'_>,
    ) -> Result<LlmReply, LlmError> {
        let priced = |usage| self.price.applied(usage);
        match self.provider.complete(call, position, patience) {
            Ok(reply) if reply.text.len() > REPLY_MAX => Err(LlmError::Failed {
                message: format!("the reply has {} bytes, more than {REPLY_MAX}", reply.text.len()),
                usage: priced(reply.usage),
            }),
            Ok(reply) => Ok(LlmReply { usage: priced(reply.usage), ..reply }),
            Err(LlmError::Failed { message, usage }) => {
                Err(LlmError::Failed { message, usage: priced(usage) })
            }
            Err(LlmError::Interrupted { why, usage }) => {
                Err(LlmError::Interrupted { why, usage: usage.map(priced) })
            }
            Err(error @ LlmError::Invalid(_)) => Err(error),
        }
    }

    /// See [`LlmProvider::replayed`].
    pub fn replayed(&self, call: &LlmCall<'_>, position: &mut Position) {
        self.provider.replayed(call, position);
    }
}

enum Entry {
    Served(Priced),
    Unserved { kind: String },
}

/// The configured providers.
#[derive(Default)]
pub struct Providers {
    default: Option<String>,
    entries: BTreeMap<String, Entry>,
}

impl Providers {
    /// Builds what can be served. A kind that is not served is no error here, only for the
    /// mandate that asks for it.
    ///
    /// # Errors
    /// Every script that cannot be used.
    pub fn build(default: Option<String>, specs: &[ProviderSpec]) -> Result<Self, Vec<ScriptError>> {
        let mut providers = Self { default, entries: BTreeMap::new() };
        let mut errors = Vec::new();
        for spec in specs {
            match &spec.kind {
                ProviderKind::Unserved(kind) => {
                    let entry = Entry::Unserved { kind: kind.clone() };
                    providers.entries.insert(spec.name.clone(), entry);
                }
                ProviderKind::Scripted(source) => match Scripted::new(spec, source) {
                    Ok(script) => {
                        providers.add(&spec.name, Arc::new(script), spec.price.unwrap_or_default());
                    }
                    Err(error) => errors.push(error),
                },
            }
        }
        if errors.is_empty() { Ok(providers) } else { Err(errors) }
    }

    /// Adds one that is built already; one of the same name is replaced.
    pub fn add(&mut self, name: &str, provider: Arc<dyn LlmProvider>, price: Price) {
        let entry = Entry::Served(Priced { name: name.into(), provider, price });
        self.entries.insert(name.to_owned(), entry);
    }

    /// The one to serve a request.
    ///
    /// # Errors
    /// [`LlmError::Invalid`] that says what there is.
    pub fn pick(&self, name: Option<&str>) -> Result<&Priced, LlmError> {
        let Some(name) = name.or(self.default.as_deref()) else {
            return Err(LlmError::Invalid(
                "no LLM provider is configured; set llm.default and llm.providers in daemon.yml".into(),
            ));
        };
        match self.entries.get(name) {
            Some(Entry::Served(priced)) => Ok(priced),
            Some(Entry::Unserved { kind }) => Err(LlmError::Invalid(format!(
                "LLM provider {name:?} is of kind {kind:?}; this version serves only kind \"scripted\""
            ))),
            None => {
                let known: Vec<&str> = self.entries.keys().map(String::as_str).collect();
                Err(LlmError::Invalid(format!(
                    "there is no LLM provider {name:?}; configured: [{}]",
                    known.join(", ")
                )))
            }
        }
    }
}

/// A bound of the tokens in a request: no tokenizer makes more tokens than there are bytes, and
/// each message costs a few more.
#[must_use]
pub fn input_bound(request: &LlmRequest) -> u64 {
    const PER_MESSAGE: usize = 8;
    let system = request.system.as_ref().map_or(0, |text| text.len() + PER_MESSAGE);
    let messages: usize =
        request.messages.iter().map(|message| message.content.len() + message.role.len() + PER_MESSAGE).sum();
    let schema = request.response_schema.as_ref().map_or(0, |schema| schema.to_string().len());
    (system + messages + schema) as u64
}
