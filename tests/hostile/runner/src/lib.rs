//! A runner that misbehaves as its parameters say. For tests only.
//!
//! Its configuration's `fault` chooses what goes wrong with the instance, a mandate's `fault`
//! what goes wrong with a cycle. Some faults no author could write by the kit; those come from a
//! runner that speaks the ABI by hand.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
mod misdeeds;

use std::time::Duration;

use abi_stable::prefix_type::PrefixTypeTrait;
use kairos_plugin_api::abi::{
    self, Answer, HostBox, RBox, RResult, RSlice, RVec, Runner_TO, RunnerBox, RunnerMod, RunnerModRef,
};
use kairos_plugin_api::adapter::{Export, Setup};
use kairos_plugin_api::context::method;
use kairos_plugin_api::{CallError, Context, CycleRunner, LlmRequest, Mandate, Report};
use serde_json::Value;

kairos_plugin_api::export_manifest!(name: "hostile", capabilities: &["llm"]);
kairos_plugin_api::export_root!(ByHand);

/// Keeps to the kit and does harm within it.
struct Hostile {
    panics_in_drop: bool,
}

impl CycleRunner for Hostile {
    fn new(params: &Value) -> Result<Self, CallError> {
        let fault = params["fault"].as_str().unwrap_or("");
        assert!(fault != "panic_in_new", "no instance of me");
        if fault == "refuse" {
            return Err(CallError::invalid("params.fault says to refuse"));
        }
        Ok(Self { panics_in_drop: fault == "panic_in_drop" })
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        let asked = |key: &str| mandate.params.get(key).and_then(Value::as_bool) == Some(true);
        if asked("phase") {
            ctx.phase("act")?;
        }
        if asked("pay") {
            ctx.llm(&LlmRequest::user("?"))?;
        }
        if asked("once") && mandate.attempt > 1 {
            return Ok(Report::ok());
        }
        match mandate.params.get("fault").and_then(Value::as_str).unwrap_or("") {
            "huge" => return Ok(Report { summary: Some("x".repeat(9 << 20)), ..Report::ok() }),
            "print" => misdeeds::flood()?,
            "measure" => return Ok(Report::ok().with_summary(misdeeds::measure().to_string())),
            // Ends when it is asked to, after a while.
            "late" => {
                ctx.log(tracing::Level::INFO, &format!("child {}", std::process::id()));
                let late = mandate.params.get("late_ms").and_then(Value::as_u64).unwrap_or(0);
                while !ctx.should_stop() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                std::thread::sleep(Duration::from_millis(late));
            }
            "children" => {
                misdeeds::leave_children(ctx)?;
                std::process::abort();
            }
            "children-loop" => {
                misdeeds::leave_children(ctx)?;
                misdeeds::spin();
            }
            "threads" => misdeeds::call_from_many_threads(ctx),
            "segv" => misdeeds::touch_nothing(),
            "abort" => std::process::abort(),
            "exit" => std::process::exit(7),
            "overflow" => drop(misdeeds::dig(1)),
            "loop" => misdeeds::spin(),
            "hunger" => misdeeds::eat(),
            "hang_up" => misdeeds::hang_up(),
            "forge" => misdeeds::forge(mandate.params.get("bytes").and_then(Value::as_str).unwrap_or("")),
            "payload" => std::panic::panic_any(Bomb),
            "unwrap" => drop(ctx.llm(&LlmRequest::user("?")).expect("an answer")),
            "swallow" => drop(ctx.llm(&LlmRequest::user("?"))),
            "panic" => panic!("asked to"),
            // As often as a benchmark wants.
            "ask" => {
                let asks = mandate.params.get("asks").and_then(Value::as_u64).unwrap_or(0);
                return Ok(Report { more: (0..asks).any(|_| ctx.should_stop()), ..Report::ok() });
            }
            // Likewise; the same request each time.
            "call" => {
                let text = |key: &str| mandate.params.get(key).and_then(Value::as_str).unwrap_or_default();
                let request = serde_json::to_vec(&LlmRequest::user(text("prompt")))?;
                for _ in 0..mandate.params.get("calls").and_then(Value::as_u64).unwrap_or(0) {
                    ctx.call(method::LLM, &request)?;
                }
            }
            // Asks something else each time it is run.
            "fickle" => {
                drop(ctx.llm(&LlmRequest::user(RandomState::new().build_hasher().finish().to_string()))?)
            }
            // Never looks whether it should stop.
            "deaf" => std::thread::sleep(Duration::from_secs(60)),
            _ => {}
        }
        Ok(Report::ok())
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        assert!(!self.panics_in_drop, "even the end is bad");
    }
}

/// A panic payload that panics again when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the payload too");
    }
}

/// Speaks the ABI and answers what is no report, or no error.
struct Babbler {
    error: bool,
}

impl abi::Runner for Babbler {
    fn run_cycle(&self, _: RSlice<'_, u8>, _: HostBox) -> Answer {
        if self.error {
            return RResult::RErr(RVec::from_slice(b"\xff not JSON"));
        }
        RResult::ROk(RVec::from_slice(br#"{"status": "splendid"}"#))
    }

    fn cancel(&self) {}

    fn probe(&self) -> Answer {
        RResult::ROk(RVec::new())
    }

    fn export_state(&self) -> Answer {
        RResult::ROk(RVec::new())
    }

    fn import_state(&self, _: RSlice<'_, u8>) -> Answer {
        RResult::ROk(RVec::new())
    }

    fn begin_drain(&self) {}
}

struct ByTheKit;

impl Export for ByTheKit {
    type Runner = Hostile;
    fn manifest() -> &'static [u8] {
        &MANIFEST
    }
}

struct ByHand;

impl abi::Root for ByHand {
    fn root() -> RunnerModRef {
        let kit = <ByTheKit as abi::Root>::root();
        RunnerMod { manifest: kit.manifest(), new_runner }.leak_into_prefix()
    }
}

extern "C" fn new_runner(home: HostBox, setup: RSlice<'_, u8>) -> RResult<RunnerBox, RVec<u8>> {
    let read: Option<Setup> = serde_json::from_slice(setup.as_slice()).ok();
    let fault = read.and_then(|read| read.params["fault"].as_str().map(str::to_owned));
    match fault.as_deref() {
        Some(fault @ ("bad_report" | "bad_error")) => {
            let babbler = Babbler { error: fault == "bad_error" };
            let boxed: Runner_TO<'static, RBox<()>> =
                RunnerBox::from_value(babbler, abi_stable::sabi_trait::TD_Opaque);
            RResult::ROk(boxed)
        }
        _ => <ByTheKit as abi::Root>::root().new_runner()(home, setup),
    }
}
