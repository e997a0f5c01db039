//! Errors of the control plane: one place maps what went wrong to a status, a code and a remedy.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::daemon::mailbox::CommandError;
use crate::store;

/// An answer that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// A constant word.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl ApiError {
    /// An error without a remedy.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), remedy: None }
    }

    /// The request is malformed.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// The thing does not exist.
    pub fn not_found(kind: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("{kind} {name:?} not found"))
    }

    /// Adds what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({"error": self.code, "message": self.message, "remedy": self.remedy});
        (self.status, Json(body)).into_response()
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        use store::Error as E;
        let (status, code) = match &error {
            E::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            E::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            E::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            E::Full { .. } => (StatusCode::SERVICE_UNAVAILABLE, "disk_full"),
            E::ReadOnly { .. } => (StatusCode::SERVICE_UNAVAILABLE, "read_only"),
            E::SyncFailed { .. } => (StatusCode::INSUFFICIENT_STORAGE, "sync_failed"),
            E::Damaged { .. } => (StatusCode::INSUFFICIENT_STORAGE, "store_damaged"),
            E::Newer { .. } => (StatusCode::INSUFFICIENT_STORAGE, "store_newer"),
            E::Closed => (StatusCode::INSUFFICIENT_STORAGE, "store_closed"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        let message = error.to_string();
        match error {
            CommandError::Store(error) => error.into(),
            CommandError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "mailbox_full", message),
            CommandError::NotNow(_) => Self::new(StatusCode::CONFLICT, "not_now", message),
            CommandError::Stopped => Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", message),
            CommandError::Refused(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", message),
        }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "bad_request", rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

/// The fallback.
pub async fn no_such_path(uri: axum::http::Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("no such path: {}", uri.path()))
}

/// The fallback for a known path.
pub async fn wrong_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
}
