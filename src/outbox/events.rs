//! The bot hears of orders by events: requests to a URL of its own, signed as Standard Webhooks says.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ring::hmac;
use serde::Serialize;

use super::{Courier, REQUEST_TIMEOUT, Verdict};
use crate::config::Current;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::language::{Language, Localized, text};
use crate::domain::notices::{NoticeKind, Notices};
use crate::domain::order::{Order, OrderStatus, OrderView};
use crate::logging::log_text;
use crate::net::backoff::Backoff;
use crate::net::client::Client;
use crate::store::{Channel, Delivery, News, Store, StoreError};

/// Under this name the URL is remembered that wants no more events.
pub(crate) const DISABLED: &str = "events_disabled";
/// How long the loop rests when a URL wants no more events; then there is no route any more.
const DISABLED_PAUSE: Duration = Duration::from_secs(1);

/// Brings the bot its events.
pub(crate) struct Events {
    config: Current,
    store: Store,
    client: Client,
    notices: Notices,
    clock: Clock,
}

/// Where events go, and what they are signed with.
pub(crate) struct Route {
    url: String,
    key: hmac::Key,
}

impl Events {
    pub(crate) fn new(config: Current, store: Store, client: Client, notices: Notices, clock: Clock) -> Self {
        Self { config, store, client, notices, clock }
    }

    /// Nothing more is sent to this URL.
    async fn disable(&self, route: &Route) -> Verdict {
        if let Err(error) = self.store.remember(DISABLED, Some(route.url.clone())).await {
            // It is asked again, and says so again.
            log::warn!("{}", log_text!("outbox.store_failed", channel = Self::CHANNEL, cause = error));
        }
        let text = text!(self.language(), "events.disabled").into_owned();
        self.notices.tell(NoticeKind::EventsDisabled, &text);
        Verdict::Pause { time: DISABLED_PAUSE, level: log::Level::Error, error: text }
    }
}

impl Courier for Events {
    const CHANNEL: Channel = Channel::Event;
    const KEEPS_TRYING: Duration = Duration::from_hours(72);
    const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_hours(2) };
    const FAILURE: NoticeKind = NoticeKind::EventFailed;
    type Route = Route;

    fn language(&self) -> Language {
        self.config.load().language
    }

    async fn route(&self) -> Result<Option<Route>, StoreError> {
        let route = self.config.load().events.as_ref().map(|events| Route {
            url: events.url.clone(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &events.signing_key()),
        });
        let Some(route) = route else { return Ok(None) };
        match self.store.recall(DISABLED).await? {
            Some(url) if url == route.url => Ok(None),
            Some(_) => {
                // Another URL is in force: if the old one comes back, that is somebody's wish.
                self.store.remember(DISABLED, None).await?;
                Ok(Some(route))
            }
            None => Ok(Some(route)),
        }
    }

    async fn deliver(&self, route: &Route, delivery: &Delivery) -> Verdict {
        let event = Event::of(delivery);
        let headers = event.signed_headers(&route.key, self.clock.now());
        let reply = match self.client.post_bytes(&route.url, &headers, event.body, REQUEST_TIMEOUT).await {
            Ok(reply) => reply,
            Err(error) => return Verdict::Again { error: error.text(self.language()), after: None },
        };
        match reply.status {
            200..=299 => Verdict::Sent,
            410 => self.disable(route).await,
            status => Verdict::Again {
                error: text!(self.language(), "events.refused", status = status).into_owned(),
                after: reply.retry_after,
            },
        }
    }
}

/// An event as it goes over the network, the same at every attempt.
struct Event {
    id: String,
    body: Bytes,
}

/// The body; its keys stand in alphabetical order.
#[derive(Serialize)]
struct Body<'a> {
    data: OrderView<'a>,
    timestamp: Timestamp,
    #[serde(rename = "type")]
    kind: String,
}

impl Event {
    fn of(delivery: &Delivery) -> Self {
        let (order, news) = (order_then(delivery), delivery.news);
        let body = Body {
            data: order.view(delivery.created_at),
            timestamp: delivery.created_at,
            kind: format!("order.{news}"),
        };
        let body = serde_json::to_vec(&body).expect("a body of text and numbers can be written");
        Self { id: format!("evt_{}_{news}", order.terms.order_no), body: body.into() }
    }

    fn signed_headers(&self, key: &hmac::Key, now: Timestamp) -> [(&'static str, String); 4] {
        let seconds = now.ms().div_euclid(1000);
        [
            ("content-type", "application/json".into()),
            ("webhook-id", self.id.clone()),
            ("webhook-timestamp", seconds.to_string()),
            ("webhook-signature", signature(key, &self.id, seconds, &self.body)),
        ]
    }
}

/// The order as the event left it: it may have gone further since, and the event stays what it was.
fn order_then(delivery: &Delivery) -> Order {
    let mut order = delivery.order.clone();
    order.stored_status = match delivery.news {
        News::Settled => OrderStatus::Paid,
        News::Refunded => OrderStatus::Refunded,
        News::Review => {
            (order.trade_no, order.settled_by, order.paid_at) = (None, None, None);
            OrderStatus::Review
        }
    };
    order
}

/// The signature of Standard Webhooks, version 1.
fn signature(key: &hmac::Key, id: &str, seconds: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{seconds}.").as_bytes());
    context.update(body);
    format!("v1,{}", BASE64.encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::order::{NewOrder, ReviewReason, SettledBy};

    #[test]
    fn the_signature_is_that_of_the_specification() {
        let secret = BASE64.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let signature = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    fn delivery(news: News, status: OrderStatus) -> Delivery {
        let at = Timestamp::from_ms(1_767_323_045_000);
        let is_paid = status != OrderStatus::Review;
        Delivery {
            id: 1,
            news,
            order: Order {
                stored_status: status,
                trade_no: is_paid.then(|| "T1".into()),
                settled_by: is_paid.then_some(SettledBy::Manual),
                paid_at: is_paid.then_some(at),
                // The reason stays with the order when a person has settled it.
                review_reason: Some(ReviewReason::Amount),
                ..Order::new(NewOrder {
                    order_no: "ORDER1".parse().unwrap(),
                    merchant: "1002".into(),
                    telegram_id: 1001,
                    package: Some("silver".into()),
                    name: "VIP白银".into(),
                    payment_type: "alipay".into(),
                    amount: crate::domain::money::Amount::from_fen(3600).unwrap(),
                    credits: 70,
                    param: None,
                    created_at: at,
                    expires_at: at,
                })
            },
            language: None,
            balance: 70,
            created_at: at,
            tried_since: at,
            due_at: at,
            attempts: 1,
            state: crate::store::DeliveryState::Due,
            error: None,
            finished_at: None,
        }
    }

    #[test]
    fn an_event_tells_the_order_as_it_was_then() {
        let event = Event::of(&delivery(News::Settled, OrderStatus::Paid));
        assert_eq!(event.id, "evt_ORDER1_settled");
        assert_eq!(
            std::str::from_utf8(&event.body).unwrap(),
            r#"{"data":{"amount":"36.00","created_at":"2026-01-02T03:04:05Z","credits":70,"merchant":"1002","order_no":"ORDER1","package":"silver","paid_at":"2026-01-02T03:04:05Z","pay_url":null,"review_reason":null,"settled_by":"manual","status":"paid","telegram_id":1001,"trade_no":"T1","type":"alipay"},"timestamp":"2026-01-02T03:04:05Z","type":"order.settled"}"#
        );
        for (news, then, later) in [
            (News::Settled, OrderStatus::Paid, OrderStatus::Refunded),
            (News::Review, OrderStatus::Review, OrderStatus::Paid),
            (News::Refunded, OrderStatus::Refunded, OrderStatus::Refunded),
        ] {
            assert_eq!(Event::of(&delivery(news, then)).body, Event::of(&delivery(news, later)).body, "{news}");
        }
    }
}
