//! Checks the bytes of a log, from the first to the last, without trusting any of them.

use std::ops::Range;

use serde_json::Value;

use super::{CRC_KEY, CRC_TAIL, Head, MAX_LINE, chain};

/// What the bytes of a log turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Lines without seal at the start, as the reference writes them.
    pub legacy_lines: u64,
    /// Where they end.
    pub legacy_end: usize,
    /// Sealed lines after them, up to the first bad byte.
    pub chained: u64,
    /// The last good line; sealing goes on from here.
    pub head: Head,
    /// Where the good bytes end: just after the newline of the last good line.
    pub valid_end: usize,
    /// Bad bytes with no good line after them: a write that was cut off.
    pub torn_tail: Option<Range<usize>>,
    /// Bad bytes with good lines after them: damage.
    pub damage: Option<Damage>,
}

/// Bad bytes in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where the first bad line starts.
    pub offset: usize,
    /// Its number in the file, from 1.
    pub line: u64,
}

impl Scan {
    /// True when every byte is good.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.torn_tail.is_none() && self.damage.is_none()
    }
}

/// Checks a whole log.
#[must_use]
pub fn verify(bytes: &[u8]) -> Scan {
    let mut scan = Scan::default();
    let mut lines = Lines { bytes, at: 0 };
    let mut number = 0;
    while let Some(range) = lines.next_line() {
        number += 1;
        let line = &bytes[range.clone()];
        if range.end < bytes.len() && accept(&mut scan, bytes, line, range.end + 1) {
            continue;
        }
        if good_line_follows(&scan, bytes, line, lines) {
            scan.damage = Some(Damage { offset: range.start, line: number });
        } else {
            scan.torn_tail = Some(range.start..bytes.len());
        }
        break;
    }
    scan
}

/// The head with which sealing begins after these lines of the reference.
#[must_use]
pub fn legacy_head(legacy: &[u8]) -> Head {
    Head { seq: 0, crc: crc32c::crc32c(legacy) }
}

/// Number and crc that a sealed line states of itself, checked against nothing.
#[must_use]
pub fn line_head(line: &[u8]) -> Option<Head> {
    let (body, crc) = split_crc(line)?;
    Some(Head { seq: stated_seq(body)?, crc })
}

/// Takes a complete line into the scan if it is good.
fn accept(scan: &mut Scan, bytes: &[u8], line: &[u8], next: usize) -> bool {
    if let Some((body, crc)) = split_crc(line) {
        let former = scan.head;
        let seq = former.seq + 1;
        if line.len() >= MAX_LINE || stated_seq(body) != Some(seq) || chain(former.crc, body) != crc {
            return false;
        }
        scan.chained += 1;
        scan.head = Head { seq, crc };
    } else {
        if scan.chained > 0 || !is_legacy(line) {
            return false;
        }
        scan.legacy_lines += 1;
        scan.head.crc = crc32c::crc32c_append(scan.head.crc, &bytes[scan.legacy_end..next]);
        scan.legacy_end = next;
    }
    scan.valid_end = next;
    true
}

/// True when some line after the bad one is good by itself: it continues the line before it as
/// that one states its crc, or as its crc would be if only its digits were damaged.
fn good_line_follows(scan: &Scan, bytes: &[u8], bad: &[u8], mut rest: Lines<'_>) -> bool {
    let mut former: Vec<u32> = Vec::with_capacity(2);
    former.extend(split_crc(bad).map(|(_, crc)| crc));
    if let Some(cut) = bad.len().checked_sub(CRC_TAIL) {
        former.push(chain(scan.head.crc, &bad[..cut]));
    }
    while let Some(range) = rest.next_line() {
        let line = &bytes[range.clone()];
        let complete = range.end < bytes.len();
        match split_crc(line) {
            Some((body, crc)) => {
                if complete && former.iter().any(|former| chain(*former, body) == crc) {
                    return true;
                }
                former.clear();
                former.push(crc);
            }
            None if complete && scan.chained == 0 && is_legacy(line) => return true,
            None => former.clear(),
        }
    }
    false
}

/// The covered bytes and the stated crc of a line that ends as a sealed one does.
fn split_crc(line: &[u8]) -> Option<(&[u8], u32)> {
    let (body, tail) = line.split_at(line.len().checked_sub(CRC_TAIL)?);
    let digits = tail.strip_prefix(CRC_KEY)?.strip_suffix(b"\"}")?;
    if !digits.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let crc = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    Some((body, crc))
}

/// The `"seq":n` that the covered bytes end with.
fn stated_seq(body: &[u8]) -> Option<u64> {
    const KEY: &[u8] = b",\"seq\":";
    let digits = body.iter().rev().take_while(|c| c.is_ascii_digit()).count();
    let (front, number) = body.split_at(body.len() - digits);
    if !front.ends_with(KEY) || number.is_empty() || (number.len() > 1 && number[0] == b'0') {
        return None;
    }
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// A line of the reference: an object with an `op`, without our keys. Empty lines pass, as there.
fn is_legacy(line: &[u8]) -> bool {
    if line.len() >= MAX_LINE {
        return false;
    }
    if line.iter().all(u8::is_ascii_whitespace) {
        return true;
    }
    match serde_json::from_slice::<Value>(line) {
        Ok(Value::Object(map)) => {
            map.get("op").is_some_and(Value::is_string)
                && !map.contains_key("seq")
                && !map.contains_key("crc")
        }
        _ => false,
    }
}

/// Walks over lines; the last one may lack its newline.
#[derive(Clone, Copy)]
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Lines<'_> {
    fn next_line(&mut self) -> Option<Range<usize>> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|c| *c == b'\n').unwrap_or(rest.len());
        let range = self.at..self.at + length;
        self.at = range.end + 1;
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Head, seal};
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, json};

    const LEGACY: &str = "{\"op\":\"plan_commit\",\"plan_id\":\"p\",\"ts\":\"2026-01-01T00:00:00.000Z\"}\n";

    fn log(legacy: &str, lines: u64) -> (Vec<u8>, Head) {
        let mut head = legacy_head(legacy.as_bytes());
        let mut text = legacy.to_owned();
        for n in 0..lines {
            let mut fields = Map::new();
            fields.insert("op".into(), json!("transition"));
            fields.insert("step_id".into(), json!(format!("act_{n:03}")));
            fields.insert("note".into(), json!("é\n\"\\ ,\"crc\":\"00000000\"}"));
            text.push_str(&seal(&mut head, fields));
            text.push('\n');
        }
        (text.into_bytes(), head)
    }

    #[test]
    fn a_sound_log_is_read_to_its_head() {
        for legacy in ["", LEGACY] {
            let (bytes, head) = log(legacy, 12);
            let scan = verify(&bytes);
            assert!(scan.is_sound());
            assert_eq!((scan.chained, scan.head, scan.valid_end), (12, head, bytes.len()));
            assert_eq!(scan.legacy_end, legacy.len());
        }
        assert_eq!(verify(b""), Scan::default());
    }

    #[test]
    fn any_changed_byte_is_found() {
        for legacy in ["", LEGACY] {
            let (good, head) = log(legacy, 12);
            let last = good.len() - good.iter().rev().skip(1).position(|c| *c == b'\n').unwrap() - 1;
            for at in 0..good.len() {
                for flip in [1u8, 0x20, 0x80, 0xff] {
                    let mut bad = good.clone();
                    bad[at] ^= flip;
                    let scan = verify(&bad);
                    assert!(!scan.is_sound(), "offset {at} flip {flip:#x} passed");
                    assert!(scan.head.seq < head.seq);
                    if at < legacy.len() {
                        continue; // what it broke is told by the first sealed line after it
                    }
                    assert!(scan.valid_end <= at, "offset {at} lies in the good part");
                    // A bad newline of the last but one line glues the two last lines together.
                    if at < last - 1 {
                        assert!(scan.damage.is_some(), "offset {at} flip {flip:#x} taken for a torn tail");
                    } else {
                        assert!(scan.torn_tail.is_some());
                    }
                }
            }
        }
    }

    #[test]
    fn any_cut_leaves_a_prefix_and_a_torn_tail() {
        let (good, _) = log(LEGACY, 12);
        for cut in 0..good.len() {
            let scan = verify(&good[..cut]);
            let whole = good[..cut].iter().rposition(|c| *c == b'\n').map_or(0, |at| at + 1);
            assert_eq!(scan.valid_end, whole);
            assert_eq!(scan.torn_tail, (whole < cut).then_some(whole..cut));
            assert_eq!(scan.damage, None);
        }
    }

    #[test]
    fn a_lost_line_and_a_doubled_line_are_damage() {
        let (good, _) = log("", 4);
        let lines: Vec<&[u8]> = good.split_inclusive(|c| *c == b'\n').collect();
        let without: Vec<u8> = [lines[0], lines[2], lines[3]].concat();
        let doubled: Vec<u8> = [lines[0], lines[1], lines[1], lines[2], lines[3]].concat();
        assert_eq!(verify(&without).damage, Some(Damage { offset: lines[0].len(), line: 2 }));
        assert_eq!(verify(&doubled).damage.map(|damage| damage.line), Some(3));
    }

    #[test]
    fn bad_lines_of_the_reference_are_told_apart_too() {
        let torn = format!("{LEGACY}{}", &LEGACY[..20]);
        assert_eq!(verify(torn.as_bytes()).torn_tail, Some(LEGACY.len()..torn.len()));
        for middle in ["[1]\n", "\u{0}\n", "{\"op\":1}\n", "{\"op\":\"append\"\n"] {
            let text = format!("{LEGACY}{middle}{LEGACY}");
            let scan = verify(text.as_bytes());
            assert_eq!(scan.damage, Some(Damage { offset: LEGACY.len(), line: 2 }), "{middle:?}");
        }
        let invalid = [LEGACY.as_bytes(), b"\xff\xfe\n", LEGACY.as_bytes()].concat();
        assert!(verify(&invalid).damage.is_some());
    }

    #[test]
    fn a_line_past_the_cap_is_bad_without_being_read() {
        let mut bytes = vec![b' '; MAX_LINE + 5];
        bytes.push(b'\n');
        let scan = verify(&bytes);
        assert_eq!(scan.valid_end, 0);
        assert!(!scan.is_sound());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let scan = verify(&bytes);
            prop_assert!(scan.valid_end <= bytes.len());
        }

        #[test]
        fn garbage_behind_a_good_log_never_counts_as_part_of_it(
            tail in proptest::collection::vec(any::<u8>(), 1..300), lines in 1u64..5
        ) {
            let (mut bytes, head) = log("", lines);
            let good = bytes.len();
            bytes.extend_from_slice(&tail);
            let scan = verify(&bytes);
            prop_assert_eq!((scan.head, scan.valid_end), (head, good));
            prop_assert!(!scan.is_sound());
        }

        #[test]
        fn pieces_of_lines_in_any_order_never_panic(cuts in proptest::collection::vec((0usize..900, 0usize..900), 0..6)) {
            let (good, _) = log(LEGACY, 5);
            let mut bytes = Vec::new();
            for (a, b) in cuts {
                let (a, b) = (a.min(b).min(good.len()), a.max(b).min(good.len()));
                bytes.extend_from_slice(&good[a..b]);
            }
            let scan = verify(&bytes);
            prop_assert!(scan.valid_end <= bytes.len());
        }
    }
}
