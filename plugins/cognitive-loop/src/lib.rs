//! The first-party runner: one cycle is observe, orient, decide, act, reflect.
//!
//! It thinks with the host's language model and works with the host's tools; it has no key, no
//! network and no file of its own. A reply that makes no sense never fails a cycle: it decides
//! nothing. Whatever a reply asks for, the host's policy has the last word.

#![forbid(unsafe_code)]

mod prompt;
mod reply;
mod settings;

use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report, ToolReply, Usage};
use serde_json::{Map, Value, json};

use crate::prompt::{Template, cut, one_line};
use crate::reply::{Assessment, Decision, Reflection};
use crate::settings::{Look, Settings};

#[cfg(feature = "export")]
kairos_plugin_api::export_runner!(CognitiveLoop, name: "cognitive-loop", phases: true, capabilities: &["llm", "tool:fs.read", "tool:fs.edit"]);

/// Key of the state that carries lessons from cycle to cycle.
const MEMORY: &str = "memory";
/// Lessons kept; older ones are dropped.
const MEMORY_MAX: usize = 8;
/// Longest lesson and summary, in characters.
const LINE_MAX: usize = 300;
/// Longest text of one observation in a prompt, in bytes.
const OBSERVATION_MAX: usize = 16 << 10;
/// Longest text of all observations together, in bytes.
const OBSERVATIONS_MAX: usize = 64 << 10;
/// Tokens that each thinking phase may answer with.
const ORIENT_TOKENS: u64 = 1024;
const DECIDE_TOKENS: u64 = 2048;
const REFLECT_TOKENS: u64 = 512;

/// The runner. It keeps nothing between cycles but what the host keeps for it.
pub struct CognitiveLoop {
    defaults: Settings,
}

impl CycleRunner for CognitiveLoop {
    fn new(params: &Value) -> Result<Self, CallError> {
        Ok(Self { defaults: Settings::read(params)? })
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        let settings = Settings::read(&Value::Object(mandate.params.clone()))?.or(&self.defaults);
        Cycle { mandate, ctx, settings, used: Usage::ZERO }.run()
    }
}

/// One cycle under way.
struct Cycle<'a> {
    mandate: &'a Mandate,
    ctx: &'a Context,
    settings: Settings,
    used: Usage,
}

impl Cycle<'_> {
    fn run(mut self) -> Result<Report, CallError> {
        let seen = self.observe()?;
        let memory = self.recall()?;
        let assessment = self.orient(&seen, &memory)?;
        let decision = self.decide(&seen, &assessment)?;
        let outcome = self.act(&decision)?;
        let reflection = self.reflect(&decision, &outcome)?;
        self.remember(memory, &reflection)?;
        let mut report = Report::ok().with_summary(one_line(&reflection.summary, LINE_MAX));
        report.more = reflection.more;
        report.llm_calls = self.used.llm_calls;
        report.input_tokens = self.used.input_tokens;
        report.output_tokens = self.used.output_tokens;
        Ok(report)
    }

    /// A phase begins, unless the cycle should end: between phases is a good place to stop.
    fn begin(&self, phase: &str) -> Result<(), CallError> {
        self.ctx.check_stop()?;
        self.ctx.phase(phase)
    }

    fn observe(&self) -> Result<String, CallError> {
        self.begin("observe")?;
        let mut seen = String::new();
        for Look { tool, args } in self.settings.looks() {
            let source = format!("{tool} {}", Value::Object(args.clone()));
            let text = match told(self.ctx.tool(&tool, Value::Object(args)))? {
                Outcome::Done(output) => output
                    .get("content")
                    .and_then(Value::as_str)
                    .map_or_else(|| output.to_string(), str::to_owned),
                Outcome::Failed(why) => format!("(not seen: {why})"),
            };
            let text = cut(&text, OBSERVATION_MAX.min(OBSERVATIONS_MAX.saturating_sub(seen.len())));
            seen.push_str(&format!("<observation source={source:?}>\n{text}\n</observation>\n"));
            if seen.len() >= OBSERVATIONS_MAX {
                break;
            }
        }
        if seen.is_empty() {
            seen.push_str("(nothing was looked at)\n");
        }
        Ok(seen)
    }

    fn recall(&self) -> Result<Vec<String>, CallError> {
        // State of an older form is no reason to fail: there is just nothing to remember.
        let kept: Option<Value> = self.ctx.state_get(MEMORY)?;
        let lessons = kept.as_ref().and_then(Value::as_array);
        Ok(lessons.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    fn orient(&mut self, seen: &str, memory: &[String]) -> Result<Assessment, CallError> {
        self.begin("orient")?;
        let memory = if memory.is_empty() { "(nothing)".to_owned() } else { memory.join("\n") };
        let prompt = Template::ORIENT.fill(&[
            ("goal", &self.mandate.goal),
            ("memory", &memory),
            ("observations", seen),
        ]);
        Ok(Assessment::of(&self.think(prompt, ORIENT_TOKENS)?))
    }

    fn decide(&mut self, seen: &str, assessment: &Assessment) -> Result<Decision, CallError> {
        self.begin("decide")?;
        let allowed = self.mandate.allowed_actions.as_ref();
        let allowed = allowed.map_or_else(|| "all of these".to_owned(), |words| words.join(", "));
        let prompt = Template::DECIDE.fill(&[
            ("goal", &self.mandate.goal),
            ("situation", &assessment.situation),
            ("observations", seen),
            ("allowed", &allowed),
        ]);
        Ok(Decision::of(&self.think(prompt, DECIDE_TOKENS)?))
    }

    fn act(&self, decision: &Decision) -> Result<Outcome, CallError> {
        self.begin("act")?;
        match decision {
            Decision::Noop { reason } => Ok(Outcome::Done(json!({ "noop": reason }))),
            Decision::Call { tool, args, .. } => told(self.ctx.tool(tool, Value::Object(args.clone()))),
        }
    }

    fn reflect(&mut self, decision: &Decision, outcome: &Outcome) -> Result<Reflection, CallError> {
        self.begin("reflect")?;
        let (decided, came) = (decision.shown(), outcome.shown());
        let prompt = Template::REFLECT.fill(&[
            ("goal", &self.mandate.goal),
            ("decision", cut(&decided, OBSERVATION_MAX)),
            ("outcome", cut(&came, OBSERVATION_MAX)),
        ]);
        let mut reflection = Reflection::of(&self.think(prompt, REFLECT_TOKENS)?)
            .unwrap_or_else(|| Reflection::plain(&decision.short()));
        if let Outcome::Failed(why) = outcome {
            // A model may call a failure a success; people read the summary.
            reflection.summary = format!("{} [act failed: {why}]", cut(&reflection.summary, LINE_MAX / 2));
        }
        Ok(reflection)
    }

    fn remember(&self, mut memory: Vec<String>, reflection: &Reflection) -> Result<(), CallError> {
        let lesson = reflection.lesson.as_deref().unwrap_or(&reflection.summary);
        memory.push(format!("cycle {}: {}", self.mandate.cycle, one_line(lesson, LINE_MAX)));
        let first = memory.len().saturating_sub(MEMORY_MAX);
        self.ctx.state_put(MEMORY, &memory[first..])
    }

    fn think(&mut self, prompt: String, max_tokens: u64) -> Result<String, CallError> {
        let mut request = LlmRequest::user(prompt).with_system(Template::SYSTEM.text().trim_end());
        request.provider.clone_from(&self.settings.provider);
        request.model.clone_from(&self.settings.model);
        request.max_tokens = Some(max_tokens);
        let reply = self.ctx.llm(&request)?;
        self.used = self.used.plus(reply.usage);
        Ok(reply.text)
    }
}

/// What came of a tool call, as far as the cycle goes on with it.
#[derive(Debug, PartialEq)]
enum Outcome {
    Done(Value),
    Failed(String),
}

impl Outcome {
    fn shown(&self) -> String {
        match self {
            Self::Done(output) => output.to_string(),
            Self::Failed(why) => format!("failed: {why}"),
        }
    }
}

/// Denied and invalid calls are something to reflect on; what ends the attempt ends it.
fn told(answer: Result<ToolReply, CallError>) -> Result<Outcome, CallError> {
    match answer {
        Ok(ToolReply { ok: true, output }) => Ok(Outcome::Done(output)),
        Ok(ToolReply { output, .. }) => {
            let why = output.get("error").and_then(Value::as_str);
            Ok(Outcome::Failed(why.map_or_else(|| output.to_string(), str::to_owned)))
        }
        Err(error) if error.ends_attempt() => Err(error),
        Err(error) => Ok(Outcome::Failed(error.to_string())),
    }
}

/// A tool's arguments.
type Args = Map<String, Value>;

#[cfg(test)]
mod tests;
