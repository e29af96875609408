//! The connection as hyper sees it: heads arrive whole and vetted, nothing takes for ever, and the end is polite.
//!
//! hyper asks for bytes; this hands out one request's bytes at a time. A head that [`HeadScanner`] refuses never reaches hyper:
//! in its place stands a request of the method [`REFUSED`], so that the answer takes its turn behind earlier ones, and
//! nothing is read after it.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::PollSemaphore;

use super::connections::{FREE_BYTES, Place};
use super::head::{Framing, HeadScanner, Progress, Refusal};

/// The method of the request that stands for a refused one.
pub(super) const REFUSED: &str = "REFUSED";
const REFUSED_HEAD: &[u8] = b"REFUSED / HTTP/1.1\r\nhost: refused\r\n\r\n";

/// How long a connection may be silent between requests. Longer than nginx keeps its own end open (15 s in our example), so that
/// nginx never sends a request into a connection that we are closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a head may take from its first byte, and a new connection until its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take no bytes of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, and for how many bytes, a request that was answered before its end is still read: closing at once would make the
/// client's system throw our answer away.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: u64 = 256 * 1024;

/// How many bytes are read at a time.
const READ_BYTES: usize = 4096;

/// How long a connection is still waited for when the service stops: a used one for a request that may be on its way, a new one
/// for its first byte, and any for the rest of a head.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_millis(20);
const DRAIN_NEW_TIMEOUT: Duration = Duration::from_millis(250);
const DRAIN_HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// What the guard and the service of one connection tell each other.
#[derive(Default)]
pub(super) struct Control {
    refusal: OnceLock<Refusal>,
    leaving: AtomicBool,
    draining: AtomicBool,
}

impl Control {
    /// Why the request of the method [`REFUSED`] was refused, if there is one.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.get().copied()
    }

    /// The next answer is the last one; a client that is silent now keeps the usual time for its last request.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Lets no further request in; whoever calls this polls the connection once more.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_on_last_request(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) || self.is_draining()
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

pub(super) struct GuardedIo {
    stream: TcpStream,
    /// Received, and not yet handed to hyper.
    received: BytesMut,
    /// How much of the present request hyper may still have.
    passing: Passing,
    scanner: HeadScanner,
    control: Arc<Control>,
    place: Arc<Place>,
    /// How many bytes of the present request have been received.
    request_bytes: usize,
    /// The permit to hold more than is free, and the way to it.
    large: Option<OwnedSemaphorePermit>,
    wish: Option<PollSemaphore>,
    waiting: Waiting,
    /// A request was let in since the task last gave way to other tasks.
    had_turn: bool,
    /// Since when no further requests are let in.
    draining_since: Option<Instant>,
    is_new: bool,
    write_deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Nothing more is read: the client has finished, or was refused.
    ended: bool,
    shutdown: Option<Shutdown>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Passing {
    Bytes(u64),
    /// A chunked body: only hyper knows where it ends, so the connection ends with it.
    Everything,
}

/// What the client is late with.
enum Waiting {
    Nothing,
    FirstByte(Instant),
    Head(Instant),
}

struct Shutdown {
    deadline: Instant,
    discarded: u64,
}

impl GuardedIo {
    pub(super) fn new(stream: TcpStream, place: Arc<Place>) -> Self {
        Self {
            stream,
            received: BytesMut::new(),
            passing: Passing::Bytes(0),
            scanner: HeadScanner::default(),
            control: Arc::default(),
            place,
            request_bytes: 0,
            large: None,
            wish: None,
            waiting: Waiting::FirstByte(Instant::now() + HEAD_TIMEOUT),
            had_turn: false,
            draining_since: None,
            is_new: true,
            write_deadline: None,
            timer: None,
            ended: false,
            shutdown: None,
        }
    }

    pub(super) fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    fn refuse(&mut self, refusal: Refusal) {
        // Set once: nothing is read after it.
        let _ = self.control.refusal.set(refusal);
        self.received.clear();
        self.received.extend_from_slice(REFUSED_HEAD);
        self.passing = Passing::Bytes(REFUSED_HEAD.len() as u64);
        self.ended = true;
    }

    /// Hands received bytes of the present request to hyper; whether there were any.
    fn hand_over(&mut self, to: &mut ReadBufCursor<'_>) -> bool {
        let most = self.received.len().min(to.remaining());
        let bytes = match &mut self.passing {
            Passing::Everything => most,
            Passing::Bytes(left) => {
                let bytes = usize::try_from(*left).unwrap_or(usize::MAX).min(most);
                *left -= bytes as u64;
                if *left == 0 && bytes > 0 {
                    self.place.is_at_work();
                }
                bytes
            }
        };
        to.put_slice(&self.received[..bytes]);
        self.received.advance(bytes);
        if self.received.is_empty() {
            // A buffer that had to grow, or that waits for a slow client, is not kept for the next request.
            self.received = BytesMut::new();
        }
        bytes > 0
    }

    /// Waits until this connection may hold more than [`FREE_BYTES`].
    fn poll_large(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.large.is_some() {
            return Poll::Ready(());
        }
        let wish = self.wish.get_or_insert_with(|| PollSemaphore::new(self.place.grow()));
        self.large = ready!(wish.poll_acquire(cx));
        self.wish = None;
        Poll::Ready(())
    }

    fn be_small(&mut self) {
        if self.large.take().is_some() {
            self.place.shrink();
        }
    }

    /// Looks for the next request in what was received; whether one may be handed over now.
    fn next_request(&mut self) -> bool {
        // Blank lines before a request are allowed, and some clients send one behind a body.
        while self.scanner.is_fresh() && self.received.starts_with(b"\r\n") {
            self.received.advance(2);
        }
        match self.scanner.scan(&self.received) {
            Progress::Partial => false,
            Progress::Complete { bytes, framing } => {
                self.scanner = HeadScanner::default();
                self.waiting = Waiting::Nothing;
                self.is_new = false;
                self.had_turn = true;
                self.passing = match framing {
                    Framing::Length(body) => Passing::Bytes(bytes as u64 + body),
                    Framing::Chunked => Passing::Everything,
                };
                true
            }
            Progress::Refused(refusal) => {
                self.refuse(refusal);
                true
            }
        }
    }

    /// Reads from the socket; 0 bytes mean that the client has finished.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // A connection that waits has no buffer.
        ready!(self.stream.poll_read_ready(cx))?;
        self.received.reserve(READ_BYTES);
        // Unlike `try_read_buf`, it knows by a short read that there is no more, and does not ask the system once again.
        let filled = poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.received);
        if filled.is_pending() && self.received.is_empty() {
            self.received = BytesMut::new();
        }
        self.had_turn &= filled.is_ready();
        filled
    }

    /// Waits for the first request, or for the end. Until then hyper would only have a buffer, and there may be many who
    /// never say anything.
    pub(super) async fn first_request(&mut self) {
        let come = poll_fn(|cx| {
            while self.passing == Passing::Bytes(0) && !self.ended {
                if ready!(self.poll_more(cx)).is_err() {
                    self.ended = true;
                }
            }
            Poll::Ready(())
        });
        come.await;
    }

    /// Takes a step towards the next bytes that may be handed over.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.passing == Passing::Bytes(0) {
            self.request_bytes = self.received.len();
            if !self.received.is_empty() {
                if std::mem::take(&mut self.had_turn) {
                    // One request a turn: hyper would serve 16 of a pipeline, and each other connection would wait for them.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if self.next_request() {
                    return Poll::Ready(Ok(()));
                }
            }
        }
        if self.request_bytes < FREE_BYTES {
            self.be_small();
        } else if self.poll_large(cx).is_pending() {
            return self.poll_late(cx).map(Ok);
        }
        match self.poll_fill(cx) {
            Poll::Ready(Ok(0)) => self.ended = true,
            Poll::Ready(Ok(bytes)) => self.request_bytes += bytes,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => ready!(self.poll_late(cx)),
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing came: is the client late? Ready where something was done about it.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.passing != Passing::Bytes(0) {
            // A body: whoever reads it has a time limit of its own.
            return Poll::Pending;
        }
        let deadline = match (&self.waiting, self.received.is_empty()) {
            (Waiting::FirstByte(deadline), true) | (Waiting::Head(deadline), false) => *deadline,
            (_, true) => {
                let deadline = Instant::now() + IDLE_TIMEOUT;
                self.waiting = Waiting::FirstByte(deadline);
                deadline
            }
            (_, false) => {
                let deadline = Instant::now() + HEAD_TIMEOUT;
                self.waiting = Waiting::Head(deadline);
                deadline
            }
        };
        let deadline = deadline.min(self.drain_deadline().unwrap_or(deadline));
        ready!(self.poll_deadline(cx, deadline));
        if self.received.is_empty() {
            self.ended = true;
        } else {
            self.refuse(Refusal::TooSlow);
        }
        Poll::Ready(())
    }

    /// When a connection without a whole request is given up because the service stops.
    fn drain_deadline(&mut self) -> Option<Instant> {
        if !self.control.is_draining() {
            return None;
        }
        let since = *self.draining_since.get_or_insert_with(Instant::now);
        let patience = match (self.received.is_empty(), self.is_new) {
            (false, _) => DRAIN_HEAD_TIMEOUT,
            (true, true) => DRAIN_NEW_TIMEOUT,
            (true, false) => DRAIN_IDLE_TIMEOUT,
        };
        Some(since + patience)
    }

    /// One timer serves all deadlines of a connection. It is only ever set back when it fires too early: most deadlines are
    /// moved long before they come, and moving a timer costs more than looking at the clock.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Reads and forgets what the client still sends, until it stops, or for as long as that is reasonable.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.received.clear();
            let filled = self.poll_fill(cx);
            let Some(shutdown) = &mut self.shutdown else { return Poll::Ready(()) };
            match filled {
                Poll::Ready(Ok(bytes)) if bytes > 0 && shutdown.discarded < LINGER_BYTES_MAX => {
                    shutdown.discarded += bytes as u64;
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    let deadline = shutdown.deadline;
                    return self.poll_deadline(cx, deadline);
                }
            }
        }
    }

    /// What became of writing so many bytes.
    fn poll_written(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        if bytes > FREE_BYTES && self.large.is_none() {
            // Who takes no answers does not wait for room, either.
            let Ok(large) = self.place.grow().try_acquire_owned() else {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            };
            self.large = Some(large);
        }
        let deadline = *self.write_deadline.get_or_insert_with(|| Instant::now() + WRITE_TIMEOUT);
        ready!(self.poll_deadline(cx, deadline));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for GuardedIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut to: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.hand_over(&mut to) || this.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_more(cx))?;
        }
    }
}

/// Not vectored: an answer is small, and its head and body go out as one piece.
impl Write for GuardedIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.poll_written(cx, bytes.len(), written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.shutdown.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.shutdown = Some(Shutdown { deadline: Instant::now() + LINGER_TIMEOUT, discarded: 0 });
        }
        let answered_early = this.control.refusal().is_some() || this.passing != Passing::Bytes(0);
        if answered_early {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write as _;
    use std::net::Ipv4Addr;
    use std::sync::atomic::AtomicUsize;

    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    use super::super::connections::Connections;
    use super::*;

    /// How many requests the service has answered, of whomever, when this one is the next.
    async fn serve(stream: TcpStream, place: Place, answered: Arc<AtomicUsize>) -> Vec<usize> {
        let turns = std::sync::Mutex::new(Vec::new());
        let service = service_fn(|_| {
            turns.lock().unwrap().push(answered.fetch_add(1, Ordering::Relaxed));
            async { Ok::<_, Infallible>(hyper::Response::new(Full::<Bytes>::default())) }
        });
        let io = GuardedIo::new(stream, Arc::new(place));
        hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(io, service).await.unwrap();
        turns.into_inner().unwrap()
    }

    #[tokio::test]
    async fn connections_take_turns_however_many_requests_one_sends_at_once() {
        const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        const PIPELINED: usize = 200;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let connections = Connections::new();
        let answered = Arc::<AtomicUsize>::default();
        let mut serving = Vec::new();
        let mut clients = Vec::new();
        for count in [PIPELINED, 1, PIPELINED, 1] {
            let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(&REQUEST.repeat(count)).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            let place = connections.admit(peer.ip(), false).unwrap();
            serving.push(tokio::spawn(serve(stream, place, Arc::clone(&answered))));
            clients.push(client);
        }
        let mut turns = Vec::new();
        for served in serving {
            turns.push(served.await.unwrap());
        }
        assert_eq!(turns.iter().map(Vec::len).collect::<Vec<_>>(), [PIPELINED, 1, PIPELINED, 1]);
        // Each of the four has had its turn before one has its third.
        for single in [&turns[1], &turns[3]] {
            assert!(single[0] < 2 * 4, "{single:?}: {turns:?}");
        }
    }
}
