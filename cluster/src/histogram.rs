//! How long things took, in classes, as monitoring wants them: the extension counts in shared memory, the arbiter in its own.

use std::time::Duration;

/// The classes' upper bounds in seconds; whatever takes longer falls into one more. A renewal of the lease takes a few milliseconds,
/// a switchover some hundred, an election of etcd's some seconds.
pub const BOUNDS_S: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// How many classes there are.
pub const CLASSES: usize = BOUNDS_S.len() + 1;

/// The class that this duration belongs to: an index below [`CLASSES`].
pub fn class_of(took: Duration) -> usize {
    let seconds = took.as_secs_f64();
    BOUNDS_S.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS_S.len())
}

/// Durations that were counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Histogram {
    /// How many fell into each class.
    pub counts: [u64; CLASSES],
    /// Their sum in seconds.
    pub seconds: f64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, took: Duration) {
        self.counts[class_of(took)] += 1;
        self.seconds += took.as_secs_f64();
    }

    /// For each class its upper bound in seconds (infinite for the last) and how many took at most so long.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS_S.into_iter().chain([f64::INFINITY]);
        let sums = self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        bounds.zip(sums.collect::<Vec<_>>())
    }

    /// The inverse of [`Histogram::cumulative`]: from how many took at most so long, in the order of the bounds. None where these are
    /// not as many as there are classes, or fall.
    pub fn of_cumulative(sums: &[u64], seconds: f64) -> Option<Histogram> {
        let mut counts = [0; CLASSES];
        if sums.len() != CLASSES {
            return None;
        }
        let mut before = 0;
        for (count, sum) in counts.iter_mut().zip(sums) {
            *count = sum.checked_sub(before)?;
            before = *sum;
        }
        Some(Histogram { counts, seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_belongs_to_the_first_class_that_holds_it() {
        for (micros, class) in [(0, 0), (1000, 0), (1001, 1), (2500, 1), (500_000, 8), (10_000_000, 11), (10_000_001, 12)] {
            assert_eq!(class_of(Duration::from_micros(micros)), class, "{micros}");
        }
    }

    #[test]
    fn sums_grow_to_the_number_of_all_and_lead_back() {
        let mut histogram = Histogram::default();
        for millis in [1, 3, 3, 700, 60_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let cumulative: Vec<(f64, u64)> = histogram.cumulative().collect();
        assert_eq!((cumulative.len(), cumulative[0], cumulative[2], cumulative[9]), (CLASSES, (0.001, 1), (0.005, 3), (1.0, 4)));
        assert_eq!(cumulative[CLASSES - 1], (f64::INFINITY, 5));
        let sums: Vec<u64> = cumulative.iter().map(|(_, sum)| *sum).collect();
        assert_eq!(Histogram::of_cumulative(&sums, histogram.seconds), Some(histogram));
        assert_eq!(Histogram::of_cumulative(&sums[1..], 0.0), None);
        assert_eq!(Histogram::of_cumulative(&[5, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4], 0.0), None);
    }
}
