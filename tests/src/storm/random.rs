//! Randomness from a seed: the same seed, the same plan.

use std::time::Duration;

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Between two times, short ones as likely as long ones (each factor of ten alike).
    pub fn lasting(&mut self, least: Duration, most: Duration) -> Duration {
        let part = self.below(10_001) as f64 / 10_000.0;
        let ratio = most.as_secs_f64() / least.as_secs_f64();
        Duration::from_millis((least.as_secs_f64() * ratio.powf(part) * 1000.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_and_times_stay_in_their_bounds() {
        let (mut one, mut two) = (Random::new(7), Random::new(7));
        for _ in 0..1000 {
            let lasting = one.lasting(Duration::from_millis(100), Duration::from_secs(30));
            assert_eq!(lasting, two.lasting(Duration::from_millis(100), Duration::from_secs(30)));
            assert!(lasting >= Duration::from_millis(99) && lasting <= Duration::from_secs(30), "{lasting:?}");
        }
    }
}
