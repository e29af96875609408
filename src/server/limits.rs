//! What a stranger may cost: rates for each client's address, in fixed memory.
//!
//! No callback goes unverified, whoever sends it: a valid one that nobody looked at would be a buyer who paid and got nothing. What is
//! limited is what a callback costs that proved nothing: a row, a record, a question. So nobody is harmed by a forger
//! behind the same address, and no valid callback has to excuse one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::domain::clock::Clock;
use crate::net::rate_limit::{Rate, RateLimiter, TokenBucket};
use crate::sync::lock;

/// How many failed callbacks of one address are kept and looked into: as many as the table has room for, so that one sender cannot
/// push everybody else's evidence out of it again and again, and then a few, so that it stays seen.
const OF_ONE_CLIENT: Rate = Rate::new(10_000, Duration::from_millis(100));
/// How many of all addresses together: this is what bounds what is written when a forger has many.
const OF_ALL: Rate = Rate::new(20_000, Duration::from_millis(5));
/// How many clients are remembered. The rest share one bucket until some of these have been forgotten.
const CLIENTS_MAX: usize = 4096;
/// How often it is looked for clients that can be forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Who has sent how many callbacks lately that proved nothing.
pub(super) struct Forgers {
    started: Instant,
    all: RateLimiter,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Whoever has a full bucket can be forgotten.
    clients: HashMap<IpAddr, TokenBucket>,
    /// The bucket of all that there was no room for.
    others: TokenBucket,
    swept_at: Duration,
}

impl Default for Forgers {
    fn default() -> Self {
        Self { started: Instant::now(), all: RateLimiter::new(OF_ALL, &Clock::system()), known: Mutex::default() }
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
        bucket.take(OF_ONE_CLIENT, now)
    }

    /// Forgets whose buckets are full; whether there is room then.
    fn sweep(&mut self, now: Duration) -> bool {
        if now < self.swept_at + SWEEP_INTERVAL {
            return false;
        }
        self.swept_at = now;
        self.clients.retain(|_, bucket| !bucket.is_full(now));
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
    use crate::net::rate_limit::tests::taken;

    const S: Duration = Duration::from_secs(1);

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
