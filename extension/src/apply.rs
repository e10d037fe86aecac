//! RaceStep -> etcd and shared memory; and how the node's lease is found, made and changed.

use crate::observe;
use crate::publish;
use crate::shmem::{self, page};
use crate::worker::Worker;
use cluster::leader::{LeaseId, Term};
use cluster::lease;
use cluster::race::{Judged, RaceStep};
use cluster::reason::Decision;
use cluster::view::{Announcement, ClusterView};
use dcs::lease::{Held, NoLease};
use dcs::{Dcs, Error};
use std::time::Duration;

/// How long a receiver that was told to end may take before the vacancy goes on without this node.
const RECEIVER_STOP: Duration = Duration::from_secs(1);

/// What the loop does after a step.
pub enum Applied {
    /// Nothing to wait for.
    Settled,
    /// Look again after this long, or when woken.
    LookAfter(Duration),
    /// The world changed by our hand.
    LookNow,
}

/// The step as a word for the log.
pub fn name_of(step: &RaceStep) -> &'static str {
    match step {
        RaceStep::Rest => "no action",
        RaceStep::Wait(_) => "wait",
        RaceStep::Announce(word) if word.stands => "stand",
        RaceStep::Announce(_) => "stand aside",
        RaceStep::Take(_) => "take the leader key",
    }
}

/// Does what was decided.
pub async fn race_step(worker: &Worker, decision: Decision<RaceStep>) -> Applied {
    match decision.what {
        RaceStep::Rest => Applied::Settled,
        RaceStep::Wait(pause) => Applied::LookAfter(pause),
        RaceStep::Announce(word) => announce(worker, word).await,
        RaceStep::Take(judged) => take(worker, &judged).await,
    }
}

/// Stops receiving, reads the position after that, says it.
async fn announce(worker: &Worker, mut word: Announcement) -> Applied {
    let Some(held) = worker.held.get() else { return Applied::LookAfter(RECEIVER_STOP) };
    if word.stands && !word.primary && !word.receives {
        // From here on the old leader, whatever its clock says, gets no further confirmation from us.
        let stopped = async {
            while observe::receiver_running() {
                observe::stop_receiver();
                // A level, not an event: nothing tells another process that a receiver has ended.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(RECEIVER_STOP, stopped).await.is_err() {
            worker.tell("race", "the WAL receiver does not end: not standing before it has");
            return Applied::LookNow;
        }
        let server = observe::server();
        word.lsn = server.position();
        word.timeline = server.timeline();
    }
    match worker.etcd.announce(&worker.name, &word, held.grant.lease).await {
        Ok(()) | Err(Error::Lost(_)) => Applied::LookNow,
        Err(why) => {
            worker.tell("race", &format!("position not announced: {why}"));
            Applied::LookAfter(Duration::from_millis(100))
        }
    }
}

/// The page says that the key is being taken, until this is dropped: also where a reload ends the turn in the middle, or
/// this node would promise nobody anything from then on.
struct Taking;

impl Taking {
    /// None where a promise of `failsafe_mode` forbids it.
    fn begin() -> Option<Taking> {
        page().begin_taking(shmem::boottime()).then(|| Taking)
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        page().end_taking();
    }
}

async fn take(worker: &Worker, judged: &Judged) -> Applied {
    let server = observe::server();
    if !server.is_primary() && judged.position.is_some_and(|announced| announced != (server.timeline(), server.position())) {
        return Applied::LookNow; // received more since: say so first
    }
    let Some(held) = worker.held.get().filter(|held| shmem::boottime() < held.deadline) else {
        return Applied::LookAfter(Duration::from_millis(100));
    };
    let Some(_taking) = Taking::begin() else { return Applied::LookAfter(Duration::from_millis(100)) };
    // Where the answer is lost the key may become ours yet: then the page opens only while nothing is promised.
    match worker.etcd.take_leader(&worker.name, held.grant.lease, judged).await {
        Ok(term) => {
            // The deadline is the lease's: the key hangs on it, so it lives as long.
            let held = worker.held.get().filter(|now| now.grant.lease == held.grant.lease).unwrap_or(held);
            // A standby cluster is led with a closed fence; the next turn says until when. So is one whose old leader may still take
            // over until this node is promoted.
            if judged.position.is_some() && !judged.sync_becomes.as_ref().is_some_and(|sync| sync.until_promoted) {
                page().open(term.0, held.grant.lease.0, held.deadline);
            }
            if let Some(since) = worker.vacant_since() {
                page().timings.race.observe(shmem::boottime().since(since));
            }
            worker.tell("leader", &format!("took the leader key, term {term}"));
            shmem::wake_arbiter();
            Applied::LookNow
        }
        Err(Error::Lost(what)) => {
            worker.tell("race", &format!("{what} changed while the key was being taken: looking again"));
            Applied::LookNow
        }
        Err(why) => {
            // Perhaps it was written and the answer was lost: the next look tells.
            worker.tell("race", &format!("leader key not taken: {why}"));
            Applied::LookAfter(Duration::from_millis(100))
        }
    }
}

/// Finds the lease under this instance's own name, or gets a new one and puts the member key on it.
pub async fn acquire_lease(worker: &Worker) -> Result<Held, NoLease> {
    let mine = publish::compose(worker, observe::server());
    let ttl = |view: &ClusterView| view.config().timing().ttl;
    let acquired = dcs::lease::acquire(&*worker.etcd, shmem::boottime, &worker.name, &mine, ttl).await?;
    worker.etcd_answered();
    Ok(acquired.held)
}

/// A move of everything onto a new lease, sent and perhaps done.
#[derive(Debug, Clone, Copy)]
pub struct Moving {
    /// The new lease.
    pub onto: Held,
    /// The term of the leader key that the write compares; none where the member key moves alone.
    judged: Option<Term>,
}

/// The configured TTL is another one: a lease's TTL never changes, so everything moves to a new lease.
///
/// An answer that is lost is neither a yes nor a no: the keys may hang on the new lease already, or come to hang on it later. So
/// the new lease is not revoked, the page counts on neither lease for longer than on the shorter one, and the same write is
/// sent again until the view shows where the keys are. Two writes of one move can't both be done: the first changes the
/// term that the second compares. True where the caller's view is old by now, whatever became of the move.
pub async fn change_ttl(worker: &Worker, view: &ClusterView, held: Held) -> bool {
    if let Some(moving) = worker.moving.get() {
        return settle_move(worker, view, held, moving).await;
    }
    let ttl = view.config().timing().ttl;
    let due = view.config.is_some() && held.grant.ttl != ttl && worker.ttl_refused.get() != Some(ttl);
    if !due {
        return false;
    }
    let sent = shmem::boottime();
    let Ok(grant) = worker.etcd.grant(ttl).await else { return false };
    if grant.ttl == held.grant.ttl {
        // etcd raised what was asked for to what we have already.
        worker.ttl_refused.set(Some(ttl));
        let _ = worker.etcd.revoke(grant.lease).await;
        return false;
    }
    let judged = view.leader_if(&worker.name).filter(|leader| leader.lease == held.grant.lease).map(|leader| leader.term);
    let onto = Held { grant, deadline: lease::deadline(sent, grant.ttl) };
    send_move(worker, view, held, Moving { onto, judged }).await;
    true
}

async fn send_move(worker: &Worker, view: &ClusterView, held: Held, moving: Moving) {
    let first = worker.moving.replace(Some(moving)).is_none();
    if page().lease() == held.grant.lease.0 {
        // Before it is sent: from then on the key may hang on either lease.
        page().shorten(moving.onto.deadline);
    }
    let member = publish::compose(worker, observe::server());
    let lease = moving.onto.grant.lease;
    let moved = match view.leader_if(&worker.name).filter(|leader| Some(leader.term) == moving.judged) {
        Some(leader) => worker.etcd.move_leader(leader, &member, lease).await.map(Some),
        None => worker.etcd.write_member(&worker.name, &member, lease, None).await.map(|()| None),
    };
    match moved {
        Ok(term) => moved_to(worker, held, moving.onto, term.filter(|_| worker.may_serve(view))).await,
        Err(why) => {
            let told = format!("TTL not changed to {} s: {why}", moving.onto.grant.ttl.as_secs());
            if why == Error::LeaseGone {
                // Nothing was written onto a lease that is gone, and nothing can be.
                worker.moving.set(None);
            } else if first && !why.is_unknown() {
                // Nothing was written, and nothing of it is under way.
                worker.moving.set(None);
                let _ = worker.etcd.revoke(lease).await;
            }
            worker.tell("lease", &told);
        }
    }
}

/// A move was sent before this view was read: what came of it?
async fn settle_move(worker: &Worker, view: &ClusterView, held: Held, moving: Moving) -> bool {
    let lease = moving.onto.grant.lease;
    let leader = view.leader_if(&worker.name);
    let on_new = |at: LeaseId| at == lease;
    if leader.is_some_and(|leader| on_new(leader.lease)) || leader.is_none() && view.lease_of(&worker.name).is_some_and(on_new) {
        // The next turn opens the page by a view that was read after this.
        moved_to(worker, held, moving.onto, None).await;
    } else if leader.map(|leader| leader.term) == moving.judged {
        send_move(worker, view, held, moving).await;
    } else {
        // Another term: the write compares what is never so again. Nobody renews that lease; it runs out.
        worker.moving.set(None);
    }
    true
}

async fn moved_to(worker: &Worker, held: Held, onto: Held, term: Option<Term>) {
    worker.moving.set(None);
    worker.held.set(Some(onto));
    if let Some(term) = term {
        page().open(term.0, onto.grant.lease.0, onto.deadline);
    }
    worker.tell("lease", &format!("the lease now lives for {} s", onto.grant.ttl.as_secs()));
    worker.want_lease();
    // The keeper may have found the new one already.
    if held.grant.lease != onto.grant.lease {
        let _ = worker.etcd.revoke(held.grant.lease).await;
    }
    worker.look_again();
}
