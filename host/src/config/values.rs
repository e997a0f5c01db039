//! Durations, sizes and decimal amounts as people write them, read and shown without floating point.

use std::fmt::Write as _;
use std::time::Duration;

/// Billionths in one.
pub const NANO: u64 = 1_000_000_000;

const UNITS: &[(&str, u64)] = &[
    ("ms", 1_000_000),
    ("s", NANO),
    ("m", 60 * NANO),
    ("h", 3600 * NANO),
    ("d", 86_400 * NANO),
    ("w", 7 * 86_400 * NANO),
];

/// `500ms`, `10m`, `1h30m`, `2.5` (seconds). `None` for anything else, and beyond 500 years.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if let Some(nanos) = parse_decimal(rest) {
        return Some(Duration::from_nanos(nanos));
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let nanos = u128::from(parse_decimal(number)?) * u128::from(*scale) / u128::from(NANO);
        total = total.checked_add(u64::try_from(nanos).ok()?)?;
        rest = after;
    }
    (!text.trim().is_empty()).then(|| Duration::from_nanos(total))
}

/// The shortest form that [`parse_duration`] reads back to the same value.
#[must_use]
pub fn show_duration(value: Duration) -> String {
    let mut nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos % 1_000_000 != 0 {
        return show_decimal(nanos);
    }
    let mut text = String::new();
    for (unit, scale) in
        [("d", 86_400 * NANO), ("h", 3600 * NANO), ("m", 60 * NANO), ("s", NANO), ("ms", 1_000_000)]
    {
        // Whole days from two on; `24h` and `48h` read better than `1d`.
        if nanos >= scale && (unit != "d" || (nanos % scale == 0 && nanos / scale > 2)) {
            write!(text, "{}{unit}", nanos / scale).expect("writing to a String does not fail");
            nanos %= scale;
        }
    }
    text
}

const SIZES: &[(&str, u64)] =
    &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// `4GiB`, `1.5 GiB`, `512MiB`, `65536` (bytes). `None` for anything else.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..at], text[at..].trim_start());
    let scale = match unit {
        "" => 1,
        unit => SIZES.iter().find(|(name, _)| *name == unit)?.1,
    };
    let nano = u128::from(parse_decimal(number)?) * u128::from(scale);
    u64::try_from(nano / u128::from(NANO)).ok().filter(|_| nano % u128::from(NANO) == 0)
}

/// The shortest whole form that [`parse_size`] reads back to the same value.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let fits = |scale: u64| bytes >= scale && bytes.is_multiple_of(scale);
    let found = SIZES.iter().find(|(_, scale)| fits(*scale));
    found.map_or_else(|| "0B".to_owned(), |(unit, scale)| format!("{}{unit}", bytes / scale))
}

/// A number that is not negative, in billionths. `None` for anything else, also for more decimals
/// than nine and for more than a `u64` holds.
#[must_use]
pub fn parse_decimal(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + part.len() == 0 || !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u64 = if part.is_empty() { 0 } else { format!("{part:0<9}").parse().ok()? };
    whole.checked_mul(NANO)?.checked_add(part)
}

/// Billionths as a decimal number.
#[must_use]
pub fn show_decimal(nano: u64) -> String {
    match nano % NANO {
        0 => (nano / NANO).to_string(),
        part => format!("{}.{part:09}", nano / NANO).trim_end_matches('0').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_form_and_shown_shortest() {
        for (text, bytes) in [
            ("4GiB", Some(4 << 30)),
            ("1.5 GiB", Some(3 << 29)),
            ("512MiB", Some(512 << 20)),
            ("65536", Some(65_536)),
            ("7B", Some(7)),
            ("0.1KiB", None),
            ("4GB", None),
            ("-1", None),
            ("", None),
            ("GiB", None),
            ("99999999TiB", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text:?}");
            if let Some(bytes) = bytes {
                assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
            }
        }
        assert_eq!(
            (show_size(3 << 29), show_size(0), show_size(1025)),
            ("1536MiB".into(), "0B".into(), "1025B".into())
        );
    }

    #[test]
    fn durations_are_read_in_every_form() {
        let cases: &[(&str, Option<u64>)] = &[
            ("10", Some(10_000)),
            ("0.5", Some(500)),
            ("500ms", Some(500)),
            ("10m", Some(600_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5h", Some(5_400_000)),
            ("48h", Some(172_800_000)),
            ("2d", Some(172_800_000)),
            ("1w", Some(604_800_000)),
            ("0", Some(0)),
            ("", None),
            ("m", None),
            ("10x", None),
            ("-5", None),
            ("5 m", None),
            ("1e3", None),
            ("99999999999999", None),
            ("ten", None),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn amounts_are_exact() {
        for (text, nano) in
            [("0.1", 100_000_000), ("12.50", 12_500_000_000), (".000000001", 1), ("3", 3 * NANO)]
        {
            assert_eq!(parse_decimal(text), Some(nano), "{text}");
        }
        for text in ["0.0000000001", "1e3", "-1", "", ".", "18446744074"] {
            assert_eq!(parse_decimal(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn shown_values_read_back(nanos in 0..u64::MAX, step in 0..4_u32) {
            let nanos = nanos / 10_u64.pow(step * 3) * 10_u64.pow(step * 3);
            let value = Duration::from_nanos(nanos);
            proptest::prop_assert_eq!(parse_duration(&show_duration(value)), Some(value));
            proptest::prop_assert_eq!(parse_decimal(&show_decimal(nanos)), Some(nanos));
        }
    }
}
