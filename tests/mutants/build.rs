//! Writes another plugin-api than the one there is: its real sources with the change that the
//! package's name says. So a mutant never falls behind; a change that no longer fits fails here.
#![allow(clippy::disallowed_methods, reason = "a build script reads its environment and writes its output")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

const MODULES: [&str; 11] = [
    "abi", "adapter", "context", "effect", "error", "forward", "mandate", "manifest", "report", "runner",
    "usage",
];

/// In a module, a text that stands there once, and what takes its place.
type Change = (&'static str, &'static str, &'static str);

/// What 1.1 may do: a function and a method more, at the end of each type.
const NEWER: &[Change] = &[
    (
        "abi",
        "message: RStr<'_>, fields: RSlice<'_, u8>);\n",
        "message: RStr<'_>, fields: RSlice<'_, u8>);\n    fn later(&self) -> u32 {\n        7\n    }\n",
    ),
    (
        "abi",
        "    fn begin_drain(&self);\n",
        "    fn begin_drain(&self);\n    fn describe(&self) -> u32 {\n        11\n    }\n",
    ),
    (
        "abi",
        "RResult<RunnerBox, RVec<u8>>,\n}",
        "RResult<RunnerBox, RVec<u8>>,\n    pub added: extern \"C\" fn() -> u32,\n}",
    ),
    ("adapter", "new_runner: new_runner::<E> }", "new_runner: new_runner::<E>, added }"),
    (
        "adapter",
        "extern \"C\" fn manifest<E",
        "extern \"C\" fn added() -> u32 {\n    13\n}\n\nextern \"C\" fn manifest<E",
    ),
    // An older host has no such method: its default answers, and the runner works.
    ("adapter", "        self.0.should_stop()\n", "        self.0.should_stop() || self.0.later() != 7\n"),
];

const RENAMED: &[Change] = &[
    ("abi", "pub manifest: extern", "pub about: extern"),
    ("adapter", "RunnerMod { manifest: manifest::<E>", "RunnerMod { about: manifest::<E>"),
];

const RETYPED: &[Change] = &[
    (
        "abi",
        "fn run_cycle(&self, mandate: RSlice<'_, u8>, host",
        "fn run_cycle(&self, mandate: RStr<'_>, host",
    ),
    (
        "adapter",
        "fn run_cycle(&self, mandate: RSlice<'_, u8>, host",
        "fn run_cycle(&self, mandate: RStr<'_>, host",
    ),
    ("adapter", "serde_json::from_slice(mandate.as_slice())", "serde_json::from_str(mandate.as_str())"),
];

/// Two methods in each other's place: what was compiled against one order calls the wrong one.
const SWAPPED: &[Change] = &[(
    "abi",
    "    /// Running cycles should look at `should_stop` now.
    fn cancel(&self);

    /// Nothing -> nothing: could the instance work?
    fn probe(&self) -> Answer;
",
    "    fn probe(&self) -> Answer;
    fn cancel(&self);
",
)];

/// A method less than 1.0 has.
const CUT: &[Change] = &[
    (
        "abi",
        "    fn import_state(&self, state: RSlice<'_, u8>) -> Answer;\n",
        "    #[sabi(last_prefix_field)]\n    fn import_state(&self, state: RSlice<'_, u8>) -> Answer;\n",
    ),
    (
        "abi",
        "    /// No new cycle will come.\n    #[sabi(last_prefix_field)]\n    fn begin_drain(&self);\n",
        "",
    ),
    (
        "adapter",
        "    fn begin_drain(&self) {\n        let _ = self.enter(|runner| {\n            runner.begin_drain();\n            Ok(())\n        });\n    }\n",
        "",
    ),
];

fn main() {
    let var = |name: &str| std::env::var(name).expect("cargo sets it");
    let package = var("CARGO_PKG_NAME");
    let (version, changes) = match package.as_str() {
        "mutant-newer" => ("1.1.0", NEWER),
        "mutant-renamed" => ("1.0.0", RENAMED),
        "mutant-retyped" => ("1.0.0", RETYPED),
        "mutant-swapped" => ("1.0.0", SWAPPED),
        "mutant-cut" => ("1.0.0", CUT),
        other => panic!("{other} has no changes"),
    };
    let sources = Path::new(&var("CARGO_MANIFEST_DIR")).join("../../../plugin-api/src");
    println!("cargo::rerun-if-changed=../build.rs");
    let mut api = String::new();
    for module in MODULES {
        let path = sources.join(format!("{module}.rs"));
        println!("cargo::rerun-if-changed={}", path.display());
        let mut text = std::fs::read_to_string(&path).expect("the module is there");
        for (_, from, to) in changes.iter().filter(|change| change.0 == module) {
            assert_eq!(text.matches(from).count(), 1, "{module} does not hold once: {from}");
            text = text.replace(from, to);
        }
        // Writing to a text cannot fail.
        let _ = writeln!(api, "pub mod {module} {{\n{text}\n}}");
    }
    std::fs::write(Path::new(&var("OUT_DIR")).join("api.rs"), api).expect("the output can be written");
    // A layout names its package and version, and this one plays the real one.
    println!("cargo::rustc-env=CARGO_PKG_NAME=kairos-plugin-api");
    println!("cargo::rustc-env=CARGO_PKG_VERSION={version}");
    let rustc = Command::new(var("RUSTC")).arg("--version").output().expect("the compiler runs");
    println!("cargo::rustc-env=KAIROS_PLUGIN_RUSTC={}", String::from_utf8_lossy(&rustc.stdout).trim());
}
