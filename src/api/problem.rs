//! What goes wrong, as the bot hears of it: RFC 9457 problem details, each with a code to match on and a text that says what to do.

use std::time::Duration;

use hyper::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use serde::Serialize;

use crate::domain::language::{Language, Localized, LocalizedText, localized};
use crate::logging::log_text;
use crate::net::response::{Response, allowed, close_after, respond_uncached};
use crate::payments::checkout::CheckoutError;
use crate::store::{AccountError, StoreError};

/// A request that was not granted.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: LocalizedText,
    /// The user's credits, where they are too few.
    credits: Option<i64>,
    /// In a box: most problems have none, and every request's result is as large as this.
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

/// Its keys stand in alphabetical order.
#[derive(Serialize)]
struct Body<'a> {
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    credits: Option<i64>,
    detail: &'a str,
    status: u16,
    title: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: LocalizedText) -> Self {
        Self { status, code, detail, credits: None, header: None }
    }

    pub(super) fn bad_request(code: &'static str, detail: LocalizedText) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", localized!("api.unauthorized"))
            .with(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    pub(super) fn method_not_allowed(methods: &[Method]) -> Self {
        let allowed = allowed(methods);
        let detail = localized!("api.method_not_allowed", allowed = allowed.to_str().unwrap_or_default());
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail).with(ALLOW, allowed)
    }

    /// Nobody knows how far it came, so the bot has to ask again.
    pub(super) fn late(after: Duration) -> Self {
        Self::later("timeout", localized!("api.timeout", seconds = after.as_secs()))
    }

    pub(super) fn insufficient_credits(telegram_id: i64, credits: i64) -> Self {
        let detail = localized!("api.insufficient_credits", user = telegram_id, credits = credits);
        Self { credits: Some(credits), ..Self::new(StatusCode::CONFLICT, "insufficient_credits", detail) }
    }

    fn later(code: &'static str, detail: LocalizedText) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).with(RETRY_AFTER, HeaderValue::from_static("1"))
    }

    fn with(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some(Box::new((name, value))), ..self }
    }

    pub(super) fn into_response(self, language: Language) -> Response {
        let body = Body {
            code: self.code,
            credits: self.credits,
            detail: &self.detail.text(language),
            status: self.status.as_u16(),
            title: self.status.canonical_reason().unwrap_or_default(),
            // The type that says: the status is all the kind there is, and `code` the rest.
            kind: "about:blank",
        };
        let body = serde_json::to_vec(&body).expect("a problem is plain text and numbers");
        let mut response = respond_uncached(self.status, "application/problem+json", body);
        response.headers_mut().extend(self.header.map(|header| *header));
        if matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE) {
            // The rest of the body is still to come, and nobody will read it.
            close_after(&mut response);
        }
        response
    }

    #[cfg(test)]
    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    #[cfg(test)]
    pub(super) fn detail(&self) -> String {
        self.detail.text(Language::English)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let text = LocalizedText::of("store_failed", &error);
        match error {
            StoreError::Overloaded => Self::later("overloaded", localized!("api.try_again", cause = text)),
            StoreError::Closed => Self::later("stopping", localized!("api.try_again", cause = text)),
            _ => {
                log::error!("{}", log_text!("log.api_failed", cause = text));
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", localized!("api.internal"))
            }
        }
    }
}

impl From<AccountError> for Problem {
    fn from(error: AccountError) -> Self {
        let text = LocalizedText::of("refused", &error);
        match error {
            AccountError::NoSuchUser(_) => Self::new(StatusCode::NOT_FOUND, "no_such_user", text),
            AccountError::KeyReused => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", text),
            AccountError::OutOfBounds { .. } => Self::new(StatusCode::CONFLICT, "balance_out_of_bounds", text),
            AccountError::Store(error) => error.into(),
        }
    }
}

impl From<CheckoutError> for Problem {
    fn from(error: CheckoutError) -> Self {
        match error {
            CheckoutError::Impossible(text) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "impossible_order", text),
            CheckoutError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_refuses_has_a_status_and_a_code() {
        for (error, status, code, retry) in [
            (AccountError::Store(StoreError::Overloaded), 503, "overloaded", true),
            (StoreError::Closed.into(), 503, "stopping", true),
            (AccountError::NoSuchUser(7), 404, "no_such_user", false),
            (AccountError::KeyReused, 422, "idempotency_key_reused", false),
            (AccountError::OutOfBounds { telegram_id: 7, credits: 1 }, 409, "balance_out_of_bounds", false),
            (StoreError::failed("disk full at /secret/path").into(), 500, "internal", false),
        ] {
            let problem = Problem::from(error);
            assert_eq!((problem.status.as_u16(), problem.code()), (status, code));
            assert!(!problem.detail().is_empty() && !problem.detail().contains("/secret"), "{}", problem.detail());
            assert_eq!(problem.into_response(Language::English).headers().contains_key(RETRY_AFTER), retry, "{code}");
        }
    }

    #[test]
    fn who_comes_back_later_is_told_when() {
        let response = Problem::late(Duration::from_secs(10)).into_response(Language::English);
        assert_eq!(
            (response.status().as_u16(), &response.headers()[RETRY_AFTER]),
            (503, &HeaderValue::from_static("1"))
        );
    }
}
