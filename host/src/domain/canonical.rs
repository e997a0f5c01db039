//! One spelling for each JSON value, and its hash, so that two requests of equal intent have
//! equal keys. Must stay byte for byte what it is: the hashes are in WAL files and stores.
//!
//! Keys are sorted by their bytes, nothing stands between tokens, volatile keys are left out at
//! every depth, arrays keep their order. Strings escape only what JSON demands. Integers are
//! plain; other numbers are the shortest digits that read back equal, always with a fraction,
//! with an exponent below 1e-4 and from 1e16 on (the reference's form).

use std::fmt::Write as _;

use serde_json::{Number, Value};
use sha2::{Digest, Sha256};

/// Bookkeeping that does not belong to the intent of a request.
pub const VOLATILE_KEYS: [&str; 5] = ["timestamp", "ts", "request_id", "trace_id", "nonce"];

/// What every hash starts with.
pub const PREFIX: &str = "sha256-";

/// The canonical text.
#[must_use]
pub fn serialize(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value);
    out
}

/// `sha256-` and the hash of the canonical text: `params_hash`, `plan_hash`, `result_hash`.
#[must_use]
pub fn hash(value: &Value) -> String {
    hash_bytes(serialize(value).as_bytes())
}

/// `sha256-` and the hash of these bytes, of a file's content for example.
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> String {
    format!("{PREFIX}{}", hex::encode(Sha256::digest(bytes)))
}

/// Idempotency key of a step: the same on every attempt of it, another for any other step.
#[must_use]
pub fn step_key(mandate: &str, cycle: u32, seq: u32, params_hash: &str) -> String {
    hash(&serde_json::json!({
        "cycle": cycle, "mandate_id": mandate, "params_hash": params_hash, "step": seq,
    }))
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_value(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut keys: Vec<&String> =
                map.keys().filter(|key| !VOLATILE_KEYS.contains(&key.as_str())).collect();
            keys.sort_unstable();
            out.push('{');
            for (at, key) in keys.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_string(out, key);
                out.push(':');
                write_value(out, &map[key]);
            }
            out.push('}');
        }
    }
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn write_number(out: &mut String, number: &Number) {
    let float = match number.as_f64() {
        Some(float) if !number.is_i64() && !number.is_u64() => float,
        _ => {
            let _ = write!(out, "{number}");
            return;
        }
    };
    // `{:e}` gives the shortest digits that read back equal: `-1.25e-7`.
    let text = format!("{float:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        let whole = !plain.contains('.');
        out.push_str(&plain);
        if whole {
            out.push_str(".0");
        }
        return;
    }
    out.push_str(digits);
    if !digits.contains('.') {
        out.push_str(".0");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    let _ = write!(out, "e{sign}{:02}", exponent.abs());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn keys_are_sorted_and_volatile_ones_left_out_at_every_depth() {
        let value = json!({"b": [{"ts": 1, "z": null, "a": true}], "nonce": "x", "a": {"request_id": 1}});
        assert_eq!(serialize(&value), r#"{"a":{},"b":[{"a":true,"z":null}]}"#);
    }

    #[test]
    fn numbers_and_strings_have_one_form() {
        let cases = [
            (json!(0), "0"),
            (json!(-7), "-7"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(1.0), "1.0"),
            (json!(-0.0), "-0.0"),
            (json!(0.1), "0.1"),
            (json!(0.0001), "0.0001"),
            (json!(0.00001), "1.0e-05"),
            (json!(1e15), "1000000000000000.0"),
            (json!(1e16), "1.0e+16"),
            (json!(1.25e100), "1.25e+100"),
            (json!("a\"\\\n\u{1}/é\u{7f}"), "\"a\\\"\\\\\\n\\u0001/é\u{7f}\""),
        ];
        for (value, expected) in cases {
            assert_eq!(serialize(&value), expected);
        }
    }

    #[test]
    fn known_hash_stays() {
        // sha256 of `{"cycle":1,"phase":"act","state":"pre"}`, as the reference's plans have it.
        let value = json!({"phase": "act", "state": "pre", "cycle": 1, "ts": "now"});
        let direct = hash_bytes(br#"{"cycle":1,"phase":"act","state":"pre"}"#);
        assert_eq!(hash(&value), direct);
        assert_eq!(direct.len(), PREFIX.len() + 64);
        assert_eq!(
            hash_bytes(b""),
            "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn step_keys_differ_by_every_part() {
        let keys = [
            step_key("m", 1, 1, "p"),
            step_key("n", 1, 1, "p"),
            step_key("m", 2, 1, "p"),
            step_key("m", 1, 2, "p"),
            step_key("m", 1, 1, "q"),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(step_key("m", 1, 1, "p"), keys[0]);
    }

    proptest! {
        #[test]
        fn canonical_text_reads_back_equal(text in ".*", int in any::<i64>(), float in any::<f64>()) {
            let float = if float.is_finite() { float } else { 0.5 };
            let value = json!({"t": text, "i": int, "f": float});
            let back: Value = serde_json::from_str(&serialize(&value)).unwrap();
            prop_assert_eq!(&back["t"], &value["t"]);
            prop_assert_eq!(&back["i"], &value["i"]);
            prop_assert!((back["f"].as_f64().unwrap() - float).abs() <= float.abs() * 1e-15);
        }
    }
}
