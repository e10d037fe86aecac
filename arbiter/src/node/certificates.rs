//! The certificates of this node, and when each ends, as last looked at (`upkeep/certificates.rs` looks).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// By what each is: when it ends, in seconds since 1970.
#[derive(Debug, Default)]
pub struct Ends(Mutex<BTreeMap<String, i64>>);

impl Ends {
    /// As last looked at.
    pub fn seen(&self) -> BTreeMap<String, i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the place of what was seen before.
    pub fn note(&self, ends: BTreeMap<String, i64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ends;
    }
}
