//! `kairos plugin swap`, `rollback` and `history`: other versions of a runner while the daemon runs.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::{find, no_plugin};
use crate::cli::Context;
use crate::cli::client::{Client, segment};
use crate::cli::output::{cell, emit, printable, rows, say, table};
use crate::exit::{Failure, code};

/// Arguments of `swap`.
#[derive(Debug, Args)]
pub struct SwapArgs {
    /// The runner, by its key in `daemon.yml`
    runner: String,
    /// The new version: a file, or a plugin's name as `daemon.yml` has it
    #[arg(required_unless_present = "abort")]
    file: Option<PathBuf>,
    /// Begin without the state of the version that serves
    #[arg(long)]
    cold: bool,
    /// Take the file also when it is another plugin by its manifest's name, not a version of the one that serves
    #[arg(long)]
    other_plugin: bool,
    /// Return at once; `plugin list` and `plugin history` show what becomes of it
    #[arg(long)]
    no_wait: bool,
    /// Give up the swap that is under way, at any stage before its flip; what serves goes on
    #[arg(long, conflicts_with_all = ["file", "cold", "other_plugin", "no_wait"])]
    abort: bool,
}

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The runner, by its key in `daemon.yml`
    runner: String,
    /// Why, for the history
    #[arg(long)]
    reason: Option<String>,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Only this runner
    runner: Option<String>,
    /// Most lines
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

/// Puts another version in a runner's slot.
///
/// # Errors
/// No daemon, or it ends meanwhile: exit 7; another swap is under way: exit 5; the candidate is refused:
/// exit 1. With `--abort`: none is under way: exit 3; it is too late: exit 5.
pub async fn swap(args: SwapArgs, context: &Context) -> anyhow::Result<()> {
    let client = context.daemon().await?;
    let path = format!("/v1/plugins/{}/swap", segment(&args.runner));
    let Some(file) = &args.file else {
        let given_up = client.call(Method::POST, &format!("{path}/abort"), None).await;
        return aborted(&client, given_up.map_err(|error| ended(error, &args.runner, None))?, context).await;
    };
    let file = find(file, context).map_err(no_plugin)?;
    let body = json!({"file": std::path::absolute(&file)?, "cold": args.cold,
        "other_plugin": args.other_plugin});
    let begun = client.call(Method::POST, &path, Some(&body)).await;
    let begun = begun.map_err(|error| ended(error, &args.runner, None))?;
    follow(&client, begun, args.no_wait, context).await
}

/// Waits for the end of a swap that was given up, and says how it ended.
async fn aborted(client: &Client, mut seen: Value, context: &Context) -> anyhow::Result<()> {
    while !decided(&seen) {
        seen = progress(client, &seen).await?;
    }
    if seen["stage"] != "refused" {
        let message = format!("{} came to its flip meanwhile", cell(&seen["id"]));
        let remedy = format!("take it back: kairos plugin rollback {}", cell(&seen["runner"]));
        return Err(Failure::new(code::CONFLICT, "conflict", message).remedy(remedy).into());
    }
    emit(context.style, &seen, |seen| {
        let (id, runner) = (cell(&seen["id"]), cell(&seen["runner"]));
        format!("{id} has ended: {}; {runner} is served as before", cell(&seen["refusal"]["message"]))
    })
}

/// The next news of a swap.
async fn progress(client: &Client, seen: &Value) -> anyhow::Result<Value> {
    let path = format!("/v1/plugins/swaps/{}?after={}", segment(&cell(&seen["id"])), seen["step"]);
    client.get(&path).await.map_err(|error| ended(error, &cell(&seen["runner"]), Some(seen)))
}

/// What to say when the daemon does not answer any more, or another one answers that knows nothing of
/// the swap. What it has refused itself stays as it is.
fn ended(error: anyhow::Error, runner: &str, seen: Option<&Value>) -> anyhow::Error {
    let known = error.downcast_ref::<Failure>();
    let gone = match known {
        None => true,
        Some(failure) => failure.exit == code::DAEMON_DOWN || (failure.code == "not_found" && seen.is_some()),
    };
    if !gone {
        return error;
    }
    let what = match seen {
        Some(seen) => format!("{} was at {}", cell(&seen["id"]), cell(&seen["stage"])),
        None => "it was asked for a swap".to_owned(),
    };
    let message = format!(
        "the daemon ended while {what} ({error})\n\
         which version serves runner {runner} is decided at its next start: the new one if the flip was recorded, \
         else the old one"
    );
    let remedy = format!("start it with `kairos run`; `kairos plugin history {runner}` shows what serves");
    Failure::new(code::DAEMON_DOWN, "daemon_ended", message).remedy(remedy).into()
}

/// Gives a slot back to the version before.
///
/// # Errors
/// No daemon: exit 7; nothing served before: exit 3; a swap is under way: exit 5.
pub async fn rollback(args: RollbackArgs, context: &Context) -> anyhow::Result<()> {
    let client = context.daemon().await?;
    let path = format!("/v1/plugins/{}/rollback", segment(&args.runner));
    let begun = client.post(&path, &json!({"reason": args.reason})).await;
    let begun = begun.map_err(|error| ended(error, &args.runner, None))?;
    if begun["stage"] == "rolled_back" {
        // A trial that was ended: the version before serves already.
        return emit(context.style, &begun, |seen| {
            format!("{} is served by {} again", cell(&seen["runner"]), short(&seen["from"]))
        });
    }
    follow(&client, begun, args.no_wait, context).await
}

/// What served a slot, what was refused, and why.
///
/// # Errors
/// Those of the control plane.
pub async fn history(args: HistoryArgs, context: &Context) -> anyhow::Result<()> {
    let mut path = format!("/v1/plugins/history?limit={}", args.limit);
    if let Some(runner) = &args.runner {
        path.push_str(&format!("&runner={}", segment(runner)));
    }
    let answer = context.client().await?.get(&path).await?;
    emit(context.style, &answer["history"], |list| {
        let mut list = list.clone();
        // The data has lives in their order; a person reads what happened when.
        if let Some(lives) = list.as_array_mut() {
            lives.sort_by_key(|life| std::cmp::Reverse(moment(&life["since"])));
        }
        let keys = ["since", "runner", "name", "version", "state", "sha256", "source", "reason"];
        let mut shown = rows(&list, &keys);
        for row in &mut shown {
            row[5].truncate(12);
            // A reason may have three lines; the first says what it is.
            row[7] = row[7].lines().next().unwrap_or_default().to_owned();
        }
        table(&["SINCE", "RUNNER", "NAME", "VERSION", "STATE", "GENERATION", "FILE", "REASON"], &shown)
    })
}

/// Waits until a swap is decided, and says where it stands on the way.
async fn follow(client: &Client, begun: Value, no_wait: bool, context: &Context) -> anyhow::Result<()> {
    let mut seen = begun;
    let id = cell(&seen["id"]);
    let mut stage = String::new();
    while !no_wait && !decided(&seen) {
        if stage != cell(&seen["stage"]) {
            stage = cell(&seen["stage"]);
            say(context.style, &format!("{id}: {stage}"));
        }
        seen = progress(client, &seen).await?;
    }
    let refusal = &seen["refusal"];
    if refusal.is_object() {
        // The whole view holds what the replay found.
        if context.style.json || seen["shadow"]["cycles"].as_array().is_some_and(|found| !found.is_empty()) {
            emit(context.style, &seen, |seen| differences(&seen["shadow"]))?;
        }
        let mut failure = Failure::new(
            code::FAILED,
            refusal["code"].as_str().unwrap_or("refused"),
            cell(&refusal["message"]),
        );
        failure.remedy = refusal["remedy"].as_str().map(ToOwned::to_owned);
        return Err(failure.into());
    }
    emit(context.style, &seen, |seen| {
        let runner = cell(&seen["runner"]);
        let version = format!("{} {}", cell(&seen["name"]), cell(&seen["version"]));
        match seen["stage"].as_str() {
            Some("canary") => {
                format!("{runner} is served by {version} ({}), on trial", short(&seen["generation"]))
            }
            Some("drain" | "done") => {
                format!("{runner} is served by {version} ({})", short(&seen["generation"]))
            }
            _ => format!("{} has begun", cell(&seen["id"])),
        }
    })
}

fn decided(seen: &Value) -> bool {
    ["canary", "drain", "done", "refused", "rolled_back"].iter().any(|stage| seen["stage"] == *stage)
}

fn moment(since: &Value) -> Option<DateTime<Utc>> {
    since.as_str()?.parse().ok()
}

fn short(sha256: &Value) -> String {
    cell(sha256).chars().take(12).collect()
}

/// A line for each recorded cycle that came out otherwise, with what it was.
fn differences(shadow: &Value) -> String {
    let mut lines = Vec::new();
    for cycle in shadow["cycles"].as_array().into_iter().flatten() {
        let head =
            format!("{} cycle {}: {}", cell(&cycle["mandate"]), cycle["cycle"], cell(&cycle["outcome"]));
        lines.push(head);
        for found in cycle["differences"].as_array().into_iter().flatten() {
            let (what, then, now) = (cell(&found["what"]), cell(&found["expected"]), cell(&found["got"]));
            lines.push(format!("  {}", printable(&format!("{what}: expected {then}, got {now}"))));
        }
    }
    lines.join("\n")
}
