//! Files that lie beside the store: what the reference left, or what we published ourselves. Read
//! once, on the first start, and where a store is rebuilt.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use kairos_plugin_api::Usage;

use crate::boot::settings::Settings;
use crate::config::reference;
use crate::exit::{Failure, code};
use crate::store::SqliteStore;
use crate::store::maintenance::{Beside, KnownSchedule, KnownSpend};
use crate::sys::files;

/// What `schedules.yml`, `chronos_state.yml` and `budget.json` tell.
///
/// # Errors
/// One of them is there and cannot be read: a spent budget must never be forgotten in silence.
pub fn beside(settings: &Settings) -> anyhow::Result<Beside> {
    let bad = |error: reference::ReferenceError, file: &std::path::Path| {
        Failure::new(code::STORE, "state_file_damaged", error.to_string())
            .remedy(format!("correct {}, or move it away if it does not matter", file.display()))
    };
    let paths = &settings.paths;
    let known =
        reference::chronos_state(&paths.chronos_state).map_err(|error| bad(error, &paths.chronos_state))?;
    let spent = reference::budget(&paths.budget_json).map_err(|error| bad(error, &paths.budget_json))?;
    let known = known.unwrap_or_default();
    let mut schedules = HashMap::new();
    let file = settings.schedules()?;
    if !file.readable {
        // Without the rules the cursors could not be kept, and they are taken over only once.
        return Err(Failure::usage(file.full_report().to_string()).into());
    }
    for spec in file.schedules {
        let state = known.get(&*spec.name);
        let runner = spec.policy.runner.clone().unwrap_or_else(|| settings.config.default_runner.clone());
        schedules.insert(
            spec.name.to_string(),
            KnownSchedule {
                runner,
                cursor: state.and_then(|state| state.last_evaluated_at),
                last_fired: state.and_then(|state| state.last_fire_at),
                spec,
            },
        );
    }
    let spend = spent.map(|file| KnownSpend {
        day: file.date.format("%Y-%m-%d").to_string(),
        usage: Usage {
            llm_calls: file.llm_calls,
            input_tokens: file.input_tokens,
            output_tokens: file.output_tokens,
            cost_nano_usd: 0,
        },
    });
    Ok(Beside { schedules: Arc::new(schedules), spend })
}

/// Takes over what lies beside a store that is new.
///
/// # Errors
/// The files', or the store's.
pub async fn take_over(settings: &Settings, store: &SqliteStore, now: DateTime<Utc>) -> anyhow::Result<()> {
    if store.has_taken_over()? {
        keep_aside(&settings.paths.budget_json, reference::budget(&settings.paths.budget_json).is_err());
        keep_aside(
            &settings.paths.chronos_state,
            reference::chronos_state(&settings.paths.chronos_state).is_err(),
        );
        return Ok(());
    }
    let beside = beside(settings)?;
    let (store, dir) = (store.clone(), settings.wal_dir());
    let report =
        tokio::task::spawn_blocking(move || store.import_reference(&dir, &beside, now, &mut |_, _| {}))
            .await??;
    if report.logs > 0 || report.schedules > 0 || report.uncovered != Usage::ZERO {
        tracing::info!(
            logs = report.logs,
            schedules = report.schedules,
            queued = report.queued.len(),
            review = report.review.len(),
            "reference_taken_over"
        );
    }
    for (file, reason) in &report.unreadable {
        tracing::warn!(file, reason, "reference_log_unreadable");
    }
    Ok(())
}

/// The store knows better than a view that cannot be read; the view's bytes are kept all the same,
/// before the next one takes its place.
fn keep_aside(view: &std::path::Path, damaged: bool) {
    if !damaged {
        return;
    }
    match files::set_aside(view) {
        Ok(kept) => tracing::warn!(view = %view.display(), kept = %kept.display(), "view_damaged"),
        Err(error) => tracing::warn!(view = %view.display(), %error, "view_damaged"),
    }
}
