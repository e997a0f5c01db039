//! One runner in many versions: a test copies the file and writes another mode over the one in its
//! data, so each version is a file of its own with a sha256 of its own. For tests only.
//!
//! Faults that are to show only after the flip wait for the mandate's parameter `trap`; cycles that
//! were recorded without it replay as ever.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report, State};
use serde_json::{Value, json};

kairos_plugin_api::export_runner!(
    Variant,
    name: "variant",
    capabilities: &["llm", "tool"],
    // A test writes another one over the second, for a version whose state is of another form.
    states: &["variant/1", "variant/0"],
);

/// What a test finds in the file; the 24 bytes after it are the mode, filled up with blanks.
static MODE: [u8; 40] = *b"KAIROS-VARIANT: plain                   ";

/// The state a version keeps between its cycles: how many it ran, its predecessors' included.
struct Variant {
    mode: String,
    ran: AtomicU64,
    /// What `waits-export` and `waits-import` wait for.
    door: Option<PathBuf>,
}

impl CycleRunner for Variant {
    fn new(params: &Value) -> Result<Self, CallError> {
        // Read at run time: the compiler must not believe what it sees in the source.
        let mode = String::from_utf8_lossy(&black_box(&MODE)[15..]).trim().to_owned();
        match mode.as_str() {
            "refuses" => return Err(CallError::invalid("this version refuses its params")),
            "aborts-new" => std::process::abort(),
            // From when the test wants it on.
            "breaks" if params["broken"].as_str().is_some_and(|file| std::path::Path::new(file).exists()) => {
                return Err(CallError::failed("this version cannot be made any more"));
            }
            "never-new" => std::thread::sleep(Duration::from_secs(3600)),
            // A worker's environment is empty, a daemon's is not.
            "never-standby" if std::env::vars_os().next().is_some() => {
                std::thread::sleep(Duration::from_secs(3600));
            }
            _ => {}
        }
        let door = params["door"].as_str().map(PathBuf::from);
        Ok(Self { mode, ran: AtomicU64::new(0), door })
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        let ran = self.ran.fetch_add(1, Ordering::SeqCst) + 1;
        let param = |key: &str| mandate.params.get(key);
        if let Some(prompt) = param("prompt").and_then(Value::as_str) {
            ctx.llm(&LlmRequest::user(prompt))?;
        }
        if let Some(tool) = param("tool") {
            ctx.tool(tool["name"].as_str().unwrap_or_default(), tool["args"].clone())?;
        }
        // Until the test has seen what it waits for.
        if let Some(gate) = param("gate").and_then(Value::as_str) {
            while !std::path::Path::new(gate).exists() {
                ctx.check_stop()?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let mut left = param("sleep_ms").and_then(Value::as_u64).unwrap_or(0);
        while left > 0 {
            ctx.check_stop()?;
            std::thread::sleep(Duration::from_millis(5));
            left = left.saturating_sub(5);
        }
        if (mandate.cycle, mandate.attempt) == (1, 1) {
            // Neither is done again by whoever goes on with the mandate.
            let mut polite = param("once_ms").and_then(Value::as_u64).unwrap_or(0);
            while polite > 0 {
                ctx.check_stop()?;
                std::thread::sleep(Duration::from_millis(5));
                polite = polite.saturating_sub(5);
            }
            let deaf = param("deaf_ms").and_then(Value::as_u64).unwrap_or(0);
            std::thread::sleep(Duration::from_millis(deaf));
        }
        self.misbehave(mandate, ctx)?;
        let summary = format!("{} after {ran}", self.mode);
        let mut report = Report::ok().with_summary(summary);
        report.more = param("more").and_then(Value::as_bool).unwrap_or(false);
        if self.mode == "dear" && trapped(mandate) {
            report.llm_calls = 50;
        }
        Ok(report)
    }

    fn probe(&self) -> Result<(), CallError> {
        match self.mode.as_str() {
            "unwell" => Err(CallError::failed("this version does not feel well")),
            _ => Ok(()),
        }
    }

    fn export_state(&self) -> Result<Option<State>, CallError> {
        if self.mode == "hangs-export" {
            std::thread::sleep(Duration::from_secs(3600));
        }
        self.wait_at_the_door("waits-export");
        let schema = match self.mode.as_str() {
            "other-state" => "variant/2",
            "unlisted-state" => "variant/3",
            _ => "variant/1",
        };
        Ok(Some(State { schema: schema.to_owned(), data: json!({"ran": self.ran.load(Ordering::SeqCst)}) }))
    }

    fn import_state(&self, state: State) -> Result<(), CallError> {
        self.wait_at_the_door("waits-import");
        let ran = state.data["ran"].as_u64().ok_or_else(|| CallError::invalid("no count in the state"))?;
        self.ran.store(ran, Ordering::SeqCst);
        Ok(())
    }
}

impl Variant {
    /// Writes its process into a file beside the door, and waits until that is there.
    #[allow(clippy::disallowed_methods, reason = "a file of the test")]
    fn wait_at_the_door(&self, mode: &str) {
        let Some(door) = self.door.as_ref().filter(|_| self.mode == mode) else { return };
        let (part, whole) = (door.with_extension("part"), door.with_extension("pid"));
        let written = std::fs::write(&part, std::process::id().to_string());
        written.and_then(|()| std::fs::rename(&part, &whole)).expect("the directory is the test's");
        while !door.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn misbehave(&self, mandate: &Mandate, ctx: &Context) -> Result<(), CallError> {
        match self.mode.as_str() {
            "crashes" => panic!("this version crashes"),
            "differs" => drop(ctx.llm(&LlmRequest::user("one call more"))?),
            "fails" => return Err(CallError::failed("this version fails")),
            "hangs" => hang(ctx),
            "traps-panic" if trapped(mandate) => panic!("this version panics now"),
            "traps-fail" if trapped(mandate) => return Err(CallError::failed("this version fails now")),
            "traps-abort" if trapped(mandate) => std::process::abort(),
            "traps-hang" if trapped(mandate) => {
                hang(ctx);
                ctx.check_stop()?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn trapped(mandate: &Mandate) -> bool {
    mandate.params.get("trap").and_then(Value::as_bool).unwrap_or(false)
}

/// Until somebody asks it to end.
fn hang(ctx: &Context) {
    while !ctx.should_stop() {
        std::thread::sleep(Duration::from_millis(5));
    }
}
