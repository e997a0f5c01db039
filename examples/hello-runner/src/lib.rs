//! A useful runner in twenty lines: it reads the file that the mandate names, asks the model for a
//! summary in the light of the goal, and keeps the summary beside the file.

use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report, export_runner};
use serde_json::{Value, json};

struct Summary;

export_runner!(Summary, capabilities: &["llm", "tool:fs.read", "tool:fs.edit"]);

impl CycleRunner for Summary {
    fn new(_params: &Value) -> Result<Self, CallError> {
        Ok(Self)
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        let path = mandate.params.get("file").and_then(Value::as_str).unwrap_or("README.md");
        let text = ctx.tool("fs.read", json!({ "path": path }))?.output;
        let summary = ctx.llm(&LlmRequest::user(format!("{}\n\n{text}", mandate.goal)))?.text;
        ctx.tool("fs.edit", json!({ "path": format!("{path}.summary"), "content": summary }))?;
        Ok(Report::ok().with_summary(format!("summarised {path}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kairos_plugin_api::testing::{FakeHost, survives_cuts};

    fn script() -> FakeHost {
        FakeHost::new()
            .tool_reply("fs.read", "It rained all day.")
            .reply("Rain.")
            .tool_reply("fs.edit", json!({}))
    }

    #[test]
    fn the_summary_is_written_beside_the_file() {
        let host = script();
        let mandate = Mandate::new("m1", "Say it in one word.").with_param("file", "diary.md");
        let report = host.run(&Summary, &mandate).unwrap();
        assert_eq!(report.summary.as_deref(), Some("summarised diary.md"));
        let written = &host.steps()[2].request;
        assert_eq!(written["args"], json!({"path": "diary.md.summary", "content": "Rain."}));
    }

    #[test]
    fn it_survives_a_crash_at_any_step() {
        let cuts = survives_cuts::<Summary>(&json!({}), &Mandate::new("m1", "Shorten."), script);
        assert_eq!(cuts, Ok(4));
    }
}
