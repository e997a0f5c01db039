//! How rows of the store look in JSON. The shapes are fixed; keys may be added.

use chrono::{DateTime, SecondsFormat, Utc};
use kairos_plugin_api::Usage;
use serde_json::{Value, json};

use super::BudgetView;
use crate::store::{CycleRow, DayTotals, Limits, MandateRow, OccurrenceRow, StepRow};

/// RFC 3339 in UTC, as short as it is exact.
pub fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn opt_time(at: Option<DateTime<Utc>>) -> Value {
    at.map_or(Value::Null, |at| time(at).into())
}

/// Nano-dollars as dollars; the ledger itself never uses floating point.
#[expect(clippy::cast_precision_loss, reason = "for people and scripts, to well below a cent")]
fn usd(nano: u64) -> f64 {
    nano as f64 / 1e9
}

pub fn mandate(row: &MandateRow) -> Value {
    json!({
        "id": row.id,
        "schedule": row.schedule,
        "runner": row.runner,
        "goal": row.goal,
        "state": row.state,
        "reason": row.reason,
        "nominal_at": opt_time(row.nominal_at),
        "created_at": time(row.created_at),
        "ended_at": opt_time(row.ended_at),
        "not_before": opt_time(row.not_before),
        "origin": row.origin,
        "project_scope": row.scope,
        "cycle": row.cycle,
        "max_cycles": row.bounds.max_cycles,
        "params": row.bounds.params,
    })
}

pub fn cycle(row: &CycleRow) -> Value {
    json!({
        "cycle": row.cycle,
        "attempt": row.attempt,
        "runner": row.runner,
        "generation": row.generation,
        "status": row.status,
        "started_at": time(row.started_at),
        "ended_at": opt_time(row.ended_at),
        "usage": usage(row.usage),
        "summary": row.summary,
        "error": row.error,
    })
}

/// A step without its contents: what was asked and answered is shown only where somebody asks for it.
pub fn step(row: &StepRow) -> Value {
    json!({
        "cycle": row.cycle,
        "seq": row.seq,
        "kind": row.kind,
        "name": row.name,
        "phase": row.phase,
        "state": row.state,
        "key": row.key,
        "started_at": time(row.started_at),
        "ended_at": opt_time(row.ended_at),
    })
}

fn usage(usage: Usage) -> Value {
    json!({
        "llm_calls": usage.llm_calls,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": usd(usage.cost_nano_usd),
    })
}

fn ledger(usage: Usage) -> Value {
    json!({
        "calls": usage.llm_calls,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usd": usd(usage.cost_nano_usd),
    })
}

pub fn budget(view: &BudgetView, totals: DayTotals) -> Value {
    let Limits { calls, tokens, nano_usd } = view.limits;
    json!({
        "day": view.day,
        "timezone": view.timezone,
        "limits": {"calls": calls, "tokens": tokens, "usd": nano_usd.map(usd)},
        "spent": ledger(totals.spent),
        "reserved": ledger(totals.reserved),
        "exceeded": crate::domain::budget::exceeded(&view.limits, &totals).is_some(),
    })
}

pub fn occurrence(row: &OccurrenceRow) -> Value {
    json!({
        "schedule": row.schedule,
        "from": time(row.from),
        "to": time(row.to),
        "count": row.count,
        "outcome": row.outcome,
        "reason": row.reason,
        "mandate": row.mandate,
        "decided_at": time(row.decided_at),
    })
}
