//! The arbiter's loop, its look at the node and its round of upkeep as `arbiter/src/{daemon,upkeep}` have them, over simulated time; the rest is `steward`.

mod failsafe;
mod founding;
mod process;
mod server;

use crate::server::{Recovery, Server};
use crate::time::{First, Part, TaskId, either};
use crate::wal::Data;
use crate::world::{Asked, MS, World};
use anyhow::{Context, Result, bail};
use cluster::duty::{self, Duty};
use cluster::failsafe::Members;
use cluster::host::Address;
use cluster::leader::Leader;
use cluster::local::{Control, DataDir, Ended, LocalState, Postgres};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::{MemberName, Timeline};
use cluster::quorum::{Rules, Setting, Trust};
use cluster::standby_cluster::Remote;
use cluster::store::Doubt;
use cluster::time::Moment;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use dcs::memory::InMemory;
use dcs::remember::Remembered;
use dcs::{Error, LocalDcs};
use process::Process;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use steward::lease::NodeLease;
use steward::synchronous::Standbys;
use steward::{Done, Facts, Host, Judged, Server as _, duties, synchronous};

const RETRY: Duration = Duration::from_millis(250);
const AFTER_FAILURE: Duration = Duration::from_secs(1);

pub(crate) struct Arbiter {
    world: Rc<World>,
    at: usize,
    name: MemberName,
    view: RefCell<ClusterView>,
    /// The lease in the arbiter's hands.
    lease: NodeLease<Process>,
    // The daemon's memory.
    procedure: RefCell<Option<(TaskId, Duty)>>,
    ended: RefCell<Option<Result<Done>>>,
    not_before: Cell<Duration>,
    look_owed: Cell<bool>,
    down_since: Cell<Option<Duration>>,
    rewind_failed: RefCell<Option<String>>,
    told: RefCell<String>,
    standbys: Standbys,
    /// The first checkpoint of a primary is under way.
    checkpointing: Rc<Cell<bool>>,
    /// It has seen etcd and serves REST.
    serves: Cell<bool>,
    /// What this node promised in `failsafe_mode`.
    promised_until: Cell<Moment>,
    /// What was sent to be written into the key `failsafe`.
    failsafe_sent: RefCell<Option<Members>>,
    remembered: Rc<Remembered>,
}

/// Starts a node's arbiter.
pub(crate) fn spawn(world: &Rc<World>, at: usize) {
    let remembered = world.nodes[at].recall(world);
    let arbiter = Rc::new(Arbiter {
        world: world.clone(),
        at,
        name: world.nodes[at].name.clone(),
        view: RefCell::default(),
        lease: NodeLease::new(Process::new(world, at, &remembered)),
        procedure: RefCell::default(),
        ended: RefCell::default(),
        not_before: Cell::default(),
        look_owed: Cell::new(false),
        down_since: Cell::new(None),
        rewind_failed: RefCell::default(),
        told: RefCell::default(),
        standbys: Standbys::default(),
        checkpointing: Rc::default(),
        serves: Cell::new(false),
        promised_until: Cell::default(),
        failsafe_sent: RefCell::default(),
        remembered,
    });
    let asked: Rc<dyn Asked> = arbiter.clone();
    *world.nodes[at].arbiter.borrow_mut() = Some(Rc::downgrade(&asked));
    let keeper = arbiter.clone();
    world.time.spawn((at, Part::Arbiter), async move { match keeper.lease.keep().await {} });
    world.time.spawn((at, Part::Arbiter), async move { arbiter.run().await });
}

impl Arbiter {
    async fn ask<T: 'static>(&self, ask: impl Fn(&InMemory) -> dcs::Result<T> + Clone + 'static) -> dcs::Result<T> {
        self.world.ask((self.at, Part::Arbiter), ask).await
    }

    fn tell(&self, text: &str) {
        if *self.told.borrow() != text {
            self.world.tell(&format!("{} arbiter", self.name), text);
            *self.told.borrow_mut() = text.to_owned();
        }
    }

    // ---- The loop ----

    /// As `Daemon::keep_out`.
    fn keeps_out(&self, view: &ClusterView) -> bool {
        let Some(other) = self.in_use(view) else { return false };
        self.tell(&other.to_string());
        self.lease.keep_out();
        true
    }

    async fn run(self: Rc<Self>) {
        let world = self.world.clone();
        let node = &world.nodes[self.at];
        loop {
            let read = self.store().view().await;
            self.keep_memory();
            match read {
                // Another instance goes by the name: nothing is touched until its key has run out.
                Ok(view) if self.keeps_out(&view) => {}
                Ok(view) => {
                    *self.view.borrow_mut() = view;
                    break;
                }
                Err(Error::Doubted { doubt: Doubt::Emptied(..), view }) => {
                    *self.view.borrow_mut() = self.emptied(&view);
                    break;
                }
                Err(Error::Doubted { .. }) => {
                    let view = self.view.borrow().clone();
                    let (local, _) = self.look(&view).await;
                    self.speak_for(&local);
                }
                Err(_) => {}
            }
            world.time.sleep(RETRY).await;
        }
        if self.view.borrow().config().failsafe_mode() {
            // An arbiter before this one may have promised something that it knows nothing of.
            let ttl = self.view.borrow().config().timing().ttl.max(node.promised_for.get());
            self.promised_until.set(self.clock() + ttl);
        }
        self.serves.set(true);
        let mut had_server = world.server(self.at).is_some();
        loop {
            let has_server = world.server(self.at).is_some();
            if node.postmaster_gone.replace(false) && had_server && !has_server {
                self.postmaster_gone();
            }
            had_server = has_server;
            let settled = self.hear_the_end();
            let pause = if settled { self.view.borrow().config().timing().loop_wait } else { self.clone().turn().await };
            let woken = node.wake_arbiter.notified(&world.time);
            if let First::Left(()) = either(woken, world.time.sleep(pause)).await {
                world.time.sleep(MS / 50).await;
            }
        }
    }

    fn postmaster_gone(&self) {
        if self.procedure.borrow().as_ref().is_some_and(|(_, duty)| *duty != Duty::Rest) {
            return;
        }
        self.tell("Postgres has ended");
        self.speak(MemberState::Crashed, MemberRole::Replica);
        let task = self.procedure.borrow_mut().take();
        if let Some((task, _)) = task {
            self.world.time.abort(task);
        }
        self.not_before.set(Duration::ZERO);
    }

    /// A procedure has ended: true where nothing is to be looked at for it.
    fn hear_the_end(&self) -> bool {
        let Some(done) = self.ended.borrow_mut().take() else { return false };
        let duty = self.procedure.borrow_mut().take().map(|(_, duty)| duty);
        if matches!((&duty, &done), (Some(Duty::Rest), Ok(Done::Settled))) && !self.look_owed.replace(false) {
            return true;
        }
        match done {
            Ok(Done::Stopped) => {
                self.world.arbiter_ends(self.at);
                self.not_before.set(self.world.now() + AFTER_FAILURE);
            }
            Ok(_) => self.not_before.set(Duration::ZERO),
            Err(why) => {
                self.tell(&format!("failed: {why:#}"));
                self.not_before.set(self.world.now() + AFTER_FAILURE);
            }
        }
        false
    }

    async fn turn(self: Rc<Self>) -> Duration {
        let mut emptied = None;
        let read = self.store().view().await;
        self.keep_memory();
        let fresh = match read {
            Ok(view) if self.keeps_out(&view) => {
                self.view.borrow_mut().leader = view.leader.filter(|leader| leader.name != self.name);
                return RETRY;
            }
            Ok(view) => {
                *self.view.borrow_mut() = view;
                true
            }
            Err(Error::Doubted { doubt, view }) => {
                self.tell(&format!("{doubt}: it is not believed"));
                emptied = matches!(doubt, Doubt::Emptied(..)).then(|| self.emptied(&view));
                false
            }
            Err(_) => false,
        };
        let view = self.view.borrow().clone();
        let (mut local, seen) = self.look(&view).await;
        self.speak_for(&local);
        if fresh && view.leader_if(&self.name).is_some() && matches!(local.postgres, Postgres::Standby { .. }) {
            local.lease_valid = self.lease.confirm(&view).await;
        }
        let mut decision = duty::decide(emptied.as_ref().unwrap_or(&view), &local);
        if decision.what == Duty::Bootstrap && !matches!(local.data, DataDir::Present(_)) && !self.world.setting.founds {
            // A second database system beside a first one is not simulated: no empty node founds one.
            decision.what = Duty::Rest;
        }
        if !(fresh || emptied.is_some() && decision.what == Duty::Bootstrap) {
            self.fail_safe(&view, &local).await;
            return RETRY;
        }
        let loop_wait = view.config().timing().loop_wait;
        if self.procedure.borrow().is_some() {
            self.look_owed.set(true);
            return loop_wait;
        }
        self.look_owed.set(false);
        let left = self.not_before.get().saturating_sub(self.world.now());
        if !left.is_zero() {
            return left.max(MS);
        }
        self.tell(&format!("{:?}: {}", decision.what, decision.why));
        let duty = decision.what;
        let (me, told) = (self.clone(), duty.clone());
        let task = self.world.time.spawn((self.at, Part::Arbiter), async move {
            let done = duties::apply(&*me, told, Judged { view: &view, local: &local, seen: seen.as_ref() }).await;
            *me.ended.borrow_mut() = Some(done);
            me.world.nodes[me.at].wake_arbiter.notify(&me.world.time);
        });
        *self.procedure.borrow_mut() = Some((task, duty));
        loop_wait
    }

    fn speak_for(&self, local: &LocalState) {
        match local.postgres {
            Postgres::Primary { .. } | Postgres::Standby { .. } => {
                let serving = self
                    .procedure
                    .borrow()
                    .as_ref()
                    .is_none_or(|(_, duty)| matches!(duty, Duty::Rest | Duty::Follow { .. } | Duty::Promote { .. }));
                if serving {
                    self.fall_silent();
                }
                if let Some(server) = self.world.serving(self.at) {
                    self.renew_promise();
                    server.attached.set(true);
                    self.world.nodes[self.at].wake_worker.notify(&self.world.time);
                }
            }
            Postgres::Stopped if !self.lease.keeps() => self.speak(MemberState::Stopped, MemberRole::Replica),
            Postgres::Stopped | Postgres::Starting { .. } | Postgres::Silent => {}
        }
    }

    async fn look(&self, view: &ClusterView) -> (LocalState, Option<Facts>) {
        let world = &self.world;
        let mut seen = None;
        let postgres = match world.server(self.at) {
            None => Postgres::Stopped,
            Some(server) if !server.ready.get() => Postgres::Starting { since: world.now() - server.started },
            Some(_) => match world.sql(self.at).await {
                None if world.server(self.at).is_none() => Postgres::Stopped,
                None => Postgres::Silent,
                Some(server) => {
                    seen = Some(self.facts_from(&server));
                    of_server(world, &server)
                }
            },
        };
        let data = match &*world.nodes[self.at].data.borrow() {
            Data::Empty => DataDir::Empty,
            Data::Incomplete(what) => DataDir::Incomplete { what: what.clone() },
            Data::Present(disk) if disk.founding => DataDir::Incomplete { what: "founding the cluster".to_owned() },
            Data::Present(disk) => {
                let (timeline, checkpoint, ended) = match &postgres {
                    Postgres::Primary { timeline, flushed } => (*timeline, *flushed, Ended::CrashedPrimary),
                    Postgres::Standby { timeline, position, .. } => (*timeline, *position, Ended::Standby),
                    // pg_control: for a standby the minimum recovery point, which is at or before what was replayed.
                    _ if disk.ended == Ended::Standby => (Timeline(disk.wal.timeline), Lsn(disk.wal.end()), disk.ended),
                    _ => (Timeline(disk.checkpoint.1), Lsn(disk.checkpoint.0), disk.ended),
                };
                DataDir::Present(Control { system_id: crate::world::system(), timeline, checkpoint, ended })
            }
        };
        let leads = view.leader_if(&self.name).is_some();
        let serves = matches!(postgres, Postgres::Primary { .. } | Postgres::Standby { .. });
        let since = if leads && !serves { Some(self.down_since.get().unwrap_or(world.now())) } else { None };
        self.down_since.set(since);
        let local = LocalState {
            name: self.name.clone(),
            tags: world.nodes[self.at].wished.tags.borrow().clone(),
            data,
            postgres,
            lease_valid: self.lease.lease().is_some(),
            rewind_failed: self.rewind_failed.borrow().clone(),
            may_clone_over: true,
            down_for: since.map_or(Duration::ZERO, |since| world.now() - since),
            stopping: world.nodes[self.at].wished.stop.get(),
            reinit: world.nodes[self.at].wished.reinit.get(),
            cloning: Default::default(),
            start_failed: None,
            crashed: world.server(self.at).is_some_and(|server| server.crashed.get() && !server.ready.get()),
            request_due: true,
            start_owed: false,
            strange: None,
            request_waits: Duration::ZERO,
            frozen_for: Duration::ZERO,
            answered: self.answered(view),
            gives_way: None,
            memory: Some(Box::new(self.remembered.memory())).filter(|memory| memory.system_id.is_some()),
            aside: None,
            restore: None,
            upgrade: None,
            fence_open: self.fence_is_open(),
            wal_until: None,
            remote: Remote::default(),
        };
        (local, seen)
    }

    /// Who would answer over REST now: its arbiter lives, the way there and back is open, its server serves.
    fn answered(&self, view: &ClusterView) -> BTreeSet<MemberName> {
        let world = &self.world;
        let answers = |name: &&MemberName| {
            world.number_of(name).is_some_and(|at| {
                let reached = !world.is_cut(self.at, at) && !world.is_cut(at, self.at);
                let lives = world.time.lives((at, Part::Arbiter)) && !world.time.is_frozen((at, Part::Arbiter));
                at != self.at && reached && lives && world.serving(at).is_some() && !world.time.is_frozen((at, Part::Server))
            })
        };
        view.members.keys().filter(answers).cloned().collect()
    }

    // ---- Procedures ----

    fn follow_of(&self, upstream: Option<&MemberName>) -> Recovery {
        Recovery::Standby(upstream.and_then(|name| self.world.number_of(name)))
    }

    async fn start(&self, view: &ClusterView, recovery: Recovery) -> Result<Done> {
        let role = if recovery == Recovery::None { MemberRole::Primary } else { MemberRole::Replica };
        self.speak(MemberState::Starting, role);
        self.world.time.sleep(5 * MS).await;
        if self.world.server(self.at).is_some() {
            return Ok(Done::LookAgain);
        }
        let mut names = Setting::nobody();
        if recovery == Recovery::None {
            if let Some(sync) = view.sync.as_ref().filter(|sync| sync.value.leader.as_deref() == Some(self.name.as_str())) {
                self.standbys().begin(Rules::of(view.config()).at_start(&Trust::of(&sync.value)));
            }
            names = self.standbys().now().setting;
        }
        // The lease worker begins with what this arbiter knows.
        self.remembered.not_written();
        self.keep_memory();
        self.world.start_server(self.at, recovery, names);
        Ok(Done::Settled)
    }

    /// As `arbiter/src/upkeep` has it: what a primary, and a standby, keeps in order.
    async fn keep_in_order(&self, view: &ClusterView, facts: &Facts) -> Result<bool> {
        if facts.in_recovery {
            self.standbys.is_standby();
            return self.configure_standby().await;
        }
        let Some(leader) = view.leader_if(&self.name) else { return Ok(false) };
        synchronous::applied(self, view, facts);
        self.history(view, leader).await?;
        if view.members.get(&self.name).is_some_and(|entry| entry.member.checkpoint_after_promote == Some(false)) {
            self.begin_first_checkpoint();
        }
        self.publish_failsafe(view, leader).await?;
        synchronous::keep_up(self, view, leader, facts).await
    }

    async fn history(&self, view: &ClusterView, leader: &Leader) -> Result<()> {
        let (timeline, file) = match self.world.nodes[self.at].data.borrow().disk() {
            Some(disk) => (Timeline(disk.wal.timeline), disk.wal.history()),
            None => return Ok(()),
        };
        if timeline == view.history().current() {
            return Ok(());
        }
        let merged = view.history().merged(&file.up_to(timeline), "now", self.name.as_str());
        Ok(self.store().write_history(&merged, ClusterView::revision_of(&view.history), leader).await?)
    }

    /// A path to a server that answers.
    async fn reach(&self, from: &MemberName) -> Result<usize> {
        let source = self.world.number_of(from).context("no such member")?;
        let cut = self.world.is_cut(self.at, source) || self.world.is_cut(source, self.at);
        self.world.time.sleep(self.world.delay()).await;
        if cut || self.world.serving(source).is_none() || self.world.time.is_frozen((source, Part::Server)) {
            bail!("{from} can't be reached");
        }
        Ok(source)
    }

    async fn clone_of(&self, from: &MemberName) -> Result<Done> {
        self.speak(MemberState::CreatingReplica, MemberRole::Uninitialized);
        self.world.stop_server(self.at, false).await;
        self.take_word_back().await?;
        self.world.before_deletion(self.at, "clone");
        // Marked, then emptied: an arbiter that is killed from here on leaves a mark.
        *self.world.nodes[self.at].data.borrow_mut() = Data::Incomplete(format!("clone from {from}"));
        let copied = self.copy(from).await;
        let cleared = self.world.random.mostly(5 * MS, 50 * MS);
        self.world.time.sleep(cleared).await;
        match copied {
            Ok(data) => {
                *self.world.nodes[self.at].data.borrow_mut() = data;
                self.world.nodes[self.at].wished.reinit.set(false);
                *self.rewind_failed.borrow_mut() = None;
                let view = self.view.borrow().clone();
                self.start(&view, self.follow_of(Some(from))).await
            }
            Err(why) => {
                *self.world.nodes[self.at].data.borrow_mut() = Data::Empty;
                Err(why)
            }
        }
    }

    /// Before the data goes that a word of this node speaks of, with the bond that keeps it true.
    async fn take_word_back(&self) -> Result<()> {
        let view = self.view.borrow().clone();
        let Some(said) = cluster::deposition::before_new_data(&view, &self.name, self.world.bond(self.at).as_ref()) else { return Ok(()) };
        let (name, lease) = (self.name.clone(), view.lease_of(&self.name).unwrap_or_default());
        Ok(self.store().say(&name, &said, lease).await?)
    }

    async fn copy(&self, from: &MemberName) -> Result<Data> {
        let source = self.reach(from).await?;
        let server = self.world.serving(source).context("gone")?;
        let until = self.world.now() + self.world.random.mostly(500 * MS, 8000 * MS);
        while self.world.now() < until {
            self.world.time.sleep(50 * MS).await;
            let gone = !self.world.server(source).is_some_and(|now| Rc::ptr_eq(&now, &server));
            if gone || self.world.is_cut(source, self.at) {
                bail!("the connection broke");
            }
        }
        self.world.copied(source).context("the source is gone")
    }

    async fn rewind_to(&self, view: &ClusterView, from: &MemberName) -> Result<Done> {
        self.speak(MemberState::Stopping, MemberRole::Replica);
        self.world.stop_server(self.at, true).await;
        self.speak(MemberState::Stopped, MemberRole::Replica);
        let node = &self.world.nodes[self.at];
        if let Data::Incomplete(what) = &*node.data.borrow() {
            *self.rewind_failed.borrow_mut() = Some(what.clone());
            return Ok(Done::LookAgain);
        }
        // A crashed one recovers alone first.
        self.world.time.sleep(self.world.random.mostly(50 * MS, 500 * MS)).await;
        let source = self.reach(from).await?;
        let server = self.world.serving(source).context("gone")?;
        if self.world.random.per_mille(50) {
            *self.rewind_failed.borrow_mut() = Some("could not open file".to_owned());
            return Ok(Done::LookAgain);
        }
        let Some(theirs) = self.world.copied(source) else { bail!("the source is gone") };
        let mine = node.data.borrow().disk().cloned();
        let (Some(theirs), Some(mine)) = (theirs.disk().cloned(), mine) else { bail!("no data") };
        // pg_rewind does nothing where both are on one timeline, by number and the source's pg_control.
        if mine.wal.timeline == server.checkpointed_timeline.get() {
            let mut same = mine;
            same.ended = Ended::Standby;
            if theirs.wal.common(&same.wal) < same.wal.records.len().min(theirs.wal.records.len()) {
                self.world.violated(
                    "no_forked_history_is_kept",
                    format!(
                        "{} is on the number of {from}'s timeline {} with other content, and pg_rewind sees no difference",
                        self.name, same.wal.timeline
                    ),
                );
            }
            *node.data.borrow_mut() = Data::Present(same);
            return self.start(view, self.follow_of(Some(from))).await;
        }
        self.take_word_back().await?;
        self.world.before_deletion(self.at, "rewind");
        *node.data.borrow_mut() = Data::Incomplete("rewind".to_owned());
        let until = self.world.now() + self.world.random.mostly(200 * MS, 3000 * MS);
        while self.world.now() < until {
            self.world.time.sleep(20 * MS).await;
            if self.world.is_cut(source, self.at) || !self.world.server(source).is_some_and(|now| Rc::ptr_eq(&now, &server)) {
                *self.rewind_failed.borrow_mut() = Some("the source went away half way".to_owned());
                return Ok(Done::LookAgain);
            }
        }
        let Some(done) = self.world.copied(source) else { bail!("the source is gone") };
        *node.data.borrow_mut() = done;
        *self.rewind_failed.borrow_mut() = None;
        self.start(view, self.follow_of(Some(from))).await
    }
}

fn of_server(world: &World, server: &Server) -> Postgres {
    let (timeline, position) = server.position(world);
    if !server.in_recovery.get() {
        return Postgres::Primary { timeline, flushed: position };
    }
    let upstream = server.upstream.get().map(|at| Address::new(format!("10.0.0.{}", at + 1), 5432));
    Postgres::Standby { timeline, position, upstream, streaming: server.streaming.get() }
}

/// The member that is copied from or followed: no cluster follows another one here.
fn member(upstream: &Upstream) -> Result<&MemberName> {
    upstream.member().with_context(|| format!("{upstream} is not simulated"))
}
