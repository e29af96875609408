//! Who may be connected, and who has to go when there is no room.
//!
//! A newcomer is hardly ever refused: whoever has kept us waiting for longest makes room. Honest clients send what they
//! have at once, so it is not one of them, even where a stranger shares their address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::{Notify, Semaphore};

use super::limits::network;

use crate::sync::lock;

/// How many connections one client may have, other than a trusted proxy.
const PER_CLIENT_MAX: usize = 256;
/// How many bytes of a request, or of answers that nobody takes, each connection may hold; an honest one has no more.
pub(super) const FREE_BYTES: usize = 4096;
/// How many connections may hold more at the same time, up to the limits of head and body. Each takes some 40 KiB.
const LARGE_MAX: usize = 256;

/// How long every connection may be silent, in microseconds, however many others there are: its request may be on its way.
const PATIENCE_US: u64 = 250_000;

/// All that are open.
pub(super) struct Connections {
    started: Instant,
    open: Mutex<Open>,
    large: Arc<Semaphore>,
}

#[derive(Default)]
struct Open(HashMap<Client, Vec<Arc<Stay>>>);

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
    /// It holds more than is free, or wants to.
    is_large: AtomicBool,
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
        Arc::new(Self { started: Instant::now(), open: Mutex::default(), large: Arc::new(Semaphore::new(LARGE_MAX)) })
    }

    /// A place for a connection from `peer`; `None` where this client has too many already, all of which wait for us.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr, is_proxy: bool) -> Option<Place> {
        let client = if is_proxy { Client::Proxy(peer) } else { Client::Network(network(peer)) };
        let mut open = self.open();
        let number = open.0.get(&client).map_or(0, Vec::len);
        if !is_proxy && number >= PER_CLIENT_MAX {
            let (_, longest) = open.longest_of(client, |_| true)?;
            open.dismiss(client, longest);
        }
        let stay = Arc::new(Stay {
            waiting_since: AtomicU64::new(self.now()),
            is_large: AtomicBool::new(false),
            dismissed: Notify::new(),
        });
        open.0.entry(client).or_default().push(Arc::clone(&stay));
        drop(open);
        Some(Place { all: Arc::clone(self), client, stay })
    }

    /// Has one connection end, if there is one that can: of the client that has the most of them, a proxy's as the last.
    pub(super) fn make_room(&self) {
        self.make_room_at(self.now());
    }

    fn make_room_at(&self, now: u64) {
        let mut open = self.open();
        let may_go = |stay: &Stay| stay.waiting_since.load(Ordering::Relaxed) <= now.saturating_sub(PATIENCE_US);
        let networks = open.0.iter().filter(|(client, _)| matches!(client, Client::Network(_)));
        let most = networks.max_by_key(|(_, stays)| stays.len()).map(|(client, _)| *client);
        let of_most = most.and_then(|client| Some((client, open.longest_of(client, may_go)?.1)));
        if let Some((client, at)) = of_most.or_else(|| open.longest(may_go)) {
            open.dismiss(client, at);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(AT_WORK - 1)
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

impl Open {
    /// Which of the client's connections has kept us waiting for longest: since when, and its place in the list.
    fn longest_of(&self, client: Client, may_go: impl Fn(&Stay) -> bool) -> Option<(u64, usize)> {
        let stays = self.0.get(&client)?.iter().enumerate().filter(|(_, stay)| may_go(stay));
        let longest = stays.map(|(at, stay)| (stay.waiting_since.load(Ordering::Relaxed), at)).min();
        longest.filter(|(since, _)| *since != AT_WORK)
    }

    /// Which of all has.
    fn longest(&self, may_go: impl Fn(&Stay) -> bool) -> Option<(Client, usize)> {
        let clients = self.0.keys().filter_map(|&client| Some((client, self.longest_of(client, &may_go)?)));
        clients.min_by_key(|(_, (since, _))| *since).map(|(client, (_, at))| (client, at))
    }

    /// Tells a connection to end, and forgets it.
    fn dismiss(&mut self, client: Client, at: usize) {
        if let Some(stays) = self.0.get_mut(&client) {
            stays.swap_remove(at).dismissed.notify_one();
        }
    }

    fn place_of(&self, place: &Place) -> Option<usize> {
        self.0.get(&place.client)?.iter().position(|stay| Arc::ptr_eq(stay, &place.stay))
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

    /// The connection is to hold more than [`FREE_BYTES`], for which it needs one of these. Where there is none, whoever has kept
    /// us waiting for longest with as much has to go.
    pub(super) fn grow(&self) -> Arc<Semaphore> {
        if self.all.large.available_permits() == 0 {
            let mut open = self.all.open();
            if let Some((client, at)) = open.longest(|stay| stay.is_large.load(Ordering::Relaxed)) {
                open.dismiss(client, at);
            }
        }
        self.stay.is_large.store(true, Ordering::Relaxed);
        Arc::clone(&self.all.large)
    }

    /// The connection has given it back.
    pub(super) fn shrink(&self) {
        self.stay.is_large.store(false, Ordering::Relaxed);
    }

    /// Waits until the connection has to end.
    pub(super) async fn dismissed(&self) {
        self.stay.dismissed.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.all.open();
        if let Some(at) = open.place_of(self) {
            open.dismiss(self.client, at);
        }
        if open.0.get(&self.client).is_some_and(Vec::is_empty) {
            open.0.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: &str = "10.0.0.1";

    fn admit(all: &Arc<Connections>, peer: &str) -> Option<Place> {
        all.admit(peer.parse().unwrap(), false)
    }

    /// Gives the place a time of its own: the clock may stand still between two.
    fn since(place: Place, at: u64) -> Place {
        place.stay.waiting_since.store(at, Ordering::Relaxed);
        place
    }

    fn is_open(all: &Connections, place: &Place) -> bool {
        all.open().place_of(place).is_some()
    }

    #[test]
    fn a_client_keeps_its_newest_connections_and_those_that_are_answered() {
        let all = Connections::new();
        let number = |n: usize| u64::try_from(n).unwrap();
        let places: Vec<_> = (0..PER_CLIENT_MAX).map(|n| since(admit(&all, STRANGER).unwrap(), number(n))).collect();
        places[0].is_at_work();
        let newest = admit(&all, STRANGER).unwrap();
        assert!(is_open(&all, &places[0]) && !is_open(&all, &places[1]) && is_open(&all, &newest));
        assert!(admit(&all, "10.0.0.2").is_some_and(|other| is_open(&all, &other)), "others have their own");
        places.iter().chain([&newest]).for_each(Place::is_at_work);
        assert!(admit(&all, STRANGER).is_none(), "all wait for us");
        drop(places);
        assert!(admit(&all, STRANGER).is_some());
        drop(newest);
        assert!(all.open().0.is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn a_proxy_has_as_many_as_its_clients() {
        let all = Connections::new();
        let places: Vec<_> = (0..2000).map(|_| all.admit([127, 0, 0, 1].into(), true).unwrap()).collect();
        assert!(places.iter().all(|place| is_open(&all, place)));
    }

    #[test]
    fn room_is_made_by_who_has_most_and_by_a_proxy_last() {
        let all = Connections::new();
        let proxy = since(all.admit([127, 0, 0, 1].into(), true).unwrap(), 0);
        let single = since(admit(&all, "10.0.0.2").unwrap(), 1);
        let (older, newer) = (since(admit(&all, STRANGER).unwrap(), 2), since(admit(&all, STRANGER).unwrap(), 3));
        all.make_room_at(PATIENCE_US + 2);
        assert!(!is_open(&all, &older) && is_open(&all, &newer) && is_open(&all, &single));
        newer.is_at_work();
        single.is_at_work();
        all.make_room_at(PATIENCE_US + 2);
        assert!(!is_open(&all, &proxy) && is_open(&all, &newer) && is_open(&all, &single));
        all.make_room_at(PATIENCE_US + 2);
        assert!(is_open(&all, &newer) && is_open(&all, &single), "who waits for us never has to go");
        let just_come = since(admit(&all, STRANGER).unwrap(), 3);
        all.make_room_at(PATIENCE_US + 2);
        assert!(is_open(&all, &just_come));
    }

    #[test]
    fn the_large_make_room_for_the_large() {
        let all = Connections::new();
        let small = since(admit(&all, "10.0.0.2").unwrap(), 0);
        let (older, newer) = (since(admit(&all, STRANGER).unwrap(), 1), since(admit(&all, STRANGER).unwrap(), 2));
        let taken = older.grow().try_acquire_many_owned(u32::try_from(LARGE_MAX).unwrap()).unwrap();
        assert!(is_open(&all, &older));
        newer.grow();
        assert!(!is_open(&all, &older) && is_open(&all, &newer) && is_open(&all, &small));
        drop(taken);
        newer.shrink();
        small.grow();
        assert!(is_open(&all, &newer));
    }
}
