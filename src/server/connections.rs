//! Who may be connected, and who has to go when there is no room.
//!
//! A newcomer is hardly ever refused: whoever has kept us waiting for longest makes room. Honest clients send what they
//! have at once, so it is not one of them, even where a stranger shares their address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::limits::network;

/// How many connections one client may have, other than a trusted proxy.
const PER_CLIENT_MAX: usize = 256;
/// How many bytes of a request, or of answers to be taken, each connection may hold; what is beyond that has to share.
const FREE_BYTES: usize = 4096;
/// How many bytes beyond that all connections together may hold. With the buffers around it, a byte costs about two.
const HELD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// All that are open.
pub(super) struct Connections {
    started: Instant,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    clients: HashMap<Client, Vec<Arc<Stay>>>,
    held_bytes: usize,
}

/// Whose connections are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    /// Many clients, whom only the proxy can tell apart.
    Proxy(IpAddr),
    Network(IpAddr),
}

/// One connection, as long as it may stay.
struct Stay {
    /// Since when we have been waiting for the client, in microseconds after the start; [`AT_WORK`] where it waits for us.
    waiting_since: AtomicU64,
    /// Beyond what is free. Changed only with the lock of [`Open`].
    held_bytes: AtomicUsize,
    dismissed: Notify,
}

const AT_WORK: u64 = u64::MAX;

/// One connection's place among all.
pub(super) struct Place {
    all: Arc<Connections>,
    client: Client,
    stay: Arc<Stay>,
}

impl Connections {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), open: Mutex::default() })
    }

    /// A place for a connection from `peer`; `None` where this client has too many already, all of which wait for us.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr, is_proxy: bool) -> Option<Place> {
        let client = if is_proxy { Client::Proxy(peer) } else { Client::Network(network(peer)) };
        let mut open = self.open();
        let number = open.clients.get(&client).map_or(0, Vec::len);
        if !is_proxy && number >= PER_CLIENT_MAX {
            let (_, longest) = open.longest_of(client, |_| true)?;
            open.dismiss(client, longest);
        }
        let stay = Arc::new(Stay {
            waiting_since: AtomicU64::new(self.now()),
            held_bytes: AtomicUsize::new(0),
            dismissed: Notify::new(),
        });
        open.clients.entry(client).or_default().push(Arc::clone(&stay));
        drop(open);
        Some(Place { all: Arc::clone(self), client, stay })
    }

    /// Has one connection end, if there is one that can: of the client that has the most of them, a proxy's as the last.
    pub(super) fn make_room(&self) {
        let mut open = self.open();
        let networks = open.clients.iter().filter(|(client, _)| matches!(client, Client::Network(_)));
        let most = networks.max_by_key(|(_, stays)| stays.len()).map(|(client, _)| *client);
        let of_most = most.and_then(|client| Some((client, open.longest_of(client, |_| true)?.1)));
        if let Some((client, at)) = of_most.or_else(|| open.longest(|_| true)) {
            open.dismiss(client, at);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(AT_WORK - 1)
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Which of the client's connections has kept us waiting for longest: since when, and its place in the list.
    fn longest_of(&self, client: Client, may_go: impl Fn(&Stay) -> bool) -> Option<(u64, usize)> {
        let stays = self.clients.get(&client)?.iter().enumerate().filter(|(_, stay)| may_go(stay));
        let longest = stays.map(|(at, stay)| (stay.waiting_since.load(Ordering::Relaxed), at)).min();
        longest.filter(|(since, _)| *since != AT_WORK)
    }

    /// Which of all has.
    fn longest(&self, may_go: impl Fn(&Stay) -> bool) -> Option<(Client, usize)> {
        let clients = self.clients.keys().filter_map(|&client| Some((client, self.longest_of(client, &may_go)?)));
        clients.min_by_key(|(_, (since, _))| *since).map(|(client, (_, at))| (client, at))
    }

    /// Tells a connection to end, and forgets it.
    fn dismiss(&mut self, client: Client, at: usize) {
        if let Some(stays) = self.clients.get_mut(&client) {
            let stay = stays.swap_remove(at);
            self.held_bytes -= stay.held_bytes.swap(0, Ordering::Relaxed);
            stay.dismissed.notify_one();
        }
    }

    fn place_of(&self, place: &Place) -> Option<usize> {
        self.clients.get(&place.client)?.iter().position(|stay| Arc::ptr_eq(stay, &place.stay))
    }
}

impl Place {
    /// A whole request is there.
    pub(super) fn is_at_work(&self) {
        self.stay.waiting_since.store(AT_WORK, Ordering::Relaxed);
    }

    /// The answer is there: it is for the client to take it, and to say what it wants next.
    pub(super) fn waits(&self) {
        self.stay.waiting_since.store(self.all.now(), Ordering::Relaxed);
    }

    /// How many bytes of a request and of answers the connection holds now. Where that is too much for all together, the one
    /// that has held some for longest has to go.
    pub(super) fn holds(&self, bytes: usize) {
        let bytes = bytes.saturating_sub(FREE_BYTES);
        if bytes == self.stay.held_bytes.load(Ordering::Relaxed) {
            return;
        }
        let mut open = self.all.open();
        if open.place_of(self).is_none() {
            return;
        }
        let before = self.stay.held_bytes.swap(bytes, Ordering::Relaxed);
        open.held_bytes = open.held_bytes - before + bytes;
        while open.held_bytes > HELD_BYTES_MAX {
            let Some((client, at)) = open.longest(|stay| stay.held_bytes.load(Ordering::Relaxed) > 0) else { return };
            open.dismiss(client, at);
        }
    }

    /// Whether many clients may share the connection.
    pub(super) fn is_of_proxy(&self) -> bool {
        matches!(self.client, Client::Proxy(_))
    }

    /// Waits until the connection has to end.
    pub(super) async fn dismissed(&self) {
        self.stay.dismissed.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.all.open();
        let Some(at) = open.place_of(self) else { return };
        open.dismiss(self.client, at);
        if open.clients.get(&self.client).is_some_and(Vec::is_empty) {
            open.clients.remove(&self.client);
        }
    }
}
