//! The command line's way to the control plane: over the daemon's socket when one runs, else
//! straight into the same router over a store opened here. Commands cannot tell the difference.

use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tower::ServiceExt;

use crate::exit::{Failure, code};

/// An answer may not be larger; the longest is the list of all mandates.
const ANSWER_MAX: usize = 256 << 20;
/// The socket answers the connection at once or the daemon is stuck.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where requests go.
pub enum Client {
    /// A running daemon.
    Socket(PathBuf),
    /// No daemon: the control plane over the store itself.
    Local(Router),
}

impl Client {
    /// Makes a request. An answer outside 2xx is a [`Failure`] with the matching exit code.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let payload = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "kairos")
            .header("content-type", "application/json")
            .body(Body::from(payload))?;
        let (status, bytes) = match self {
            Self::Socket(socket) => over_socket(socket, request).await?,
            Self::Local(router) => {
                let response = router.clone().oneshot(request).await?;
                (response.status().as_u16(), collect(response.into_body()).await?)
            }
        };
        let value: Value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
        if (200..300).contains(&status) { Ok(value) } else { Err(failure(status, &value).into()) }
    }

    /// GET.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, None).await
    }

    /// POST.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// True when a daemon answers.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        matches!(self, Self::Socket(_))
    }
}

async fn over_socket(socket: &PathBuf, request: Request<Body>) -> anyhow::Result<(u16, Vec<u8>)> {
    let connect = tokio::net::UnixStream::connect(socket);
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(Failure::new(
                code::DAEMON_DOWN,
                "daemon_down",
                format!("{}: {error}", socket.display()),
            )
            .into());
        }
        Err(_) => return Err(Failure::new(code::FAILED, "daemon_stuck", "the daemon does not answer").into()),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let bytes = collect(Body::new(response.into_body())).await?;
    driver.abort();
    Ok((status, bytes))
}

async fn collect(body: Body) -> anyhow::Result<Vec<u8>> {
    let limited = http_body_util::Limited::new(body, ANSWER_MAX);
    match limited.collect().await {
        Ok(bytes) => Ok(bytes.to_bytes().to_vec()),
        Err(error) => Err(anyhow::anyhow!("the daemon's answer cannot be read: {error}")),
    }
}

fn failure(status: u16, value: &Value) -> Failure {
    let exit = match status {
        400 | 405 | 413 | 422 => code::USAGE,
        401 | 403 => code::AUTH,
        402 => code::BUDGET,
        404 => code::NOT_FOUND,
        409 | 410 => code::CONFLICT,
        507 => code::STORE,
        _ => code::FAILED,
    };
    let word = value["error"].as_str().unwrap_or("failed");
    let message = value["message"].as_str().unwrap_or("the daemon refused without a reason");
    let mut failure = Failure::new(exit, word, message);
    failure.remedy = value["remedy"].as_str().map(str::to_owned);
    failure
}

/// A path segment with everything escaped that could be read as something else.
#[must_use]
pub fn segment(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~'
                if text != "." && text != ".." =>
            {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_keep_slashes_and_dots_apart_from_the_path() {
        assert_eq!(segment("daily"), "daily");
        assert_eq!(segment("a/b c"), "a%2Fb%20c");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("é"), "%C3%A9");
    }
}
