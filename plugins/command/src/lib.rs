//! The first-party runner for agents that are programs of their own: one cycle is one run of a
//! command that the operator configured.
//!
//! It starts nothing itself. It asks the host for the effect `process.run`, names the command, hands
//! over the mandate and makes a report of the answer. What may run, what it costs and what it may
//! touch is the host's business; what an agent's output means is read by the host too, because the
//! host settles the budget.

#![forbid(unsafe_code)]

mod settings;

use kairos_plugin_api::{CallError, Context, CycleRunner, Mandate, Report, Status, ToolReply, Usage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::settings::Settings;

#[cfg(feature = "export")]
kairos_plugin_api::export_runner!(CommandRunner, name: "command", phases: true, capabilities: &["tool:process.run"]);

/// The effect that runs a program.
const TOOL: &str = "process.run";
/// Key of the state under which the last run is kept.
const LAST: &str = "last";
/// Longest summary, in characters.
const SUMMARY_MAX: usize = 500;

/// The runner. It keeps nothing between cycles but what the host keeps for it.
pub struct CommandRunner {
    defaults: Settings,
}

/// The part of the tool's output that a report is made of.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Output {
    text: Option<String>,
    error: Option<String>,
    code: Option<String>,
    usage: Option<Usage>,
    report: Option<Value>,
    session: Option<String>,
    warnings: Vec<String>,
}

impl CycleRunner for CommandRunner {
    fn new(params: &Value) -> Result<Self, CallError> {
        Ok(Self { defaults: Settings::of_runner(params)? })
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        let settings = Settings::of_mandate(&mandate.params)?.or(&self.defaults);
        let last: Option<Value> = ctx.state_get(LAST)?;
        let request = json!({
            "command": settings.command()?,
            "prompt": settings.prompt(mandate, last.as_ref()),
            "mandate": handed_over(mandate, last.as_ref())?,
        });
        let reply = ctx.tool(TOOL, request)?;
        let (report, session) = report_of(reply);
        if report.status != Status::Error {
            ctx.state_put(
                LAST,
                &json!({
                    "mandate": mandate.id,
                    "cycle": mandate.cycle,
                    "summary": report.summary,
                    "session": session,
                }),
            )?;
        }
        Ok(report)
    }
}

/// The mandate as the agent sees it: what the host tells, and how the last run ended. Without the
/// attempt: a run that is made again must be asked for in the very same words.
fn handed_over(mandate: &Mandate, last: Option<&Value>) -> Result<Value, CallError> {
    let mut seen = serde_json::to_value(mandate).map_err(|error| CallError::invalid(error.to_string()))?;
    if let Some(seen) = seen.as_object_mut() {
        seen.remove("attempt");
        if let Some(last) = last {
            seen.insert(LAST.to_owned(), last.clone());
        }
    }
    Ok(seen)
}

fn report_of(reply: ToolReply) -> (Report, Option<String>) {
    let output = match Output::deserialize(&reply.output) {
        Ok(output) => output,
        Err(error) => return (Report::error(format!("the answer of {TOOL} cannot be read: {error}")), None),
    };
    let mut report = Report::ok();
    report.summary = output.text.as_deref().map(one_line).filter(|line| !line.is_empty());
    if report.summary.is_none() && !output.warnings.is_empty() {
        // Better than nothing: people should know on what the success stands.
        report.summary = Some(one_line(&output.warnings.join("; ")));
    }
    if let Some(own) = &output.report {
        report.more = own.get("more").and_then(Value::as_bool).unwrap_or(false);
        if own.get("status").and_then(Value::as_str) == Some("paused") {
            report.status = Status::Paused;
        }
    }
    if !reply.ok {
        report.status = Status::Error;
        report.more = false;
        let code = output.code.unwrap_or_else(|| "failed".to_owned());
        report.error = Some(match output.error {
            Some(error) => format!("{code}: {error}"),
            None => code,
        });
    }
    // What the host metered, told again: it adds nothing to what is booked.
    let usage = output.usage.unwrap_or_default();
    report.llm_calls = usage.llm_calls;
    report.input_tokens = usage.input_tokens;
    report.output_tokens = usage.output_tokens;
    (report, output.session)
}

/// The first line that says something, cut to size.
fn one_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().take(SUMMARY_MAX).collect()
}

#[cfg(test)]
mod tests;
