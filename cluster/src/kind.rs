//! Who runs a member: an arbiter with its lease worker, or Patroni.

use crate::member::Member;
use std::fmt;

/// Who runs a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An arbiter and a lease worker.
    Ours,
    /// Patroni.
    Patroni,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Ours => "pg_tenure",
            Kind::Patroni => "Patroni",
        })
    }
}

/// Who runs this member, as its key says: ours have always had facts of their own in it.
pub fn kind(member: &Member) -> Kind {
    if member.tenure.is_some() { Kind::Ours } else { Kind::Patroni }
}
