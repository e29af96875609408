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
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use nix::sys::resource::{Resource, getrlimit};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::Current;
use crate::net::acceptor::{Acceptor, Slot, Slots};
use crate::net::body::BodyLimits;
use crate::net::response::{Response, TEXT, allowed, close_after, respond};
use crate::payments::gateways::Gateways;
use crate::payments::reconcile::Reconciler;
use crate::store::{Cause, Store};
use connections::{Connections, Place};
use guard::GuardedIo;
use head::HEAD_BYTES_MAX;
#[cfg(any(test, fuzzing))]
pub(crate) use head::{Framing, HeadScanner, Progress};
pub(crate) use health::PATH as HEALTH_PATH;
pub(crate) use notify::{Notify, PATH as NOTIFY_PATH};

/// How many connections are open at the same time, where the system allows as many descriptors. Each takes some 20 KiB.
const CONNECTIONS_MAX: u32 = 2560;
/// How many descriptors are left for everything else: the database, the bot's API, questions to gateways. Half of them, where they
/// are few.
const OTHER_DESCRIPTORS: u64 = 256;
/// How long the end of one connection may take that makes room for another. Where all wait for us, none can end, and the next look is
/// worth while soon.
const ROOM_PAUSE: Duration = Duration::from_millis(10);
/// How much the system keeps for each connection and direction: it would keep megabytes for who never reads.
const SOCKET_BUFFER_BYTES: usize = 64 * 1024;
/// How long a body may be, in bytes, and how long it may take to arrive.
const BODY_BYTES_MAX: usize = 16 * 1024;
const BODY: BodyLimits =
    BodyLimits { bytes_max: BODY_BYTES_MAX, read_max: BODY_BYTES_MAX, timeout: Duration::from_secs(10) };
/// How long the gateway may take to answer about the order of a buyer who has come back.
const RETURN_QUESTION_TIMEOUT: Duration = Duration::from_secs(8);
/// How long clients may keep their connections when another process has taken over; a silent one is closed long before.
const LEAVE_TIMEOUT: Duration = Duration::from_mins(1);
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
            _ => return respond(StatusCode::NOT_FOUND, TEXT, "not found\n"),
        };
        if !methods.contains(request.method()) {
            return method_not_allowed(methods);
        }
        if announced_length(&request) > BODY_BYTES_MAX as u64 {
            return respond(StatusCode::PAYLOAD_TOO_LARGE, TEXT, notify::FAIL);
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
    let slots = Slots::new(connections_max());
    let mut acceptor = Acceptor::new(listener, slots.clone());
    let places = Connections::new();
    let (told, observed) = watch::channel(Phase::Serving);
    let welcome = |((stream, peer), slot): ((TcpStream, SocketAddr), Slot)| {
        let peer = peer.ip().to_canonical();
        let is_proxy = site.config.load().trusted_proxies.contains(peer);
        if let Some(place) = places.admit(peer, is_proxy) {
            tokio::spawn(connection(slot, stream, peer, place, Arc::clone(&site), observed.clone()));
        }
    };
    let make_room = || async {
        places.make_room();
        sleep(ROOM_PAUSE).await;
    };
    let mut housekeeping = pin!(site.keep_house());
    let phase = loop {
        tokio::select! {
            biased;
            phase = reached(&mut phases, Phase::Leaving { shared: false }) => break phase,
            () = &mut housekeeping => unreachable!("housekeeping never ends"),
            accepted = acceptor.accept(make_room) => welcome(accepted),
        }
    };
    told.send_replace(phase);
    acceptor.finish(phase == Phase::Leaving { shared: true }).for_each(welcome);
    if phase < Phase::Stopping {
        let leaving = async {
            tokio::select! {
                () = slots.all_free() => {}
                _ = reached(&mut phases, Phase::Stopping) => {}
            }
        };
        let _ = timeout(LEAVE_TIMEOUT, leaving).await;
        told.send_replace(Phase::Stopping);
    }
    if timeout(drain(), slots.all_free()).await.is_ok() {
        return Drained::Fully;
    }
    let open = slots.taken();
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

async fn connection(
    // First, so that it is given back last: when all slots are free, nothing of any connection is left.
    _slot: Slot,
    stream: TcpStream,
    peer: IpAddr,
    place: Place,
    site: Arc<Site>,
    mut phases: watch::Receiver<Phase>,
) {
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
                Some(refusal) => respond(refusal.status(), TEXT, notify::FAIL),
                None => site.answer(request, peer).await,
            };
            if let Some(asked) = asked.filter(|_| response.status().is_client_error()) {
                log::debug!("{} {asked}: {peer}", response.status());
            }
            let closes = matches!(response.status(), StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE);
            if chunked || closes || refusal.is_some() || control.is_on_last_request() {
                close_after(&mut response);
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

fn method_not_allowed(methods: &[Method]) -> Response {
    let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, notify::FAIL);
    response.headers_mut().insert(ALLOW, allowed(methods));
    response
}
