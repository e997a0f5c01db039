//! `kairos schedule`: look at schedules, change their file, hold them back and push them on.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Context;
use super::client::segment;
use super::mandate::time;
use super::output::{cell, emit, printable, rfc3339, say, table};
use super::schedule_edit::{self, EditArgs, NewArgs};
use crate::exit::{Failure, code};

/// Schedules: rules that fire mandates.
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// List schedules with their next fire
    List,
    /// Show one schedule: its rule, state, next fires and last outcomes
    Show {
        /// Its name
        name: String,
    },
    /// Print the next fires of one schedule, or of all
    Next {
        /// Its name; all schedules when absent
        name: Option<String>,
        /// How many of each
        #[arg(short, long, default_value_t = 5)]
        n: usize,
    },
    /// Add a schedule to schedules.yml; shows its next fires first
    Add(NewArgs),
    /// Change a schedule in schedules.yml; comments stay
    Edit(EditArgs),
    /// Remove a schedule from schedules.yml
    Remove {
        /// Its name
        name: String,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Hold a schedule back; its occurrences are recorded as paused
    Pause {
        /// Its name
        name: String,
        /// Until then (RFC 3339, or a date)
        #[arg(long, value_name = "T")]
        until: Option<String>,
        /// Why, for the record
        #[arg(long)]
        note: Option<String>,
    },
    /// Let a schedule go on; what the pause left out stays left out
    Resume {
        /// Its name
        name: String,
        /// Also make mandates for the occurrences of the pause
        #[arg(long)]
        backfill: bool,
    },
    /// Fire a schedule now, beside its rule
    Trigger {
        /// Its name
        name: String,
        /// Your own id for this request: the same id never fires twice
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
    /// Make mandates for past occurrences
    Backfill(BackfillArgs),
    /// Leave out the next occurrence
    SkipNext {
        /// Its name
        name: String,
    },
}

/// Which past.
#[derive(Debug, Args)]
pub struct BackfillArgs {
    /// Its name
    pub name: String,
    /// From this time, exclusive (RFC 3339, a date, or an age such as 3d)
    #[arg(long, value_name = "T")]
    pub from: String,
    /// To this time, inclusive; now when absent
    #[arg(long, value_name = "T")]
    pub to: Option<String>,
    /// Also for occurrences that have a mandate already
    #[arg(long)]
    pub again: bool,
    /// Only count
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of the control plane and of the schedule file.
pub async fn run(command: ScheduleCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        ScheduleCommand::List => list(context).await,
        ScheduleCommand::Show { name } => show(&name, context).await,
        ScheduleCommand::Next { name, n } => next(name.as_deref(), n, context).await,
        ScheduleCommand::Add(args) => schedule_edit::add(args, context).await,
        ScheduleCommand::Edit(args) => schedule_edit::edit(args, context).await,
        ScheduleCommand::Remove { name, dry_run } => schedule_edit::remove(&name, dry_run, context).await,
        ScheduleCommand::Pause { name, until, note } => {
            let until = until.map(|text| time(&text, context.clock.now())).transpose()?;
            let body = json!({"until": until.map(|at| at.to_rfc3339()), "note": note});
            act(context, &name, "pause", &body, "paused").await
        }
        ScheduleCommand::Resume { name, backfill } => {
            act(context, &name, "resume", &json!({"backfill": backfill}), "resumed").await
        }
        ScheduleCommand::Trigger { name, request_id } => {
            let path = format!("/v1/schedules/{}/trigger", segment(&name));
            let answer = context.client().await?.post(&path, &json!({"request_id": request_id})).await?;
            emit(context.style, &answer, |answer| cell(&answer["id"]))
        }
        ScheduleCommand::Backfill(args) => backfill(args, context).await,
        ScheduleCommand::SkipNext { name } => {
            let path = format!("/v1/schedules/{}/skip-next", segment(&name));
            let answer = context.client().await?.post(&path, &json!({})).await?;
            emit(context.style, &answer, |answer| format!("{name} leaves out {}", cell(&answer["skipped"])))
        }
    }
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let answer = context.client().await?.get("/v1/schedules?next=1").await?;
    emit(context.style, &answer["schedules"], |list| {
        let rows: Vec<Vec<String>> = list.as_array().into_iter().flatten().map(list_row).collect();
        if rows.is_empty() {
            return "no schedules; add one with `kairos schedule add`".to_owned();
        }
        table(&["NAME", "CRON", "ZONE", "STATE", "NEXT", "GOAL"], &rows)
    })
}

fn list_row(schedule: &Value) -> Vec<String> {
    ["name", "cron", "timezone"]
        .iter()
        .map(|key| cell(&schedule[*key]))
        .chain([cell(&schedule["state"]), cell(&schedule["next"][0]["local"]), cell(&schedule["goal"])])
        .collect()
}

async fn show(name: &str, context: &Context) -> anyhow::Result<()> {
    let client = context.client().await?;
    let path = format!("/v1/schedules/{}", segment(name));
    let mut answer = client.get(&format!("{path}?next=5")).await?;
    answer["occurrences"] = client.get(&format!("{path}/occurrences?limit=10")).await?["occurrences"].take();
    emit(context.style, &answer, |schedule| {
        let mut text = String::new();
        for (key, value) in schedule.as_object().into_iter().flatten() {
            if !matches!(key.as_str(), "next" | "occurrences" | "recent") && !value.is_null() {
                text.push_str(&format!("{key:<20} {}\n", printable(&cell(value))));
            }
        }
        text.push_str("\nnext\n");
        for at in schedule["next"].as_array().into_iter().flatten() {
            text.push_str(&format!("  {}  {}\n", cell(&at["at"]), cell(&at["local"])));
        }
        text.push_str("\nlast outcomes\n");
        let rows: Vec<Vec<String>> =
            schedule["occurrences"].as_array().into_iter().flatten().map(outcome_row).collect();
        text.push_str(&table(&["FROM", "TO", "COUNT", "OUTCOME", "REASON", "MANDATE"], &rows));
        text
    })
}

fn outcome_row(row: &Value) -> Vec<String> {
    ["from", "to", "count", "outcome", "reason", "mandate"].iter().map(|key| cell(&row[*key])).collect()
}

async fn next(name: Option<&str>, n: usize, context: &Context) -> anyhow::Result<()> {
    let client = context.client().await?;
    let schedules = match name {
        Some(name) => vec![client.get(&format!("/v1/schedules/{}?next={n}", segment(name))).await?],
        None => match client.get(&format!("/v1/schedules?next={n}")).await?["schedules"].take() {
            Value::Array(list) => list,
            _ => vec![],
        },
    };
    let mut fires: Vec<(DateTime<Utc>, String, String)> = vec![];
    for schedule in &schedules {
        for at in schedule["next"].as_array().into_iter().flatten() {
            let (nominal, local) = (cell(&at["at"]), cell(&at["local"]));
            fires.push((DateTime::parse_from_rfc3339(&nominal)?.to_utc(), local, cell(&schedule["name"])));
        }
    }
    fires.sort();
    let list: Vec<Value> = fires
        .iter()
        .map(|(at, local, name)| json!({"schedule": name, "nominal_at": rfc3339(*at), "local": local}))
        .collect();
    emit(context.style, &Value::Array(list), |_| {
        let rows: Vec<Vec<String>> =
            fires.iter().map(|(at, local, name)| vec![rfc3339(*at), local.clone(), name.clone()]).collect();
        table(&["UTC", "LOCAL", "SCHEDULE"], &rows)
    })
}

async fn act(context: &Context, name: &str, verb: &str, body: &Value, done: &str) -> anyhow::Result<()> {
    let path = format!("/v1/schedules/{}/{verb}", segment(name));
    let answer = context.client().await?.post(&path, body).await?;
    emit(context.style, &answer, |_| format!("{} {done}", printable(name)))
}

async fn backfill(args: BackfillArgs, context: &Context) -> anyhow::Result<()> {
    let now = context.clock.now();
    let from = time(&args.from, now)?;
    let to = args.to.map(|text| time(&text, now)).transpose()?.unwrap_or(now);
    let client = context.client().await?;
    let path = format!("/v1/schedules/{}/backfill", segment(&args.name));
    let mut body =
        json!({"from": from.to_rfc3339(), "to": to.to_rfc3339(), "again": args.again, "dry_run": true});
    let counted = client.post(&path, &body).await?;
    let count = counted["count"].as_u64().unwrap_or(0);
    if args.dry_run {
        return emit(context.style, &counted, |_| format!("{count} occurrences"));
    }
    say(context.style, &format!("{count} occurrences"));
    body["dry_run"] = false.into();
    body["confirmed"] = (count > 20 && context.confirm("Make that many mandates?")?).into();
    if count > 20 && body["confirmed"] == false {
        return Err(Failure::new(code::CONFLICT, "confirm", format!("this backfill makes {count} mandates"))
            .remedy("run it with `--yes` if that is meant")
            .into());
    }
    let answer = client.post(&path, &body).await?;
    emit(context.style, &answer, |answer| {
        let made = answer["created"].as_array().map_or(0, Vec::len);
        let occupied = answer["occupied"].as_array().map_or(0, Vec::len);
        format!("{made} mandates made, {occupied} occurrences had one already")
    })
}
