//! Who holds the leader key: the name, the lease it hangs on, and the term.

use crate::name::MemberName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// An etcd lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// etcd's "no lease".
    pub const NONE: LeaseId = LeaseId(0);
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The fencing token: the revision at which the present holder was written into the leader key.
/// Strictly growing, one holder each. (A key that is taken has its create revision here; one that is
/// handed over keeps its create revision, so the modification revision is the one that tells tenures
/// apart: `docs/adr/0002-term.md`.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub i64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The leader key as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Whose name stands in the key.
    pub name: MemberName,
    /// The lease the key hangs on.
    pub lease: LeaseId,
    /// The holder's term.
    pub term: Term,
}
