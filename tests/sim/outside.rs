//! Telegram, the bot and a gateway, in this process: they do what they are told to, and remember who came.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;
use tokio::time::Instant;

use super::process::ServiceBug;
use crate::domain::clock::{Clock, Timestamp};
use crate::net::client::{Client, OutgoingError, Peers, Reply};

pub(super) const TELEGRAM: &str = "http://telegram.example";
pub(super) const BOT: &str = "http://bot.example/events";
pub(super) const GATEWAY: &str = "http://gateway.example/";
/// The chat in which the operator hears of trouble.
pub(super) const OPERATOR: i64 = 999;
/// The secret that events are signed with, in base64.
pub(super) const EVENT_SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answered {
        status: u16,
        body: String,
        retry_after_s: Option<u64>,
    },
    /// The request arrives, and its answer does not.
    Unanswered,
    NotConnected,
}

/// What becomes of the next request, and how long that takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) fate: Fate,
    pub(super) after_ms: u64,
}

/// A request that was made.
#[derive(Clone, Debug)]
pub(super) struct Contact {
    /// `telegram`, `event`, `gateway` or `operator`.
    pub(super) whom: &'static str,
    pub(super) order_no: String,
    /// The kind of the message, or its text to the operator.
    pub(super) kind: String,
    pub(super) at: Timestamp,
    pub(super) instant: Instant,
    pub(super) has_arrived: bool,
    /// What is wrong with it, if anything.
    pub(super) fault: Option<&'static str>,
}

#[derive(Default)]
struct Stage {
    parts: VecDeque<Part>,
    contacts: Vec<Contact>,
}

/// What outlives every process: the clock and the other sides.
#[derive(Clone)]
pub(super) struct Outside {
    pub(super) clock: Clock,
    stage: Arc<Mutex<Stage>>,
}

impl Outside {
    pub(super) fn new(start: Timestamp) -> Self {
        Self { clock: Clock::by_hand(start), stage: Arc::default() }
    }

    /// A client whose requests end here.
    pub(super) fn client(&self, bug: Option<ServiceBug>) -> Client {
        static CLIENT: OnceLock<Client> = OnceLock::new();
        CLIENT.get_or_init(Client::new).answered_by(Arc::new(Wire { outside: self.clone(), bug }))
    }

    /// Has this happen to the next request.
    pub(super) fn expect(&self, part: Part) {
        self.stage.lock().unwrap().parts = VecDeque::from([part]);
    }

    /// The requests that were made since this was last asked. What was expected and did not come is forgotten.
    pub(super) fn contacts(&self) -> Vec<Contact> {
        let mut stage = self.stage.lock().unwrap();
        stage.parts.clear();
        std::mem::take(&mut stage.contacts)
    }
}

struct Wire {
    outside: Outside,
    bug: Option<ServiceBug>,
}

impl Peers for Wire {
    fn answer(&self, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, OutgoingError> {
        let clock = &self.outside.clock;
        let mut stage = self.outside.stage.lock().unwrap();
        let part = stage.parts.pop_front();
        let (whom, order_no, kind, mut fault) = read(url, headers, body);
        let Part { fate, after_ms } = part.unwrap_or_else(|| {
            fault = fault.or(Some("nobody expected it"));
            Part { fate: Fate::NotConnected, after_ms: 0 }
        });
        let has_arrived = fate != Fate::NotConnected;
        let (at, instant) = (clock.now(), clock.instant());
        stage.contacts.push(Contact { whom, order_no: order_no.clone(), kind, at, instant, has_arrived, fault });
        clock.pass(Duration::from_millis(after_ms));
        if whom == "operator" && self.bug == Some(ServiceBug::ForgetsTheOperator) {
            let body = r#"{"ok":true}"#.into();
            return Ok(Reply { status: 200, body, retry_after: None, date: None, location: None });
        }
        match fate {
            Fate::NotConnected => Err(OutgoingError::NotConnected("refused".into())),
            Fate::Unanswered => Err(OutgoingError::TimedOut),
            Fate::Answered { status, body, retry_after_s } => {
                let body = match self.bug {
                    Some(ServiceBug::BelievesUnpaid) => body.replace("\"status\":0", "\"status\":1"),
                    Some(ServiceBug::BelievesOtherOrder) => body.replace("ANOTHER1", &order_no),
                    _ => body,
                };
                let retry_after = retry_after_s.map(Duration::from_secs);
                Ok(Reply { status, body: body.into(), retry_after, date: None, location: None })
            }
        }
    }
}

/// Whom a request is for, the order and the kind of news that it is about, and what is wrong with it.
fn read(url: &str, headers: &[(&str, &str)], body: &[u8]) -> (&'static str, String, String, Option<&'static str>) {
    if let Some(query) = url.strip_prefix(GATEWAY) {
        let order_no = query.split('&').find_map(|field| field.strip_prefix("out_trade_no="));
        return ("gateway", order_no.unwrap_or_default().into(), String::new(), None);
    }
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    if url == BOT {
        let (order_no, kind) = (text(&json["data"]["order_no"]), text(&json["type"]).replace("order.", ""));
        let header = |name| headers.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| *value);
        let mut signed = format!("{}.{}.", header("webhook-id"), header("webhook-timestamp")).into_bytes();
        signed.extend_from_slice(body);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64.decode(EVENT_SECRET).unwrap());
        let signature = BASE64.decode(header("webhook-signature").trim_start_matches("v1,")).unwrap_or_default();
        let is_named = header("webhook-id") == format!("evt_{order_no}_{kind}");
        let fault = match hmac::verify(&key, &signed, &signature) {
            Err(_) => Some("its signature is wrong"),
            Ok(()) if !is_named => Some("its id is not that of the event"),
            Ok(()) => None,
        };
        return ("event", order_no, kind, fault);
    }
    if json["chat_id"] == OPERATOR {
        return ("operator", String::new(), text(&json["text"]), None);
    }
    // The texts of the configuration are the kind and the number of the order.
    let message = text(&json["text"]);
    let (kind, order_no) = message.split_once(' ').unwrap_or_default();
    ("telegram", order_no.into(), kind.into(), None)
}
