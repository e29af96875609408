//! The listener: connections, their limits, and answers as HTTP.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::{Asked, Reaction, Simulator, page};
use crate::domain::clock::Timestamp;

/// How many connections are open at the same time; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 512;
/// How long a body may be, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long a head may take, how long a connection may be silent, and how long a body may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long answers under way may take at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long accepting pauses when the system has no descriptors or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut shutdown = pin!(shutdown);
        loop {
            let permit = Arc::clone(&connections).acquire_owned();
            let accepted = async { (permit.await, listener.accept().await) };
            tokio::select! {
                () = &mut shutdown => break,
                (permit, accepted) = accepted => match (permit, accepted) {
                    (Ok(permit), Ok((stream, _))) => {
                        self.tasks.spawn(Arc::clone(&self).connection(stream, address, permit));
                    }
                    // Out of descriptors, most likely: some will be free again.
                    _ => sleep(ACCEPT_PAUSE).await,
                },
            }
        }
        drop(listener);
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        Ok(())
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, address: SocketAddr, _permit: OwnedSemaphorePermit) {
        // Answers are one small packet each: waiting to fill it helps nobody.
        let _ = stream.set_nodelay(true);
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

    async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        address: SocketAddr,
    ) -> Result<Response<Full<Bytes>>, Reset> {
        let (head, body) = request.into_parts();
        let reaction = match read(body).await {
            Err(status) => page::error(status, status.as_str()),
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
            Reaction::Page(status, html) => respond(status, "text/html; charset=utf-8", html),
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

/// Reads a whole body within its limits, or says which one it broke.
async fn read(body: Incoming) -> Result<Bytes, StatusCode> {
    match timeout(PATIENCE, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Ok(Err(_)) => Err(StatusCode::BAD_REQUEST),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
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

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json_of(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    respond(status, "application/json; charset=utf-8", value.to_string())
}

fn redirect(to: &str) -> Response<Full<Bytes>> {
    let mut response = respond(StatusCode::SEE_OTHER, "text/plain", Bytes::new());
    // A URL of ASCII always is; a merchant's with anything else in it leads nowhere.
    if let Ok(location) = HeaderValue::from_str(to) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
