//! Why a decision was taken. The Display is the sentence in the log, in `tenure.events` and in the CLI.

use crate::leader::Term;
use crate::lsn::Lsn;
use crate::name::{MemberName, SystemId, Timeline};
use crate::reached::End;
use crate::restore::{self, Target};
use crate::speech::Apart;
use crate::store::NoFounding;
use crate::upgrade::step::Step;

/// Why a decision was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the sentence of each variant is its documentation")]
pub enum Reason {
    #[error("the cluster is in maintenance mode")]
    Paused,
    #[error("this node holds the leader key (term {0})")]
    IHoldTheLease(Term),
    #[error("{0} holds the leader key (term {1})")]
    AnotherHoldsTheLease(MemberName, Term),
    #[error("nobody holds the leader key; Postgres must run to stand for it")]
    NoLeaderStart,
    #[error("nobody holds the leader key; the lease worker decides whether this node stands")]
    NoLeader,
    #[error("the cluster does not exist yet")]
    NotInitialized,
    #[error("{0}")]
    NotFounded(NoFounding),
    #[error("etcd has lost the keys of this cluster, and this node's data is a standby's: who led last is to make them again")]
    KeysLost,
    #[error("another node is making the first data directory")]
    AnotherInitializes,
    #[error("there is no data here that could be used and nobody leads, so there is nobody to clone from")]
    NobodyToCloneFrom,
    #[error("nobody leads, and a replica method is configured that needs nobody (no_leader)")]
    RestoreWithoutLeader,
    #[error("nobody leads, and the data that were set aside here for a new copy are whole: they are put back")]
    OldDataPutBack,
    #[error("the data directory can't be used ({0}); repair it, or `tenure reinit` makes a new copy once a leader is there")]
    DataDamaged(String),
    #[error("the data directory can't be used ({0}) and the configuration allows the data to be replaced by a clone")]
    DataDamagedCloneAllowed(String),
    #[error(
        "Postgres does not start as standby ({0}); it is tried again, later each time, at least once a minute; repair it, or `tenure reinit` makes a new copy"
    )]
    StartFailed(String),
    #[error("the data directory is empty and {0} leads")]
    Empty(MemberName),
    #[error("{what} was interrupted here, so the data can't be used")]
    Incomplete { what: String },
    #[error("the data directory is empty although this node holds the leader key")]
    EmptyLeader,
    #[error("the data directory belongs to the database system {found}, the cluster is {expected}")]
    ForeignSystem { found: SystemId, expected: SystemId },
    #[error("the cluster has gone from PostgreSQL {from} to {to}, and this node's data is still the old")]
    NewMajor { from: u32, to: u32 },
    #[error("a major upgrade of this node's data was interrupted while {}", .0.sentence())]
    HalfUpgraded(Step),
    #[error("a restore of this cluster to {to} was interrupted while {}", step.sentence())]
    HalfRestored { to: Target, step: restore::Step },
    #[error("pg_rewind failed ({0}), and this cluster was restored to a point in its past: the data are replaced by a clone")]
    RewindFailedRestored(String),
    #[error(
        "the data directory holds the database system {0}, but the cluster does not exist yet and this data was in recovery: start the node that was primary first"
    )]
    StandbyDataWithoutCluster(SystemId),
    #[error("the history forked: this node went on to {mine} on timeline {timeline}, which ended at {fork}")]
    HistoryForked { timeline: Timeline, mine: Lsn, fork: Lsn },
    #[error("this node's Postgres crashed as primary of timeline {timeline} and {leader} leads on timeline {theirs}")]
    CrashedAfterFork { timeline: Timeline, leader: MemberName, theirs: Timeline },
    #[error("timeline {timeline} of this node is not in the history of {leader}")]
    UnknownTimeline { timeline: Timeline, leader: MemberName },
    #[error("{0} has not told its timeline and history yet")]
    LeaderHistoryUnknown(MemberName),
    #[error("{0} has not completed its first checkpoint as primary yet")]
    LeaderCheckpointPending(MemberName),
    #[error("pg_rewind failed ({0}) and the configuration does not allow the data to be replaced; `tenure reinit` makes a new copy")]
    RewindFailedNeedsHand(String),
    #[error("pg_rewind failed ({0}) and the configuration allows the data to be replaced by a clone")]
    RewindFailedCloneAllowed(String),
    #[error(
        "the WAL that this node needs from {until} on is gone at {from}, which has it from {oldest} on, and there is no restore_command; `tenure reinit` makes a new copy"
    )]
    WalGoneNeedsHand { from: MemberName, until: Lsn, oldest: Lsn },
    #[error(
        "the WAL that this node needs from {until} on is gone at {from}, which has it from {oldest} on, and the configuration allows the data to be replaced by a clone"
    )]
    WalGoneCloneAllowed { from: MemberName, until: Lsn, oldest: Lsn },
    #[error("a new copy was asked for (reinit)")]
    ReinitAsked,
    #[error("the server that runs here is not this node's own ({0}): it is stopped, and started as it should be")]
    StrangeServer(String),
    #[error("the server that runs here is not this node's own ({0}); in maintenance mode it is left alone: nothing fences its commits")]
    StrangeServerPaused(String),
    #[error("Postgres is starting")]
    Starting,
    #[error("Postgres runs but does not answer")]
    Silent,
    #[error("Postgres crashed while {0} has every acknowledged commit")]
    CrashedSyncStandbyReady(MemberName),
    #[error("Postgres crashed while enough voters of the sync key run to find the one that has every acknowledged commit: {0}")]
    CrashedQuorumReady(String),
    #[error("Postgres crashed; it is restarted in place")]
    CrashedRestart,
    #[error("Postgres has been down for longer than primary_start_timeout ({0} s)")]
    StartTimeout(u64),
    #[error("Postgres does not start ({words}), and {other} could lead")]
    StartFailedOthersLead { words: String, other: MemberName },
    #[error("the postmaster has been stopped by a signal for {seconds} s, so nobody can connect, and {other} could lead")]
    FrozenOthersLead { seconds: u64, other: MemberName },
    #[error("this node is sick ({what}), and {to} is better off (sick_primary)")]
    SickOtherBetter { what: String, to: MemberName },
    #[error("the leader key is ours but the lease could not be confirmed")]
    LeaseUnconfirmed,
    #[error("a switchover to {0} was asked for")]
    SwitchoverAsked(MemberName),
    #[error("this node is asked to stop; {0} takes over")]
    StoppingHandOver(MemberName),
    #[error("this node is asked to stop")]
    Stopping,
    #[error("a switchover is asked for but can't be done: {0}")]
    SwitchoverImpossible(String),
    #[error("the switchover is scheduled for {0}")]
    Scheduled(String),
    #[error("streams from {0}")]
    Follows(MemberName),
    #[error("tagged nostream: follows by the archive alone")]
    FollowsArchive,
    // A standby cluster.
    #[error("this node leads a standby cluster (term {0}) and follows the cluster in standby_cluster")]
    LeadsStandbyCluster(Term),
    #[error("standby_cluster is set: this cluster is to follow another one")]
    StandbyClusterAsked,
    #[error("the data directory is empty and nobody leads this standby cluster, so the copy comes from the cluster that it follows")]
    EmptyStandbyCluster,
    #[error(
        "the cluster in standby_cluster is the database system {remote}, this one is {mine}: it can't be followed; correct the addresses"
    )]
    RemoteForeign { mine: SystemId, remote: SystemId },
    #[error(
        "the cluster in standby_cluster is on timeline {remote} and does not know timeline {mine} of this node: it is the older one, so nothing is wound back to it; promote one of the two, or `tenure reinit` the members here"
    )]
    RemoteBehind { mine: Timeline, remote: Timeline },
    #[error("the cluster in standby_cluster has not completed its first checkpoint after a promotion yet")]
    RemoteCheckpointPending,
    // The race.
    #[error("this node promised the leader, which can't reach etcd, not to take its key for now (failsafe_mode)")]
    Promised,
    #[error("failsafe_mode is on and this node is not in the failsafe key: the leader may be serving without having asked it")]
    NotInFailsafe,
    #[error("this node is tagged nofailover")]
    NoFailover,
    #[error("of {0}: {1}")]
    NotUnderstood(MemberName, Apart),
    #[error("no arbiter is attached, so nothing could promote this node")]
    NoArbiter,
    #[error("this node is not in the sync key: it may lack acknowledged commits")]
    NotInSync,
    #[error(
        "the data here end at {mine}, and the member of this name is known to have had {had}: acknowledged commits may be missing, as in a copy of its disk or in a disk that was put back; where the newer data are gone for good, `tenure failover` to a member that is named leads on without them"
    )]
    OtherData { mine: End, had: End },
    #[error(
        "the data here end at {mine}, and the synchronous standbys have confirmed commits up to {confirmed}: another member has what is missing here; where it is gone for good, `tenure failover` to a member that is named leads on without that"
    )]
    LacksConfirmed { mine: End, confirmed: End },
    #[error("this node is {lag} bytes behind the last known position of the leader, more than maximum_lag_on_failover ({most})")]
    TooFarBehind { lag: u64, most: u64 },
    #[error("this node is on timeline {mine}, the cluster is on timeline {cluster}")]
    OlderTimeline { mine: Timeline, cluster: Timeline },
    #[error(
        "this node's WAL left the cluster's history at {fork}; where nobody is left who went on from there, `tenure failover --candidate` with this member's name leads on without that"
    )]
    DivergedCandidate { fork: Lsn },
    #[error("{0} is to take over, as was asked")]
    OtherCandidateAsked(MemberName),
    #[error("still streaming from a primary that lost its lease: it goes first")]
    HeadStart,
    #[error("waiting for the positions of {0}")]
    PositionsUnknown(String),
    #[error("{0} is fitter and alive")]
    FitterAlive(MemberName),
    #[error("the quorum of the sync key asks for more voters that are no further ahead than this node; missing: {0}")]
    QuorumUnheard(String),
    #[error("this server has not read all WAL that lies on its disk yet, so how far it is isn't known")]
    EndUnknown,
    #[error("this node's member key does not say yet that its Postgres runs")]
    NotPublished,
    #[error("{0} is lost to this node, which ends its power to acknowledge in term {1}")]
    LeaderLost(MemberName, Term),
    #[error("whether {0} is lost is not known yet")]
    LeaderUnsure(MemberName),
    #[error("this node hears {0}")]
    LeaderHeard(MemberName),
    #[error("{0} hears {1}")]
    VoterHears(MemberName, MemberName),
    #[error("{0} is lost to this node, and is not deposed from here: {1}")]
    LostAndNotDeposed(MemberName, Box<Reason>),
    #[error("nobody is deposed from here: {0}")]
    NeverDeposed(Never),
    #[error("the fittest of those that stand")]
    Fittest,
    #[error("the cluster has no data yet")]
    NoData,
    #[error("took the key but was not promoted in time; standing down so that another can")]
    NotPromotedInTime,
    #[error("still running as primary: taking up the leadership again")]
    StillPrimary,
}

/// Why nobody is deposed from here. The Display is part of the reason in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Never {
    /// `deposition` is off.
    #[error("deposition is off")]
    Off,
    /// One of Patroni's leads: it changes the sync key without a look at the holder of the leader key.
    #[error("{0} is not a member that pg_tenure runs")]
    NotOurs(MemberName),
    /// Commits wait for nobody.
    #[error("synchronous_mode is off")]
    Asynchronous,
    /// The key is another's, or not one by which commits wait.
    #[error("the sync key is not one that this leader's commits wait by")]
    KeyOfAnother,
    /// This node is no voter.
    #[error("this node is not among the standbys in the sync key")]
    NoVoter,
    /// A planned change.
    #[error("a switchover or failover was asked for")]
    Requested,
}

/// A decision with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<D> {
    /// What to do.
    pub what: D,
    /// Why.
    pub why: Reason,
}

impl<D> Decision<D> {
    /// Puts the two together.
    pub fn new(what: D, why: Reason) -> Self {
        Decision { what, why }
    }
}
