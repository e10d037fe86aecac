//! Seeded simulation of a cluster: the real rules (`cluster`) and the real keys (`dcs::memory`), with
//! processes, clocks, disks and the network in the hand of one seed.
//!
//! The lease worker is the one that ships (`keeper`), in a host of this world. The loop of the arbiter is mirrored here step by step, since
//! the real one is tied to processes and files; every decision is the real rule's. `docs/simulation.md` says
//! what is modelled and what is not.

mod arbiter;
mod depose;
mod etcd;
mod forget;
mod invariants;
mod judge;
mod postgres;
mod random;
mod schedule;
mod server;
mod setting;
mod store;
mod time;
mod wal;
mod wishes;
mod worker;
mod world;

use crate::time::Part;
use crate::wal::{Data, Disk, Wal};
use crate::world::{MS, World, system};
use cluster::local::Ended;
use cluster::quorum::Setting;
pub use setting::{Focus, Options};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::rc::Rc;
use std::time::Duration;

/// A cluster may take this long to be whole after the last fault, beyond its timings: Postgres' own spread
/// checkpoint is what a rewind waits for where the arbiter died before it asked for one.
const PATIENCE: Duration = Duration::from_secs(330);

/// What came of one run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Size and settings in a line.
    pub setting: String,
    /// Polls of processes and messages delivered.
    pub steps: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Commits acknowledged, refused, and answered by a cut connection.
    pub commits: (usize, u64, u64),
    /// Tenures in which a fence was opened.
    pub leaders: u64,
    /// How often a leader went on by promises (`failsafe_mode`).
    pub goes_on_by_promises: u64,
    /// How often a leader was deposed.
    pub deposed: u64,
    /// Standbys that received more after they had said what they have.
    pub confirmed_after_standing: u64,
    /// How long the cluster took to be whole after the last fault.
    pub healed_after: Option<Duration>,
    /// The run ended where the product's documented limit was reached: keys that went back were believed, and nobody had said so.
    pub limit: Option<String>,
    /// The invariant that broke, and how.
    pub violation: Option<(String, String)>,
    /// Every fault with its time; in a verbose run everything else, too.
    pub schedule: Vec<String>,
    /// The last decisions, with their reasons.
    pub log: Vec<String>,
    /// Nodes and keys at the end.
    pub state: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (acknowledged, refused, unknown) = self.commits;
        write!(
            f,
            "seed {}: {}; {} steps, {:.0} s, {} tenures, commits {acknowledged} acknowledged, {refused} refused, {unknown} cut",
            self.seed,
            self.setting,
            self.steps,
            self.simulated.as_secs_f64(),
            self.leaders,
        )?;
        if let Some(limit) = &self.limit {
            write!(f, "; at the limit: {limit}")?;
        }
        let Some((invariant, how)) = &self.violation else { return Ok(()) };
        writeln!(f, "\nseed {} BREAKS {invariant}: {how}\n\nschedule:", self.seed)?;
        self.schedule.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        writeln!(f, "\nthe last decisions:")?;
        self.log.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        write!(f, "\nat the end:\n{}replay: make sim SEED={}", self.state, self.seed)
    }
}

/// Runs one seed to its end.
pub fn run(options: &Options) -> Report {
    let world = World::new(options);
    world.clone().tick();
    found(&world);
    for at in 0..world.nodes.len() {
        world.arbiter_starts(at);
        let clients = world.clone();
        world.time.spawn((at, Part::Outside), async move { write_for_ever(clients, at).await });
    }
    let healed = Rc::new(Cell::new(None));
    world.time.spawn((0, Part::Outside), world.clone().trouble(options.steps, healed.clone()));
    if world.setting.forgets {
        world.time.spawn((0, Part::Outside), world.clone().operate(healed.clone()));
    }
    let broken = || world.judge.borrow().violation.is_some() || world.judge.borrow().limit.is_some();
    while healed.get().is_none() && !broken() {
        world.time.run_until(world.now() + Duration::from_secs(1), broken);
    }
    let mut healed_after = None;
    if let Some(since) = healed.get() {
        let start = Duration::from_secs(world.setting.start_timeout.min(300));
        let limit = since + PATIENCE + Duration::from_secs(world.setting.ttl) * 3 + start;
        while world.now() < limit && !broken() && healed_after.is_none() {
            world.time.run_until(world.now() + 200 * MS, broken);
            let wrote = world.judge.borrow().last_acknowledged.is_some_and(|at| at > since);
            healed_after = (wrote && world.unhealthy().is_none()).then(|| world.now() - since);
        }
        if healed_after.is_none() && !broken() {
            let why = world.unhealthy().unwrap_or("no commit was acknowledged".to_owned());
            world.violated("liveness_once_healed", format!("{:.0} s after the last fault: {why}", (world.now() - since).as_secs_f64()));
        }
    }
    report(&world, options.seed, healed_after)
}

fn report(world: &World, seed: u64, healed_after: Option<Duration>) -> Report {
    let setting = &world.setting;
    let judge = world.judge.borrow();
    let report = Report {
        seed,
        setting: format!(
            "{} nodes, {}, TTL {} s, start timeout {} s{}{}{}{}{}{}{}{}{}",
            setting.nodes,
            match (setting.sync, setting.quorum) {
                (true, true) => "quorum",
                (true, false) => "sync",
                (false, _) => "async",
            },
            setting.ttl,
            setting.start_timeout,
            if setting.sharp { ", sharp etcd" } else { "" },
            if setting.bad_clocks { ", bad clocks" } else { "" },
            if setting.failsafe { ", failsafe_mode" } else { "" },
            if setting.forgets { ", etcd forgets" } else { "" },
            if setting.copies { ", copies" } else { "" },
            if setting.deposes { ", deposition" } else { "" },
            if setting.wishes { ", wishes" } else { "" },
            if setting.founds { ", founded" } else { "" },
            if setting.crashes { ", crashes" } else { "" },
        ),
        steps: world.time.steps.get(),
        simulated: world.now(),
        commits: (judge.acknowledged.len(), judge.refused, judge.unknown),
        leaders: judge.leaders,
        goes_on_by_promises: judge.goes_on_by_promises,
        deposed: judge.deposed,
        confirmed_after_standing: judge.confirmed_after_standing,
        healed_after,
        limit: judge.limit.clone(),
        violation: judge.violation.as_ref().map(|(name, how)| ((*name).to_owned(), how.clone())),
        schedule: world.schedule.borrow().clone(),
        log: world.log.borrow().iter().cloned().collect(),
        state: world.state(),
    };
    drop(judge);
    // Tasks hold the world that holds them.
    for at in 0..world.nodes.len() {
        for part in [Part::Server, Part::Receiver, Part::Worker, Part::Arbiter, Part::Outside] {
            world.time.kill((at, part));
        }
    }
    world.time.forget();
    report
}

/// A cluster that exists: its first node has data, the others are empty. Or there is none yet, and nobody has any.
fn found(world: &World) {
    if world.setting.founds {
        return;
    }
    *world.nodes[0].data.borrow_mut() = Data::Present(world.first_disk());
    let keys = world.etcd.keys();
    world.etcd.put_by_hand(keys.initialize(), system().0.as_bytes());
    world.etcd.put_by_hand(keys.config(), &dcs::codec::to_bytes(&worker::configuration(world).0));
}

impl World {
    /// Nodes and keys, for people.
    fn state(&self) -> String {
        let mut text = String::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let data = match &*node.data.borrow() {
                Data::Empty => "empty".to_owned(),
                Data::Incomplete(what) => format!("incomplete ({what})"),
                Data::Present(disk) => {
                    format!("timeline {} to {:X}, {:?}, forks {:X?}", disk.wal.timeline, disk.wal.end(), disk.ended, disk.wal.lines)
                }
            };
            let server = self.server(at).map_or("no server".to_owned(), |server| server.describe(self));
            let arbiter = if self.time.lives((at, Part::Arbiter)) { "arbiter" } else { "no arbiter" };
            let _ = writeln!(text, "  {}: {data}; {server}; {arbiter}{}", node.name, if node.off.get() { "; off" } else { "" });
        }
        if let Some(Ok(view)) = dcs::memory::at_once(dcs::Dcs::load_view(&self.etcd)) {
            let leader = view.leader.as_ref().map_or("nobody".to_owned(), |leader| format!("{} in term {}", leader.name, leader.term));
            let sync = view.sync.as_ref().map(|sync| (sync.value.leader.clone(), sync.value.sync_standby.clone()));
            let _ = writeln!(
                text,
                "  etcd: leader {leader}, last term {}, sync {sync:?}, history to timeline {}",
                view.last_term(),
                view.history().current()
            );
            for (name, word) in &view.announcements {
                let _ = writeln!(text, "  word of {name}: {:?}", word.value);
            }
        }
        text
    }

    /// As `initdb` leaves it.
    fn first_disk(&self) -> Disk {
        let mut wal = Wal::new();
        if self.setting.founds {
            // Each is another database system.
            self.branches.set(self.branches.get() + 1);
            wal.branch = self.branches.get();
        }
        let checkpoint = (wal.end(), 1);
        wal.write(114, 0);
        let (known, standby_names) = (BTreeSet::from([1]), Setting::nobody());
        Disk { wal, ended: Ended::CleanPrimary, checkpoint, known, standby_names, bond: None, spoken: None, founding: false }
    }
}

/// Clients of one node: each transaction writes an id that nobody else uses.
async fn write_for_ever(world: Rc<World>, at: usize) {
    loop {
        world.time.sleep(world.random.between(5 * MS, 90 * MS)).await;
        let Some(server) = world.serving(at).filter(|server| !server.in_recovery.get() && server.under_way.get() < 6) else { continue };
        // Nobody has a role in a database of a cluster that does not exist yet.
        if world.nodes[at].data.borrow().disk().is_some_and(|disk| disk.founding) {
            continue;
        }
        world.commits.set(world.commits.get() + 1);
        let (id, cancels) = (world.commits.get(), world.random.per_mille(30));
        server.under_way.set(server.under_way.get() + 1);
        let backend = world.clone();
        world.time.spawn((at, Part::Server), async move {
            backend.commit(&server, id, cancels).await;
            server.under_way.set(server.under_way.get() - 1);
        });
    }
}
