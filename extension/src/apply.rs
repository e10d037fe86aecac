//! RaceStep -> etcd and shared memory; and how the node's lease is found, made and changed.

use crate::observe;
use crate::publish;
use crate::shmem::{self, page};
use crate::worker::{Held, Worker};
use cluster::leader::LeaseId;
use cluster::lease;
use cluster::race::{Judged, RaceStep};
use cluster::reason::Decision;
use cluster::view::{Announcement, ClusterView};
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
        RaceStep::Rest => "rest",
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
            // A standby cluster is led with a closed fence; the next turn says until when.
            if judged.position.is_some() {
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

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum NoLease {
    /// The store.
    #[error("{0}")]
    Store(#[from] Error),
    /// Another node goes by our name.
    #[error("the name {name} is in use by the node at {other}: give this node another name, or wait until the other's key has run out")]
    NameClash {
        /// Our name.
        name: String,
        /// The other's address.
        other: String,
    },
}

/// Finds the lease under this node's own name, or gets a new one and puts the member key on it.
pub async fn acquire_lease(worker: &Worker) -> Result<Held, NoLease> {
    let view = worker.etcd.load_view().await?;
    worker.etcd_answered();
    let server = observe::server();
    let mine = publish::compose(worker, server);
    let judged = match view.members.get(&worker.name) {
        Some(entry) if entry.member.conn_url != mine.conn_url => {
            return Err(NoLease::NameClash { name: worker.name.to_string(), other: entry.member.conn_url.clone() });
        }
        Some(entry) if entry.lease != LeaseId::NONE => match adopt(worker, entry.lease).await {
            Err(Error::LeaseGone) => entry.revision,
            Ok(held) => return Ok(held),
            Err(why) => return Err(why.into()),
        },
        Some(entry) => entry.revision,
        None => 0,
    };
    let sent = shmem::boottime();
    let grant = worker.etcd.grant(view.config().timing().ttl.max(lease::TTL_MINIMUM)).await?;
    let written = worker.etcd.write_member(&worker.name, &mine, grant.lease, Some(judged)).await;
    if let Err(why) = written {
        // Somebody else of this node (its arbiter) was faster; the next try adopts what it made.
        let _ = worker.etcd.revoke(grant.lease).await;
        return Err(why.into());
    }
    Ok(Held { grant, deadline: lease::deadline(sent, grant.ttl) })
}

async fn adopt(worker: &Worker, lease: LeaseId) -> Result<Held, Error> {
    let grant = worker.etcd.find_lease(lease).await?;
    let sent = shmem::boottime();
    worker.etcd.renew(lease).await?;
    Ok(Held { grant, deadline: lease::deadline(sent, grant.ttl) })
}

/// The configured TTL is another one: a lease's TTL never changes, so everything moves to a new lease.
pub async fn change_ttl(worker: &Worker, view: &ClusterView, held: Held) {
    let ttl = view.config().timing().ttl;
    let sent = shmem::boottime();
    let Ok(grant) = worker.etcd.grant(ttl).await else { return };
    if grant.ttl == held.grant.ttl {
        // etcd raised what was asked for to what we have already.
        worker.ttl_refused.set(Some(ttl));
        let _ = worker.etcd.revoke(grant.lease).await;
        return;
    }
    let member = publish::compose(worker, observe::server());
    let moved = match view.leader_if(&worker.name).filter(|leader| leader.lease == held.grant.lease) {
        Some(leader) => worker.etcd.move_leader(leader, &member, grant.lease).await.map(Some),
        None => worker.etcd.write_member(&worker.name, &member, grant.lease, None).await.map(|()| None),
    };
    match moved {
        Ok(term) => {
            let deadline = lease::deadline(sent, grant.ttl);
            worker.held.set(Some(Held { grant, deadline }));
            if let Some(term) = term.filter(|_| !view.is_standby_cluster()) {
                page().open(term.0, grant.lease.0, deadline);
            }
            worker.tell("lease", &format!("the lease now lives for {} s", grant.ttl.as_secs()));
            worker.want_lease();
            let _ = worker.etcd.revoke(held.grant.lease).await;
            worker.look_again();
        }
        Err(why) => {
            worker.tell("lease", &format!("TTL not changed to {} s: {why}", ttl.as_secs()));
            let _ = worker.etcd.revoke(grant.lease).await;
        }
    }
}
