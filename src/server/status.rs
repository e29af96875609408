//! `/payment/status`: what this service is.

use hyper::StatusCode;

use crate::net::response::{JSON, Response, respond};

pub(super) const PATH: &str = "/payment/status";

/// The version is that of the interface, which the older service had as well.
const BODY: &str = concat!(
    r#"{"endpoints":["/payment/notify","/payment/return","/payment/health","/payment/status"],"#,
    r#""service":"payment-webhook-v1","status":"running","version":"2.0"}"#,
);

pub(super) fn answer() -> Response {
    respond(StatusCode::OK, JSON, BODY)
}

#[cfg(test)]
mod tests {
    use super::super::{health, notify, return_page};
    use super::*;

    #[test]
    fn lists_the_endpoints_that_there_are() {
        let body: serde_json::Value = serde_json::from_str(BODY).unwrap();
        let endpoints = [notify::PATH, return_page::PATH, health::PATH, PATH];
        assert_eq!(body["endpoints"], serde_json::json!(endpoints));
    }
}
