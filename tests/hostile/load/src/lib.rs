//! A plugin whose root module panics while it is loaded. For tests only.

use kairos_plugin_api::abi::{Root, RunnerModRef};

kairos_plugin_api::export_manifest!();
kairos_plugin_api::export_root!(Panics);

struct Panics;

impl Root for Panics {
    fn root() -> RunnerModRef {
        // The hook would print a backtrace of something that is meant to happen.
        std::panic::set_hook(Box::new(|_| {}));
        panic!("nothing to see here");
    }
}
