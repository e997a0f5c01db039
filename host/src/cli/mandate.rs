//! `kairos mandate`: goals, made by hand or fired by schedules.

use chrono::{DateTime, Duration, Utc};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::Context;
use super::client::segment;
use super::output::{cell, emit, printable, rows, table};
use crate::exit::Failure;

/// Mandates: add, look at, stop and settle them.
#[derive(Debug, Subcommand)]
pub enum MandateCommand {
    /// Put a goal into the queue
    Add(AddArgs),
    /// List mandates, newest first
    List(ListArgs),
    /// Show one mandate with its cycles and steps
    Show {
        /// Its id
        id: String,
    },
    /// Stop a mandate, whether it waits or runs
    Stop {
        /// Its id
        id: String,
        /// Why, for the record
        #[arg(long)]
        note: Option<String>,
    },
    /// Run an ended mandate again
    Retry {
        /// Its id
        id: String,
    },
    /// Let a paused mandate go on
    Resume {
        /// Its id
        id: String,
    },
    /// End the review of a mandate
    Resolve(ResolveArgs),
}

/// A new mandate.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// What is to be reached
    pub goal: String,
    /// Which configured runner; `default_runner` of daemon.yml when absent
    #[arg(long)]
    pub runner: Option<String>,
    /// Mandates of one scope never run at the same time
    #[arg(long, value_name = "NAME")]
    pub scope: Option<String>,
    /// A parameter for the runner; the value is JSON, else text. Repeatable
    #[arg(long = "param", value_name = "K=V")]
    pub params: Vec<String>,
    /// Cycles after which it ends
    #[arg(long, value_name = "N")]
    pub max_cycles: Option<u32>,
    /// Your own id for this request: the same id never makes a second mandate
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
}

/// Which mandates.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only these states, comma separated (queued, running, review, succeeded, …)
    #[arg(long, value_name = "STATES")]
    pub state: Option<String>,
    /// Only of this schedule
    #[arg(long)]
    pub schedule: Option<String>,
    /// Made at or after this time (RFC 3339, a date, or an age such as 2h or 3d)
    #[arg(long, value_name = "T")]
    pub since: Option<String>,
    /// Made before this time
    #[arg(long, value_name = "T")]
    pub until: Option<String>,
    /// At most so many
    #[arg(long, short = 'n', value_name = "N")]
    pub limit: Option<usize>,
}

/// How a review ends.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("verdict").required(true).args(["done", "redo", "fail"])))]
pub struct ResolveArgs {
    /// Its id
    pub id: String,
    /// It was done
    #[arg(long)]
    pub done: bool,
    /// Do the open step again
    #[arg(long)]
    pub redo: bool,
    /// It failed
    #[arg(long)]
    pub fail: bool,
    /// Why, for the record
    #[arg(long)]
    pub note: String,
}

/// Runs the command.
///
/// # Errors
/// Those of the control plane.
pub async fn run(command: MandateCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        MandateCommand::Add(args) => add(args, context).await,
        MandateCommand::List(args) => list(args, context).await,
        MandateCommand::Show { id } => show(&id, context).await,
        MandateCommand::Stop { id, note } => act(context, &id, "stop", &json!({"note": note})).await,
        MandateCommand::Retry { id } => act(context, &id, "retry", &json!({})).await,
        MandateCommand::Resume { id } => act(context, &id, "resume", &json!({})).await,
        MandateCommand::Resolve(args) => {
            let verdict = match (args.done, args.redo) {
                (true, _) => "done",
                (_, true) => "redo",
                _ => "fail",
            };
            act(context, &args.id, "resolve", &json!({"verdict": verdict, "note": args.note})).await
        }
    }
}

async fn add(args: AddArgs, context: &Context) -> anyhow::Result<()> {
    let body = json!({
        "goal": args.goal,
        "runner": args.runner,
        "project_scope": args.scope,
        "max_cycles": args.max_cycles,
        "request_id": args.request_id,
        "params": params(&args.params)?,
    });
    let answer = context.client().await?.post("/v1/mandates", &body).await?;
    emit(context.style, &answer, |answer| cell(&answer["id"]))
}

/// `K=V` pairs; a value that parses as JSON is that, anything else is text.
///
/// # Errors
/// A pair without `=` or without a key.
pub fn params(pairs: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut map = Map::new();
    for pair in pairs {
        let (key, value) = pair
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::usage(format!("--param {pair:?}: expected K=V")))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        map.insert(key.to_owned(), value);
    }
    Ok(map)
}

async fn list(args: ListArgs, context: &Context) -> anyhow::Result<()> {
    let now = context.clock.now();
    let mut query = vec![];
    let mut push = |key: &str, value: String| query.push(format!("{key}={}", segment(&value)));
    if let Some(state) = args.state {
        push("state", state);
    }
    if let Some(schedule) = args.schedule {
        push("schedule", schedule);
    }
    for (key, value) in [("since", args.since), ("until", args.until)] {
        if let Some(text) = value {
            push(key, time(&text, now)?.to_rfc3339());
        }
    }
    if let Some(limit) = args.limit {
        push("limit", limit.to_string());
    }
    let answer = context.client().await?.get(&format!("/v1/mandates?{}", query.join("&"))).await?;
    emit(context.style, &answer["mandates"], |list| {
        if list.as_array().is_some_and(Vec::is_empty) {
            return "no mandates".to_owned();
        }
        let fields = ["id", "state", "schedule", "runner", "created_at", "goal", "reason"];
        let mut rows = rows(list, &fields);
        for row in &mut rows {
            // `show` has the whole of it.
            row[5] = clipped(&row[5], 40);
            row[6] = clipped(&row[6], 100);
        }
        table(&["ID", "STATE", "SCHEDULE", "RUNNER", "CREATED", "GOAL", "REASON"], &rows)
    })
}

/// A time as people write it: RFC 3339, a date (midnight UTC), or an age.
///
/// # Errors
/// None of these.
pub fn time(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>, Failure> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    if let Ok(date) = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d")
        && let Some(midnight) = date.and_hms_opt(0, 0, 0)
    {
        return Ok(midnight.and_utc());
    }
    let age = text.char_indices().last().and_then(|(at, unit)| {
        let count: i64 = text[..at].parse().ok().filter(|count| (0..=1_000_000).contains(count))?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        now.checked_sub_signed(Duration::seconds(count * seconds))
    });
    age.ok_or_else(|| {
        Failure::usage(format!("{text:?} is no time"))
            .remedy("write 2026-11-22T09:00:00Z, 2026-11-22, or an age such as 90m, 2h, 3d")
    })
}

async fn show(id: &str, context: &Context) -> anyhow::Result<()> {
    let answer = context.client().await?.get(&format!("/v1/mandates/{}", segment(id))).await?;
    emit(context.style, &answer, |mandate| {
        let mut text = String::new();
        for key in
            ["id", "state", "reason", "goal", "schedule", "runner", "nominal_at", "created_at", "ended_at"]
        {
            text.push_str(&format!("{key:<11} {}\n", printable(&cell(&mandate[key]))));
        }
        if let Some(todo) = todo(mandate) {
            text.push_str(&format!("{:<11} {todo}\n", "to do"));
        }
        text.push_str(&running(&mandate["running"]));
        text.push_str("\ncycles\n");
        let cycles: Vec<Vec<String>> =
            mandate["cycles"].as_array().into_iter().flatten().map(cycle_row).collect();
        text.push_str(&table(
            &["CYCLE", "TRY", "STATUS", "STARTED", "ENDED", "CALLS", "TOKENS IN/OUT", "USD", "SAID"],
            &cycles,
        ));
        if mandate["steps"].as_array().is_some_and(|steps| !steps.is_empty()) {
            text.push_str("\nsteps\n");
            text.push_str(&table(
                &["CYCLE", "STEP", "PHASE", "KIND", "NAME", "STATE"],
                &rows(&mandate["steps"], &["cycle", "seq", "phase", "kind", "name", "state"]),
            ));
        }
        text
    })
}

/// How a person lets it go on, where only a person can.
fn todo(mandate: &Value) -> Option<String> {
    let (id, state) = (mandate["id"].as_str()?, mandate["state"].as_str()?);
    match state {
        "review" => {
            Some(format!("`kairos mandate resolve {id} --redo`, or --done, or --fail, with --note TEXT"))
        }
        "paused_checkpoint" | "paused_approval" => Some(format!("`kairos mandate resume {id}`")),
        _ => None,
    }
}

/// A text of at most so many characters, for a table.
fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// What the cycle that runs says of itself.
fn running(seen: &Value) -> String {
    let mut text = String::new();
    if !seen["phase"].is_null() {
        text.push_str(&format!("{:<11} {}\n", "phase", printable(&cell(&seen["phase"]))));
    }
    if let Some(message) = seen["progress"]["message"].as_str() {
        let share = seen["progress"]["fraction"].as_f64().map(|share| format!(" ({:.0}%)", share * 100.0));
        let share = share.unwrap_or_default();
        text.push_str(&format!("{:<11} {}{share}\n", "progress", printable(message)));
    }
    for line in seen["lines"].as_array().into_iter().flatten() {
        text.push_str(&format!("{:<11} {}\n", "says", printable(&cell(line))));
    }
    text
}

fn cycle_row(cycle: &Value) -> Vec<String> {
    let usage = &cycle["usage"];
    let said = if cycle["error"].is_null() { &cycle["summary"] } else { &cycle["error"] };
    vec![
        cell(&cycle["cycle"]),
        cell(&cycle["attempt"]),
        cycle["status"].as_str().unwrap_or("running").to_owned(),
        cell(&cycle["started_at"]),
        cell(&cycle["ended_at"]),
        cell(&usage["llm_calls"]),
        format!("{}/{}", cell(&usage["input_tokens"]), cell(&usage["output_tokens"])),
        cell(&usage["cost_usd"]),
        cell(said),
    ]
}

async fn act(context: &Context, id: &str, verb: &str, body: &Value) -> anyhow::Result<()> {
    let answer = context.client().await?.post(&format!("/v1/mandates/{}/{verb}", segment(id)), body).await?;
    emit(context.style, &answer, |answer| {
        let stopping = answer["stopping"].as_bool().unwrap_or(false);
        let state = if stopping { "stopping" } else { answer["state"].as_str().unwrap_or("-") };
        format!("{id} {state}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn parameters_are_json_where_they_can_be() {
        let pairs = ["n=3", "on=true", "text=hello", "q=\"3\"", "list=[1,2]", "eq=a=b"].map(str::to_owned);
        let map = params(&pairs).unwrap();
        assert_eq!(
            Value::Object(map),
            json!({"n":3,"on":true,"text":"hello","q":"3","list":[1,2],"eq":"a=b"})
        );
        for bad in ["novalue", "=x"] {
            assert_eq!(params(&[bad.to_owned()]).unwrap_err().exit, 2);
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = Utc.with_ymd_and_hms(2026, 11, 22, 12, 0, 0).unwrap();
        assert_eq!(time("2h", now).unwrap(), now - Duration::hours(2));
        assert_eq!(time("2026-11-22", now).unwrap(), now - Duration::hours(12));
        assert_eq!(time("2026-11-22T14:00:00+02:00", now).unwrap(), now);
        for bad in ["", "x", "-3h", "99999999999d", "é"] {
            assert!(time(bad, now).is_err(), "{bad}");
        }
    }
}
