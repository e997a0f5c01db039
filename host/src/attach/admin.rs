//! Status, budget, plugins, events and the daemon's own commands.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::mandates::read;
use super::{ApiError, ControlPlane, views};
use crate::daemon::mailbox::Command;

type Answer = Result<Json<Value>, ApiError>;

pub async fn status(State(plane): State<ControlPlane>) -> Json<Value> {
    Json(plane.source.status())
}

pub async fn budget(State(plane): State<ControlPlane>) -> Answer {
    let view = plane.source.budget(plane.clock.now());
    let day = view.day.clone();
    let totals = read(&plane, move |store| store.day(&day)).await?;
    Ok(Json(views::budget(&view, totals)))
}

pub async fn plugins(State(plane): State<ControlPlane>) -> Answer {
    let source = std::sync::Arc::clone(&plane.source);
    let plugins = read(&plane, move |_| Ok(source.plugins())).await?;
    Ok(Json(json!({"plugins": plugins})))
}

/// The configured commands and what they lack, looked at in the daemon's own environment.
pub async fn commands(State(plane): State<ControlPlane>) -> Answer {
    let source = std::sync::Arc::clone(&plane.source);
    let commands = read(&plane, move |_| Ok(source.commands())).await?;
    Ok(Json(json!({"commands": commands})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    after: Option<i64>,
    limit: Option<usize>,
}

/// A page of events. Answers at once; whoever wants to follow asks again with the last id.
pub async fn events(
    State(plane): State<ControlPlane>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query?;
    let (after, limit) = (query.after.unwrap_or(0), query.limit.unwrap_or(100).clamp(1, 10_000));
    let rows = read(&plane, move |store| store.events(after, limit)).await?;
    Ok(Json(json!({"events": rows})))
}

pub async fn reload(State(plane): State<ControlPlane>) -> Answer {
    let reloaded = plane.mailbox.ask(Command::Reload).await?;
    Ok(Json(json!({"enqueued": true, "reload": reloaded})))
}

pub async fn shutdown(State(plane): State<ControlPlane>) -> Result<(StatusCode, Json<Value>), ApiError> {
    plane.mailbox.shutdown().await?;
    Ok((StatusCode::ACCEPTED, Json(json!({"enqueued": true}))))
}

pub async fn status_dump(State(plane): State<ControlPlane>) -> Answer {
    Ok(Json(plane.mailbox.ask(Command::StatusDump).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneBody {
    before: DateTime<Utc>,
    #[serde(default)]
    dry_run: bool,
}

pub async fn prune(
    State(plane): State<ControlPlane>,
    body: Result<Json<PruneBody>, JsonRejection>,
) -> Answer {
    let Json(PruneBody { before, dry_run }) = body?;
    let source = std::sync::Arc::clone(&plane.source);
    Ok(Json(read(&plane, move |_| source.prune(before, dry_run)).await?))
}
