//! The arbiter as `arbiter/src/{daemon,apply,node_lease,switchover,tend}.rs` have it, over simulated time.

mod failsafe;
mod founding;

use crate::postgres::{Recovery, Server};
use crate::store::Store;
use crate::time::{First, Part, Signal, TaskId, either};
use crate::wal::Data;
use crate::worker::{configured, now};
use crate::world::{MS, World};
use cluster::config::SynchronousMode;
use cluster::duty::{self, Duty};
use cluster::failover::FailoverRequest;
use cluster::failsafe::Members;
use cluster::instance::{self, Claim};
use cluster::leader::{Leader, LeaseId};
use cluster::lease;
use cluster::local::{Control, DataDir, Ended, LocalState, Postgres};
use cluster::lsn::Lsn;
use cluster::member::{Member, MemberRole, MemberState, Tags};
use cluster::name::{MemberName, Timeline};
use cluster::quorum::{self, Rules, Setting, StandbySeen, SyncStep, Trust};
use cluster::standby_cluster::Remote;
use cluster::store::Doubt;
use cluster::sync::SyncState;
use cluster::time::Moment;
use cluster::upstream::Upstream;
use cluster::view::{ClusterView, Status};
use dcs::lease::{self as leases, Held, NoLease};
use dcs::memory::Memory;
use dcs::remember::Remembered;
use dcs::{Dcs, Error, HandOver};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

const RETRY: Duration = Duration::from_millis(250);
const AFTER_FAILURE: Duration = Duration::from_secs(1);
const DEMOTION_PATIENCE: Duration = Duration::from_secs(5);
const PROMOTION_PATIENCE: Duration = Duration::from_secs(60);
const CONFIRM_PATIENCE: Duration = Duration::from_secs(5);

type Done = Result<bool, String>;

#[derive(Clone, PartialEq)]
struct Word {
    state: MemberState,
    role: MemberRole,
}

pub(crate) struct Arbiter {
    world: Rc<World>,
    at: usize,
    name: MemberName,
    view: RefCell<ClusterView>,
    // The lease in the arbiter's hands.
    held: Cell<Option<Held>>,
    wanted: RefCell<Option<Word>>,
    word_changed: Signal,
    said: RefCell<Option<(Member, LeaseId)>>,
    // The daemon's memory.
    procedure: RefCell<Option<(TaskId, Duty)>>,
    ended: RefCell<Option<Done>>,
    not_before: Cell<Duration>,
    look_owed: Cell<bool>,
    down_since: Cell<Option<Duration>>,
    rewind_failed: RefCell<Option<String>>,
    /// The setting, and from which position on it is in force.
    synchronous: RefCell<(Setting, Option<u64>)>,
    /// Standbys that the server began with, and until when they are expected.
    expected: RefCell<(BTreeSet<MemberName>, Duration)>,
    told: RefCell<String>,
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
    let arbiter = Rc::new(Arbiter {
        world: world.clone(),
        at,
        name: world.nodes[at].name.clone(),
        view: RefCell::default(),
        held: Cell::new(None),
        wanted: RefCell::default(),
        word_changed: Signal::default(),
        said: RefCell::default(),
        procedure: RefCell::default(),
        ended: RefCell::default(),
        not_before: Cell::default(),
        look_owed: Cell::new(false),
        down_since: Cell::new(None),
        rewind_failed: RefCell::default(),
        synchronous: RefCell::default(),
        expected: RefCell::default(),
        told: RefCell::default(),
        checkpointing: Rc::default(),
        serves: Cell::new(false),
        promised_until: Cell::default(),
        failsafe_sent: RefCell::default(),
        remembered: world.nodes[at].recall(world),
    });
    *world.nodes[at].arbiter.borrow_mut() = Rc::downgrade(&arbiter);
    let keeper = arbiter.clone();
    world.time.spawn((at, Part::Arbiter), async move { keeper.keep().await });
    world.time.spawn((at, Part::Arbiter), async move { arbiter.run().await });
}

impl Arbiter {
    async fn ask<T: 'static>(&self, ask: impl Fn(&Memory) -> dcs::Result<T> + Clone + 'static) -> dcs::Result<T> {
        self.world.ask((self.at, Part::Arbiter), ask).await
    }

    fn tell(&self, text: &str) {
        if *self.told.borrow() != text {
            self.world.tell(&format!("{} arbiter", self.name), text);
            *self.told.borrow_mut() = text.to_owned();
        }
    }

    fn clock(&self) -> Moment {
        self.world.clock(self.at)
    }

    // ---- The lease ----

    fn current(&self) -> Option<Held> {
        self.held.get().filter(|held| self.clock() < held.deadline)
    }

    fn speak(&self, word: Option<(MemberState, MemberRole)>) {
        let word = word.map(|(state, role)| Word { state, role });
        if *self.wanted.borrow() != word {
            *self.wanted.borrow_mut() = word;
            self.word_changed.notify(&self.world.time);
        }
    }

    async fn keep(&self) {
        loop {
            let word = self.wanted.borrow().clone();
            let pause = match &word {
                None => {
                    *self.said.borrow_mut() = None;
                    Duration::MAX
                }
                Some(word) => match self.tend_lease(word).await {
                    Ok(ttl) => lease::renew_every(ttl),
                    Err(_) => RETRY,
                },
            };
            either(self.word_changed.notified(&self.world.time), self.world.time.sleep(pause)).await;
        }
    }

    async fn tend_lease(&self, word: &Word) -> Result<Duration, NoLease> {
        let held = match self.current() {
            Some(held) => leases::renew(&self.store(), || self.clock(), held.grant.lease).await.map(|renewed| renewed.held),
            None => Err(Error::LeaseGone),
        };
        let held = match held {
            Err(Error::LeaseGone) => {
                let held = self.acquire(word).await?;
                self.world.nodes[self.at].wake_arbiter.notify(&self.world.time);
                held
            }
            other => other?,
        };
        self.held.set(Some(held));
        let lease = held.grant.lease;
        // With what is doubted by now, though the word be the same.
        let member = self.member(word);
        if self.remembered.doubt().is_some() || self.said.borrow().as_ref() != Some(&(member.clone(), lease)) {
            let (name, sent) = (self.name.clone(), member.clone());
            self.ask(move |etcd| now(etcd.write_member(&name, &sent, lease, None))).await?;
            *self.said.borrow_mut() = Some((member, lease));
        }
        Ok(held.grant.ttl)
    }

    fn member(&self, word: &Word) -> Member {
        let mut member = Member { state: word.state.clone(), role: word.role.clone(), ..configured(&self.world, self.at) };
        if let Some(facts) = &mut member.tenure {
            (facts.doubt, facts.memory) = self.remembered.word();
        }
        member
    }

    fn store(&self) -> Store {
        Store { world: self.world.clone(), process: (self.at, Part::Arbiter), remembered: self.remembered.clone() }
    }

    async fn acquire(&self, word: &Word) -> Result<Held, NoLease> {
        let ttl = |view: &ClusterView| view.config().timing().ttl;
        let member = self.member(word);
        let acquired = leases::acquire(&self.store(), || self.clock(), &self.name, &member, ttl).await?;
        if acquired.is_new {
            *self.said.borrow_mut() = Some((member, acquired.held.grant.lease));
        }
        Ok(acquired.held)
    }

    /// As `Daemon::keep_out`.
    fn keeps_out(&self, view: &ClusterView) -> bool {
        let held = self.current().map(|held| held.grant.lease);
        let Some(other) = instance::in_use(view, &self.name, &configured(&self.world, self.at), held) else {
            self.world.goes_by_its_name(self.at);
            return false;
        };
        self.tell(&other.to_string());
        self.speak(None);
        self.held.set(None);
        true
    }

    async fn confirm(&self, view: &ClusterView) -> bool {
        let Ok(Claim::Own { lease, .. }) = instance::claim(view, &self.name, &configured(&self.world, self.at)) else { return false };
        match leases::renew(&self.store(), || self.clock(), lease).await {
            Ok(renewed) => {
                self.held.set(Some(renewed.held));
                true
            }
            Err(_) => false,
        }
    }

    // ---- The loop ----

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
                    let local = self.look(&view).await;
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
        self.speak(Some((MemberState::Crashed, MemberRole::Replica)));
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
        if matches!((&duty, &done), (Some(Duty::Rest), Ok(false))) && !self.look_owed.replace(false) {
            return true;
        }
        match done {
            Ok(_) => self.not_before.set(Duration::ZERO),
            Err(why) => {
                self.tell(&format!("failed: {why}"));
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
        let mut local = self.look(&view).await;
        self.speak_for(&local);
        if fresh && view.leader_if(&self.name).is_some() && matches!(local.postgres, Postgres::Standby { .. }) {
            local.lease_valid = self.confirm(&view).await;
        }
        let mut decision = duty::decide(emptied.as_ref().unwrap_or(&view), &local);
        if decision.what == Duty::Bootstrap && !matches!(local.data, DataDir::Present(_)) {
            // A second database system is not simulated: no empty node founds one.
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
            let done = me.apply(told, &view).await;
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
                    self.speak(None);
                }
                if let Some(server) = self.world.serving(self.at) {
                    self.renew_promise();
                    server.attached.set(true);
                    self.world.nodes[self.at].wake_worker.notify(&self.world.time);
                }
            }
            Postgres::Stopped if self.wanted.borrow().is_none() => self.speak(Some((MemberState::Stopped, MemberRole::Replica))),
            Postgres::Stopped | Postgres::Starting { .. } | Postgres::Silent => {}
        }
    }

    async fn look(&self, view: &ClusterView) -> LocalState {
        let world = &self.world;
        let postgres = match world.server(self.at) {
            None => Postgres::Stopped,
            Some(server) if !server.ready.get() => Postgres::Starting { since: world.now() - server.started },
            Some(_) => match world.sql(self.at).await {
                None if world.server(self.at).is_none() => Postgres::Stopped,
                None => Postgres::Silent,
                Some(server) => of_server(world, &server),
            },
        };
        let data = match &*world.nodes[self.at].data.borrow() {
            Data::Empty => DataDir::Empty,
            Data::Incomplete(what) => DataDir::Incomplete { what: what.clone() },
            Data::Present(disk) => {
                let (timeline, checkpoint, ended) = match &postgres {
                    Postgres::Primary { timeline, flushed } => (*timeline, *flushed, Ended::CrashedPrimary),
                    Postgres::Standby { timeline, position, .. } => (*timeline, *position, Ended::Standby),
                    // pg_control: for a standby the minimum recovery point, which is at or behind what was replayed.
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
        LocalState {
            name: self.name.clone(),
            tags: Tags::default(),
            data,
            postgres,
            lease_valid: self.current().is_some(),
            rewind_failed: self.rewind_failed.borrow().clone(),
            may_clone_over: true,
            down_for: since.map_or(Duration::ZERO, |since| world.now() - since),
            stopping: false,
            reinit: false,
            cloning: Default::default(),
            start_failed: None,
            request_due: true,
            start_owed: false,
            strange: None,
            request_waits: Duration::ZERO,
            frozen_for: Duration::ZERO,
            answered: self.answered(view),
            gives_way: None,
            memory: Some(Box::new(self.remembered.memory())).filter(|memory| memory.system_id.is_some()),
            upgrade: None,
            fence_open: self.fence_is_open(),
            log_until: None,
            remote: Remote::default(),
        }
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

    async fn apply(&self, duty: Duty, view: &ClusterView) -> Done {
        match duty {
            Duty::Rest => self.rest(view).await,
            Duty::Bootstrap => self.found().await,
            Duty::Restore | Duty::DemoteCluster { .. } | Duty::Upgrade { .. } | Duty::Stop | Duty::Quit => {
                Err(format!("{duty:?} is not simulated"))
            }
            Duty::Clone { from } => self.clone_from(member(&from)?).await,
            Duty::StartPrimary { .. } => self.start(view, Recovery::None).await,
            Duty::StartStandby { upstream } => self.start(view, self.follow(upstream.member())).await,
            Duty::Promote { term } => self.promote(term.0).await,
            Duty::Demote => {
                self.speak(Some((MemberState::Stopping, MemberRole::Demoted)));
                self.world.stop_server_within(self.at, true, DEMOTION_PATIENCE).await;
                self.speak(Some((MemberState::Stopped, MemberRole::Demoted)));
                Ok(true)
            }
            Duty::Follow { upstream } => {
                let server = self.world.sql(self.at).await.ok_or("no answer")?;
                server.upstream.set(self.world.number_of(member(&upstream)?));
                server.told_to_follow.tell(&self.world.time);
                Ok(true)
            }
            Duty::Rewind { from } => self.rewind(view, member(&from)?).await,
            Duty::Switchover { candidates } => self.switch_over(view, &candidates).await,
            Duty::HandOver { to } => {
                self.speak(Some((MemberState::Crashed, MemberRole::Demoted)));
                let leader = view.leader_if(&self.name).ok_or("leads no more")?;
                self.hand_over(leader, &to, None).await?;
                Ok(true)
            }
            Duty::CallOff => {
                let revision = view.request().map_or(0, |request| request.revision);
                self.ask(move |etcd| now(etcd.write_failover(&FailoverRequest::default(), revision))).await.map_err(text)?;
                Ok(true)
            }
            Duty::Release | Duty::GiveWay { .. } => {
                self.world.stop_server(self.at, false).await;
                let leader = view.leader_if(&self.name).ok_or("leads no more")?.clone();
                self.ask(move |etcd| now(etcd.release_leader(&leader))).await.map_err(text)?;
                Ok(true)
            }
        }
    }

    fn follow(&self, upstream: Option<&MemberName>) -> Recovery {
        Recovery::Standby(upstream.and_then(|name| self.world.number_of(name)))
    }

    async fn start(&self, view: &ClusterView, recovery: Recovery) -> Done {
        let role = if recovery == Recovery::None { MemberRole::Primary } else { MemberRole::Replica };
        self.speak(Some((MemberState::Starting, role)));
        self.world.time.sleep(5 * MS).await;
        if self.world.server(self.at).is_some() {
            return Ok(true);
        }
        let mut names = Setting::nobody();
        if recovery == Recovery::None {
            if let Some(sync) = view.sync.as_ref().filter(|sync| sync.value.leader.as_deref() == Some(self.name.as_str())) {
                self.begin(Rules::of(view.config()).at_start(&Trust::of(&sync.value)), view);
            }
            names = self.synchronous.borrow().0.clone();
        }
        // The lease worker begins with what this arbiter knows.
        self.remembered.not_written();
        self.keep_memory();
        self.world.start_server(self.at, recovery, names);
        Ok(false)
    }

    async fn rest(&self, view: &ClusterView) -> Done {
        let Some(server) = self.world.serving(self.at) else { return Ok(false) };
        if server.in_recovery.get() {
            *self.synchronous.borrow_mut() = Default::default();
            return Ok(false);
        }
        let Some(leader) = view.leader_if(&self.name) else { return Ok(false) };
        self.applied(&server);
        self.history(view, leader).await?;
        if view.members.get(&self.name).is_some_and(|entry| entry.member.checkpoint_after_promote == Some(false)) {
            self.first_checkpoint();
        }
        self.publish_failsafe(view, leader).await?;
        self.synchronous(view, leader, &server).await
    }

    async fn history(&self, view: &ClusterView, leader: &Leader) -> Result<(), String> {
        let (timeline, file) = match self.world.nodes[self.at].data.borrow().disk() {
            Some(disk) => (Timeline(disk.wal.timeline), disk.wal.history()),
            None => return Ok(()),
        };
        if timeline == view.history().current() {
            return Ok(());
        }
        let merged = view.history().merged(&file.up_to(timeline), "now", self.name.as_str());
        let (revision, leader) = (ClusterView::revision_of(&view.history), leader.clone());
        self.ask(move |etcd| now(etcd.write_history(&merged, revision, &leader))).await.map_err(text)
    }

    fn begin(&self, setting: Setting, view: &ClusterView) {
        *self.expected.borrow_mut() = (setting.names.clone(), self.world.now() + view.config().timing().ttl);
        *self.synchronous.borrow_mut() = (setting, None);
    }

    fn applied(&self, server: &Server) -> (Setting, Option<u64>) {
        let known = self.synchronous.borrow().clone();
        if known.0 == *server.standby_names.borrow() {
            return known;
        }
        let found = (server.standby_names.borrow().clone(), None);
        *self.synchronous.borrow_mut() = found.clone();
        found
    }

    async fn synchronous(&self, view: &ClusterView, leader: &Leader, server: &Rc<Server>) -> Done {
        let key = view.sync.as_ref().map(|sync| sync.value.clone()).unwrap_or_default();
        let revision = ClusterView::revision_of(&view.sync);
        if view.config().synchronous_mode() == SynchronousMode::Off {
            return Ok(false);
        }
        let (setting, from) = self.applied(server);
        let rules = Rules::of(view.config());
        let alive = |name: &&MemberName| view.members.get(name).is_some_and(|entry| entry.member.is_running());
        let expected = match &*self.expected.borrow() {
            (names, until) if self.world.now() < *until => names.iter().filter(alive).cloned().collect(),
            _ => BTreeSet::new(),
        };
        let trust = Trust::of(&key);
        let goal = rules.goal(&self.standbys(view, server), &trust, &setting, &expected);
        let caught_up = |from: Option<u64>| from.map(|from| self.world.caught_up(server, from)).unwrap_or_default();
        let now_applied = quorum::Applied { setting: setting.clone(), caught_up: caught_up(from) };
        match quorum::step(&self.name, &key, &now_applied, &goal) {
            SyncStep::Settled => Ok(false),
            SyncStep::WriteKey(state) => {
                self.tell(&format!("sync key: {:?}", state.sync_standby));
                let leader = leader.clone();
                self.ask(move |etcd| now(etcd.write_sync(&state, revision, &leader))).await.map_err(text)?;
                Ok(true)
            }
            SyncStep::Apply(names) => {
                self.tell(&format!("standby names: {names:?}"));
                *self.synchronous.borrow_mut() = (names.clone(), None);
                if let Some(disk) = self.world.nodes[self.at].data.borrow_mut().disk_mut() {
                    disk.standby_names = names.clone();
                }
                let server = self.world.sql(self.at).await.ok_or("no answer")?;
                *server.standby_names.borrow_mut() = names.clone();
                // The checkpointer takes it up when it takes it up.
                let (world, server) = (self.world.clone(), server.clone());
                let later = self.world.now() + self.world.random.mostly(5 * MS, 300 * MS);
                self.world.time.at(later, move || {
                    if *server.standby_names.borrow() == names {
                        *server.awaited.borrow_mut() = names;
                        server.confirmations.tell(&world.time);
                    }
                });
                self.world.time.sleep(5 * MS).await;
                Ok(true)
            }
            SyncStep::Confirm => {
                let confirmed = async {
                    let from = match from {
                        Some(from) => from,
                        None => self.world.in_force(server).await.ok_or("no answer")?,
                    };
                    *self.synchronous.borrow_mut() = (setting.clone(), Some(from));
                    let enough = || quorum::follows(&trust, &goal.trust, &caught_up(Some(from)));
                    server.confirmations.wait(&self.world.time, || enough().then_some(())).await;
                    Ok::<(), String>(())
                };
                Ok(self.world.time.timeout(CONFIRM_PATIENCE, confirmed).await.transpose()?.is_some())
            }
        }
    }

    fn standbys(&self, view: &ClusterView, server: &Server) -> Vec<StandbySeen> {
        let confirmed = server.confirmed.borrow();
        let senders = server.senders.borrow();
        let seen = senders.iter().filter_map(|at| {
            let name = self.world.nodes[*at].name.clone();
            view.members.get(&name)?;
            let lag_bytes = confirmed.get(at).map_or(u64::MAX, |lsn| server.flushed.get().saturating_sub(*lsn));
            Some(StandbySeen {
                name,
                streaming: true,
                replays: true,
                eligible: true,
                nofailover: false,
                elsewhere: false,
                priority: 1,
                lag_bytes,
            })
        });
        seen.collect()
    }

    async fn promote(&self, term: i64) -> Done {
        let view = self.store().view().await.map_err(text)?;
        if view.leader_if(&self.name).is_none_or(|leader| leader.term.0 != term) {
            return Err(format!("term {term} is over"));
        }
        if !self.confirm(&view).await {
            return Err("the lease was not confirmed by etcd".to_owned());
        }
        if self.world.server(self.at).is_none() {
            return Err("Postgres does not run".to_owned());
        }
        self.claim_timeline(&view).await?;
        let view = self.trust_nobody_else(view).await?;
        let others = view.members.iter().filter(|(name, entry)| **name != self.name && entry.member.is_running());
        let own = view.sync.as_ref().map(|sync| Trust::own(&self.name, &sync.value)).unwrap_or_default();
        let setting = Rules::of(view.config()).at_promotion(others.map(|(name, _)| name.clone()).collect(), &own);
        if let Some(server) = self.world.server(self.at) {
            *server.standby_names.borrow_mut() = setting.clone();
        }
        self.world.promote(self.at, term);
        let node = &self.world.nodes[self.at];
        let promoted = node.changed.wait(&self.world.time, || match self.world.server(self.at) {
            None => Some(Err("Postgres has ended".to_owned())),
            Some(server) if !server.in_recovery.get() => Some(Ok(())),
            Some(_) => None,
        });
        self.world.time.timeout(PROMOTION_PATIENCE, promoted).await.ok_or("Postgres does not leave recovery")??;
        self.begin(setting, &view);
        node.wake_worker.notify(&self.world.time);
        self.first_checkpoint();
        Ok(true)
    }

    async fn trust_nobody_else(&self, view: ClusterView) -> Result<ClusterView, String> {
        let synchronous = view.config().synchronous_mode() != SynchronousMode::Off;
        let known = view.sync.as_ref().map(|sync| &sync.value);
        let Some(own) = SyncState::before_promotion(known, &self.name, synchronous) else { return Ok(view) };
        let leader = view.leader_if(&self.name).ok_or("leads no more")?.clone();
        let revision = ClusterView::revision_of(&view.sync);
        self.ask(move |etcd| now(etcd.write_sync(&own, revision, &leader))).await.map_err(text)?;
        self.store().view().await.map_err(text)
    }

    /// Claims the next number in etcd; those in between are occupied, so that Postgres passes over them.
    async fn claim_timeline(&self, view: &ClusterView) -> Result<(), String> {
        let leader = view.leader_if(&self.name).ok_or("leads no more")?.clone();
        let mine = self.world.sql(self.at).await.ok_or("no answer")?.position(&self.world).0;
        let (claimed, revision) = (view.timeline_to_claim(mine), ClusterView::revision_of(&view.claimed_timeline));
        self.ask(move |etcd| now(etcd.claim_timeline(claimed, revision, &leader))).await.map_err(text)?;
        if let Some(disk) = self.world.nodes[self.at].data.borrow_mut().disk_mut() {
            disk.known.extend(mine.next().0..claimed.0);
        }
        Ok(())
    }

    fn first_checkpoint(&self) {
        if self.checkpointing.replace(true) {
            return;
        }
        let (world, at, under_way) = (self.world.clone(), self.at, self.checkpointing.clone());
        self.world.time.spawn((self.at, Part::Arbiter), async move {
            if world.checkpoint(at).await {
                world.nodes[at].wake_worker.notify(&world.time);
            }
            under_way.set(false);
            world.nodes[at].wake_arbiter.notify(&world.time);
        });
    }

    /// A path to a server that answers.
    async fn reach(&self, from: &MemberName) -> Result<usize, String> {
        let source = self.world.number_of(from).ok_or("no such member")?;
        let cut = self.world.is_cut(self.at, source) || self.world.is_cut(source, self.at);
        self.world.time.sleep(self.world.delay()).await;
        if cut || self.world.serving(source).is_none() || self.world.time.is_frozen((source, Part::Server)) {
            return Err(format!("{from} can't be reached"));
        }
        Ok(source)
    }

    async fn clone_from(&self, from: &MemberName) -> Done {
        self.speak(Some((MemberState::CreatingReplica, MemberRole::Uninitialized)));
        self.world.stop_server(self.at, false).await;
        self.world.before_deletion(self.at, "clone");
        // Marked, then emptied: whoever is killed from here on leaves a mark.
        *self.world.nodes[self.at].data.borrow_mut() = Data::Incomplete(format!("clone from {from}"));
        let copied = self.copy(from).await;
        let cleared = self.world.random.mostly(5 * MS, 50 * MS);
        self.world.time.sleep(cleared).await;
        match copied {
            Ok(data) => {
                *self.world.nodes[self.at].data.borrow_mut() = data;
                *self.rewind_failed.borrow_mut() = None;
                let view = self.view.borrow().clone();
                self.start(&view, self.follow(Some(from))).await
            }
            Err(why) => {
                *self.world.nodes[self.at].data.borrow_mut() = Data::Empty;
                Err(why)
            }
        }
    }

    async fn copy(&self, from: &MemberName) -> Result<Data, String> {
        let source = self.reach(from).await?;
        let server = self.world.serving(source).ok_or("gone")?;
        let until = self.world.now() + self.world.random.mostly(500 * MS, 8000 * MS);
        while self.world.now() < until {
            self.world.time.sleep(50 * MS).await;
            let gone = !self.world.server(source).is_some_and(|now| Rc::ptr_eq(&now, &server));
            if gone || self.world.is_cut(source, self.at) {
                return Err("the connection broke".to_owned());
            }
        }
        self.world.copied(source).ok_or_else(|| "the source is gone".to_owned())
    }

    async fn rewind(&self, view: &ClusterView, from: &MemberName) -> Done {
        self.speak(Some((MemberState::Stopping, MemberRole::Replica)));
        self.world.stop_server(self.at, true).await;
        self.speak(Some((MemberState::Stopped, MemberRole::Replica)));
        let node = &self.world.nodes[self.at];
        if let Data::Incomplete(what) = &*node.data.borrow() {
            *self.rewind_failed.borrow_mut() = Some(what.clone());
            return Ok(true);
        }
        // A crashed one recovers alone first.
        self.world.time.sleep(self.world.random.mostly(50 * MS, 500 * MS)).await;
        let source = self.reach(from).await?;
        let server = self.world.serving(source).ok_or("gone")?;
        if self.world.random.per_mille(50) {
            *self.rewind_failed.borrow_mut() = Some("could not open file".to_owned());
            return Ok(true);
        }
        let Some(theirs) = self.world.copied(source) else { return Err("the source is gone".to_owned()) };
        let mine = node.data.borrow().disk().cloned();
        let (Some(theirs), Some(mine)) = (theirs.disk().cloned(), mine) else { return Err("no data".to_owned()) };
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
            return self.start(view, self.follow(Some(from))).await;
        }
        self.world.before_deletion(self.at, "rewind");
        *node.data.borrow_mut() = Data::Incomplete("rewind".to_owned());
        let until = self.world.now() + self.world.random.mostly(200 * MS, 3000 * MS);
        while self.world.now() < until {
            self.world.time.sleep(20 * MS).await;
            if self.world.is_cut(source, self.at) || !self.world.server(source).is_some_and(|now| Rc::ptr_eq(&now, &server)) {
                *self.rewind_failed.borrow_mut() = Some("the source went away half way".to_owned());
                return Ok(true);
            }
        }
        let Some(done) = self.world.copied(source) else { return Err("the source is gone".to_owned()) };
        *node.data.borrow_mut() = done;
        *self.rewind_failed.borrow_mut() = None;
        self.start(view, self.follow(Some(from))).await
    }

    async fn switch_over(&self, view: &ClusterView, candidates: &[MemberName]) -> Done {
        let leader = view.leader_if(&self.name).ok_or("leads no more")?;
        if let Err(why) = self.try_switch_over(leader, candidates).await {
            self.tell(&format!("switchover failed: {why}"));
            if let Some(server) = self.world.sql(self.at).await {
                self.world.change_page(&server, keeper::Tenure::undrain);
            }
            if let Some(request) = view.request() {
                let revision = request.revision;
                self.ask(move |etcd| now(etcd.write_failover(&FailoverRequest::default(), revision))).await.map_err(text)?;
            }
        }
        Ok(true)
    }

    async fn try_switch_over(&self, leader: &Leader, candidates: &[MemberName]) -> Result<(), String> {
        let world = &self.world;
        let server = world.sql(self.at).await.ok_or("no answer")?;
        let streams = |name: &&MemberName| world.number_of(name).is_some_and(|at| server.senders.borrow().contains(&at));
        let ready: Vec<MemberName> = candidates.iter().filter(streams).cloned().collect();
        if ready.is_empty() {
            return Err("no candidate streams".to_owned());
        }
        world.checkpoint(self.at).await;
        let now = self.clock();
        world.change_page(&server, |page| page.drain(now, Moment::from_nanos(u64::MAX), 0));
        world.time.sleep(world.random.mostly(50 * MS, 500 * MS)).await;
        self.speak(Some((MemberState::Stopping, MemberRole::Primary)));
        let clean = world.stop_server(self.at, true).await;
        let control = world.nodes[self.at].data.borrow().disk().map(|disk| (disk.ended, disk.checkpoint.0));
        let Some((Ended::CleanPrimary, checkpoint)) = control.filter(|_| clean) else {
            return Err("not shut down cleanly".to_owned());
        };
        let deadline = world.now() + Duration::from_secs(2);
        let to = loop {
            let has_all = |name: &&MemberName| {
                let at = world.number_of(name).filter(|at| !world.is_cut(self.at, *at) && !world.is_cut(*at, self.at));
                at.and_then(|at| world.serving(at)).is_some_and(|standby| standby.received.get().is_some_and(|lsn| lsn >= checkpoint + 114))
            };
            if let Some(name) = ready.iter().find(has_all) {
                break name.clone();
            }
            if world.now() >= deadline {
                return Err("no candidate has the end of the log".to_owned());
            }
            world.time.sleep(5 * MS).await;
        };
        world.time.sleep(world.delay()).await;
        self.hand_over(leader, &to, Some(Lsn(checkpoint))).await?;
        self.speak(Some((MemberState::Stopped, MemberRole::Demoted)));
        Ok(())
    }

    async fn hand_over(&self, leader: &Leader, to: &MemberName, last: Option<Lsn>) -> Result<(), String> {
        let view = self.store().view().await.map_err(text)?;
        let to_lease = view.lease_of(to).ok_or("it has no member key any more")?;
        let sync = view.sync.as_ref().filter(|sync| !sync.value.is_empty());
        let sync = sync.map(|sync| {
            let mine = sync.value.leader.as_deref() == Some(self.name.as_str());
            (if mine { sync.value.inherited(to) } else { SyncState::of(to, &BTreeSet::new()) }, sync.revision)
        });
        let before = view.status.as_ref().map(|status| status.value.clone()).unwrap_or_default();
        let handed = HandOver {
            from: leader.clone(),
            to: to.clone(),
            to_lease,
            sync,
            failover: view.request().map(|request| request.revision),
            status: last.map(|optime| Status { optime, ..before }),
        };
        self.ask(move |etcd| now(etcd.hand_over(&handed))).await.map(drop).map_err(text)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn text(why: Error) -> String {
    why.to_string()
}

fn of_server(world: &World, server: &Server) -> Postgres {
    let (timeline, position) = server.position(world);
    if !server.in_recovery.get() {
        return Postgres::Primary { timeline, flushed: position };
    }
    let upstream = server.upstream.get().map(|at| (format!("10.0.0.{}", at + 1), 5432));
    Postgres::Standby { timeline, position, upstream, streaming: server.streaming.get() }
}

/// The member that is copied from or followed: no cluster follows another one here.
fn member(upstream: &Upstream) -> Result<&MemberName, String> {
    upstream.member().ok_or_else(|| format!("{upstream} is not simulated"))
}
