//! `/v1/schedules`.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::mandates::read;
use super::{ApiError, ControlPlane, views};
use crate::daemon::mailbox::{Command, Work};

type Answer = Result<Json<Value>, ApiError>;

/// Most fires a preview computes.
const NEXT_MAX: usize = 1000;
/// A larger backfill wants a confirmation.
const BACKFILL_ASK: u64 = 20;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextQuery {
    next: Option<usize>,
}

pub async fn list(
    State(plane): State<ControlPlane>,
    query: Result<Query<NextQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query?;
    let next = query.next.unwrap_or(1).min(NEXT_MAX);
    Ok(Json(json!({"schedules": plane.source.schedules(plane.clock.now(), next)})))
}

pub async fn show(
    State(plane): State<ControlPlane>,
    Path(name): Path<String>,
    query: Result<Query<NextQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query?;
    let next = query.next.unwrap_or(5).min(NEXT_MAX);
    let view = plane.source.schedule(&name, plane.clock.now(), next);
    view.map(Json).ok_or_else(|| ApiError::not_found("schedule", &name))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitQuery {
    limit: Option<usize>,
}

pub async fn occurrences(
    State(plane): State<ControlPlane>,
    Path(name): Path<String>,
    query: Result<Query<LimitQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(30).clamp(1, 10_000);
    let schedule = name.clone();
    let rows = match read(&plane, move |store| store.occurrences(&schedule, limit)).await {
        // One that never ran, a quarantined one for example, has no row.
        Err(error) if error.status == StatusCode::NOT_FOUND => {
            let known = plane.source.schedule(&name, plane.clock.now(), 0);
            known.map(|_| vec![]).ok_or(error)?
        }
        other => other?,
    };
    Ok(Json(json!({"occurrences": rows.iter().map(views::occurrence).collect::<Vec<_>>()})))
}

pub async fn why(
    State(plane): State<ControlPlane>,
    Path((name, nominal)): Path<(String, DateTime<Utc>)>,
) -> Answer {
    let schedule = name.clone();
    let found = read(&plane, move |store| {
        let row = store.occurrence(&schedule, nominal)?;
        let mandate = row.mandate.as_deref().map(|id| store.mandate(id)).transpose()?;
        Ok((row, mandate))
    })
    .await;
    match found {
        // A run covers a span; a time between two of its occurrences has no outcome. What an edit
        // ended belongs to a rule that is gone, so it cannot be asked.
        Ok((row, _))
            if row.count > 1
                && row.reason.as_deref() != Some("edited")
                && ![row.from, row.to].contains(&nominal)
                && plane.source.backfill_count(&name, nominal - TimeDelta::seconds(1), nominal)
                    == Some(0) =>
        {
            let message = format!("{name:?} has no occurrence at {}", views::time(nominal));
            Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message))
        }
        Ok((row, mandate)) => {
            let mut view = views::occurrence(&row);
            view["nominal_at"] = views::time(nominal).into();
            view["mandate"] = mandate.as_ref().map_or(Value::Null, views::mandate);
            Ok(Json(view))
        }
        Err(error) if error.status == StatusCode::NOT_FOUND => {
            Err(ApiError { message: plane.source.why_unrecorded(&name, nominal), ..error })
        }
        Err(error) => Err(error),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseBody {
    until: Option<DateTime<Utc>>,
    note: Option<String>,
}

pub async fn pause(
    State(plane): State<ControlPlane>,
    Path(schedule): Path<String>,
    body: Result<Json<PauseBody>, JsonRejection>,
) -> Answer {
    let Json(PauseBody { until, note }) = body?;
    if until.is_some_and(|until| until <= plane.clock.now()) {
        return Err(ApiError::bad_request("`until` lies in the past"));
    }
    let name = schedule.clone();
    plane.mailbox.ask(|reply| Command::Work(Work::PauseSchedule { schedule, until, note, reply })).await?;
    Ok(Json(json!({"schedule": name, "paused": true})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeBody {
    #[serde(default)]
    backfill: bool,
}

pub async fn resume(
    State(plane): State<ControlPlane>,
    Path(schedule): Path<String>,
    body: Result<Json<ResumeBody>, JsonRejection>,
) -> Answer {
    let Json(ResumeBody { backfill }) = body?;
    let name = schedule.clone();
    plane.mailbox.ask(|reply| Command::Work(Work::ResumeSchedule { schedule, backfill, reply })).await?;
    Ok(Json(json!({"schedule": name, "paused": false})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerBody {
    request_id: Option<String>,
}

pub async fn trigger(
    State(plane): State<ControlPlane>,
    Path(schedule): Path<String>,
    body: Result<Json<TriggerBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let Json(TriggerBody { request_id }) = body?;
    let added =
        plane.mailbox.ask(|reply| Command::Work(Work::Trigger { schedule, request_id, reply })).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({"enqueued": true, "id": added.id, "created": added.created}))))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackfillBody {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    #[serde(default)]
    again: bool,
    /// Only count.
    #[serde(default)]
    dry_run: bool,
    /// Needed above [`BACKFILL_ASK`].
    #[serde(default)]
    confirmed: bool,
}

pub async fn backfill(
    State(plane): State<ControlPlane>,
    Path(schedule): Path<String>,
    body: Result<Json<BackfillBody>, JsonRejection>,
) -> Answer {
    let Json(BackfillBody { from, to, again, dry_run, confirmed }) = body?;
    if to <= from {
        return Err(ApiError::bad_request("`to` must lie after `from`"));
    }
    let count = plane
        .source
        .backfill_count(&schedule, from, to)
        .ok_or_else(|| ApiError::not_found("schedule", &schedule))?;
    if dry_run {
        return Ok(Json(json!({"schedule": schedule, "count": count, "dry_run": true})));
    }
    if count > BACKFILL_ASK && !confirmed {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "confirm",
            format!("this backfill makes {count} mandates"),
        )
        .remedy("ask again with `--yes` if that is meant"));
    }
    let name = schedule.clone();
    let made =
        plane.mailbox.ask(|reply| Command::Work(Work::Backfill { schedule, from, to, again, reply })).await?;
    Ok(Json(json!({"schedule": name, "count": count, "created": made.created, "occupied": made.occupied})))
}

pub async fn skip_next(State(plane): State<ControlPlane>, Path(schedule): Path<String>) -> Answer {
    let name = schedule.clone();
    let nominal = plane.mailbox.ask(|reply| Command::Work(Work::SkipNext { schedule, reply })).await?;
    Ok(Json(json!({"schedule": name, "skipped": views::time(nominal)})))
}
