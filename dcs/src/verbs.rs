//! The store in the words of the cluster: what can be asked of it, by loops of many threads and of one.

use crate::error::Error;
use cluster::config::DynamicConfig;
use cluster::failover::FailoverRequest;
use cluster::failsafe::Members;
use cluster::history::History;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::lease::Standing;
use cluster::member::Member;
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::standing::Guarded;
use cluster::standing::Judged;
use cluster::store::{Doubt, Making};
use cluster::sync::SyncState;
use cluster::view::{Announcement, ClusterView, Status};
use std::future::Future;
use std::time::Duration;

/// A lease as granted or found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The lease.
    pub lease: LeaseId,
    /// How long it lives from each renewal. etcd may have raised what was asked for.
    pub ttl: Duration,
}

/// A keep-alive's answer, before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// The lease.
    pub grant: Grant,
    /// Where the member of etcd stood that answered.
    pub at: Standing,
}

/// The leader key as read linearizably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderLook {
    /// Who holds it.
    pub leader: Option<Leader>,
    /// Where the member of etcd stood that answered.
    pub at: Standing,
    /// Why this is no answer of the etcd that the node remembers, where it is none.
    pub doubt: Option<Doubt>,
}

/// Who takes over in [`Dcs::hand_over`], and what is written with it.
#[derive(Debug, Clone)]
pub struct HandOver {
    /// The leader as judged: its key must be unchanged.
    pub from: Leader,
    /// The next leader.
    pub to: MemberName,
    /// The lease of the next leader's member key.
    pub to_lease: LeaseId,
    /// The new value of `sync` with the revision that was judged, where one is kept.
    pub sync: Option<(SyncState, i64)>,
    /// The request that this fulfils, to be cleared: its revision.
    pub failover: Option<i64>,
    /// The last position of the old leader.
    pub status: Option<Status>,
}

/// What a cluster's keys begin with, besides their leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirstKeys {
    /// `config`.
    pub config: DynamicConfig,
    /// Which making of the keys it is.
    pub making: Making,
    /// Whom commits await, where the cluster was there before.
    pub sync: Option<SyncState>,
    /// The greatest timeline that is known, where the cluster was there before.
    pub timeline: Option<Timeline>,
}

/// Result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// Each verb once, for two traits: what a store does for many threads, and for one.
macro_rules! verbs {
    ($($(#[$said:meta])* fn $verb:ident($($given:ident: $type:ty),*) -> $answer:ty;)*) => {
        /// The cluster's store, in the words of the cluster.
        pub trait Dcs: Send + Sync {
            $($(#[$said])* fn $verb(&self, $($given: $type),*) -> impl Future<Output = Result<$answer>> + Send;)*
        }

        /// As [`Dcs`], for loops of one thread: the lease worker's, also in the simulation, where a request travels as a message of one thread.
        pub trait LocalDcs {
            $($(#[$said])* fn $verb(&self, $($given: $type),*) -> impl Future<Output = Result<$answer>>;)*
        }

        impl<D: Dcs> LocalDcs for D {
            $(fn $verb(&self, $($given: $type),*) -> impl Future<Output = Result<$answer>> { Dcs::$verb(self, $($given),*) })*
        }
    };
}

verbs! {
    /// Reads every key at one revision, linearizably.
    fn load_view() -> ClusterView;

    /// Asks for a new lease.
    fn grant(ttl: Duration) -> Grant;
    /// Asks for the lease to be renewed. The answer alone is no fact, neither yes nor [`Error::LeaseGone`]: [`crate::lease::renew`].
    fn keep_alive(lease: LeaseId) -> KeepAlive;
    /// Reads the leader key, linearizably.
    fn look_at_leader() -> LeaderLook;
    /// Does any key of the cluster hang on the lease? Read linearizably.
    fn is_in_use(lease: LeaseId) -> bool;
    /// Gives a lease back, with all keys on it.
    fn revoke(lease: LeaseId) -> ();

    /// Writes the member key onto the lease; `judged`: only if the key's revision is still this (0: absent).
    fn write_member(name: &MemberName, member: &Member, lease: LeaseId, judged: Option<i64>) -> ();

    /// Takes the leader key, of a vacancy or of the leader that is deposed, if nothing changed of what was judged.
    fn take_leader(name: &MemberName, lease: LeaseId, judged: &Judged) -> Term;
    /// Gives the leader key to another member in one write: no vacancy, no race.
    fn hand_over(hand_over: &HandOver) -> Term;
    /// Deletes the leader key, if it is still this leader's.
    fn release_leader(leader: &Leader) -> ();
    /// Writes into `tenure/term` that this leader, of Patroni's, leads, if it still does and the key's revision is still `judged`.
    fn note_term(leader: &Leader, judged: i64) -> ();
    /// Moves leader and member key onto another lease of the same node (a changed TTL).
    fn move_leader(leader: &Leader, member: &Member, lease: LeaseId) -> Term;

    /// Says what this node has, for the present vacancy.
    fn announce(name: &MemberName, word: &Announcement, lease: LeaseId) -> ();
    /// Says something of the present leader, if it leads in the judged term still and nothing else was said in this name since.
    fn say(name: &MemberName, word: &Guarded, lease: LeaseId) -> ();

    /// Claims the making of the first data directory; the claim goes with the lease. One that hangs on this lease already is ours: its answer
    /// was lost.
    fn claim_initialize(name: &MemberName, lease: LeaseId) -> i64;
    /// Gives the claim back.
    fn unclaim_initialize(claim: i64) -> ();
    /// Leads a cluster in the making: first configuration and leader key, under the claim.
    fn lead_first(name: &MemberName, lease: LeaseId, claim: i64, first: &FirstKeys) -> Term;
    /// The cluster exists from here on: its identity replaces the claim.
    fn found(leader: &Leader, claim: i64, system_id: &SystemId) -> ();

    /// Puts `initialize` back as this leader, if its revision is still `judged`.
    fn write_initialize(system_id: &SystemId, judged: i64, leader: &Leader) -> ();
    /// Writes `tenure/store` as this leader where there is none: a cluster from before it.
    fn write_store(making: &Making, leader: &Leader) -> ();

    /// Writes `config` if its revision is still `judged` (0: absent).
    fn write_config(config: &DynamicConfig, judged: i64) -> i64;
    /// Writes `sync` as this leader, if its revision is still `judged`.
    fn write_sync(sync: &SyncState, judged: i64, leader: &Leader) -> i64;
    /// Writes `history` as this leader, if its revision is still `judged`.
    fn write_history(history: &History, judged: i64, leader: &Leader) -> ();
    /// Claims a timeline's number for the promotion in this leader's term, if nobody claimed one since `judged`.
    fn claim_timeline(timeline: Timeline, judged: i64, leader: &Leader) -> ();
    /// Writes `failsafe` (member name to REST address) as this leader, if its revision is still `judged`.
    fn write_failsafe(members: &Members, judged: i64, leader: &Leader) -> ();
    /// Writes `status` as this leader.
    fn write_status(status: &Status, leader: &Leader) -> ();
    /// Writes or clears (`{}`) `failover` if its revision is still `judged`.
    fn write_failover(request: &FailoverRequest, judged: i64) -> i64;
}
