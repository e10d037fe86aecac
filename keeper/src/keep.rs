//! The keeper: renews the lease for ever, and gets one where there is none.

use crate::{Host, RETRY, Worker, first_of};
use cluster::leader::{Leader, LeaseId};
use cluster::lease;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::lease::{self as leases, HeldLease, NoLease};
use dcs::{Error, LocalDcs};
use std::convert::Infallible;
use std::ops::Deref;
use std::time::Duration;

impl<S, H> Worker<S, H>
where
    S: Deref<Target: LocalDcs + Sized>,
    H: Host,
{
    /// Renews the lease for ever.
    pub async fn keep_lease(&self) -> Infallible {
        loop {
            let pause = match self.held.get() {
                Some(held) => self.renew(held).await,
                None => match self.acquire_lease().await {
                    Ok(held) => {
                        self.held.set(Some(held));
                        self.host.look_again();
                        lease::renew_every(held.grant.ttl)
                    }
                    Err(why) => {
                        self.tell("lease", &format!("no lease: {why}"));
                        RETRY
                    }
                },
            };
            first_of(self.host.sleep(pause), self.host.lease_wanted()).await;
        }
    }

    async fn renew(&self, held: HeldLease) -> Duration {
        let wall_look = self.host.before_renewal();
        let sent = self.clock();
        match leases::renew(&*self.store, || self.clock(), held.grant.lease).await {
            Ok(renewed) => {
                self.host.renewal_took(self.clock().since(sent));
                let deadline = renewed.held.deadline;
                self.host.after_renewal(wall_look);
                self.host.etcd_answered();
                // The turn may have changed the lease while the answer was under way.
                if let Some(now) = self.held.get().filter(|now| now.grant.lease == held.grant.lease) {
                    self.held.set(Some(HeldLease { deadline: deadline.max(now.deadline), ..now }));
                    // Kept by an etcd that is not believed, the lease keeps nobody else away.
                    if self.host.page().lease() == held.grant.lease.0 && !self.doubts() && renewed.doubt.is_none() {
                        self.renew_page(renewed.leader.as_ref(), held.grant.lease, deadline);
                    } else if renewed.doubt.is_some() {
                        self.host.look_again();
                    }
                }
                lease::renew_every(held.grant.ttl)
            }
            Err(Error::LeaseGone) => {
                self.host.etcd_answered();
                self.tell("lease", &format!("etcd says that lease {} has run out", held.grant.lease));
                self.host.note("etcd says that the lease has run out");
                // Of an etcd that was emptied or restored this is no fact: the deadline still holds in the one that granted the lease.
                let doubted = matches!(self.store.load_view().await, Err(Error::Doubted { .. }));
                if self.host.page().lease() == held.grant.lease.0 && !doubted {
                    self.host.change(|page| page.close());
                }
                self.held.set(None);
                self.host.look_again();
                Duration::ZERO
            }
            Err(why) => {
                let left = held.deadline.since(self.clock());
                self.tell("lease", &format!("lease not renewed, {} ms are left: {why}", left.as_millis()));
                RETRY
            }
        }
    }

    /// The lease lives on; the page only where the leader key hung on it still after the renewal, in the page's own
    /// term, and no write is under way that would put the key elsewhere.
    ///
    /// A page whose time is over is opened again by a view only, never by a renewal. Until that moment no other node can have led; after it one may have,
    /// and an etcd that was restored to before that shows the old key on the old lease, in the old term. A view is judged by what the members
    /// say in it that they know; the leader key alone says nothing of them.
    fn renew_page(&self, leader: Option<&Leader>, lease: LeaseId, deadline: Moment) {
        let term = self.host.page().term();
        let ours = leader.is_some_and(|leader| leader.name == self.name && leader.lease == lease && leader.term.0 == term);
        let runs = self.clock() < self.host.page().fence().deadline;
        if ours && runs && self.moving.get().is_none() {
            self.host.change(|page| page.renew(deadline));
        } else {
            self.host.look_again();
        }
    }

    /// Finds the lease under this instance's own name, or gets a new one and puts the member key on it.
    async fn acquire_lease(&self) -> Result<HeldLease, NoLease> {
        let mine = self.compose(self.host.server());
        let ttl = |view: &ClusterView| view.config().timing().ttl;
        let acquired = leases::acquire(&*self.store, || self.clock(), &self.name, &mine, ttl).await?;
        self.host.etcd_answered();
        Ok(acquired.held)
    }

    /// etcd answers, and it is not believed.
    fn doubts(&self) -> bool {
        self.host.remembered().is_some_and(|remembered| remembered.doubt().is_some())
    }
}
