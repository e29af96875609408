//! How long to wait before another attempt.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::domain::jitter::Jitter;

/// How much longer or shorter a pause may become, in percent of it.
const JITTER_PERCENT: RangeInclusive<u32> = 80..=120;

/// Pauses that double from one attempt to the next, up to a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// The pause after the first attempt.
    pub(crate) first: Duration,
    /// The longest pause.
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The pause after so many attempts, a little longer or shorter at random.
    pub(crate) fn after(self, attempts: u32, jitter: &Jitter) -> Duration {
        jittered(self.exactly_after(attempts), JITTER_PERCENT, jitter)
    }

    /// The pause after so many attempts.
    pub(crate) fn exactly_after(self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(30);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// A random time within these percentages of `time`: attempts that failed together shall not come back together.
pub(crate) fn jittered(time: Duration, percent: RangeInclusive<u32>, jitter: &Jitter) -> Duration {
    between(time, percent, jitter.number())
}

fn between(time: Duration, percent: RangeInclusive<u32>, random: u32) -> Duration {
    let [lowest, highest, random, all] = [*percent.start(), *percent.end(), random, u32::MAX].map(u128::from);
    let share = lowest * all + (highest - lowest) * random;
    Duration::from_nanos(u64::try_from(time.as_nanos() * share / (100 * all)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_mins(5) };
        for (attempts, shortest_s, longest_s) in [
            (0, 0.8, 1.2),
            (1, 0.8, 1.2),
            (2, 1.6, 2.4),
            (3, 3.2, 4.8),
            (9, 204.8, 307.2),
            (10, 240.0, 360.0),
            (u32::MAX, 240.0, 360.0),
        ] {
            let with_jitter = |random| between(backoff.exactly_after(attempts), JITTER_PERCENT, random);
            assert_eq!(with_jitter(0), Duration::from_secs_f64(shortest_s), "{attempts}");
            assert_eq!(with_jitter(u32::MAX), Duration::from_secs_f64(longest_s), "{attempts}");
            let pause = backoff.after(attempts, &Jitter::default()).as_secs_f64();
            assert!((shortest_s..=longest_s).contains(&pause), "{attempts}: {pause}");
        }
    }
}
