//! `/v1/mandates`.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ApiError, ControlPlane, views};
use crate::daemon::mailbox::{Command, Work};
use crate::domain::budget;
use crate::domain::ids;
use crate::domain::mandate::MandateState;
use crate::domain::schedule::{MandateBounds, Overlap};
use crate::store::{MandateCommand, MandateFilter, MandateRow, NewMandate, Origin, Resolution};

type Answer = Result<Json<Value>, ApiError>;

/// Longest goal; longer text belongs into a file that the runner reads.
const GOAL_MAX: usize = 256 << 10;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// States, comma separated.
    state: Option<String>,
    schedule: Option<String>,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    limit: Option<usize>,
}

pub async fn list(
    State(plane): State<ControlPlane>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query?;
    let filter = MandateFilter {
        states: states(query.state.as_deref())?,
        schedule: query.schedule,
        since: query.since,
        until: query.until,
        limit: query.limit.unwrap_or(0),
    };
    let rows = read(&plane, move |store| store.mandates(&filter)).await?;
    let used_up = used_up(&plane).await?;
    let all: Vec<Value> = rows.iter().map(|row| view(&plane, row, used_up)).collect();
    // The reference's two lists, beside the full one.
    let pick = |state: MandateState| -> Vec<&Value> {
        rows.iter().zip(&all).filter(|(row, _)| row.state == state).map(|(_, view)| view).collect()
    };
    Ok(Json(json!({
        "active": pick(MandateState::Running),
        "queued": pick(MandateState::Queued),
        "mandates": all,
    })))
}

/// True while the day's budget holds queued work back.
async fn used_up(plane: &ControlPlane) -> Result<bool, ApiError> {
    let frame = plane.source.budget(plane.clock.now());
    let day = frame.day.clone();
    let totals = read(plane, move |store| store.day(&day)).await?;
    Ok(budget::exceeded(&frame.limits, &totals).is_some())
}

/// A mandate; one that waits for nothing but the budget, or a swap of its runner, says so.
fn view(plane: &ControlPlane, row: &MandateRow, used_up: bool) -> Value {
    let mut view = views::mandate(row);
    if row.state == MandateState::Queued && row.reason.is_none() {
        let budget = used_up.then(|| "budget".to_owned());
        view["reason"] = budget.or_else(|| plane.source.held(&row.runner)).into();
    }
    view
}

fn states(text: Option<&str>) -> Result<Vec<MandateState>, ApiError> {
    let words =
        text.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|word| !word.is_empty());
    words
        .map(|word| {
            MandateState::parse(word).ok_or_else(|| {
                let known: Vec<&str> = MandateState::ALL.iter().map(|state| state.as_str()).collect();
                ApiError::bad_request(format!("unknown state {word:?}"))
                    .remedy(format!("one of {}", known.join(", ")))
            })
        })
        .collect()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddBody {
    goal: String,
    runner: Option<String>,
    project_scope: Option<String>,
    #[serde(default)]
    concurrency: Overlap,
    request_id: Option<String>,
    max_cycles: Option<u32>,
    checkpoint_every: Option<u32>,
    risk_budget: Option<String>,
    allowed_actions: Option<Vec<String>>,
    observe_policies: Option<Vec<String>>,
    #[serde(default)]
    params: Map<String, Value>,
}

pub async fn add(
    State(plane): State<ControlPlane>,
    body: Result<Json<AddBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let Json(body) = body?;
    let runner = body.runner.unwrap_or_else(|| plane.source.default_runner());
    if !plane.source.has_runner(&runner) {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unknown_runner",
            format!("no runner {runner:?} is configured"),
        )
        .remedy("name one of `runners:` in daemon.yml"));
    }
    if body.goal.trim().is_empty() || body.goal.len() > GOAL_MAX {
        return Err(ApiError::bad_request(format!("a goal has 1 to {GOAL_MAX} bytes")));
    }
    let bounds = MandateBounds {
        max_cycles: body.max_cycles.unwrap_or(MandateBounds::default().max_cycles),
        checkpoint_every: body.checkpoint_every,
        risk_budget: body.risk_budget,
        allowed_actions: body.allowed_actions,
        observe_policies: body.observe_policies,
        params: body.params,
    };
    if bounds.max_cycles == 0 {
        return Err(ApiError::bad_request("max_cycles is at least 1"));
    }
    let now = plane.clock.now();
    let mut chance = [0_u8; 4];
    plane.entropy.fill(&mut chance);
    let mandate = NewMandate {
        id: ids::manual(now, chance),
        origin: Origin::Manual,
        request_id: body.request_id,
        schedule: None,
        nominal: None,
        goal: body.goal,
        runner,
        scope: body.project_scope,
        overlap: body.concurrency,
        bounds,
        again: false,
        now,
    };
    let added = plane.mailbox.ask(|reply| Command::Work(Work::AddMandate(Box::new(mandate), reply))).await?;
    let body = json!({"enqueued": true, "command_id": added.id, "id": added.id, "created": added.created});
    Ok((StatusCode::ACCEPTED, Json(body)))
}

pub async fn show(State(plane): State<ControlPlane>, Path(id): Path<String>) -> Answer {
    let seen = plane.source.seen(&id);
    let (row, cycles, steps) =
        read(&plane, move |store| Ok((store.mandate(&id)?, store.cycles(&id)?, store.steps(&id)?))).await?;
    let mut view = view(&plane, &row, used_up(&plane).await?);
    view["cycles"] = cycles.iter().map(views::cycle).collect();
    view["steps"] = steps.iter().map(views::step).collect();
    view["running"] = if row.state == MandateState::Running { seen } else { Value::Null };
    Ok(Json(view))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopBody {
    note: Option<String>,
}

pub async fn stop(
    State(plane): State<ControlPlane>,
    Path(id): Path<String>,
    body: Option<Json<StopBody>>,
) -> Answer {
    let note = body.and_then(|Json(body)| body.note);
    command(&plane, id, MandateCommand::Stop { note }).await
}

pub async fn retry(State(plane): State<ControlPlane>, Path(id): Path<String>) -> Answer {
    command(&plane, id, MandateCommand::Retry).await
}

pub async fn resume(State(plane): State<ControlPlane>, Path(id): Path<String>) -> Answer {
    command(&plane, id, MandateCommand::Resume).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveBody {
    verdict: Verdict,
    note: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Done,
    Redo,
    Fail,
}

pub async fn resolve(
    State(plane): State<ControlPlane>,
    Path(id): Path<String>,
    body: Result<Json<ResolveBody>, JsonRejection>,
) -> Answer {
    let Json(body) = body?;
    if body.note.trim().is_empty() {
        return Err(ApiError::bad_request("a note says why; it must not be empty"));
    }
    let verdict = match body.verdict {
        Verdict::Done => Resolution::Done,
        Verdict::Redo => Resolution::Redo,
        Verdict::Fail => Resolution::Fail,
    };
    command(&plane, id, MandateCommand::Resolve { verdict, note: body.note }).await
}

async fn command(plane: &ControlPlane, id: String, command: MandateCommand) -> Answer {
    let mandate = id.clone();
    let done =
        plane.mailbox.ask(|reply| Command::Work(Work::Mandate { id: mandate, command, reply })).await?;
    Ok(Json(json!({"id": id, "mandate_id": id, "state": done.state, "stopping": done.stop_running})))
}

/// Reads the store on a thread that may block.
pub async fn read<T: Send + 'static>(
    plane: &ControlPlane,
    job: impl FnOnce(&dyn crate::store::Store) -> crate::store::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let store = std::sync::Arc::clone(&plane.store);
    match tokio::task::spawn_blocking(move || job(&*store)).await {
        Ok(answer) => Ok(answer?),
        Err(error) => {
            tracing::error!(%error, "attach_read_failed");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the read did not end"))
        }
    }
}
