//! The inside of [`FakeHost`]: the script, the record, and the answers that follow from both.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::faults::Fault;
use super::{FakeHost, LogLine, Step};
use crate::context::{HostCalls, limit, method};
use crate::effect::{LlmReply, LlmRequest, ToolCall, ToolReply};
use crate::error::{CallError, code};
use crate::report::{Report, Status};
use crate::usage::Usage;

type LlmAnswers = Box<dyn FnMut(&LlmRequest) -> Result<LlmReply, CallError> + Send>;
/// With what the host meters for it.
pub(super) type ToolAnswer = Result<(ToolReply, Usage), CallError>;
type ToolAnswers = Box<dyn FnMut(&Value) -> Result<ToolReply, CallError> + Send>;

/// Largest request of a runner, longest name of a phase and key of a state, largest value under one
/// key and most that one cycle puts, all in bytes, and most random bytes of one call: the daemon's.
const REQUEST_MAX: usize = 8 << 20;
const NAME_MAX: usize = 128;
const STATE_VALUE_MAX: usize = 256 << 10;
const STATE_PUTS_MAX: usize = 1 << 20;
const RANDOM_MAX: u64 = 1024;

/// Everything behind the lock.
pub(super) struct World {
    pub now: DateTime<Utc>,
    pub deadline: Option<DateTime<Utc>>,
    /// The deadline as it was set, in an attempt whose time the script ended.
    pub cut_short: Option<Option<DateTime<Utc>>>,
    pub stopping: bool,
    pub llm: VecDeque<Result<LlmReply, CallError>>,
    pub llm_with: Option<LlmAnswers>,
    pub tools: HashMap<String, VecDeque<ToolAnswer>>,
    pub tools_with: HashMap<String, ToolAnswers>,
    pub decisions: VecDeque<Value>,
    pub faults: Vec<Fault>,
    pub state: BTreeMap<String, Value>,
    pub record: Vec<Step>,
    pub phases: Vec<String>,
    pub metered: Usage,
    pub claimed: Usage,
    pub logs: Vec<LogLine>,
    pub progress: Vec<(String, Option<f64>)>,
    /// Before which step the attempt is cut, and its outcome lost.
    pub cut: Option<usize>,
    pub was_cut: bool,
    /// The answer that ended the attempt.
    pub ending: Option<CallError>,
    pub cycle: u32,
    pub(super) position: usize,
    pub(super) asked: HashMap<String, usize>,
    /// Of the present cycle, and what the cycles before it came to.
    cycle_metered: Usage,
    cycle_claimed: Usage,
    settled: Usage,
    put_bytes: usize,
    puts: BTreeMap<String, Value>,
    random: u64,
    busy: bool,
    saw_stop: bool,
    pub(super) after: After,
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The same cycle, from its record.
    Continues,
    /// The same cycle, with an empty record.
    Afresh,
    /// The next cycle.
    Next,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            now: DateTime::from_timestamp(1_767_225_600, 0).expect("a valid time"),
            deadline: None,
            cut_short: None,
            stopping: false,
            llm: VecDeque::new(),
            llm_with: None,
            tools: HashMap::new(),
            tools_with: HashMap::new(),
            decisions: VecDeque::new(),
            faults: Vec::new(),
            state: BTreeMap::new(),
            record: Vec::new(),
            phases: Vec::new(),
            metered: Usage::ZERO,
            claimed: Usage::ZERO,
            logs: Vec::new(),
            progress: Vec::new(),
            cut: None,
            was_cut: false,
            ending: None,
            cycle: 1,
            position: 0,
            asked: HashMap::new(),
            cycle_metered: Usage::ZERO,
            cycle_claimed: Usage::ZERO,
            settled: Usage::ZERO,
            put_bytes: 0,
            puts: BTreeMap::new(),
            random: 0x9e37_79b9_7f4a_7c15,
            busy: false,
            saw_stop: false,
            after: After::Continues,
        }
    }

    pub(super) fn begin_attempt(&mut self, cycle: u32) {
        if self.after != After::Continues {
            self.record.clear();
            self.after = After::Continues;
        }
        self.cycle = cycle;
        self.position = 0;
        self.stopping = false;
        self.saw_stop = false;
        self.ending = None;
        self.was_cut = false;
        if let Some(set) = self.cut_short.take() {
            self.deadline = set;
        }
        self.puts.clear();
        self.put_bytes = 0;
        self.phases.clear();
        self.progress.clear();
    }

    pub(super) fn end_attempt(&mut self, outcome: &Result<Report, CallError>) {
        if self.cut.take().is_some() || self.was_cut {
            self.was_cut = true;
            return;
        }
        self.after = self.follows(outcome);
        if self.after == After::Continues {
            return;
        }
        let claim = outcome.as_ref().map_or(Usage::ZERO, Report::usage).minus(self.cycle_metered);
        self.settled = self.settled.plus(self.cycle_metered).plus(claim.max(self.cycle_claimed));
        (self.cycle_metered, self.cycle_claimed) = (Usage::ZERO, Usage::ZERO);
        // What a re-run will do again must not have landed.
        if self.after == After::Next {
            self.state.append(&mut self.puts);
        }
    }

    /// What the daemon makes of an outcome. What the host imposed counts before what the runner says.
    fn follows(&self, outcome: &Result<Report, CallError>) -> After {
        let told_to_end = match self.stopping && !self.late() {
            true => After::Continues,
            false => After::Afresh,
        };
        if let Some(imposed) = &self.ending {
            return if imposed.code == code::DEADLINE { After::Afresh } else { After::Continues };
        }
        match outcome {
            Ok(report) if report.status != Status::Error => After::Next,
            Ok(_) if self.saw_stop => told_to_end,
            Ok(_) => After::Afresh,
            Err(error) => match error.code.as_str() {
                code::PAUSED => After::Next,
                code::STOPPED | code::DEADLINE => told_to_end,
                code::DIED => After::Continues,
                _ => After::Afresh,
            },
        }
    }

    /// The outcome as the daemon words it: a cycle that ends because its time is over failed of that.
    pub(super) fn worded(&self, outcome: Result<Report, CallError>) -> Result<Report, CallError> {
        match outcome {
            Err(error) if error.code == code::STOPPED && self.late() && !self.was_cut => {
                Err(CallError { code: code::DEADLINE.to_owned(), ..error })
            }
            other => other,
        }
    }

    pub(super) fn booked(&self) -> Usage {
        self.settled.plus(self.cycle_metered).plus(self.cycle_claimed)
    }

    fn meter(&mut self, usage: Usage) {
        self.metered = self.metered.plus(usage);
        self.cycle_metered = self.cycle_metered.plus(usage);
    }

    fn claim(&mut self, delta: Usage) {
        self.claimed = self.claimed.plus(delta);
        self.cycle_claimed = self.cycle_claimed.plus(delta);
    }

    /// Remembers an answer that ended the attempt: every later call gets the same.
    fn note(&mut self, answer: &Result<Value, CallError>) {
        if let Err(error) = answer
            && error.ends_attempt()
        {
            self.ending.get_or_insert_with(|| error.clone());
        }
    }

    /// The recorded answer to the step at hand, if it was recorded, or that it differs.
    fn replay(&mut self, method: &str, request: &Value) -> Option<Result<Value, CallError>> {
        let number = self.position;
        let step = self.record.get(number)?;
        if step.method != method || &step.request != request {
            let (number, recorded) = (number + 1, json!({"call": step.method, "request": step.request}));
            let mut error =
                CallError::new(code::DIVERGED, format!("step {number} differs from the recorded one"));
            error.detail =
                json!({"step": number, "recorded": recorded, "asked": {"call": method, "request": request}});
            return Some(Err(error));
        }
        self.position += 1;
        Some(step.answer.clone())
    }

    fn keep(&mut self, method: &str, request: Value, answer: &Result<Value, CallError>) {
        if answer.as_ref().is_err_and(CallError::ends_attempt) {
            return;
        }
        let phase = self.phases.last().cloned();
        self.record.push(Step { method: method.to_owned(), phase, request, answer: answer.clone() });
        self.position += 1;
    }

    /// Calls that are no step: they have no result, or one that follows from the record.
    fn plain(&mut self, method: &str, request: &Value) -> Result<Value, CallError> {
        match method {
            method::PHASE => {
                let name = text(request, "name")?;
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
                if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
                    return Err(CallError::invalid(
                        "a phase's name is a word of at most 128 letters, digits, `_`, `-` and `.`",
                    ));
                }
                let known: HashSet<&String> = self.phases.iter().collect();
                if known.len() == limit::PHASES_MAX && !known.contains(&name) {
                    return Err(limit::phases());
                }
                self.phases.push(name);
            }
            method::PROGRESS => {
                self.progress.push((text(request, "message")?, request["fraction"].as_f64()));
            }
            method::STATE_GET => {
                let key = text(request, "key")?;
                return Ok(json!({ "value": self.puts.get(&key).or_else(|| self.state.get(&key)) }));
            }
            method::STATE_PUT => {
                let key = text(request, "key")?;
                let bytes = request["value"].to_string().len();
                if key.is_empty() || key.len() > NAME_MAX {
                    return Err(CallError::invalid(format!("a key has from 1 to {NAME_MAX} bytes")));
                }
                if bytes > STATE_VALUE_MAX || self.put_bytes + bytes > STATE_PUTS_MAX {
                    return Err(CallError::invalid(format!(
                        "{bytes} bytes are too many: {STATE_VALUE_MAX} under a key, {STATE_PUTS_MAX} in a cycle"
                    )));
                }
                if !self.state.contains_key(&key) && !self.puts.contains_key(&key) {
                    let own = self.puts.keys().filter(|key| !self.state.contains_key(*key)).count();
                    if self.state.len() + own >= limit::STATE_KEYS_MAX {
                        return Err(limit::state_keys());
                    }
                }
                self.put_bytes += bytes;
                self.puts.insert(key, request["value"].clone());
            }
            other => return Err(method::unknown(other)),
        }
        Ok(json!({}))
    }

    fn random_hex(&mut self, request: &Value) -> Result<Value, CallError> {
        let bytes = request["bytes"].as_u64().filter(|bytes| *bytes <= RANDOM_MAX);
        let bytes = bytes.ok_or_else(|| CallError::invalid("random gives at most 1024 bytes"))?;
        let mut hex = String::new();
        for _ in 0..bytes {
            // xorshift64: unlike from call to call, and the same in every run of a test.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            hex.push_str(&format!("{:02x}", self.random >> 56));
        }
        Ok(json!({ "hex": hex }))
    }
}

impl FakeHost {
    fn answer(&self, method: &str, request: &Value) -> Result<Value, CallError> {
        {
            let mut world = self.lock();
            if let Some(ending) = world.ending.clone() {
                // Usage is usage, but the record of this attempt is closed; progress is for eyes.
                if method == method::USAGE && world.cut.is_none() {
                    world.claim(parse(request)?);
                    return Ok(json!({}));
                }
                if method != method::PROGRESS {
                    return Err(ending);
                }
            }
        }
        let answer = if is_step(method) { self.step(method, request) } else { self.plain(method, request) };
        self.lock().note(&answer);
        answer
    }

    fn plain(&self, method: &str, request: &Value) -> Result<Value, CallError> {
        let mut world = self.lock();
        match world.refusal(method, request) {
            Some(error) => Err(error),
            None => world.plain(method, request),
        }
    }

    fn step(&self, method: &str, request: &Value) -> Result<Value, CallError> {
        {
            let mut world = self.lock();
            if world.busy {
                return Err(CallError::new(code::BUSY, "another effect of this cycle is under way"));
            }
            if world.cut == Some(world.position) {
                return Err(world.crash());
            }
            if let Some(over) = is_effect(method).then(|| world.over()).flatten() {
                return Err(over);
            }
            if let Some(recorded) = world.replay(method, request) {
                return recorded;
            }
            if world.position >= limit::STEPS_MAX as usize {
                return Err(limit::steps());
            }
            if method == method::USAGE {
                // Nothing is recorded of what cannot be read.
                parse::<Usage>(request)?;
            }
            if let Some(error) = world.refusal(method, request) {
                let answer = Err(error);
                world.keep(method, request.clone(), &answer);
                return answer;
            }
            world.busy = true;
        }
        // Closures of the script run without the lock: they may move the clock or stop the host.
        let answer = self.execute(method, request);
        let mut world = self.lock();
        world.busy = false;
        if [method::LLM, method::TOOL].contains(&method) {
            world.meter(cost_of(&answer));
        }
        world.keep(method, request.clone(), &answer);
        answer
    }

    fn execute(&self, method: &str, request: &Value) -> Result<Value, CallError> {
        match method {
            method::LLM => to_value(&self.ask_model(&parse(request)?)?),
            method::TOOL => self.run_tool(&parse(request)?),
            method::PROPOSE => {
                let decision = self.lock().decisions.pop_front();
                let without = "there are no approvals here; script a `decision` to be a host that has them";
                decision.ok_or_else(|| CallError::new(code::UNSUPPORTED, without))
            }
            method::USAGE => {
                let delta: Usage = parse(request)?;
                self.lock().claim(delta);
                Ok(json!({}))
            }
            method::NOW => Ok(json!({ "now": self.lock().now })),
            _ => self.lock().random_hex(request),
        }
    }

    fn ask_model(&self, request: &LlmRequest) -> Result<LlmReply, CallError> {
        let scripted = self.lock().llm.pop_front();
        if let Some(reply) = scripted {
            return reply;
        }
        let taken = self.lock().llm_with.take();
        let Some(mut answer) = taken else {
            return Err(CallError::failed("the script has no reply left for this LLM call"));
        };
        let reply = answer(request);
        self.lock().llm_with = Some(answer);
        reply
    }

    fn run_tool(&self, call: &ToolCall) -> Result<Value, CallError> {
        let scripted = self.lock().tools.get_mut(&call.name).and_then(VecDeque::pop_front);
        if let Some(scripted) = scripted {
            let (reply, usage) = scripted?;
            let mut reply = to_value(&reply)?;
            if !usage.is_zero() {
                reply["usage"] = to_value(&usage)?;
            }
            return Ok(reply);
        }
        let taken = self.lock().tools_with.remove(&call.name);
        let Some(mut answer) = taken else {
            let left = if self.lock().tools.contains_key(&call.name) { " left: all were given" } else { "" };
            return Err(CallError::invalid(format!(
                "the script has no answer of tool {:?}{left}",
                call.name
            )));
        };
        let reply = answer(&call.args);
        self.lock().tools_with.insert(call.name.clone(), answer);
        to_value(&reply?)
    }
}

impl HostCalls for FakeHost {
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        if request.len() > REQUEST_MAX {
            return Err(CallError::invalid(format!("a request has at most {REQUEST_MAX} bytes")));
        }
        let request: Value = serde_json::from_slice(request)?;
        let answer = self.answer(method, &request)?;
        Ok(serde_json::to_vec(&answer)?)
    }

    fn should_stop(&self) -> bool {
        let mut world = self.lock();
        let stop = world.over().is_some() || world.ending.is_some();
        world.saw_stop |= stop;
        stop
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        self.lock().deadline
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        let line =
            LogLine { level, target: target.to_owned(), message: message.to_owned(), fields: fields.clone() };
        self.lock().logs.push(line);
    }
}

/// Calls whose answers are recorded.
fn is_step(method: &str) -> bool {
    [method::LLM, method::TOOL, method::PROPOSE, method::USAGE, method::NOW, method::RANDOM].contains(&method)
}

/// Calls that a host refuses once the cycle should end.
pub(super) fn is_effect(method: &str) -> bool {
    [method::LLM, method::TOOL, method::PROPOSE].contains(&method)
}

/// What an effect cost stands in its reply, or in its error's detail.
fn cost_of(answer: &Result<Value, CallError>) -> Usage {
    let holder = answer.as_ref().unwrap_or_else(|error| &error.detail);
    parse(&holder["usage"]).unwrap_or_default()
}

fn text(request: &Value, key: &str) -> Result<String, CallError> {
    let text = request[key].as_str().map(str::to_owned);
    text.ok_or_else(|| CallError::invalid(format!("{key} must be a text")))
}

fn parse<T: DeserializeOwned>(request: &Value) -> Result<T, CallError> {
    Ok(serde_json::from_value(request.clone())?)
}

fn to_value<T: Serialize>(value: &T) -> Result<Value, CallError> {
    Ok(serde_json::to_value(value)?)
}
