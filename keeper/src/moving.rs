//! A changed TTL: everything that hangs on the lease moves onto a new one.

use crate::race::Taking;
use crate::{Host, Moving, Worker};
use cluster::leader::{LeaseId, Term};
use cluster::lease;
use cluster::view::ClusterView;
use dcs::lease::HeldLease;
use dcs::{Error, LocalDcs};
use std::ops::Deref;

impl<S, H> Worker<S, H>
where
    S: Deref<Target: LocalDcs + Sized>,
    H: Host,
{
    /// The configured TTL is another one: a lease's TTL never changes, so everything moves to a new lease.
    ///
    /// An answer that is lost is neither a yes nor a no: the keys may hang on the new lease already, or come to hang on it later. So
    /// the new lease is not revoked, the page counts on neither lease for longer than on the shorter one, and the same write is
    /// sent again until the view shows where the keys are. Two writes of one move can't both be done: the first changes the
    /// term that the second compares. True where the caller's view is old by now, whatever became of the move.
    pub(crate) async fn change_ttl(&self, view: &ClusterView, held: HeldLease) -> bool {
        if let Some(moving) = self.moving.get() {
            return self.settle_move(view, held, moving).await;
        }
        let ttl = view.config().timing().ttl;
        let due = view.config.is_some() && held.grant.ttl != ttl && self.ttl_refused.get() != Some(ttl);
        if !due {
            return false;
        }
        let sent = self.clock();
        let Ok(grant) = self.store.grant(ttl).await else { return false };
        if grant.ttl == held.grant.ttl {
            // etcd raised what was asked for to what we have already.
            self.ttl_refused.set(Some(ttl));
            let _ = self.store.revoke(grant.lease).await;
            return false;
        }
        let judged = view.leader_if(&self.name).filter(|leader| leader.lease == held.grant.lease).map(|leader| leader.term);
        let onto = HeldLease { grant, deadline: lease::deadline(sent, grant.ttl) };
        self.send_move(view, held, Moving { onto, judged }).await;
        true
    }

    async fn send_move(&self, view: &ClusterView, held: HeldLease, moving: Moving) {
        let first = self.moving.replace(Some(moving)).is_none();
        if self.host.page().lease() == held.grant.lease.0 {
            // Before it is sent: from then on the key may hang on either lease.
            self.host.change(|page| page.shorten(moving.onto.deadline));
        }
        let member = self.compose(self.host.server());
        let lease = moving.onto.grant.lease;
        let moved = match view.leader_if(&self.name).filter(|leader| Some(leader.term) == moving.judged) {
            Some(leader) => self.store.move_leader(leader, &member, lease).await.map(Some),
            None => self.store.write_member(&self.name, &member, lease, None).await.map(|()| None),
        };
        match moved {
            Ok(term) => {
                // A key that waits for the end of this node's promise waits for it on its new lease, too.
                let opening = Taking::opening(&self.host);
                let now = self.clock();
                let waits = moving.judged.is_some_and(|judged| self.promise_keeps_closed(view, self.host.server(), judged, now));
                self.moved_to(held, moving.onto, term.filter(|_| !waits && self.may_serve(view)), Some(opening)).await;
            }
            Err(why) => {
                let told = format!("TTL not changed to {} s: {why}", moving.onto.grant.ttl.as_secs());
                if why == Error::LeaseGone {
                    // Nothing was written onto a lease that is gone, and nothing can be.
                    self.moving.set(None);
                } else if first && !why.is_unknown() {
                    // Nothing was written, and nothing of it is under way.
                    self.moving.set(None);
                    let _ = self.store.revoke(lease).await;
                }
                self.tell("lease", &told);
            }
        }
    }

    /// A move was sent before this view was read: what came of it?
    async fn settle_move(&self, view: &ClusterView, held: HeldLease, moving: Moving) -> bool {
        let lease = moving.onto.grant.lease;
        let leader = view.leader_if(&self.name);
        let on_new = |at: LeaseId| at == lease;
        if leader.is_some_and(|leader| on_new(leader.lease)) || leader.is_none() && view.lease_of(&self.name).is_some_and(on_new) {
            // The next turn opens the page by a view that was read after this.
            self.moved_to(held, moving.onto, None, None).await;
        } else if leader.map(|leader| leader.term) == moving.judged {
            self.send_move(view, held, moving).await;
        } else {
            // Another term: the write compares what is never so again. Nobody renews that lease; it runs out.
            self.moving.set(None);
        }
        true
    }

    async fn moved_to(&self, held: HeldLease, onto: HeldLease, term: Option<Term>, opening: Option<Taking<'_, H>>) {
        self.moving.set(None);
        self.held.set(Some(onto));
        if let Some(term) = term {
            self.host.change(|page| page.open(term.0, onto.grant.lease.0, onto.deadline));
        }
        drop(opening);
        self.tell("lease", &format!("the lease now lives for {} s", onto.grant.ttl.as_secs()));
        self.host.want_lease();
        // The keeper may have found the new one already.
        if held.grant.lease != onto.grant.lease {
            let _ = self.store.revoke(held.grant.lease).await;
        }
        self.host.look_again();
    }
}
