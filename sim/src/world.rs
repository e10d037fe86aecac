//! The world: nodes with clocks and disks, the network between them and etcd, and what happened lately.

use crate::arbiter::Arbiter;
use crate::invariants::Judge;
use crate::postgres::Server;
use crate::random::Random;
use crate::time::{Changes, Part, Process, Signal, Time};
use crate::wal::Data;
use crate::wishes::Wished;
use cluster::name::{MemberName, Scope, SystemId};
use cluster::time::Moment;
use dcs::Error;
use dcs::key::Keys;
use dcs::memory::{InMemory, Saved};
use dcs::remember::Remembered;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
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

/// etcd's three endpoints: one request goes to one after another.
const ENDPOINTS: usize = 3;

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
    pub arbiter: RefCell<Weak<Arbiter>>,
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

/// A schedule that brings about one kind of event far more often than a mixed one does: for guards whose window is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Focus {
    /// The TTL changes, and etcd's answers are lost while the keys move.
    Moves,
    /// `failsafe_mode`: etcd away or out of reach, nodes and arbiters that come and go.
    Promises,
    /// Quorum mode: voters that come and go.
    Votes,
    /// Synchronous modes, and copies of nodes.
    Copies,
}

impl Focus {
    /// By its name on the command line.
    pub fn of(word: &str) -> Option<Focus> {
        let all = [("moves", Focus::Moves), ("promises", Focus::Promises), ("votes", Focus::Votes), ("copies", Focus::Copies)];
        all.into_iter().find_map(|(name, focus)| (name == word).then_some(focus))
    }

    /// What becomes of a run's setting.
    fn set(self, setting: Setting) -> Setting {
        match self {
            // A standby that stands confirms nothing more: without synchronous standbys only the fence is left.
            Focus::Moves => Setting { sync: false, quorum: false, bad_clocks: false, forgets: false, copies: false, ..setting },
            Focus::Promises => Setting { failsafe: true, forgets: false, copies: false, ..setting },
            Focus::Votes => Setting {
                nodes: setting.nodes.max(3),
                sync: true,
                quorum: true,
                bad_clocks: false,
                forgets: false,
                copies: false,
                ..setting
            },
            Focus::Copies => Setting { sync: true, bad_clocks: false, forgets: false, copies: true, ..setting },
        }
    }

    /// The faults that are drawn, by their numbers in the schedule.
    pub(crate) fn faults(self) -> &'static [usize] {
        match self {
            Focus::Moves => &[22],
            Focus::Promises => &[0, 7, 10, 12, 13, 16, 16, 19, 22, 23],
            Focus::Votes => &[0, 5, 5, 10, 10, 12, 14, 16, 23],
            Focus::Copies => &[0, 5, 10, 10, 12, 13, 23],
        }
    }
}

/// How a run is made up: all of it follows from the seed.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything random comes from it.
    pub seed: u64,
    /// Faults in the schedule.
    pub steps: u64,
    /// Tells each decision and event as it happens.
    pub verbose: bool,
    /// etcd is restored from backups and emptied at times, in four of ten runs.
    pub forgets: bool,
    /// A host with a copy of a node's disk and file is started at times, in four of ten runs.
    pub copies: bool,
    /// `deposition` is on, in seven of ten synchronous runs.
    pub deposes: bool,
    /// What the schedule is about, where it is about one thing.
    pub focus: Option<Focus>,
    /// Operators wish for something at times, in seven of ten runs.
    pub wishes: bool,
    /// No node has data when the run begins, in four of ten runs without the stores and copies above.
    pub founds: bool,
    /// Processes of servers crash at times, and their postmasters live on, in seven of ten runs.
    pub crashes: bool,
}

/// What is chosen for one run.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub nodes: usize,
    pub sync: bool,
    /// Of the synchronous runs: `synchronous_mode: quorum`.
    pub quorum: bool,
    pub ttl: u64,
    pub start_timeout: u64,
    /// etcd lets go at the very moment it may, not at the next half second.
    pub sharp: bool,
    /// Clocks may stand still, beyond what the fence promises to bear.
    pub bad_clocks: bool,
    /// `failsafe_mode`.
    pub failsafe: bool,
    /// etcd is restored from backups and emptied at times.
    pub forgets: bool,
    /// There is one host more than nodes, which gets copies of their disks.
    pub copies: bool,
    /// `deposition`.
    pub deposes: bool,
    /// Faults of these numbers only.
    pub focus: Option<Focus>,
    /// Operators wish for something at times.
    pub wishes: bool,
    /// The cluster is founded in the run.
    pub founds: bool,
    /// Processes of servers crash at times, and their postmasters live on.
    pub crashes: bool,
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
    seen_revision: Cell<i64>,
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

impl World {
    pub fn new(options: &Options) -> Rc<World> {
        let random = Random::new(options.seed);
        let setting = Setting {
            nodes: [3, 3, 3, 3, 2, 4, 5][random.index(7)],
            sync: random.per_mille(550),
            quorum: Random::new(options.seed ^ 0x5155_4f52_554d).per_mille(500),
            ttl: [3, 5, 10, 10, 30][random.index(5)],
            start_timeout: [3, 10, 300][random.index(3)],
            sharp: random.per_mille(400),
            bad_clocks: random.per_mille(300),
            // Drawn apart, so that a seed's other choices stay what they were before there was this one.
            failsafe: Random::new(!options.seed).per_mille(400),
            deposes: options.deposes && Random::new(options.seed ^ 0x4445_504f_5345).per_mille(700),
            wishes: options.wishes && Random::new(options.seed ^ 0x5749_5348).per_mille(700),
            forgets: options.forgets && Random::new(options.seed ^ 0x464f_5247_4554).per_mille(400),
            copies: options.copies && Random::new(options.seed ^ 0x434f_5049_4553).per_mille(400),
            founds: options.founds && Random::new(options.seed ^ 0x464f_554e_4453).per_mille(400),
            crashes: options.crashes && Random::new(options.seed ^ 0x43_5241_5348).per_mille(700),
            focus: options.focus,
        };
        let bad_clocks = setting.bad_clocks && setting.sync;
        // Under a clock that stands still a quorum is not safe: a standby receives again after its word (docs/simulation.md).
        let setting = Setting {
            bad_clocks,
            quorum: setting.quorum && setting.sync && !bad_clocks,
            deposes: setting.deposes && setting.sync,
            // A backup would bring maintenance mode back, and nobody ends that.
            wishes: setting.wishes && !setting.forgets,
            // A store that went back to before the founding, or a copy of nothing, would be a second system.
            founds: setting.founds && !setting.forgets && !setting.copies,
            ..setting
        };
        let setting = options.focus.map_or(setting.clone(), |focus| focus.set(setting));
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
        world.clone().tick();
        world
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

    // ---- etcd ----

    /// etcd's clock goes on, its scans find what has run out.
    fn tick(self: Rc<Self>) {
        let every = if self.setting.sharp { 5 * MS } else { 100 * MS };
        let world = self.clone();
        self.time.at(self.now() + every, move || {
            world.etcd_time();
            world.tick();
        });
    }

    pub fn etcd_clock(&self) -> Duration {
        Clock { rate_ppm: self.etcd_rate_ppm, ..Clock::default() }.read(self.now()).0
    }

    fn etcd_time(self: &Rc<Self>) {
        if self.etcd_down.get() {
            return;
        }
        for lease in self.etcd.set_now(self.etcd_clock()) {
            self.tell("etcd", &format!("lease {lease} has run out"));
            self.fence_shuts_before_etcd_lets_go(lease);
        }
        self.etcd_changed();
    }

    /// A new leader of etcd, or etcd is back.
    pub fn etcd_leader_change(self: &Rc<Self>) {
        self.etcd.change_leader(self.etcd_clock());
    }

    /// Watches fire, invariants on keys are looked at.
    pub fn etcd_changed(self: &Rc<Self>) {
        let revision = self.etcd.revision();
        if self.seen_revision.replace(revision) == revision {
            return;
        }
        self.keys_are_sound();
        for at in 0..self.nodes.len() {
            self.watch_fires(at);
        }
    }

    pub fn watch_fires(self: &Rc<Self>, at: usize) {
        if self.is_cut(self.etcd_place(), at) || self.reach(at) == Some(Reach::Alone) {
            return; // it is opened again when the cut heals, and that wakes
        }
        let world = self.clone();
        self.time.at(self.now() + self.delay(), move || {
            world.nodes[at].wake_worker.notify(&world.time);
            world.nodes[at].wake_arbiter.notify(&world.time);
        });
    }

    /// etcd says that this node leads.
    pub fn holds_the_key(&self, at: usize) -> bool {
        dcs::memory::at_once(dcs::Dcs::load_view(&self.etcd))
            .is_some_and(|view| view.is_ok_and(|view| view.leader_if(&self.nodes[at].name).is_some()))
    }

    /// Sends a request to etcd; it is applied when it arrives, whatever became of the sender.
    pub async fn ask<T: 'static>(
        self: &Rc<Self>,
        process: Process,
        ask: impl Fn(&InMemory) -> dcs::Result<T> + Clone + 'static,
    ) -> dcs::Result<T> {
        let ttl = Duration::from_secs(self.setting.ttl);
        let bound = cluster::lease::try_timeout(ttl, ENDPOINTS);
        let mut answer = Err(Error::Unreachable("no answer".to_owned()));
        for _ in 0..ENDPOINTS {
            let slot = Rc::new((RefCell::new(None), Changes::default()));
            self.send(process.0, ask.clone(), slot.clone());
            let heard = slot.1.wait(&self.time, || slot.0.borrow_mut().take());
            answer = match self.time.timeout(bound, heard).await {
                Some(Err(Error::Unreachable(why))) => Err(Error::Unreachable(why)),
                Some(answer) => return answer,
                None => Err(Error::Unreachable(format!("no answer within {} ms", bound.as_millis()))),
            };
        }
        answer
    }

    fn reach(&self, node: usize) -> Option<Reach> {
        self.with_deposed.borrow().get(&node).copied()
    }

    fn send<T: 'static>(
        self: &Rc<Self>,
        from: usize,
        ask: impl Fn(&InMemory) -> dcs::Result<T> + 'static,
        slot: Rc<(RefCell<Option<dcs::Result<T>>>, Changes)>,
    ) {
        if self.is_cut(from, self.etcd_place()) || self.lost() {
            return;
        }
        let world = self.clone();
        self.time.at(self.now() + self.delay(), move || {
            let reach = world.reach(from);
            let deposed = reach == Some(Reach::Alone) || reach == Some(Reach::Both) && world.random.per_mille(500);
            let answer = if deposed && world.etcd.has_deposed() {
                world.etcd.asked_of_deposed(ask)
            } else if reach == Some(Reach::Alone) || world.etcd_down.get() {
                Err(Error::Unreachable("connection refused".to_owned()))
            } else {
                world.etcd_time();
                let before = world.leader_lease();
                let answer = ask(&world.etcd);
                world.etcd_changed();
                world.move_is_lost(from, before);
                answer
            };
            if world.is_cut(world.etcd_place(), from) || world.lost() {
                return;
            }
            let then = world.clone();
            world.time.at(world.now() + world.delay(), move || {
                *slot.0.borrow_mut() = Some(answer);
                slot.1.tell(&then.time);
            });
        });
    }

    // ---- State for people ----

    pub fn state(&self) -> String {
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
}
