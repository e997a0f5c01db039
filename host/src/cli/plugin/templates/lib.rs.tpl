//! A Kairos runner: asks the model about the mandate's goal, and remembers the answer for the next time.

use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report};
use serde_json::Value;

struct Runner {
    style: String,
}

// The manifest: what this runner wants to call. The host decides what it may.
kairos_plugin_api::export_runner!(Runner, capabilities: &["llm"]);

impl CycleRunner for Runner {
    /// `params` is this runner's section in `.kairos/config/daemon.yml`.
    fn new(params: &Value) -> Result<Self, CallError> {
        let style = params["style"].as_str().unwrap_or("briefly").to_owned();
        Ok(Self { style })
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        let last = ctx.state_get("last")?.unwrap_or("nothing".to_owned());
        let (goal, style) = (&mandate.goal, &self.style);
        let prompt = format!("{goal}\nAnswer {style}. Last time you said: {last}");
        let answer = ctx.llm(&LlmRequest::user(prompt))?.text;
        ctx.state_put("last", &answer)?;
        Ok(Report::ok().with_summary(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kairos_plugin_api::testing::{FakeHost, survives_cuts};
    use serde_json::json;

    fn host() -> FakeHost {
        FakeHost::new()
            .reply("All is well.")
            .state("last", "Nothing happened.")
    }

    #[test]
    fn the_answer_is_reported_and_remembered() {
        let (host, runner) = (
            host(),
            Runner::new(&json!({"style": "in three words"})).unwrap(),
        );
        let report = host
            .run(&runner, &Mandate::new("m1", "How are the logs?"))
            .unwrap();
        assert_eq!(report.summary.as_deref(), Some("All is well."));
        assert_eq!(host.landed_state()["last"], "All is well.");
        let asked = host.steps()[0].request.to_string();
        assert!(
            asked.contains("in three words") && asked.contains("Nothing happened."),
            "{asked}"
        );
    }

    #[test]
    fn it_survives_a_crash_at_any_step() {
        let cuts =
            survives_cuts::<Runner>(&json!({}), &Mandate::new("m1", "How are the logs?"), host);
        assert_eq!(cuts, Ok(2));
    }
}
