//! The one HTTP client: whatever we ask of others (gateways, Telegram, the bot) is asked here.
//!
//! A thin layer over reqwest. What it adds are limits (of time, of a reply's size), no redirects, and errors that say whether the
//! request may have arrived and never tell its URL: keys travel in some of ours.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{DATE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Url};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use tokio::time::Instant;

use super::body::read_at_most;
use crate::domain::clock::Timestamp;
use crate::domain::language::{Language, Localized, text};

#[cfg(test)]
pub(crate) mod loopback;
#[cfg(test)]
pub(crate) mod tests;

const USER_AGENT: &str = concat!("webhookctl/", env!("CARGO_PKG_VERSION"));

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How large a reply may be; gateways' and Telegram's are a few kilobytes.
const REPLY_BYTES_MAX: usize = 256 * 1024;

/// How long a connection is kept for the next request: long enough for a series of them, and shorter than servers keep theirs, so
/// that a request seldom meets a connection which the other side is just closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a request waits before its second attempt.
const REPEAT_PAUSE: Duration = Duration::from_millis(200);

/// How much of an error's cause is told.
const CAUSE_CHARS_TOLD: usize = 200;

/// How many errors below an error are looked at for the cause.
const CAUSES_MAX: usize = 16;

/// Sends requests. A clone shares the connections.
#[derive(Clone)]
pub(crate) struct Client {
    /// For what runs on this machine: no proxy would find it there.
    direct: reqwest::Client,
    /// For all others, by way of the proxy that the environment names, if it names one.
    outward: reqwest::Client,
    has_roots: bool,
    /// None: others are asked over the network.
    peers: Option<Arc<dyn Peers>>,
}

/// Those who are asked, where they are in this process: the seam of the simulation.
pub(crate) trait Peers: Send + Sync {
    /// What comes of a request, all attempts together.
    fn answer(&self, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, OutgoingError>;
}

/// What came back, whatever its status.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The body, of 256 KiB at most.
    pub(crate) body: Bytes,
    /// How long the other side wants to be left alone, where it gives seconds.
    pub(crate) retry_after: Option<Duration>,
    /// The other side's clock, where it tells it.
    pub(crate) date: Option<Timestamp>,
    /// Where it would have us ask instead.
    pub(crate) location: Option<String>,
}

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutgoingError {
    /// What was to be sent cannot be: a bad URL or header.
    #[error("unsendable: {0}")]
    Unsendable(String),
    /// https was asked for, and this machine has no root certificates to check anybody with.
    #[error("no_root_certificates: https needs root certificates")]
    NoRootCertificates,
    /// There was no connection, so nothing was sent.
    #[error("not_connected: {0}")]
    NotConnected(String),
    /// There was no connection within 5 s, so nothing was sent.
    #[error("connect_timed_out: no connection within the limit")]
    ConnectTimedOut,
    /// The time for the whole ran out.
    #[error("timed_out: no whole reply within the limit")]
    TimedOut,
    /// The connection ended before the reply did.
    #[error("broke_off: {0}")]
    BrokeOff(String),
    /// The reply is larger than 256 KiB.
    #[error("too_large: the reply exceeds the limit")]
    TooLarge,
}

impl OutgoingError {
    /// Whether the other side may have got the request, and done what it asks.
    pub(crate) fn may_have_arrived(&self) -> bool {
        match self {
            Self::Unsendable(_) | Self::NoRootCertificates | Self::NotConnected(_) | Self::ConnectTimedOut => false,
            Self::TimedOut | Self::BrokeOff(_) | Self::TooLarge => true,
        }
    }

    /// Whether a second attempt may well succeed, and soon enough.
    fn is_passing(&self) -> bool {
        matches!(self, Self::NotConnected(_) | Self::BrokeOff(_))
    }
}

impl Localized for OutgoingError {
    fn text(&self, language: Language) -> String {
        let text = match self {
            Self::Unsendable(cause) => text!(language, "outgoing.unsendable", cause = cause),
            Self::NoRootCertificates => text!(language, "outgoing.no_root_certificates"),
            Self::NotConnected(cause) => text!(language, "outgoing.not_connected", cause = cause),
            Self::ConnectTimedOut => text!(language, "outgoing.connect_timed_out", seconds = CONNECT_TIMEOUT.as_secs()),
            Self::TimedOut => text!(language, "outgoing.timed_out"),
            Self::BrokeOff(cause) => text!(language, "outgoing.broke_off", cause = cause),
            Self::TooLarge => text!(language, "outgoing.too_large", kib = REPLY_BYTES_MAX / 1024),
        };
        text.into_owned()
    }
}

impl From<reqwest::Error> for OutgoingError {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if error.is_builder() {
            Self::Unsendable(cause_of(&error))
        } else if error.is_connect() && error.is_timeout() {
            Self::ConnectTimedOut
        } else if error.is_connect() {
            Self::NotConnected(cause_of(&error))
        } else if error.is_timeout() {
            Self::TimedOut
        } else {
            Self::BrokeOff(cause_of(&error))
        }
    }
}

/// How often a request may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempts {
    One,
    /// A second time where the connection failed: for what may as well be asked twice.
    Two,
}

impl Client {
    /// A client that trusts the system's root certificates, or those of `SSL_CERT_FILE`. Where there are none, it still speaks http.
    pub(crate) fn new() -> Self {
        // What cannot be read is told by a request that needs it: see `OutgoingError::NoRootCertificates`.
        Self::trusting(rustls_native_certs::load_native_certs().certs)
    }

    fn trusting(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        let has_roots = !roots.is_empty();
        // Named here and not installed for the process: an embedding program may have a provider of its own.
        let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring knows TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let build = |builder: reqwest::ClientBuilder| {
            let built = builder
                .user_agent(USER_AGENT)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .retry(reqwest::retry::never())
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .tls_backend_preconfigured(tls.clone())
                .build();
            built.expect("a constant user agent and a TLS configuration that is complete already cannot fail")
        };
        Self {
            direct: build(reqwest::Client::builder().no_proxy()),
            outward: build(reqwest::Client::builder()),
            has_roots,
            peers: None,
        }
    }

    /// A client whose requests are answered by these, and never leave the process.
    #[cfg(test)]
    pub(crate) fn answered_by(&self, peers: Arc<dyn Peers>) -> Self {
        Self { peers: Some(peers), ..self.clone() }
    }

    /// Asks for `url`; a second time if the connection fails, within `timeout`.
    pub(crate) async fn get(&self, url: &str, timeout: Duration) -> Result<Reply, OutgoingError> {
        self.send(self.request(Method::GET, url)?, Attempts::Two, timeout).await
    }

    /// Posts a form, once.
    pub(crate) async fn post_form(
        &self,
        url: &str,
        pairs: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<Reply, OutgoingError> {
        self.send(self.request(Method::POST, url)?.form(pairs), Attempts::One, timeout).await
    }

    /// Posts a form that does no more when it arrives twice; a second time if the connection fails, within `timeout`.
    pub(crate) async fn post_repeatable_form(
        &self,
        url: &str,
        pairs: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<Reply, OutgoingError> {
        self.send(self.request(Method::POST, url)?.form(pairs), Attempts::Two, timeout).await
    }

    /// Posts `value` as JSON, once.
    pub(crate) async fn post_json(
        &self,
        url: &str,
        value: &impl Serialize,
        timeout: Duration,
    ) -> Result<Reply, OutgoingError> {
        self.send(self.request(Method::POST, url)?.json(value), Attempts::One, timeout).await
    }

    /// Posts `body` as it is with these headers, which say what it is, once.
    pub(crate) async fn post_bytes(
        &self,
        url: &str,
        headers: &[(&str, String)],
        body: Bytes,
        timeout: Duration,
    ) -> Result<Reply, OutgoingError> {
        let mut request = self.request(Method::POST, url)?;
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        self.send(request.body(body), Attempts::One, timeout).await
    }

    async fn send(
        &self,
        request: RequestBuilder,
        attempts: Attempts,
        timeout: Duration,
    ) -> Result<Reply, OutgoingError> {
        match &self.peers {
            None => send(request, attempts, timeout).await,
            Some(peers) => ask(peers.as_ref(), &request.build()?),
        }
    }

    fn request(&self, method: Method, url: &str) -> Result<RequestBuilder, OutgoingError> {
        let url = Url::parse(url).map_err(|error| OutgoingError::Unsendable(error.to_string()))?;
        if url.scheme() == "https" && !self.has_roots {
            return Err(OutgoingError::NoRootCertificates);
        }
        let client = if is_on_this_machine(&url) { &self.direct } else { &self.outward };
        Ok(client.request(method, url))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what is inside: a proxy's password may be.
        f.debug_struct("Client").field("has_roots", &self.has_roots).finish_non_exhaustive()
    }
}

/// Whether `url` names this machine by a loopback address or as `localhost`.
fn is_on_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

fn ask(peers: &dyn Peers, request: &reqwest::Request) -> Result<Reply, OutgoingError> {
    let text = |(name, value)| {
        let (name, value): (&HeaderName, &HeaderValue) = (name, value);
        Some((name.as_str(), value.to_str().ok()?))
    };
    let body = request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default();
    let headers: Vec<_> = request.headers().iter().filter_map(text).collect();
    peers.answer(request.url().as_str(), &headers, body)
}

/// Sends a request within `timeout`, all attempts together.
async fn send(request: RequestBuilder, attempts: Attempts, timeout: Duration) -> Result<Reply, OutgoingError> {
    let (client, request) = request.build_split();
    let mut request = request?;
    let deadline = Instant::now() + timeout;
    *request.timeout_mut() = Some(timeout);
    let again = (attempts == Attempts::Two).then(|| request.try_clone()).flatten();
    let first = attempt(&client, request).await;
    let is_late = deadline.saturating_duration_since(Instant::now()) <= REPEAT_PAUSE;
    match (first, again) {
        (Err(error), Some(mut again)) if error.is_passing() && !is_late => {
            tokio::time::sleep(REPEAT_PAUSE).await;
            *again.timeout_mut() = Some(deadline.saturating_duration_since(Instant::now()));
            attempt(&client, again).await
        }
        (first, _) => first,
    }
}

async fn attempt(client: &reqwest::Client, request: reqwest::Request) -> Result<Reply, OutgoingError> {
    let (head, body) = hyper::Response::from(client.execute(request).await?).into_parts();
    // The time limit is the request's.
    let (body, is_longer) = read_at_most(body, REPLY_BYTES_MAX, REPLY_BYTES_MAX).await?;
    if is_longer {
        return Err(OutgoingError::TooLarge);
    }
    Ok(Reply {
        status: head.status.as_u16(),
        body: body.into(),
        retry_after: retry_after(&head.headers),
        date: header(&head.headers, DATE).and_then(Timestamp::parse_http_date),
        location: header(&head.headers, LOCATION).map(str::to_owned),
    })
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The header's seconds; a date, its other form, is not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u32 = header(headers, RETRY_AFTER)?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

/// The words at the bottom of an error: the system's, where it was the system that refused.
fn cause_of(error: &reqwest::Error) -> String {
    let below = std::iter::successors(error.source(), |&error| error.source());
    let cause = below.take(CAUSES_MAX).last().map_or_else(|| error.to_string(), ToString::to_string);
    excerpt(&cause, CAUSE_CHARS_TOLD)
}

/// The beginning of what somebody else wrote, fit for one line: control characters and line separators are escaped.
pub(crate) fn excerpt(text: &str, chars_max: usize) -> String {
    let mut fit = String::new();
    for c in text.chars().take(chars_max) {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            fit.extend(c.escape_default());
        } else {
            fit.push(c);
        }
    }
    fit
}
