//! What `plugin test` prints: lines for people, JSON for programs, JUnit XML for build servers.

use std::fmt::Write as _;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value, json};

use super::Scenario;
use super::drive::Played;
use super::judge::{Check, status_of};
use crate::cli::output::printable;
use crate::exit::Failure;

/// A scenario that was played and judged.
pub struct Verdict {
    /// The scenario.
    pub scenario: Scenario,
    /// What came of it.
    pub played: Played,
    /// One for each expectation.
    pub checks: Vec<Check>,
}

impl Verdict {
    /// True when all is as expected.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    /// What the scenario has and the runner never asked for: faults, which make it fail, and replies,
    /// which do not.
    fn never_came(&self) -> Vec<String> {
        let fault = |at: &usize| format!("faults[{at}], {}", self.scenario.faults[*at]);
        let reply = |(call, count): &(String, usize)| match count {
            1 => format!("a call of {call}, which has a reply"),
            count => format!("{count} calls of {call}, which have replies"),
        };
        let played = &self.played;
        played.faults_left.iter().map(fault).chain(played.replies_left.iter().map(reply)).collect()
    }

    fn what(&self, check: &Check) -> String {
        if self.scenario.expect.len() > 1 && check.what != "cuts" && !check.what.starts_with("faults[") {
            return format!("run {}: {}", check.run, check.what);
        }
        check.what.clone()
    }
}

/// For a terminal: a line for what is as expected, three for what differs.
#[must_use]
pub fn human(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{}: {}", verdict.scenario.file, printable(&verdict.scenario.name));
        for check in &verdict.checks {
            let what = printable(&verdict.what(check));
            let (expected, got) = (printable(&check.expected), printable(&check.got));
            let _ = if check.ok {
                writeln!(text, "  ok       {what}: {}", short(&got))
            } else {
                writeln!(text, "  DIFFERS  {what}\n           expected {expected}\n           got      {got}")
            };
        }
        for what in verdict.never_came() {
            let _ = writeln!(text, "  never came: {}", printable(&what));
        }
        if !verdict.passed() {
            let logs = verdict.played.runs.iter().flat_map(|run| &run.logs);
            for line in logs {
                let _ = writeln!(text, "  log      {} {}", line.level, printable(&line.message));
            }
        }
    }
    let all: usize = verdicts.iter().map(|verdict| verdict.checks.len()).sum();
    let bad = verdicts.iter().flat_map(|verdict| &verdict.checks).filter(|check| !check.ok).count();
    let _ = match bad {
        0 => writeln!(text, "all {all} as expected"),
        bad => writeln!(text, "{bad} of {all} not as expected"),
    };
    text
}

/// The start of a text that was as expected and need not be read in full.
fn short(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((cut, _)) => format!("{}...", &text[..cut]),
    }
}

/// For programs.
#[must_use]
pub fn json(verdicts: &[Verdict]) -> Value {
    let scenarios = verdicts.iter().map(|verdict| {
        let runs = verdict.played.runs.iter().map(|run| {
            let (status, _) = status_of(&run.outcome);
            let (report, error) = (run.outcome.as_ref().ok(), run.outcome.as_ref().err());
            let logs: Vec<Value> = run
                .logs
                .iter()
                .map(|line| json!({"level": line.level.to_string(), "message": line.message, "fields": line.fields}))
                .collect();
            json!({"status": status, "report": report, "error": error, "usage": run.booked,
                "wal": run.wal, "phases": run.phases, "state": run.state, "logs": logs,
                "attempts": run.attempts})
        });
        let runs: Vec<Value> = runs.collect();
        json!({"file": &*verdict.scenario.file, "name": verdict.scenario.name, "passed": verdict.passed(),
            "checks": verdict.checks, "never_came": verdict.never_came(), "runs": runs})
    });
    let scenarios: Vec<Value> = scenarios.collect();
    json!({"passed": verdicts.iter().all(Verdict::passed), "scenarios": scenarios})
}

/// Two characters that XML cannot hold, whatever is made of the others on the way.
fn for_xml(text: &str) -> String {
    text.replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

/// For build servers: a suite for each scenario, a case for each expectation.
///
/// # Errors
/// The XML cannot be written.
pub fn junit(plugin: &str, verdicts: &[Verdict]) -> anyhow::Result<String> {
    let mut report = Report::new(plugin);
    for verdict in verdicts {
        let name = for_xml(&verdict.scenario.name);
        let mut suite = TestSuite::new(for_xml(&format!("{}: {name}", verdict.scenario.file)));
        for check in &verdict.checks {
            let status = if check.ok {
                TestCaseStatus::success()
            } else {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(for_xml(&format!("expected {}, got {}", check.expected, check.got)));
                status
            };
            let mut case = TestCase::new(for_xml(&verdict.what(check)), status);
            case.set_classname(name.as_str());
            suite.add_test_case(case);
        }
        let never: Vec<String> =
            verdict.never_came().iter().map(|what| for_xml(&format!("never came: {what}"))).collect();
        if !never.is_empty() {
            suite.set_system_out(never.join("\n"));
        }
        report.add_test_suite(suite);
    }
    Ok(report.to_string()?)
}

/// For build servers, when nothing could be played: one case that is an error, named by its code.
///
/// # Errors
/// The XML cannot be written.
pub fn junit_of_failure(plugin: &str, failure: &Failure) -> anyhow::Result<String> {
    let plugin = for_xml(plugin);
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    status.set_type(for_xml(&failure.code));
    status.set_message(for_xml(&failure.message));
    status.set_description(for_xml(&failure.to_string()));
    let mut case = TestCase::new(for_xml(&failure.code), status);
    case.set_classname(plugin.as_str());
    let mut suite = TestSuite::new(plugin.as_str());
    suite.add_test_case(case);
    let mut report = Report::new(plugin);
    report.add_test_suite(suite);
    Ok(report.to_string()?)
}
