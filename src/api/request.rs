//! A request as far as the routes care: read within its limits, and refused where it is not what every route wants.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method, Request, StatusCode};

use super::idempotency;
use super::problem::Problem;
use crate::domain::language::localized;
use crate::net::body::{BodyError, BodyLimits};
use crate::store::Idempotency;

/// A longer body is read and forgotten up to 1 MiB: to close the connection before would lose the answer on its way.
const BODY: BodyLimits = BodyLimits { bytes_max: 16 * 1024, read_max: 1024 * 1024, timeout: Duration::from_secs(10) };

/// What is asked for.
pub(super) struct Asked {
    method: Method,
    path: String,
    /// The bot's name for what is to happen once; empty where nothing is to happen.
    key: String,
    /// JSON by its header.
    pub(super) body: Vec<u8>,
}

impl Asked {
    pub(super) async fn read(request: Request<Incoming>) -> Result<Self, Problem> {
        let (head, body) = request.into_parts();
        let is_change = head.method == Method::POST;
        let key = if is_change { check_head(&head.headers)? } else { String::new() };
        // What comes with a GET means nothing, but has to be read for the connection to go on.
        let body = BODY.read(body).await?;
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
            localized!("api.unsupported_media_type"),
        ));
    }
    idempotency::key(headers)
}

impl<E> From<BodyError<E>> for Problem {
    fn from(error: BodyError<E>) -> Self {
        let (code, detail) = match error {
            BodyError::TooLarge => ("body_too_large", localized!("api.body_too_large", max = BODY.bytes_max)),
            BodyError::TimedOut => ("body_timeout", localized!("api.body_timeout", seconds = BODY.timeout.as_secs())),
            BodyError::Broken(_) => ("invalid_body", localized!("api.broken_body")),
        };
        Self::new(error.status(), code, detail)
    }
}
