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
        let text = ctx.tool("fs.read", json!({ "path": path }))?.into_output()?;
        let summary = ctx.llm(&LlmRequest::user(format!("{}\n\n{}", mandate.goal, text["content"])))?.text;
        let target = format!("{path}.summary");
        let before = ctx.tool("fs.read", json!({ "path": target }))?.output;
        let old = before["content"].as_str().unwrap_or_default();
        ctx.tool("fs.edit", json!({ "path": target, "old": old, "new": summary }))?.into_output()?;
        Ok(Report::ok().with_summary(format!("summarised {path}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kairos_plugin_api::testing::{FakeHost, survives_cuts};

    use kairos_plugin_api::{ToolReply, code};

    fn script() -> FakeHost {
        FakeHost::new()
            .tool_reply("fs.read", json!({"content": "It rained all day."}))
            .reply("Rain.")
            .tool_reply("fs.read", json!({"content": "Sun."}))
            .tool_reply("fs.edit", json!({}))
    }

    #[test]
    fn the_summary_is_written_beside_the_file() {
        let host = script();
        let mandate = Mandate::new("m1", "Say it in one word.").with_param("file", "diary.md");
        let report = host.run(&Summary, &mandate).unwrap();
        assert_eq!(report.summary.as_deref(), Some("summarised diary.md"));
        let written = &host.steps()[3].request;
        assert_eq!(written["args"], json!({"path": "diary.md.summary", "old": "Sun.", "new": "Rain."}));
    }

    #[test]
    fn a_missing_file_is_said_and_costs_no_call() {
        let missing = ToolReply { ok: false, output: json!({"error": "diary.md: no such file"}) };
        let host = FakeHost::new().tool_answer("fs.read", Ok(missing));
        let error = host.run(&Summary, &Mandate::new("m1", "Shorten.")).unwrap_err();
        assert_eq!((error.code.as_str(), error.message.as_str()), (code::FAILED, "diary.md: no such file"));
        assert_eq!(host.metered().llm_calls, 0);
    }

    #[test]
    fn it_survives_a_crash_at_any_step() {
        let cuts = survives_cuts::<Summary>(&json!({}), &Mandate::new("m1", "Shorten."), script);
        assert_eq!(cuts, Ok(5));
    }
}
