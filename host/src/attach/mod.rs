//! The control plane: HTTP under `/v1`. It parses, sends a command to the daemon's mailbox or
//! reads the store, and renders. It never looks inside a component and never waits for a runner.
//!
//! The daemon serves it on the unix socket of its root; a command line without a daemon calls
//! the same router over a store it opened itself.

mod admin;
mod error;
mod mandates;
mod plugins;
mod schedules;
mod server;
mod views;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use serde_json::Value;

pub use error::ApiError;
pub use server::{SocketServer, bind};

use crate::daemon::mailbox::Mailbox;
use crate::daemon::swap::Swaps;
use crate::store::{GenerationRow, Limits, Store};
use crate::sys::clock::Clock;
use crate::sys::entropy::Entropy;

/// Largest request body; the longest legal one is a mandate's parameters.
const BODY_MAX: usize = 4 << 20;

/// What the control plane needs of the daemon beside its mailbox.
pub trait Source: Send + Sync + 'static {
    /// The status snapshot.
    fn status(&self) -> Value;
    /// One schedule, or all of them, with their next fires; `now` is the wall time of the request.
    fn schedules(&self, now: DateTime<Utc>, next: usize) -> Vec<Value>;
    /// One schedule by name.
    fn schedule(&self, name: &str, now: DateTime<Utc>, next: usize) -> Option<Value>;
    /// How many occurrences a backfill of `(from, to]` would make.
    fn backfill_count(&self, name: &str, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<u64>;
    /// Why one nominal time has no recorded outcome.
    fn why_unrecorded(&self, name: &str, nominal: DateTime<Utc>) -> String;
    /// The day of the ledger, its zone and limits.
    fn budget(&self, now: DateTime<Utc>) -> BudgetView;
    /// What a mandate's running cycle lets be seen; null when none runs.
    fn seen(&self, mandate: &str) -> Value;
    /// The configured runners with what serves them. Reads files.
    fn plugins(&self) -> Vec<Value>;
    /// The configured commands with what keeps each from starting. Reads files.
    fn commands(&self) -> Vec<Value>;
    /// What replaces versions of runners; none without a daemon.
    fn swaps(&self) -> Option<Swaps>;
    /// Why nothing begins on a runner for a moment, though it serves.
    fn held(&self, runner: &str) -> Option<String>;
    /// Lives of generations in a slot, or in all, newest first; 0 means all. Blocks.
    fn generations(&self, runner: Option<&str>, limit: usize) -> crate::store::Result<Vec<GenerationRow>>;
    /// The runner that mandates without one get.
    fn default_runner(&self) -> String;
    /// True when that runner is configured.
    fn has_runner(&self, name: &str) -> bool;
    /// Removes what ended before that time. Blocks, in short steps.
    fn prune(&self, before: DateTime<Utc>, dry_run: bool) -> crate::store::Result<Value>;
}

/// The wallet's frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetView {
    /// `YYYY-MM-DD`.
    pub day: String,
    /// IANA zone in which the day turns.
    pub timezone: String,
    /// The limits.
    pub limits: Limits,
}

/// Everything a handler uses; cheap to clone.
#[derive(Clone)]
pub struct ControlPlane {
    /// For reading.
    pub store: Arc<dyn Store>,
    /// For changing.
    pub mailbox: Mailbox,
    /// For what only the daemon knows.
    pub source: Arc<dyn Source>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// For ids.
    pub entropy: Arc<dyn Entropy>,
}

/// The routes.
pub fn router(plane: ControlPlane) -> Router {
    Router::new()
        .route("/v1/status", get(admin::status))
        .route("/v1/budget", get(admin::budget))
        .route("/v1/commands", get(admin::commands))
        .route("/v1/plugins", get(admin::plugins))
        .route("/v1/plugins/history", get(plugins::history))
        .route("/v1/plugins/swaps/{id}", get(plugins::progress))
        .route("/v1/plugins/{runner}/swap", post(plugins::swap))
        .route("/v1/plugins/{runner}/swap/abort", post(plugins::abort))
        .route("/v1/plugins/{runner}/rollback", post(plugins::rollback))
        .route("/v1/events", get(admin::events))
        .route("/v1/admin/reload", post(admin::reload))
        .route("/v1/admin/shutdown", post(admin::shutdown))
        .route("/v1/admin/status_dump", post(admin::status_dump))
        .route("/v1/admin/prune", post(admin::prune))
        .route("/v1/mandates", get(mandates::list).post(mandates::add))
        .route("/v1/mandates/{id}", get(mandates::show))
        .route("/v1/mandates/{id}/stop", post(mandates::stop))
        .route("/v1/mandates/{id}/retry", post(mandates::retry))
        .route("/v1/mandates/{id}/resume", post(mandates::resume))
        .route("/v1/mandates/{id}/resolve", post(mandates::resolve))
        .route("/v1/schedules", get(schedules::list))
        .route("/v1/schedules/{name}", get(schedules::show))
        .route("/v1/schedules/{name}/occurrences", get(schedules::occurrences))
        .route("/v1/schedules/{name}/occurrences/{nominal}", get(schedules::why))
        .route("/v1/schedules/{name}/pause", post(schedules::pause))
        .route("/v1/schedules/{name}/resume", post(schedules::resume))
        .route("/v1/schedules/{name}/trigger", post(schedules::trigger))
        .route("/v1/schedules/{name}/backfill", post(schedules::backfill))
        .route("/v1/schedules/{name}/skip-next", post(schedules::skip_next))
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(plane)
}
