//! The listener: connections, their limits, and answers as HTTP.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue, LOCATION};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::{Asked, Reaction, Simulator, page};
use crate::domain::clock::Timestamp;
use crate::net::acceptor::{Acceptor, Slot, Slots};
use crate::net::body::BodyLimits;
use crate::net::response::{HTML, Response, respond_uncached};

/// How many connections are open at the same time; more wait in the system's queue.
const CONNECTIONS_MAX: u32 = 512;
/// How long a head may take, how long a connection may be silent, and how long a body may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a body may be, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
const BODY: BodyLimits = BodyLimits { bytes_max: BODY_BYTES_MAX, read_max: BODY_BYTES_MAX, timeout: PATIENCE };
/// How long answers under way may take at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection is to end without a reply.
#[derive(Debug, thiserror::Error)]
#[error("reset, as asked for")]
struct Reset;

impl Simulator {
    /// Serves `listener` until `shutdown` comes; callbacks that are still to be sent are forgotten then, as everything is.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let address = listener.local_addr()?;
        let mut acceptor = Acceptor::new(listener, Slots::new(CONNECTIONS_MAX));
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                ((stream, _), slot) = acceptor.accept(pending) => {
                    self.tasks.spawn(Arc::clone(&self).connection(stream, address, slot));
                }
            }
        }
        drop(acceptor);
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        Ok(())
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, address: SocketAddr, _slot: Slot) {
        let service = service_fn(|request| self.answer(request, address));
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(BODY_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service)
        );
        tokio::select! {
            // How a client ends its connection is its own affair.
            _ = connection.as_mut() => return,
            () = self.stopping.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = timeout(DRAIN_TIMEOUT, connection).await;
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>, address: SocketAddr) -> Result<Response, Reset> {
        let (head, body) = request.into_parts();
        let reaction = match BODY.read(body).await {
            Err(error) => page::error(error.status(), error.status().as_str(), self.settings.language),
            Ok(body) => {
                let base = base_url(&head.headers, address);
                let asked = Asked {
                    method: &head.method,
                    path: head.uri.path(),
                    query: head.uri.query().unwrap_or_default().as_bytes(),
                    body: &body,
                    base: &base,
                    now: Timestamp::now(),
                };
                let (reaction, delay) = self.react(&asked);
                sleep(delay).await;
                reaction
            }
        };
        Ok(match reaction {
            Reaction::Page(status, html) => respond_uncached(status, HTML, html),
            Reaction::Json(status, value) => json_of(status, &value),
            Reaction::Redirect(to) => redirect(&to),
            Reaction::SendCallback(order) => {
                let (delivered, answer) = self.send_again(order).await;
                json_of(StatusCode::OK, &json!({ "answer": answer, "delivered": delivered }))
            }
            Reaction::Reset => return Err(Reset),
        })
    }
}

/// Our base URL as the client has it: a gateway that listens everywhere does not know which of its addresses is meant.
fn base_url(headers: &HeaderMap, address: SocketAddr) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    match host.filter(|_| address.ip().is_unspecified()) {
        Some(host) => format!("http://{host}/"),
        None => format!("http://{address}/"),
    }
}

fn json_of(status: StatusCode, value: &Value) -> Response {
    respond_uncached(status, "application/json; charset=utf-8", value.to_string())
}

fn redirect(to: &str) -> Response {
    let mut response = respond_uncached(StatusCode::SEE_OTHER, "text/plain", "");
    // A URL of ASCII always is; a merchant's with anything else in it leads nowhere.
    if let Ok(location) = HeaderValue::from_str(to) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
