//! How long things took on this server since it started, for `tenure.timings()`.

use cluster::histogram::{CLASSES, Histogram, class_of};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// One kind of thing, counted by many processes at once. Zero bytes are an empty one.
#[repr(C)]
pub struct Counted {
    counts: [AtomicU64; CLASSES],
    sum_us: AtomicU64,
}

impl Counted {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        self.counts[class_of(took)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(0), Relaxed);
    }

    fn read(&self) -> Histogram {
        Histogram { counts: std::array::from_fn(|class| self.counts[class].load(Relaxed)), seconds: self.sum_us.load(Relaxed) as f64 / 1e6 }
    }
}

/// What is timed.
#[repr(C)]
pub struct Timings {
    /// From a renewal of the lease being sent until etcd's word.
    pub lease_renewal: Counted,
    /// How long a commit was held at the fence, of those that were.
    pub commit_wait: Counted,
    /// From this node's seeing that nobody leads until it has taken the leader key.
    pub race: Counted,
}

impl Timings {
    /// All, by name.
    pub fn all(&self) -> [(&'static str, Histogram); 3] {
        [("lease_renewal", self.lease_renewal.read()), ("commit_wait", self.commit_wait.read()), ("race", self.race.read())]
    }
}
