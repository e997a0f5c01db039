//! A runner built against another plugin-api than the host's, which the build script writes. As a
//! library it is the other side: a host of that version. For tests only.

#![allow(
    missing_docs,
    dead_code,
    reason = "the sources are those of plugin-api, whose own build judges them"
)]
#![allow(unsafe_code, reason = "the exported symbol and section, here not by a foreign macro")]

use std::sync::Arc;

include!(concat!(env!("OUT_DIR"), "/api.rs"));

pub use context::{Context, HostCalls};
pub use effect::{LlmMessage, LlmReply, LlmRequest, ToolCall, ToolReply};
pub use error::{CallError, code};
pub use mandate::Mandate;
pub use report::{Report, Status};
pub use runner::{CycleRunner, State};
pub use usage::Usage;

pub const PAYLOAD_SCHEMA: u32 = 1;

struct Mutant;

// What `export_runner!` writes, by hand: a macro of included sources cannot call its kin.
const FACTS: manifest::Facts =
    manifest::Facts { capabilities: &["llm"], ..manifest::Facts::new("mutant", "0.1.0", "unwind") };

#[used]
#[unsafe(link_section = ".kairos.manifest")]
static MANIFEST: [u8; FACTS.json_len()] = FACTS.json();

#[unsafe(no_mangle)]
pub static _1as_0lib_1header_0root_bmodule_bloader: abi::LibHeader = abi::header::<Exported>();

struct Exported;

impl adapter::Export for Exported {
    type Runner = Mutant;
    fn manifest() -> &'static [u8] {
        &MANIFEST
    }
}

impl CycleRunner for Mutant {
    fn new(_: &serde_json::Value) -> Result<Self, CallError> {
        Ok(Self)
    }

    fn run_cycle(&self, mandate: &Mandate, ctx: &Context) -> Result<Report, CallError> {
        ctx.phase("observe")?;
        let reply = ctx.llm(&LlmRequest::user(mandate.goal.clone()))?;
        ctx.check_stop()?;
        Ok(Report::ok().with_summary(reply.text))
    }
}

/// A host of this version, for a runner of any other.
pub struct Host(pub Arc<dyn HostCalls>);

impl Host {
    #[must_use]
    pub fn boxed(self) -> abi::HostBox {
        abi::HostBox::from_value(self, abi_stable::sabi_trait::TD_Opaque)
    }
}

impl abi::HostCtx for Host {
    fn call(&self, method: abi::RStr<'_>, request: abi::RSlice<'_, u8>) -> abi::Answer {
        match self.0.call(method.as_str(), request.as_slice()) {
            Ok(bytes) => abi::RResult::ROk(bytes.into()),
            Err(error) => abi::RResult::RErr(serde_json::to_vec(&error).unwrap_or_default().into()),
        }
    }

    fn should_stop(&self) -> bool {
        self.0.should_stop()
    }

    fn deadline_ms(&self) -> i64 {
        self.0.deadline().map_or(abi::NO_DEADLINE, |deadline| deadline.timestamp_millis())
    }

    fn log(&self, _level: u32, target: abi::RStr<'_>, message: abi::RStr<'_>, _fields: abi::RSlice<'_, u8>) {
        self.0.log(tracing::Level::INFO, target.as_str(), message.as_str(), &serde_json::Value::Null);
    }
}
