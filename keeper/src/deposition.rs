//! A leader that is lost: listened to, deposed by a word that binds this server first, or called off. The rule is `cluster::deposition`.

use crate::race::{AGAIN, Applied};
use crate::{Host, OwnServer, Worker, first_of};
use cluster::config::DynamicConfig;
use cluster::deposition;
use cluster::hearing::{self, Ears};
use cluster::leader::Term;
use cluster::member::Member;
use cluster::standing::{Bond, Guarded, Knowledge};
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::{Error, LocalDcs};
use std::convert::Infallible;
use std::ops::Deref;
use std::time::Duration;

impl<S, H> Worker<S, H>
where
    S: Deref<Target: LocalDcs + Sized>,
    H: Host,
{
    /// Listens to the leader for ever, by no way that leads over etcd.
    pub async fn listen(&self) -> Infallible {
        loop {
            let pause = self.listen_once().await;
            first_of(self.host.sleep(pause), self.host.listen_wanted()).await;
        }
    }

    async fn listen_once(&self) -> Duration {
        let ttl = self.ttl();
        let Some((term, leader)) = self.last_view(|view| self.whom_to_hear(view)).flatten() else {
            return hearing::period(ttl);
        };
        let began = self.clock();
        let answer = self.host.hear(&leader, hearing::period(ttl)).await;
        let ended = self.clock();
        let mut heard = self.hearing.get().noted(term, answer, began, ended, hearing::period(ttl));
        let news = heard.news(ended, ttl);
        self.hearing.set(heard);
        if let Some(now) = news {
            self.lost_since.set((now == Ears::Lost).then_some(ended));
            self.host.look_again();
        }
        heard.again(ttl)
    }

    /// The leader, where this node is one of those that may depose it, or is bound.
    fn whom_to_hear(&self, view: &ClusterView) -> Option<(Term, Member)> {
        let leader = view.leader.as_ref().filter(|leader| leader.name != self.name)?;
        let listens = deposition::listens(view, leader, &self.name) || self.bond.borrow().is_some();
        let member = view.members.get(&leader.name).filter(|_| listens && !self.host.server().is_primary())?;
        Some((leader.term, member.member.clone()))
    }

    fn ttl(&self) -> Duration {
        self.last_view(|view| view.config().timing()).unwrap_or_else(|| DynamicConfig::default().timing()).ttl
    }

    /// What the race is to know of it.
    pub(crate) fn knowledge(&self, view: &ClusterView, now: Moment) -> Knowledge {
        let ttl = view.config().timing().ttl;
        Knowledge {
            ears: view.leader.as_ref().map_or(Ears::Unsure, |leader| self.hearing.get().ears(leader.term, now, ttl)),
            bond: self.bond.borrow().clone(),
            bound_for: self.bound_since.get().map_or(Duration::ZERO, |since| now.since(since)),
            rests: self.called_off_at.get().is_some_and(|at| now.since(at) < ttl),
        }
    }

    /// What this server bound itself to before it was started, or before this worker was.
    pub fn recall_bond(&self, bond: Option<Bond>) {
        // The worker before this one may have ended between the file and the page.
        self.host.change(|page| if bond.is_some() { page.deposes_by_its_bond() } else { page.end_deposing() });
        *self.bond.borrow_mut() = bond;
    }

    /// Ends a bond that binds no more.
    pub(crate) async fn settle_bond(&self, view: &ClusterView, server: OwnServer) {
        let over = self.bond.borrow().as_ref().is_some_and(|bond| !deposition::binds(bond, view, server.timeline()));
        if over {
            self.unbind("the deposed term is over").await;
        }
    }

    async fn unbind(&self, why: &str) -> bool {
        if let Err(fault) = self.host.keep_bond(None).await {
            self.tell("deposition", &format!("the bond can't be taken away, so this server receives from no leader of before: {fault}"));
            return false;
        }
        *self.bond.borrow_mut() = None;
        self.bound_since.set(None);
        self.host.change(|page| page.end_deposing());
        self.tell("deposition", why);
        true
    }

    /// Binds this server, stops receiving, reads the position after that, says it.
    pub(crate) async fn depose(&self, view: &ClusterView, mut guarded: Guarded) -> Applied {
        if self.held.get().is_none_or(|held| self.clock() >= held.deadline) {
            return Applied::LookAfter(AGAIN);
        }
        let before = self.bond.borrow().clone();
        let Some(bond) = deposition::bond(view, guarded.leader, self.host.server().timeline(), before.as_ref()) else {
            return Applied::LookNow;
        };
        let now = self.clock();
        if before.as_ref() != Some(&bond) {
            // A promise and a bond exclude each other: of two at the same instant each side writes its own word first and reads the other's after that.
            if !self.host.change(|page| page.begin_deposing(now)) {
                return Applied::LookAfter(AGAIN);
            }
            // Before anything is said: whatever becomes of this process and this server, it does not receive from that leader.
            if let Err(fault) = self.host.keep_bond(Some(&bond)).await {
                if before.is_none() {
                    self.host.change(|page| page.end_deposing());
                }
                self.tell("deposition", &format!("the leader is not deposed, because the bond can't be written: {fault}"));
                return Applied::LookAfter(AGAIN);
            }
            *self.bond.borrow_mut() = Some(bond);
            self.bound_since.set(Some(now));
        }
        if !self.receiver_ended().await {
            return Applied::LookNow;
        }
        let server = self.host.server();
        (guarded.word.timeline, guarded.word.lsn) = (server.timeline(), server.position());
        self.say(&guarded).await
    }

    /// Says it.
    pub(crate) async fn say(&self, guarded: &Guarded) -> Applied {
        let Some(held) = self.held.get() else { return Applied::LookAfter(AGAIN) };
        match self.store.say(&self.name, guarded, held.grant.lease).await {
            Ok(()) | Err(Error::Lost(_)) => Applied::LookNow,
            Err(why) => {
                self.tell("deposition", &format!("not said: {why}"));
                Applied::LookAfter(AGAIN)
            }
        }
    }

    /// Says it, and receives again only if it was written while that leader led: no word of this node can be used from then on.
    pub(crate) async fn call_off(&self, guarded: &Guarded) -> Applied {
        let Some(held) = self.held.get() else { return Applied::LookAfter(AGAIN) };
        match self.store.say(&self.name, guarded, held.grant.lease).await {
            Ok(()) => {
                self.called_off_at.set(Some(self.clock()));
                let why = guarded.word.why.clone().unwrap_or_default();
                if self.unbind(&format!("called off: {why}")).await { Applied::LookNow } else { Applied::LookAfter(AGAIN) }
            }
            Err(Error::Lost(_)) => Applied::LookNow,
            Err(why) => {
                self.tell("deposition", &format!("not called off: {why}"));
                Applied::LookAfter(AGAIN)
            }
        }
    }
}
