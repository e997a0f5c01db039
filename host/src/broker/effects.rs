//! The effects themselves: an LLM call, a tool call, and what becomes of one that a crash cut in
//! two. Every path here ends in a recorded result, an open step that can be judged again, or a
//! person; never in a guess.

use std::sync::Arc;

use kairos_plugin_api::context::method;
use kairos_plugin_api::{CallError, LlmRequest, ToolCall, Usage, code};
use serde::Deserialize;
use serde_json::{Value, json};

use super::handover::Intended;
use super::imposed::Imposed;
use super::journal::CycleServices;
use super::llm::{LlmCall, LlmError};
use super::tools::{Course, Done, Intent, Refusal, Tool, Undone};
use crate::domain::verdict::{self, Ruling};
use crate::store::{StepKind, StepRow, StepState};

/// Largest request that is kept word for word in an intent, in bytes of JSON. A redo has the
/// runner's own request; this is for people and for comparing generations.
const INTENT_MAX: usize = 64 << 10;

/// What the runner is told without anything being done.
type Answered = Result<Value, CallError>;

impl CycleServices {
    /// An LLM call. `open` is the step that a former attempt began and did not settle.
    pub(super) fn llm(
        &self,
        request: &Value,
        params_hash: String,
        open: Option<&StepRow>,
    ) -> Result<Value, CallError> {
        let refuse = |error: CallError| match open {
            None => self.tell(method::LLM, method::LLM, params_hash.clone(), Err(error)),
            Some(_) => {
                // The place in the record is taken; what was reserved then stays counted.
                let answer = Err(error);
                self.settle(&answer, None, false);
                answer
            }
        };
        let asked: LlmRequest = match LlmRequest::deserialize(request) {
            Ok(asked) => asked,
            Err(error) => return refuse(CallError::invalid(format!("request: {error}"))),
        };
        let priced = match self.broker.providers.pick(asked.provider.as_deref()) {
            Ok(priced) => priced,
            Err(error) => return refuse(CallError::invalid(error.to_string())),
        };
        let (phase, mut position) = {
            let live = self.live();
            (live.phase.clone(), live.positions.get(&priced.name).cloned().unwrap_or_default())
        };
        let call = LlmCall { request: &asked, phase: phase.as_deref(), cycle: self.mandate.cycle };
        let intent = json!({ "provider": &*priced.name, "request": bounded(request) });
        self.begin(Intended {
            kind: StepKind::Llm,
            name: priced.name.to_string(),
            params_hash,
            intent,
            reserve: priced.estimate(&call, &position),
        })?;
        let (answer, usage) = match priced.complete(&call, &mut position, &self.patience()) {
            Ok(reply) => (Ok(json!(reply)), reply.usage),
            Err(LlmError::Interrupted { why, usage }) => {
                self.hand_over(StepState::Executing, Value::Null, usage, false);
                return Err(self.end(why.into()));
            }
            Err(LlmError::Failed { message, usage }) => (Err(failed(code::FAILED, message, usage)), usage),
            Err(LlmError::Invalid(message)) => (Err(CallError::invalid(message)), Usage::ZERO),
        };
        self.live().positions.insert(Arc::clone(&priced.name), position);
        self.settle(&answer, Some(usage), false);
        answer
    }

    /// A tool call that was not begun before.
    pub(super) fn tool(&self, request: &Value, params_hash: String) -> Result<Value, CallError> {
        let call = match ToolCall::deserialize(request) {
            Ok(call) => call,
            Err(error) => {
                let error = CallError::invalid(format!("request: {error}"));
                return self.tell(method::TOOL, method::TOOL, params_hash, Err(error));
            }
        };
        let (tool, intent) = match self.judged(&call) {
            Ok(judged) => judged,
            Err(answer) => return self.tell(method::TOOL, &call.name, params_hash, answer),
        };
        let key = self.begin_tool(&call, params_hash, &intent)?;
        self.carry_out(&**tool, &call, &intent, &key)
    }

    fn begin_tool(&self, call: &ToolCall, params_hash: String, intent: &Intent) -> Result<String, CallError> {
        let mut recorded = json!(intent);
        recorded["args"] = bounded(&call.args);
        self.begin(Intended {
            kind: StepKind::Tool,
            name: call.name.clone(),
            params_hash,
            intent: recorded,
            reserve: intent.reserve,
        })
    }

    fn carry_out(
        &self,
        tool: &dyn Tool,
        call: &ToolCall,
        intent: &Intent,
        key: &str,
    ) -> Result<Value, CallError> {
        let course = Course { key, patience: self.patience(), watch: self };
        self.settled_tool(tool.execute(&call.args, intent, &course))
    }

    /// The tool and what it is going to do, or the answer that it does nothing.
    fn judged(&self, call: &ToolCall) -> Result<(&Arc<dyn Tool>, Intent), Answered> {
        let tools = &self.broker.tools;
        let Some(tool) = tools.get(&call.name) else {
            let known: Vec<&str> = tools.names().collect();
            let message = format!("there is no tool {:?}; there are: {}", call.name, known.join(", "));
            return Err(Err(CallError::invalid(message)));
        };
        let touch = tool.touch(&call.args).map_err(refused)?;
        if !tool.open_to(&call.args, &self.runner) {
            let message =
                format!("{} with these arguments is not open to runner {:?}", call.name, self.runner);
            return Err(Err(CallError::new(code::DENIED, message)));
        }
        let phase = self.live().phase.clone();
        self.broker
            .policy
            .allow(&call.name, &touch, phase.as_deref(), &self.mandate)
            .map_err(|denied| Err(CallError::new(code::DENIED, denied.to_string())))?;
        Ok((tool, tool.intent(&call.args, &touch).map_err(refused)?))
    }

    fn settled_tool(&self, done: Result<Done, Undone>) -> Result<Value, CallError> {
        match done {
            Ok(Done { reply, usage }) => {
                let mut reply = json!(reply);
                // A replay meters from the record what was metered here.
                if let Some(usage) = usage.filter(|usage| !usage.is_zero()) {
                    reply["usage"] = json!(usage);
                }
                let answer = Ok(reply);
                self.settle(&answer, usage, false);
                answer
            }
            Err(Undone::Unsure(detail)) => Err(self.give_to_a_person("outcome_unknown", detail)),
            Err(Undone::Interrupted { why, usage }) => {
                self.hand_over(StepState::Executing, Value::Null, usage, false);
                Err(self.end(why.into()))
            }
        }
    }

    /// A step that a former attempt began and that has no result: the world decides.
    pub(super) fn resume(&self, call: &str, request: &Value, step: &StepRow) -> Result<Value, CallError> {
        match (call, step.kind) {
            (method::LLM, _) => self.llm(request, step.params_hash.clone(), Some(step)),
            (method::TOOL, _) => self.resume_tool(request, step),
            _ => {
                let detail = format!("step {} of kind {:?} cannot be open", step.seq, step.kind);
                Err(self.give_to_a_person("record_unreadable", detail))
            }
        }
    }

    fn resume_tool(&self, request: &Value, step: &StepRow) -> Result<Value, CallError> {
        let call = ToolCall::deserialize(request)?;
        let (Some(tool), Ok(intent)) = (self.broker.tools.get(&call.name), Intent::deserialize(&step.intent))
        else {
            let detail = format!("tool {:?} is not there any more, or its intent is unreadable", call.name);
            return Err(self.give_to_a_person("tool_unknown", detail));
        };
        tool.abandoned(&step.key);
        let world = tool.world_hash(&intent);
        let judged = verdict::judge(
            &verdict::Intent {
                kind: verdict::Kind::Tool,
                name: &step.name,
                pre_hash: intent.pre_hash.as_deref(),
                post_hash: intent.post_hash.as_deref(),
                repeatable: intent.repeatable,
            },
            world.as_deref(),
        );
        tracing::info!(
            mandate = self.mandate.id,
            cycle = self.mandate.cycle,
            step = step.seq,
            tool = step.name,
            ruling = ?judged.ruling,
            reason = judged.reason,
            "step_recovered"
        );
        match judged.ruling {
            Ruling::AlreadyDone => {
                let answer = Ok(json!(intent.known_reply()));
                self.settle(&answer, Some(Usage::ZERO), true);
                answer
            }
            Ruling::SafeToRetry => {
                if !intent.reserve.is_zero() {
                    // What the former attempt reserved counts as spent; this one reserves its own.
                    self.begin_tool(&call, step.params_hash.clone(), &intent)?;
                }
                self.carry_out(&**tool, &call, &intent, &step.key)
            }
            Ruling::ManualReview => {
                let target = intent.target.unwrap_or_default();
                let detail = match world {
                    Some(world) => format!("{target} is neither as before nor as after: {world:?}"),
                    None => format!("nothing in the world says what became of {target}"),
                };
                Err(self.give_to_a_person(judged.reason, detail))
            }
        }
    }

    fn give_to_a_person(&self, reason: &str, detail: String) -> CallError {
        let evidence = json!({ "reason": reason, "detail": detail });
        self.hand_over(StepState::NeedsReview, evidence, None, false);
        let seq = self.live().replay.next_seq();
        self.end(Imposed::Review { seq, reason: reason.to_owned(), detail })
    }
}

fn refused(refusal: Refusal) -> Answered {
    match refusal {
        Refusal::Invalid(message) => Err(CallError::invalid(message)),
        Refusal::Answer(reply) => Ok(json!(reply)),
    }
}

fn failed(word: &str, message: String, usage: Usage) -> CallError {
    CallError { detail: json!({ "usage": usage }), ..CallError::new(word, message) }
}

fn bounded(request: &Value) -> Value {
    let bytes = request.to_string().len();
    if bytes <= INTENT_MAX { request.clone() } else { json!({ "left_out_bytes": bytes }) }
}
