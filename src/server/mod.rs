//! The public HTTP server: accepts connections, limits what they may cost, and routes requests.
//!
//! One file a route; the outcome of a notification becomes HTTP in [`notify`] and nowhere else.

mod address;
mod guard;
mod head;
mod health;
mod notification_log;
mod notify;
mod return_page;
mod status;

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use rust_i18n::t;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::config::Current;
use crate::gateways::Gateways;
use crate::reconcile::Reconciler;
use crate::store::{Cause, Store};
use guard::GuardedIo;
use head::HEAD_BYTES_MAX;
pub(crate) use health::PATH as HEALTH_PATH;
pub(crate) use notify::{Notify, PATH as NOTIFY_PATH};

/// How many connections are open at the same time; more wait in the system's queue. Each takes some 20 KiB.
const CONNECTIONS_MAX: u32 = 4096;
/// How long a body may be, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the gateway may take to answer about the order of a buyer who has come back.
const RETURN_QUESTION_TIMEOUT: Duration = Duration::from_secs(8);
/// How long clients may keep their connections when another process has taken over; a silent one is closed long before.
const LEAVE_TIMEOUT: Duration = Duration::from_mins(1);
/// How long accepting pauses when the system has no descriptors or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Response = hyper::Response<Full<Bytes>>;

/// Everything that answers requests.
pub(crate) struct Site {
    config: Current,
    notify: Notify,
    return_page: return_page::ReturnPage,
    health: health::Health,
}

impl Site {
    pub(crate) fn new(config: &Current, store: &Store, gateways: &Arc<Gateways>, reconciler: &Arc<Reconciler>) -> Self {
        let reconciler = Arc::clone(reconciler);
        let ask: return_page::Ask = Arc::new(move |order| {
            let reconciler = Arc::clone(&reconciler);
            tokio::spawn(async move {
                if let Err(error) = reconciler.ask_and_settle(&order, Cause::Return, RETURN_QUESTION_TIMEOUT).await {
                    log::debug!("{error}");
                }
            });
        });
        Self {
            config: config.clone(),
            notify: Notify::new(config.clone(), store.clone(), Arc::clone(gateways)),
            return_page: return_page::ReturnPage::new(config.clone(), store.clone(), ask),
            health: health::Health::new(store.clone()),
        }
    }

    /// Whether a payment that came now would be written.
    pub(crate) async fn is_well(&self) -> bool {
        self.health.is_well().await
    }

    /// What has to be done from time to time, for as long as the server runs.
    async fn keep_house(&self) {
        self.notify.report_unlogged().await;
    }

    /// Waits for what outlives its requests. Call it when the store is closed.
    pub(crate) async fn finish(&self) {
        self.notify.finish().await;
    }

    async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response {
        const GET: &[Method] = &[Method::GET];
        const GET_HEAD: &[Method] = &[Method::GET, Method::HEAD];
        const GET_POST: &[Method] = &[Method::GET, Method::POST];
        let path = request.uri().path();
        let methods = match path {
            notify::PATH => GET_POST,
            return_page::PATH => GET,
            health::PATH | status::PATH => GET_HEAD,
            _ => return text(StatusCode::NOT_FOUND, "not found\n"),
        };
        if !methods.contains(request.method()) {
            return method_not_allowed(methods);
        }
        if announced_length(&request) > BODY_BYTES_MAX as u64 {
            return text(StatusCode::PAYLOAD_TOO_LARGE, notify::FAIL);
        }
        match path {
            notify::PATH => {
                let client = address::client(peer, request.headers(), &self.config.load().trusted_proxies);
                self.notify.answer(request, client).await
            }
            return_page::PATH => {
                self.return_page.answer(request.uri().query().unwrap_or_default(), request.headers()).await
            }
            health::PATH => self.health.answer().await,
            _ => status::answer(),
        }
    }
}

/// How a run of the server ended.
pub(crate) enum Drained {
    /// Every request was answered.
    Fully,
    /// So many connections were cut, because they did not end in time.
    Partly(usize),
}

/// How far the server is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Connections are accepted.
    Serving,
    /// Another process accepts them, from the same listener or from one of its own; those that are open here are still good for
    /// one request each.
    Leaving {
        /// Whether the queue of the listener is that process's now.
        shared: bool,
    },
    /// What is under way is finished, and nothing else let in.
    Stopping,
    /// Over.
    Cut,
}

/// Accepts and serves connections while `phases` says so, then lets what is under way finish for at most `drain`.
pub(crate) async fn serve(
    listener: TcpListener,
    site: Arc<Site>,
    mut phases: watch::Receiver<Phase>,
    drain: impl Fn() -> Duration,
) -> Drained {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
    let (told, observed) = watch::channel(Phase::Serving);
    let welcome = |(stream, peer, permit): Accepted| {
        tokio::spawn(connection(permit, stream, peer, Arc::clone(&site), observed.clone()));
    };
    let mut housekeeping = pin!(site.keep_house());
    let phase = loop {
        tokio::select! {
            biased;
            phase = reached(&mut phases, Phase::Leaving { shared: false }) => break phase,
            () = &mut housekeeping => unreachable!("housekeeping never ends"),
            accepted = accept(&listener, &connections) => welcome(accepted),
        }
    };
    told.send_replace(phase);
    if phase == (Phase::Leaving { shared: true }) {
        drop(listener);
    } else {
        // Who has connected before the end is served: closing the listener resets those that wait in its queue.
        for accepted in backlog(listener, &connections) {
            welcome(accepted);
        }
    }
    if phase < Phase::Stopping {
        let leaving = async {
            tokio::select! {
                _ = connections.acquire_many(CONNECTIONS_MAX) => {}
                _ = reached(&mut phases, Phase::Stopping) => {}
            }
        };
        let _ = timeout(LEAVE_TIMEOUT, leaving).await;
        told.send_replace(Phase::Stopping);
    }
    let all = connections.acquire_many(CONNECTIONS_MAX);
    if timeout(drain(), all).await.is_ok() {
        return Drained::Fully;
    }
    let open = CONNECTIONS_MAX as usize - connections.available_permits();
    told.send_replace(Phase::Cut);
    Drained::Partly(open)
}

/// Waits until `phase` or a later one; whoever decides on the phases and goes away means the end.
async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) -> Phase {
    phases.wait_for(|now| *now >= phase).await.map_or(Phase::Stopping, |now| *now)
}

/// What waits in the listener's queue, which is closed when it is found empty.
///
/// By the system's own call: tokio would first have to hear that there is something, and who connects in the meantime is lost.
fn backlog(listener: TcpListener, connections: &Arc<Semaphore>) -> impl Iterator<Item = Accepted> {
    let listener = listener.into_std();
    std::iter::from_fn(move || {
        let permit = Arc::clone(connections).try_acquire_owned().ok()?;
        let (stream, peer) = listener.as_ref().ok()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer.ip().to_canonical(), permit))
    })
    .take(CONNECTIONS_MAX as usize)
}

/// A connection, where it comes from, and its permit to be open.
type Accepted = (TcpStream, IpAddr, OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, connections: &Arc<Semaphore>) -> Accepted {
    let permit = Arc::clone(connections).acquire_owned().await.expect("the semaphore is never closed");
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer.ip().to_canonical(), permit),
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    log::error!("{}", t!("log.accept_failed", error = error));
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors that a client caused by giving up before it was accepted.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn connection(
    // First, so that it is given back last: who has all permits knows that nothing of any connection is left.
    _permit: OwnedSemaphorePermit,
    stream: TcpStream,
    peer: IpAddr,
    site: Arc<Site>,
    mut phases: watch::Receiver<Phase>,
) {
    // Answers are one small packet each: waiting to fill it helps nobody.
    let _ = stream.set_nodelay(true);
    let io = GuardedIo::new(stream);
    let control = io.control();
    let service = service_fn(|request: Request<Incoming>| {
        let (site, control) = (&site, &control);
        async move {
            // A chunked body's end is hyper's knowledge alone, so its connection is not used again; see `guard`.
            let chunked = request.headers().contains_key(TRANSFER_ENCODING);
            let asked = log::log_enabled!(log::Level::Debug).then(|| beginning_of(&request));
            let refusal = control.refusal().filter(|_| request.method().as_str() == guard::REFUSED);
            let mut response = match refusal {
                Some(refusal) => text(refusal.status(), notify::FAIL),
                None => site.answer(request, peer).await,
            };
            if let Some(asked) = asked.filter(|_| response.status().is_client_error()) {
                log::debug!("{} {asked}: {peer}", response.status());
            }
            let closes = matches!(response.status(), StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE);
            if chunked || closes || refusal.is_some() || control.is_on_last_request() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            // The guard has timeouts for heads, and answers them.
            .header_read_timeout(None)
            // Who sends a request and closes that end at once still gets the answer.
            .half_close(true)
            .max_buf_size(2 * HEAD_BYTES_MAX)
            .serve_connection(io, service)
    );
    loop {
        tokio::select! {
            biased;
            // How a client ends its connection is its own affair.
            _ = connection.as_mut() => return,
            changed = phases.changed() => match (*phases.borrow_and_update(), changed) {
                (Phase::Serving, Ok(())) => {}
                (Phase::Leaving { .. }, Ok(())) => control.leave(),
                // Not hyper's graceful shutdown: it takes a head that the guard still holds back for an idle connection.
                (Phase::Stopping, Ok(())) => control.drain(),
                _ => return,
            },
        }
    }
}

/// What a request asks for, without its query: that may hold a signature.
fn beginning_of(request: &Request<Incoming>) -> String {
    format!("{} {}", request.method(), notification_log::shortened(request.uri().path()))
}

fn announced_length(request: &Request<Incoming>) -> u64 {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(0)
}

/// Reads a whole body within its limits, or says which one it broke.
async fn read_body(body: Incoming) -> Result<Bytes, StatusCode> {
    if hyper::body::Body::is_end_stream(&body) {
        return Ok(Bytes::new());
    }
    let collected = Limited::new(body, BODY_BYTES_MAX).collect();
    match timeout(BODY_TIMEOUT, collected).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Ok(Err(_)) => Err(StatusCode::BAD_REQUEST),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response {
    respond(status, "text/plain; charset=utf-8", body)
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    respond(status, "application/json", body)
}

fn method_not_allowed(methods: &[Method]) -> Response {
    let allow: Vec<_> = methods.iter().map(Method::as_str).collect();
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, notify::FAIL);
    let allow = HeaderValue::from_str(&allow.join(", ")).expect("method names are header text");
    response.headers_mut().insert(ALLOW, allow);
    response
}
