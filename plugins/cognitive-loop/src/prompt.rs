//! Prompts: templates from this plugin's folder, filled in one pass so that inserted text is
//! never taken for a place to fill.

/// A prompt with places like `{{goal}}`.
#[derive(Clone, Copy, Debug)]
pub struct Template(&'static str);

impl Template {
    /// Goes before every prompt.
    pub const SYSTEM: Self = Self(include_str!("../prompts/system.txt"));
    /// How do things stand?
    pub const ORIENT: Self = Self(include_str!("../prompts/orient.txt"));
    /// What is to be done?
    pub const DECIDE: Self = Self(include_str!("../prompts/decide.txt"));
    /// What came of it?
    pub const REFLECT: Self = Self(include_str!("../prompts/reflect.txt"));

    /// The text as it stands.
    pub fn text(self) -> &'static str {
        self.0
    }

    /// The prompt with its places filled; a place without a value stays as it is.
    pub fn fill(self, values: &[(&str, &str)]) -> String {
        let mut out = String::with_capacity(self.0.len());
        let mut rest = self.0;
        while let Some((before, after)) = rest.split_once("{{") {
            out.push_str(before);
            let place = after.split_once("}}").and_then(|(name, after)| {
                let (_, value) = values.iter().find(|(known, _)| *known == name)?;
                Some((value, after))
            });
            rest = match place {
                Some((value, after)) => {
                    out.push_str(value);
                    after
                }
                None => {
                    out.push_str("{{");
                    after
                }
            };
        }
        out.push_str(rest);
        out
    }
}

/// The start of a text, at most so many bytes.
pub fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A text as one line of at most so many characters.
pub fn one_line(text: &str, chars: usize) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    flat.chars().take(chars).collect()
}
