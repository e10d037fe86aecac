//! How this node is, seen from outside of the server, as it was last looked at (`upkeep/vitals.rs` looks).

use cluster::health::Vitals;
use std::sync::{Mutex, PoisonError};

/// What was seen last; None while nobody looks, or before the first answers.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Option<Vitals>>);

impl Seen {
    /// What was seen last.
    pub fn seen(&self) -> Option<Vitals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what is seen now; true where that is news.
    pub fn note(&self, vitals: Option<Vitals>) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *held != vitals;
        *held = vitals;
        news
    }
}
