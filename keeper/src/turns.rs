//! The turns: look at the cluster, settle the page, publish, race.

use crate::race::Taking;
use crate::{Host, OwnServer, RETRY, STAND_DOWN, Worker, first_of};
use cluster::closed;
use cluster::instance::{self, InUse};
use cluster::leader::Term;
use cluster::mixed;
use cluster::race;
use cluster::reason::Reason;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::lease::HeldLease;
use dcs::{Error, LocalDcs};
use std::convert::Infallible;
use std::ops::Deref;
use std::time::Duration;

impl<S, H> Worker<S, H>
where
    S: Deref<Target: LocalDcs + Sized>,
    H: Host,
{
    /// Looks, decides and applies whenever something may have changed.
    pub async fn turns(&self) -> Infallible {
        loop {
            self.host.turn_begins();
            let pause = self.turn().await;
            first_of(self.host.sleep(pause), self.host.look_wanted()).await;
        }
    }

    async fn turn(&self) -> Duration {
        // As it was before the view is read: a node that leads on this lease then leads until this deadline, unless we give the key away.
        let held = self.held.get();
        let view = match self.store.load_view().await {
            Ok(view) => view,
            Err(Error::Doubted { doubt, view }) => {
                // Nothing is raced for, opened or closed by it. What this member knows is said in its own key.
                self.tell("etcd", &format!("{doubt}: it is not believed, commits wait at the fence once the lease runs out"));
                self.host.note("etcd answers with keys that it should not have, and is not believed");
                self.host.decline_requests(&format!("etcd is not believed: {doubt}"));
                self.host.etcd_answered();
                let server = self.host.server();
                let held = self.held.get().map(|held| held.grant.lease);
                if instance::in_use(&view, &self.name, &self.compose(server), held).is_none() {
                    self.publish_member(&view, server, self.clock()).await;
                }
                return RETRY;
            }
            Err(why) => {
                self.tell("etcd", &why.to_string());
                self.host.note(if why.is_unknown() { "etcd does not answer" } else { "etcd's answer is of no use" });
                self.host.decline_requests(&format!("etcd does not answer: {why}"));
                return RETRY;
            }
        };
        let now = self.clock();
        self.host.etcd_answered();
        self.host.seen(&view);
        let server = self.host.server();
        let mine = self.compose(server);
        if let Some(other) = instance::in_use(&view, &self.name, &mine, self.held.get().map(|held| held.grant.lease)) {
            return self.keep_out(&other);
        }
        self.host.serve_requests(&view).await;
        *self.view.borrow_mut() = Some((view.clone(), now));
        let loop_wait = view.config().timing().loop_wait;
        if view.system_id().is_some_and(|id| *id != self.host.system_id()) {
            self.tell("race", "this data belongs to another cluster: keeping out of everything");
            self.host.note("its data belongs to another cluster");
            self.host.change(|page| page.close());
            return loop_wait;
        }
        // The keeper wakes the turns when it has got another lease.
        let Some(held) = held.filter(|held| self.held.get().is_some_and(|now| now.grant.lease == held.grant.lease)) else { return RETRY };
        if self.change_ttl(&view, held).await {
            // The view is of before: the leader and its lease are read again.
            return RETRY;
        }
        self.host.note(&closed::note(&view, &self.name, held.grant.lease));
        self.settle_bond(&view, server).await;
        self.settle_page(&view, held, server, now).await;
        self.settle_word(&view).await;
        self.note_term(&view).await;
        self.publish_member(&view, server, now).await;
        self.publish_status(&view, server, now).await;
        self.race(&view, server, now).await.min(loop_wait)
    }

    /// Patroni leads: nobody but us writes down that it did.
    async fn note_term(&self, view: &ClusterView) {
        let Some((leader, judged)) = mixed::term_to_note(view) else { return };
        match self.store.note_term(leader, judged).await {
            Ok(()) | Err(Error::Lost(_)) => {}
            Err(why) => self.tell("leader", &format!("the term of {}, whom Patroni runs, is not noted: {why}", leader.name)),
        }
    }

    /// Another instance goes by our name: no key is ours to touch, and no lease.
    fn keep_out(&self, other: &InUse) -> Duration {
        self.host.change(|page| page.close());
        self.held.set(None);
        self.moving.set(None);
        self.host.note("another server goes by its name");
        self.tell("lease", &format!("no lease: {other}"));
        self.host.decline_requests(&other.to_string());
        RETRY
    }

    /// Opens the page where the view says that this node leads on the lease it holds; closes it where not.
    async fn settle_page(&self, view: &ClusterView, held: HeldLease, server: OwnServer, now: Moment) {
        let page = self.host.page();
        let Some(leader) = view.leader_if(&self.name).filter(|leader| leader.lease == held.grant.lease) else {
            if page.term() != 0 || page.held_until().is_some() {
                self.host.change(|page| page.close());
            }
            self.unpromoted_since.set(None);
            return self.give_up_misplaced(view, held, now).await;
        };
        self.misplaced_since.set(None);
        let opening = (page.term() != leader.term.0).then(|| Taking::opening(&self.host));
        if self.promise_keeps_closed(view, server, leader.term, now) {
            // A take whose answer was lost was carried out after all, and meanwhile this node promised the
            // old leader to stay away: the key waits until the promise has run out.
            self.host.note("the leader key is in its name, but it promised, or may have promised, to stay away from it (failsafe_mode)");
            self.tell(
                "leader",
                "the leader key is ours, but this node promised, or may have promised, to stay away from it (failsafe_mode): waiting",
            );
            return;
        }
        if view.is_standby_cluster() {
            return self.lead_standby_cluster(server, held.deadline, now);
        }
        self.host.change(|page| page.forget_demotion());
        if self.may_serve(view) {
            self.host.change(|page| page.open(leader.term.0, leader.lease.0, held.deadline));
        }
        drop(opening);
        if server.is_primary() {
            self.unpromoted_since.set(None);
            return;
        }
        let since = self.unpromoted_since.get().unwrap_or(now);
        self.unpromoted_since.set(Some(since));
        if now.since(since) > race::PROMOTION_PATIENCE && !view.config().paused() {
            // Closed first: were it promoted at this very moment, it could not commit.
            self.host.change(|page| page.close());
            self.stands_down_until.set(Some(now + STAND_DOWN));
            self.tell("race", &Reason::NotPromotedInTime.to_string());
            if let Err(why) = self.store.release_leader(leader).await {
                self.tell("race", &format!("leader key not given up: {why}"));
            }
        }
    }

    /// This node promised not to take the key that is in its name (`failsafe_mode`), or may have: a server that was started again knows of no
    /// promise until its arbiter, which remembers, has attached. A standby is promoted by nobody else; a primary waits for no longer than a
    /// promise binds.
    pub(crate) fn promise_keeps_closed(&self, view: &ClusterView, server: OwnServer, leads_in: Term, now: Moment) -> bool {
        let page = self.host.page();
        let config = view.config();
        // While a cluster is founded nobody attaches, and nobody has promised anything: the last leader does not (`cluster::failsafe`).
        let unknown = config.failsafe_mode()
            && view.system_id().is_some()
            && page.term() == 0
            && !self.host.arbiter_attends(now, self.patience_with_arbiter())
            && (!server.is_primary() || now.since(self.began.get()) < config.timing().ttl);
        unknown || cluster::failsafe::keeps_closed(page.is_promised(now), page.term(), leads_in.0)
    }

    /// As leader this node may acknowledge commits: not in a standby cluster, and not while others may still lead in its place, also if
    /// somebody promotes it by hand.
    pub(crate) fn may_serve(&self, view: &ClusterView) -> bool {
        !view.is_standby_cluster() && !view.sync.as_ref().is_some_and(|sync| sync.value.waits_for_promotion(&self.name))
    }

    /// A leader key that nobody can lead by goes after a TTL: whatever moved it meant to go on long before.
    async fn give_up_misplaced(&self, view: &ClusterView, held: HeldLease, now: Moment) {
        let Some(leader) = view.leader.as_ref().filter(|_| race::misplaced(view, &self.name, held.grant.lease)) else {
            return self.misplaced_since.set(None);
        };
        let since = match self.misplaced_since.get() {
            Some((term, since)) if term == leader.term => since,
            _ => now,
        };
        self.misplaced_since.set(Some((leader.term, since)));
        if now.since(since) > held.grant.ttl {
            self.tell("leader", &format!("the leader key of {} is not on its lease, so nobody can lead by it: giving it up", leader.name));
            if let Err(why) = self.store.release_leader(leader).await {
                self.tell("leader", &format!("leader key not given up: {why}"));
            }
        }
    }

    /// The key is kept without a promotion, and with a closed fence. A server that is primary still is to be
    /// stopped by its arbiter: nothing that begins from now on is acknowledged, also if there is no arbiter.
    fn lead_standby_cluster(&self, server: OwnServer, deadline: Moment, now: Moment) {
        self.unpromoted_since.set(None);
        if !server.is_primary() {
            self.host.change(|page| page.stay_closed_until(deadline));
        } else if self.host.change(|page| page.drain_for_demotion(now)) {
            self.tell("leader", "standby_cluster is set: new transactions wait at their commit until this server is a standby");
        }
    }
}
