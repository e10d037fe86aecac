//! Randomness from one seed: the same seed gives the same run.

use std::cell::Cell;
use std::time::Duration;

/// SplitMix64: small, and good enough to choose faults by.
#[derive(Debug)]
pub struct Random(Cell<u64>);

impl Random {
    /// Begins at a seed.
    pub fn new(seed: u64) -> Random {
        Random(Cell::new(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    /// The next 64 bits.
    pub fn bits(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&self, end: u64) -> u64 {
        self.bits() % end
    }

    /// An index below `end`.
    pub fn index(&self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap_or(0)
    }

    /// True this many times in a thousand.
    pub fn per_mille(&self, times: u64) -> bool {
        self.below(1000) < times
    }

    /// A span between the two, in nanoseconds' steps.
    pub fn between(&self, least: Duration, most: Duration) -> Duration {
        let span = u64::try_from((most - least).as_nanos()).unwrap_or(u64::MAX);
        least + Duration::from_nanos(self.below(span.max(1)))
    }

    /// A span, mostly short: each tenth as likely as the one before it.
    pub fn mostly(&self, short: Duration, most: Duration) -> Duration {
        let most = if self.per_mille(900) { short } else { most };
        self.between(Duration::ZERO, most)
    }
}
