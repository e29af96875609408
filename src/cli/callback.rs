//! A callback as a gateway would send it: for an order of ours, over a connection to the service.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::channel::epay::{CallbackFields, SignedCallback, encode};
use crate::domain::failure::OrFailure;
use crate::domain::language::localized;
use crate::domain::order::Order;
use crate::net::body::read_at_most;
use crate::payments::checkout::DEFAULT_PAYMENT_TYPE;
use crate::server::NOTIFY_PATH;

/// How long one answer may take: gateways wait for 5 to 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of an answer is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// What a callback says of an order that we do not have: that it is paid.
pub(super) fn unknown(order_no: &str, pid: String, money: String) -> CallbackFields {
    CallbackFields {
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

/// What a callback says of an order of ours: that it is paid in full.
pub(super) fn paid(order: &Order) -> CallbackFields {
    let terms = &order.terms;
    CallbackFields {
        payment_type: terms.payment_type.clone(),
        name: terms.name.clone(),
        param: terms.param.clone(),
        ..unknown(terms.order_no.as_str(), terms.merchant.clone(), terms.amount.to_string())
    }
}

/// A signed callback, and how it is sent.
pub(super) struct Callback {
    pub(super) signed: SignedCallback,
    pub(super) method: Method,
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
    fn request(&self, host: &str) -> anyhow::Result<Request<Full<Bytes>>> {
        let form = encode(self.signed.fields());
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
        let not_running = || localized!("cli.not_reachable", address = address);
        let stream = TcpStream::connect(address).await.or_failure(not_running)?;
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
            let (body, _) = read_at_most(response.into_body(), ANSWER_BYTES_MAX, ANSWER_BYTES_MAX).await?;
            anyhow::Ok(Answer { body: String::from_utf8_lossy(&body).trim_end().to_owned(), status })
        };
        let answer = timeout(ANSWER_TIMEOUT, exchange).await.or_failure(|| localized!("cli.no_answer"))?;
        Ok((answer.or_failure(|| localized!("cli.no_answer"))?, sent_at.elapsed()))
    }
}
