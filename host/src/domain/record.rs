//! One line of a mandate's write-ahead log: what it says, how it is sealed, and how a file of
//! them is checked. Works on bytes, never panics on any, knows nothing of files.
//!
//! ```text
//! {"op":"transition","step_id":"act_001",...,"ts":"...","seq":7,"crc":"0a1b2c3d"}\n
//!  ^---------------- covered by the crc, with the former crc before it ---------^
//! ```
//!
//! `crc` is the crc32c of the former line's crc (4 bytes, little endian) and of this line's bytes
//! before `,"crc"`. The first line's former crc is the crc32c of everything that stands before it
//! in the file: of nothing (0), or of the lines without seal that the reference wrote.

mod history;
mod lines;
mod scan;

pub use history::{DAMAGED, History, Plan, REBUILT, Step, UNCERTAIN};
pub use lines::{
    Append, PlanCommit, PlanFinalize, PlanOrigin, Transition, append, effect_step_id, phase_step_id,
    plan_commit, plan_finalize, plan_id, stated_usage, transition,
};
pub use scan::{Damage, Scan, legacy_head, line_head, verify};

use serde_json::{Map, Value};

/// Longest line, newline included. Longer ones are not read, and [`seal`] does not make them.
pub const MAX_LINE: usize = 1 << 20;

/// Ending of a log's name.
pub const SUFFIX: &str = ".wal.jsonl";
/// Ending of an archived one's.
pub const ARCHIVE_SUFFIX: &str = ".wal.jsonl.gz";
/// Largest log that is read, unpacked: a mandate's log is some hundred lines.
pub const MAX_FILE: u64 = 256 << 20;

/// The five phases, in the order a plan lists them.
pub const PHASES: [&str; 5] = ["observe", "orient", "decide", "act", "reflect"];

/// Where a log stands: the last line's number and crc. The default stands before the first line
/// of an empty file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Head {
    /// Number of the last line, from 1; 0 before the first.
    pub seq: u64,
    /// Its crc.
    pub crc: u32,
}

/// `,"crc":"` and what follows the eight digits.
const CRC_KEY: &[u8] = b",\"crc\":\"";
const CRC_TAIL: usize = CRC_KEY.len() + 8 + 2;

/// Room kept in a line for the seal and for the list of what was left out.
const SEAL_ROOM: usize = 4096;

/// The mandate of a file name, and whether it is an archive.
#[must_use]
pub fn mandate_of(name: &str) -> Option<(&str, bool)> {
    let (mandate, packed) = match name.strip_suffix(ARCHIVE_SUFFIX) {
        Some(mandate) => (mandate, true),
        None => (name.strip_suffix(SUFFIX)?, false),
    };
    (!mandate.is_empty() && !mandate.starts_with('.')).then_some((mandate, packed))
}

/// Makes the text of the next line, without its newline, and moves the head on.
///
/// `op` comes first, then the ids, then the other keys by name, `ts` last. A line that would be
/// longer than [`MAX_LINE`] loses its largest values; their keys are listed under `left_out`.
pub fn seal(head: &mut Head, mut fields: Map<String, Value>) -> String {
    fields.remove("seq");
    fields.remove("crc");
    let mut body = write_body(&fields);
    if body.len() > MAX_LINE - SEAL_ROOM {
        leave_out(&mut fields);
        body = write_body(&fields);
    }
    head.seq += 1;
    body.push_str(&format!(",\"seq\":{}", head.seq));
    head.crc = chain(head.crc, body.as_bytes());
    body.push_str(&format!(",\"crc\":\"{:08x}\"}}", head.crc));
    body
}

/// The crc of a line whose covered bytes are `body`, after a line whose crc was `former`.
fn chain(former: u32, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&former.to_le_bytes()), body)
}

/// The object without its closing brace.
fn write_body(fields: &Map<String, Value>) -> String {
    const FIRST: [&str; 5] = ["op", "step_id", "plan_id", "mandate_id", "cycle"];
    let middle = || {
        let mut keys: Vec<&str> =
            fields.keys().map(String::as_str).filter(|key| *key != "ts" && !FIRST.contains(key)).collect();
        keys.sort_unstable();
        keys
    };
    let mut out = String::from("{");
    for key in FIRST.into_iter().chain(middle()).chain(["ts"]) {
        let Some(value) = fields.get(key) else { continue };
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&Value::from(key).to_string());
        out.push(':');
        out.push_str(&value.to_string());
    }
    out
}

/// Drops values, the largest first, until the rest fits. The keys the reference reads stay: they
/// are ids and hashes, and are cut instead should one of them be that long.
fn leave_out(fields: &mut Map<String, Value>) {
    let mut sizes: Vec<(usize, String)> =
        fields.iter().map(|(key, value)| (value.to_string().len() + key.len() + 4, key.clone())).collect();
    sizes.sort_unstable();
    let mut total: usize = sizes.iter().map(|(size, _)| size).sum();
    let mut left_out = Vec::new();
    while total > MAX_LINE - 2 * SEAL_ROOM {
        let Some((size, key)) = sizes.pop() else { break };
        total -= size;
        let value = fields.remove(&key);
        if key == "op" || key.ends_with("_id") {
            let text = value.as_ref().and_then(Value::as_str).unwrap_or_default();
            let short: String = text.chars().take(200).collect();
            fields.insert(key, Value::from(short));
        } else if key.len() <= 64 && left_out.len() < 16 {
            left_out.push(Value::from(key));
        }
    }
    fields.insert("left_out".into(), Value::Array(left_out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("not an object: {other}"),
        }
    }

    #[test]
    fn sealed_line_has_its_keys_in_order_and_is_plain_json() {
        let mut head = Head::default();
        let line = seal(&mut head, object(json!({"ts": "t", "z": 1, "op": "append", "step_id": "s"})));
        assert!(line.starts_with(r#"{"op":"append","step_id":"s","z":1,"ts":"t","seq":1,"crc":""#), "{line}");
        let back: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["crc"], format!("{:08x}", head.crc));
        assert_eq!(head.seq, 1);
    }

    #[test]
    fn equal_fields_after_another_line_have_another_crc() {
        let fields = object(json!({"op": "append"}));
        let mut head = Head::default();
        seal(&mut head, fields.clone());
        let first = head.crc;
        seal(&mut head, fields);
        assert_ne!(first, head.crc);
    }

    #[test]
    fn a_huge_value_is_left_out_and_named() {
        let mut head = Head::default();
        let goal = "x".repeat(2 * MAX_LINE);
        let line = seal(&mut head, object(json!({"op": "plan_commit", "goal": goal, "plan_id": "p"})));
        assert!(line.len() < MAX_LINE);
        let back: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["left_out"], json!(["goal"]));
        assert_eq!(back["plan_id"], "p");
        let scan = verify(format!("{line}\n").as_bytes());
        assert_eq!(scan.head, head);
    }

    #[test]
    fn names_of_files_give_their_mandate() {
        assert_eq!(mandate_of("a.wal.jsonl"), Some(("a", false)));
        assert_eq!(mandate_of("a.wal.jsonl.gz"), Some(("a", true)));
        for name in ["a.wal.jsonl.cut-1", "a.jsonl", ".wal.jsonl", ".x.wal.jsonl", "a"] {
            assert_eq!(mandate_of(name), None, "{name}");
        }
    }
}
