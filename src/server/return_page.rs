//! `/payment/return`: the page that the buyer's browser lands on.
//!
//! The parameters are the same signed ones that the gateway sends in its notification, and they come through the buyer's hands:
//! they choose which order to show, and prove nothing about it. What is shown comes from the store.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use rust_i18n::t;
use tokio::time::timeout;

use super::{Response, respond};
use crate::clock::Timestamp;
use crate::config::Current;
use crate::epay::Unverified;
use crate::order::{Order, OrderStatus};
use crate::store::Store;

pub(super) const PATH: &str = "/payment/return";

/// How long the buyer waits for the store before the page says that it does not know.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

const STYLE: &str = "body{font-family:system-ui,sans-serif;max-width:26rem;margin:4rem auto;padding:0 1rem;line-height:1.6}\
                     dt{opacity:.6}dd{margin:0 0 .6rem}:root{color-scheme:light dark}";

/// Only our own style, by its hash; no script, no frame, nothing from elsewhere.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = BASE64.encode(ring::digest::digest(&ring::digest::SHA256, STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    policy.try_into().expect("a policy of ASCII is header text")
});

pub(super) struct ReturnPage {
    config: Current,
    store: Store,
}

impl ReturnPage {
    pub(super) fn new(config: Current, store: Store) -> Self {
        Self { config, store }
    }

    pub(super) async fn answer(&self, query: &str) -> Response {
        let now = Timestamp::now();
        let page = match self.order(query, now).await {
            Some(order) => order_page(&order, order.status(now)),
            None => neutral_page(),
        };
        let mut response = respond(StatusCode::OK, "text/html; charset=utf-8", page.into_string());
        let headers: [(HeaderName, HeaderValue); 4] = [
            (CONTENT_SECURITY_POLICY, POLICY.clone()),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        ];
        response.headers_mut().extend(headers);
        response
    }

    /// The order that vouched-for parameters name; `None` for every reason alike, so that the page tells a stranger nothing.
    async fn order(&self, query: &str, now: Timestamp) -> Option<Order> {
        let unverified = Unverified::parse(query.as_bytes()).ok()?;
        let notification = {
            let config = self.config.load();
            unverified.verify(&config.merchant(unverified.pid())?.credentials, now).ok()?
        };
        let order = timeout(READ_TIMEOUT, self.store.order(&notification.out_trade_no)).await.ok()?.ok()??;
        (order.terms.merchant == notification.pid).then_some(order)
    }
}

fn page(title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang=(t!("page.lang")) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="robots" content="noindex";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { h1 { (title) } (content) }
        }
    }
}

fn order_page(order: &Order, status: OrderStatus) -> Markup {
    let title = match status {
        OrderStatus::Pending | OrderStatus::Expired => t!("page.pending"),
        OrderStatus::Paid => t!("page.paid"),
        OrderStatus::Review => t!("page.review"),
        OrderStatus::Refunded => t!("page.refunded"),
        OrderStatus::Cancelled => t!("page.cancelled"),
    };
    let advice = match status {
        OrderStatus::Pending | OrderStatus::Expired => t!("page.pending_advice"),
        OrderStatus::Paid => t!("page.paid_advice", credits = order.terms.credits),
        OrderStatus::Review => t!("page.review_advice"),
        OrderStatus::Refunded | OrderStatus::Cancelled => t!("page.closed_advice"),
    };
    let content = html! {
        p { (advice) }
        dl {
            dt { (t!("page.order")) } dd { (order.terms.order_no) }
            dt { (t!("page.product")) } dd { (order.terms.name) }
            dt { (t!("page.amount")) } dd { "¥" (order.terms.amount) }
        }
    };
    page(&title, &content)
}

fn neutral_page() -> Markup {
    page(&t!("page.neutral"), &html! { p { (t!("page.neutral_advice")) } })
}
