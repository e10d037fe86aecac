//! The groups: three members each, spread over a few threads; founded, run, and their leaders dropped.

use crate::member::{Member, Wal, boottime, system_id};
use crate::meter::{Dropped, Meter};
use anyhow::{Context, Result};
use cluster::config::DynamicConfig;
use cluster::instance::Instance;
use cluster::leader::Leader;
use cluster::lease;
use cluster::name::{MemberName, Scope};
use cluster::store::Making;
use dcs::key::Keys;
use dcs::remember::Remembered;
use dcs::{Dcs, Etcd, FirstKeys, Settings};
use keeper::{Host, Worker};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

/// Of each group.
pub const MEMBERS: usize = 3;

/// All begin within this long, evenly spread: what was begun by many people over years does not renew in step.
pub const BEGIN_WITHIN: Duration = Duration::from_secs(10);

/// Between two tries of a founding.
const AGAIN: Duration = Duration::from_millis(250);

/// The groups as they run; ends them when it is dropped.
pub struct Crowd {
    threads: Vec<(mpsc::UnboundedSender<usize>, std::thread::JoinHandle<()>)>,
}

impl Crowd {
    /// Begins so many groups over this etcd.
    pub fn begin(groups: usize, endpoint: &str, meter: &Arc<Meter>) -> Result<Crowd> {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(4);
        let mut threads = Vec::new();
        for number in 0..count {
            let (order, orders) = mpsc::unbounded_channel();
            let own: Vec<(usize, Duration)> = (number..groups)
                .step_by(count)
                .map(|group| (group, BEGIN_WITHIN * u32::try_from(group).unwrap_or(0) / u32::try_from(groups).unwrap_or(1)))
                .collect();
            let (endpoint, meter) = (endpoint.to_owned(), meter.clone());
            // One thread, as in the extension's own process; here many workers share it.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("set up an event loop")?;
            let thread = std::thread::spawn(move || LocalSet::new().block_on(&runtime, run(own, endpoint, meter, orders)));
            threads.push((order, thread));
        }
        Ok(Crowd { threads })
    }

    /// Drops the leader of each of these groups without a goodbye, as if its host lost its power; its connections are closed.
    pub fn drop_leaders(&self, groups: impl Iterator<Item = usize>) {
        for group in groups {
            let _ = self.threads[group % self.threads.len()].0.send(group);
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for (order, thread) in self.threads.drain(..) {
            drop(order);
            let _ = thread.join();
        }
    }
}

type Shared = Rc<RefCell<BTreeMap<usize, Group>>>;

struct Group {
    wal: Rc<Wal>,
    members: BTreeMap<usize, Running>,
}

/// A member's worker, and its two tasks.
struct Running {
    worker: Rc<Worker<Arc<Etcd>, Member>>,
    tasks: [JoinHandle<()>; 2],
}

async fn run(own: Vec<(usize, Duration)>, endpoint: String, meter: Arc<Meter>, mut orders: mpsc::UnboundedReceiver<usize>) {
    let groups = Shared::default();
    for (group, after) in own {
        let (groups, endpoint, meter) = (groups.clone(), endpoint.clone(), meter.clone());
        spawn_local(async move {
            tokio::time::sleep(after).await;
            found(group, &endpoint, &meter, &groups).await;
        });
    }
    while let Some(group) = orders.recv().await {
        drop_leader(group, &meter, &groups);
    }
}

/// The first member leads, as `arbiter` founds a cluster; the others join once it exists.
async fn found(group: usize, endpoint: &str, meter: &Arc<Meter>, groups: &Shared) {
    let wal = Wal::begin();
    let member = |number| begin(group, number, endpoint, wal.clone(), meter.clone());
    let first = member(0);
    let (etcd, name) = (first.worker.store.clone(), first.worker.name.clone());
    groups.borrow_mut().insert(group, Group { wal: wal.clone(), members: [(0, first)].into() });
    while let Err(why) = try_found(group, &etcd, &name).await {
        meter.said(&format!("founding: {why:#}"));
        tokio::time::sleep(AGAIN).await;
    }
    for number in 1..MEMBERS {
        groups.borrow_mut().entry(group).and_modify(|group| drop(group.members.insert(number, member(number))));
    }
    meter.is_complete();
}

async fn try_found(group: usize, etcd: &Etcd, name: &MemberName) -> Result<()> {
    let view = etcd.load_view().await?;
    if view.system_id().is_some() {
        return Ok(());
    }
    let lease = view.lease_of(name).context("its worker has no lease yet")?;
    let claim = etcd.claim_initialize(name, lease).await?;
    let making = Making { generation: 1, by: format!("{name} at {claim}"), upgraded: None };
    let first = FirstKeys { config: configuration(), making, sync: None, timeline: None };
    // An earlier try may have come as far as this.
    let leader = match view.leader_if(name) {
        Some(leader) => leader.clone(),
        None => Leader { name: name.clone(), lease, term: etcd.lead_first(name, lease, claim, &first).await? },
    };
    Ok(etcd.found(&leader, claim, &system_id(group)).await?)
}

/// What a cluster is founded with that says nothing of it: every default.
pub fn configuration() -> DynamicConfig {
    DynamicConfig::default()
}

fn begin(group: usize, number: usize, endpoint: &str, wal: Rc<Wal>, meter: Arc<Meter>) -> Running {
    let name = MemberName::new(&format!("node{}", number + 1)).expect("a name");
    let scope = Scope::new(&format!("group{group:04}")).expect("a name");
    let remembered = Arc::new(Remembered::default());
    let etcd = Arc::new(store(&scope, endpoint).remembering(remembered.clone()));
    let instance = Instance::of(&format!("6f2a4c9e-0b1d-4e57-9c33-{group:06}{number:06}"), 0xfe01, 131_075, "data");
    let host = Member::new(group, number, name.clone(), wal, remembered, meter);
    let worker = Rc::new(Worker::new(etcd, host, name, Some(instance)));
    let tasks = [spawn_local(work(worker.clone())), spawn_local(look(Arc::new(store(&scope, endpoint))))];
    Running { worker, tasks }
}

fn store(scope: &Scope, endpoint: &str) -> Etcd {
    let endpoints = vec![endpoint.to_owned()];
    let try_timeout = lease::try_timeout(configuration().timing().ttl, endpoints.len());
    Etcd::new(Keys::new("/service", scope), Settings { endpoints, try_timeout, ..Settings::default() })
}

/// The loops of the lease worker, as the extension runs them.
async fn work(worker: Rc<Worker<Arc<Etcd>, Member>>) {
    tokio::select! {
        never = worker.keep_lease() => match never {},
        never = worker.turns() => match never {},
        never = worker.listen() => match never {},
        () = dcs::watch::keep_watching(worker.store.clone(), worker.host.wake.clone()) => {}
    }
}

/// What the arbiter asks of etcd while its server runs and nothing is to be done: a watch, by a connection of its own, and a view at each
/// change, at least every `loop_wait`.
async fn look(etcd: Arc<Etcd>) {
    let wake = Arc::new(Notify::new());
    let turns = async {
        loop {
            let pause = match etcd.load_view().await {
                Ok(view) => view.config().timing().loop_wait,
                Err(_) => AGAIN,
            };
            let _ = tokio::time::timeout(pause, wake.notified()).await;
        }
    };
    tokio::select! {
        () = turns => {}
        () = dcs::watch::keep_watching(etcd.clone(), wake.clone()) => {}
    }
}

fn drop_leader(group: usize, meter: &Meter, groups: &Shared) {
    let mut groups = groups.borrow_mut();
    let Some(group) = groups.get_mut(&group) else { return };
    let Some(leader) = group.wal.primary().and_then(|primary| group.members.remove(&primary)) else { return };
    let host = &leader.worker.host;
    let lease_ends = host.page().look().deadline;
    group.wal.lose_primary();
    meter.dropped(Dropped { group: host.group, at: boottime(), lease_ends });
    leader.tasks.iter().for_each(JoinHandle::abort);
}
