//! A host without a daemon: what a runner's own tests are written against.
//!
//! [`FakeHost`] answers from a script, keeps a clock that moves by hand, records every step and
//! replays the record when the same cycle is run again, as the daemon does after a crash. It
//! must follow the rules of the real host; where it is simpler, it is stricter.
//!
//! ```
//! use kairos_plugin_api::testing::FakeHost;
//! use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report};
//!
//! struct Asks;
//!
//! impl CycleRunner for Asks {
//!     fn new(_params: &serde_json::Value) -> Result<Self, CallError> {
//!         Ok(Self)
//!     }
//!     fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
//!         let reply = ctx.llm(&LlmRequest::user(&mandate.goal))?;
//!         Ok(Report::ok().with_summary(reply.text))
//!     }
//! }
//!
//! let host = FakeHost::new().reply("forty-two");
//! let report = host.run(&Asks, &Mandate::new("m1", "the answer?")).unwrap();
//! assert_eq!(report.summary.as_deref(), Some("forty-two"));
//! assert_eq!(host.steps().len(), 1);
//! ```

mod faults;
mod replay;
mod world;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::adapter::run_guarded;
use crate::context::{Context, HostCalls, method};
use crate::effect::{LlmReply, LlmRequest, ToolReply};
use crate::error::CallError;
use crate::forward::recorded;
use crate::mandate::Mandate;
use crate::report::Report;
use crate::runner::CycleRunner;
use crate::usage::Usage;

pub use faults::ANY;
pub use replay::survives_cuts;
use world::{After, ToolAnswer, World};

/// A scripted host. Clones share one script and one record, so a test can keep one to look at.
#[derive(Clone)]
pub struct FakeHost {
    world: Arc<Mutex<World>>,
}

/// One recorded call with a result that a re-run would see again.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Which call, one of [`crate::context::method`].
    pub method: String,
    /// The phase that the runner had named last.
    pub phase: Option<String>,
    /// What was asked.
    pub request: Value,
    /// What was answered; an error that the runner was given stands here as its JSON.
    pub answer: Result<Value, CallError>,
}

impl Step {
    /// The tool's name; the method's of any other call.
    #[must_use]
    pub fn name(&self) -> &str {
        let tool = (self.method == method::TOOL).then(|| self.request["name"].as_str()).flatten();
        tool.unwrap_or(&self.method)
    }
}

/// One line the runner logged.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// How grave.
    pub level: tracing::Level,
    /// Where from.
    pub target: String,
    /// The text.
    pub message: String,
    /// Everything structured.
    pub fields: Value,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

/// The script. Each of these gives the host back, so that they chain.
impl FakeHost {
    /// A host with an empty script, at 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn new() -> Self {
        Self { world: Arc::new(Mutex::new(World::new())) }
    }

    /// The next LLM call is answered with this text and counts as one call.
    #[must_use]
    pub fn reply(self, text: impl Into<String>) -> Self {
        self.llm_reply(Ok(LlmReply {
            text: text.into(),
            model: "fake".to_owned(),
            stop_reason: Some("end_turn".to_owned()),
            usage: Usage { llm_calls: 1, ..Usage::ZERO },
        }))
    }

    /// The next LLM call is answered so. What a failed one cost stands in its error's detail, as by the
    /// daemon: `{"usage": ..}`.
    #[must_use]
    pub fn llm_reply(self, reply: Result<LlmReply, CallError>) -> Self {
        self.lock().llm.push_back(reply);
        self
    }

    /// LLM calls that find no scripted reply are answered by `answer`.
    #[must_use]
    pub fn llm_with(
        self,
        answer: impl FnMut(&LlmRequest) -> Result<LlmReply, CallError> + Send + 'static,
    ) -> Self {
        self.lock().llm_with = Some(Box::new(answer));
        self
    }

    /// The next call of tool `name` works and puts this out.
    #[must_use]
    pub fn tool_reply(self, name: &str, output: impl Into<Value>) -> Self {
        self.tool_answer(name, Ok(ToolReply { ok: true, output: output.into() }))
    }

    /// The next call of tool `name` is answered so.
    #[must_use]
    pub fn tool_answer(self, name: &str, answer: Result<ToolReply, CallError>) -> Self {
        self.tool_scripted(name, answer.map(|reply| (reply, Usage::ZERO)))
    }

    /// The next call of tool `name` is answered so, and the host meters this for it, as for a program
    /// that it ran: the reply carries it beside `output`, as `usage`.
    #[must_use]
    pub fn tool_metered(self, name: &str, reply: ToolReply, usage: Usage) -> Self {
        self.tool_scripted(name, Ok((reply, usage)))
    }

    fn tool_scripted(self, name: &str, answer: ToolAnswer) -> Self {
        self.lock().tools.entry(name.to_owned()).or_default().push_back(answer);
        self
    }

    /// Calls of tool `name` that find no scripted answer are answered by `answer`.
    #[must_use]
    pub fn tool_with(
        self,
        name: &str,
        answer: impl FnMut(&Value) -> Result<ToolReply, CallError> + Send + 'static,
    ) -> Self {
        self.lock().tools_with.insert(name.to_owned(), Box::new(answer));
        self
    }

    /// The next proposal is decided so, as by a daemon that has approvals. Without a decision a proposal
    /// is answered `unsupported`, as by the daemons there are; `fail_at("propose", 1, ..)` with the code
    /// `paused` is what it is like to wait for a person.
    #[must_use]
    pub fn decision(self, decision: impl Into<Value>) -> Self {
        self.lock().decisions.push_back(decision.into());
        self
    }

    /// The time it is.
    #[must_use]
    pub fn at(self, now: DateTime<Utc>) -> Self {
        self.lock().now = now;
        self
    }

    /// When the cycle's time is over. The host answers `deadline` from then on.
    #[must_use]
    pub fn deadline(self, deadline: DateTime<Utc>) -> Self {
        let mut world = self.lock();
        world.deadline = Some(deadline);
        world.cut_short = None;
        drop(world);
        self
    }

    /// State left by an earlier cycle.
    #[must_use]
    pub fn state(self, key: &str, value: impl Into<Value>) -> Self {
        self.lock().state.insert(key.to_owned(), value.into());
        self
    }
}

/// Running and looking.
impl FakeHost {
    /// Runs one attempt of a cycle and gives the outcome that the daemon would see. What the next run
    /// is, [`next`](Self::next) says: the same cycle from its record, afresh, or the next one.
    ///
    /// # Errors
    /// The cycle's error; `panic` when the runner panicked.
    pub fn run<R: CycleRunner>(&self, runner: &R, mandate: &Mandate) -> Result<Report, CallError> {
        self.attempt(mandate, |host| {
            recorded(&host, || run_guarded(runner, mandate, &Context::new(Arc::clone(&host))).0)
        })
    }

    /// The same for a runner behind something else, a process for example: `run` is given the host
    /// and gives the outcome.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn attempt(
        &self,
        mandate: &Mandate,
        run: impl FnOnce(Arc<dyn HostCalls>) -> Result<Report, CallError>,
    ) -> Result<Report, CallError> {
        self.lock().begin_attempt(mandate.cycle);
        let outcome = run(Arc::new(self.clone()));
        let mut world = self.lock();
        world.end_attempt(&outcome);
        world.worded(outcome)
    }

    /// The mandate as the next run gets it: after an attempt that was stopped, paused, held by the budget
    /// or cut, the same cycle goes on from its record; after an error or the deadline it is tried
    /// afresh; after a report that is `ok` or `paused` it is the next cycle.
    #[must_use]
    pub fn next(&self, mandate: &Mandate) -> Mandate {
        let mut next = mandate.clone();
        if self.lock().after == After::Next {
            next.cycle += 1;
            next.attempt = 1;
        } else {
            next.attempt += 1;
        }
        next
    }

    /// A view of this host for tests that call a part of a runner.
    #[must_use]
    pub fn context(&self) -> Context {
        self.lock().ending = None;
        Context::new(Arc::new(self.clone()))
    }

    /// The time it is.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.lock().now
    }

    /// Time goes on.
    pub fn advance(&self, by: Duration) {
        self.lock().now += by;
    }

    /// Asks the running cycle to end.
    pub fn stop(&self) {
        self.lock().stopping = true;
    }

    /// The recorded steps of the present or last cycle, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.lock().record.clone()
    }

    /// The recorded steps as lines of the write-ahead log, in its words, with the request and the
    /// answer themselves in the place of their hashes.
    #[must_use]
    pub fn wal(&self) -> Vec<Value> {
        let world = self.lock();
        let line = |(at, step): (usize, &Step)| {
            let effect = [method::LLM, method::TOOL, method::PROPOSE].contains(&step.method.as_str());
            let kind = if effect { step.method.as_str() } else { "answer" };
            let (status, key, answer) = match &step.answer {
                Ok(answer) => ("completed", "answer", answer.clone()),
                Err(error) => ("failed", "error", json!(error)),
            };
            json!({"op": "append", "step_id": format!("{kind}_{:03}_{:03}", world.cycle, at + 1), "step": at + 1,
                "kind": kind, "tool": step.name(), "phase": step.phase, "status": status,
                "request": step.request, key: answer})
        };
        world.record.iter().enumerate().map(line).collect()
    }

    /// True when the present or last attempt was cut, as a crash would: its outcome is lost.
    #[must_use]
    pub fn was_cut(&self) -> bool {
        self.lock().was_cut
    }

    /// What the ledger holds after all runs: of each cycle what was metered, and beyond it the
    /// greater of what was booked and what the report claims.
    #[must_use]
    pub fn booked(&self) -> Usage {
        self.lock().booked()
    }

    /// The phases that the present or last attempt went through.
    #[must_use]
    pub fn phases(&self) -> Vec<String> {
        self.lock().phases.clone()
    }

    /// What the host metered itself, over all runs.
    #[must_use]
    pub fn metered(&self) -> Usage {
        self.lock().metered
    }

    /// The sum of what runners booked with [`Context::usage`], over all runs.
    #[must_use]
    pub fn claimed(&self) -> Usage {
        self.lock().claimed
    }

    /// The state as the next cycle will find it.
    #[must_use]
    pub fn landed_state(&self) -> BTreeMap<String, Value> {
        self.lock().state.clone()
    }

    /// What was logged, over all runs: by [`Context::log`], and in [`run`](Self::run) by `tracing` on the
    /// runner's own thread, up to `info`.
    #[must_use]
    pub fn logs(&self) -> Vec<LogLine> {
        self.lock().logs.clone()
    }

    /// What was told about progress in the present or last attempt.
    #[must_use]
    pub fn progress(&self) -> Vec<(String, Option<f64>)> {
        self.lock().progress.clone()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        // A closure of the script may panic in a test; the world is whole even then.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
