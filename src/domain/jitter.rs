//! Chance: attempts that failed together shall not be repeated together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Random numbers: the system's, or those of a seed. A clone is the same source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jitter {
    /// None: the system's.
    seeded: Option<Arc<AtomicU64>>,
}

impl Jitter {
    /// Always the same numbers in the same order.
    #[cfg(test)]
    pub(crate) fn of_seed(seed: u64) -> Self {
        Self { seeded: Some(Arc::new(AtomicU64::new(seed))) }
    }

    /// A random number, each as probable as any other.
    pub(crate) fn number(&self) -> u32 {
        let mut random = [0; 4];
        match &self.seeded {
            Some(seed) => random.copy_from_slice(&split_mix(seed)[..4]),
            // Without random numbers all come at the same time, which is no fault.
            None => _ = getrandom::fill(&mut random),
        }
        u32::from_le_bytes(random)
    }
}

/// The next number of the generator splitmix64.
fn split_mix(seed: &AtomicU64) -> [u8; 8] {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut z = seed.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_numbers_and_another_seed_gives_others() {
        let numbers = |seed| {
            let jitter = Jitter::of_seed(seed);
            [jitter.number(), jitter.clone().number(), jitter.number()]
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        assert_ne!(numbers(1)[0], numbers(1)[1]);
    }
}
