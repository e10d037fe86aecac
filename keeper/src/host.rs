//! What the loops need of the process that they run in.

use crate::server::OwnServer;
use crate::tenure::Tenure;
use cluster::failsafe::Spoken;
use cluster::hearing::Answer;
use cluster::member::Member;
use cluster::name::{SystemId, Timeline};
use cluster::slots::Publication;
use cluster::standing::Bond;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::remember::Remembered;
use std::future::Future;
use std::time::Duration;

/// The process: its clock, its server, its page, its log. One thread; no method may block.
pub trait Host {
    // ---- Time ----

    /// CLOCK_BOOTTIME now, by which deadlines are counted.
    fn clock(&self) -> Moment;
    /// The wall clock, for what people read.
    fn wall_clock(&self) -> jiff::Timestamp;
    /// Passes time.
    fn sleep(&self, span: Duration) -> impl Future<Output = ()>;

    // ---- Wakes: one permit each, kept until it is taken ----

    /// The turns are to look again now.
    fn look_again(&self);
    /// Waits until the turns are to look again.
    fn look_wanted(&self) -> impl Future<Output = ()>;
    /// A lease is missing or must change: the keeper is to see to it.
    fn want_lease(&self);
    /// Waits until the keeper is to see to the lease.
    fn lease_wanted(&self) -> impl Future<Output = ()>;
    /// Makes the arbiter look again; never waits.
    fn wake_arbiter(&self);

    // ---- The own server ----

    /// Where it is.
    fn server(&self) -> OwnServer;
    /// Whose data it has.
    fn system_id(&self) -> SystemId;
    /// The timeline in `pg_control`; older than the server's own until the first checkpoint after a promotion.
    fn checkpointed_timeline(&self) -> Option<Timeline>;
    /// A WAL receiver is there, or is being started.
    fn receiver_running(&self) -> bool;
    /// Asks the WAL receiver to end; does not wait for it.
    fn stop_receiver(&self);

    /// What [`Host::keep_bond`] kept last is kept so that neither this process' end nor the server's nor the host's undoes it. None ends it.
    /// From the moment it is kept no receiver that begins may receive from a server that it forbids ([`cluster::deposition::may_receive`]).
    /// A host that can't keep one deposes nobody.
    fn keep_bond(&self, _bond: Option<&Bond>) -> impl Future<Output = Result<(), String>> {
        std::future::ready(Err("this server has nothing yet that keeps its WAL receiver to it".to_owned()))
    }

    /// That this server has said a word that counts for a vacancy is kept as a bond is, before the word. None ends it.
    /// A host that can't keep it says no word where one has to be kept.
    fn keep_word(&self, _spoken: Option<Spoken>) -> impl Future<Output = Result<(), String>> {
        std::future::ready(Err("this server has nothing that keeps what it has said".to_owned()))
    }

    // ---- The leader ----

    /// One try to hear the leader, by its WAL, its arbiter or its Postgres; silent after `patience`.
    fn hear(&self, _leader: &Member, _patience: Duration) -> impl Future<Output = Answer> {
        std::future::ready(Answer::Silent)
    }
    /// Waits until there is a reason to try at once: the WAL receiver ended.
    fn listen_wanted(&self) -> impl Future<Output = ()> {
        std::future::pending()
    }

    // ---- The page ----

    /// The page that commits are judged by.
    fn page(&self) -> &Tenure;
    /// Changes the page and wakes those that wait for it.
    fn change<T>(&self, change: impl FnOnce(&Tenure) -> T) -> T;
    /// Looks at the wall clock before a renewal is sent.
    fn before_renewal(&self) -> i64;
    /// That renewal succeeded; deadlines go by that look from here on.
    fn after_renewal(&self, look: i64);

    // ---- The arbiter ----

    /// The arbiter has looked after this server within its patience.
    fn arbiter_attends(&self, now: Moment, patience: Duration) -> bool;
    /// The part of the member key that the arbiter configures: addresses and tags. An error is why it can't be understood; then what is
    /// given is a member that nobody can reach.
    fn configured(&self) -> (Member, Option<String>);
    /// Puts into the member key what else the arbiter wants to have said.
    fn describe(&self, member: &mut Member);
    /// The positions of slots, as the arbiter has handed them over.
    fn slots(&self) -> Option<Publication>;

    // ---- What others learn ----

    /// What this node remembers of etcd's keys, where it does.
    fn remembered(&self) -> Option<&Remembered>;
    /// A change worth telling: for the log, and among the events. `line` is all of it in one line.
    fn record(&self, kind: &str, text: &str, cause: &str, line: &str);
    /// Why this server does not lead, or is about to lead no more, in a clause for a client that is refused; empty where there is nothing to say.
    fn note(&self, why: &str);
    /// A turn begins.
    fn turn_begins(&self);
    /// etcd answered something just now.
    fn etcd_answered(&self);
    /// A view that is believed was read.
    fn seen(&self, view: &ClusterView);
    /// Serves the request that a session has put into the mailbox, if there is one.
    fn serve_requests(&self, view: &ClusterView) -> impl Future<Output = ()>;
    /// Answers that request, if there is one, with this reason for doing nothing.
    fn decline_requests(&self, why: &str);
    /// A renewal took this long.
    fn renewal_took(&self, span: Duration);
    /// From the vacancy to the key it took this long.
    fn race_took(&self, span: Duration);
}
