//! A world with a store, a workspace and a model that counts, in which attempts are run and cut.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::TimeZone;
use kairos_plugin_api::context::method;
use kairos_plugin_api::{CallError, LlmReply, Report, Usage};

use super::*;
use crate::broker::llm::{LlmCall, LlmError, LlmProvider, Position, Price, ProviderKind, ProviderSpec};
use crate::broker::llm::{ScriptSource, Scripted};
use crate::broker::stop::Patience;
use crate::broker::tools::{Course, Done, FsEdit, FsRead, Intent, Refusal, Tool, Touch, Undone, Workspace};
use crate::domain::mandate::CycleEnd;
use crate::domain::schedule::{MandateBounds, Overlap};
use crate::store::{
    BudgetGate, ClaimRequest, ClaimedCycle, FinishRequest, Finished, Limits, NewMandate, Origin,
    RecoverRequest, RunnerOffer, SqliteStore, Store,
};
use crate::sys::clock::ManualClock;
use crate::sys::entropy::SeededEntropy;

pub const DAY: &str = "2026-11-22";
pub const ID: &str = "20261122T090000Z-manual-00000001";

/// Where the world ends, as a kill would end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// Just before the nth effect is really done.
    Before(usize),
    /// Just after it, before anybody hears of it.
    After(usize),
}

/// Counts what is really done, and kills where it is told to.
#[derive(Default)]
pub struct Deeds {
    pub kill: Mutex<Option<Kill>>,
    done: AtomicUsize,
    pub llm: Mutex<Vec<String>>,
    pub tools: Mutex<Vec<String>>,
    pub usage: Mutex<Usage>,
}

impl Deeds {
    fn doing<T>(&self, deed: impl FnOnce() -> T) -> T {
        let nth = self.done.fetch_add(1, Ordering::SeqCst);
        let kill = *self.kill.lock().unwrap();
        if kill == Some(Kill::Before(nth)) {
            panic!("killed before effect {nth}");
        }
        let result = deed();
        if kill == Some(Kill::After(nth)) {
            panic!("killed after effect {nth}");
        }
        result
    }

    pub fn count(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }
}

struct Watched<T> {
    inner: T,
    deeds: Arc<Deeds>,
}

impl LlmProvider for Watched<Scripted> {
    fn estimate(&self, call: &LlmCall<'_>, position: &Position) -> Usage {
        self.inner.estimate(call, position)
    }

    fn complete(
        &self,
        call: &LlmCall<'_>,
        position: &mut Position,
        patience: &Patience<'_>,
    ) -> Result<LlmReply, LlmError> {
        self.deeds.doing(|| {
            let reply = self.inner.complete(call, position, patience);
            if let Ok(reply) = &reply {
                self.deeds.llm.lock().unwrap().push(reply.text.clone());
                let mut usage = self.deeds.usage.lock().unwrap();
                *usage = usage.plus(reply.usage);
            }
            reply
        })
    }

    fn replayed(&self, call: &LlmCall<'_>, position: &mut Position) {
        self.inner.replayed(call, position);
    }
}

impl<T: Tool> Tool for Watched<T> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn touch(&self, args: &Value) -> Result<Touch, Refusal> {
        self.inner.touch(args)
    }

    fn intent(&self, args: &Value, touch: &Touch) -> Result<Intent, Refusal> {
        self.inner.intent(args, touch)
    }

    fn execute(&self, args: &Value, intent: &Intent, course: &Course<'_>) -> Result<Done, Undone> {
        self.deeds.doing(|| {
            self.deeds.tools.lock().unwrap().push(self.name().to_owned());
            self.inner.execute(args, intent, course)
        })
    }

    fn world_hash(&self, intent: &Intent) -> Option<String> {
        self.inner.world_hash(intent)
    }
}

/// Everything one mandate lives in.
pub struct World {
    pub dir: tempfile::TempDir,
    pub store: SqliteStore,
    pub clock: ManualClock,
    pub deeds: Arc<Deeds>,
    pub limits: Limits,
    pub day: String,
    pub script: Value,
    pub stop: Arc<StopSignal>,
    pub without_tools: bool,
    pub more_tools: Vec<Arc<dyn Tool>>,
}

impl World {
    pub fn new(script: Value, bounds: MandateBounds) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.md"), "status: open\n").unwrap();
        let now = Utc.with_ymd_and_hms(2026, 11, 22, 9, 0, 0).unwrap();
        let store = SqliteStore::in_memory().unwrap();
        let mandate = NewMandate {
            id: ID.to_owned(),
            origin: Origin::Manual,
            request_id: None,
            schedule: None,
            nominal: None,
            goal: "close it".to_owned(),
            runner: "loop".to_owned(),
            scope: None,
            overlap: Overlap::Queue,
            bounds,
            again: false,
            now,
        };
        store.add(mandate).wait().unwrap();
        Self {
            dir,
            store,
            clock: ManualClock::at(now),
            deeds: Arc::default(),
            limits: Limits::default(),
            day: DAY.to_owned(),
            script,
            stop: StopSignal::new(),
            without_tools: false,
            more_tools: Vec::new(),
        }
    }

    /// A script without an end: `{"n": 1}`, `{"n": 2}`, ..., each 10 tokens in and 2 out.
    pub fn counting() -> Self {
        let replies: Vec<Value> = (1..=20)
            .map(|n| json!({"json": {"n": n}, "usage": {"input_tokens": 10, "output_tokens": 2}}))
            .collect();
        Self::new(json!(replies), MandateBounds::default())
    }

    pub fn broker(&self) -> Arc<Broker> {
        let workspace = Workspace::open(self.dir.path()).unwrap();
        let deeds = || Arc::clone(&self.deeds);
        let mut tools = Tools::default();
        if !self.without_tools {
            tools.add(Arc::new(Watched { inner: FsRead::new(Arc::clone(&workspace)), deeds: deeds() }));
            tools.add(Arc::new(Watched { inner: FsEdit::new(workspace), deeds: deeds() }));
        }
        self.more_tools.iter().for_each(|tool| tools.add(Arc::clone(tool)));
        let source = ScriptSource { value: self.script.clone(), ..ScriptSource::default() };
        let kind = ProviderKind::Scripted(source.clone());
        let spec =
            ProviderSpec { name: "canned".into(), kind, model: None, max_tokens: Some(50), price: None };
        let specs = [ProviderSpec {
            name: "claude".into(),
            kind: ProviderKind::Unserved("anthropic".into()),
            ..spec.clone()
        }];
        let mut providers = Providers::build(Some("canned".into()), &specs).unwrap();
        let script = Scripted::new(&spec, &source).unwrap();
        let price = Price::from_usd_per_mtok(3.0, 15.0).unwrap();
        providers.add("canned", Arc::new(Watched { inner: script, deeds: deeds() }), price);
        let gate = BudgetGate { day: self.day.clone(), limits: self.limits };
        Arc::new(Broker {
            store: Arc::new(self.store.clone()),
            clock: Arc::new(self.clock.clone()),
            entropy: Arc::new(SeededEntropy::new(7)),
            gate: Arc::new(move || gate.clone()),
            providers,
            tools,
            policy: Policy::default(),
        })
    }

    pub fn services(&self, claimed: ClaimedCycle) -> Arc<CycleServices> {
        self.broker().cycle(claimed, Arc::clone(&self.stop), None)
    }

    /// Starts the mandate's cycle, as dispatch does.
    pub fn claim(&self) -> ClaimedCycle {
        let offer = RunnerOffer { generation: "g1".to_owned(), phases: true, commands: None };
        let request = ClaimRequest {
            now: self.clock.now(),
            max: 1,
            gate: None,
            offers: Arc::new(HashMap::from([("loop".to_owned(), offer)])),
        };
        self.store.claim(request).wait().unwrap().claimed.pop().expect("the mandate can start")
    }

    /// A kill and a new start.
    pub fn crash(&mut self) -> ClaimedCycle {
        self.store = self.store.crash(None).unwrap();
        let recovered = self.store.recover(RecoverRequest { now: self.clock.now() }).wait().unwrap();
        recovered.running.into_iter().next().expect("it was running")
    }

    pub fn finish(&self, services: &CycleServices, end: CycleEnd, claimed: Usage) -> Finished {
        services.settle_up(Settling::Lazily).unwrap();
        let mandate = services.mandate();
        let imposed = services.outcome();
        let request = FinishRequest {
            mandate: mandate.id.clone(),
            cycle: mandate.cycle,
            attempt: mandate.attempt,
            now: self.clock.now(),
            day: self.day.clone(),
            end,
            reason: imposed.as_ref().and_then(Imposed::reason).map(str::to_owned),
            report: Some(Report::ok()),
            error: None,
            claimed,
            state_puts: match end {
                CycleEnd::Done | CycleEnd::More | CycleEnd::Checkpoint => services.state_puts(),
                _ => HashMap::new(),
            },
            pause_after_failures: None,
            claim: None,
        };
        let finished = self.store.finish(request).wait().unwrap();
        services.settle_up(Settling::Certainly).unwrap();
        finished
    }

    /// Ends the attempt as a drain does and starts the next one.
    pub fn interrupt(&mut self, services: &CycleServices) -> ClaimedCycle {
        self.finish(services, CycleEnd::Interrupted, Usage::ZERO);
        self.stop = StopSignal::new();
        self.claim()
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(self.path("a.md")).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn spent(&self) -> Usage {
        let totals = self.store.day(DAY).unwrap();
        assert_eq!(totals.reserved, Usage::ZERO, "nothing stays reserved");
        totals.spent
    }

    pub fn llm_calls(&self) -> usize {
        self.deeds.llm.lock().unwrap().len()
    }
}

/// One call of a runner and the answer it got.
pub type Asked = (&'static str, Value);
/// What it was answered.
pub type Answered = Result<Value, CallError>;

pub fn ask(services: &CycleServices, (call, request): &Asked) -> Answered {
    let answer = services.call(call, request.to_string().as_bytes())?;
    Ok(serde_json::from_slice(&answer).unwrap())
}

/// Asks in order until the end, an answer that ends the attempt, or a kill.
pub fn ask_all(services: &CycleServices, calls: &[Asked]) -> Result<Vec<Answered>, &'static str> {
    let mut answers = Vec::new();
    for call in calls {
        let answer = catch_unwind(AssertUnwindSafe(|| ask(services, call))).map_err(|_| "killed")?;
        let over = answer.as_ref().is_err_and(CallError::ends_attempt);
        answers.push(answer);
        if over {
            break;
        }
    }
    Ok(answers)
}

pub fn llm(prompt: &str) -> Asked {
    (method::LLM, json!({"messages": [{"role": "user", "content": prompt}]}))
}

pub fn tool(name: &str, args: Value) -> Asked {
    (method::TOOL, json!({"name": name, "args": args}))
}

pub fn phase(name: &str) -> Asked {
    (method::PHASE, json!({ "name": name }))
}

pub fn edit(old: &str, new: &str) -> Asked {
    tool("fs.edit", json!({"path": "a.md", "old": old, "new": new}))
}

/// A cycle that uses every kind of call, with refusals in it, and changes the file twice.
pub fn everything() -> Vec<Asked> {
    vec![
        phase("observe"),
        (method::NOW, json!({})),
        tool("fs.read", json!({"path": "a.md"})),
        tool("fs.edit", json!({"path": "a.md", "old": "open", "new": "lost"})),
        tool("fs.read", json!({"path": ".kairos/config/daemon.yml"})),
        phase("orient"),
        llm("how do things stand?"),
        (method::USAGE, json!({"llm_calls": 1, "input_tokens": 5})),
        (method::RANDOM, json!({"bytes": 16})),
        phase("decide"),
        llm("what is to be done?"),
        tool("no.such", json!({})),
        (method::STATE_PUT, json!({"key": "k", "value": 1})),
        phase("act"),
        edit("open", "half"),
        edit("nothing like it", "x"),
        edit("half", "done"),
        (method::STATE_GET, json!({"key": "k"})),
        phase("reflect"),
        (method::PROPOSE, json!({"what": "more"})),
        llm("what came of it?"),
        (method::PROGRESS, json!({"message": "nearly", "fraction": 0.9})),
    ]
}
