//! Connections: how many there are, how long they last, and how they end.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::listener::Listening;
use crate::net::acceptor::{Acceptor, Slot, Slots};
use crate::net::response::close_after;

/// How many connections are open at the same time; more wait in the system's queue.
const CONNECTIONS_MAX: u32 = 256;
/// How long a head may take, and how long a connection may be silent.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a head may be, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long a connection may be used: one whose client takes no answers has an end, too.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(10);
/// How long a silent connection is kept at the end: a request may be on its way.
const FAREWELL: Duration = Duration::from_millis(250);

type Connection = Either<(TcpStream, SocketAddr), UnixStream>;

impl Listening {
    /// Serves until `stop`, then lets what is under way finish for at most `drain`.
    pub(crate) async fn serve(self, api: Arc<Api>, stop: CancellationToken, drain: impl Fn() -> Duration) {
        let Self { listener, file } = self;
        let mut acceptor = Acceptor::new(listener, Slots::new(CONNECTIONS_MAX));
        // Of this task: where it is dropped, nothing of it goes on.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = acceptor.accept(pending) => welcome(&mut connections, accepted, &api, &stop),
            }
        }
        // Who looks for us from now on finds another process, or nobody; who has connected is served.
        drop(file);
        for accepted in acceptor.finish(false) {
            welcome(&mut connections, accepted, &api, &stop);
        }
        let finished = async { while connections.join_next().await.is_some() {} };
        // What is cut off has to be asked again, with the same key.
        let _ = timeout(drain(), finished).await;
    }
}

fn welcome(
    connections: &mut JoinSet<()>,
    (connection, slot): (Connection, Slot),
    api: &Arc<Api>,
    stop: &CancellationToken,
) {
    let (api, stop) = (Arc::clone(api), stop.clone());
    connections.spawn(async move {
        match connection {
            Either::Left((stream, _)) => serve(stream, &api, &stop).await,
            Either::Right(stream) => serve(stream, &api, &stop).await,
        }
        drop(slot);
    });
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, api: &Api, stop: &CancellationToken) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let mut response = api.answer(request).await;
        if stop.is_cancelled() {
            close_after(&mut response);
        }
        Ok::<_, Infallible>(response)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            // Who sends a request and closes that end at once still gets the answer.
            .half_close(true)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // How a client ends its connection is its own affair.
        _ = connection.as_mut() => return,
        () = stop.cancelled() => {}
        () = sleep(CONNECTION_LIFETIME) => {}
    }
    if timeout(FAREWELL, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        // Longer than any request may take; at the end of the service there is less, which whoever waits for us sees to.
        let _ = timeout(2 * super::CREATION_TIMEOUT, connection).await;
    }
}
