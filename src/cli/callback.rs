//! A callback as a gateway would send it: made, signed, and sent.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rust_i18n::t;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::orders::DEFAULT_PAYMENT_TYPE;
use crate::epay::{Form, encode, sign_md5};
use crate::order::Order;
use crate::secret::{MASK, Secret};
use crate::server::NOTIFY_PATH;

/// How long one answer may take: gateways wait for 5 to 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The fields of a callback; text, because a test may want to say anything.
pub(super) struct Fields {
    pub(super) pid: String,
    pub(super) trade_no: String,
    pub(super) out_trade_no: String,
    pub(super) payment_type: String,
    pub(super) name: String,
    pub(super) money: String,
    pub(super) trade_status: String,
    pub(super) param: Option<String>,
}

impl Fields {
    /// An order that we do not have, paid.
    pub(super) fn unknown(order_no: &str, pid: String, money: String) -> Self {
        Self {
            pid,
            // The same number each time, as from a gateway that sends a callback again.
            trade_no: format!("T{order_no}"),
            out_trade_no: order_no.to_owned(),
            payment_type: DEFAULT_PAYMENT_TYPE.into(),
            name: "product".into(),
            money,
            trade_status: "TRADE_SUCCESS".into(),
            param: None,
        }
    }

    /// An order of ours, paid in full.
    pub(super) fn of(order: &Order) -> Self {
        let terms = &order.terms;
        Self {
            payment_type: terms.payment_type.clone(),
            name: terms.name.clone(),
            param: terms.param.clone(),
            ..Self::unknown(terms.order_no.as_str(), terms.merchant.clone(), terms.amount.to_string())
        }
    }

    fn in_order(self) -> Vec<(&'static str, String)> {
        let fields = [
            ("pid", self.pid),
            ("trade_no", self.trade_no),
            ("out_trade_no", self.out_trade_no),
            ("type", self.payment_type),
            ("name", self.name),
            ("money", self.money),
            ("trade_status", self.trade_status),
        ];
        fields.into_iter().chain(self.param.map(|param| ("param", param))).collect()
    }
}

/// A signed callback.
pub(super) struct Callback {
    fields: Vec<(&'static str, String)>,
    method: Method,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Answer {
    pub(super) body: String,
    pub(super) status: u16,
}

impl Answer {
    /// Whether a gateway would take this for delivered.
    pub(super) fn is_success(&self) -> bool {
        self.status == 200 && self.body == "success"
    }
}

impl Callback {
    /// Signs the fields with a V1 key.
    pub(super) fn sign(fields: Fields, key: &Secret, method: Method) -> Self {
        let mut fields = fields.in_order();
        let borrowed = fields.iter().map(|(k, v)| (Cow::from(*k), Cow::from(v.as_str()))).collect();
        let sign = sign_md5(&Form::as_sent(borrowed), key);
        fields.push(("sign", sign));
        fields.push(("sign_type", "MD5".into()));
        Self { fields, method }
    }

    /// Spoils the signature.
    pub(super) fn spoil(&mut self) {
        for (_, sign) in self.fields.iter_mut().filter(|(key, _)| *key == "sign") {
            let other = if sign.starts_with('0') { "1" } else { "0" };
            sign.replace_range(..1, other);
        }
    }

    /// What goes out, for a person to read: the signature is masked.
    pub(super) fn masked(&self) -> String {
        let shown = self.fields.iter().map(|(key, value)| (*key, if *key == "sign" { MASK } else { value }));
        encode(shown).replace("%2A", "*")
    }

    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    fn request(&self, host: &str) -> anyhow::Result<Request<Full<Bytes>>> {
        let form = encode(self.fields.iter().map(|(key, value)| (*key, value.as_str())));
        let builder = Request::builder().method(&self.method).header(HOST, host);
        Ok(if self.method == Method::POST {
            let content_type = "application/x-www-form-urlencoded";
            builder.uri(NOTIFY_PATH).header(CONTENT_TYPE, content_type).body(Full::from(form))?
        } else {
            builder.uri(format!("{NOTIFY_PATH}?{form}")).body(Full::default())?
        })
    }
}

/// A connection to the service.
pub(super) struct Connection {
    host: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let not_running = || t!("cli.not_reachable", address = address).into_owned();
        let stream = TcpStream::connect(address).await.with_context(not_running)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with the sender; what goes wrong is told by the request that it goes wrong for.
        tokio::spawn(connection);
        Ok(Self { host: address.to_string(), sender })
    }

    /// Sends a callback; what came back, and after how long.
    pub(super) async fn send(&mut self, callback: &Callback) -> anyhow::Result<(Answer, Duration)> {
        let sent_at = Instant::now();
        let exchange = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(callback.request(&self.host)?).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok(Answer { body: String::from_utf8_lossy(&body).trim_end().to_owned(), status })
        };
        let answer = timeout(ANSWER_TIMEOUT, exchange).await.with_context(|| t!("cli.no_answer").into_owned())?;
        Ok((answer.with_context(|| t!("cli.no_answer").into_owned())?, sent_at.elapsed()))
    }
}
