//! What a stranger may cost: rates for each client's address, in fixed memory.
//!
//! No callback goes unverified, whoever sends it: a valid one that nobody looked at would be a buyer who paid and got nothing. What is
//! limited is what a callback costs that proved nothing: a row, a record, a question. So nobody is harmed by a forger
//! behind the same address, and no valid callback has to excuse one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// How many failed callbacks of one address are kept and looked into: as many as the table has room for, so that one sender cannot
/// push everybody else's evidence out of it again and again, and then a few, so that it stays seen.
const OF_ONE_CLIENT: Rate = Rate { burst: 10_000, interval: Duration::from_millis(100) };
/// How many of all addresses together: this is what bounds what is written when a forger has many.
const OF_ALL: Rate = Rate { burst: 20_000, interval: Duration::from_millis(5) };
/// How many clients are remembered. The rest share one bucket until some of these have been forgotten.
const CLIENTS_MAX: usize = 4096;
/// How often it is looked for clients that can be forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// So many at once, and then one every `interval`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) burst: u32,
    pub(super) interval: Duration,
}

impl Rate {
    /// Takes one from a bucket that is full again at `full_at`: when it will be full after that. `None` where it is empty.
    fn take(self, full_at: Duration, now: Duration) -> Option<Duration> {
        let full_at = full_at.max(now) + self.interval;
        (full_at <= now + self.interval * self.burst).then_some(full_at)
    }
}

/// A token bucket. It knows when it will be full again, and nothing else.
pub(super) struct Bucket {
    rate: Rate,
    started: Instant,
    /// In microseconds after `started`.
    full_at: AtomicU64,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, started: Instant::now(), full_at: AtomicU64::new(0) }
    }

    pub(super) fn take(&self) -> bool {
        self.take_at(self.started.elapsed())
    }

    fn take_at(&self, now: Duration) -> bool {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let next = |full_at| self.rate.take(Duration::from_micros(full_at), now).map(micros);
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// Who has sent how many callbacks lately that proved nothing.
pub(super) struct Forgers {
    started: Instant,
    all: Bucket,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// When the bucket of each is full again, and they can be forgotten.
    clients: HashMap<IpAddr, Duration>,
    /// The bucket of all that there was no room for.
    others: Duration,
    swept_at: Duration,
}

impl Default for Forgers {
    fn default() -> Self {
        Self { started: Instant::now(), all: Bucket::new(OF_ALL), known: Mutex::default() }
    }
}

impl Forgers {
    /// A callback of this client's has failed: whether it may cost more than the answer.
    pub(super) fn may_cost_more(&self, client: IpAddr) -> bool {
        let now = self.started.elapsed();
        let is_within = lock(&self.known).take(network(client), now);
        is_within && self.all.take()
    }
}

impl Known {
    fn take(&mut self, client: IpAddr, now: Duration) -> bool {
        let has_room = self.clients.len() < CLIENTS_MAX || self.clients.contains_key(&client) || self.sweep(now);
        let bucket = if has_room { self.clients.entry(client).or_default() } else { &mut self.others };
        let taken = OF_ONE_CLIENT.take(*bucket, now);
        *bucket = taken.unwrap_or(*bucket);
        taken.is_some()
    }

    /// Forgets whose buckets are full; whether there is room then.
    fn sweep(&mut self, now: Duration) -> bool {
        if now < self.swept_at + SWEEP_INTERVAL {
            return false;
        }
        self.swept_at = now;
        self.clients.retain(|_, full_at| *full_at > now);
        self.clients.len() < CLIENTS_MAX
    }
}

/// Whom an address stands for: whoever has one IPv6 address usually has the whole /64.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn taken(count: usize, take: impl FnMut(usize) -> bool) -> usize {
        (0..count).map(take).filter(|taken| *taken).count()
    }

    #[test]
    fn a_bucket_has_its_burst_and_fills_up_again() {
        let bucket = Bucket::new(Rate { burst: 50, interval: 5 * S });
        assert_eq!(taken(1000, |_| bucket.take_at(7 * S)), 50);
        assert_eq!(taken(1000, |_| bucket.take_at(11 * S)), 0);
        assert_eq!(taken(1000, |_| bucket.take_at(12 * S)), 1);
        assert_eq!(taken(1000, |_| bucket.take_at(12 * S)), 0);
        assert_eq!(taken(1000, |_| bucket.take_at(112 * S)), 20);
        assert_eq!(taken(1000, |_| bucket.take_at(10_000 * S)), 50, "and never more");
    }

    #[test]
    fn each_client_has_a_bucket_of_its_own() {
        let mut known = Known::default();
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert_eq!(taken(30_000, |_| known.take(one, S)), 10_000);
        assert_eq!(taken(30_000, |_| known.take(other, S)), 10_000);
        assert_eq!(taken(30_000, |_| known.take(one, 11 * S)), 100);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        for (address, expected) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
            ("2001:db8:1:3::", "2001:db8:1:3::"),
        ] {
            let parse = |address: &str| address.parse::<IpAddr>().unwrap();
            assert_eq!(network(parse(address)), parse(expected), "{address}");
        }
    }

    #[test]
    fn any_number_of_clients_takes_the_same_memory() {
        let mut known = Known::default();
        let client = |number: usize| Ipv4Addr::from(u32::try_from(number).unwrap()).into();
        let within = taken(50_000, |number| known.take(client(number), S));
        assert_eq!(within, CLIENTS_MAX + 10_000, "the rest shares a bucket");
        assert_eq!(known.clients.len(), CLIENTS_MAX);
        // A second later each of them has made up for what it did.
        assert!(known.take(client(60_000), 3 * S));
        assert_eq!(known.clients.len(), 1);
    }

    #[test]
    fn many_clients_together_have_a_limit_too() {
        let forgers = Forgers::default();
        let client = |number: usize| Ipv4Addr::from(u32::try_from(number).unwrap()).into();
        let kept = taken(50_000, |number| forgers.may_cost_more(client(number % 1000)));
        assert!((20_000..25_000).contains(&kept), "{kept}");
    }
}
