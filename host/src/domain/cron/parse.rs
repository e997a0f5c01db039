//! Text to bit masks: cronie's dialect, five fields or six with leading seconds, and the nicknames.
//! Whatever is not of the dialect is refused with its field and column, never guessed.

use super::error::{CronError, CronErrorKind as Kind};
use super::field::{Field, MONTHS};
use super::{AND_DAYS, Cron, FIXED_TIME, WEEKLY, WITH_SECONDS};

/// Days that some year gives each month, January first.
const LONGEST: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Masks of fields that leave nothing out.
pub(super) const ALL_DAYS: u32 = !1;
pub(super) const ALL_MONTHS: u16 = 0x1ffe;
pub(super) const ALL_WEEKDAYS: u8 = 0x7f;

const NICKNAMES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// A field's text and where it begins, in bytes.
#[derive(Clone, Copy, Default)]
struct Token<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Token<'a> {
    /// The part `from..to` of this token.
    fn part(self, from: usize, to: usize) -> Token<'a> {
        Token { text: &self.text[from..to], at: self.at + from }
    }

    fn split(self, byte: u8) -> Option<(Token<'a>, Token<'a>)> {
        let place = find(self.text, byte)?;
        Some((self.part(0, place), self.part(place + 1, self.text.len())))
    }
}

/// The first place of an ASCII byte; for texts this short faster than any cleverer search.
fn find(text: &str, byte: u8) -> Option<usize> {
    text.bytes().position(|found| found == byte)
}

/// Reads an expression.
pub(super) fn parse(whole: &str) -> Result<Cron, CronError> {
    let text = whole.trim_ascii_start();
    if text.starts_with('@') {
        return nickname(whole, text.trim_ascii_end());
    }
    let mut tokens = [Token::default(); 6];
    let mut count = 0;
    for token in fields(whole) {
        if count < 6 {
            tokens[count] = token;
        }
        count += 1;
    }
    let parser = Parser { whole };
    match count {
        5 => parser.cron(None, [tokens[0], tokens[1], tokens[2], tokens[3], tokens[4]]),
        6 => parser.cron(Some(tokens[0]), [tokens[1], tokens[2], tokens[3], tokens[4], tokens[5]]),
        _ => Err(parser.field_count(count, tokens[5])),
    }
}

fn fields(whole: &str) -> impl Iterator<Item = Token<'_>> {
    let bytes = whole.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && bytes[at].is_ascii_whitespace() {
            at += 1;
        }
        let start = at;
        while at < bytes.len() && !bytes[at].is_ascii_whitespace() {
            at += 1;
        }
        (start < at).then(|| Token { text: &whole[start..at], at: start })
    })
}

fn nickname(whole: &str, name: &str) -> Result<Cron, CronError> {
    if let Some((_, meaning)) = NICKNAMES.iter().find(|(nickname, _)| *nickname == name) {
        return parse(meaning);
    }
    let lower = name.to_ascii_lowercase();
    let hint = if lower.starts_with("@every") {
        "write the times as fields, such as */5 * * * * for every five minutes".to_owned()
    } else if lower == "@reboot" {
        "trigger the schedule by hand when the daemon starts".to_owned()
    } else if let Some((nickname, _)) = NICKNAMES.iter().find(|(nickname, _)| *nickname == lower) {
        format!("write {nickname}")
    } else {
        "known are @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually".to_owned()
    };
    let parser = Parser { whole };
    let at = whole.len() - whole.trim_ascii_start().len();
    let message = format!("{name} is not supported");
    Err(parser.error(Kind::Unsupported, None, Token { text: name, at }, message, Some(hint)))
}

/// Holds the whole text for the columns of errors.
struct Parser<'a> {
    whole: &'a str,
}

impl<'a> Parser<'a> {
    fn cron(&self, seconds: Option<Token<'a>>, fields: [Token<'a>; 5]) -> Result<Cron, CronError> {
        let [minute, hour, dom, month, dow] = fields;
        let star = |token: Token<'_>| token.text.starts_with('*');
        let mut flags = 0;
        if star(dom) || star(dow) {
            flags |= AND_DAYS;
        }
        if !star(minute) && !star(hour) {
            flags |= FIXED_TIME;
        }
        if seconds.is_some() {
            flags |= WITH_SECONDS;
        }
        let seconds = match seconds {
            Some(token) => self.field(Field::Second, token)?,
            None => 1,
        };
        let minutes = self.field(Field::Minute, minute)?;
        // Every mask below is cut to its field's values, which fit the narrower type.
        let hours = self.field(Field::Hour, hour)? as u32;
        let mut days = self.field(Field::DayOfMonth, dom)? as u32;
        let months = self.field(Field::Month, month)? as u16;
        let weekdays = self.field(Field::DayOfWeek, dow)?;
        // Seven is Sunday too.
        let mut weekdays = ((weekdays | weekdays >> 7) & 0x7f) as u8;
        if flags & AND_DAYS == 0 && (days == ALL_DAYS || weekdays == ALL_WEEKDAYS) {
            // Either is enough, and one of them always holds.
            (days, weekdays) = (ALL_DAYS, ALL_WEEKDAYS);
            flags |= AND_DAYS;
        }
        if days == ALL_DAYS && months == ALL_MONTHS && flags & AND_DAYS != 0 {
            flags |= WEEKLY;
        }
        // At most 3600.
        let per_hour = (minutes.count_ones() * seconds.count_ones()) as u16;
        let cron = Cron { seconds, minutes, hours, days, months, per_hour, weekdays, flags };
        if flags & AND_DAYS != 0 {
            self.refuse_impossible(&cron, dom)?;
        }
        Ok(cron)
    }

    /// In AND mode the smallest day must exist in some chosen month. Every weekday then comes by,
    /// for 29 February too, so this test is exact; in OR mode the weekdays alone suffice.
    fn refuse_impossible(&self, cron: &Cron, dom: Token<'a>) -> Result<(), CronError> {
        if cron.days.trailing_zeros() <= LONGEST[1] {
            return Ok(());
        }
        let chosen = || (1..=12u32).filter(|month| cron.months >> month & 1 == 1);
        let first = cron.days.trailing_zeros();
        let longest = chosen().map(|month| LONGEST[month as usize - 1]).max().unwrap_or(0);
        if first <= longest {
            return Ok(());
        }
        let names: Vec<&str> = chosen().map(|month| MONTHS[month as usize - 1]).collect();
        let have = if names.len() == 1 { "has" } else { "have" };
        let message = format!("never fires: {} {have} no day {first}", join(&names, "and"));
        Err(self.error(Kind::NeverFires, Some(Field::DayOfMonth), dom, message, None))
    }

    fn field(&self, field: Field, token: Token<'a>) -> Result<u64, CronError> {
        let mut mask = 0;
        let mut from = 0;
        loop {
            let to = find(&token.text[from..], b',').map_or(token.text.len(), |place| from + place);
            mask |= self.item(field, token.part(from, to))?;
            if to == token.text.len() {
                return Ok(mask);
            }
            from = to + 1;
        }
    }

    /// One item of a list: `*`, `N`, `A-B`, each of `*` and `A-B` with an optional `/S`.
    fn item(&self, field: Field, item: Token<'a>) -> Result<u64, CronError> {
        if item.text.is_empty() {
            let message = format!("the {} field has an empty item in its list", field.name());
            return Err(self.error(Kind::Syntax, Some(field), item, message, None));
        }
        let (base, step) = match item.split(b'/') {
            Some((base, step)) => (base, Some(step)),
            None => (item, None),
        };
        let (first, last) = if base.text == "*" {
            field.range()
        } else if let Some((start, end)) = base.split(b'-') {
            self.range(field, base, start, end)?
        } else {
            let value = self.value(field, base)?;
            if let Some(step) = step {
                return Err(self.step_on_value(field, item, base, step));
            }
            (value, value)
        };
        let Some(step) = step else {
            // Values are at most 59, so the shift stays inside the word.
            return Ok((u64::MAX >> (63 - (last - first))) << first);
        };
        let step = self.step(field, step)?;
        Ok((first..=last).step_by(step).fold(0, |mask, value| mask | 1 << value))
    }

    fn range(
        &self,
        field: Field,
        base: Token<'a>,
        start: Token<'a>,
        end: Token<'a>,
    ) -> Result<(u32, u32), CronError> {
        let first = self.value(field, start)?;
        let last = self.value(field, end)?;
        if first <= last {
            return Ok((first, last));
        }
        if field == Field::DayOfWeek && last == 0 {
            // A week that runs into Sunday, such as FRI-SUN.
            return Ok((first, 7));
        }
        let (low, high) = field.range();
        let upper = if first == high { format!("{first}") } else { format!("{first}-{high}") };
        let lower = if last == low { format!("{last}") } else { format!("{low}-{last}") };
        let message = format!("{} range {} ends before it starts", field.name(), base.text);
        let hint = Some(format!("write {upper},{lower}"));
        Err(self.error(Kind::InvertedRange, Some(field), base, message, hint))
    }

    fn value(&self, field: Field, token: Token<'a>) -> Result<u32, CronError> {
        let text = token.text;
        let Some(value) = number(text) else {
            return field.named(text).ok_or_else(|| self.no_value(field, token));
        };
        let (low, high) = field.range();
        if (low..=high).contains(&value) {
            return Ok(value);
        }
        let message = format!("{} {text} is out of range {low}-{high}", field.name());
        Err(self.error(Kind::OutOfRange, Some(field), token, message, None))
    }

    fn no_value(&self, field: Field, token: Token<'a>) -> CronError {
        let text = token.text;
        if foreign(field, text) {
            let message = format!("{text} in the {} field is not supported", field.name());
            let hint = if text == "?" { "write *" } else { "write the values as numbers, ranges or lists" };
            return self.error(Kind::Unsupported, Some(field), token, message, Some(hint.to_owned()));
        }
        let (low, high) = field.range();
        let words = match field {
            Field::Month => " or JAN-DEC",
            Field::DayOfWeek => " or SUN-SAT",
            _ => "",
        };
        let message = format!("{text:?} is no {}", field.name());
        let hint = Some(format!("write *, or numbers {low}-{high}{words}"));
        self.error(Kind::Syntax, Some(field), token, message, hint)
    }

    fn step_on_value(&self, field: Field, item: Token<'a>, base: Token<'a>, step: Token<'a>) -> CronError {
        let message = format!("a step on the single {} {} is not supported", field.name(), item.text);
        let hint = Some(format!("write {}-{}/{}", base.text, field.range().1, step.text));
        self.error(Kind::Unsupported, Some(field), item, message, hint)
    }

    fn step(&self, field: Field, step: Token<'a>) -> Result<usize, CronError> {
        let greatest = field.greatest_step();
        match number(step.text) {
            Some(value) if (1..=greatest).contains(&value) => Ok(value as usize),
            _ => {
                let message = format!("{} step {:?} is not in 1-{greatest}", field.name(), step.text);
                let mut error = self.error(Kind::BadStep, Some(field), step, message, None);
                error.allowed = Some(format!("1-{greatest}"));
                Err(error)
            }
        }
    }

    fn field_count(&self, count: usize, last: Token<'a>) -> CronError {
        let message = format!("expected 5 fields, or 6 with leading seconds, found {count}");
        let hint = match count {
            0 => "write minute, hour, day of month, month and day of week, such as 0 9 * * 1-5",
            1..5 => "the fields are minute, hour, day of month, month and day of week",
            _ => "a year field is not supported",
        };
        self.error(Kind::FieldCount, None, last, message, Some(hint.to_owned()))
    }

    fn error(
        &self,
        kind: Kind,
        field: Option<Field>,
        token: Token<'_>,
        message: String,
        hint: Option<String>,
    ) -> CronError {
        let column = self.whole[..token.at].chars().count() + 1;
        let allowed = field.map(|field| {
            let (low, high) = field.range();
            format!("{low}-{high}")
        });
        CronError { kind, field, column, message, allowed, hint }
    }
}

/// A text of nothing but ASCII digits; a number too long for the type becomes the greatest.
fn number(text: &str) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    text.bytes().try_fold(0u32, |number, byte| {
        byte.is_ascii_digit().then(|| number.saturating_mul(10).saturating_add(u32::from(byte - b'0')))
    })
}

/// Whether `text` is a form that other dialects know: `?`, `L`, `15W`, `5#2`, `1~5`, `H`, `+FRI`.
fn foreign(field: Field, text: &str) -> bool {
    if text.contains(['?', '#', '~']) || text.eq_ignore_ascii_case("h") || text.starts_with("H(") {
        return true;
    }
    match field {
        Field::DayOfMonth => {
            let digits = text.trim_start_matches(|char: char| char.is_ascii_digit());
            ["L", "W", "LW"].iter().any(|form| digits.eq_ignore_ascii_case(form))
        }
        Field::DayOfWeek => {
            let day = text.strip_suffix(['L', 'l']);
            day.is_some_and(|day| day.is_empty() || matches!(day.parse(), Ok(0..=7u8)))
                || day.is_some_and(|day| field.named(day).is_some())
                || text.starts_with('+')
        }
        _ => false,
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn join<S: AsRef<str>>(items: &[S], word: &str) -> String {
    match items {
        [] => String::new(),
        [only] => only.as_ref().to_owned(),
        [rest @ .., last] => {
            let rest: Vec<&str> = rest.iter().map(AsRef::as_ref).collect();
            format!("{} {word} {}", rest.join(", "), last.as_ref())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> CronError {
        parse(text).expect_err(text)
    }

    #[test]
    fn a_cron_is_small() {
        assert_eq!(size_of::<Cron>(), 32);
    }

    #[test]
    fn spellings_of_one_schedule_are_equal() {
        for (one, other) in [
            ("0 0 * * 7", "0 0 * * 0"),
            ("0 0 * * FRI-SUN", "0 0 * * 5-7"),
            ("0 0 * * 5-0", "0 0 * * 5,6,0"),
            ("0 0 1 jan,JUL *", "0 0 1 1,7 *"),
            ("  05\t09 * * *  ", "5 9 * * *"),
            (" @weekly ", "0 0 * * sun"),
            ("@annually", "0 0 1 1 *"),
            ("0,0,0-2,2 * * * *", "0-2 * * * *"),
            ("10-50/20 * * * *", "10,30,50 * * * *"),
            ("0 0 * * */7", "0 0 *,5 * 0"),
        ] {
            assert_eq!(parse(one).unwrap(), parse(other).unwrap(), "{one} and {other}");
        }
    }

    #[test]
    fn six_fields_begin_with_seconds() {
        let six = parse("0 30 9 * * *").unwrap();
        assert!(six.has_seconds() && !parse("30 9 * * *").unwrap().has_seconds());
        // The star of the seconds makes no wildcard of a fixed time.
        assert!(parse("* 30 9 * * *").unwrap().is_fixed_time());
        assert!(!parse("0 * 9 * * *").unwrap().is_fixed_time());
    }

    #[test]
    fn errors_name_field_column_range_and_remedy() {
        for (text, kind, column, line) in [
            ("0 24 * * *", Kind::OutOfRange, 3, "hour 24 is out of range 0-23 (column 3)"),
            ("0 0 0 * *", Kind::OutOfRange, 5, "day of month 0 is out of range 1-31 (column 5)"),
            (
                "1,2,99999999999 * * * *",
                Kind::OutOfRange,
                5,
                "minute 99999999999 is out of range 0-59 (column 5)",
            ),
            ("*/61 * * * *", Kind::BadStep, 3, "minute step \"61\" is not in 1-60 (column 3)"),
            ("* 1-5/x * * *", Kind::BadStep, 7, "hour step \"x\" is not in 1-24 (column 7)"),
            (
                "0 22-2 * * *",
                Kind::InvertedRange,
                3,
                "hour range 22-2 ends before it starts (column 3); write 22-23,0-2",
            ),
            (
                "0 23-0 * * *",
                Kind::InvertedRange,
                3,
                "hour range 23-0 ends before it starts (column 3); write 23,0",
            ),
            (
                "5/10 * * * *",
                Kind::Unsupported,
                1,
                "a step on the single minute 5/10 is not supported (column 1); write 5-59/10",
            ),
            ("0 0 30 2 *", Kind::NeverFires, 5, "never fires: February has no day 30 (column 5)"),
            ("0 0 31 4,6 *", Kind::NeverFires, 5, "never fires: April and June have no day 31 (column 5)"),
            (
                "0 0 ? * *",
                Kind::Unsupported,
                5,
                "? in the day of month field is not supported (column 5); write *",
            ),
            ("٣ 9 * * *", Kind::Syntax, 1, "\"٣\" is no minute (column 1); write *, or numbers 0-59"),
            (
                "0 9 * ٣ *",
                Kind::Syntax,
                7,
                "\"٣\" is no month (column 7); write *, or numbers 1-12 or JAN-DEC",
            ),
        ] {
            let error = refused(text);
            assert_eq!(
                (error.kind, error.column, error.to_string().as_str()),
                (kind, column, line),
                "{text}"
            );
        }
        let error = refused("0 0 * * 8");
        assert_eq!((error.field, error.allowed.as_deref()), (Some(Field::DayOfWeek), Some("0-7")));
    }

    #[test]
    fn forms_of_other_dialects_are_unsupported_and_noise_is_syntax() {
        for text in [
            "0 0 L * *",
            "0 0 LW * *",
            "0 0 15W * *",
            "0 0 * * 5L",
            "0 0 * * 5#2",
            "H * * * *",
            "H/5 * * * *",
        ] {
            assert_eq!(refused(text).kind, Kind::Unsupported, "{text}");
        }
        for text in ["0 0 * * +FRI", "1~5 * * * *", "@every 5m", "@reboot", "@Daily", "@"] {
            assert_eq!(refused(text).kind, Kind::Unsupported, "{text}");
        }
        for text in ["+5 * * * *", "1,,2 * * * *", ", * * * *", "1-2-3 * * * *", "*5 * * * *", "-1 * * * *"] {
            assert_eq!(refused(text).kind, Kind::Syntax, "{text}");
        }
        for text in ["0 0 * * MONDAY", "0 0 1 JAN1 *", "mon * * * *", "*-5 * * * *", "0 0 1 ja *"] {
            assert_eq!(refused(text).kind, Kind::Syntax, "{text}");
        }
    }

    #[test]
    fn too_few_and_too_many_fields_are_counted() {
        for (text, found) in [("", 0), ("   ", 0), ("0 9 * *", 4), ("0 0 9 * * * 2026", 7)] {
            let error = refused(text);
            assert_eq!(error.kind, Kind::FieldCount);
            assert!(error.message.ends_with(&format!("found {found}")), "{error}");
        }
    }
}
