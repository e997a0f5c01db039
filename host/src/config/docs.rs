//! The configuration reference, made from the tables of [`super::keys`] and from what the
//! readers say about their values. `host/docs/config.md` is this text; a test compares the two.

use std::fmt::Write as _;

use serde_json::Value;

use super::daemon::DaemonConfig;
use super::env;
use super::keys::{self, Key, When};
use super::reader::Effective;
use super::schedules;
use crate::sys::zones::Zones;

/// A file in which every key of daemon.yml is asked for.
const EVERYTHING: &[u8] =
    b"runners: {NAME: {}}\ncommands: {NAME: {argv: [x]}}\nllm:\n  default: a\n  providers:\n    a: {kind: anthropic}\n    \
    b: {kind: openai, base_url: 'http://x'}\n    c: {kind: scripted}\n";

/// The whole reference in Markdown.
#[must_use]
pub fn markdown() -> String {
    let zones = Zones::bundled();
    let everything = DaemonConfig::parse(EVERYTHING, "", &[], &zones)
        .map(|(config, _)| config.effective)
        .unwrap_or_default();
    // Defaults are those of an empty file, where it has the key.
    let mut daemon = DaemonConfig::defaults().effective;
    daemon.extend(everything);
    let mut text = String::from(INTRODUCTION);
    table(&mut text, keys::DAEMON, &daemon, true);
    text.push_str(SCHEDULES);
    table(&mut text, keys::SCHEDULE, &schedules::documented(&zones), false);
    text.push_str(ENVIRONMENT);
    for (name, key, meaning) in env::OVERRIDES {
        line(&mut text, &format!("| `{name}` | {meaning} Outranks `{key}`. |"));
    }
    for (name, meaning) in env::OTHERS {
        line(&mut text, &format!("| `{name}` | {meaning} |"));
    }
    text
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a String does not fail");
}

fn table(text: &mut String, keys: &[Key], known: &[Effective], with_reload: bool) {
    line(
        text,
        if with_reload {
            "| key | value | default | changes | meaning |"
        } else {
            "| key | value | default | meaning |"
        },
    );
    line(text, if with_reload { "|---|---|---|---|---|" } else { "|---|---|---|---|" });
    for key in keys {
        let found = known.iter().find(|known| keys::matches(key.path, &known.key));
        let kind = found.map_or("", |known| known.kind.as_str());
        let default = found.map_or_else(String::new, |known| shown(key.path, &known.value));
        let when = match key.when {
            When::Reload => "on reload |",
            When::Restart => "on restart |",
        };
        let when = if with_reload { when } else { "" };
        line(
            text,
            &format!("| `{}` | {kind} | {default} | {when} {} |", key.path, key.meaning).replace("|  ", "| "),
        );
    }
}

fn shown(path: &str, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        // What the sample file had to say, not a default.
        _ if path.ends_with(".kind") || path == "runners.*.plugin" => String::new(),
        _ if path == "commands.*.argv" => String::new(),
        Value::Array(list) if list.is_empty() => String::new(),
        Value::Object(map) if map.is_empty() => String::new(),
        Value::String(text) => format!("`{text}`"),
        value => format!("`{value}`"),
    }
}

const INTRODUCTION: &str = "\
# Configuration

Kairos reads `.kairos/config/daemon.yml` and `.kairos/config/schedules.yml` below its root. Both are YAML; JSON is YAML
and works too. Every key of `daemon.yml` is optional, unknown keys are refused. `kairos config check` reports all
problems of both files in one go, `kairos config dump` shows every value that counts and where it comes from.

A value comes from the command line, else from the environment, else from the file, else it is the default. Durations
are numbers of seconds or numbers with units (`ms`, `s`, `m`, `h`, `d`, `w`), `1h30m` for example. Relative paths start
at the root. `kairos reload` (or SIGHUP) reads the files again; what it cannot change is marked *on restart*.

This page is generated from the code.

## daemon.yml

";

const SCHEDULES: &str = "
## schedules.yml

`schedules:` is a list; each entry has these keys. A bad entry is set aside with all its problems, the others run.

";

const ENVIRONMENT: &str = "
## Environment

| variable | meaning |
|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::files;
    use std::path::Path;

    /// Run with `UPDATE_DOCS=1` to write the page anew.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "the switch of the test itself")]
    fn page_is_what_the_code_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
        let text = markdown();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            files::create_dirs(path.parent().unwrap()).unwrap();
            files::replace(&path, text.as_bytes(), files::SHARED).unwrap();
        }
        let page = files::read(&path, 1 << 20).unwrap().expect("host/docs/config.md is there");
        assert!(
            page == text.as_bytes(),
            "host/docs/config.md is out of date: run this test with UPDATE_DOCS=1"
        );
    }
}
