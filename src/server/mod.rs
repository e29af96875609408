//! The public HTTP server: accepts connections, limits what they may cost, and routes requests.
//!
//! One file a route; the outcome of a notification becomes HTTP in [`notify`] and nowhere else.

mod address;
mod connections;
mod guard;
mod head;
mod health;
mod limits;
mod notification_log;
mod notify;
mod return_page;
mod status;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use nix::sys::resource::{Resource, getrlimit};
use rust_i18n::t;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::config::Current;
use crate::payments::gateways::Gateways;
use crate::payments::reconcile::Reconciler;
use crate::store::{Cause, Store};
use connections::{Connections, Place};
use guard::GuardedIo;
use head::HEAD_BYTES_MAX;
#[cfg(any(test, fuzzing))]
pub(crate) use head::{Framing, HeadScanner, Progress};
pub(crate) use health::PATH as HEALTH_PATH;
use limits::{Bucket, Rate};
pub(crate) use notify::{Notify, PATH as NOTIFY_PATH};

/// How many connections are open at the same time, where the system allows as many descriptors. Each takes some 20 KiB.
const CONNECTIONS_MAX: u32 = 2560;
/// How many descriptors are left for everything else: the database, the bot's API, questions to gateways. Half of them, where they
/// are few.
const OTHER_DESCRIPTORS: u64 = 256;
/// How long the end of one connection may take that makes room for another.
const ROOM_PAUSE: Duration = Duration::from_millis(10);
/// How much the system keeps for each connection and direction: it would keep megabytes for who never reads.
const SOCKET_BUFFER_BYTES: usize = 64 * 1024;
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
/// How often that is logged.
const ACCEPT_FAILURES_LOGGED: Rate = Rate { burst: 10, interval: Duration::from_mins(1) };

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
            return_page: return_page::ReturnPage::new(config.clone(), store.clone(), ask, gateways.clock().clone()),
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
    limit_buffers(&listener);
    let max = connections_max();
    let permits = Arc::new(Semaphore::new(max as usize));
    let places = Connections::new();
    let (told, observed) = watch::channel(Phase::Serving);
    let welcome = |(arrived, permit): (Arrived, _)| {
        let is_proxy = site.config.load().trusted_proxies.contains(arrived.peer);
        if let Some(place) = places.admit(arrived.peer, is_proxy) {
            tokio::spawn(connection(permit, arrived, place, Arc::clone(&site), observed.clone()));
        }
    };
    let mut door = Door { listener, next: None, failures: Bucket::new(ACCEPT_FAILURES_LOGGED) };
    let mut housekeeping = pin!(site.keep_house());
    let phase = loop {
        tokio::select! {
            biased;
            phase = reached(&mut phases, Phase::Leaving { shared: false }) => break phase,
            () = &mut housekeeping => unreachable!("housekeeping never ends"),
            accepted = door.accept(&permits, &places) => welcome(accepted),
        }
    };
    told.send_replace(phase);
    // Who has connected before the end is served: closing the listener resets those that wait in its queue.
    let Door { listener, next, .. } = door;
    let backlog = (phase != Phase::Leaving { shared: true }).then(|| backlog(listener)).into_iter().flatten();
    for arrived in next.into_iter().chain(backlog).take(max as usize) {
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { break };
        welcome((arrived, permit));
    }
    if phase < Phase::Stopping {
        let leaving = async {
            tokio::select! {
                _ = permits.acquire_many(max) => {}
                _ = reached(&mut phases, Phase::Stopping) => {}
            }
        };
        let _ = timeout(LEAVE_TIMEOUT, leaving).await;
        told.send_replace(Phase::Stopping);
    }
    let all = permits.acquire_many(max);
    if timeout(drain(), all).await.is_ok() {
        return Drained::Fully;
    }
    let open = max as usize - permits.available_permits();
    told.send_replace(Phase::Cut);
    Drained::Partly(open)
}

/// Waits until `phase` or a later one; whoever decides on the phases and goes away means the end.
async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) -> Phase {
    phases.wait_for(|now| *now >= phase).await.map_or(Phase::Stopping, |now| *now)
}

/// How many connections there are descriptors for.
fn connections_max() -> u32 {
    let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    let left = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(descriptors / 2).max(1);
    u32::try_from(left).unwrap_or(u32::MAX).min(CONNECTIONS_MAX)
}

/// Connections have the sizes of their listener.
fn limit_buffers(listener: &TcpListener) {
    let sizes = set_socket_recv_buffer_size(listener, SOCKET_BUFFER_BYTES)
        .and_then(|()| set_socket_send_buffer_size(listener, SOCKET_BUFFER_BYTES));
    if let Err(error) = sizes {
        log::debug!("setsockopt: {error}");
    }
}

/// What waits in the listener's queue, which is closed when it is found empty.
///
/// By the system's own call: tokio would first have to hear that there is something, and who connects in the meantime is lost.
fn backlog(listener: TcpListener) -> impl Iterator<Item = Arrived> {
    let listener = listener.into_std();
    std::iter::from_fn(move || {
        let (stream, peer) = listener.as_ref().ok()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Arrived::new(TcpStream::from_std(stream).ok()?, peer))
    })
}

/// A connection, and where it comes from.
struct Arrived {
    stream: TcpStream,
    peer: IpAddr,
}

impl Arrived {
    fn new(stream: TcpStream, peer: SocketAddr) -> Self {
        Self { stream, peer: peer.ip().to_canonical() }
    }
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    /// Has come, and waits for a permit.
    next: Option<Arrived>,
    failures: Bucket,
}

impl Door {
    /// The next connection, with its permit to be open; where there is none left, another one has to go.
    async fn accept(&mut self, permits: &Arc<Semaphore>, places: &Connections) -> (Arrived, OwnedSemaphorePermit) {
        if self.next.is_none() {
            self.next = Some(self.arrival().await);
        }
        let permit = loop {
            if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
                break permit;
            }
            places.make_room();
            // Its end takes a moment. Where all wait for us, none can go, and the next look is worth while soon.
            if let Ok(permit) = timeout(ROOM_PAUSE, Arc::clone(permits).acquire_owned()).await {
                break permit.expect("the semaphore is never closed");
            }
        };
        (self.next.take().expect("has just come"), permit)
    }

    async fn arrival(&self) -> Arrived {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return Arrived::new(stream, peer),
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if self.failures.take() {
                        log::error!("{}", t!("log.accept_failed", error = error));
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
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
    Arrived { stream, peer }: Arrived,
    place: Place,
    site: Arc<Site>,
    mut phases: watch::Receiver<Phase>,
) {
    // Answers are one small packet each: waiting to fill it helps nobody.
    let _ = stream.set_nodelay(true);
    let place = Arc::new(place);
    let mut io = GuardedIo::new(stream, Arc::clone(&place));
    let control = io.control();
    let service = service_fn(|request: Request<Incoming>| {
        let (site, control, place) = (&site, &control, &place);
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
            place.waits();
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    // The guard has timeouts for heads, and answers them.
    builder.header_read_timeout(None);
    // Who sends a request and closes that end at once still gets the answer.
    builder.half_close(true);
    builder.max_buf_size(2 * HEAD_BYTES_MAX);
    let mut connection = pin!(async {
        io.first_request().await;
        builder.serve_connection(io, service).await
    });
    loop {
        tokio::select! {
            biased;
            // How a client ends its connection is its own affair.
            _ = connection.as_mut() => return,
            () = place.dismissed() => return,
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
async fn read_body(body: Incoming) -> Result<Vec<u8>, StatusCode> {
    if hyper::body::Body::is_end_stream(&body) {
        return Ok(Vec::new());
    }
    timeout(BODY_TIMEOUT, gather(body)).await.unwrap_or(Err(StatusCode::REQUEST_TIMEOUT))
}

/// Copied as it comes: each piece, and be it one byte, keeps the whole buffer that it was read into.
async fn gather(mut body: Incoming) -> Result<Vec<u8>, StatusCode> {
    let mut gathered = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        let Ok(piece) = frame.into_data() else { continue };
        if gathered.len() + piece.len() > BODY_BYTES_MAX {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        gathered.extend_from_slice(&piece);
    }
    Ok(gathered)
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
