//! The duties: what a node's processes may owe the cluster.

use crate::leader::Term;
use crate::name::MemberName;
use crate::restore;
use crate::upgrade::step::Owed;
use crate::upstream::Upstream;

/// One thing to do, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Duty {
    /// Nothing; look again when something changes.
    Rest,
    /// Race for `initialize`, and where it is won make the first data directory and lead.
    Bootstrap,
    /// Replace whatever is in the data directory by a copy of this member's (or the remote cluster's).
    Clone {
        /// The source.
        from: Upstream,
    },
    /// Nobody leads: put back what was set aside for a copy, or make the data from a backup where a method is configured that needs nobody.
    Restore,
    /// Start Postgres as primary: this node leads and its data was a primary's.
    StartPrimary {
        /// The term it leads in.
        term: Term,
    },
    /// Start Postgres in recovery.
    StartStandby {
        /// Whom to stream from; nobody while nobody leads.
        upstream: Upstream,
    },
    /// Leave recovery: this node leads in this term.
    Promote {
        /// The term that was judged.
        term: Term,
    },
    /// Stop a primary that does not lead, or a server that is not this node's own; what follows is decided from what it leaves.
    Demote,
    /// This node leads and the cluster is to follow another one: stop cleanly, begin a new term, go on as its standby.
    DemoteCluster {
        /// The term that was judged.
        term: Term,
    },
    /// Point the running standby at this upstream.
    Follow {
        /// Whom to stream from.
        upstream: Upstream,
    },
    /// Stop if needed and wind back to before the fork, with this source.
    Rewind {
        /// The source.
        from: Upstream,
    },
    /// Planned: stop cleanly and hand the key to the first candidate that has everything.
    Switchover {
        /// Best first.
        candidates: Vec<MemberName>,
    },
    /// Unplanned but lossless: give the key to this synchronous standby at once.
    HandOver {
        /// The standby.
        to: MemberName,
    },
    /// This node is sick and its server does not do what it is told any more: end it by force, and let this member lead.
    GiveWay {
        /// Who is better off.
        to: MemberName,
    },
    /// Take a request back that can't be served.
    CallOff,
    /// Give the leader key up: this node can't serve.
    Release,
    /// Bring a major upgrade of this node's data, which was interrupted, to an end.
    Upgrade {
        /// Which end.
        owed: Owed,
    },
    /// Bring a restore of this cluster to a point in its past, which was interrupted, to an end.
    RestoreTo {
        /// Which end.
        owed: restore::Owed,
    },
    /// Stop Postgres and end (SIGTERM).
    Stop,
    /// This node can't belong to the cluster: end with the reason.
    Quit,
}
