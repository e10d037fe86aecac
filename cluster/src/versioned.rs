//! A value of etcd with the revision that it was read at.

use serde::{Deserialize, Serialize};

/// A value and the revision of its last write: what a guarded write compares.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Versioned<T> {
    /// What stood in the key.
    pub value: T,
    /// Modification revision; 0 for a key that does not exist.
    pub revision: i64,
}
