//! Events to the bot: what happens to orders, posted to its URL and signed as the Standard Webhooks specification says
//! (<https://www.standardwebhooks.com>).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ring::hmac;
use rust_i18n::t;
use serde::Serialize;

use super::{Courier, Notices, Verdict};
use crate::clock::Timestamp;
use crate::config::{self, Current};
use crate::order::{OrderStatus, OrderView};
use crate::outgoing::Client;
use crate::store::{Channel, Delivery, News, Store};

/// Under which name it is remembered that the bot wants no more events: the value is its URL.
pub(crate) const DISABLED: &str = "events_disabled";

/// How long the bot may take for an event.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long nothing is sent after the bot's server has asked for fewer requests without saying for how long.
const BUSY_PAUSE: Duration = Duration::from_secs(10);
const BUSY_PAUSE_MAX: Duration = Duration::from_mins(10);

/// Delivers events to the bot.
pub(crate) struct Events {
    config: Current,
    store: Store,
    client: Client,
    notices: Notices,
}

impl Events {
    pub(crate) fn new(config: &Current, store: &Store, client: &Client, notices: &Notices) -> Self {
        Self { config: config.clone(), store: store.clone(), client: client.clone(), notices: notices.clone() }
    }

    /// The bot wants no more events at this URL.
    async fn disable(&self, url: String) -> Verdict {
        let error = t!("outbox.gone").into_owned();
        log::warn!(target: super::TARGET, "{error}");
        self.notices.tell("events_disabled", error.clone());
        if let Err(error) = self.store.remember(DISABLED, Some(url)).await {
            log::warn!(target: super::TARGET, "{error}");
        }
        Verdict::Pause(Duration::ZERO, error)
    }
}

impl Courier for Events {
    const CHANNEL: Channel = Channel::Event;
    const PATIENCE: Duration = Duration::from_hours(3 * 24);
    const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(2));

    async fn is_on(&self) -> bool {
        let url = self.config.load().events.as_ref().map(|events| events.url.clone());
        // A reload may have changed it: what happens from now on is told, or no longer.
        self.store.tell_bot(url.is_some());
        let Some(url) = url else { return false };
        match self.store.recall(DISABLED).await {
            Ok(disabled) => disabled.is_none_or(|disabled| disabled != url),
            Err(_) => false,
        }
    }

    async fn deliver(&self, delivery: &Delivery) -> Verdict {
        let Some(events) = self.config.load().events.clone() else {
            return Verdict::Pause(Duration::ZERO, "no URL".into());
        };
        let body = body_of(delivery);
        let headers = headers(&events, &id_of(delivery), Timestamp::now(), &body);
        let reply = match self.client.post_bytes(&events.url, &headers, Bytes::from(body), TIMEOUT).await {
            Ok(reply) => reply,
            Err(error) => return Verdict::Again(error.to_string()),
        };
        let answered = || t!("outbox.answered", status = reply.status).into_owned();
        match reply.status {
            200..=299 => Verdict::Sent,
            410 => self.disable(events.url).await,
            429 => Verdict::Pause(reply.retry_after.unwrap_or(BUSY_PAUSE).min(BUSY_PAUSE_MAX), answered()),
            _ => Verdict::Again(answered()),
        }
    }

    fn gave_up(&self, delivery: &Delivery, error: &str) {
        self.notices.tell("undelivered", format!("{}: {error}", id_of(delivery)));
    }
}

/// What an event is called.
pub(crate) fn type_of(news: News) -> String {
    format!("order.{news}")
}

/// The same for every copy of an event, so that the bot can tell.
fn id_of(delivery: &Delivery) -> String {
    format!("evt_{}_{}", delivery.order.terms.order_no, delivery.news)
}

#[derive(Serialize)]
struct Event<'a> {
    data: OrderView<'a>,
    timestamp: Timestamp,
    #[serde(rename = "type")]
    kind: String,
}

/// The event: the order as it was when it happened, whatever has happened since.
fn body_of(delivery: &Delivery) -> String {
    let mut data = delivery.order.view(delivery.created_at);
    data.status = match delivery.news {
        News::Settled => OrderStatus::Paid,
        News::Refunded => OrderStatus::Refunded,
        News::Review => OrderStatus::Review,
    };
    if delivery.news == News::Review {
        (data.paid_at, data.settled_by, data.trade_no) = (None, None, None);
    }
    let event = Event { data, timestamp: delivery.created_at, kind: type_of(delivery.news) };
    serde_json::to_string(&event).expect("an event is plain data")
}

/// The headers of Standard Webhooks, for an attempt at the time `now`.
fn headers(events: &config::Events, id: &str, now: Timestamp, body: &str) -> [(&'static str, String); 4] {
    let timestamp = now.ms().div_euclid(1000).to_string();
    let signature = sign(&events.signing_key(), id, &timestamp, body);
    [
        ("content-type", "application/json".into()),
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", signature),
    ]
}

fn sign(key: &[u8], id: &str, timestamp: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    format!("v1,{}", BASE64.encode(hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's own example.
    #[test]
    fn events_are_signed_as_the_specification_says() {
        let key = BASE64.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
