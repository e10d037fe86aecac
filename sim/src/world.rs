//! The world: nodes with clocks and disks, the network between them and etcd, and what happened lately.

use crate::judge::Judge;
use crate::random::Random;
use crate::server::Server;
use crate::setting::{Options, Setting};
use crate::time::{Changes, Signal, Time};
use crate::wal::Data;
use cluster::member::Tags;
use cluster::name::{MemberName, Scope, SystemId};
use cluster::time::Moment;
use dcs::Error;
use dcs::key::Keys;
use dcs::memory::{InMemory, Saved, at_once};
use dcs::remember::Remembered;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

pub(crate) const MS: Duration = Duration::from_millis(1);

/// What can't hold once two disks went by one name.
const OF_DATA: [&str; 4] = [
    "no_acknowledged_commit_lost_in_sync_mode",
    "sync_key_never_trusts_more_than_setting",
    "never_delete_the_only_best_copy",
    // It led, and was taken away with the only data of its timeline.
    "liveness_once_healed",
];

/// A host's CLOCK_BOOTTIME.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    pub offset: Duration,
    pub rate_ppm: i64,
    /// Time for which it stood still, and since when it does: a host whose clock can't be trusted.
    pub stood: Duration,
    pub stands_since: Option<Duration>,
}

impl Clock {
    pub fn read(&self, now: Duration) -> Moment {
        let run = self.stands_since.map_or(now, |since| now.min(since)) - self.stood;
        let drift = i128::try_from(run.as_nanos()).unwrap_or(0) * i128::from(self.rate_ppm) / 1_000_000;
        let nanos = i128::try_from((run + self.offset).as_nanos()).unwrap_or(0) + drift;
        Moment(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
    }
}

/// What members ask of each other's arbiters, by REST.
pub(crate) trait Asked {
    /// It has seen etcd, and answers.
    fn serves(&self) -> bool;

    /// For how long this node promises that leader not to take its key, if it does (`failsafe_mode`).
    fn promise<'a>(&'a self, leader: &'a MemberName, ttl: Duration) -> Pin<Box<dyn Future<Output = Option<Duration>> + 'a>>;

    /// For how long what it has promised binds it yet.
    fn is_bound_for(&self) -> Duration;
}

/// What is wished of one node.
#[derive(Default)]
pub(crate) struct Wished {
    /// The tags in its file.
    pub tags: RefCell<Tags>,
    /// Its arbiter is to stop the server and end.
    pub stop: Cell<bool>,
    /// Its data is to be made again.
    pub reinit: Cell<bool>,
}

/// A host with its disk, and what runs there.
pub(crate) struct Node {
    pub name: MemberName,
    /// Whose disk and file it has: itself, but for a copy.
    pub original: usize,
    /// How often its host was started.
    pub boots: Cell<u64>,
    pub clock: RefCell<Clock>,
    pub data: RefCell<Data>,
    pub server: RefCell<Option<Rc<Server>>>,
    /// For how long the last promises bind, as its arbiter wrote it down.
    pub promised_for: Cell<Duration>,
    /// What is remembered of etcd's keys, as its arbiter wrote it down beside the data.
    pub kept: RefCell<Option<String>>,
    /// The host is off.
    pub off: Cell<bool>,
    pub wake_worker: Signal,
    pub wake_arbiter: Signal,
    pub wake_listener: Signal,
    /// The arbiter that is (or was last) there, for those that send it requests.
    pub arbiter: RefCell<Option<Weak<dyn Asked>>>,
    /// What operators wish of it.
    pub wished: Wished,
    /// The postmaster ended; the arbiter has not looked yet.
    pub postmaster_gone: Cell<bool>,
    /// Something on this node changed: a server ready, ended, promoted.
    pub changed: Changes,
}

impl Node {
    /// A process of this node begins with what lies beside the data.
    pub fn recall(&self, world: &World) -> Rc<Remembered> {
        let remembered = Remembered::default();
        if let Some(text) = &*self.kept.borrow() {
            remembered.recall(world.etcd.keys().prefix(), text).unwrap_or_else(|why| unreachable!("it was written by us: {why}"));
        }
        Rc::new(remembered)
    }
}

/// What of etcd a node reaches while a leader of before is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// That one alone; nobody, once it knows that it was deposed.
    Alone,
    /// That one at every other request.
    Both,
}

/// What of the network does not work. A place is a node's number; etcd is the one after the last.
#[derive(Default)]
pub(crate) struct Network {
    pub cut: BTreeMap<(usize, usize), u32>,
    pub loss_per_mille: u64,
    pub slow: Duration,
}

pub(crate) struct World {
    pub time: Rc<Time>,
    pub random: Random,
    pub setting: Setting,
    pub etcd: InMemory,
    pub etcd_rate_ppm: i64,
    pub etcd_down: Cell<bool>,
    /// Nodes that reach a leader of etcd of before, which does not know yet: no other member, or that one every other time.
    pub with_deposed: RefCell<BTreeMap<usize, Reach>>,
    pub network: RefCell<Network>,
    pub nodes: Vec<Node>,
    pub judge: RefCell<Judge>,
    pub log: RefCell<VecDeque<String>>,
    pub schedule: RefCell<Vec<String>>,
    pub verbose: bool,
    pub branches: Cell<u64>,
    pub commits: Cell<u64>,
    pub seen_revision: Cell<i64>,
    /// Of the faults that were added later: a seed's other choices stay what they were.
    pub apart: Random,
    /// Backups of etcd.
    pub backups: RefCell<Vec<Saved>>,
    /// etcd's answers to this leader are lost for so long from the moment on at which it moves its key to another lease.
    pub loses_move: Cell<Option<(usize, Duration)>>,
}

pub(crate) fn system() -> SystemId {
    SystemId("7000000000000000001".to_owned())
}

/// A call of the memory that is never pending.
pub(crate) fn now<T>(call: impl Future<Output = dcs::Result<T>>) -> dcs::Result<T> {
    at_once(call).unwrap_or_else(|| Err(Error::Unreachable("the memory never waits".to_owned())))
}

impl World {
    pub fn new(options: &Options) -> Rc<World> {
        let random = Random::new(options.seed);
        let setting = Setting::drawn(options, &random);
        let scope = Scope::new("sim").unwrap_or_else(|why| unreachable!("a constant: {why}"));
        let apart = Random::new(options.seed ^ 0x41_5041_5254);
        let copied = if setting.copies { apart.index(setting.nodes) } else { 0 };
        let node = |at: usize| Node {
            name: MemberName::new(&format!("n{}", if at < setting.nodes { at } else { copied } + 1))
                .unwrap_or_else(|why| unreachable!("a constant: {why}")),
            original: if at < setting.nodes { at } else { copied },
            boots: Cell::new(0),
            clock: RefCell::new(Clock {
                offset: random.between(Duration::from_secs(10), Duration::from_secs(1_000_000)),
                rate_ppm: if setting.sharp { [-500, 500][random.index(2)] } else { i64::try_from(random.below(1001)).unwrap_or(0) - 500 },
                ..Clock::default()
            }),
            data: RefCell::new(Data::Empty),
            server: RefCell::new(None),
            promised_for: Cell::default(),
            kept: RefCell::default(),
            off: Cell::new(at >= setting.nodes),
            wake_worker: Signal::default(),
            wake_arbiter: Signal::default(),
            wake_listener: Signal::default(),
            arbiter: RefCell::default(),
            wished: Wished::default(),
            postmaster_gone: Cell::new(false),
            changed: Changes::default(),
        };
        let nodes = (0..setting.nodes + usize::from(setting.copies)).map(node).collect();
        let etcd_rate_ppm = if setting.sharp { 500 } else { i64::try_from(random.below(1001)).unwrap_or(0) - 500 };
        let world = World {
            time: Rc::default(),
            etcd: InMemory::new(Keys::new("service", &scope)),
            etcd_rate_ppm,
            etcd_down: Cell::new(false),
            with_deposed: RefCell::default(),
            network: RefCell::default(),
            nodes,
            judge: RefCell::default(),
            log: RefCell::default(),
            schedule: RefCell::default(),
            verbose: options.verbose,
            branches: Cell::new(0),
            commits: Cell::new(0),
            seen_revision: Cell::new(0),
            apart,
            backups: RefCell::default(),
            loses_move: Cell::default(),
            random,
            setting,
        };
        let world = Rc::new(world);
        if world.setting.sharp {
            world.etcd.scan_every(5 * MS);
        }
        world
    }

    /// The arbiter of a node, for who asks it.
    pub fn asked(&self, at: usize) -> Option<Rc<dyn Asked>> {
        self.nodes[at].arbiter.borrow().as_ref()?.upgrade()
    }

    pub fn now(&self) -> Duration {
        self.time.now()
    }

    pub fn clock(&self, node: usize) -> Moment {
        self.nodes[node].clock.borrow().read(self.now())
    }

    /// The node without a copy of it.
    pub fn number_of(&self, name: &MemberName) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == *name)
    }

    pub fn server(&self, node: usize) -> Option<Rc<Server>> {
        self.nodes[node].server.borrow().clone()
    }

    /// The server, if it takes connections.
    pub fn serving(&self, node: usize) -> Option<Rc<Server>> {
        self.server(node).filter(|server| server.ready.get())
    }

    pub fn tell(&self, who: &str, text: &str) {
        let line = format!("{:>10.4} {who:<10} {text}", self.now().as_secs_f64());
        if self.verbose {
            self.schedule.borrow_mut().push(line.clone());
        }
        let mut log = self.log.borrow_mut();
        log.push_back(line);
        if log.len() > 150 {
            log.pop_front();
        }
    }

    pub fn violated(&self, invariant: &'static str, how: String) {
        let mut judge = self.judge.borrow_mut();
        if let Some((since, believer)) = judge.unwarned.filter(|_| !matches!(invariant, "liveness_once_healed" | "a_word_is_heeded")) {
            let name = &self.nodes[believer].name;
            let limit = format!("{name} believed keys that went back at {:.4} s, unwarned; {invariant}: {how}", since.as_secs_f64());
            judge.limit.get_or_insert(limit);
        } else if let Some(since) = judge.replaced.filter(|_| OF_DATA.contains(&invariant)) {
            let limit = format!("a copy is not told from its original since {:.4} s; {invariant}: {how}", since.as_secs_f64());
            judge.limit.get_or_insert(limit);
        } else if judge.violation.is_none() {
            judge.violation = Some((invariant, format!("at {:.4} s: {how}", self.now().as_secs_f64())));
        }
    }

    /// All nodes but the copy.
    pub fn originals(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().take(self.setting.nodes)
    }

    // ---- Network ----

    pub fn etcd_place(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.network.borrow().cut.get(&(from, to)).is_some_and(|count| *count > 0)
    }

    pub fn delay(&self) -> Duration {
        let slow = self.network.borrow().slow;
        self.random.mostly(MS / 2, 5 * MS) + MS / 20 + if slow.is_zero() { slow } else { self.random.between(Duration::ZERO, slow) }
    }

    pub fn lost(&self) -> bool {
        let per_mille = self.network.borrow().loss_per_mille;
        self.random.per_mille(per_mille)
    }
}
