//! What the procedures need of the server that they look after.

use crate::host::Host;
use crate::judged::{Done, Judged};
use crate::standbys::Standbys;
use anyhow::Result;
use cluster::instance::InUse;
use cluster::leader::Term;
use cluster::local::LocalState;
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState, Tags};
use cluster::name::{MemberName, Timeline};
use cluster::quorum::Setting;
use cluster::upgrade::step::Owed;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

/// What the server says of itself in one look, as far as the procedures go by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// A standby (or a primary that still recovers).
    pub in_recovery: bool,
    /// On a primary the timeline it writes; on a standby the one it receives, or that of its last restart point.
    pub timeline: Timeline,
    /// The furthest position that it holds.
    pub position: Lsn,
    /// A primary's position that is on disk.
    pub flushed: Option<Lsn>,
    /// The servers that stream from this one.
    pub senders: Vec<Sender>,
    /// `synchronous_standby_names` in force.
    pub synchronous_standby_names: String,
    /// What a commit waits for where a session says nothing else.
    pub synchronous_commit: String,
}

/// One walsender.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sender {
    /// The member's name, for members.
    pub application_name: String,
    /// It streams what is written now.
    pub streaming: bool,
    /// Its place in the list that its walsender goes by; 0 where that does not name it.
    pub priority: i32,
    /// What it has been sent.
    pub sent: Option<Lsn>,
    /// What it has written.
    pub written: Option<Lsn>,
    /// What it has flushed.
    pub flushed: Option<Lsn>,
    /// What it has replayed. A copy that is being made streams as well, and replays nothing.
    pub replayed: Option<Lsn>,
}

impl Sender {
    /// A standby that streams and replays.
    pub fn is_standby(&self) -> bool {
        self.streaming && self.replayed.is_some()
    }
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Roll clients back, write a checkpoint. One that takes longer than its patience becomes an immediate one.
    Fast,
    /// As after a crash.
    Immediate,
}

/// How a server has ended, by its `pg_control`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Shut down as a primary, with a checkpoint.
    pub is_clean: bool,
    /// Where the last checkpoint begins.
    pub checkpoint: Lsn,
    /// `pg_control`'s word for it.
    pub state: String,
}

/// The server of a node, its files and its process. A method that is given no answer in its time gives an error.
pub trait Server: Host {
    /// A server's process.
    type Process;
    /// All that one look at the server tells.
    type Seen;

    /// What of that the procedures go by.
    fn facts_of(&self, seen: &Self::Seen) -> Facts;

    /// The server's process, while it is alive.
    fn process(&self) -> Option<Self::Process>;

    /// This node's tags, as its file has them.
    fn tags(&self) -> Tags;
    /// What is known of its synchronous standbys.
    fn standbys(&self) -> &Standbys;

    // ---- SQL ----

    /// Asks it what it is.
    fn facts(&self) -> impl Future<Output = Result<Facts>>;
    /// Has the checkpointer taken up that commits wait for standbys?
    fn standbys_awaited(&self) -> impl Future<Output = Result<bool>>;
    /// Commits something that waits for nobody.
    fn commit_marker(&self) -> impl Future<Output = Result<()>>;

    // ---- Its configuration ----

    /// Writes the configuration of a primary, with the standbys that are noted; true if something changed.
    fn configure_primary(&self, view: &ClusterView) -> impl Future<Output = Result<bool>>;
    /// Writes the configuration of a standby that follows nobody and is about to be promoted, with these synchronous standbys.
    fn configure_for_promotion(&self, view: &ClusterView, standbys: &Setting) -> impl Future<Output = Result<()>>;
    /// Makes it read its configuration again; does not wait for that.
    fn reload(&self) -> impl Future<Output = Result<()>>;
    /// As [`Server::reload`], and returns once the postmaster is known to have told every process of an earlier reload.
    fn reload_and_see(&self) -> impl Future<Output = Result<()>>;

    // ---- Leading ----

    /// Renews the lease once, now, and says whether it counts.
    fn confirm_lease(&self, view: &ClusterView) -> impl Future<Output = bool>;
    /// Does the operator's hook allow the promotion?
    fn may_promote(&self) -> impl Future<Output = Result<()>>;
    /// Arms the watchdog: before the first moment at which the server may write. It is kept while a procedure goes on.
    fn arm(&self, ttl: Duration) -> impl Future<Output = Result<impl Sized>>;
    /// For so long this node does not stand for leadership.
    fn stand_down(&self, time: Duration) -> impl Future<Output = ()>;

    /// What is read of the cluster's members, this node's own lease included: is the name in use by another instance?
    fn in_use(&self, view: &ClusterView) -> Option<InUse>;
    /// Says in the member key what this node is doing while no server speaks for it, and keeps the lease meanwhile.
    fn speak(&self, state: MemberState, role: MemberRole);
    /// Says nothing any more, and keeps no lease.
    fn fall_silent(&self);
    /// Takes the virtual addresses off this node.
    fn release_addresses(&self) -> impl Future<Output = ()>;

    // ---- Start and stop ----

    /// Starts it as primary; it is not waited for.
    fn start_primary(&self, view: &ClusterView) -> impl Future<Output = Result<Done>>;
    /// Starts it as a standby; it is not waited for.
    fn start_standby(&self, view: &ClusterView, upstream: &Upstream) -> impl Future<Output = Result<Done>>;
    /// Stops it, with this much patience for a fast stop. True if it was clean, or none runs.
    fn stop(&self, how: Stop, patience: Duration) -> impl Future<Output = Result<bool>>;
    /// Nothing of a dead postmaster is left when this returns.
    fn clear_orphans(&self) -> impl Future<Output = Result<()>>;
    /// Ends it whatever state it is in: no process of it runs an instruction of its own when this returns.
    fn end_by_force(&self) -> impl Future<Output = Result<()>>;
    /// How it has ended.
    fn ended(&self) -> impl Future<Output = Result<Ended>>;
    /// A synchronous standby on its way out: the primary is told and takes it off its list, within a bounded time.
    fn leave(&self) -> impl Future<Output = ()>;
    /// The key was given up, and with it this server's part: who wants to know that is told.
    fn demoted(&self);

    // ---- Switchover ----

    /// Makes a checkpoint.
    fn checkpoint(&self) -> impl Future<Output = Result<()>>;
    /// Does any session write?
    fn is_writing(&self) -> impl Future<Output = Result<bool>>;
    /// Commits that begin from here on wait, for so long at most.
    fn drain(&self, most: Duration) -> impl Future<Output = Result<()>>;
    /// They wait no more.
    fn undrain(&self) -> impl Future<Output = Result<()>>;
    /// Before the drain: what is beside the server (poolers, other groups) holds its work back until what this gives is dropped.
    fn quieten(&self, view: &ClusterView, leaving: bool) -> impl Future<Output = Result<impl Sized>>;
    /// Those of the members that answer, as standbys whose Postgres serves; all are asked at once.
    fn answering(&self, view: &ClusterView, names: &[MemberName]) -> impl Future<Output = BTreeSet<MemberName>>;
    /// How far that member says that it is, asked now.
    fn position_of(&self, view: &ClusterView, name: &MemberName) -> impl Future<Output = Result<Lsn>>;
    /// For how long a promise of `failsafe_mode` binds that member yet; None where none does, or it does not answer.
    fn promise_of(&self, view: &ClusterView, name: &MemberName) -> impl Future<Output = Option<Duration>>;
    /// Tells the sessions that listen on this server that it is about to be a standby. Nobody waits for it.
    fn announce_switchover(&self, to: &MemberName);
    /// From the drain to the new leader it took this long.
    fn handed_over(&self, took: Duration);
    /// A switchover was given up: a record for a person who asks why.
    fn gave_up_switchover(&self, view: &ClusterView, local: &LocalState, why: String);

    // ---- Duties whose work is files and programs ----

    /// One round of upkeep.
    fn rest(&self, judged: Judged<'_, Self::Seen>) -> impl Future<Output = Result<Done>>;
    /// Makes the cluster, or finds that another node does.
    fn found(&self, judged: Judged<'_, Self::Seen>) -> impl Future<Output = Result<Done>>;
    /// Copies the data, and starts the server as a standby.
    fn clone_from(&self, judged: Judged<'_, Self::Seen>, from: &Upstream) -> impl Future<Output = Result<Done>>;
    /// Makes the data from a backup.
    fn restore(&self, view: &ClusterView) -> impl Future<Output = Result<Done>>;
    /// The server that runs follows this upstream from now on.
    fn follow(&self, view: &ClusterView, upstream: &Upstream) -> impl Future<Output = Result<Done>>;
    /// Winds the data back to that history, and starts the server as a standby.
    fn rewind(&self, view: &ClusterView, from: &Upstream) -> impl Future<Output = Result<Done>>;
    /// A sick server that does not do what it is told is ended by force, and that member is given the key, or another may take it.
    fn give_way(&self, judged: Judged<'_, Self::Seen>, to: &MemberName) -> impl Future<Output = Result<Done>>;
    /// Brings what an interruption left of a major upgrade to the end that it is owed.
    fn resume_upgrade(&self, view: &ClusterView, owed: Owed) -> impl Future<Output = Result<Done>>;
    /// Brings what an interruption left of a restore to a point in the past to the end that it is owed.
    fn resume_restore(&self, view: &ClusterView, owed: cluster::restore::Owed) -> impl Future<Output = Result<Done>>;
    /// A primary cluster becomes a standby cluster.
    fn demote_cluster(&self, view: &ClusterView, term: Term) -> impl Future<Output = Result<Done>>;

    // ---- Promotion ----

    /// Keeps the server from beginning a timeline after this one and before the claimed one.
    fn pass_over_timelines(&self, mine: Timeline, claimed: Timeline) -> impl Future<Output = Result<()>>;
    /// What else must be so before this server is promoted.
    fn prepare_promotion(&self, view: &ClusterView, begins_with: &Setting) -> impl Future<Output = Result<()>>;
    /// Tells that server process to leave recovery; does not wait for it.
    fn promote(&self, process: &Self::Process, term: Term) -> impl Future<Output = Result<()>>;
    /// The server left recovery after so long: the processes that want to know are told, the lease worker among them.
    fn promoted(&self, took: Duration) -> impl Future<Output = ()>;
    /// Begins the first checkpoint of a new primary in the background, unless it is under way.
    fn begin_first_checkpoint(&self);
}
