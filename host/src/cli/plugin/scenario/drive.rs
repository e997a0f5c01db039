//! Plays a scenario: a real runner in its isolation, against the scripted host of the plugin-api.
//! Every call of the runner has a real time limit; one that is past it is ended and reported.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use kairos_plugin_api::testing::{FakeHost, LogLine, Step};
use kairos_plugin_api::{CallError, Mandate, Report, Usage, code};
use serde_json::{Map, Value};

use super::Scenario;
use crate::runner::{HostCalls, LoadError, RunnerBackend, RunnerError};

/// Given to a runner that is told to end, before it is killed.
const GRACE: Duration = Duration::from_secs(1);
/// Crashes of one run after which something else than the scenario is wrong.
const MOST_CRASHES: u64 = 1000;
/// Most replays of a scenario with `cuts`; beyond it they are spread over all steps.
const MOST_CUTS: usize = 500;

/// Codes of what a runner's own constructor did.
const OF_THE_RUNNER: [&str; 4] = ["setup_refused", "panic_in_new", "crashed", "load_timeout"];
/// The code of a runner that did not end in time.
const HUNG: &str = "hung";
/// What can come of a run beside what a host answers.
pub const OUTCOMES: [&str; 6] =
    [OF_THE_RUNNER[0], OF_THE_RUNNER[1], OF_THE_RUNNER[2], OF_THE_RUNNER[3], code::DIED, HUNG];

/// Starts a fresh runner with these params, in another process where there are processes.
pub type Start<'a> = &'a dyn Fn(&Map<String, Value>) -> Result<Arc<dyn RunnerBackend>, LoadError>;

/// What came of one run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The outcome that the daemon would see.
    pub outcome: Result<Report, CallError>,
    /// What the ledger booked for it.
    pub booked: Usage,
    /// What the host metered in it.
    pub metered: Usage,
    /// The cycle's record.
    pub steps: Vec<Step>,
    /// The same as lines of the write-ahead log.
    pub wal: Vec<Value>,
    /// Phases of the last attempt.
    pub phases: Vec<String>,
    /// The state after it.
    pub state: Map<String, Value>,
    /// What it logged.
    pub logs: Vec<LogLine>,
    /// How often the runner was started for it.
    pub attempts: u64,
}

/// All that came of a scenario.
#[derive(Clone, Debug)]
pub struct Played {
    /// One for each expectation.
    pub runs: Vec<Run>,
    /// With `cuts`: how many crashes were tried, of how many places, or what differed after one.
    pub cuts: Option<Result<(usize, usize), String>>,
    /// Places of the scenario's faults that never came.
    pub faults_left: Vec<usize>,
    /// Calls that were never made although there was an answer: which, and how many.
    pub replies_left: Vec<(String, usize)>,
}

/// A crash before the step at `place` of that run's cycle; at its end when there is no such step.
#[derive(Clone, Copy)]
struct Cut {
    run: usize,
    place: usize,
}

/// Plays it, and again for each cut.
///
/// # Errors
/// The runner cannot be had at all.
pub fn play(scenario: &Scenario, start: Start<'_>) -> Result<Played, LoadError> {
    let (runs, host) = once(scenario, start, None)?;
    let cuts = if scenario.cuts { Some(cut_everywhere(scenario, start, &runs)?) } else { None };
    let left = host.faults_left();
    let faults = scenario.faults.iter().enumerate();
    let faults = faults.filter(|(_, fault)| left.contains(&(fault.call.clone(), fault.nth)));
    let faults_left = faults.map(|(at, _)| at).collect();
    Ok(Played { runs, cuts, faults_left, replies_left: host.replies_left() })
}

fn cut_everywhere(
    scenario: &Scenario,
    start: Start<'_>,
    whole: &[Run],
) -> Result<Result<(usize, usize), String>, LoadError> {
    let places = whole
        .iter()
        .enumerate()
        .flat_map(|(run, seen)| (0..=seen.steps.len()).map(move |place| Cut { run, place }));
    let places: Vec<Cut> = places.collect();
    let stride = places.len().div_ceil(MOST_CUTS).max(1);
    let mut tried = 0;
    for cut in places.iter().step_by(stride) {
        let (again, _) = once(scenario, start, Some(*cut))?;
        if let Some(difference) = difference(&again, whole) {
            let of = if whole.len() > 1 { format!(" of run {}", cut.run + 1) } else { String::new() };
            let place = match whole[cut.run].steps.get(cut.place) {
                Some(step) => format!("a crash before step {}{of}, {}", cut.place + 1, step.name()),
                None => format!("a crash at the end{of}"),
            };
            return Ok(Err(format!("{place}: {difference}")));
        }
        tried += 1;
    }
    Ok(Ok((tried, places.len())))
}

/// What is not as it was without a crash. Logs and attempts may differ.
fn difference(is: &[Run], was: &[Run]) -> Option<String> {
    for (is, was) in is.iter().zip(was) {
        let (outcome, expected) = (shown(&is.outcome), shown(&was.outcome));
        if outcome != expected {
            return Some(format!("the outcome is {outcome} instead of {expected}"));
        }
        let differs = is.steps.iter().zip(&was.steps).position(|(is, was)| is != was);
        if let Some(at) = differs {
            let text = |run: &Run| format!("{} {}", run.steps[at].name(), run.steps[at].request);
            return Some(format!("step {} asks {} instead of {}", at + 1, text(is), text(was)));
        }
        if is.steps.len() != was.steps.len() {
            return Some(format!("there are {} steps instead of {}", is.steps.len(), was.steps.len()));
        }
        if is.booked != was.booked {
            return Some(format!("usage is {:?} instead of {:?}", is.booked, was.booked));
        }
        if is.state != was.state {
            let text = |run: &Run| Value::Object(run.state.clone()).to_string();
            return Some(format!("the state is {} instead of {}", text(is), text(was)));
        }
    }
    None
}

fn shown(outcome: &Result<Report, CallError>) -> String {
    match outcome {
        Ok(report) => serde_json::to_string(report).unwrap_or_default(),
        Err(error) => error.to_string(),
    }
}

fn once(scenario: &Scenario, start: Start<'_>, cut: Option<Cut>) -> Result<(Vec<Run>, FakeHost), LoadError> {
    let mut host = scenario.host();
    let mut mandate = scenario.mandate.clone();
    let mut stage = Stage { scenario, start, backend: None };
    let mut runs = vec![];
    for number in 0..scenario.expect.len() {
        if let Some(cut) = cut.filter(|cut| cut.run == number) {
            host = host.cut_at_step(cut.place);
        }
        runs.push(stage.run(&host, &mut mandate)?);
        mandate = host.next(&mandate);
    }
    Ok((runs, host))
}

/// The runner between its runs: one instance serves until it dies.
struct Stage<'a> {
    scenario: &'a Scenario,
    start: Start<'a>,
    backend: Option<Arc<dyn RunnerBackend>>,
}

impl Stage<'_> {
    /// One run with all its crashes.
    fn run(&mut self, host: &FakeHost, mandate: &mut Mandate) -> Result<Run, LoadError> {
        let before = (host.booked(), host.metered(), host.logs().len());
        let mut attempts = 0;
        let outcome = loop {
            attempts += 1;
            let outcome = self.attempt(host, mandate)?;
            if !host.was_cut() || attempts > MOST_CRASHES {
                break outcome;
            }
            // What the instance kept in itself is gone, as it would be.
            self.backend = None;
            mandate.attempt += 1;
        };
        Ok(Run {
            outcome,
            booked: host.booked().minus(before.0),
            metered: host.metered().minus(before.1),
            steps: host.steps(),
            wal: host.wal(),
            phases: host.phases(),
            state: host.landed_state().into_iter().collect(),
            logs: host.logs().split_off(before.2),
            attempts,
        })
    }

    fn attempt(
        &mut self,
        host: &FakeHost,
        mandate: &Mandate,
    ) -> Result<Result<Report, CallError>, LoadError> {
        let backend = match &self.backend {
            Some(backend) => Arc::clone(backend),
            None => match (self.start)(&self.scenario.params) {
                Ok(backend) => backend,
                // What its own constructor says is the runner's answer, and may be expected.
                Err(error) if OF_THE_RUNNER.contains(&error.code()) => {
                    return Ok(Err(CallError::new(error.code(), error.to_string())));
                }
                Err(error) => return Err(error),
            },
        };
        self.backend = Some(Arc::clone(&backend));
        if let Some(time) = self.scenario.deadline {
            // Each attempt has its own; clones are one host.
            drop(host.clone().deadline(host.now() + time));
        }
        let mut gone = None;
        let outcome = host.attempt(mandate, |calls| {
            let outcome = called(&backend, mandate, host, calls, self.scenario.timeout);
            if let Err(error) = &outcome
                && [code::DIED, HUNG].contains(&error.code.as_str())
            {
                gone = Some(error.clone());
            }
            outcome
        });
        match gone {
            Some(error) => {
                self.backend = None;
                Ok(Err(error))
            }
            None => Ok(outcome),
        }
    }
}

/// One call of the runner, on a thread of its own and with an end.
fn called(
    backend: &Arc<dyn RunnerBackend>,
    mandate: &Mandate,
    fake: &FakeHost,
    calls: Arc<dyn HostCalls>,
    timeout: Duration,
) -> Result<Report, CallError> {
    let backend = Arc::clone(backend);
    let killer = {
        let (backend, id) = (Arc::clone(&backend), mandate.id.clone());
        move || backend.kill(&id)
    };
    let host =
        Arc::new(Crashing { calls, fake: fake.clone(), kill: Mutex::new(Some(Box::new(killer.clone()))) });
    let (send, outcome) = mpsc::sync_channel(1);
    let started = std::thread::Builder::new().name("scenario".to_owned()).spawn({
        let (backend, mandate) = (Arc::clone(&backend), mandate.clone());
        move || {
            // Nobody listens any more when the time was over.
            let _ = send.send(backend.run_cycle(&mandate, host));
        }
    });
    if let Err(error) = started {
        return Err(CallError::failed(format!("no thread for the runner: {error}")));
    }
    match outcome.recv_timeout(timeout) {
        Ok(outcome) => return outcome.map_err(to_call_error),
        Err(RecvTimeoutError::Disconnected) => {
            return Err(CallError::new(code::DIED, "the thread that ran it is gone"));
        }
        Err(RecvTimeoutError::Timeout) => {}
    }
    fake.stop();
    // A cancel that hangs must not hang the scenario.
    let told = std::thread::Builder::new().name("cancel".to_owned()).spawn(move || backend.cancel());
    drop(told);
    let late = crate::config::values::show_duration(timeout);
    let how = if outcome.recv_timeout(GRACE).is_ok() {
        "it ended when it was told to"
    } else if killer() {
        "it did not listen and was killed"
    } else {
        "it did not listen, and in this isolation nothing can kill it"
    };
    Err(CallError::new(HUNG, format!("did not end within {late}; {how}")))
}

fn to_call_error(error: RunnerError) -> CallError {
    match error {
        RunnerError::Call(error) => error,
        RunnerError::Panic(message) => CallError::new(code::PANIC, message),
        RunnerError::BadReport(message) => CallError::new(code::BAD_REPORT, message),
        RunnerError::Unavailable(why) => CallError::new(code::DIED, why),
        RunnerError::Died(death) => CallError::new(code::DIED, death.to_string()),
    }
}

type Kill = Box<dyn Fn() -> bool + Send>;

/// The scripted host; where the script crashes the attempt, the runner is really killed, as far as
/// its isolation allows.
struct Crashing {
    calls: Arc<dyn HostCalls>,
    fake: FakeHost,
    kill: Mutex<Option<Kill>>,
}

impl HostCalls for Crashing {
    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, CallError> {
        let answer = self.calls.call(method, request);
        if answer.is_err() && self.fake.was_cut() {
            let kill = self.kill.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(kill) = kill {
                kill();
            }
        }
        answer
    }

    fn should_stop(&self) -> bool {
        self.calls.should_stop()
    }

    fn deadline(&self) -> Option<DateTime<Utc>> {
        self.calls.deadline()
    }

    fn log(&self, level: tracing::Level, target: &str, message: &str, fields: &Value) {
        self.calls.log(level, target, message, fields);
    }
}
