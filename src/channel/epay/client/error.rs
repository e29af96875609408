//! Why a gateway's answer is not what was asked for.

use std::time::Duration;

use crate::domain::language::{Language, Localized, text};
use crate::net::client::OutgoingError;

/// Why there is no answer to go by. What it tells is free of keys and URLs, and short.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GatewayError {
    /// No whole reply came.
    #[error("unreachable: no whole reply came")]
    Unreachable(#[from] OutgoingError),
    /// The reply is not one JSON object with each key once: often a web page.
    #[error("not_json: HTTP {status} without one JSON object")]
    NotJson {
        /// The HTTP status.
        status: u16,
        /// How the body begins.
        beginning: String,
    },
    /// The gateway failed, and what it says beside does not count.
    #[error("failed: HTTP {status}")]
    Failed {
        /// The HTTP status.
        status: u16,
    },
    /// The gateway says no.
    #[error("refused: code {code}: {message}")]
    Refused {
        /// Its code, whose meaning gateways do not share.
        code: i64,
        /// Its words.
        message: String,
    },
    /// The gateway has no such order: normal as long as nobody opened the payment page.
    #[error("unknown_order: the gateway has no such order")]
    UnknownOrder,
    /// V2: the gateway says yes without its signature, or with one of another time.
    #[error("unverified: the answer has no valid signature")]
    Unverified,
    /// This field is missing, or is nothing that it can be.
    #[error("incomplete: {0} is missing or invalid")]
    Incomplete(&'static str),
    /// This field of the answer is not that of the question.
    #[error("contradicts: {0} is not that of the question")]
    Contradicts(&'static str),
    /// The gateway offers a way to pay that no link or QR code leads to.
    #[error("not_payable: {0}")]
    NotPayable(String),
    /// This text must not be sent.
    #[error("bad_text: {0} must not be sent")]
    BadText(&'static str),
    /// V1 has no such request.
    #[error("unsupported: V1 has no such request")]
    Unsupported,
    /// Too many requests, and how long to wait where the gateway says so.
    #[error("rate_limited: too many requests")]
    RateLimited(Option<Duration>),
}

impl Localized for GatewayError {
    fn text(&self, language: Language) -> String {
        let text = match self {
            Self::Unreachable(cause) => text!(language, "gateway.unreachable", cause = cause),
            Self::NotJson { status, beginning } => {
                text!(language, "gateway.not_json", status = status, beginning = beginning)
            }
            Self::Failed { status } => text!(language, "gateway.failed", status = status),
            Self::Refused { code, message } => text!(language, "gateway.refused", code = code, message = message),
            Self::UnknownOrder => text!(language, "gateway.unknown_order"),
            Self::Unverified => text!(language, "gateway.unverified"),
            Self::Incomplete(field) => text!(language, "gateway.incomplete", field = field),
            Self::Contradicts(field) => text!(language, "gateway.contradicts", field = field),
            Self::NotPayable(kind) => text!(language, "gateway.not_payable", kind = kind),
            Self::BadText(field) => text!(language, "gateway.bad_text", field = field),
            Self::Unsupported => text!(language, "gateway.unsupported"),
            Self::RateLimited(Some(wait)) => text!(language, "gateway.rate_limited_for", seconds = wait.as_secs()),
            Self::RateLimited(None) => text!(language, "gateway.rate_limited"),
        };
        text.into_owned()
    }
}
