//! `failsafe_mode` as `arbiter/src/upkeep/failsafe.rs` has it: a leader without etcd asks, a member promises.

use super::Arbiter;
use crate::time::{Changes, Part};
use crate::world::{Asked, MS, now};
use anyhow::Result;
use cluster::failsafe::{self, Members};
use cluster::leader::Leader;
use cluster::lease;
use cluster::local::{LocalState, Postgres};
use cluster::name::MemberName;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use steward::Host;

/// The answers so far.
type Answers = Rc<(RefCell<Vec<Option<Duration>>>, Changes)>;

impl Arbiter {
    /// Keeps the key equal to the members.
    pub(super) async fn publish_failsafe(&self, view: &ClusterView, leader: &Leader) -> Result<()> {
        let Some(members) = failsafe::key_to_write(view) else { return Ok(()) };
        self.failsafe_sent.borrow_mut().get_or_insert_default().extend(members.clone());
        let (revision, leader, write) = (ClusterView::revision_of(&view.failsafe), leader.clone(), members.clone());
        self.ask(move |etcd| now(etcd.write_failsafe(&write, revision, &leader))).await?;
        *self.failsafe_sent.borrow_mut() = Some(members);
        Ok(())
    }

    /// etcd does not answer: the leader asks for promises.
    pub(super) async fn fail_safe(&self, view: &ClusterView, local: &LocalState) {
        let leads = view.leader_if(&self.name).is_some() && matches!(local.postgres, Postgres::Primary { .. });
        if !leads || !view.config().failsafe_mode() {
            return;
        }
        let sent = self.failsafe_sent.borrow().clone();
        let Ok(members) = failsafe::whom_to_ask(view, sent.as_ref(), &self.name) else { return };
        let (asked_at, ttl) = (self.clock(), view.config().timing().ttl);
        let Some(promised) = self.all_promise(&members, ttl).await else { return };
        let until = lease::deadline(asked_at, promised);
        if let Some(server) = self.world.sql(self.at).await {
            server.by_promises_until.set(server.by_promises_until.get().max(until));
            self.world.change_page(&server, |page| page.renew(until));
            self.world.judge.borrow_mut().goes_on_by_promises += 1;
        }
    }

    /// For how long everybody promises; None where one does not.
    async fn all_promise(&self, members: &Members, ttl: Duration) -> Option<Duration> {
        let answers: Answers = Rc::default();
        for name in members.keys() {
            let to = self.world.nodes.iter().position(|node| node.name.as_str() == name)?;
            self.ask_for_promise(to, ttl, &answers);
        }
        let all = answers.1.wait(&self.world.time, || {
            let answers = answers.0.borrow();
            let shortest = || answers.iter().try_fold(ttl, |shortest, promised| Some(shortest.min((*promised)?)));
            (answers.len() == members.len() || answers.contains(&None)).then(shortest)
        });
        self.world.time.timeout(failsafe::answer_patience(ttl), all).await.flatten()
    }

    fn ask_for_promise(&self, to: usize, ttl: Duration, answers: &Answers) {
        let (world, from, leader, answers) = (self.world.clone(), self.at, self.name.clone(), answers.clone());
        if world.is_cut(from, to) || world.lost() {
            return;
        }
        world.clone().time.at(world.now() + world.delay(), move || {
            let Some(asked) = world.asked(to).filter(|asked| asked.serves()) else { return };
            let then = world.clone();
            world.time.spawn((to, Part::Arbiter), async move {
                let promised = asked.promise(&leader, ttl).await;
                if then.is_cut(to, from) || then.lost() {
                    return;
                }
                let late = then.clone();
                then.time.at(then.now() + then.delay(), move || {
                    answers.0.borrow_mut().push(promised);
                    answers.1.tell(&late.time);
                });
            });
        });
    }

    /// A leader asks this node.
    async fn make_promise(&self, leader: &MemberName, ttl: Duration) -> Option<Duration> {
        failsafe::may_promise(&self.view.borrow(), leader.as_str()).ok()?;
        let for_so_long = failsafe::promised_for(&self.view.borrow(), Some(ttl));
        let written = &self.world.nodes[self.at].promised_for;
        if for_so_long > written.get() || for_so_long < written.get() && self.clock() >= self.promised_until.get() {
            written.set(for_so_long);
        }
        let until = self.clock() + for_so_long;
        self.world.sql(self.at).await?;
        let now = self.clock();
        let known = failsafe::latest_tenure(&self.view.borrow());
        let promised = self.world.with_page(self.at, |page| page.token() <= known && page.promise(until, now)).unwrap_or(false);
        if promised {
            self.world.promised(self.at, until);
            self.world.time.sleep(MS / 10).await;
            self.promised_until.set(self.promised_until.get().max(until));
        }
        promised.then_some(for_so_long)
    }

    /// Before the arbiter attaches to its server: what was promised to others is in its page again.
    pub(super) fn renew_promise(&self) {
        let (until, now) = (self.promised_until.get(), self.clock());
        if until > now {
            self.world.with_page(self.at, |page| page.promise(until, now));
        }
    }
}

impl Asked for Arbiter {
    fn serves(&self) -> bool {
        self.serves.get()
    }

    fn promise<'a>(&'a self, leader: &'a MemberName, ttl: Duration) -> Pin<Box<dyn Future<Output = Option<Duration>> + 'a>> {
        Box::pin(self.make_promise(leader, ttl))
    }

    fn is_bound_for(&self) -> Duration {
        self.promised_until.get().since(self.clock())
    }
}
