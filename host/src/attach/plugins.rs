//! Versions of runners: replace one while the daemon runs, take it back, look at the past.

use std::path::PathBuf;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::mandates::read;
use super::{ApiError, ControlPlane};
use crate::daemon::mailbox::Phase;
use crate::daemon::swap::{Refusal, SwapRequest, Swaps};

type Answer = Result<Json<Value>, ApiError>;

/// Longest time that a look at a swap waits for news.
const WAIT_MAX: Duration = Duration::from_secs(25);
/// Characters of an operator's reason that are kept.
const REASON_MAX: usize = 500;
/// Lives that are shown unless somebody asks for more.
const HISTORY: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapBody {
    /// Absolute: the daemon has another working directory.
    file: PathBuf,
    #[serde(default)]
    cold: bool,
    #[serde(default)]
    other_plugin: bool,
}

/// Begins a swap and answers at once.
pub async fn swap(
    State(plane): State<ControlPlane>,
    Path(runner): Path<String>,
    body: Result<Json<SwapBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let Json(SwapBody { file, cold, other_plugin }) = body?;
    if !file.is_absolute() {
        return Err(ApiError::bad_request("`file` must be an absolute path"));
    }
    let view = swaps(&plane)?.start(SwapRequest { runner, file, cold, other_plugin })?;
    Ok((StatusCode::ACCEPTED, Json(json!(view))))
}

/// Gives up a swap that has not come to its flip.
pub async fn abort(
    State(plane): State<ControlPlane>,
    Path(runner): Path<String>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let view = swaps(&plane)?.abort(&runner)?;
    Ok((StatusCode::ACCEPTED, Json(json!(view))))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackBody {
    /// In the operator's words.
    reason: Option<String>,
}

/// Gives the slot back to the version before.
pub async fn rollback(
    State(plane): State<ControlPlane>,
    Path(runner): Path<String>,
    body: Result<Json<RollbackBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let Json(RollbackBody { reason }) = body?;
    let mut who = "taken back by the operator".to_owned();
    if let Some(reason) = reason.filter(|reason| !reason.trim().is_empty()) {
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect();
        who.push_str(&format!(": {}", reason.trim()));
    }
    let view = swaps(&plane)?.roll_back(&runner, &who).await?;
    Ok((StatusCode::ACCEPTED, Json(json!(view))))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgressQuery {
    /// Wait for something after this step.
    after: Option<u64>,
}

/// Where a swap stands; with `after` once there is news, or after a while without.
pub async fn progress(
    State(plane): State<ControlPlane>,
    Path(id): Path<String>,
    query: Result<Query<ProgressQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query?;
    // Also of a daemon that stops: who waits for a swap is told how it ended.
    let swaps = plane.source.swaps().ok_or_else(no_daemon)?;
    let view = match query.after {
        Some(step) => swaps.view_after(&id, step, WAIT_MAX).await,
        None => swaps.view(&id),
    };
    view.map(|view| Json(json!(view))).ok_or_else(|| ApiError::not_found("swap", &id))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryQuery {
    runner: Option<String>,
    limit: Option<usize>,
}

/// Lives of generations, newest first.
pub async fn history(
    State(plane): State<ControlPlane>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Answer {
    let Query(HistoryQuery { runner, limit }) = query?;
    let unknown = runner.clone().filter(|runner| !plane.source.has_runner(runner));
    let source = std::sync::Arc::clone(&plane.source);
    let limit = limit.unwrap_or(HISTORY);
    let rows = read(&plane, move |_| source.generations(runner.as_deref(), limit)).await?;
    // One that is not configured any more has a past all the same.
    if let Some(runner) = unknown.filter(|_| rows.is_empty()) {
        return Err(ApiError::not_found("runner", &runner));
    }
    Ok(Json(json!({"history": rows})))
}

fn swaps(plane: &ControlPlane) -> Result<Swaps, ApiError> {
    let swaps = plane.source.swaps().ok_or_else(no_daemon)?;
    match plane.mailbox.phase() {
        Phase::Running => Ok(swaps),
        phase => {
            let message = format!("the daemon is {phase} and does not swap now");
            Err(ApiError::new(StatusCode::CONFLICT, "not_now", message))
        }
    }
}

fn no_daemon() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "daemon_down",
        "no daemon runs here, so nothing is swapped",
    )
    .remedy("start it, or name the new file in daemon.yml before you do")
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match refusal.code.as_str() {
            "conflict" => (StatusCode::CONFLICT, "conflict"),
            "unknown_runner" => (StatusCode::NOT_FOUND, "not_found"),
            "no_swap" => (StatusCode::NOT_FOUND, "no_swap"),
            "stopping" => (StatusCode::CONFLICT, "stopping"),
            "nothing_before" => (StatusCode::NOT_FOUND, "nothing_before"),
            "not_a_plugin" => (StatusCode::UNPROCESSABLE_ENTITY, "not_a_plugin"),
            "store" => (StatusCode::SERVICE_UNAVAILABLE, "store"),
            _ => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
        };
        Self { remedy: refusal.remedy, ..Self::new(status, code, refusal.message) }
    }
}
