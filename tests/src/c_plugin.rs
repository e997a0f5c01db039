//! Plugins in C, compiled where a test needs them. A machine that links Rust has a C compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's own directory.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this crate")
}

/// Compiles `source`, relative to the workspace, into the library `out` in the strictest way, with
/// every `defines` set. Panics with the compiler's words when it cannot be.
pub fn compile(source: &str, defines: &[&str], out: &Path) {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let include = |dir: &str| format!("-I{}", workspace().join(dir).display());
    let output = Command::new(compiler)
        .args(["-std=c99", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .args([include("plugin-api/include"), include("examples/c-runner")])
        .args(defines.iter().map(|name| format!("-D{name}")))
        .arg("-o")
        .arg(out)
        .arg(workspace().join(source))
        .output()
        .expect("a C compiler runs");
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The library of the plugin `name` in `dir`, compiled from `source`.
#[must_use]
pub fn compiled(source: &str, name: &str, dir: &Path) -> PathBuf {
    let out = dir.join(format!("lib{}.so", name.replace('-', "_")));
    compile(source, &[], &out);
    out
}
