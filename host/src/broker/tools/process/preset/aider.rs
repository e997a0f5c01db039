//! aider prints its usage in words after each exchange, as version 0.86 does (`--no-pretty`):
//!
//! ```text
//! Tokens: 2.1k sent, 512 received. Cost: $0.01 message, $0.02 session.
//! ```
//!
//! With a cache, `3.4k cache write, 9.0k cache hit,` stands between the two, and the cost on a line of
//! its own. What is written to the cache is part of `sent`; hits are or are not, depending on the
//! provider, so they are added. Its figures are rounded; what could have been rounded away is added, so that the ledger never
//! counts less than was spent. Without a price of its model it states no cost.

use super::{Reading, Stated, Told, nano};

/// Reads one line.
pub(super) fn line(reading: &mut Reading, line: &str, tell: &mut dyn FnMut(Told<'_>)) {
    let line = line.trim();
    if let Some(report) = line.strip_prefix("Tokens: ") {
        let (mut sent, mut hit, mut received) = (None, None, None);
        for part in report.split(", ") {
            let mut words = part.split_whitespace();
            let (figure, what) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            match what.trim_end_matches('.') {
                "sent" => sent = tokens(figure),
                "cache" if part.contains("hit") => hit = tokens(figure),
                "received" => received = tokens(figure),
                _ => {}
            }
        }
        if sent.is_some() || received.is_some() {
            let sent = sent.map(|sent| sent.saturating_add(hit.unwrap_or(0)));
            reading.stated.add(Stated { calls: Some(1), input: sent, output: received, cost: None });
            reading.is_final = true;
            tell(Told::Usage);
        }
    }
    // The session's cost is the sum of all its messages'.
    if let Some((_, cost)) = line.split_once("Cost: ")
        && let Some((_, session)) = cost.split_once("message, $")
        && let Some(dollars) = session.split_whitespace().next().and_then(upper_bound)
    {
        reading.stated.cost = Some(nano(dollars));
        tell(Told::Usage);
    }
}

/// How the lines begin that are about aider itself and not about its work.
const ABOUT_ITSELF: [&str; 8] =
    ["Aider v", "Main model:", "Model:", "Weak model:", "Editor model:", "Git repo:", "Repo-map:", "Tokens:"];

/// aider ends well even when its model could not be reached.
pub(super) fn end(reading: &mut Reading, whole: &str) {
    let own = |line: &&str| !ABOUT_ITSELF.iter().any(|start| line.trim_start().starts_with(start));
    let work: Vec<&str> = whole.lines().filter(own).collect();
    reading.say(work.join("\n").trim());
    if reading.is_final {
        return;
    }
    let trouble = whole.lines().find(|line| line.trim_start().starts_with("litellm."));
    if let Some(trouble) = trouble {
        reading.fail("agent_error", trouble.trim());
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of floats saturates")]
fn tokens(figure: &str) -> Option<u64> {
    match figure.strip_suffix('k') {
        Some(thousands) => upper_bound(thousands).map(|thousands| (thousands * 1000.0).ceil() as u64),
        None => figure.parse().ok(),
    }
}

/// The number and half a unit of its last digit; zero is printed only for zero.
fn upper_bound(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)?;
    let digits = text.split_once('.').map_or(0, |(_, digits)| digits.len());
    let half = 0.5 * 10_f64.powi(-i32::try_from(digits).ok()?);
    Some(if number == 0.0 { 0.0 } else { number + half })
}
