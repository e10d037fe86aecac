//! The record of poolers that a change has paused.

use crate::leader::Term;
use crate::name::MemberName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// `tenure/poolers`: written before anything is paused, deleted when all of it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Whose arbiter pauses.
    pub by: MemberName,
    /// The leader's term then.
    pub term: Term,
    /// From the moment on at which an arbiter reads this: after so long it lets go on what it finds paused, whatever happened.
    pub at_most_s: u64,
    /// Databases by pooler.
    pub poolers: BTreeMap<String, BTreeSet<String>>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Paused {
    /// What an earlier change left paused may be so still.
    #[must_use]
    pub fn and(mut self, before: Option<&Paused>) -> Paused {
        for (pooler, databases) in before.iter().flat_map(|before| &before.poolers) {
            self.poolers.entry(pooler.clone()).or_default().extend(databases.iter().cloned());
        }
        self
    }
}
