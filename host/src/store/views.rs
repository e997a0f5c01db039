//! The published views: `budget.json` and `chronos_state.yml` in the reference's format, for people
//! and programs that know it. Written from the store, never read back while there is one.

use std::fmt::Write as _;
use std::path::Path;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;

use super::{DayTotals, Limits, ScheduleState};
use crate::sys::files::{self, Durability, FileError};

/// More schedules than this are not published: the file would take longer to write than to ask for.
pub const CHRONOS_MAX: usize = 10_000;

/// The text of `budget.json`. The reference's keys come first; what is reserved and what it costs
/// are ours. `limit` is that on calls; a ledger without one says null.
#[must_use]
pub fn budget_json(day: &str, totals: &DayTotals, limits: Option<&Limits>) -> String {
    let limit = |pick: fn(&Limits) -> Option<u64>| limits.and_then(pick);
    let text = |value: serde_json::Value| value.to_string();
    let mut out = String::from("{");
    let fields = [
        ("date", text(json!(day))),
        ("llm_calls", text(json!(totals.spent.llm_calls))),
        ("input_tokens", text(json!(totals.spent.input_tokens))),
        ("output_tokens", text(json!(totals.spent.output_tokens))),
        ("limit", text(json!(limit(|limits| limits.calls)))),
        ("cost_nano_usd", text(json!(totals.spent.cost_nano_usd))),
        ("limit_tokens", text(json!(limit(|limits| limits.tokens)))),
        ("limit_nano_usd", text(json!(limit(|limits| limits.nano_usd)))),
        ("reserved", text(json!(totals.reserved))),
    ];
    for (at, (key, value)) in fields.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(out, "{comma}\"{key}\":{value}");
    }
    out.push('}');
    out
}

/// The text of `chronos_state.yml`. `next` gives the next fire of a schedule, if it has one.
#[must_use]
pub fn chronos_state_yml(
    schedules: &[ScheduleState],
    next: &mut dyn FnMut(&str) -> Option<DateTime<Utc>>,
) -> String {
    let mut out = String::from("---\nschedules:");
    if schedules.is_empty() {
        out.push_str(" {}\n");
        return out;
    }
    out.push('\n');
    for state in schedules {
        let _ = writeln!(out, "  {}:", key(&state.name));
        let _ = writeln!(out, "    last_evaluated_at: '{}'", stamp(state.cursor));
        if let Some(at) = state.last_fired {
            let _ = writeln!(out, "    last_fire_at: '{}'", stamp(at));
        }
        if let Some(at) = next(&state.name) {
            let _ = writeln!(out, "    next_fire_at: '{}'", stamp(at));
        }
    }
    out
}

/// Replaces `budget.json`; readers see the old or the new one whole.
///
/// # Errors
/// Of the file. The view is old then, nothing else.
pub fn publish_budget(path: &Path, text: &str) -> Result<(), FileError> {
    files::replace_with(path, text.as_bytes(), files::PRIVATE, Durability::Visible)
}

/// Replaces `chronos_state.yml`, durably: without a store it is all that tells the cursors.
///
/// # Errors
/// Of the file. The view is old then, nothing else.
pub fn publish_chronos(path: &Path, text: &str) -> Result<(), FileError> {
    files::replace(path, text.as_bytes(), files::PRIVATE)
}

fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A name as a YAML key: plain where that is surely a text, else in JSON's quotes, which YAML reads.
fn key(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
        && !["y", "n", "yes", "no", "on", "off", "true", "false", "null"].contains(&name);
    if plain {
        return name.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in name.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            // Beside the control characters these are line breaks or unprintable to YAML.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;
    use kairos_plugin_api::Usage;

    fn state(name: &str) -> ScheduleState {
        let at = Utc.with_ymd_and_hms(2026, 11, 22, 9, 0, 0).unwrap();
        ScheduleState {
            name: name.to_owned(),
            rule: "r".into(),
            cursor: at,
            last_nominal: Some(at),
            last_fired: Some(at),
            pause: None,
            skip: vec![],
            failures: 0,
        }
    }

    #[test]
    fn budget_has_the_reference_keys_in_front() {
        let totals = DayTotals {
            spent: Usage { llm_calls: 3, input_tokens: 5, output_tokens: 7, cost_nano_usd: 9 },
            reserved: Usage { llm_calls: 1, ..Usage::ZERO },
        };
        let text = budget_json("2026-11-22", &totals, Some(&Limits { calls: Some(10), ..Limits::default() }));
        assert!(
            text.starts_with(
                r#"{"date":"2026-11-22","llm_calls":3,"input_tokens":5,"output_tokens":7,"limit":10,"#
            ),
            "{text}"
        );
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["reserved"]["llm_calls"], 1);
        assert!(back["limit_tokens"].is_null());
    }

    #[test]
    fn chronos_state_reads_as_the_reference_writes_it() {
        let text = chronos_state_yml(&[state("daily"), state("a: \"b\"\n\0é")], &mut |name| {
            (name == "daily").then(|| Utc.with_ymd_and_hms(2026, 11, 23, 9, 0, 0).unwrap())
        });
        assert_eq!(
            text,
            "---\nschedules:\n  daily:\n    last_evaluated_at: '2026-11-22T09:00:00Z'\n    \
             last_fire_at: '2026-11-22T09:00:00Z'\n    next_fire_at: '2026-11-23T09:00:00Z'\n  \
             \"a: \\\"b\\\"\\u000a\\u0000é\":\n    last_evaluated_at: '2026-11-22T09:00:00Z'\n    \
             last_fire_at: '2026-11-22T09:00:00Z'\n"
        );
        assert_eq!(chronos_state_yml(&[], &mut |_| None), "---\nschedules: {}\n");
        assert_eq!(key("yes"), "\"yes\"");
        assert_eq!(key("7up"), "\"7up\"");
    }
}
