//! Connections: how many there are, how long they last, and how they end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rust_i18n::t;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Api;
use super::listener::{Listener, Listening, Stream};

/// How many connections are open at the same time; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 256;
/// How long a head may take, and how long a connection may be silent.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a head may be, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long a connection may be used: one whose client takes no answers has an end, too.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(10);
/// How long a silent connection is kept at the end: a request may be on its way.
const FAREWELL: Duration = Duration::from_millis(250);
/// How long accepting pauses when the system has no descriptors or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Listening {
    /// Serves until `stop`, then lets what is under way finish for at most `drain`.
    pub(crate) async fn serve(self, api: Arc<Api>, stop: CancellationToken, drain: impl Fn() -> Duration) {
        let Self { listener, file } = self;
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // Of this task: where it is dropped, nothing of it goes on.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                (stream, permit) = accept(&listener, &permits) => {
                    welcome(&mut connections, stream, permit, &api, &stop);
                }
            }
        }
        // Who looks for us from now on finds another process, or nobody; who has connected is served.
        drop(file);
        for stream in listener.into_backlog() {
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { break };
            welcome(&mut connections, stream, permit, &api, &stop);
        }
        let finished = async { while connections.join_next().await.is_some() {} };
        // What is cut off has to be asked again, with the same key.
        let _ = timeout(drain(), finished).await;
    }
}

async fn accept(listener: &Listener, permits: &Arc<Semaphore>) -> (Stream, OwnedSemaphorePermit) {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok(stream) => return (stream, permit),
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    log::error!("{}", t!("log.accept_failed", error = error));
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome(
    connections: &mut JoinSet<()>,
    stream: Stream,
    permit: OwnedSemaphorePermit,
    api: &Arc<Api>,
    stop: &CancellationToken,
) {
    let (api, stop) = (Arc::clone(api), stop.clone());
    connections.spawn(async move {
        match stream {
            Stream::Tcp(stream) => {
                // Answers are one small packet each: waiting to fill it helps nobody.
                let _ = stream.set_nodelay(true);
                serve(stream, &api, &stop).await;
            }
            Stream::Unix(stream) => serve(stream, &api, &stop).await,
        }
        drop(permit);
    });
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, api: &Api, stop: &CancellationToken) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let mut response: Response<_> = api.answer(request).await;
        if stop.is_cancelled() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
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
