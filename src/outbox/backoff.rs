//! How long to wait before another attempt.

use std::time::Duration;

use crate::domain::jitter::Jitter;

/// Pauses that double from one attempt to the next, up to a limit, each a little longer or shorter at random: what failed together
/// shall not come back together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// The pause after the first attempt.
    pub(crate) first: Duration,
    /// The longest pause.
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The pause after so many attempts.
    pub(crate) fn after(self, attempts: u32, jitter: &Jitter) -> Duration {
        self.with_jitter(attempts, jitter.number().to_le_bytes()[0])
    }

    fn with_jitter(self, attempts: u32, random: u8) -> Duration {
        let doublings = attempts.saturating_sub(1).min(30);
        let pause = self.first.saturating_mul(1 << doublings).min(self.longest);
        // From 80 % to 120 %.
        pause * (400 + u32::from(random) * 200 / 255) / 500
    }
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
            assert_eq!(backoff.with_jitter(attempts, 0), Duration::from_secs_f64(shortest_s), "{attempts}");
            assert_eq!(backoff.with_jitter(attempts, 255), Duration::from_secs_f64(longest_s), "{attempts}");
            let pause = backoff.after(attempts, &Jitter::default()).as_secs_f64();
            assert!((shortest_s..=longest_s).contains(&pause), "{attempts}: {pause}");
        }
    }
}
