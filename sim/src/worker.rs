//! The lease worker as `extension/src/{worker,apply,publish}.rs` have it, over simulated time.

use crate::postgres::Server;
use crate::store::Store;
use crate::time::{First, Part, Signal, either};
use crate::world::{MS, World, system};
use cluster::config::DynamicConfig;
use cluster::instance::{self, Instance};
use cluster::leader::{Leader, LeaseId, Term};
use cluster::lease;
use cluster::lsn::Lsn;
use cluster::member::{Member, MemberRole, MemberState, Tags, TenureFacts};
use cluster::race::{self, Candidate, Judged, RaceStep};
use cluster::time::Moment;
use cluster::view::{Announcement, ClusterView, Status};
use dcs::lease::{self as leases, Held, NoLease};
use dcs::memory::{Memory, at_once};
use dcs::{Dcs, Error};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

const RETRY: Duration = Duration::from_millis(250);
const STAND_DOWN: Duration = Duration::from_secs(60);
const RECEIVER_STOP: Duration = Duration::from_secs(1);

struct Worker {
    world: Rc<World>,
    server: Rc<Server>,
    at: usize,
    held: Cell<Option<Held>>,
    moving: Cell<Option<Moving>>,
    view: RefCell<Option<ClusterView>>,
    vacancy: Cell<Option<(Term, Moment)>>,
    unpromoted_since: Cell<Option<Moment>>,
    stands_down_until: Cell<Option<Moment>>,
    published: RefCell<Option<(Member, Moment)>>,
    status_written: Cell<Option<Moment>>,
    told: RefCell<String>,
    lease_wanted: Signal,
}

/// A move onto another lease whose outcome is not known.
#[derive(Clone, Copy)]
struct Moving {
    onto: Held,
    judged: Option<Term>,
}

enum Applied {
    Settled,
    LookAfter(Duration),
    LookNow,
}

/// A call of the memory that is never pending.
pub(crate) fn now<T>(call: impl Future<Output = dcs::Result<T>>) -> dcs::Result<T> {
    at_once(call).unwrap_or_else(|| Err(Error::Unreachable("the memory never waits".to_owned())))
}

/// A place is one boot of one host.
pub(crate) fn instance_of(_world: &World, at: usize) -> Option<Instance> {
    Some(Instance::of(&format!("boot-{at}"), 1, 2, "data"))
}

/// The part of the member key that the arbiter configures.
pub(crate) fn configured(world: &World, at: usize) -> Member {
    Member {
        conn_url: format!("postgres://10.0.0.{}:5432/postgres", at + 1),
        api_url: format!("http://10.0.0.{}:8008/patroni", at + 1),
        state: MemberState::Running,
        role: MemberRole::Replica,
        version: dcs::SURFACE_VERSION.to_owned(),
        checkpoint_after_promote: None,
        tags: Tags::default(),
        pending_restart: false,
        xlog_location: None,
        replay_lsn: None,
        receive_lsn: None,
        replication_state: None,
        timeline: None,
        tenure: Some(TenureFacts {
            version: world.setting.ttl.to_string(),
            instance: instance_of(world, at),
            arbiter: true,
            ..TenureFacts::default()
        }),
        other: Default::default(),
    }
}

/// Starts the worker of a server.
pub(crate) fn spawn(world: &Rc<World>, server: Rc<Server>) {
    let at = server.at;
    let worker = Rc::new(Worker {
        world: world.clone(),
        server,
        at,
        held: Cell::new(None),
        moving: Cell::new(None),
        view: RefCell::default(),
        vacancy: Cell::new(None),
        unpromoted_since: Cell::new(None),
        stands_down_until: Cell::new(None),
        published: RefCell::default(),
        status_written: Cell::new(None),
        told: RefCell::default(),
        lease_wanted: Signal::default(),
    });
    let keeper = worker.clone();
    world.time.spawn((at, Part::Worker), async move { keeper.keep_lease().await });
    world.time.spawn((at, Part::Worker), async move { worker.turns().await });
}

impl Worker {
    async fn ask<T: 'static>(&self, ask: impl Fn(&Memory) -> dcs::Result<T> + Clone + 'static) -> dcs::Result<T> {
        self.world.ask((self.at, Part::Worker), ask).await
    }

    fn clock(&self) -> Moment {
        self.world.clock(self.at)
    }

    fn look_again(&self) {
        self.world.nodes[self.at].wake_worker.notify(&self.world.time);
    }

    fn tell(&self, text: &str) {
        let gist: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        if *self.told.borrow() != gist {
            self.world.tell(&format!("{} worker", self.world.nodes[self.at].name), text);
            *self.told.borrow_mut() = gist;
        }
    }

    fn page_lease(&self) -> i64 {
        self.server.page.borrow().lease
    }

    // ---- The keeper ----

    async fn keep_lease(&self) {
        loop {
            let pause = match self.held.get() {
                Some(held) => self.renew(held).await,
                None => match self.acquire().await {
                    Ok(held) => {
                        self.held.set(Some(held));
                        self.look_again();
                        lease::renew_every(held.grant.ttl)
                    }
                    Err(why) => {
                        self.tell(&format!("no lease: {why}"));
                        RETRY
                    }
                },
            };
            either(self.world.time.sleep(pause), self.lease_wanted.notified(&self.world.time)).await;
        }
    }

    fn store(&self) -> Store {
        Store { world: self.world.clone(), process: (self.at, Part::Worker) }
    }

    async fn renew(&self, held: Held) -> Duration {
        let lease = held.grant.lease;
        match leases::renew(&self.store(), || self.clock(), lease).await {
            Ok(renewed) => {
                let deadline = renewed.held.deadline;
                if let Some(known) = self.held.get().filter(|known| known.grant.lease == lease) {
                    self.held.set(Some(Held { deadline: deadline.max(known.deadline), ..known }));
                    if self.page_lease() == lease.0 {
                        self.renew_page(renewed.leader.as_ref(), lease, deadline);
                    }
                }
                lease::renew_every(held.grant.ttl)
            }
            Err(Error::LeaseGone) => {
                self.tell(&format!("etcd says that lease {lease} has run out"));
                if self.page_lease() == lease.0 {
                    self.world.with_page(self.at, |page| page.close());
                }
                self.held.set(None);
                self.look_again();
                Duration::ZERO
            }
            Err(why) => {
                self.tell(&format!("lease not renewed: {why}"));
                RETRY
            }
        }
    }

    fn renew_page(&self, leader: Option<&Leader>, lease: LeaseId, deadline: Moment) {
        let (name, term) = (&self.world.nodes[self.at].name, self.server.page.borrow().term);
        let ours = leader.is_some_and(|leader| leader.name == *name && leader.lease == lease && leader.term.0 == term);
        if ours && self.moving.get().is_none() {
            self.world.with_page(self.at, |page| page.renew(deadline));
        } else {
            self.look_again();
        }
    }

    async fn acquire(&self) -> Result<Held, NoLease> {
        let name = self.world.nodes[self.at].name.clone();
        let ttl = |view: &ClusterView| view.config().timing().ttl;
        let acquired = leases::acquire(&self.store(), || self.clock(), &name, &self.compose(), ttl).await?;
        Ok(acquired.held)
    }

    // ---- A changed TTL ----

    async fn change_ttl(&self, view: &ClusterView, held: Held) -> bool {
        if let Some(moving) = self.moving.get() {
            self.settle_move(view, held, moving).await;
            return true;
        }
        let ttl = view.config().timing().ttl;
        if held.grant.ttl == ttl {
            return false;
        }
        let sent = self.clock();
        let Ok(grant) = self.ask(move |etcd| now(etcd.grant(ttl))).await else { return false };
        let name = &self.world.nodes[self.at].name;
        let judged = view.leader_if(name).filter(|leader| leader.lease == held.grant.lease).map(|leader| leader.term);
        let onto = Held { grant, deadline: lease::deadline(sent, grant.ttl) };
        self.send_move(view, held, Moving { onto, judged }).await;
        true
    }

    async fn send_move(&self, view: &ClusterView, held: Held, moving: Moving) {
        let first = self.moving.replace(Some(moving)).is_none();
        if self.page_lease() == held.grant.lease.0 {
            self.world.with_page(self.at, |page| page.shorten(moving.onto.deadline));
        }
        let (member, name) = (self.compose(), self.world.nodes[self.at].name.clone());
        let lease = moving.onto.grant.lease;
        let moved = match view.leader_if(&name).filter(|leader| Some(leader.term) == moving.judged).cloned() {
            Some(leader) => self.ask(move |etcd| now(etcd.move_leader(&leader, &member, lease))).await.map(Some),
            None => self.ask(move |etcd| now(etcd.write_member(&name, &member, lease, None))).await.map(|()| None),
        };
        match moved {
            Ok(term) => self.moved_to(held, moving.onto, term.filter(|_| self.may_serve(view))).await,
            Err(Error::LeaseGone) => self.moving.set(None),
            Err(why) if first && !why.is_unknown() => {
                self.moving.set(None);
                let _ = self.ask(move |etcd| now(etcd.revoke(lease))).await;
            }
            Err(why) => self.tell(&format!("TTL not changed: {why}")),
        }
    }

    async fn settle_move(&self, view: &ClusterView, held: Held, moving: Moving) {
        let (lease, name) = (moving.onto.grant.lease, &self.world.nodes[self.at].name);
        let leader = view.leader_if(name);
        let on_new = |at: LeaseId| at == lease;
        if leader.is_some_and(|leader| on_new(leader.lease)) || leader.is_none() && view.lease_of(name).is_some_and(on_new) {
            self.moved_to(held, moving.onto, None).await;
        } else if leader.map(|leader| leader.term) == moving.judged {
            self.send_move(view, held, moving).await;
        } else {
            self.moving.set(None);
        }
    }

    fn may_serve(&self, view: &ClusterView) -> bool {
        !view.sync.as_ref().is_some_and(|sync| sync.value.waits_for_promotion(&self.world.nodes[self.at].name))
    }

    async fn moved_to(&self, held: Held, onto: Held, term: Option<Term>) {
        self.moving.set(None);
        self.held.set(Some(onto));
        if let Some(term) = term {
            self.world.with_page(self.at, |page| page.open(term.0, onto.grant.lease.0, onto.deadline));
        }
        self.tell("the lease has another TTL");
        self.lease_wanted.notify(&self.world.time);
        let old = held.grant.lease;
        if old != onto.grant.lease {
            let _ = self.ask(move |etcd| now(etcd.revoke(old))).await;
        }
        self.look_again();
    }

    // ---- The turns ----

    async fn turns(&self) {
        loop {
            let pause = self.turn().await;
            let woken = self.world.nodes[self.at].wake_worker.notified(&self.world.time);
            if let First::Left(()) = either(woken, self.world.time.sleep(pause)).await {
                self.world.time.sleep(MS / 50).await;
            }
        }
    }

    async fn turn(&self) -> Duration {
        let held = self.held.get();
        let view = match self.ask(|etcd| now(etcd.load_view())).await {
            Ok(view) => view,
            Err(why) => {
                self.tell(&why.to_string());
                return RETRY;
            }
        };
        let now = self.clock();
        *self.view.borrow_mut() = Some(view.clone());
        let loop_wait = view.config().timing().loop_wait;
        if view.system_id().is_some_and(|id| *id != system()) {
            self.world.with_page(self.at, |page| page.close());
            return loop_wait;
        }
        // As the extension does: one look at the server, before the rest of the turn.
        let primary = !self.server.in_recovery.get();
        let (timeline, lsn) = self.server.position(&self.world);
        let streaming = self.server.streaming.get();
        if let Some(other) = instance::in_use(&view, &self.world.nodes[self.at].name, &self.compose(), held.map(|held| held.grant.lease)) {
            self.world.with_page(self.at, |page| page.close());
            self.held.set(None);
            self.moving.set(None);
            self.tell(&format!("no lease: {other}"));
            return RETRY;
        }
        let Some(held) = held.filter(|held| self.held.get().is_some_and(|now| now.grant.lease == held.grant.lease)) else { return RETRY };
        if self.change_ttl(&view, held).await {
            return RETRY;
        }
        self.settle_page(&view, held, primary, now).await;
        self.publish(&view, now).await;
        self.status(&view, primary, lsn, now).await;
        let name = self.world.nodes[self.at].name.clone();
        if view.leader.is_some() {
            self.vacancy.set(None);
        }
        let after = view.last_term();
        let since = match self.vacancy.get() {
            Some((term, since)) if term == after => since,
            _ => now,
        };
        if view.leader.is_none() {
            self.vacancy.set(Some((after, since)));
        }
        let promised = !primary && self.server.page.borrow().is_promised(now);
        let me = Candidate {
            name,
            tags: Tags::default(),
            primary,
            timeline,
            lsn,
            end_known: self.server.end_known(&self.world),
            streaming,
            arbiter: self.server.attached.get(),
            vacant_for: now.since(since),
            promised,
            stood_down: self.stands_down_until.get().is_some_and(|until| now < until),
        };
        let decision = race::decide(&view, &me);
        self.tell(&format!("{}: {}", step_word(&decision.what), decision.why));
        let pause = match self.apply(decision.what).await {
            Applied::Settled => loop_wait,
            Applied::LookAfter(pause) => pause,
            Applied::LookNow => {
                self.look_again();
                Duration::ZERO
            }
        };
        pause.min(loop_wait)
    }

    async fn settle_page(&self, view: &ClusterView, held: Held, primary: bool, now: Moment) {
        let name = &self.world.nodes[self.at].name;
        let Some(leader) = view.leader_if(name).filter(|leader| leader.lease == held.grant.lease) else {
            if self.server.page.borrow().term != 0 {
                self.world.with_page(self.at, |page| page.close());
            }
            self.unpromoted_since.set(None);
            return;
        };
        let page = *self.server.page.borrow();
        if cluster::failsafe::keeps_closed(page.is_promised(now), page.term, leader.term.0) {
            self.tell("the leader key is ours, but this node promised to stay away from it: waiting");
            return;
        }
        if self.may_serve(view) {
            self.world.with_page(self.at, |page| page.open(leader.term.0, leader.lease.0, held.deadline));
        }
        if primary {
            self.unpromoted_since.set(None);
            return;
        }
        let since = self.unpromoted_since.get().unwrap_or(now);
        self.unpromoted_since.set(Some(since));
        if now.since(since) > race::PROMOTION_PATIENCE {
            self.world.with_page(self.at, |page| page.close());
            self.stands_down_until.set(Some(now + STAND_DOWN));
            self.tell("not promoted in time: standing down");
            let leader = leader.clone();
            let _ = self.ask(move |etcd| self::now(etcd.release_leader(&leader))).await;
        }
    }

    fn compose(&self) -> Member {
        let mut member = configured(&self.world, self.at);
        let (timeline, lsn) = self.server.position(&self.world);
        member.timeline = Some(timeline);
        member.xlog_location = Some(lsn);
        if self.server.in_recovery.get() {
            member.receive_lsn = self.server.received.get().map(Lsn);
            member.replay_lsn = Some(Lsn(self.server.replayed(&self.world)));
            let state = if self.server.streaming.get() { "streaming" } else { "in archive recovery" };
            member.replication_state = Some(state.to_owned());
        } else {
            member.role = MemberRole::Primary;
            member.checkpoint_after_promote = (self.server.checkpointed_timeline.get() < timeline.0).then_some(false);
        }
        let instance = instance_of(&self.world, self.at);
        member.tenure = Some(TenureFacts { instance, arbiter: self.server.attached.get(), ..TenureFacts::default() });
        member
    }

    async fn publish(&self, view: &ClusterView, at: Moment) {
        let Some(held) = self.held.get() else { return };
        let name = self.world.nodes[self.at].name.clone();
        let member = self.compose();
        let still = |member: &Member| Member { xlog_location: None, replay_lsn: None, receive_lsn: None, ..member.clone() };
        let due = match (&*self.published.borrow(), view.members.get(&name)) {
            (_, None) => true,
            (_, Some(entry)) if entry.lease != held.grant.lease => true,
            (_, Some(entry)) if still(&entry.member) != still(&member) => true,
            (None, _) => true,
            (Some((published, written)), _) => *published != member && at.since(*written) >= view.config().timing().loop_wait,
        };
        if !due {
            return;
        }
        let say = member.clone();
        match self.ask(move |etcd| now(etcd.write_member(&name, &say, held.grant.lease, None))).await {
            Ok(()) => *self.published.borrow_mut() = Some((member, at)),
            Err(Error::LeaseGone) => self.lease_wanted.notify(&self.world.time),
            Err(_) => {}
        }
    }

    async fn status(&self, view: &ClusterView, primary: bool, flushed: Lsn, at: Moment) {
        let Some(leader) = view.leader_if(&self.world.nodes[self.at].name).filter(|_| primary) else { return };
        let before = view.status.as_ref().map(|status| status.value.clone()).unwrap_or_default();
        let due = self.status_written.get().is_none_or(|written| at.since(written) >= view.config().timing().loop_wait);
        if !due || before.optime == flushed {
            return;
        }
        let (status, leader) = (Status { optime: flushed, ..before }, leader.clone());
        if self.ask(move |etcd| now(etcd.write_status(&status, &leader))).await.is_ok() {
            self.status_written.set(Some(at));
        }
    }

    async fn apply(&self, step: RaceStep) -> Applied {
        match step {
            RaceStep::Rest => Applied::Settled,
            RaceStep::Wait(pause) => Applied::LookAfter(pause),
            RaceStep::Announce(word) => self.announce(word).await,
            RaceStep::Take(judged) => self.take(judged).await,
        }
    }

    async fn announce(&self, mut word: Announcement) -> Applied {
        let Some(held) = self.held.get() else { return Applied::LookAfter(RECEIVER_STOP) };
        if word.stands && !word.primary {
            let stopped = async {
                while self.server.receiver_running(&self.world) {
                    self.server.stop_receiver(&self.world);
                    self.world.time.sleep(2 * MS).await;
                }
            };
            if self.world.time.timeout(RECEIVER_STOP, stopped).await.is_none() {
                self.tell("the WAL receiver does not end: not standing before it has");
                return Applied::LookNow;
            }
            (word.timeline, word.lsn) = self.server.position(&self.world);
        }
        self.world.announces(&self.server, &word);
        let name = self.world.nodes[self.at].name.clone();
        match self.ask(move |etcd| now(etcd.announce(&name, &word, held.grant.lease))).await {
            Ok(()) | Err(Error::Lost(_)) => Applied::LookNow,
            Err(_) => Applied::LookAfter(100 * MS),
        }
    }

    async fn take(&self, judged: Judged) -> Applied {
        let primary = !self.server.in_recovery.get();
        if !primary && judged.position.is_some_and(|announced| self.server.position(&self.world) != announced) {
            return Applied::LookNow;
        }
        let Some(held) = self.held.get().filter(|held| self.clock() < held.deadline) else { return Applied::LookAfter(100 * MS) };
        let Some(_taking) = Taking::begin(&self.world, self.at) else { return Applied::LookAfter(100 * MS) };
        self.world.takes(self.at);
        let name = self.world.nodes[self.at].name.clone();
        let closed = judged.sync_becomes.as_ref().is_some_and(|sync| sync.until_promoted);
        match self.ask(move |etcd| now(etcd.take_leader(&name, held.grant.lease, &judged))).await {
            Ok(term) => {
                let held = self.held.get().filter(|known| known.grant.lease == held.grant.lease).unwrap_or(held);
                if !closed {
                    self.world.with_page(self.at, |page| page.open(term.0, held.grant.lease.0, held.deadline));
                }
                self.tell(&format!("took the leader key, term {term}"));
                self.world.nodes[self.at].wake_arbiter.notify(&self.world.time);
                Applied::LookNow
            }
            Err(Error::Lost(_)) => Applied::LookNow,
            Err(_) => Applied::LookAfter(100 * MS),
        }
    }
}

/// The page says that the key is being taken.
struct Taking {
    world: Rc<World>,
    at: usize,
}

impl Taking {
    fn begin(world: &Rc<World>, at: usize) -> Option<Taking> {
        let now = world.clock(at);
        let begun = world.with_page(at, |page| page.begin_taking(now)).unwrap_or(false);
        begun.then(|| Taking { world: world.clone(), at })
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.world.with_page(self.at, |page| page.end_taking());
    }
}

fn step_word(step: &RaceStep) -> String {
    match step {
        RaceStep::Rest => "rest".to_owned(),
        RaceStep::Wait(_) => "wait".to_owned(),
        RaceStep::Announce(word) => {
            format!("announce {}{} on timeline {}", if word.stands { "" } else { "against itself " }, word.lsn, word.timeline)
        }
        RaceStep::Take(judged) => format!("take after term {} with {} words", judged.after, judged.announcements.len()),
    }
}

/// The dynamic configuration of a run.
pub(crate) fn configuration(world: &World) -> DynamicConfig {
    let setting = &world.setting;
    let document = serde_json::json!({
        "ttl": setting.ttl,
        "loop_wait": 2,
        "retry_timeout": 1,
        "synchronous_mode": if setting.quorum { serde_json::json!("quorum") } else { setting.sync.into() },
        "maximum_lag_on_failover": 1_048_576,
        "primary_start_timeout": setting.start_timeout,
        "failsafe_mode": setting.failsafe,
    });
    DynamicConfig(document.as_object().cloned().unwrap_or_default())
}
