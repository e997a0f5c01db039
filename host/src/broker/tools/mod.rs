//! Tools a cycle can call: what they touch, what they would change, the change itself, and how
//! to see afterwards whether it happened.
//!
//! A tool never decides whether it may run (policy does), never records anything (the journal
//! does) and never reaches outside what it was made for.

mod beneath;
mod fs;
pub mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kairos_plugin_api::{ToolReply, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use fs::{FsEdit, FsRead, READ_MAX, Workspace};

use super::stop::{Interrupt, Patience};

/// What a call does to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Looks only.
    Read,
    /// May change it.
    Write,
}

/// What a call touches, told before anything is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// How.
    pub access: Access,
    /// The path below the workspace, links resolved; none for a tool without one.
    pub path: Option<PathBuf>,
}

/// What a call is going to do; recorded before it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Intent {
    /// The target, as the tool names it.
    pub target: Option<String>,
    /// Hash of the target now; [`crate::domain::verdict::ABSENT`] for none.
    pub pre_hash: Option<String>,
    /// Hash it will have.
    pub post_hash: Option<String>,
    /// True when doing it twice is the same as doing it once.
    pub repeatable: bool,
    /// The answer, where it is known before the effect.
    pub reply: Option<Value>,
    /// The most it can cost; reserved before it is done.
    #[serde(skip_serializing_if = "is_free")]
    pub reserve: Usage,
}

impl Intent {
    /// The answer that was known before the effect.
    #[must_use]
    pub fn known_reply(&self) -> ToolReply {
        let known = self.reply.as_ref().and_then(|reply| ToolReply::deserialize(reply).ok());
        known.unwrap_or(ToolReply { ok: true, output: Value::Null })
    }
}

fn is_free(reserve: &Usage) -> bool {
    reserve.is_zero()
}

/// What a tool knows of the cycle while it works.
pub struct Course<'a> {
    /// The step's idempotency key, the same on every attempt.
    pub key: &'a str,
    /// How long it may go on.
    pub patience: Patience<'a>,
    /// Who is told how far it is.
    pub watch: &'a dyn Watch,
}

/// Hears of work that takes long, while it goes on. Nothing of it changes the result.
pub trait Watch {
    /// How far it is; `fraction` from 0 to 1 where known.
    fn progress(&self, message: &str, fraction: Option<f64>);
    /// What it calls the part it is in.
    fn phase(&self, name: &str);
    /// A line for the log.
    fn log(&self, level: tracing::Level, message: &str);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Watch for Nobody {
    fn progress(&self, _message: &str, _fraction: Option<f64>) {}
    fn phase(&self, _name: &str) {}
    fn log(&self, _level: tracing::Level, _message: &str) {}
}

/// A call that has its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// The answer.
    pub reply: ToolReply,
    /// What it cost; `None` when nobody knows, and what was reserved counts.
    pub usage: Option<Usage>,
}

impl From<ToolReply> for Done {
    fn from(reply: ToolReply) -> Self {
        Self { reply, usage: Some(Usage::ZERO) }
    }
}

/// Why a call that was begun has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undone {
    /// The effect may have happened or not; says what is known. A person has to look.
    #[error("{0}")]
    Unsure(String),
    /// It was given up half done; the next attempt judges it as after a crash.
    #[error("the call was given up")]
    Interrupted {
        /// Why.
        why: Interrupt,
        /// What it cost, where that is known; otherwise what was reserved counts.
        usage: Option<Usage>,
    },
}

/// Why a call does not run. Both are answers to the runner, recorded like any other.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The arguments make no sense, or name what no tool may touch.
    Invalid(String),
    /// They make sense, and it cannot be done: the tool's own answer.
    Answer(ToolReply),
}

impl Refusal {
    /// The tool's answer that it could not, with a word for programs and a message for people.
    #[must_use]
    pub fn because(code: &str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        Self::Answer(ToolReply { ok: false, output: json!({ "code": code, "error": message }) })
    }

    /// As an answer of the tool, for what is found out only while it runs.
    #[must_use]
    pub fn reply(self) -> ToolReply {
        match self {
            Self::Answer(reply) => reply,
            Self::Invalid(message) => {
                ToolReply { ok: false, output: json!({ "code": "invalid", "error": message }) }
            }
        }
    }
}

/// One tool. Called on runner threads, may block.
pub trait Tool: Send + Sync + 'static {
    /// Its name, `fs.read` for example.
    fn name(&self) -> &'static str;
    /// What a call would touch. Looks at names only, never at content.
    ///
    /// # Errors
    /// Arguments that make no sense.
    fn touch(&self, args: &Value) -> Result<Touch, Refusal>;
    /// What the call is going to do. Changes nothing.
    ///
    /// # Errors
    /// When it cannot be done.
    fn intent(&self, args: &Value, touch: &Touch) -> Result<Intent, Refusal>;
    /// True when the operator lets that runner make the call.
    fn open_to(&self, args: &Value, runner: &str) -> bool {
        let _ = (args, runner);
        true
    }
    /// Does it.
    ///
    /// # Errors
    /// When it has no answer, see [`Undone`].
    fn execute(&self, args: &Value, intent: &Intent, course: &Course<'_>) -> Result<Done, Undone>;
    /// A former attempt began the step with this key, and nobody knows its end. Ends what may be
    /// left of it.
    fn abandoned(&self, key: &str) {
        let _ = key;
    }
    /// The target's hash as it is now, after making durable what is there; `None` when nobody can
    /// tell.
    fn world_hash(&self, intent: &Intent) -> Option<String>;
}

/// The tools there are.
#[derive(Clone, Default)]
pub struct Tools(BTreeMap<&'static str, Arc<dyn Tool>>);

impl Tools {
    /// The built-in ones, confined to a workspace.
    #[must_use]
    pub fn builtin(workspace: &Arc<Workspace>) -> Self {
        let mut tools = Self::default();
        tools.add(Arc::new(FsRead::new(Arc::clone(workspace))));
        tools.add(Arc::new(FsEdit::new(Arc::clone(workspace))));
        tools
    }

    /// Adds one; one of the same name is replaced.
    pub fn add(&mut self, tool: Arc<dyn Tool>) {
        self.0.insert(tool.name(), tool);
    }

    /// The one of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.0.get(name)
    }

    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }
}
