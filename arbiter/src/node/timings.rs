//! How long the procedures took that clients notice, since this arbiter started: for `/metrics`.

use cluster::histogram::Histogram;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timed {
    /// On the old leader: from the drain's beginning until the leader key is handed over.
    Handover,
    /// On the new leader: from the decision to promote until Postgres has left recovery.
    Promotion,
}

/// The counts. Cheap to clone; clones count into the same.
#[derive(Debug, Clone, Default)]
pub struct Timings(Arc<Mutex<[Histogram; 2]>>);

impl Timings {
    /// Counts one.
    pub fn observe(&self, what: Timed, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[what as usize].observe(took);
    }

    /// All, by name.
    pub fn all(&self) -> [(&'static str, Histogram); 2] {
        let [handover, promotion] = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        [("switchover_handover", handover), ("promotion", promotion)]
    }
}
