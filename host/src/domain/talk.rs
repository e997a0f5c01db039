//! What a runner writes to the log: tagged, cut to size, and rate limited, so that a talkative
//! runner can fill neither disk nor attention.

use std::time::Duration;

/// Lines that may come at once.
const BURST: f64 = 200.0;
/// Lines a second in the long run.
const RATE: f64 = 20.0;
/// Longest line, in bytes.
const LINE_MAX: usize = 8 << 10;

/// Rations the lines of one source: a cycle, a runner outside of its cycles, a worker's output.
#[derive(Debug)]
pub struct Talk {
    burst: f64,
    rate: f64,
    left: f64,
    at: Duration,
    dropped: u64,
}

impl Default for Talk {
    fn default() -> Self {
        Self::limited(BURST, RATE)
    }
}

impl Talk {
    /// A ration of `burst` lines at once and `rate` lines a second in the long run.
    #[must_use]
    pub fn limited(burst: f64, rate: f64) -> Self {
        Self { burst, rate, left: burst, at: Duration::ZERO, dropped: 0 }
    }

    /// Whether a line may be written now, and how many were left out before it.
    pub fn admit(&mut self, now: Duration) -> Option<u64> {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * self.rate).min(self.burst);
        if self.left < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.left -= 1.0;
        Some(self.take_dropped())
    }

    /// How many lines were left out since this was last told.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

/// A text of at most `max` bytes and a few words; one that is longer is cut and says so.
#[must_use]
pub fn shortened(mut text: String, max: usize) -> String {
    let bytes = text.len();
    if bytes > max {
        text.truncate(text.floor_char_boundary(max));
        text.push_str(&format!(" [cut, {bytes} bytes in all]"));
    }
    text
}

/// The start of a line that is too long.
#[must_use]
pub fn cut(line: &str) -> &str {
    if line.len() <= LINE_MAX {
        return line;
    }
    let mut end = LINE_MAX;
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    &line[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_rationed_and_counted() {
        let mut talk = Talk::default();
        let admitted = (0..1000).filter(|_| talk.admit(Duration::ZERO).is_some()).count();
        assert_eq!(admitted, 200);
        assert_eq!(talk.admit(Duration::from_secs(1)), Some(800));
        assert_eq!(talk.admit(Duration::from_secs(1)), Some(0));
        assert_eq!(cut(&"é".repeat(5000)).len(), LINE_MAX);
        assert_eq!(cut("short"), "short");
    }
}
