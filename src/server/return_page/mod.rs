//! `/payment/return`: the page that the buyer's browser lands on.
//!
//! The parameters are the same signed ones that the gateway sends in its notification, and they come through the buyer's hands:
//! they choose which order to show, and prove nothing about it. What is shown comes from the store, and the page asks again
//! until there is nothing more to wait for.

mod accept_language;
mod page;
mod question;
#[cfg(test)]
mod tests;

use std::time::Duration;

use hyper::header::{
    ACCEPT_LANGUAGE, CONTENT_LANGUAGE, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, RETRY_AFTER,
    VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, StatusCode};
use tokio::time::timeout;

use crate::channel::epay::Unverified;
use crate::config::Current;
use crate::domain::clock::Clock;
use crate::domain::language::Language;
use crate::domain::order::{Order, OrderStatus};
use crate::net::response::{HTML, Response, respond_uncached};
use crate::store::Store;
use page::Page;
pub(super) use question::Ask;
use question::Questions;

pub(super) const PATH: &str = "/payment/return";

/// How long the buyer waits for the store before the page says that it does not know.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct ReturnPage {
    config: Current,
    store: Store,
    questions: Questions,
    clock: Clock,
}

/// What there is to show.
enum Found {
    Order(Box<Order>),
    /// The parameters name no order of ours, for whatever reason: they tell a stranger nothing.
    Nothing,
    /// The store did not say.
    Unknown,
}

impl ReturnPage {
    /// `ask` is called with orders whose buyers wait for their payment to be seen.
    pub(super) fn new(config: Current, store: Store, ask: Ask, clock: Clock) -> Self {
        Self { config, store, questions: Questions::new(ask), clock }
    }

    pub(super) async fn answer(&self, query: &str, headers: &HeaderMap) -> Response {
        let found = self.find(query).await;
        let now = self.clock.now();
        let (language, bot) = {
            let config = self.config.load();
            let language = accept_language::preferred(headers.get_all(ACCEPT_LANGUAGE));
            (language.unwrap_or(config.language), config.telegram.bot_username.clone())
        };
        let page = Page { language, bot: &bot };
        match found {
            Found::Order(order) => {
                let html = page.order(&order, now);
                if matches!(order.status(now), OrderStatus::Pending | OrderStatus::Expired) {
                    self.questions.ask(*order, self.clock.instant());
                }
                finished(StatusCode::OK, html, language)
            }
            Found::Nothing => finished(StatusCode::OK, page.neutral(), language),
            Found::Unknown => {
                let mut response = finished(StatusCode::SERVICE_UNAVAILABLE, page.busy(), language);
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(page::BUSY_REFRESH_S));
                response
            }
        }
    }

    async fn find(&self, query: &str) -> Found {
        let Ok(unverified) = Unverified::parse(query.as_bytes()) else { return Found::Nothing };
        let is_signed = {
            let config = self.config.load();
            // However old: the page goes on asking with what the gateway signed when the buyer came.
            config.merchant(unverified.pid()).is_some_and(|merchant| unverified.is_signed(&merchant.credentials))
        };
        if !is_signed {
            return Found::Nothing;
        }
        match timeout(READ_TIMEOUT, self.store.order(unverified.out_trade_no())).await {
            Ok(Ok(Some(order))) if order.terms.merchant == unverified.pid() => Found::Order(Box::new(order)),
            Ok(Ok(_)) => Found::Nothing,
            Ok(Err(_)) | Err(_) => Found::Unknown,
        }
    }
}

/// The page with the headers that every such page has.
fn finished(status: StatusCode, html: String, language: Language) -> Response {
    let mut response = respond_uncached(status, HTML, html);
    let headers: [(HeaderName, HeaderValue); 5] = [
        (CONTENT_SECURITY_POLICY, page::POLICY.clone()),
        (CONTENT_LANGUAGE, HeaderValue::from_static(page::tag(language))),
        (VARY, HeaderValue::from_static("Accept-Language")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    response.headers_mut().extend(headers);
    response
}
