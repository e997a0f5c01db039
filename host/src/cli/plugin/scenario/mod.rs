//! A scenario: one mandate, what the host answers, what goes wrong and when, and what is to come
//! of it. Plain values; reading them from a file, playing them and judging them are apart.

mod drive;
mod judge;
mod read;
mod render;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{CallError, LlmReply, Mandate, ToolReply, Usage};
use serde_json::{Map, Value};

pub use drive::play;
pub use judge::judge;
pub use read::read;
pub use render::{Verdict, human, json, junit, junit_of_failure};

/// One scenario, checked.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// What it shows.
    pub name: String,
    /// The runner's own section of the configuration.
    pub params: Map<String, Value>,
    /// What is to be reached.
    pub mandate: Mandate,
    /// The time at its start; the clock moves only by `takes` of a fault.
    pub now: DateTime<Utc>,
    /// How long an attempt may take on that clock.
    pub deadline: Option<Duration>,
    /// How long one call of the runner may really take.
    pub timeout: Duration,
    /// State left by earlier cycles.
    pub state: Map<String, Value>,
    /// What the host answers, in the order of the questions of each kind.
    pub replies: Vec<Reply>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Play it again with a crash before every step, and demand the same.
    pub cuts: bool,
    /// What is to come of each run. A run that the host ended or that died is followed by the next
    /// attempt of its cycle, one that failed by the same cycle afresh, any other by the next cycle.
    pub expect: Vec<Expect>,
}

/// One answer of the host.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To an LLM call.
    Llm(Result<LlmReply, CallError>),
    /// To a call of this tool, with what the host meters for it.
    Tool(String, Result<(ToolReply, Usage), CallError>),
    /// To a proposal.
    Decision(Value),
}

/// Something that goes wrong at a chosen call.
#[derive(Clone, Debug)]
pub struct Fault {
    /// A method, `tool:NAME` or `any`.
    pub call: String,
    /// From 1.
    pub nth: usize,
    /// What.
    pub what: Strike,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Strike {
    /// The call is answered with this error.
    Answer(CallError),
    /// The call takes so long on the scenario's clock.
    Takes(Duration),
    /// The cycle is asked to end while the call is under way.
    Cancel,
    /// The cycle's time is over while the call is under way.
    Deadline,
    /// The runner is killed just before the call, and the cycle goes on from its record.
    Crash,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.what {
            Strike::Answer(error) => &format!("answer {}", error.code),
            Strike::Takes(time) => &format!("takes {}", crate::config::values::show_duration(*time)),
            Strike::Cancel => "cancel",
            Strike::Deadline => "deadline",
            Strike::Crash => "crash",
        };
        write!(f, "{what} at call {} of {}", self.nth, self.call)
    }
}

/// What is to come of one run; what is absent is not looked at.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// `ok`, `paused`, `error`, or the code of the error that ended it.
    pub status: Option<String>,
    /// Whether it wants another cycle.
    pub more: Option<bool>,
    /// The report's line for people.
    pub summary: Option<Text>,
    /// The report's error, or the message of the error that ended it.
    pub error: Option<Text>,
    /// What the ledger books for this run.
    pub usage: Map<String, Value>,
    /// What the host metered in this run.
    pub metered: Map<String, Value>,
    /// Every recorded step of the cycle, in order.
    pub steps: Option<Vec<StepMatch>>,
    /// Values of the state after it; null for a key that is not there.
    pub state: Map<String, Value>,
    /// All phases, in order.
    pub phases: Option<Vec<String>>,
    /// Lines that were logged, in this order, others between them.
    pub logs: Vec<LogMatch>,
    /// How often the runner was started for it: 1 without a crash.
    pub attempts: Option<u64>,
}

/// A text that is expected.
#[derive(Clone, Debug)]
pub enum Text {
    /// Exactly this.
    Is(String),
    /// This somewhere in it.
    Contains(String),
}

/// A step that is expected.
#[derive(Clone, Debug, Default)]
pub struct StepMatch {
    /// A method, or `tool:NAME`.
    pub call: String,
    /// The phase it fell into.
    pub phase: Option<String>,
    /// Arguments of the tool call; what is absent is not looked at.
    pub args: Option<Value>,
    /// This somewhere in the request.
    pub contains: Option<String>,
    /// The code of its error.
    pub error: Option<String>,
}

/// A log line that is expected.
#[derive(Clone, Debug)]
pub struct LogMatch {
    /// Its level.
    pub level: Option<tracing::Level>,
    /// This somewhere in its message or fields.
    pub contains: String,
}

impl Scenario {
    /// A host with this script, at the scenario's start.
    #[must_use]
    pub fn host(&self) -> FakeHost {
        let mut host = FakeHost::new().at(self.now);
        for (key, value) in &self.state {
            host = host.state(key, value.clone());
        }
        for reply in self.replies.clone() {
            host = match reply {
                Reply::Llm(reply) => host.llm_reply(reply),
                Reply::Tool(name, Ok((reply, usage))) => host.tool_metered(&name, reply, usage),
                Reply::Tool(name, Err(error)) => host.tool_answer(&name, Err(error)),
                Reply::Decision(decision) => host.decision(decision),
            };
        }
        for Fault { call, nth, what } in self.faults.clone() {
            host = match what {
                Strike::Answer(error) => host.fail_at(&call, nth, error),
                Strike::Takes(time) => host.takes(&call, nth, time),
                Strike::Cancel => host.cancel_at(&call, nth),
                Strike::Deadline => host.deadline_at(&call, nth),
                Strike::Crash => host.crash_at(&call, nth),
            };
        }
        host
    }
}
