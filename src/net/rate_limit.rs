//! Token buckets: how often something may happen.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::clock::Clock;
use crate::sync::lock;

/// So many tokens at once, and then one every `interval`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    interval: Duration,
    /// How long an empty bucket takes to be full.
    filling_time: Duration,
}

impl Rate {
    pub(crate) const fn new(burst: u32, interval: Duration) -> Self {
        Self { interval, filling_time: interval.saturating_mul(burst) }
    }

    /// So many a minute; the bucket holds the tokens of `filling_time`, and one at least.
    pub(crate) fn per_minute(count: u32, filling_time: Duration) -> Self {
        let interval = Duration::from_mins(1) / count.max(1);
        Self { interval, filling_time: filling_time.max(interval) }
    }
}

/// A token bucket as the generic cell rate algorithm has it: the time when it is full again, and nothing else.
///
/// Times are measured from whatever origin its holder chooses. A new bucket is full.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TokenBucket {
    full_at: Duration,
}

impl TokenBucket {
    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Duration) -> bool {
        let full_in = self.full_in(rate, now) + rate.interval;
        let taken = full_in <= rate.filling_time;
        if taken {
            self.full_at = now + full_in;
        }
        taken
    }

    /// How many tokens there are.
    pub(crate) fn tokens(&mut self, rate: Rate, now: Duration) -> usize {
        let filled = rate.filling_time.saturating_sub(self.full_in(rate, now));
        usize::try_from(filled.as_nanos() / rate.interval.as_nanos()).unwrap_or(usize::MAX)
    }

    /// Takes a token that is there now or will be; when.
    fn reserve(&mut self, rate: Rate, now: Duration) -> Duration {
        self.full_at = self.full_at.max(now) + rate.interval;
        self.full_at.saturating_sub(rate.filling_time).max(now)
    }

    pub(crate) fn is_full(self, now: Duration) -> bool {
        self.full_at <= now
    }

    /// How long it is until the bucket is full: where the rate has changed since, not longer than from empty.
    fn full_in(&mut self, rate: Rate, now: Duration) -> Duration {
        self.full_at = self.full_at.min(now + rate.filling_time);
        self.full_at.saturating_sub(now)
    }
}

/// A token bucket that any number of tasks share.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    rate: Rate,
    clock: Clock,
    started: Instant,
    bucket: Mutex<TokenBucket>,
}

impl RateLimiter {
    pub(crate) fn new(rate: Rate, clock: &Clock) -> Self {
        Self { rate, clock: clock.clone(), started: clock.instant(), bucket: Mutex::default() }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&self) -> bool {
        lock(&self.bucket).take(self.rate, self.running())
    }

    fn running(&self) -> Duration {
        self.clock.instant().duration_since(self.started)
    }

    /// Takes a token that is there now or will be; when.
    pub(crate) fn reserve(&self) -> Instant {
        self.started + lock(&self.bucket).reserve(self.rate, self.running())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// How many of so many attempts get a token.
    pub(crate) fn taken(count: usize, take: impl FnMut(usize) -> bool) -> usize {
        (0..count).map(take).filter(|taken| *taken).count()
    }

    #[test]
    fn a_bucket_has_its_burst_and_fills_up_again() {
        let rate = Rate::new(50, 5 * S);
        let mut bucket = TokenBucket::default();
        assert_eq!(taken(1000, |_| bucket.take(rate, 7 * S)), 50);
        assert_eq!(taken(1000, |_| bucket.take(rate, 11 * S)), 0);
        assert_eq!(taken(1000, |_| bucket.take(rate, 12 * S)), 1);
        assert_eq!(taken(1000, |_| bucket.take(rate, 12 * S)), 0);
        assert_eq!(taken(1000, |_| bucket.take(rate, 112 * S)), 20);
        assert_eq!(taken(1000, |_| bucket.take(rate, 10_000 * S)), 50, "and never more");
    }

    #[test]
    fn reserved_tokens_are_an_interval_apart_once_the_burst_is_used_up() {
        let rate = Rate::new(2, 5 * S);
        let mut bucket = TokenBucket::default();
        let reserved = [7, 7, 7, 8, 100].map(|now| bucket.reserve(rate, now * S));
        assert_eq!(reserved, [7, 7, 12, 17, 100].map(|at| at * S));
    }

    #[test]
    fn a_rate_of_the_minute_fills_its_bucket_in_that_time() {
        for (count, tokens) in [(600, 100), (60, 10), (20, 3), (6, 1), (1, 1), (0, 1)] {
            let rate = Rate::per_minute(count, 10 * S);
            let mut bucket = TokenBucket::default();
            assert_eq!(bucket.tokens(rate, S), tokens, "{count}");
            assert_eq!(taken(1000, |_| bucket.take(rate, S)), tokens, "{count}");
            assert_eq!(bucket.tokens(rate, S), 0, "{count}");
        }
    }

    #[test]
    fn an_empty_bucket_fills_at_the_rate_that_is_in_force() {
        let (slow, quick) = (Rate::per_minute(1, 10 * S), Rate::per_minute(600, 10 * S));
        let mut bucket = TokenBucket::default();
        assert!(bucket.take(slow, S) && !bucket.take(slow, S));
        assert!(!bucket.take(quick, S));
        assert_eq!(taken(1000, |_| bucket.take(quick, 2 * S)), 10);
    }
}
