//! The host as a candidate sees it that is tried on a recorded cycle: every request is answered with
//! what was answered then. Nothing is executed, nothing is paid, nothing is recorded.
//!
//! A request is matched by phase, kind and order, not by its content: a better prompt is the point
//! of a new version. The kind of a tool call is the tool. A request without a match ends the replay.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, SecondsFormat, Utc};
use kairos_plugin_api::context::{HostCalls, method};
use kairos_plugin_api::{CallError, Usage, code};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::record::{Answer, SelfTold};
use crate::store::{RecordedCycle, StepKind, StepRow};

/// Most random bytes of one call, as for a real cycle.
const RANDOM_MAX: u64 = 1024;

/// How many requests of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Effects {
    /// To a language model.
    pub llm: u32,
    /// To tools.
    pub tool: u32,
    /// To a person.
    pub propose: u32,
}

impl Effects {
    fn count(&mut self, call: &str) {
        match call {
            method::LLM => self.llm += 1,
            method::TOOL => self.tool += 1,
            method::PROPOSE => self.propose += 1,
            _ => {}
        }
    }

    /// What a recorded cycle asked for.
    #[must_use]
    pub fn of(cycle: &RecordedCycle) -> Self {
        let mut effects = Self::default();
        cycle.steps.iter().filter_map(Step::of).for_each(|step| effects.count(&step.call));
        effects
    }
}

/// What a recorded cycle booked by itself.
#[must_use]
pub fn told_then(cycle: &RecordedCycle) -> Usage {
    let of = |step: &StepRow| Usage::deserialize(step.result.as_ref()?).ok();
    let told = cycle.steps.iter().filter(|step| step.kind == StepKind::Answer && step.name == method::USAGE);
    told.filter_map(of).fold(Usage::ZERO, Usage::plus)
}

/// What a candidate did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShadowSeen {
    /// What it asked for.
    pub effects: Effects,
    /// The first request that nothing recorded answers.
    pub unmatched: Option<String>,
    /// Usage of the answers that it got.
    pub metered: Usage,
    /// Usage that it booked by itself.
    pub told: Usage,
}

/// A recorded answer and what it was an answer to.
#[derive(Clone, Debug)]
struct Step {
    call: String,
    /// The tool's, for a tool call.
    tool: Option<String>,
    /// Not known of what was refused before it began.
    phase: Option<String>,
    answer: Answer,
}

impl Step {
    /// None for notes about usage, which answer nothing.
    fn of(row: &StepRow) -> Option<Self> {
        let result = row.result.as_ref();
        let lost = || Answer::Error(CallError::failed("its answer was not recorded"));
        let own = |call: &str| Self {
            call: call.to_owned(),
            tool: (call == method::TOOL).then(|| row.name.clone()),
            phase: row.phase.clone(),
            answer: result.and_then(|result| Answer::deserialize(result).ok()).unwrap_or_else(lost),
        };
        match row.kind {
            StepKind::Llm => Some(own(method::LLM)),
            StepKind::Tool => Some(own(method::TOOL)),
            StepKind::Propose => Some(own(method::PROPOSE)),
            StepKind::Answer => {
                let told = SelfTold::deserialize(result?).ok()?;
                let tool = (told.call == method::TOOL).then(|| row.name.clone());
                Some(Self { call: told.call, tool, phase: None, answer: told.answer })
            }
        }
    }

    fn answers(&self, call: &str, tool: Option<&str>, phase: Option<&str>) -> bool {
        self.call == call
            && self.tool.as_deref() == tool
            && (self.phase.is_none() || self.phase.as_deref() == phase)
    }
}

struct Live {
    steps: Vec<Option<Step>>,
    phase: Option<String>,
    now: DateTime<Utc>,
    randoms: u64,
    puts: HashMap<String, Value>,
    seen: ShadowSeen,
}

/// See the module. Shared with the candidate's threads.
pub struct ShadowHost {
    mandate: String,
    state: HashMap<String, Value>,
    deadline: DateTime<Utc>,
    stop: AtomicBool,
    live: Mutex<Live>,
}

impl ShadowHost {
    /// The host of that recorded cycle. `deadline` is the replay's own.
    #[must_use]
    pub fn new(cycle: &RecordedCycle, deadline: DateTime<Utc>) -> Arc<Self> {
        let live = Live {
            steps: cycle.steps.iter().filter_map(Step::of).map(Some).collect(),
            phase: None,
            now: cycle.started_at,
            randoms: 0,
            puts: HashMap::new(),
            seen: ShadowSeen::default(),
        };
        Arc::new(Self {
            mandate: cycle.mandate.id.clone(),
            state: cycle.state.clone(),
            deadline,
            stop: AtomicBool::new(false),
            live: Mutex::new(live),
        })
    }

    /// Asks the candidate to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// What it did so far.
    #[must_use]
    pub fn seen(&self) -> ShadowSeen {
        self.live().seen.clone()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, call: &str, request: &Value) -> Result<Value, CallError> {
        if call == method::PROGRESS {
            return Ok(json!({}));
        }
        let mut live = self.live();
        if call == method::USAGE {
            live.seen.told = live.seen.told.plus(Usage::deserialize(request)?);
            return Ok(json!({}));
        }
        if let Some(what) = &live.seen.unmatched {
            return Err(CallError::new(code::STOPPED, format!("nothing recorded answers {what}")));
        }
        let text = |key: &str| request.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match call {
            method::PHASE => {
                live.phase = Some(text("name"));
                Ok(json!({}))
            }
            method::STATE_GET => {
                let key = text("key");
                Ok(json!({ "value": live.puts.get(&key).or_else(|| self.state.get(&key)) }))
            }
            method::STATE_PUT => {
                live.puts.insert(text("key"), request.get("value").cloned().unwrap_or(Value::Null));
                Ok(json!({}))
            }
            method::NOW => Ok(live.now()),
            method::RANDOM => live.random(&self.mandate, request),
            method::LLM | method::TOOL | method::PROPOSE => live.effect(call, request),
            other => Err(method::unknown(other)),
        }
    }
}

impl Live {
    fn take(&mut self, call: &str, tool: Option<&str>) -> Option<Answer> {
        let phase = self.phase.as_deref();
        let fits =
            |step: &&mut Option<Step>| step.as_ref().is_some_and(|step| step.answers(call, tool, phase));
        self.steps.iter_mut().find(fits)?.take().map(|step| step.answer)
    }

    /// Looking at the clock more often than then changes nothing in the world: it stands still.
    fn now(&mut self) -> Value {
        if let Some(Answer::Ok(answer)) = self.take(method::NOW, None)
            && let Some(now) = answer.get("now").and_then(|now| DateTime::<Utc>::deserialize(now).ok())
        {
            self.now = now;
        }
        json!({ "now": self.now.to_rfc3339_opts(SecondsFormat::Nanos, true) })
    }

    /// The bytes of then, else bytes that are the same in every replay.
    fn random(&mut self, mandate: &str, request: &Value) -> Result<Value, CallError> {
        let bytes = request.get("bytes").and_then(Value::as_u64).filter(|bytes| *bytes <= RANDOM_MAX);
        let Some(bytes) = bytes.and_then(|bytes| usize::try_from(bytes).ok()) else {
            return Err(CallError::invalid(format!("bytes must be from 0 to {RANDOM_MAX}")));
        };
        if let Some(Answer::Ok(answer)) = self.take(method::RANDOM, None)
            && answer.get("hex").and_then(Value::as_str).is_some_and(|hex| hex.len() == 2 * bytes)
        {
            return Ok(answer);
        }
        self.randoms += 1;
        let mut hex = String::new();
        for block in 0_u64.. {
            if hex.len() >= 2 * bytes {
                break;
            }
            hex.push_str(&hex::encode(Sha256::digest(format!("{mandate} {} {block}", self.randoms))));
        }
        hex.truncate(2 * bytes);
        Ok(json!({ "hex": hex }))
    }

    fn effect(&mut self, call: &str, request: &Value) -> Result<Value, CallError> {
        self.seen.effects.count(call);
        let tool = match call {
            method::TOOL => Some(request.get("name").and_then(Value::as_str).unwrap_or_default().to_owned()),
            _ => None,
        };
        let Some(answer) = self.take(call, tool.as_deref()) else {
            let phase = self.phase.as_ref().map_or_else(String::new, |phase| format!(" in phase {phase}"));
            let what =
                format!("{}{phase}", tool.map_or_else(|| call.to_owned(), |tool| format!("{call} {tool}")));
            let error = CallError::new(code::STOPPED, format!("nothing recorded answers {what}"));
            self.seen.unmatched = Some(what);
            return Err(error);
        };
        self.seen.metered = self.seen.metered.plus(answer.usage());
        answer.into_result()
    }
}

impl HostCalls for ShadowHost {
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        let request: Value = serde_json::from_slice(request)?;
        Ok(serde_json::to_vec(&self.answer(method, &request)?)?)
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.live().seen.unmatched.is_some()
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        Some(self.deadline)
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        tracing::trace!(mandate = self.mandate, %level, target, message, %fields, "shadow_log");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kairos_plugin_api::{Context, LlmRequest, Mandate, Report};
    use std::str::FromStr as _;

    fn step(seq: u32, kind: StepKind, name: &str, phase: Option<&str>, result: Value) -> StepRow {
        StepRow {
            cycle: 1,
            seq,
            kind,
            name: name.to_owned(),
            phase: phase.map(ToOwned::to_owned),
            state: crate::store::StepState::Done,
            key: String::new(),
            params_hash: String::new(),
            intent: Value::Null,
            result: Some(result),
            started_at: time(),
            ended_at: None,
        }
    }

    fn time() -> DateTime<Utc> {
        DateTime::from_str("2026-11-22T09:00:00Z").unwrap()
    }

    fn reply(text: &str, calls: u64) -> Value {
        json!({"ok": {"text": text, "model": "m", "usage": {"llm_calls": calls}}})
    }

    fn told(call: &str, answer: Value) -> Value {
        json!({"call": call, "params_hash": "x", "answer": answer})
    }

    fn recorded(steps: Vec<StepRow>) -> RecordedCycle {
        RecordedCycle {
            mandate: Mandate::new("m", "goal"),
            generation: "old".into(),
            started_at: time(),
            steps,
            state: HashMap::from([("seen".to_owned(), json!(3))]),
            report: Report::ok(),
            usage: Usage::ZERO,
        }
    }

    fn on(steps: Vec<StepRow>) -> (Arc<ShadowHost>, Context) {
        let host = ShadowHost::new(&recorded(steps), time());
        (Arc::clone(&host), Context::new(host))
    }

    #[test]
    fn requests_are_answered_by_phase_kind_and_order_whatever_they_say() {
        let (host, ctx) = on(vec![
            step(1, StepKind::Llm, "canned", Some("observe"), reply("first", 1)),
            step(2, StepKind::Llm, "canned", Some("decide"), reply("second", 2)),
            step(3, StepKind::Llm, "canned", Some("observe"), reply("third", 3)),
            step(4, StepKind::Tool, "fs.edit", Some("act"), json!({"ok": {"ok": true, "output": {"n": 1}}})),
        ]);
        ctx.phase("observe").unwrap();
        assert_eq!(ctx.llm(&LlmRequest::user("worded otherwise")).unwrap().text, "first");
        assert_eq!(ctx.llm(&LlmRequest::user("again")).unwrap().text, "third");
        ctx.phase("decide").unwrap();
        assert_eq!(ctx.llm(&LlmRequest::user("now decide")).unwrap().text, "second");
        ctx.phase("act").unwrap();
        assert_eq!(ctx.tool("fs.edit", json!({"path": "elsewhere"})).unwrap().output, json!({"n": 1}));
        let seen = host.seen();
        assert_eq!(seen.effects, Effects { llm: 3, tool: 1, propose: 0 });
        assert_eq!((seen.unmatched, seen.metered.llm_calls), (None, 6));
    }

    #[test]
    fn a_request_that_nothing_answers_ends_the_replay_and_stays_unanswered() {
        for ask in [
            |ctx: &Context| ctx.tool("fs.read", json!({})).map(drop),
            |ctx: &Context| ctx.propose(&json!({})).map(drop),
        ] {
            let (host, ctx) = on(vec![step(1, StepKind::Tool, "fs.edit", None, reply("x", 0))]);
            let error = ask(&ctx).unwrap_err();
            assert_eq!(error.code, code::STOPPED);
            assert!(host.seen().unmatched.is_some() && ctx.should_stop());
            assert_eq!(ctx.tool("fs.edit", json!({})).unwrap_err().code, code::STOPPED, "it has ended");
        }
    }

    #[test]
    fn another_phase_is_no_match() {
        let (host, ctx) = on(vec![step(1, StepKind::Llm, "canned", Some("observe"), reply("first", 1))]);
        ctx.phase("reflect").unwrap();
        ctx.llm(&LlmRequest::user("x")).unwrap_err();
        assert_eq!(host.seen().unmatched.as_deref(), Some("llm in phase reflect"));
    }

    #[test]
    fn what_was_refused_then_is_refused_again_in_its_order() {
        let denied = json!({"error": {"code": "denied", "message": "no"}});
        let (_, ctx) = on(vec![
            step(1, StepKind::Answer, "fs.edit", None, told("tool", denied)),
            step(2, StepKind::Tool, "fs.edit", Some("act"), json!({"ok": {"ok": true, "output": null}})),
        ]);
        ctx.phase("act").unwrap();
        assert_eq!(ctx.tool("fs.edit", json!({})).unwrap_err().code, code::DENIED);
        assert!(ctx.tool("fs.edit", json!({})).unwrap().ok);
    }

    #[test]
    fn time_chance_and_state_are_those_of_then() {
        let now = json!({"ok": {"now": "2026-01-02T03:04:05Z"}});
        let random = json!({"ok": {"hex": "00ff"}});
        let (_, ctx) = on(vec![
            step(1, StepKind::Answer, "now", None, told("now", now)),
            step(2, StepKind::Answer, "random", None, told("random", random)),
            step(3, StepKind::Answer, "usage", None, json!({"llm_calls": 1})),
        ]);
        let then = DateTime::<Utc>::from_str("2026-01-02T03:04:05Z").unwrap();
        assert_eq!(ctx.now().unwrap(), then);
        assert_eq!(ctx.now().unwrap(), then, "it stands still");
        assert_eq!(ctx.random(2).unwrap(), [0, 255]);
        let more = ctx.random(100).unwrap();
        assert_eq!(more.len(), 100);
        assert_ne!(ctx.random(100).unwrap(), more);
        assert_eq!(ctx.state_get::<i64>("seen").unwrap(), Some(3));
        ctx.state_put("seen", &4).unwrap();
        assert_eq!(ctx.state_get::<i64>("seen").unwrap(), Some(4));
        ctx.usage(Usage::ZERO).unwrap();
        ctx.progress("half", Some(0.5));
    }
}
