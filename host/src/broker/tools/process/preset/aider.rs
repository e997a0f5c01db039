//! aider prints its usage in words after each exchange (`--no-pretty`), held against version 0.86.2:
//!
//! ```text
//! Tokens: 2.1k sent, 512 received. Cost: $0.01 message, $0.02 session.
//! ```
//!
//! With a cache, `3.4k cache write, 9.0k cache hit,` stands between the two, and the cost on a line of
//! its own. Both are part of `sent`. Lines are broken after 80 characters, wherever that is. Its figures
//! are rounded; what could have been rounded away is added, so that the ledger never counts less than
//! was spent. Without a price of its model it states no cost. A `Commit` took a request of its own, for
//! its message, of which aider states nothing. It ends well even when no exchange did: an error of its
//! service stands in a line that begins with `litellm.`.

use super::{Reading, Stated, Told, nano};

/// Longest line that is put together again, in bytes.
const HELD_MAX: usize = 300;
/// Longest trouble that is put together again, in bytes.
const TROUBLE_MAX: usize = 400;

/// Reads one line.
pub(super) fn line(reading: &mut Reading, line: &str, tell: &mut dyn FnMut(Told<'_>)) {
    let line = line.trim();
    trouble(reading, line);
    let held = std::mem::take(&mut reading.held);
    let joined = if held.is_empty() { line.to_owned() } else { format!("{held} {line}") };
    if goes_on(&joined) && joined.len() < HELD_MAX {
        reading.held = joined;
        return;
    }
    figures(reading, &joined, tell);
    if line.starts_with("Commit ") {
        reading.stated.add(Stated { calls: Some(1), ..Stated::default() });
        tell(Told::Usage);
    }
}

/// A report that a line's end cut in two.
fn goes_on(line: &str) -> bool {
    let tokens = line.starts_with("Tokens:") && !line.contains("received.");
    let cost = (line.starts_with("Tokens:") || line.starts_with("Cost:")) && line.contains("Cost:");
    tokens || (cost && !line.ends_with("session."))
}

/// Keeps what its service complained of, which may take several lines.
fn trouble(reading: &mut Reading, line: &str) {
    if line.starts_with("litellm.") {
        reading.complain(line);
        reading.in_trouble = true;
    } else if line.is_empty() || line.starts_with("Retrying in ") {
        reading.in_trouble = false;
    } else if let Some(before) =
        reading.trouble.take_if(|before| reading.in_trouble && before.len() < TROUBLE_MAX)
    {
        reading.complain(&format!("{before} {line}"));
    }
}

fn figures(reading: &mut Reading, line: &str, tell: &mut dyn FnMut(Told<'_>)) {
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
            // Older versions do not count hits as sent; then there may be more of those.
            let sent =
                sent.map(|sent| if hit > Some(sent) { sent.saturating_add(hit.unwrap_or(0)) } else { sent });
            reading.stated.add(Stated { calls: Some(1), input: sent, output: received, cost: None });
            reading.is_final = true;
            reading.trouble = None;
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
const ABOUT_ITSELF: [&str; 9] = [
    "Main model:",
    "Model:",
    "Weak model:",
    "Editor model:",
    "Git repo:",
    "Repo-map:",
    "Tokens:",
    "Cost: $",
    "https://aider.chat/",
];

/// aider ends well even when its model could not be reached.
pub(super) fn end(reading: &mut Reading, whole: &str) {
    // What comes before its own name are complaints about its surroundings.
    let start = whole.find("Aider v").filter(|at| *at == 0 || whole[..*at].ends_with('\n'));
    let work = start.and_then(|start| whole[start..].split_once('\n')).map_or(whole, |(_, work)| work);
    let own = |line: &&str| !ABOUT_ITSELF.iter().any(|start| line.trim_start().starts_with(start));
    let work: Vec<&str> = work.lines().filter(own).collect();
    reading.say(work.join("\n").trim());
    // It has no last word of its own; what can be seen of a cut is said.
    if !std::mem::take(&mut reading.held).is_empty() {
        reading.is_final = false;
        reading.warn("its output ends in the middle of a report of its usage");
    } else if !whole.is_empty() && !whole.ends_with('\n') {
        reading.warn("its output ends in the middle of a line");
    } else if !reading.is_final {
        reading.warn("it reported no exchange with a model");
    }
    if let Some(trouble) = reading.trouble.take() {
        reading.fail("agent_error", trouble);
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
