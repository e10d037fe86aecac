//! `keeper`'s host in the world: the lease worker that ships, over simulated time.

use crate::server::Server;
use crate::store::Store;
use crate::time::{Part, Signal};
use crate::world::{MS, World, system};
use cluster::config::DynamicConfig;
use cluster::failsafe::Spoken;
use cluster::hearing::Answer;
use cluster::instance::Instance;
use cluster::lsn::Lsn;
use cluster::member::{Member, MemberRole, MemberState, TenureFacts};
use cluster::name::{SystemId, Timeline};
use cluster::slots::Publication;
use cluster::standing::Bond;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::remember::Remembered;
use keeper::{Host, Tenure, Worker};
use std::rc::Rc;
use std::time::Duration;

/// What people's clocks show when a run begins, in seconds since 1970.
const BEGINNING: i64 = 1_750_000_000;

/// A place is one boot of one host.
pub(crate) fn instance_of(world: &World, at: usize) -> Option<Instance> {
    Some(Instance::of(&format!("boot-{at}-{}", world.nodes[at].boots.get()), 1, 2, "data"))
}

/// The part of the member key that the arbiter configures.
pub(crate) fn configured(world: &World, at: usize) -> Member {
    let address = world.nodes[at].original + 1;
    Member {
        conn_url: format!("postgres://10.0.0.{address}:5432/postgres"),
        api_url: format!("http://10.0.0.{address}:8008/patroni"),
        state: MemberState::Running,
        role: MemberRole::Replica,
        version: dcs::SURFACE_VERSION.to_owned(),
        checkpoint_after_promote: None,
        tags: world.nodes[at].wished.tags.borrow().clone(),
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

/// The process of a lease worker.
struct Process {
    world: Rc<World>,
    server: Rc<Server>,
    at: usize,
    lease_wanted: Signal,
    remembered: Rc<Remembered>,
}

/// Starts the worker of a server.
pub(crate) fn spawn(world: &Rc<World>, server: Rc<Server>) {
    let at = server.at;
    let process = (at, Part::Worker);
    let remembered = world.nodes[at].recall(world);
    let store = Rc::new(Store { world: world.clone(), process, remembered: remembered.clone() });
    let host = Process { world: world.clone(), server, at, lease_wanted: Signal::default(), remembered };
    let worker = Rc::new(Worker::new(store, host, world.nodes[at].name.clone(), instance_of(world, at)));
    worker.recall_bond(world.bond(at));
    worker.recall_word(Ok(world.spoken(at)));
    let (keeper, listener) = (worker.clone(), worker.clone());
    world.time.spawn(process, async move { match keeper.keep_lease().await {} });
    world.time.spawn(process, async move { match listener.listen().await {} });
    world.time.spawn(process, async move { match worker.turns().await {} });
}

impl Host for Process {
    fn clock(&self) -> Moment {
        self.world.clock(self.at)
    }

    fn wall_clock(&self) -> jiff::Timestamp {
        let now = i64::try_from(self.world.now().as_secs()).unwrap_or(0);
        jiff::Timestamp::from_second(BEGINNING + now).unwrap_or_default()
    }

    async fn sleep(&self, span: Duration) {
        self.world.time.sleep(span).await;
    }

    fn look_again(&self) {
        self.world.nodes[self.at].wake_worker.notify(&self.world.time);
    }

    async fn look_wanted(&self) {
        self.world.nodes[self.at].wake_worker.notified(&self.world.time).await;
    }

    fn want_lease(&self) {
        self.lease_wanted.notify(&self.world.time);
    }

    async fn lease_wanted(&self) {
        self.lease_wanted.notified(&self.world.time).await;
    }

    fn wake_arbiter(&self) {
        self.world.nodes[self.at].wake_arbiter.notify(&self.world.time);
    }

    fn server(&self) -> keeper::OwnServer {
        let (timeline, position) = self.server.position(&self.world);
        if !self.server.in_recovery.get() {
            return keeper::OwnServer::Primary { timeline, flushed: position, confirmed: self.world.confirmed(&self.server) };
        }
        keeper::OwnServer::Standby {
            timeline,
            received: Lsn(self.server.received.get().unwrap_or(0)),
            replayed: Lsn(self.server.replayed(&self.world)),
            streaming: self.server.streaming.get(),
            end_known: self.server.end_known(&self.world),
        }
    }

    fn system_id(&self) -> SystemId {
        system()
    }

    fn checkpointed_timeline(&self) -> Option<Timeline> {
        Some(Timeline(self.server.checkpointed_timeline.get()))
    }

    fn receiver_running(&self) -> bool {
        self.server.receiver_running(&self.world)
    }

    fn stop_receiver(&self) {
        self.server.stop_receiver(&self.world);
    }

    async fn keep_bond(&self, bond: Option<&Bond>) -> Result<(), String> {
        self.world.time.sleep(self.world.apart.mostly(2 * MS, 80 * MS)).await;
        let mut data = self.world.nodes[self.at].data.borrow_mut();
        let disk = data.disk_mut().ok_or("the data directory is gone")?;
        disk.bond = bond.cloned();
        Ok(())
    }

    async fn keep_word(&self, spoken: Option<Spoken>) -> Result<(), String> {
        self.world.time.sleep(self.world.apart.mostly(2 * MS, 80 * MS)).await;
        let mut data = self.world.nodes[self.at].data.borrow_mut();
        let disk = data.disk_mut().ok_or("the data directory is gone")?;
        disk.spoken = spoken;
        Ok(())
    }

    async fn hear(&self, leader: &Member, patience: Duration) -> Answer {
        let at = (0..self.world.nodes.len()).find(|at| configured(&self.world, *at).conn_url == leader.conn_url);
        match at {
            Some(at) => self.world.hear(self.at, at, patience).await,
            None => Answer::Silent,
        }
    }

    async fn listen_wanted(&self) {
        self.world.nodes[self.at].wake_listener.notified(&self.world.time).await;
    }

    fn page(&self) -> &Tenure {
        &self.server.page
    }

    fn change<T>(&self, change: impl FnOnce(&Tenure) -> T) -> T {
        self.world.change_page(&self.server, change)
    }

    fn before_renewal(&self) -> i64 {
        0
    }

    fn after_renewal(&self, _look: i64) {}

    fn arbiter_attends(&self, _now: Moment, _patience: Duration) -> bool {
        self.server.attached.get()
    }

    fn configured(&self) -> (Member, Option<String>) {
        (configured(&self.world, self.at), None)
    }

    fn describe(&self, _member: &mut Member) {}

    fn slots(&self) -> Option<Publication> {
        None
    }

    fn remembered(&self) -> Option<&Remembered> {
        Some(&self.remembered)
    }

    fn record(&self, _kind: &str, _text: &str, _cause: &str, line: &str) {
        self.world.tell(&format!("{} worker", self.world.nodes[self.at].name), line);
    }

    /// Nobody here reads it.
    fn note(&self, _why: &str) {}

    fn turn_begins(&self) {}

    fn etcd_answered(&self) {}

    fn seen(&self, view: &ClusterView) {
        self.world.change_page(&self.server, |page| page.know_generation(view.store_generation()));
    }

    async fn serve_requests(&self, _view: &ClusterView) {}

    fn decline_requests(&self, _why: &str) {}

    fn renewal_took(&self, _span: Duration) {}

    fn race_took(&self, _span: Duration) {}
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
        "deposition": setting.deposes,
    });
    DynamicConfig(document.as_object().cloned().unwrap_or_default())
}
