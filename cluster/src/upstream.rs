//! Whom a standby copies and streams from: a member, the cluster that this one follows, or nobody.

use crate::local::LocalState;
use crate::member::MemberEntry;
use crate::name::MemberName;
use crate::view::ClusterView;
use std::fmt;

/// Whom a standby copies or streams from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// A member of this cluster.
    Member(MemberName),
    /// The cluster in `standby_cluster`.
    Remote,
    /// Nobody: nobody leads, or the tag `nostream` says so. What an archive has is still replayed.
    Nobody,
}

impl Upstream {
    /// The member, if it is one.
    pub fn member(&self) -> Option<&MemberName> {
        match self {
            Upstream::Member(name) => Some(name),
            Upstream::Remote | Upstream::Nobody => None,
        }
    }
}

impl From<MemberName> for Upstream {
    fn from(name: MemberName) -> Upstream {
        Upstream::Member(name)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Upstream::Member(name) => name.fmt(f),
            Upstream::Remote => f.write_str("the cluster in standby_cluster"),
            Upstream::Nobody => f.write_str("nobody"),
        }
    }
}

/// Whom this node streams from while `leader` leads.
///
/// Nobody with the tag `nostream`; the remote cluster where this node leads a standby cluster; the
/// member in the tag `replicatefrom` while it runs; else the leader. Members whose tags lead in a
/// circle would stream from each other and from nobody: they follow the leader.
pub fn wanted(view: &ClusterView, local: &LocalState, leader: &MemberName) -> Upstream {
    if local.tags.nostream() {
        return Upstream::Nobody;
    }
    if *leader == local.name {
        return if view.is_standby_cluster() { Upstream::Remote } else { Upstream::Nobody };
    }
    Upstream::Member(cascading(view, local, leader).unwrap_or_else(|| leader.clone()))
}

fn cascading(view: &ClusterView, local: &LocalState, leader: &MemberName) -> Option<MemberName> {
    let (tagged, mut entry) = running(view, local.tags.replicatefrom()?)?;
    let mut at = tagged.clone();
    for _ in 0..view.members.len() {
        if at == local.name {
            return None;
        }
        if at == *leader {
            break;
        }
        let Some(next) = entry.member.tags.replicatefrom().and_then(|name| running(view, name)) else {
            break;
        };
        (at, entry) = next;
    }
    Some(tagged)
}

fn running<'a>(view: &'a ClusterView, name: &str) -> Option<(MemberName, &'a MemberEntry)> {
    let name = MemberName::new(name).ok()?;
    let entry = view.members.get(&name)?;
    entry.member.is_running().then_some((name, entry))
}
