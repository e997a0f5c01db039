//! The services of one running cycle: each call of its runner is answered from the record as far
//! as that goes, then done, recorded and answered.
//!
//! Effects are serialised: a second one at the same time is told `busy`. Answers that end the
//! attempt stick: every later call gets the same. Recorded are results, errors the cycle can go
//! on with (`denied` and `invalid` too: a re-run under another configuration must see what the
//! cycle saw), `now`, `random` and usage deltas; never `busy`, and never what ends the attempt.
//!
//! However fast a runner calls, what it leaves to be written is bounded: in number by [`limit`], and
//! at any one time by what may wait for the store ([`CycleServices::make_room`]).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use kairos_plugin_api::context::{HostCalls, limit, method};
use kairos_plugin_api::{CallError, LlmRequest, Mandate, Report, Usage, code};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Broker;
use super::handover::Lazy;
use super::imposed::Imposed;
use super::llm::{LlmCall, Position};
use super::record::{Answer, Found, Replay, SelfTold};
use super::stop::{Patience, StopSignal};
use super::watch::Seen;
use crate::domain::canonical;
use crate::domain::talk::{Talk, shortened};
use crate::store::{ClaimedCycle, NoteKind, Pending};

/// Largest request of a runner, in bytes.
const REQUEST_MAX: usize = 8 << 20;
/// Longest name of a phase and longest key of a state, in bytes.
const NAME_MAX: usize = 128;
/// Largest value that a state keeps under one key, in bytes of JSON.
const STATE_VALUE_MAX: usize = 256 << 10;
/// Most that one cycle puts altogether, in bytes of JSON.
const STATE_PUTS_MAX: usize = 1 << 20;
/// Most random bytes of one call.
const RANDOM_MAX: u64 = 1024;
/// Longest refusal that is recorded, in bytes; some quote the request.
const REFUSAL_MAX: usize = 4 << 10;

/// The services of one attempt of a cycle. Shared with the runner's threads.
pub struct CycleServices {
    pub(super) broker: Arc<Broker>,
    pub(super) mandate: Mandate,
    pub(super) runner: String,
    state: HashMap<String, Value>,
    stop: Arc<StopSignal>,
    deadline: Option<DateTime<Utc>>,
    until: Option<Duration>,
    live: Mutex<Live>,
    /// True while an effect is under way.
    turn: AtomicBool,
    pub(super) talk: Mutex<Talk>,
}

/// What changes while the cycle runs.
pub(super) struct Live {
    pub(super) replay: Replay,
    pub(super) phase: Option<String>,
    /// Every phase that the runner named, and every one that a program of its told: these are noted.
    phases: HashSet<String>,
    pub(super) told_phases: HashSet<String>,
    /// Deltas that came after the attempt's end.
    late_deltas: u32,
    pub(super) positions: HashMap<Arc<str>, Position>,
    ending: Option<Imposed>,
    pub(super) metered: Usage,
    deltas: Usage,
    puts: HashMap<String, Value>,
    put_bytes: usize,
    /// Keys that the state did not have.
    new_keys: usize,
    pub(super) lazy: Vec<(Lazy, Pending<()>)>,
    pub(super) seen: Seen,
}

/// Holds the right to make an effect.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl CycleServices {
    pub(super) fn new(
        broker: Arc<Broker>,
        claimed: ClaimedCycle,
        stop: Arc<StopSignal>,
        deadline: Option<DateTime<Utc>>,
    ) -> Self {
        // Durations are measured on the side of the clock that nobody sets.
        let until = deadline.map(|deadline| {
            broker.clock.monotonic() + (deadline - broker.clock.now()).to_std().unwrap_or_default()
        });
        let live = Live {
            replay: Replay::new(claimed.mandate.cycle, claimed.steps),
            phase: None,
            phases: HashSet::new(),
            told_phases: HashSet::new(),
            late_deltas: 0,
            positions: HashMap::new(),
            ending: None,
            metered: Usage::ZERO,
            deltas: Usage::ZERO,
            puts: HashMap::new(),
            put_bytes: 0,
            new_keys: 0,
            lazy: Vec::new(),
            seen: Seen::default(),
        };
        Self {
            broker,
            mandate: claimed.mandate,
            runner: claimed.runner,
            state: claimed.state,
            stop,
            deadline,
            until,
            live: Mutex::new(live),
            turn: AtomicBool::new(false),
            talk: Mutex::new(Talk::default()),
        }
    }

    /// One call of the cycle's context; see [`method`]. Blocks.
    ///
    /// # Errors
    /// The host's answer when there is no result.
    pub fn call(&self, call: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        if request.len() > REQUEST_MAX {
            return Err(CallError::invalid(format!("a request has at most {REQUEST_MAX} bytes")));
        }
        let request: Value = serde_json::from_slice(request)?;
        let answer = match call {
            method::PHASE => self.phase(&request)?,
            method::STATE_GET => self.state_get(&request)?,
            method::STATE_PUT => self.state_put(&request)?,
            method::PROGRESS => self.show(&request)?,
            method::LLM | method::TOOL | method::PROPOSE | method::USAGE | method::NOW | method::RANDOM => {
                let _turn = self.turn()?;
                self.step(call, &request)?
            }
            other => return Err(method::unknown(other)),
        };
        Ok(serde_json::to_vec(&answer)?)
    }

    /// The mandate, as the runner sees it.
    #[must_use]
    pub fn mandate(&self) -> &Mandate {
        &self.mandate
    }

    /// The phase that the runner named last.
    #[must_use]
    pub fn current_phase(&self) -> Option<String> {
        self.live().phase.clone()
    }

    /// Why the host ended this attempt; none if it did not, and the runner's own result counts.
    #[must_use]
    pub fn outcome(&self) -> Option<Imposed> {
        self.live().ending.clone()
    }

    /// Usage of the calls whose results the runner saw, replayed ones included.
    #[must_use]
    pub fn metered(&self) -> Usage {
        self.live().metered
    }

    /// Sum of the deltas that the runner booked, replayed ones included.
    #[must_use]
    pub fn deltas(&self) -> Usage {
        self.live().deltas
    }

    /// What a report claims beyond what was metered and booked: per field, so that metered plus
    /// the greater of the deltas and (report - metered) is what the cycle counts.
    #[must_use]
    pub fn claimed_beyond(&self, report: &Report) -> Usage {
        let live = self.live();
        report.usage().minus(live.metered).max(live.deltas).minus(live.deltas)
    }

    /// The runner's state changes, to land with the finish of a cycle that ended well.
    #[must_use]
    pub fn state_puts(&self) -> HashMap<String, Value> {
        self.live().puts.clone()
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn patience(&self) -> Patience<'_> {
        Patience::new(&self.stop, &*self.broker.clock, self.until)
    }

    /// Ends the attempt. The first reason stays; gives the answer for the runner.
    pub(super) fn end(&self, why: Imposed) -> CallError {
        self.live().ending.get_or_insert(why).answer()
    }

    fn turn(&self) -> Result<Turn<'_>, CallError> {
        if self.turn.swap(true, Ordering::Acquire) {
            return Err(CallError::new(code::BUSY, "another effect of this cycle is under way"));
        }
        Ok(Turn(&self.turn))
    }

    fn ended(&self) -> Result<(), CallError> {
        self.live().ending.as_ref().map_or(Ok(()), |why| Err(why.answer()))
    }

    /// A call that has a place in the record.
    fn step(&self, call: &str, request: &Value) -> Result<Value, CallError> {
        self.make_room()?;
        if call == method::USAGE && self.ended().is_err() {
            // Usage is usage, but this attempt's record is closed: a re-run books its own.
            let late = {
                let mut live = self.live();
                live.late_deltas = live.late_deltas.saturating_add(1);
                live.late_deltas
            };
            return if late > limit::STEPS_MAX { Err(limit::steps()) } else { self.book(request, None) };
        }
        self.ended()?;
        if [method::LLM, method::TOOL, method::PROPOSE].contains(&call) {
            self.patience().check().map_err(|why| self.end(why.into()))?;
        }
        let hash = canonical::hash(request);
        let (seq, found) = {
            let live = self.live();
            (live.replay.next_seq(), live.replay.find(call, &hash, request))
        };
        match found {
            Found::Nothing => self.fresh(call, request, hash),
            Found::Answer(answer, usage) => {
                self.replayed(call, request, usage);
                answer
            }
            Found::Open(step) => self.resume(call, request, &step),
            Found::Diverged(detail) => Err(self.end(Imposed::Diverged { seq, detail })),
            Found::Review { reason, detail } => Err(self.end(Imposed::Review { seq, reason, detail })),
        }
    }

    fn fresh(&self, call: &str, request: &Value, hash: String) -> Result<Value, CallError> {
        if self.live().replay.next_seq() > limit::STEPS_MAX {
            // Not recorded: a re-run comes to the same place and is told the same.
            return Err(limit::steps());
        }
        match call {
            method::LLM => self.llm(request, hash, None),
            method::TOOL => self.tool(request, hash),
            method::USAGE => {
                let seq = self.live().replay.next_seq();
                self.book(request, Some(seq))
            }
            method::NOW => {
                let now = self.broker.clock.now().to_rfc3339_opts(SecondsFormat::Nanos, true);
                self.tell(call, method::NOW, hash, Ok(json!({ "now": now })))
            }
            method::RANDOM => {
                let bytes = request.get("bytes").and_then(Value::as_u64).filter(|bytes| *bytes <= RANDOM_MAX);
                let answer = match bytes {
                    None => Err(CallError::invalid(format!("bytes must be from 0 to {RANDOM_MAX}"))),
                    Some(bytes) => {
                        let mut random = vec![0; usize::try_from(bytes).unwrap_or_default()];
                        self.broker.entropy.fill(&mut random);
                        Ok(json!({ "hex": hex::encode(random) }))
                    }
                };
                self.tell(call, method::RANDOM, hash, answer)
            }
            _ => {
                let error = CallError::new(
                    code::UNSUPPORTED,
                    "this version of the daemon has no approvals: nobody can decide a proposal; do without, or end",
                );
                self.tell(call, method::PROPOSE, hash, Err(error))
            }
        }
    }

    fn replayed(&self, call: &str, request: &Value, usage: Usage) {
        let mut live = self.live();
        live.replay.advance();
        if call == method::USAGE {
            live.deltas = live.deltas.plus(Usage::deserialize(request).unwrap_or_default());
            return;
        }
        live.metered = live.metered.plus(usage);
        if call != method::LLM {
            return;
        }
        let Ok(request) = LlmRequest::deserialize(request) else { return };
        if let Ok(priced) = self.broker.providers.pick(request.provider.as_deref()) {
            let live = &mut *live;
            let phase = live.phase.as_deref();
            let call = LlmCall { request: &request, phase, cycle: self.mandate.cycle };
            priced.replayed(&call, live.positions.entry(Arc::clone(&priced.name)).or_default());
        }
    }

    /// Records an answer that is no effect, or an effect that was refused before it began.
    pub(super) fn tell(
        &self,
        call: &str,
        name: &str,
        params_hash: String,
        answer: Result<Value, CallError>,
    ) -> Result<Value, CallError> {
        let answer =
            answer.map_err(|error| CallError { message: shortened(error.message, REFUSAL_MAX), ..error });
        let told = SelfTold { call: call.to_owned(), params_hash, answer: Answer::of(&answer) };
        let seq = self.live().replay.next_seq();
        let name = shortened(name.to_owned(), NAME_MAX);
        self.note(NoteKind::Answer { seq, name, value: json!(told) });
        self.live().replay.advance();
        answer
    }

    fn book(&self, request: &Value, seq: Option<u32>) -> Result<Value, CallError> {
        let delta = Usage::deserialize(request)?;
        self.note(NoteKind::Usage { delta, day: (self.broker.gate)().day, seq });
        let mut live = self.live();
        live.deltas = live.deltas.plus(delta);
        if seq.is_some() {
            live.replay.advance();
        }
        Ok(json!({}))
    }

    fn phase(&self, request: &Value) -> Result<Value, CallError> {
        self.make_room()?;
        self.ended()?;
        let name: String = field(request, "name")?;
        if !is_phase_name(&name) {
            return Err(CallError::invalid(
                "a phase's name is a word of at most 128 letters, digits, `_`, `-` and `.`",
            ));
        }
        let known = {
            let mut live = self.live();
            let known = live.phases.contains(&name);
            if !known && live.phases.len() == limit::PHASES_MAX {
                return Err(limit::phases());
            }
            live.phase = Some(name.clone());
            live.seen.phase = Some(name.clone());
            if !known {
                live.phases.insert(name.clone());
            }
            known || live.replay.is_replaying()
        };
        // It is noted once, and a turn back to it is none of the record's lines.
        // While steps are left in the record, this was noted before they were.
        if !known {
            self.note(NoteKind::Phase(name));
        }
        Ok(json!({}))
    }

    fn state_get(&self, request: &Value) -> Result<Value, CallError> {
        self.ended()?;
        let key: String = field(request, "key")?;
        let live = self.live();
        Ok(json!({ "value": live.puts.get(&key).or_else(|| self.state.get(&key)) }))
    }

    fn state_put(&self, request: &Value) -> Result<Value, CallError> {
        self.ended()?;
        let key: String = field(request, "key")?;
        let value = request.get("value").cloned().unwrap_or(Value::Null);
        let bytes = value.to_string().len();
        let mut live = self.live();
        if key.is_empty() || key.len() > NAME_MAX {
            return Err(CallError::invalid(format!("a key has from 1 to {NAME_MAX} bytes")));
        }
        if bytes > STATE_VALUE_MAX || live.put_bytes + bytes > STATE_PUTS_MAX {
            return Err(CallError::invalid(format!(
                "{bytes} bytes are too many: {STATE_VALUE_MAX} under a key, {STATE_PUTS_MAX} in a cycle"
            )));
        }
        if !self.state.contains_key(&key) && !live.puts.contains_key(&key) {
            if self.state.len() + live.new_keys >= limit::STATE_KEYS_MAX {
                return Err(limit::state_keys());
            }
            live.new_keys += 1;
        }
        live.put_bytes += bytes;
        live.puts.insert(key, value);
        Ok(json!({}))
    }

    fn show(&self, request: &Value) -> Result<Value, CallError> {
        let message: String = field(request, "message")?;
        self.progressed(&message, request.get("fraction").and_then(Value::as_f64));
        Ok(json!({}))
    }
}

impl HostCalls for CycleServices {
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        Self::call(self, method, request)
    }

    fn should_stop(&self) -> bool {
        self.patience().check().is_err() || self.ended().is_err()
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        self.deadline
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        self.say(level, target, message, fields);
    }
}

pub(super) fn is_phase_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(plain)
}

fn field<T: DeserializeOwned>(request: &Value, name: &str) -> Result<T, CallError> {
    let value = request.get(name).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|error| CallError::invalid(format!("{name}: {error}")))
}
