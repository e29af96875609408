//! The accept loop of every listener: it outlives errors, and keeps to a number of connections.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::either::Either;

use super::rate_limit::{Rate, RateLimiter};
use crate::domain::clock::Clock;
use crate::domain::log_text::log_text;

/// How long accepting pauses when the system has no descriptors or memory for another connection.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// How often that is logged.
const FAILURES_LOGGED: Rate = Rate::new(10, Duration::from_mins(1));

/// A listening socket.
pub(crate) trait Listener {
    type Connection;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;

    /// The connections in the system's queue. The listener is closed when the queue is found empty.
    ///
    /// By the system's own call: tokio would first have to hear that there is something, and who connects in the meantime is lost.
    fn into_queue(self) -> impl Iterator<Item = Self::Connection> + Send;
}

impl Listener for TcpListener {
    type Connection = (TcpStream, SocketAddr);

    async fn accept(&self) -> io::Result<Self::Connection> {
        let (stream, peer) = Self::accept(self).await?;
        // Answers are one small packet each: waiting to fill it helps nobody.
        let _ = stream.set_nodelay(true);
        Ok((stream, peer))
    }

    fn into_queue(self) -> impl Iterator<Item = Self::Connection> + Send {
        let listener = self.into_std();
        iter::from_fn(move || {
            let (stream, peer) = listener.as_ref().ok()?.accept().ok()?;
            stream.set_nonblocking(true).ok()?;
            let _ = stream.set_nodelay(true);
            Some((TcpStream::from_std(stream).ok()?, peer))
        })
    }
}

impl Listener for UnixListener {
    type Connection = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }

    fn into_queue(self) -> impl Iterator<Item = UnixStream> + Send {
        let listener = self.into_std();
        iter::from_fn(move || {
            let (stream, _) = listener.as_ref().ok()?.accept().ok()?;
            stream.set_nonblocking(true).ok()?;
            UnixStream::from_std(stream).ok()
        })
    }
}

impl<L: Listener + Sync, R: Listener + Sync> Listener for Either<L, R> {
    type Connection = Either<L::Connection, R::Connection>;

    async fn accept(&self) -> io::Result<Self::Connection> {
        match self {
            Self::Left(left) => left.accept().await.map(Either::Left),
            Self::Right(right) => right.accept().await.map(Either::Right),
        }
    }

    fn into_queue(self) -> impl Iterator<Item = Self::Connection> + Send {
        let (left, right) = match self {
            Self::Left(left) => (Some(left.into_queue().map(Either::Left)), None),
            Self::Right(right) => (None, Some(right.into_queue().map(Either::Right))),
        };
        left.into_iter().flatten().chain(right.into_iter().flatten())
    }
}

/// A connection's right to be open. It is given back when it is dropped.
pub(crate) type Slot = OwnedSemaphorePermit;

/// How many connections may be open at the same time. A clone counts the same connections.
#[derive(Clone)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    max: u32,
}

impl Slots {
    pub(crate) fn new(max: u32) -> Self {
        Self { free: Arc::new(Semaphore::new(max as usize)), max }
    }

    async fn take(&self) -> Slot {
        Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed")
    }

    fn try_take(&self) -> Option<Slot> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.max as usize - self.free.available_permits()
    }

    /// Waits until every connection has ended.
    pub(crate) async fn all_free(&self) {
        let _ = self.free.acquire_many(self.max).await;
    }
}

/// Accepts connections from a listener.
pub(crate) struct Acceptor<L: Listener> {
    listener: L,
    slots: Slots,
    /// Accepted, and waiting for a slot: an [`Acceptor::accept`] that is dropped loses no connection.
    waiting: Option<L::Connection>,
    failures: RateLimiter,
}

impl<L: Listener> Acceptor<L> {
    pub(crate) fn new(listener: L, slots: Slots) -> Self {
        Self { listener, slots, waiting: None, failures: RateLimiter::new(FAILURES_LOGGED, &Clock::system()) }
    }

    /// The next connection, with its slot. While there is no free slot, `when_full` is run again and again, so that it can make room;
    /// [`std::future::pending`] leaves new connections in the system's queue until another one ends.
    pub(crate) async fn accept<F: Future<Output = ()>>(&mut self, when_full: impl Fn() -> F) -> (L::Connection, Slot) {
        if self.waiting.is_none() {
            self.waiting = Some(self.next().await);
        }
        let slot = loop {
            if let Some(slot) = self.slots.try_take() {
                break slot;
            }
            tokio::select! {
                biased;
                slot = self.slots.take() => break slot,
                () = when_full() => {}
            }
        };
        (self.waiting.take().expect("set above"), slot)
    }

    async fn next(&self) -> L::Connection {
        loop {
            match self.listener.accept().await {
                Ok(connection) => return connection,
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if self.failures.take() {
                        log::error!("{}", log_text!("log.accept_failed", error = error));
                    }
                    sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }

    /// The connections that arrived before the end, as far as there are slots: closing a listener resets those in its queue. Where
    /// another process shares the listener, its queue is that process's.
    pub(crate) fn finish(self, is_shared: bool) -> impl Iterator<Item = (L::Connection, Slot)> {
        let Self { listener, slots, waiting, .. } = self;
        let queue = (!is_shared).then(|| listener.into_queue()).into_iter().flatten();
        let arrived = waiting.into_iter().chain(queue).take(slots.max as usize);
        arrived.map_while(move |connection| Some((connection, slots.try_take()?)))
    }
}

/// Errors that a client caused by giving up before it was accepted.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::timeout;

    use super::*;
    use crate::sync::lock;

    /// Gives numbers for connections, and errors in between.
    struct Script(Mutex<Vec<io::Result<u32>>>);

    impl Script {
        fn new(mut steps: Vec<io::Result<u32>>) -> Self {
            steps.reverse();
            Self(Mutex::new(steps))
        }
    }

    impl Listener for Script {
        type Connection = u32;

        async fn accept(&self) -> io::Result<u32> {
            let step = lock(&self.0).pop();
            match step {
                Some(step) => step,
                None => pending().await,
            }
        }

        fn into_queue(self) -> impl Iterator<Item = u32> + Send {
            self.0.into_inner().unwrap().into_iter().rev().map_while(Result::ok)
        }
    }

    #[tokio::test]
    async fn no_error_of_accept_ends_the_loop() {
        let errors = [io::ErrorKind::ConnectionAborted.into(), io::Error::from_raw_os_error(24), io::Error::other("?")];
        let steps = errors.into_iter().map(Err).chain([Ok(1)]).collect();
        let mut acceptor = Acceptor::new(Script::new(steps), Slots::new(1));
        assert_eq!(acceptor.accept(pending).await.0, 1);
    }

    #[tokio::test]
    async fn a_connection_without_a_slot_waits_and_is_not_lost() {
        let slots = Slots::new(1);
        let mut acceptor = Acceptor::new(Script::new((1..=5).map(Ok).collect()), slots.clone());
        let (_, first) = acceptor.accept(pending).await;
        assert_eq!(slots.taken(), 1);
        // The second has been accepted when the wait for its slot is given up.
        assert!(timeout(Duration::ZERO, acceptor.accept(pending)).await.is_err());
        let held = Mutex::new(Some(first));
        let asked = AtomicUsize::new(0);
        let make_room = || async {
            if asked.fetch_add(1, Ordering::Relaxed) == 2 {
                drop(lock(&held).take());
            }
        };
        let (second, slot) = acceptor.accept(make_room).await;
        assert_eq!((second, asked.load(Ordering::Relaxed)), (2, 3));
        drop(slot);
        slots.all_free().await;
        assert_eq!(acceptor.finish(false).map(|(number, _)| number).collect::<Vec<_>>(), [3], "one for each slot");
    }

    #[tokio::test]
    async fn a_shared_queue_is_left_to_the_other_process() {
        let slots = Slots::new(1);
        let mut acceptor = Acceptor::new(Script::new((1..=5).map(Ok).collect()), slots);
        let first = acceptor.accept(pending).await;
        assert!(timeout(Duration::ZERO, acceptor.accept(pending)).await.is_err());
        drop(first);
        assert_eq!(acceptor.finish(true).map(|(number, _)| number).collect::<Vec<_>>(), [2]);
    }

    #[tokio::test]
    async fn what_is_in_the_queue_at_the_end_is_accepted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let tcp = Acceptor::new(Either::<_, UnixListener>::Left(tcp), Slots::new(10));
        let unix = UnixListener::bind(&path).unwrap();
        let unix = Acceptor::new(Either::<TcpListener, _>::Right(unix), Slots::new(10));
        let _clients = [std::net::TcpStream::connect(address).unwrap(), std::net::TcpStream::connect(address).unwrap()];
        let _other_clients = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!((tcp.finish(false).count(), unix.finish(false).count()), (2, 1));
        assert!(std::net::TcpStream::connect(address).is_err(), "closed");
    }
}
