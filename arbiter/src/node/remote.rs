//! What the cluster in `standby_cluster` said of itself (`upkeep/remote.rs` asks it).

use cluster::standby_cluster::RemoteWord;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An answer is believed for this long; then it is asked again.
const BELIEVED: Duration = Duration::from_secs(2);

/// What the other cluster said last, and when it was asked last.
#[derive(Clone, Default)]
pub struct Remote(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    said: Option<RemoteWord>,
    asked: Option<Instant>,
    under_way: bool,
}

impl Remote {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it said, if it did.
    pub fn said(&self) -> Option<RemoteWord> {
        self.state().said.clone()
    }

    /// Nothing that was said counts any more: this node streams, or follows another.
    pub fn forget(&self) {
        let mut state = self.state();
        state.said = None;
        state.asked = None;
    }

    /// The right to ask, at most once per [`BELIEVED`] and one at a time.
    pub fn begin(&self) -> bool {
        let mut state = self.state();
        let due = !state.under_way && state.asked.is_none_or(|asked| asked.elapsed() >= BELIEVED);
        if due {
            state.under_way = true;
            state.asked = Some(Instant::now());
        }
        due
    }

    /// Takes the answer; true if it says something new.
    pub fn end(&self, said: Option<RemoteWord>) -> bool {
        let mut state = self.state();
        let new = state.said != said;
        state.said = said;
        state.under_way = false;
        new
    }
}
