//! Text of a program that nobody trusts: made UTF-8, freed of secrets, cut to size. A secret that
//! was handed to a program must never come back out of here.

use std::borrow::Cow;

/// What stands for a secret.
const MASK: &str = "***";
/// A shorter piece of a secret at a cut is not looked for; it would hide ordinary text.
const PIECE_MIN: usize = 4;

/// The first bytes of a text, up to `max` and a whole character.
#[must_use]
pub fn cut_end(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// The last bytes of a text, up to `max` and a whole character.
#[must_use]
pub fn cut_start(text: &str, max: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(max))..]
}

/// Takes secrets out of text.
#[derive(Clone, Default)]
pub struct Redactor {
    /// Longest first, so that a secret inside another one does not leave the rest.
    words: Vec<String>,
}

impl Redactor {
    /// Hides these, also as they look inside a JSON string, and each line of those with several.
    #[must_use]
    pub fn new<'s>(secrets: impl IntoIterator<Item = &'s str>) -> Self {
        let mut words: Vec<String> = vec![];
        for secret in secrets {
            let mut forms = vec![secret.to_owned(), secret.trim().to_owned()];
            forms.extend(secret.lines().filter(|line| line.len() >= 2 * PIECE_MIN).map(str::to_owned));
            for form in forms {
                let json = serde_json::Value::from(form.as_str()).to_string();
                words.push(json[1..json.len() - 1].to_owned());
                words.push(form);
            }
        }
        words.retain(|word| word.len() >= PIECE_MIN);
        words.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        words.dedup();
        Self { words }
    }

    /// The text without them.
    #[must_use]
    pub fn clean<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for word in &self.words {
            if text.contains(word.as_str()) {
                text = Cow::Owned(text.replace(word, MASK));
            }
        }
        text
    }

    /// Bytes that a program wrote, as text without them.
    #[must_use]
    pub fn clean_bytes(&self, bytes: &[u8]) -> String {
        self.clean(&String::from_utf8_lossy(bytes)).into_owned()
    }

    /// As [`Self::clean_bytes`], for bytes of which the start or the end is missing: what may be
    /// the rest of a secret there goes too.
    #[must_use]
    pub fn clean_piece(&self, bytes: &[u8], start_missing: bool, end_missing: bool) -> String {
        let text = self.clean_bytes(bytes);
        let mut rest = text.as_str();
        let mut longest = 0;
        for word in self.words.iter().filter(|_| start_missing) {
            let mut pieces =
                (PIECE_MIN..word.len()).rev().filter(|len| word.is_char_boundary(word.len() - len));
            longest =
                longest.max(pieces.find(|len| rest.starts_with(&word[word.len() - len..])).unwrap_or(0));
        }
        rest = &rest[longest..];
        longest = 0;
        for word in self.words.iter().filter(|_| end_missing) {
            let mut pieces = (PIECE_MIN..word.len()).rev().filter(|len| word.is_char_boundary(*len));
            longest = longest.max(pieces.find(|len| rest.ends_with(&word[..*len])).unwrap_or(0));
        }
        rest[..rest.len() - longest].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_in_whatever_form_they_come_back() {
        let redactor =
            Redactor::new(["sk-\"quoted\"-1", "sk-\"quoted\"-1-longer", "line one here\nline two here\n"]);
        let cases = [
            ("key sk-\"quoted\"-1.", "key ***."),
            ("key sk-\"quoted\"-1-longer.", "key ***."),
            (r#"{"key":"sk-\"quoted\"-1"}"#, r#"{"key":"***"}"#),
            ("only line two here", "only ***"),
            ("nothing", "nothing"),
        ];
        for (text, clean) in cases {
            assert_eq!(redactor.clean(text), clean, "{text}");
        }
    }

    #[test]
    fn a_secret_that_a_cut_divides_leaves_nothing() {
        let secret = "abcdefghijklmnop";
        let redactor = Redactor::new([secret]);
        for at in 0..=secret.len() {
            let head = redactor.clean_piece(format!("text {}", &secret[..at]).as_bytes(), false, true);
            let tail = redactor.clean_piece(format!("{} text", &secret[at..]).as_bytes(), true, false);
            assert!(head.len() < "text ".len() + PIECE_MIN, "{head}");
            assert!(tail.len() < " text".len() + PIECE_MIN, "{tail}");
        }
        assert_eq!(redactor.clean_piece(b"\xff \xf0\x9f", false, true), "\u{fffd} \u{fffd}");
    }

    #[test]
    fn cuts_keep_whole_characters() {
        assert_eq!((cut_end("aé", 2), cut_start("éa", 2)), ("a", "a"));
        assert_eq!((cut_end("ab", 9), cut_start("ab", 9)), ("ab", "ab"));
    }
}
