//! Why a gateway's answer is not what was asked for.

use std::fmt;
use std::time::Duration;

use rust_i18n::t;

use crate::net::client::OutgoingError;

/// Why there is no answer to go by. What it tells is free of keys and URLs, and short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GatewayError {
    /// No whole reply came.
    Unreachable(OutgoingError),
    /// The reply is not one JSON object with each key once: often a web page.
    NotJson {
        /// The HTTP status.
        status: u16,
        /// How the body begins.
        beginning: String,
    },
    /// The gateway failed, and what it says beside does not count.
    Failed {
        /// The HTTP status.
        status: u16,
    },
    /// The gateway says no.
    Refused {
        /// Its code, whose meaning gateways do not share.
        code: i64,
        /// Its words.
        message: String,
    },
    /// The gateway has no such order: normal as long as nobody opened the payment page.
    UnknownOrder,
    /// V2: the gateway says yes without its signature, or with one of another time.
    Unverified,
    /// This field is missing, or is nothing that it can be.
    Incomplete(&'static str),
    /// This field of the answer is not that of the question.
    Contradicts(&'static str),
    /// The gateway offers a way to pay that no link or QR code leads to.
    NotPayable(String),
    /// This text must not be sent.
    BadText(&'static str),
    /// V1 has no such request.
    Unsupported,
    /// Too many requests, and how long to wait where the gateway says so.
    RateLimited(Option<Duration>),
}

impl fmt::Display for GatewayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Unreachable(cause) => t!("gateway.unreachable", cause = cause),
            Self::NotJson { status, beginning } => t!("gateway.not_json", status = status, beginning = beginning),
            Self::Failed { status } => t!("gateway.failed", status = status),
            Self::Refused { code, message } => t!("gateway.refused", code = code, message = message),
            Self::UnknownOrder => t!("gateway.unknown_order"),
            Self::Unverified => t!("gateway.unverified"),
            Self::Incomplete(field) => t!("gateway.incomplete", field = field),
            Self::Contradicts(field) => t!("gateway.contradicts", field = field),
            Self::NotPayable(kind) => t!("gateway.not_payable", kind = kind),
            Self::BadText(field) => t!("gateway.bad_text", field = field),
            Self::Unsupported => t!("gateway.unsupported"),
            Self::RateLimited(Some(wait)) => t!("gateway.rate_limited_for", seconds = wait.as_secs()),
            Self::RateLimited(None) => t!("gateway.rate_limited"),
        })
    }
}

impl std::error::Error for GatewayError {}

impl From<OutgoingError> for GatewayError {
    fn from(error: OutgoingError) -> Self {
        Self::Unreachable(error)
    }
}
