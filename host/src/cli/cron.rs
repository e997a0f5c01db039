//! `kairos cron`: what an expression means, when it fires next, how often it fires in a window.
//! Works without a daemon and without a root; reads nothing but zone data and the clock.

use std::io::Write;

use chrono::{DateTime, NaiveDate, Utc};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::domain::cron::{Cron, CronError, Zone};
use crate::domain::schedule::Dst;
use crate::exit::{Failure, code};
use crate::sys::clock::Clock;
use crate::sys::zones::{ZoneError, Zones};

/// Occurrences that `explain` shows.
const SHOWN: usize = 3;

/// Ask about a cron expression.
#[derive(Debug, Subcommand)]
pub enum CronCommand {
    /// Show the next times of an expression
    Next(NextArgs),
    /// Count the times of an expression in a window
    Count(CountArgs),
    /// Say in words what an expression means, with warnings
    Explain(ExplainArgs),
}

/// The expression and how to read it.
#[derive(Args, Debug)]
pub struct ExpressionArgs {
    /// Five fields (minute, hour, day of month, month, day of week), six with leading seconds, or a
    /// nickname such as @daily; quote it
    #[arg(value_name = "EXPR")]
    expression: String,
    /// IANA time zone, such as Europe/Paris
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    tz: String,
    /// How clock changes are read
    #[arg(long, value_enum, default_value_t = DstArg::Cron)]
    dst: DstArg,
}

/// How clock changes are read.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DstArg {
    /// A fixed time in a gap fires at its end, a repeated one fires once
    Cron,
    /// Whenever local time matches: lost in a gap, twice when repeated
    Literal,
}

/// Arguments of `kairos cron next`.
#[derive(Args, Debug)]
pub struct NextArgs {
    #[command(flatten)]
    expression: ExpressionArgs,
    /// Only later times: RFC 3339, or a date for its first instant in the zone [default: now]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// How many to show
    #[arg(short = 'n', long = "number", value_name = "N", default_value_t = 5)]
    number: usize,
}

/// Arguments of `kairos cron count`.
#[derive(Args, Debug)]
pub struct CountArgs {
    #[command(flatten)]
    expression: ExpressionArgs,
    /// Start of the window, not itself counted: RFC 3339, or a date for its first instant in the zone
    #[arg(long, value_name = "TIME")]
    from: String,
    /// End of the window, itself counted
    #[arg(long, value_name = "TIME")]
    to: String,
}

/// Arguments of `kairos cron explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    expression: ExpressionArgs,
}

fn refused(expression: &str, error: &CronError) -> Failure {
    let message = format!("cron expression {expression:?}: {} (column {})", error.message, error.column);
    let failure = Failure::new(code::USAGE, error.kind.as_str(), message);
    match &error.hint {
        Some(hint) => failure.remedy(hint),
        None => failure,
    }
}

fn no_zone(error: &ZoneError) -> Failure {
    Failure::new(code::USAGE, error.kind().as_str(), error.to_string())
        .remedy("write an IANA name such as Europe/Paris")
}

fn no_time(option: &str, text: &str) -> Failure {
    Failure::new(code::USAGE, "bad_time", format!("--{option} {text:?} is no time"))
        .remedy("write RFC 3339 such as 2026-03-29T01:00:00Z, or a date such as 2026-03-29")
}

/// An expression that has been read, in its zone.
struct Question<'a> {
    text: &'a str,
    cron: Cron,
    zone: std::sync::Arc<Zone>,
    dst: Dst,
}

impl<'a> Question<'a> {
    fn read(args: &'a ExpressionArgs) -> anyhow::Result<Self> {
        let cron = Cron::parse(&args.expression).map_err(|error| refused(&args.expression, &error))?;
        let zone = Zones::default().get(&args.tz).map_err(|error| match error {
            ZoneError::Unknown { .. } => no_zone(&error).into(),
            _ => anyhow::Error::from(error),
        })?;
        let dst = match args.dst {
            DstArg::Cron => Dst::Cron,
            DstArg::Literal => Dst::Literal,
        };
        Ok(Self { text: &args.expression, cron, zone, dst })
    }

    fn time(&self, option: &'static str, text: &str) -> Result<DateTime<Utc>, Failure> {
        if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            return Ok(time.to_utc());
        }
        NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .ok()
            .and_then(|date| date.and_hms_opt(0, 0, 0))
            .and_then(|midnight| {
                DateTime::from_timestamp(self.zone.instant_of(midnight.and_utc().timestamp()), 0)
            })
            .ok_or_else(|| no_time(option, text))
    }

    fn next(&self, from: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> {
        std::iter::successors(self.cron.next(&self.zone, self.dst, from), |at| {
            self.cron.next(&self.zone, self.dst, *at)
        })
    }

    /// Local time with its offset, and the same in UTC.
    fn line(&self, at: DateTime<Utc>) -> String {
        let offset = self.zone.offset_at(at.timestamp());
        let (sign, size) = if offset < 0 { ('-', -offset) } else { ('+', offset) };
        let local = self.zone.local_text(at.timestamp());
        let (hours, minutes, seconds) = (size / 3600, size / 60 % 60, size % 60);
        let seconds = if seconds == 0 { String::new() } else { format!(":{seconds:02}") };
        format!("{local} {sign}{hours:02}:{minutes:02}{seconds}  {}", utc(at))
    }
}

/// RFC 3339 in UTC, whole seconds.
fn utc(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Runs one `kairos cron` command and writes its answer to `out`.
///
/// # Errors
/// A [`Failure`] with [`code::USAGE`] when the command line is at fault; anything else is the machine's.
pub fn run(command: CronCommand, json: bool, clock: &dyn Clock, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        CronCommand::Next(args) => next(&args, json, clock, out),
        CronCommand::Count(args) => count(&args, json, out),
        CronCommand::Explain(args) => explain(&args, json, clock, out),
    }
}

fn next(args: &NextArgs, json: bool, clock: &dyn Clock, out: &mut dyn Write) -> anyhow::Result<()> {
    let question = Question::read(&args.expression)?;
    let from = match &args.from {
        Some(text) => question.time("from", text)?,
        None => clock.now(),
    };
    let times = question.next(from).take(args.number);
    if json {
        let answer = json!({
            "expr": question.text,
            "timezone": question.zone.name(),
            "occurrences": times.map(utc).collect::<Vec<_>>(),
        });
        writeln!(out, "{answer}")?;
        return Ok(());
    }
    for at in times {
        writeln!(out, "{}", question.line(at))?;
    }
    Ok(())
}

fn count(args: &CountArgs, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let question = Question::read(&args.expression)?;
    let (from, to) = (question.time("from", &args.from)?, question.time("to", &args.to)?);
    let count = question.cron.count_between(&question.zone, question.dst, from, to);
    if json {
        writeln!(out, "{}", json!({ "count": count }))?;
    } else {
        writeln!(out, "{count}")?;
    }
    Ok(())
}

fn explain(args: &ExplainArgs, json: bool, clock: &dyn Clock, out: &mut dyn Write) -> anyhow::Result<()> {
    let question = Question::read(&args.expression)?;
    let now = clock.now();
    let explanation = question.cron.explain();
    let warnings = question.cron.warnings(&question.zone, question.dst, now);
    let next = question.next(now).take(SHOWN);
    if json {
        let answer = json!({
            "expr": question.text,
            "timezone": question.zone.name(),
            "explanation": explanation,
            "warnings": warnings,
            "next": next.map(utc).collect::<Vec<_>>(),
        });
        writeln!(out, "{answer}")?;
        return Ok(());
    }
    writeln!(out, "{explanation}")?;
    for warning in warnings {
        writeln!(out, "Note: {warning}.")?;
    }
    writeln!(out, "Next in {}:", question.zone.name())?;
    for at in next {
        writeln!(out, "  {}", question.line(at))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::ManualClock;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: CronCommand,
    }

    /// Runs as if it were 2026-03-28T12:00:00Z.
    fn ask(json: bool, words: &[&str]) -> anyhow::Result<String> {
        let cli = Cli::try_parse_from([&["cron"], words].concat())?;
        let clock = ManualClock::at("2026-03-28T12:00:00Z".parse().unwrap());
        let mut out = Vec::new();
        run(cli.command, json, &clock, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn failure(words: &[&str]) -> Failure {
        ask(false, words).unwrap_err().downcast::<Failure>().unwrap()
    }

    #[test]
    fn next_shows_local_time_and_utc_across_a_clock_change() {
        let text = ask(false, &["next", "30 2 * * *", "--tz", "Europe/Paris", "-n", "2"]).unwrap();
        assert_eq!(
            text,
            "2026-03-29 03:00:00 +02:00  2026-03-29T01:00:00Z\n\
             2026-03-30 02:30:00 +02:00  2026-03-30T00:30:00Z\n"
        );
    }

    #[test]
    fn next_in_json_has_the_fixed_shape_and_starts_after_from() {
        let words = ["next", "0 9 * * *", "--from", "2026-04-20T09:00:00+00:00", "-n", "1"];
        let expected = r#"{"expr":"0 9 * * *","occurrences":["2026-04-21T09:00:00Z"],"timezone":"UTC"}"#;
        assert_eq!(ask(true, &words).unwrap().trim_end(), expected);
    }

    #[test]
    fn count_takes_dates_in_the_zone_and_includes_the_end() {
        let window = ["--tz", "Europe/Paris", "--from", "2026-01-01", "--to", "2027-01-01"];
        let count = |expression| ask(true, &[&["count", expression], &window[..]].concat()).unwrap();
        assert_eq!(count("* * * * *"), "{\"count\":525600}\n");
        assert_eq!(count("0 0 * * *"), "{\"count\":365}\n");
        assert_eq!(ask(false, &[&["count", "@yearly"], &window[..]].concat()).unwrap(), "1\n");
    }

    #[test]
    fn explain_tells_meaning_warnings_and_next_times() {
        let text = ask(false, &["explain", "30 2 * * *", "--tz", "Europe/Paris"]).unwrap();
        assert!(text.starts_with("At 02:30 every day.\nNote: 02:30 does not exist on 2026-03-29"), "{text}");
        let answer: serde_json::Value =
            serde_json::from_str(&ask(true, &["explain", "@daily", "--tz", "Asia/Tokyo"]).unwrap()).unwrap();
        assert_eq!(answer["timezone"], "Asia/Tokyo");
        assert_eq!(answer["explanation"], "At 00:00 every day.");
        assert_eq!(answer["warnings"], json!([]));
        assert_eq!(answer["next"][0], "2026-03-28T15:00:00Z");
    }

    #[test]
    fn mistakes_of_the_command_line_are_usage_failures() {
        let error = failure(&["next", "0 22-2 * * *"]);
        assert_eq!((error.exit, error.code.as_str()), (2, "inverted_range"));
        let message = "cron expression \"0 22-2 * * *\": hour range 22-2 ends before it starts (column 3)";
        assert_eq!((error.message.as_str(), error.remedy.as_deref()), (message, Some("write 22-23,0-2")));
        let error = failure(&["next", "0 9 * * *", "--tz", "Europe/Pariss"]);
        assert_eq!((error.exit, error.code.as_str()), (2, "unknown_timezone"));
        assert_eq!(error.message, r#"unknown timezone "Europe/Pariss", did you mean "Europe/Paris"?"#);
        let error = failure(&["count", "0 9 * * *", "--from", "yesterday", "--to", "2026-01-01"]);
        assert_eq!((error.exit, error.code.as_str()), (2, "bad_time"));
    }

    #[test]
    fn an_expression_may_begin_with_a_hyphen_only_to_be_refused() {
        assert!(ask(false, &["next", "--", "-1 * * * *"]).is_err());
    }
}
