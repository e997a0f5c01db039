//! One suite over the services of a real cycle and the scripted host of the plugin-api: whatever an
//! author learns from the fake must hold in the daemon. Each case is a list of moves, played on both;
//! what a runner can see of it, and what is recorded and booked, must be the same.

use std::time::Duration;

use chrono::{DateTime, Utc};
use kairos_plugin_api::context::{HostCalls, method};
use kairos_plugin_api::testing::FakeHost;
use kairos_plugin_api::{CallError, LlmReply, Mandate, Report, ToolReply, Usage, code};

use super::*;
use crate::broker::tools::{Access, Course, Done, Intent, Refusal, Tool, Touch, Undone};
use crate::domain::mandate::CycleEnd;
use crate::domain::schedule::MandateBounds;
use crate::store::{Limits, MandateCommand, StepKind, Store};

/// One move of a case.
#[derive(Clone, Debug)]
enum Move {
    /// The runner asks.
    Ask(Asked),
    /// The runner asks, and the deadline passes before there is an answer.
    LateIn(Asked),
    /// The daemon wants the cycle to end.
    Stop,
    /// The deadline passes.
    Late,
    /// The attempt ends so, and the next one begins.
    End(Ending),
}

use Move::{Ask, End, Late, LateIn, Stop};

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The host ended it, in whatever way it did.
    Imposed,
    /// `ok`, with a wish for more.
    More,
    /// `paused`, and a person resumes it.
    Paused,
    /// `error`.
    Error,
}

/// What a case starts from.
#[derive(Clone, Copy, Default)]
struct Setting {
    /// The day allows so many LLM calls, until the first end of an attempt.
    calls: Option<usize>,
    /// The deadline passes during this LLM call: what `LateIn` is to the script.
    late_in: Option<usize>,
}

/// A host under test.
trait Subject {
    /// An attempt in which these moves are made, and its end. Gives what was answered.
    fn attempt(&mut self, moves: &[Move], end: Option<Ending>) -> Vec<Value>;
    /// What is recorded of the cycle, a name a step.
    fn steps(&self) -> Vec<String>;
    fn booked(&self) -> Usage;
}

/// What is asked of the model; a word comes before those that are part of it.
const QUESTIONS: [&str; 8] = ["one", "two", "three", "ends", "another", "other", "after", "still there"];
/// The model fails after this, at a cost.
const BROKEN: &str = "broken";
/// The model takes longer for this than any cycle has.
const SLOW: &str = "slow";
/// What any other answer costs, at the prices of the world.
const REPLY: Usage = Usage { llm_calls: 1, input_tokens: 10, output_tokens: 2, cost_nano_usd: 60_000 };
/// A tool that asks a model of its own, and what that costs.
const AGENT: &str = "agent";
const AGENT_COST: Usage = Usage { llm_calls: 3, input_tokens: 70, output_tokens: 9, cost_nano_usd: 40 };

struct Agent;

impl Tool for Agent {
    fn name(&self) -> &'static str {
        AGENT
    }
    fn touch(&self, _args: &Value) -> Result<Touch, Refusal> {
        Ok(Touch { access: Access::Read, path: None })
    }
    fn intent(&self, _args: &Value, _touch: &Touch) -> Result<Intent, Refusal> {
        Ok(Intent { reserve: AGENT_COST, ..Intent::default() })
    }
    fn execute(&self, _args: &Value, _intent: &Intent, _course: &Course<'_>) -> Result<Done, Undone> {
        Ok(Done { reply: worked(), usage: Some(AGENT_COST) })
    }
    fn world_hash(&self, _intent: &Intent) -> Option<String> {
        None
    }
}

fn worked() -> ToolReply {
    ToolReply { ok: true, output: json!({"content": "worked"}) }
}

const MINUTE: Duration = Duration::from_secs(60);

/// What a host under test does to itself.
struct Levers<'a> {
    stop: &'a dyn Fn(),
    late: &'a dyn Fn(),
    /// The deadline is so near that the next call takes longer.
    nearly_late: &'a dyn Fn(),
}

/// Makes the moves of one attempt. Gives what the runner saw, without what may differ.
fn make(moves: &[Move], calls: &dyn HostCalls, levers: &Levers<'_>) -> Vec<Value> {
    let mut seen = vec![];
    for made in moves {
        match made {
            Stop => (levers.stop)(),
            Late => (levers.late)(),
            Ask((call, request)) | LateIn((call, request)) => {
                if matches!(made, LateIn(_)) {
                    (levers.nearly_late)();
                }
                let answer = calls.call(call, request.to_string().as_bytes());
                let answer = answer.map(|answer| serde_json::from_slice::<Value>(&answer).unwrap());
                seen.push(match answer {
                    Err(error) => json!({"error": error.code, "step": error.detail["step"]}),
                    // Which bytes is chance, and which model is the operator's.
                    Ok(answer) if *call == method::RANDOM => json!(answer["hex"].as_str().unwrap().len()),
                    Ok(answer) if *call == method::NOW => {
                        json!(answer["now"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap())
                    }
                    Ok(answer) if *call == method::LLM => {
                        json!([answer["text"], answer["usage"]["input_tokens"], answer["usage"]["llm_calls"]])
                    }
                    Ok(answer) if *call == method::TOOL => {
                        json!([answer["ok"], answer["output"]["content"], answer["usage"]])
                    }
                    Ok(answer) => answer,
                });
            }
            End(_) => unreachable!("ends part the attempts"),
        }
        seen.push(json!(calls.should_stop()));
    }
    seen
}

struct Real {
    world: World,
    services: Arc<CycleServices>,
    /// Steps of attempts of this cycle that failed; they stay in the history, not in the record.
    failed: usize,
}

impl Real {
    fn new(setting: Setting) -> Self {
        // The same answer to the same question, in whichever cycle.
        let reply = |word: &&str| {
            json!({"match": {"contains": word}, "text": format!("to {word}"),
                "usage": {"input_tokens": 10, "output_tokens": 2}})
        };
        let mut replies: Vec<Value> = QUESTIONS.iter().map(reply).collect();
        replies.push(json!({"match": {"contains": BROKEN}, "error": "overloaded",
            "usage": {"input_tokens": 10, "output_tokens": 2}}));
        replies.push(json!({"match": {"contains": SLOW}, "text": "never", "delay_ms": 3_600_000}));
        let bounds = MandateBounds { max_cycles: 10, ..MandateBounds::default() };
        let mut world = World::new(json!({"cycle": true, "replies": replies}), bounds);
        world.more_tools.push(Arc::new(Agent));
        world.limits = Limits { calls: setting.calls.map(|calls| calls as u64), ..Limits::default() };
        let services = Self::start(&world);
        Self { world, services, failed: 0 }
    }

    fn start(world: &World) -> Arc<CycleServices> {
        let deadline = world.clock.now() + MINUTE;
        world.broker().cycle(world.claim(), Arc::clone(&world.stop), Some(deadline))
    }
}

impl Subject for Real {
    fn attempt(&mut self, moves: &[Move], end: Option<Ending>) -> Vec<Value> {
        let levers = Levers {
            stop: &|| self.world.stop.stop(),
            late: &|| self.world.clock.advance(MINUTE),
            nearly_late: &|| self.world.clock.advance(MINUTE - Duration::from_millis(1)),
        };
        let seen = make(moves, &*self.services, &levers);
        let end = match end {
            None => return seen,
            Some(Ending::Imposed) => self.services.outcome().expect("the host ended it").end(),
            Some(Ending::More) => CycleEnd::More,
            Some(Ending::Paused) => CycleEnd::Checkpoint,
            Some(Ending::Error) => CycleEnd::Error,
        };
        self.world.finish(&self.services, end, Usage::ZERO);
        match end {
            CycleEnd::Error => self.failed += self.steps().len(),
            CycleEnd::More | CycleEnd::Checkpoint => self.failed = 0,
            _ => {}
        }
        if [CycleEnd::BudgetPause, CycleEnd::Checkpoint].contains(&end) {
            let now = self.world.clock.now();
            self.world.store.command(ID.to_owned(), MandateCommand::Resume, now).wait().unwrap();
        }
        self.world.limits = Limits::default();
        self.world.stop = StopSignal::new();
        self.services = Self::start(&self.world);
        seen
    }

    fn steps(&self) -> Vec<String> {
        // Results and notes ride on later commits.
        self.services.settle_up(Settling::Certainly).unwrap();
        let cycle = self.services.mandate().cycle;
        let steps = self.world.store.steps(ID).unwrap();
        let of = steps.iter().filter(|step| step.cycle == cycle).skip(self.failed);
        of.map(|step| if step.kind == StepKind::Llm { "llm".to_owned() } else { step.name.clone() }).collect()
    }

    fn booked(&self) -> Usage {
        self.services.settle_up(Settling::Certainly).unwrap();
        self.world.spent()
    }
}

struct Fake {
    host: FakeHost,
    mandate: Mandate,
}

impl Fake {
    fn new(setting: Setting) -> Self {
        let mut host = FakeHost::new().at("2026-11-22T09:00:00Z".parse().unwrap());
        host = host.llm_with(|request| {
            let asked = &request.messages[0].content;
            if asked == BROKEN {
                return Err(CallError { detail: json!({"usage": REPLY}), ..CallError::failed("overloaded") });
            }
            Ok(LlmReply { text: format!("to {asked}"), usage: REPLY, ..LlmReply::default() })
        });
        for _ in 0..4 {
            host = host.tool_metered(AGENT, worked(), AGENT_COST);
        }
        host = host.tool_with("fs.read", |args| match args["path"] == json!("a.md") {
            true => Ok(ToolReply { ok: true, output: json!({"content": "status: open\n"}) }),
            false => Ok(ToolReply { ok: false, output: json!({"error": "no such file"}) }),
        });
        if let Some(calls) = setting.calls {
            host = host.budget_exhausted_at(method::LLM, calls + 1);
        }
        if let Some(nth) = setting.late_in {
            host = host.deadline_at(method::LLM, nth);
        }
        Self { host, mandate: Mandate::new(ID, "close it") }
    }
}

impl Subject for Fake {
    fn attempt(&mut self, moves: &[Move], end: Option<Ending>) -> Vec<Value> {
        let host = self.host.clone().deadline(self.host.now() + MINUTE);
        let mut seen = vec![];
        let _ = host.attempt(&self.mandate, |calls| {
            let levers = Levers {
                stop: &|| self.host.stop(),
                late: &|| self.host.advance(MINUTE),
                nearly_late: &|| {},
            };
            seen = make(moves, &*calls, &levers);
            match end {
                None | Some(Ending::More) => Ok(Report::ok().with_more()),
                Some(Ending::Paused) => Ok(Report::paused("here")),
                Some(Ending::Error) => Ok(Report::error("it failed")),
                // Whatever the runner makes of it.
                Some(Ending::Imposed) => Err(CallError::failed("swallowed")),
            }
        });
        if end.is_some() {
            self.mandate = host.next(&self.mandate);
        }
        seen
    }

    fn steps(&self) -> Vec<String> {
        self.host.steps().iter().map(|step| step.name().to_owned()).collect()
    }

    fn booked(&self) -> Usage {
        self.host.booked()
    }
}

/// Plays a case on a host. Gives everything that must not depend on the host.
fn play(mut subject: impl Subject, moves: &[Move]) -> (Vec<Value>, Vec<String>, Usage) {
    let mut seen = vec![];
    let mut rest = moves;
    while let Some(at) = rest.iter().position(|made| matches!(made, End(_))) {
        let End(end) = rest[at] else { unreachable!("it was found") };
        seen.push(json!(subject.attempt(&rest[..at], Some(end))));
        rest = &rest[at + 1..];
    }
    seen.push(json!(subject.attempt(rest, None)));
    (seen, subject.steps(), subject.booked())
}

/// The case must be the same on both. Gives what was seen, for what it is to be besides.
fn same(name: &str, setting: Setting, moves: &[Move]) -> Vec<Value> {
    let (real, fake) = (play(Real::new(setting), moves), play(Fake::new(setting), moves));
    assert_eq!(fake.0, real.0, "{name}: what a runner sees of the fake, and of the daemon");
    assert_eq!(fake.1, real.1, "{name}: the fake's record, and the daemon's");
    assert_eq!(fake.2, real.2, "{name}: what the fake books, and the daemon");
    real.0
}

fn asks(calls: Vec<Asked>) -> Vec<Move> {
    calls.into_iter().map(Ask).collect()
}

fn read(path: &str) -> Asked {
    tool("fs.read", json!({ "path": path }))
}

fn put(value: u64) -> Asked {
    (method::STATE_PUT, json!({"key": "k", "value": value}))
}

fn get() -> Asked {
    (method::STATE_GET, json!({"key": "k"}))
}

fn usage(tokens: u64) -> Asked {
    (method::USAGE, json!({"input_tokens": tokens}))
}

/// Every kind of call, refusals among them.
fn round() -> Vec<Asked> {
    vec![
        phase("observe"),
        read("a.md"),
        (method::NOW, json!({})),
        (method::RANDOM, json!({"bytes": 4})),
        llm("one"),
        usage(7),
        put(1),
        get(),
        (method::PROPOSE, json!({"what": "more"})),
        tool("no.such", json!({})),
        (method::PROGRESS, json!({"message": "half", "fraction": 0.5})),
        read("none.md"),
        llm("two"),
    ]
}

#[test]
fn the_fake_answers_each_call_as_the_daemon_does() {
    let seen = same("every call", Setting::default(), &asks(round()));
    assert!(seen[0].as_array().unwrap().iter().any(|seen| seen["error"] == "unsupported"), "{seen:?}");
    let wrong = vec![
        ("nonsense", json!({})),
        (method::LLM, json!({"messages": 7})),
        (method::TOOL, json!({"args": {}})),
        (method::USAGE, json!({"input_tokens": -1})),
        (method::USAGE, json!([])),
        (method::PHASE, json!({"name": "a b"})),
        (method::PHASE, json!({})),
        (method::RANDOM, json!({"bytes": 1025})),
        (method::RANDOM, json!({"bytes": "x"})),
        (method::STATE_GET, json!([])),
        (method::STATE_PUT, json!({"key": "", "value": 1})),
        (method::STATE_PUT, json!({"key": "k", "value": "x".repeat(300 << 10)})),
        (method::STATE_PUT, json!({"key": "null"})),
        (method::STATE_GET, json!({"key": "null"})),
        (method::PROGRESS, json!({})),
        llm("still there"),
    ];
    same("calls that make no sense", Setting::default(), &asks(wrong));
}

#[test]
fn the_fake_replays_as_the_daemon_does() {
    // Stopped after each move, and gone through again from the record.
    for cut in 0..=round().len() {
        let mut moves = asks(round().into_iter().take(cut).collect());
        moves.extend([Stop, Ask(llm("ends")), Ask(get()), Ask(usage(3)), End(Ending::Imposed)]);
        moves.extend(asks(round()));
        same(&format!("stopped after {cut} calls"), Setting::default(), &moves);
    }
    // Stopped while it goes through its record.
    let mut moves = asks(round());
    moves.extend([Stop, Ask(llm("ends")), End(Ending::Imposed), Stop]);
    moves.extend(asks(round()));
    moves.push(End(Ending::Imposed));
    moves.extend(asks(round()));
    same("stopped in replay", Setting::default(), &moves);
}

#[test]
fn the_fake_finds_what_differs_from_the_record_as_the_daemon_does() {
    let recorded = [llm("one"), read("a.md"), (method::NOW, json!({})), usage(7)];
    for at in 0..recorded.len() {
        for other in [llm("other"), read("b.md"), (method::RANDOM, json!({"bytes": 1})), usage(8)] {
            let mut moves = asks(recorded.to_vec());
            moves.extend([Stop, Ask(llm("ends")), End(Ending::Imposed)]);
            moves.extend(asks(recorded[..at].to_vec()));
            moves.extend(asks(vec![other.clone(), llm("after"), phase("act"), get()]));
            let seen = same(&format!("{other:?} at {at}"), Setting::default(), &moves);
            let found = seen[1].to_string();
            assert!(found.contains("diverged") && found.contains(&format!("\"step\":{}", at + 1)), "{found}");
        }
    }
}

#[test]
fn the_fake_ends_attempts_as_the_daemon_does() {
    for calls in 0..3 {
        let mut moves =
            asks(vec![llm("one"), read("a.md"), llm("two"), put(2), llm("three"), get(), usage(1)]);
        moves.push(End(Ending::Imposed));
        moves.extend(asks(vec![llm("one"), read("a.md"), llm("two"), put(2), llm("three"), get()]));
        let seen = same(
            &format!("a budget of {calls}"),
            Setting { calls: Some(calls), ..Setting::default() },
            &moves,
        );
        assert!(seen[0].to_string().contains(code::BUDGET_EXHAUSTED), "{seen:?}");
    }
    let mut moves = asks(vec![llm("one"), put(2), usage(5)]);
    moves.extend([Late, Ask((method::NOW, json!({}))), Ask(read("a.md")), Ask(llm("two")), Ask(usage(6))]);
    moves.push(End(Ending::Imposed));
    // Tried afresh: another question is no divergence.
    moves.extend(asks(vec![llm("another"), get(), read("a.md")]));
    let seen = same("the deadline", Setting::default(), &moves);
    assert!(seen[0].to_string().contains(code::DEADLINE), "{seen:?}");
}

#[test]
fn the_fake_lands_state_and_goes_on_as_the_daemon_does() {
    for end in [Ending::More, Ending::Paused, Ending::Error] {
        let mut moves = asks(vec![llm("one"), get(), put(5), get(), usage(9)]);
        moves.push(End(end));
        moves.extend(asks(vec![get(), llm("another"), put(6), usage(1)]));
        moves.extend([Stop, Ask(llm("ends")), End(Ending::Imposed)]);
        moves.extend(asks(vec![get(), llm("another"), get()]));
        let seen = same(&format!("{end:?}"), Setting::default(), &moves);
        let landed = if end == Ending::Error { json!({"value": null}) } else { json!({"value": 5}) };
        assert_eq!((&seen[1][0], &seen[2][0]), (&landed, &landed), "{end:?}");
    }
}

#[test]
fn the_fake_meters_what_tools_and_failed_calls_cost_as_the_daemon_does() {
    let costly = || asks(vec![llm("one"), tool(AGENT, json!({})), llm(BROKEN), usage(7)]);
    for end in [Ending::Imposed, Ending::Error, Ending::More] {
        let mut moves = costly();
        if end == Ending::Imposed {
            moves.extend([Stop, Ask(llm("ends"))]);
        }
        moves.push(End(end));
        // From the record it costs nothing again, afresh it does.
        moves.extend(costly());
        let seen = same(&format!("costs, then {end:?}"), Setting::default(), &moves);
        assert_eq!(seen[0][2], json!([true, "worked", AGENT_COST]), "{seen:?}");
        assert_eq!(seen[0][4]["error"], code::FAILED, "{seen:?}");
    }
}

#[test]
fn the_fake_ends_a_cycle_whose_time_is_over_during_a_call_as_the_daemon_does() {
    for before in 0..3 {
        let mut moves = asks(vec![llm("one"), llm("two"), put(2)].into_iter().take(before).collect());
        moves.extend([LateIn(llm(SLOW)), Ask(usage(6)), Ask(get()), Ask(llm("after")), End(Ending::Imposed)]);
        // Tried afresh, with a time of its own.
        moves.extend(asks(vec![llm("another"), get(), tool(AGENT, json!({}))]));
        let setting = Setting { late_in: Some(before.min(2) + 1), ..Setting::default() };
        let seen = same(&format!("late after {before} calls"), setting, &moves);
        assert_eq!(seen[0][2 * before]["error"], code::DEADLINE, "{seen:?}");
    }
}
