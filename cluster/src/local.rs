//! LocalState: all that a node's arbiter knows of itself when it decides.

use crate::health::Way;
use crate::host::Address;
use crate::lsn::Lsn;
use crate::member::Tags;
use crate::memory::Memory;
use crate::name::{MemberName, SystemId, Timeline};
use crate::restore::Journal;
use crate::standby_cluster::Remote;
use crate::upgrade::step::HalfUpgraded;
use std::collections::BTreeSet;
use std::time::Duration;

/// What is in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataDir {
    /// Nothing (or it does not exist).
    Empty,
    /// A clone, rewind or initdb was under way and did not end: never to be started.
    Incomplete {
        /// What was under way.
        what: String,
    },
    /// A database, as `pg_control` tells.
    Present(Control),
    /// Something that is no usable database: `pg_control` is missing or damaged.
    Damaged {
        /// Why it can't be used.
        why: String,
    },
}

/// The part of `pg_control` that decisions rest on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Whose data this is.
    pub system_id: SystemId,
    /// The timeline of the last checkpoint, or of the minimum recovery point where that is further.
    pub timeline: Timeline,
    /// Where the last checkpoint record begins.
    pub checkpoint: Lsn,
    /// How the server ended.
    pub ended: Ended,
}

/// How the server that last used the directory ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As primary, with a shutdown checkpoint.
    CleanPrimary,
    /// As primary, without.
    CrashedPrimary,
    /// In recovery, in whatever way: it only ever replays.
    Standby,
}

/// What Postgres is doing now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Postgres {
    /// No postmaster.
    Stopped,
    /// A postmaster that takes no connections yet.
    Starting {
        /// For how long.
        since: Duration,
    },
    /// Out of recovery.
    Primary {
        /// Its timeline.
        timeline: Timeline,
        /// Flushed so far.
        flushed: Lsn,
    },
    /// In recovery.
    Standby {
        /// The timeline of the newest WAL here.
        timeline: Timeline,
        /// The further of received and replayed.
        position: Lsn,
        /// The host and port in `primary_conninfo`; None where it follows nobody.
        upstream: Option<Address>,
        /// It streams now.
        streaming: bool,
    },
    /// It runs, but did not answer.
    Silent,
}

/// How this node makes a copy of another's data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cloning {
    /// Draws one of several sources.
    pub lot: u64,
    /// The source other than the leader from which the last copy failed.
    pub failed: Option<MemberName>,
    /// The leader itself is asked for as source.
    pub from_leader: bool,
    /// A method is configured that needs no running member (`no_leader`).
    pub without_leader: bool,
}

/// All that the arbiter knows of its own node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalState {
    /// This node.
    pub name: MemberName,
    /// Its tags.
    pub tags: Tags,
    /// Its data directory.
    pub data: DataDir,
    /// Its Postgres.
    pub postgres: Postgres,
    /// The node holds a lease that etcd confirmed and that has not run out.
    pub lease_valid: bool,
    /// A rewind failed, with pg_rewind's words.
    pub rewind_failed: Option<String>,
    /// Where the configuration allows the data to be replaced by a clone after a failed rewind.
    pub may_clone_over: bool,
    /// How long Postgres has been down although this node leads (crash, failed start).
    pub down_for: Duration,
    /// Its server was primary, and recovers from the crash of one of its processes: the postmaster lives, all sessions are gone.
    pub crashed: bool,
    /// The node is asked to stop (SIGTERM).
    pub stopping: bool,
    /// A reinit was asked for.
    pub reinit: bool,
    /// Where copies come from.
    pub cloning: Cloning,
    /// Postgres ended several times while it started as standby: its last words.
    pub start_failed: Option<String>,
    /// A scheduled request is due.
    pub request_due: bool,
    /// How long the present request has been due and seen here.
    pub request_waits: Duration,
    /// For how long the postmaster has been stopped by a signal: its sessions go on, and nobody can connect.
    pub frozen_for: Duration,
    /// This arbiter stopped Postgres itself, for a switchover, and owes it a start: also in maintenance mode.
    pub start_owed: bool,
    /// The cluster that this one follows, where it does.
    pub remote: Remote,
    /// What this node knows of the cluster's keys by itself.
    pub memory: Option<Box<Memory>>,
    /// Its server's fence is open: by the lease that etcd granted, which can't have run out there.
    pub fence_open: bool,
    /// Of a standby without an archive: where the WAL that it has ends, at a segment's end. None of any other.
    pub wal_until: Option<Lsn>,
    /// Why the server that runs here is not this node's own, where it was found and is not: nothing may fence its commits.
    pub strange: Option<String>,
    /// Members that answered just now, over REST, that their Postgres runs. Asked only while this node leads and its own server
    /// does not serve: the member that is given the key must be alive now, and a member key outlives its node by a TTL.
    pub answered: BTreeSet<MemberName>,
    /// This node leads, is sick, another is better off, and the configuration says that it is to act.
    pub gives_way: Option<GivesWay>,
    /// A restore to a point in the past that began here and did not end, while nothing is under way.
    pub restore: Option<Box<Journal>>,
    /// The data that were set aside for a copy which came to no end, where the data directory has none.
    pub aside: Option<Control>,
    /// A major upgrade that began here and did not end, while nothing is under way.
    pub upgrade: Option<Box<HalfUpgraded>>,
}

/// A sick leader's way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivesWay {
    /// What is wrong, in a clause.
    pub what: String,
    /// To whom, and how.
    pub way: Way,
}
