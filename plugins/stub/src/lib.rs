//! A runner whose behaviour is scripted by the mandate's parameters: what tests, trials of a
//! configuration and first steps run on. It must never do anything it was not told to.

#![forbid(unsafe_code)]

use std::time::Duration;

use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report, Status};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[cfg(feature = "export")]
kairos_plugin_api::export_runner!(Stub, name: "stub", phases: true, capabilities: &["llm", "tool"]);

/// Between two looks at `should_stop` while sleeping.
const SLICE: Duration = Duration::from_millis(5);

const PHASES: [&str; 5] = ["observe", "orient", "decide", "act", "reflect"];

/// The runner. It keeps nothing between cycles.
pub struct Stub;

/// What a mandate can ask for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Script {
    /// `ok`, `paused` or `error`; the status of the report.
    status: Option<Status>,
    /// Claimed in the report; nothing is called.
    llm_calls: u64,
    /// Claimed in the report.
    input_tokens: u64,
    /// Claimed in the report.
    output_tokens: u64,
    /// Asks for another cycle.
    more: bool,
    /// Works that long, or until asked to stop.
    sleep_ms: u64,
    /// Goes through the five phases.
    phases: bool,
    /// Panics.
    panic: bool,
    /// A tool to call: its name, or `{name, args}`.
    tool: Option<Tool>,
    /// A prompt to send to the model.
    prompt: Option<String>,
    /// A line for the host's log.
    log: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Tool {
    Name(String),
    Call {
        name: String,
        #[serde(default)]
        args: Map<String, Value>,
    },
}

impl CycleRunner for Stub {
    fn new(params: &Value) -> Result<Self, CallError> {
        match params.as_object() {
            Some(params) if !params.is_empty() => {
                Err(CallError::invalid("stub takes no params of its own; a mandate's params script it"))
            }
            _ => Ok(Self),
        }
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        let script: Script = mandate.params_as()?;
        assert!(!script.panic, "the mandate asked for a panic");
        for phase in PHASES {
            if script.phases {
                ctx.phase(phase)?;
            }
            if phase == "act" {
                act(&script, ctx)?;
            }
        }
        let status = script.status.unwrap_or(Status::Ok);
        Ok(Report {
            status,
            llm_calls: script.llm_calls,
            input_tokens: script.input_tokens,
            output_tokens: script.output_tokens,
            more: script.more,
            summary: Some(format!("cycle {} of {}", mandate.cycle, mandate.id)),
            error: (status == Status::Error).then(|| "the mandate asked for an error".to_owned()),
        })
    }
}

fn act(script: &Script, ctx: &Context) -> Result<(), CallError> {
    if let Some(line) = &script.log {
        tracing::info!(line, "asked to log");
        ctx.log(tracing::Level::INFO, line);
    }
    if let Some(prompt) = &script.prompt {
        ctx.llm(&LlmRequest::user(prompt))?;
    }
    match &script.tool {
        Some(Tool::Name(name)) => drop(ctx.tool(name, json!({}))?),
        Some(Tool::Call { name, args }) => drop(ctx.tool(name, Value::Object(args.clone()))?),
        None => {}
    }
    let mut left = Duration::from_millis(script.sleep_ms);
    while !left.is_zero() {
        ctx.check_stop()?;
        let slice = left.min(SLICE);
        std::thread::sleep(slice);
        left -= slice;
    }
    Ok(())
}
