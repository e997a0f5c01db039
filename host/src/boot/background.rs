//! What a daemon does beside its cycles: publishes views when something changed, prunes once a day,
//! checks the whole store after an unclean stop, reads zone data again. Failures are logged and
//! never stop anything.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::task::JoinSet;

use super::Office;
use crate::daemon::swap;
use crate::store::SqliteStore;

/// The budget's view follows a change at most so often: it is small and people watch it.
const BUDGET_PERIOD: Duration = Duration::from_secs(1);
/// The schedules' view at most so often.
const CHRONOS_PERIOD: Duration = Duration::from_secs(60);
/// Retention and zone data.
const DAY: Duration = Duration::from_secs(86_400);

/// The tasks; they end with [`Background::stop`].
pub struct Background(JoinSet<()>);

/// Starts them on the current runtime.
pub fn start(office: &Arc<Office>) -> Background {
    let mut tasks = JoinSet::new();
    tasks.spawn(views(Arc::clone(office)));
    tasks.spawn(daily(Arc::clone(office)));
    if let Some((dir, ours)) = office.watched_plugins() {
        tasks.spawn(swap::watch(office.parts().swaps.clone(), dir, ours));
    }
    if office.parts().store.was_unclean() {
        tasks.spawn(full_check(Arc::clone(office)));
    }
    Background(tasks)
}

impl Background {
    /// Ends them; a blocking job that is under way ends by itself.
    pub async fn stop(mut self) {
        self.0.shutdown().await;
    }
}

/// Publishes after a change, at most as often as the period allows; an idle daemon writes nothing.
async fn views(office: Arc<Office>) {
    let clock = Arc::clone(&office.parts().clock);
    let mut changes = office.parts().dispatch.changes();
    let mut chronos_at = Duration::ZERO;
    loop {
        let chronos = clock.monotonic() >= chronos_at;
        if chronos {
            chronos_at = clock.monotonic() + CHRONOS_PERIOD;
        }
        let publisher = Arc::clone(&office);
        let published = tokio::task::spawn_blocking(move || publisher.publish_views(chronos)).await;
        if let Err(error) = published {
            tracing::error!(%error, "views_failed");
        }
        clock.sleep_until(clock.monotonic() + BUDGET_PERIOD).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn daily(office: Arc<Office>) {
    let clock = Arc::clone(&office.parts().clock);
    loop {
        let keeper = Arc::clone(&office);
        let pruned = tokio::task::spawn_blocking(move || {
            let parts = keeper.parts();
            let before = parts.clock.now() - TimeDelta::days(i64::from(keeper.retention_days()));
            parts.store.prune(before, false, &mut |_, _| {})
        });
        match pruned.await {
            Ok(Ok(report)) => tracing::debug!(?report, "store_pruned"),
            Ok(Err(error)) => tracing::warn!(%error, "store_not_pruned"),
            Err(error) => tracing::error!(%error, "store_not_pruned"),
        }
        let keeper = Arc::clone(&office);
        match tokio::task::spawn_blocking(move || keeper.prune_plugins()).await {
            Ok(Ok(gone)) => tracing::debug!(gone, "plugins_pruned"),
            Ok(Err(error)) => tracing::warn!(%error, "plugins_not_pruned"),
            Err(error) => tracing::error!(%error, "plugins_not_pruned"),
        }
        clock.sleep_until(clock.monotonic() + DAY).await;
        if office.parts().settings.zones.reload() {
            office.parts().chronos.refresh_zones();
            tracing::info!(data = ?office.parts().settings.zones.data(), "zone_data_changed");
        }
    }
}

/// After an unclean stop every page is looked at, while the daemon already works.
async fn full_check(office: Arc<Office>) {
    let path = office.parts().settings.paths.store_db.clone();
    let checked = tokio::task::spawn_blocking(move || SqliteStore::full_check(&path)).await;
    match checked {
        Ok(Ok(())) => tracing::info!("store_checked"),
        Ok(Err(error)) => tracing::error!(%error, "store_damaged"),
        Err(error) => tracing::error!(%error, "store_check_failed"),
    }
}
