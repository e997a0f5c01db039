//! `kairos status`, `budget show`, `why`, `reload`, `stop`, `plugin list`: one look, one word.

use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::client::segment;
use super::mandate::time;
use super::output::{cell, emit, printable, rows, say, table};
use crate::exit::{Failure, code};

/// `kairos status`.
///
/// # Errors
/// Those of the control plane. A daemon that does not run is no error.
pub async fn status(context: &Context) -> anyhow::Result<()> {
    let answer = context.client().await?.get("/v1/status").await?;
    emit(context.style, &answer, |status| {
        let mut text = String::new();
        for (key, value) in status.as_object().into_iter().flatten() {
            let value = match value {
                Value::Array(list) if list.is_empty() => "-".to_owned(),
                Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(", "),
                other => cell(other),
            };
            text.push_str(&format!("{key:<20} {}\n", printable(&value)));
        }
        text
    })
}

/// `kairos budget show`.
///
/// # Errors
/// Those of the control plane.
pub async fn budget(context: &Context) -> anyhow::Result<()> {
    let answer = context.client().await?.get("/v1/budget").await?;
    emit(context.style, &answer, |budget| {
        let row = |name: &str, limit: &Value, key: &str| {
            vec![name.to_owned(), cell(&budget["spent"][key]), cell(&budget["reserved"][key]), cell(limit)]
        };
        let none = Value::Null;
        let limits = &budget["limits"];
        let exceeded = if budget["exceeded"] == true { ", used up: queued mandates wait" } else { "" };
        format!(
            "{} ({}){exceeded}\n{}",
            cell(&budget["day"]),
            cell(&budget["timezone"]),
            table(
                &["", "SPENT", "RESERVED", "LIMIT"],
                &[
                    row("calls", &limits["calls"], "calls"),
                    row("input tokens", &none, "input_tokens"),
                    row("output tokens", &limits["tokens"], "output_tokens"),
                    row("usd", &limits["usd"], "usd"),
                ],
            )
        )
    })
}

/// `kairos why SCHEDULE OCCURRENCE`.
///
/// # Errors
/// Those of the control plane; exit 3 with the reason when nothing is recorded of it.
pub async fn why(context: &Context, schedule: &str, occurrence: &str) -> anyhow::Result<()> {
    let nominal = time(occurrence, context.clock.now())?;
    let path = format!(
        "/v1/schedules/{}/occurrences/{}",
        segment(schedule),
        segment(&super::output::rfc3339(nominal))
    );
    let answer = context.client().await?.get(&path).await?;
    emit(context.style, &answer, |row| {
        let mut text =
            format!("{} {}: {}", printable(schedule), cell(&row["nominal_at"]), cell(&row["outcome"]));
        if !row["reason"].is_null() {
            text.push_str(&format!(" ({})", cell(&row["reason"])));
        }
        if row["count"].as_u64().unwrap_or(1) > 1 {
            text.push_str(&format!(
                ", one of {} from {} to {}",
                cell(&row["count"]),
                cell(&row["from"]),
                cell(&row["to"])
            ));
        }
        text.push_str(&format!(", decided {}", cell(&row["decided_at"])));
        let mandate = &row["mandate"];
        if !mandate.is_null() {
            text.push_str(&format!("\nmandate {} is {}", cell(&mandate["id"]), cell(&mandate["state"])));
            if !mandate["reason"].is_null() {
                text.push_str(&format!(" ({})", cell(&mandate["reason"])));
            }
        }
        text
    })
}

/// `kairos reload`.
///
/// # Errors
/// No daemon; or the new configuration is bad and the old one stays: exit 2.
pub async fn reload(context: &Context) -> anyhow::Result<()> {
    let answer = context.daemon().await?.post("/v1/admin/reload", &json!({})).await?;
    let reload = &answer["reload"];
    let words =
        |key: &str| -> Vec<String> { reload[key].as_array().into_iter().flatten().map(cell).collect() };
    let (applied, restart, problems) = (words("applied"), words("needs_restart"), words("problems"));
    emit(context.style, &answer, |_| {
        let mut lines = vec![];
        if applied.is_empty() && restart.is_empty() && problems.is_empty() {
            lines.push("nothing changed".to_owned());
        }
        if !applied.is_empty() {
            lines.push(format!("in effect: {}", applied.join(", ")));
        }
        if !restart.is_empty() {
            lines.push(format!("after a restart: {}", restart.join(", ")));
        }
        lines.join("\n")
    })?;
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(code::USAGE, "config_invalid", problems.join("\n")).into())
}

/// `kairos stop`: asks the daemon to end, and waits until it has.
///
/// # Errors
/// No daemon runs, or it does not end within its graceful timeout and a little more.
pub async fn stop(context: &Context) -> anyhow::Result<()> {
    let client = context.daemon().await?;
    let status = client.get("/v1/status").await?;
    let grace = status["graceful_timeout"].as_f64().unwrap_or(120.0);
    client.post("/v1/admin/shutdown", &json!({})).await?;
    say(context.style, "stopping; running cycles are asked to end");
    let pid = status["pid"].as_i64();
    let ended = super::connect::wait_until_gone(context, Duration::from_secs_f64(grace + 10.0)).await?;
    if !ended {
        return Err(Failure::new(code::GRACE, "still_running", "the daemon has not ended yet").into());
    }
    emit(context.style, &json!({"stopped": true, "pid": pid}), |_| "stopped".to_owned())
}

/// `kairos plugin list`.
///
/// # Errors
/// Those of the control plane.
pub async fn plugins(context: &Context) -> anyhow::Result<()> {
    let answer = context.client().await?.get("/v1/plugins").await?;
    emit(context.style, &answer["plugins"], |list| {
        table(
            &["RUNNER", "PLUGIN", "VERSION", "ABI", "ISOLATION", "STATE", "GENERATION", "SWAP", "REASON"],
            &rows(
                &swaps_in_a_word(list),
                &["runner", "plugin", "version", "abi", "isolation", "state", "generation", "swap", "reason"],
            ),
        )
    })
}

/// The stage of each swap under way, in place of the whole of it.
fn swaps_in_a_word(list: &Value) -> Value {
    let mut list = list.clone();
    for runner in list.as_array_mut().into_iter().flatten() {
        runner["swap"] = runner["swap"]["stage"].clone();
    }
    list
}
