//! What a plugin says about itself without being run: JSON in the ELF section
//! [`SECTION`], written at compile time by [`export_runner!`](crate::export_runner).
//!
//! A manifest is a claim, not a grant: the host must never give more than its policy allows.

use serde::{Deserialize, Serialize};

/// Name of the ELF section that holds the manifest.
pub const SECTION: &str = ".kairos.manifest";

/// The manifest as the host reads it. Unknown keys are ignored, so a newer plugin can add some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this format, 1.
    pub schema: u32,
    /// The runner's name.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// Version of the plugin-api it was built with.
    pub api: String,
    /// The compiler it was built with; for people.
    #[serde(default)]
    pub rustc: String,
    /// `unwind` or `abort`: what a panic does. Empty where there are no panics, as in C.
    #[serde(default)]
    pub panic: String,
    /// `rust` or `c`: which of the two entries the plugin exports.
    #[serde(default = "rust")]
    pub abi: String,
    /// True when it goes through the five phases and says so.
    #[serde(default)]
    pub phases: bool,
    /// What it wants to call: `llm`, `propose`, `tool:fs.read`, ...
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Schemas of state it writes (the first) and reads.
    #[serde(default)]
    pub states: Vec<String>,
    /// Files of the root that it wants in a sandbox: `read:docs`, `write:out/today`; `.` is
    /// whatever the operator grants.
    #[serde(default)]
    pub files: Vec<String>,
}

fn rust() -> String {
    "rust".to_owned()
}

/// The manifest as the macro writes it: constants only.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// See [`Manifest::name`].
    pub name: &'static str,
    /// See [`Manifest::version`].
    pub version: &'static str,
    /// See [`Manifest::panic`].
    pub panic: &'static str,
    /// See [`Manifest::phases`].
    pub phases: bool,
    /// See [`Manifest::capabilities`].
    pub capabilities: &'static [&'static str],
    /// See [`Manifest::states`].
    pub states: &'static [&'static str],
    /// See [`Manifest::files`].
    pub files: &'static [&'static str],
}

impl Facts {
    /// A manifest that asks for nothing.
    #[must_use]
    pub const fn new(name: &'static str, version: &'static str, panic: &'static str) -> Self {
        Self { name, version, panic, phases: false, capabilities: &[], states: &[], files: &[] }
    }

    /// How long the JSON is.
    #[must_use]
    pub const fn json_len(&self) -> usize {
        self.write::<0>().at
    }

    /// The JSON; `N` is [`Self::json_len`].
    ///
    /// # Panics
    /// At compile time, when a text holds a quote, a backslash or a control character.
    #[must_use]
    pub const fn json<const N: usize>(&self) -> [u8; N] {
        self.write::<N>().bytes
    }

    const fn write<const N: usize>(&self) -> Writer<N> {
        let mut out = Writer { bytes: [0; N], at: 0 };
        out.raw("{\"schema\":1,\"name\":");
        out.text(self.name);
        out.raw(",\"version\":");
        out.text(self.version);
        out.raw(",\"api\":");
        out.text(crate::abi::API_VERSION);
        out.raw(",\"rustc\":");
        out.text(env!("KAIROS_PLUGIN_RUSTC"));
        out.raw(",\"panic\":");
        out.text(self.panic);
        out.raw(if self.phases { ",\"phases\":true" } else { ",\"phases\":false" });
        out.raw(",\"capabilities\":");
        out.list(self.capabilities);
        out.raw(",\"states\":");
        out.list(self.states);
        out.raw(",\"files\":");
        out.list(self.files);
        out.raw("}");
        out
    }
}

/// Writes up to `N` bytes and counts all of them, so that one function measures and writes.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    const fn raw(&mut self, text: &str) {
        let text = text.as_bytes();
        let mut from = 0;
        while from < text.len() {
            if self.at < N {
                self.bytes[self.at] = text[from];
            }
            self.at += 1;
            from += 1;
        }
    }

    const fn text(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] >= 0x20, "a manifest's texts hold no control character");
            assert!(bytes[at] != b'"' && bytes[at] != b'\\', "a manifest's texts hold no quote or backslash");
            at += 1;
        }
        self.raw("\"");
        self.raw(text);
        self.raw("\"");
    }

    const fn list(&mut self, texts: &[&str]) {
        self.raw("[");
        let mut at = 0;
        while at < texts.len() {
            if at > 0 {
                self.raw(",");
            }
            self.text(texts[at]);
            at += 1;
        }
        self.raw("]");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_at_compile_time_is_what_is_read() {
        const FACTS: Facts = Facts {
            phases: true,
            capabilities: &["llm", "tool:fs.read"],
            states: &["notes/1"],
            files: &["read:docs"],
            ..Facts::new("a-b", "1.2.3", "unwind")
        };
        static BYTES: [u8; FACTS.json_len()] = FACTS.json();
        let manifest: Manifest = serde_json::from_slice(&BYTES).expect("valid JSON");
        assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("a-b", "1.2.3"));
        assert_eq!((manifest.api.as_str(), manifest.panic.as_str()), (crate::abi::API_VERSION, "unwind"));
        assert!(manifest.rustc.starts_with("rustc "), "{}", manifest.rustc);
        assert!(manifest.phases && manifest.abi == "rust");
        assert_eq!(manifest.capabilities, ["llm", "tool:fs.read"]);
        assert_eq!(manifest.states, ["notes/1"]);
        assert_eq!(manifest.files, ["read:docs"]);
    }
}
