//! ClusterView: every key of the cluster as read at one revision.

pub use crate::versioned::Versioned;

use crate::backup::Backup;
use crate::citus::keys::{CoordinatorWord, GateWord, GatedWord, HeldWord, HoldRequest};
use crate::config::DynamicConfig;
use crate::failover::request::FailoverRequest;
use crate::history::History;
use crate::leader::{Leader, LeaseId, Term};
use crate::lsn::Lsn;
use crate::member::{MemberEntry, MemberRole};
use crate::memory::{Making, Upgraded};
use crate::name::{MemberName, SystemId, Timeline};
use crate::poolers::paused::Paused;
use crate::request::MemberRequest;
use crate::sync::SyncState;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The `initialize` key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Initialize {
    /// Somebody is making the first data directory.
    Running,
    /// The cluster exists and this is its identity.
    Done(SystemId),
}

/// The value of `status`: how far the leader was, and its slots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The leader's flushed position.
    #[serde(default)]
    pub optime: Lsn,
    /// Positions of slots by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<String, Lsn>,
    /// Slots kept for members that are away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retain_slots: Vec<String>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `tenure/term`: written in the same transaction as every change of the leader key, and outliving it.
/// Its revision is the last term, so a vacancy is named by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastTerm {
    /// Who took the last term.
    pub holder: MemberName,
    /// How: `taken`, `handed over` or `bootstrapped`.
    #[serde(default)]
    pub how: String,
}

/// `tenure/race/<name>`: what a node says when the leader key is gone. Hangs on the node's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The term whose end made this vacancy: an announcement for another one says nothing.
    pub after: Term,
    /// True if the node stands; false if it may not, with the reason in `why`.
    pub stands: bool,
    /// Why it does not stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// It runs as primary (it lost its lease, not its data).
    #[serde(default)]
    pub primary: bool,
    /// It goes on receiving, so that its position says nothing of what it has a moment later. So does everybody in a standby cluster: there is
    /// no primary here to be cut off, and what it receives from elsewhere is lost for nobody. So does who promised a leader without etcd to
    /// stay away from its key (`failsafe_mode`): that leader commits by what is confirmed to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub receives: bool,
    /// It deposes the leader of that term, which still holds its key: [`crate::deposition`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deposes: bool,
    /// It hears the leader of this term, whom others would depose. No word for any vacancy: `after` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hears: Option<Term>,
    /// The timeline of its newest WAL.
    pub timeline: Timeline,
    /// What it has received (or, as primary, written), after it stopped receiving.
    pub lsn: Lsn,
    /// Its `failover_priority`.
    #[serde(default)]
    pub priority: i64,
}

/// What stands in a view although etcd does not have it: [`crate::store::complete`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// `config` is missing or can't be read: this is the last good one.
    pub config: bool,
    /// `initialize` is missing or names another system: this is the cluster's own.
    pub initialize: bool,
}

/// Every key of the cluster at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterView {
    /// etcd's revision at which all of this was true.
    pub revision: i64,
    /// etcd's own identity (its cluster id); 0 where it did not say.
    pub etcd: u64,
    /// `tenure/store`.
    pub store: Option<Versioned<Making>>,
    /// `initialize`.
    pub initialize: Option<Versioned<Initialize>>,
    /// The lease that a claim to make the first data directory hangs on.
    pub claimed_on: Option<LeaseId>,
    /// `config`.
    pub config: Option<Versioned<DynamicConfig>>,
    /// `leader`.
    pub leader: Option<Leader>,
    /// `members/<name>`.
    pub members: BTreeMap<MemberName, MemberEntry>,
    /// `sync`.
    pub sync: Option<Versioned<SyncState>>,
    /// `history`.
    pub history: Option<Versioned<History>>,
    /// `failover`.
    pub failover: Option<Versioned<FailoverRequest>>,
    /// `status`.
    pub status: Option<Versioned<Status>>,
    /// `failsafe`: name to REST address.
    pub failsafe: Option<Versioned<BTreeMap<String, String>>>,
    /// `tenure/term`.
    pub last_term: Option<Versioned<LastTerm>>,
    /// `tenure/timeline`: the greatest number that any promotion has claimed.
    pub claimed_timeline: Option<Versioned<Timeline>>,
    /// `tenure/race/<name>`.
    pub announcements: BTreeMap<MemberName, Versioned<Announcement>>,
    /// `tenure/request/<name>`.
    pub requests: BTreeMap<MemberName, Versioned<MemberRequest>>,
    /// `tenure/hold`: of a group of a Citus cluster.
    pub hold: Option<Versioned<HoldRequest>>,
    /// `tenure/held`: the coordinator's answer to that.
    pub held: Option<Versioned<HeldWord>>,
    /// `tenure/gate`: the coordinator asks this group to let distributed statements wait.
    pub gate: Option<Versioned<GateWord>>,
    /// `tenure/gated`: this group's answer to that.
    pub gated: Option<Versioned<GatedWord>>,
    /// `tenure/coordinator`: the newest coordinator of the Citus cluster that this group belongs to.
    pub coordinator: Option<Versioned<CoordinatorWord>>,
    /// `tenure/poolers`: what a planned change has paused.
    pub poolers: Option<Versioned<Paused>>,
    /// `tenure/backup`: the last backup that somebody told of.
    pub backup: Option<Versioned<Backup>>,
    /// Keys whose value could not be read, with the reason: shown, never acted on.
    pub unreadable: Vec<String>,
    /// The revision of a `config` that could not be read; 0 where there is none such.
    pub spoiled_config: i64,
    /// What is remembered here and not read.
    pub kept: Kept,
}

impl ClusterView {
    /// The dynamic configuration, or the defaults while there is none.
    pub fn config(&self) -> &DynamicConfig {
        static NONE: OnceLock<DynamicConfig> = OnceLock::new();
        self.config.as_ref().map_or_else(|| NONE.get_or_init(DynamicConfig::default), |config| &config.value)
    }

    /// The cluster follows another one (`standby_cluster`). While `config` is missing or can't be read, what
    /// the leader says of itself counts: a key that is lost must not promote a cluster.
    pub fn is_standby_cluster(&self) -> bool {
        if let Some(config) = &self.config {
            return config.value.standby_cluster().is_some();
        }
        let leader = self.leader.as_ref().and_then(|leader| self.members.get(&leader.name));
        leader.is_some_and(|entry| entry.member.role == MemberRole::StandbyLeader)
    }

    /// The history, or an empty one.
    pub fn history(&self) -> &History {
        static NONE: OnceLock<History> = OnceLock::new();
        self.history.as_ref().map_or_else(|| NONE.get_or_init(History::default), |history| &history.value)
    }

    /// The number that a promotion here has to claim: greater than any that was used or claimed, as far as etcd and this
    /// server (whose timeline is `mine`) know.
    pub fn timeline_to_claim(&self, mine: Timeline) -> Timeline {
        let claimed = self.claimed_timeline.as_ref().map_or(Timeline::default(), |claimed| claimed.value);
        mine.max(claimed).max(self.history().current()).next()
    }

    /// Revision of a key for a guarded write: 0 where it does not exist.
    pub fn revision_of<T>(key: &Option<Versioned<T>>) -> i64 {
        key.as_ref().map_or(0, |key| key.revision)
    }

    /// Which making of the keys this is.
    pub fn store_generation(&self) -> u32 {
        self.store.as_ref().map_or(0, |store| store.value.generation)
    }

    /// The change of major version by which data of this database system became old.
    pub fn upgraded_from(&self, system_id: &SystemId) -> Option<&Upgraded> {
        self.store.as_ref()?.value.upgraded.as_ref().filter(|upgraded| upgraded.old == *system_id)
    }

    /// The last term that anybody held; [`Term`] 0 before the first.
    pub fn last_term(&self) -> Term {
        Term(Self::revision_of(&self.last_term))
    }

    /// The leader, if it is this member.
    pub fn leader_if(&self, name: &MemberName) -> Option<&Leader> {
        self.leader.as_ref().filter(|leader| leader.name == *name)
    }

    /// The lease that a member's key hangs on.
    pub fn lease_of(&self, name: &MemberName) -> Option<LeaseId> {
        self.members.get(name).map(|entry| entry.lease)
    }

    /// The claim to found the cluster is this member's. One that does not found at this moment claimed it before its process ended, and keeps the
    /// claim alive with its own lease: nobody else will ever found.
    pub fn is_claimed_by(&self, name: &MemberName) -> bool {
        let running = self.initialize.as_ref().is_some_and(|key| key.value == Initialize::Running);
        running && self.claimed_on.is_some() && self.claimed_on == self.lease_of(name)
    }

    /// The request in `failover`, if there is one.
    pub fn request(&self) -> Option<&Versioned<FailoverRequest>> {
        self.failover.as_ref().filter(|request| !request.value.is_empty())
    }

    /// The cluster's identity, once it has one.
    pub fn system_id(&self) -> Option<&SystemId> {
        match self.initialize.as_ref().map(|key| &key.value) {
            Some(Initialize::Done(id)) => Some(id),
            _ => None,
        }
    }

    /// The furthest position that the leader is known to have reached.
    pub fn leader_position(&self) -> Option<Lsn> {
        let status = self.status.as_ref().map(|status| status.value.optime);
        let member = self.leader.as_ref().and_then(|leader| self.members.get(&leader.name)).and_then(|entry| entry.member.position());
        status.into_iter().chain(member).max()
    }
}
