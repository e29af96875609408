//! A request as far as the routes care: read within its limits, and refused where it is not what every route wants.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method, Request, StatusCode};
use rust_i18n::t;
use tokio::time::timeout;

use super::idempotency;
use super::problem::Problem;
use crate::store::Idempotency;

/// How long a body may be, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// How much of a longer one is read and forgotten: to close the connection before would lose the answer on its way.
const DISCARDED_BYTES_MAX: usize = 1024 * 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked for.
pub(super) struct Asked {
    method: Method,
    path: String,
    /// The bot's name for what is to happen once; empty where nothing is to happen.
    key: String,
    /// JSON by its header.
    pub(super) body: Bytes,
}

impl Asked {
    pub(super) async fn read(request: Request<Incoming>) -> Result<Self, Problem> {
        let (head, body) = request.into_parts();
        let is_change = head.method == Method::POST;
        let key = if is_change { check_head(&head.headers)? } else { String::new() };
        // What comes with a GET means nothing, but has to be read for the connection to go on.
        let body = read_body(body).await?;
        Ok(Self { method: head.method, path: head.uri.path().to_owned(), key, body })
    }

    /// What makes it the same as an earlier request; `canonical` is its body in the one form for all ways to write it.
    pub(super) fn idempotency(&self, canonical: &impl serde::Serialize) -> Idempotency {
        let fingerprint = idempotency::fingerprint(self.method.as_str(), &self.path, canonical);
        Idempotency { key: self.key.clone(), fingerprint }
    }
}

/// What every request that changes something has in its head; the idempotency key.
fn check_head(headers: &HeaderMap) -> Result<String, Problem> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            t!("api.unsupported_media_type"),
        ));
    }
    idempotency::key(headers)
}

/// Reads a whole body within its limits.
async fn read_body(body: Incoming) -> Result<Bytes, Problem> {
    let read = timeout(BODY_TIMEOUT, collect(body)).await;
    read.unwrap_or_else(|_| {
        let detail = t!("api.body_timeout", seconds = BODY_TIMEOUT.as_secs());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail))
    })
}

async fn collect(mut body: Incoming) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = t!("api.body_too_large", max = BODY_BYTES_MAX);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    };
    if body.size_hint().lower() > DISCARDED_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let (mut collected, mut bytes) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::bad_request("invalid_body", t!("api.broken_body")))?;
        let Ok(data) = frame.into_data() else { continue };
        bytes += data.remaining();
        if bytes <= BODY_BYTES_MAX {
            collected.extend_from_slice(&data);
        } else if bytes > DISCARDED_BYTES_MAX {
            break;
        }
    }
    if bytes > BODY_BYTES_MAX { Err(too_large()) } else { Ok(collected.freeze()) }
}
