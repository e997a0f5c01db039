//! Compares what came of a scenario with what was expected: one check for each expectation.

use kairos_plugin_api::testing::{LogLine, Step};
use kairos_plugin_api::{CallError, Report, Status, Usage};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::drive::{Played, Run};
use super::{Expect, LogMatch, Scenario, StepMatch, Text};

/// What became of a fault that did not come.
const NEVER: &str = "never came";

/// One expectation, and how it went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Which run, from 1.
    pub run: usize,
    /// What was looked at, `summary` or `steps[2]`.
    pub what: String,
    /// True when it is as expected.
    pub ok: bool,
    /// What was expected.
    pub expected: String,
    /// What came.
    pub got: String,
}

/// Judges every expectation.
#[must_use]
pub fn judge(scenario: &Scenario, played: &Played) -> Vec<Check> {
    let mut checks = vec![];
    for (at, (expect, run)) in scenario.expect.iter().zip(&played.runs).enumerate() {
        let mut bench = Judge { run: at + 1, checks: &mut checks };
        bench.judge(expect, run);
    }
    // What never came shows nothing: a test that cannot fail is none.
    for at in &played.faults_left {
        let (what, expected) = (format!("faults[{at}]"), scenario.faults[*at].to_string());
        checks.push(Check { run: scenario.expect.len(), what, ok: false, expected, got: NEVER.to_owned() });
    }
    if let Some(cuts) = &played.cuts {
        let expected = "the same after a crash before any step".to_owned();
        let (ok, got) = match cuts {
            Ok((tried, places)) if tried == places => (true, format!("{tried} crashes, no difference")),
            Ok((tried, places)) => (true, format!("{tried} of {places} crashes tried, no difference")),
            Err(difference) => (false, difference.clone()),
        };
        checks.push(Check { run: scenario.expect.len(), what: "cuts".to_owned(), ok, expected, got });
    }
    checks
}

struct Judge<'a> {
    run: usize,
    checks: &'a mut Vec<Check>,
}

impl Judge<'_> {
    fn push(
        &mut self,
        what: impl Into<String>,
        ok: bool,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) {
        let (what, expected, got) = (what.into(), expected.into(), got.into());
        self.checks.push(Check { run: self.run, what, ok, expected, got });
    }

    fn judge(&mut self, expect: &Expect, run: &Run) {
        let status = expect.status.as_deref().unwrap_or("ok");
        let (is, said) = status_of(&run.outcome);
        let got = if is == status || said.is_empty() { is.clone() } else { format!("{is}: {said}") };
        self.push("status", is == status, status, got);
        let report = run.outcome.as_ref().ok();
        if let Some(more) = expect.more {
            let is = report.is_some_and(|report| report.more);
            self.push("more", is == more, more.to_string(), is.to_string());
        }
        if let Some(text) = &expect.summary {
            let summary = report.and_then(|report| report.summary.as_deref()).unwrap_or_default();
            self.text("summary", text, summary);
        }
        if let Some(text) = &expect.error {
            self.text("error", text, &said);
        }
        self.amounts("usage", &expect.usage, run.booked);
        self.amounts("metered", &expect.metered, run.metered);
        if let Some(steps) = &expect.steps {
            self.steps(steps, &run.steps);
        }
        for (key, value) in &expect.state {
            let is = run.state.get(key).unwrap_or(&Value::Null);
            self.push(format!("state.{key}"), fits(value, is), value.to_string(), is.to_string());
        }
        if let Some(phases) = &expect.phases {
            self.push("phases", *phases == run.phases, phases.join(", "), run.phases.join(", "));
        }
        self.logs(&expect.logs, &run.logs);
        if let Some(attempts) = expect.attempts {
            self.push("attempts", attempts == run.attempts, attempts.to_string(), run.attempts.to_string());
        }
    }

    fn text(&mut self, what: &str, text: &Text, is: &str) {
        match text {
            Text::Is(whole) => self.push(what, whole == is, format!("{whole:?}"), format!("{is:?}")),
            Text::Contains(part) => {
                self.push(what, is.contains(part.as_str()), format!("{part:?} in it"), format!("{is:?}"));
            }
        }
    }

    fn amounts(&mut self, what: &str, amounts: &Map<String, Value>, is: Usage) {
        let is = json!(is);
        for (name, amount) in amounts {
            self.push(
                format!("{what}.{name}"),
                *amount == is[name],
                amount.to_string(),
                is[name].to_string(),
            );
        }
    }

    fn steps(&mut self, expected: &[StepMatch], is: &[Step]) {
        let calls: Vec<String> = is.iter().map(call_of).collect();
        let wanted: Vec<&str> = expected.iter().map(|step| step.call.as_str()).collect();
        let same = wanted.len() == calls.len()
            && expected.iter().zip(is).all(|(step, is)| step.call == is.method || step.call == call_of(is));
        self.push("steps", same, format!("[{}]", wanted.join(", ")), format!("[{}]", calls.join(", ")));
        for (at, (step, is)) in expected.iter().zip(is).enumerate() {
            let what = |part: &str| format!("steps[{at}].{part}");
            if let Some(phase) = &step.phase {
                let in_phase = is.phase.as_deref().unwrap_or("none");
                self.push(what("phase"), phase == in_phase, phase, in_phase);
            }
            if let Some(args) = &step.args {
                let given = &is.request["args"];
                self.push(what("args"), fits(args, given), args.to_string(), given.to_string());
            }
            if let Some(part) = &step.contains {
                let texts = texts_of(&is.request);
                self.push(
                    what("contains"),
                    texts.contains(part.as_str()),
                    format!("{part:?} in it"),
                    format!("{texts:?}"),
                );
            }
            if let Some(code) = &step.error {
                let answer = is.answer.as_ref().err().map_or("no error", |error| error.code.as_str());
                self.push(what("error"), code == answer, code, answer);
            }
        }
    }

    fn logs(&mut self, expected: &[LogMatch], is: &[LogLine]) {
        let mut from = 0;
        for (at, line) in expected.iter().enumerate() {
            let found = is[from..].iter().position(|is| {
                let level = line.level.is_none_or(|level| level == is.level);
                level
                    && (is.message.contains(&line.contains) || is.fields.to_string().contains(&line.contains))
            });
            if let Some(found) = found {
                from += found + 1;
            }
            let level = line.level.map_or(String::new(), |level| format!("{level} "));
            let got = if found.is_some() { "logged".to_owned() } else { all_of(is) };
            self.push(format!("logs[{at}]"), found.is_some(), format!("{level}{:?}", line.contains), got);
        }
    }
}

/// The word for an outcome, and what was said beside it.
pub(super) fn status_of(outcome: &Result<Report, CallError>) -> (String, String) {
    match outcome {
        Ok(report) => {
            let word = match report.status {
                Status::Ok => "ok",
                Status::Paused => "paused",
                Status::Error => "error",
            };
            (word.to_owned(), report.error.clone().unwrap_or_default())
        }
        Err(error) => (error.code.clone(), error.message.clone()),
    }
}

fn call_of(step: &Step) -> String {
    if step.name() == step.method { step.method.clone() } else { format!("{}:{}", step.method, step.name()) }
}

/// Every key of an expected object is there and fits; anything else is equal.
fn fits(expected: &Value, is: &Value) -> bool {
    match (expected, is) {
        (Value::Object(expected), Value::Object(is)) => {
            expected.iter().all(|(key, value)| fits(value, is.get(key).unwrap_or(&Value::Null)))
        }
        // 2 and 2.0 are one number to whoever writes a scenario.
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => expected == is,
    }
}

/// All texts of a request, a line each: what a person would look for.
fn texts_of(request: &Value) -> String {
    match request {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(texts_of).collect::<Vec<_>>().join("\n"),
        Value::Object(map) => map.values().map(texts_of).collect::<Vec<_>>().join("\n"),
        other => other.to_string(),
    }
}

fn all_of(logs: &[LogLine]) -> String {
    if logs.is_empty() {
        return "nothing was logged".to_owned();
    }
    logs.iter().map(|line| format!("{} {:?}", line.level, line.message)).collect::<Vec<_>>().join("; ")
}
