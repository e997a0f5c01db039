//! Tells the crate which compiler builds it, so that a plugin's manifest can say so.
#![allow(clippy::disallowed_methods, reason = "a build script is told its compiler by the environment")]

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    // The manifest is JSON written at compile time, which keeps to plain characters.
    let plain = version.trim().replace(['"', '\\'], "");
    println!("cargo::rustc-env=KAIROS_PLUGIN_RUSTC={plain}");
}
