//! A plugin whose root module has other types than the host expects. For tests only.

#![allow(non_local_definitions, non_camel_case_types, missing_docs)]
#![allow(unsafe_code, reason = "abi_stable's generated code")]

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RSlice, RString};

kairos_plugin_api::export_manifest!();

#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RunnerModRef, prefix_fields = RunnerModPrefix)))]
pub struct RunnerMod {
    pub manifest: extern "C" fn() -> RSlice<'static, u8>,
    #[sabi(last_prefix_field)]
    pub new_runner: extern "C" fn(home: u64, setup: u64) -> RString,
}

impl RootModule for RunnerModRef {
    abi_stable::declare_root_module_statics! {RunnerModRef}

    const BASE_NAME: &'static str = "kairos_runner";
    const NAME: &'static str = "kairos runner";
    const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
}

#[abi_stable::export_root_module]
fn root() -> RunnerModRef {
    RunnerMod { manifest, new_runner }.leak_into_prefix()
}

extern "C" fn manifest() -> RSlice<'static, u8> {
    RSlice::from_slice(&MANIFEST)
}

extern "C" fn new_runner(home: u64, setup: u64) -> RString {
    RString::from(format!("{home} {setup}"))
}
