//! Callbacks on their way: over plain HTTP, until the merchant answers `success` or the attempts are used up.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::callback::{SPOILING, is_delivered, schedule, signed};
use super::fault::Question;
use super::request::with_query;
use super::{Event, Fault, Occasion, Simulator};
use crate::channel::epay::encode;
use crate::domain::clock::Timestamp;
use crate::domain::failure::failure;
use crate::net::body::read_at_most;
use crate::process::failure::text_of;

/// How long an attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an answer is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// How much of an answer is told.
const ANSWER_CHARS_TOLD: usize = 100;
/// How late a late callback may be, in minutes.
const MINUTES_LATE_MAX: u32 = 4;
/// How many copies are sent at once, and how many more there may be.
const COPIES: (u32, u32) = (2, 3);

impl Simulator {
    /// Sends an order's callback by the retry pattern.
    pub(super) async fn deliver(self: Arc<Self>, order: u64) {
        let paid_at = Instant::now();
        let first = Occasion { order, number: 0 };
        let late = || 1 + self.dice().roll(Question::Minutes, MINUTES_LATE_MAX, order, 0);
        let minutes_late = if self.happens(Fault::Late, first) { late() } else { 0 };
        for (attempt, after) in (0..).zip(schedule(self.settings.minute, self.settings.attempts, minutes_late)) {
            sleep_until(paid_at + after).await;
            let occasion = Occasion { order, number: attempt };
            let spoilt = SPOILING.into_iter().find(|fault| attempt == 0 && self.happens(*fault, occasion));
            let mut delivered = self.send_copies(occasion, spoilt).await;
            if delivered && self.happens(Fault::Duplicate, occasion) {
                self.send(occasion, spoilt).await;
            }
            // Whatever was said to a wrong one, the right one follows.
            delivered &= spoilt.is_none();
            if delivered {
                return;
            }
        }
    }

    /// Sends a callback, or several at once; whether one of them was answered `success`.
    async fn send_copies(self: &Arc<Self>, occasion: Occasion, spoilt: Option<Fault>) -> bool {
        if !self.happens(Fault::Concurrent, occasion) {
            return self.send(occasion, spoilt).await;
        }
        let copies = COPIES.0 + self.dice().roll(Question::Copies, COPIES.1, occasion.order, occasion.number);
        let mut sending = JoinSet::new();
        for _ in 0..copies {
            let simulator = Arc::clone(self);
            sending.spawn(async move { simulator.send(occasion, spoilt).await });
        }
        sending.join_all().await.contains(&true)
    }

    /// Sends the callback of a paid order once more, now; whether it was answered `success`, and what came back.
    pub(super) async fn send_again(&self, order: u64) -> (bool, String) {
        self.send_once(order, None, false).await
    }

    async fn send(&self, occasion: Occasion, spoilt: Option<Fault>) -> bool {
        let reset = self.happens(Fault::Reset, occasion);
        self.send_once(occasion.order, spoilt, reset).await.0
    }

    async fn send_once(&self, order: u64, spoilt: Option<Fault>, reset: bool) -> (bool, String) {
        let _turn = self.sending.acquire().await.expect("the semaphore is never closed");
        let trade = self.book().get(order).clone();
        let merchant = self.merchants.iter().find(|merchant| merchant.pid == trade.pid);
        let merchant = merchant.expect("only merchants of ours have orders, and none goes away");
        let callback = signed(&trade, merchant, spoilt, &self.other_pid(&trade.pid), Timestamp::now());
        let exchange = async {
            let request = request(&trade.purchase.notify_url, &self.settings.method, encode(callback.fields()))?;
            if reset { send_and_leave(request).await } else { send_and_read(request).await }
        };
        let answer = match timeout(ATTEMPT_TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(failure!("simulator.timeout", seconds = ATTEMPT_TIMEOUT.as_secs())),
        };
        let delivered = answer.as_deref().is_ok_and(is_delivered);
        let answer = match answer {
            Ok(body) => String::from_utf8_lossy(&body).chars().take(ANSWER_CHARS_TOLD).collect(),
            Err(error) => text_of(&error, self.settings.language),
        };
        let count = {
            let mut book = self.book();
            if delivered && spoilt.is_none() {
                book.note_delivery(order);
            }
            book.count_callback(order)
        };
        self.tell(Event::Callback {
            out_trade_no: trade.purchase.out_trade_no,
            count,
            sent: spoilt.map_or("honest", Fault::name),
            answer: answer.clone(),
            delivered,
        });
        (delivered, answer)
    }
}

/// A callback as it goes over a connection of its own.
fn request(notify_url: &str, method: &Method, form: String) -> anyhow::Result<Request<Full<Bytes>>> {
    let is_post = method == Method::POST;
    let uri: Uri = if is_post { notify_url.parse()? } else { with_query(notify_url, &form).parse()? };
    let authority = uri.authority().context("notify_url")?.as_str();
    // Without what may stand before the host, which is nobody's to see.
    let host = authority.rsplit('@').next().unwrap_or(authority).to_owned();
    let builder = Request::builder()
        .method(method)
        .header(HOST, host)
        .header(USER_AGENT, "epay")
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .uri(uri);
    Ok(if is_post {
        builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(Full::from(form))?
    } else {
        builder.body(Full::default())?
    })
}

async fn connect(uri: &Uri) -> anyhow::Result<TcpStream> {
    if uri.scheme_str() != Some("http") {
        return Err(failure!("simulator.not_http"));
    }
    let host = uri.host().context("notify_url")?.trim_matches(['[', ']']);
    Ok(TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?)
}

/// Sends a request, and reads what comes back; redirects are not followed.
async fn send_and_read(request: Request<Full<Bytes>>) -> anyhow::Result<Vec<u8>> {
    let (parts, body) = request.into_parts();
    let stream = connect(&parts.uri).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    // The client writes what it is given as the target; servers want the path.
    let mut request = Request::from_parts(parts, body);
    *request.uri_mut() = target(request.uri()).parse()?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let (answer, _) = read_at_most(response.into_body(), ANSWER_BYTES_MAX, ANSWER_BYTES_MAX).await?;
        Ok(answer)
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => {
            // What was received before the end is still there to be read.
            ended?;
            exchange.await
        }
    }
}

/// Sends a request, and closes the connection at once. The client that waits for answers has no way to do that.
async fn send_and_leave(request: Request<Full<Bytes>>) -> anyhow::Result<Vec<u8>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut stream = connect(&parts.uri).await?;
    let mut bytes = format!("{} {} HTTP/1.1\r\n", parts.method, target(&parts.uri)).into_bytes();
    for (name, value) in &parts.headers {
        for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(piece);
        }
    }
    bytes.extend_from_slice(format!("{CONTENT_LENGTH}: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await?;
    drop(stream);
    bail!("reset")
}

fn target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}
