//! What is recorded of a cycle and how a re-run reads it: a queue of steps, each of which must be
//! asked for again exactly as it was. Must never answer a request with another one's result.

use std::collections::VecDeque;

use kairos_plugin_api::context::method;
use kairos_plugin_api::{CallError, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::store::{StepKind, StepRow, StepState};

/// The name under which the store keeps a usage delta.
const USAGE_STEP: &str = "usage";

/// A step's result as it is stored: the answer the runner saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The call gave this.
    Ok(Value),
    /// The call gave an error that the cycle could go on with.
    Error(CallError),
}

impl Answer {
    pub(super) fn of(result: &Result<Value, CallError>) -> Self {
        match result {
            Ok(value) => Self::Ok(value.clone()),
            Err(error) => Self::Error(error.clone()),
        }
    }

    pub(super) fn into_result(self) -> Result<Value, CallError> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Error(error) => Err(error),
        }
    }

    /// What the call cost; stands in the reply, or in the error's detail.
    pub(super) fn usage(&self) -> Usage {
        let holder = match self {
            Self::Ok(value) => value,
            Self::Error(error) => &error.detail,
        };
        holder.get("usage").and_then(|usage| Usage::deserialize(usage).ok()).unwrap_or_default()
    }
}

/// An answer that has no step of its own kind: `now`, `random`, and effects that were refused
/// before they began. Says itself what it answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SelfTold {
    pub call: String,
    pub params_hash: String,
    pub answer: Answer,
}

/// What the record says to a request.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing: the cycle has come to where it was.
    Nothing,
    /// The answer of then, and what it cost.
    Answer(Result<Value, CallError>, Usage),
    /// The step was begun and has no result.
    Open(Box<StepRow>),
    /// Another request was recorded here.
    Diverged(Value),
    /// Only a person can say how to go on.
    Review { reason: String, detail: String },
}

/// The recorded steps of a cycle, in order, and where the re-run stands.
#[derive(Debug)]
pub(super) struct Replay {
    steps: VecDeque<StepRow>,
    next: u32,
}

impl Replay {
    pub(super) fn new(cycle: u32, steps: Vec<StepRow>) -> Self {
        let mut steps: Vec<StepRow> = steps.into_iter().filter(|step| step.cycle == cycle).collect();
        steps.sort_by_key(|step| step.seq);
        Self { steps: steps.into(), next: 1 }
    }

    /// Position of the next step.
    pub(super) fn next_seq(&self) -> u32 {
        self.next
    }

    /// True while recorded steps are left.
    pub(super) fn is_replaying(&self) -> bool {
        !self.steps.is_empty()
    }

    /// The step at hand has its answer.
    pub(super) fn advance(&mut self) {
        if self.steps.front().is_some_and(|step| step.seq == self.next) {
            self.steps.pop_front();
        }
        self.next += 1;
    }

    /// What is recorded at the position at hand. Does not move it.
    pub(super) fn find(&self, call: &str, params_hash: &str, request: &Value) -> Found {
        let Some(step) = self.steps.front() else { return Found::Nothing };
        if step.seq != self.next {
            return Found::Review {
                reason: "record_incomplete".to_owned(),
                detail: format!("step {} is missing in the record", self.next),
            };
        }
        if !asks_the_same(step, call, params_hash, request) {
            return Found::Diverged(json!({
                "step": step.seq,
                "recorded": {"kind": step.kind, "name": step.name, "params_hash": step.params_hash},
                "asked": {"call": call, "params_hash": params_hash},
            }));
        }
        match step.state {
            StepState::Executing => Found::Open(Box::new(step.clone())),
            StepState::NeedsReview => Found::Review {
                reason: "needs_review".to_owned(),
                detail: format!("step {} ({}) waits for a person's verdict", step.seq, step.name),
            },
            StepState::Done => match answer_of(step) {
                Some(answer) => {
                    let usage = answer.usage();
                    Found::Answer(answer.into_result(), usage)
                }
                None => Found::Review {
                    reason: "record_unreadable".to_owned(),
                    detail: format!("the result of step {} cannot be read", step.seq),
                },
            },
        }
    }
}

fn kind_of(call: &str) -> StepKind {
    match call {
        method::LLM => StepKind::Llm,
        method::TOOL => StepKind::Tool,
        method::PROPOSE => StepKind::Propose,
        _ => StepKind::Answer,
    }
}

fn asks_the_same(step: &StepRow, call: &str, params_hash: &str, request: &Value) -> bool {
    if step.kind != StepKind::Answer {
        return step.kind == kind_of(call) && step.params_hash == params_hash;
    }
    if call == method::USAGE || step.name == USAGE_STEP {
        let same = |recorded: &Value| Usage::deserialize(recorded).ok() == Usage::deserialize(request).ok();
        return call == method::USAGE && step.name == USAGE_STEP && step.result.as_ref().is_some_and(same);
    }
    self_told(step).is_some_and(|told| told.call == call && told.params_hash == params_hash)
}

fn self_told(step: &StepRow) -> Option<SelfTold> {
    SelfTold::deserialize(step.result.as_ref()?).ok()
}

fn answer_of(step: &StepRow) -> Option<Answer> {
    match step.kind {
        StepKind::Answer if step.name == USAGE_STEP => Some(Answer::Ok(json!({}))),
        StepKind::Answer => self_told(step).map(|told| told.answer),
        _ => Answer::deserialize(step.result.as_ref()?).ok(),
    }
}
