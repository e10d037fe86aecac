//! What may befall a cluster in a storm: drawn from the seed, struck, and undone.

use crate::cluster::Cluster;
use crate::node::Node;
use crate::process;
use crate::storm::clock::Clock;
use crate::storm::disk::Disk;
use crate::storm::mode::{Mode, Modes};
use crate::storm::network::Network;
use crate::storm::random::Random;
use crate::view::View;
use rustix::process::{Pid, Signal};
use serde_json::json;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long systemd waits between SIGTERM and SIGKILL.
const STOP_BOUND: Duration = Duration::from_secs(90);
/// The members of etcd, by their names in the network.
pub const ETCDS: [&str; 3] = ["e1", "e2", "e3"];

/// Whom it strikes, looked up when it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The leader.
    Leader,
    /// The synchronous standby, or any standby where none is named.
    Synchronous,
    /// A standby that is not synchronous, or any.
    Standby,
}

/// A process of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Of Postgres.
    Postmaster,
    /// Ours.
    Arbiter,
    /// Sends WAL to a standby.
    Walsender,
    /// Receives WAL.
    Walreceiver,
    /// Writes checkpoints.
    Checkpointer,
    /// Serves a client.
    Backend,
    /// Of the extension.
    LeaseWorker,
}

/// The ways to cut a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The cable is pulled.
    All,
    /// From the other nodes and etcd; clients still reach it.
    Cluster,
    /// From etcd alone.
    Etcd,
    /// From the other nodes alone.
    Nodes,
    /// What it sends to the cluster is lost, what is sent to it arrives.
    Outgoing,
    /// What the cluster sends to it is lost, what it sends arrives.
    Incoming,
    /// With one etcd member on its side, the rest on the other; clients reach both.
    Minority,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// SIGKILL to one process.
    Kill(Part),
    /// SIGSTOP to one process.
    Freeze(Part),
    /// SIGKILL to all of a node; started again.
    KillNode,
    /// SIGSTOP to all of a node.
    FreezeNode,
    /// SIGTERM to the arbiter; started again.
    Stop,
    /// SIGKILL to etcd's leader; started again.
    KillEtcdLeader,
    /// SIGKILL to one member; started again.
    KillEtcd,
    /// SIGSTOP to one member.
    FreezeEtcd,
    /// SIGSTOP to two of three.
    FreezeMajority,
    /// etcd's leader and a node hang together and come back where they reach each other alone: a leader of etcd that does
    /// not know that it was deposed.
    HangWithEtcdsLeader,
    /// Put back to a backup made when the fault began; in half of the cases another leads since.
    RestoreEtcd,
    /// Everything in it is gone.
    EmptyEtcd,
    /// Asked by REST.
    Switchover,
    /// Asked by REST.
    Restart,
    /// The network.
    Cut(Cut),
    /// What it sends is slow and lossy.
    Slow,
    /// Packets from and to it are lost at random.
    Lose,
    /// The disk with its data is full; freed in the end.
    FillDisk,
    /// Its wall clock steps ahead; set right in the end.
    ClockAhead,
    /// Its wall clock steps back; set right in the end.
    ClockBack,
    /// The synchronous mode is another by REST; set right in the end.
    Mode(Mode),
}

/// What can be done here: the rest is left out of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// Cuts, and what is slow.
    pub network: bool,
    /// Random loss.
    pub loss: bool,
    /// Disks of their own.
    pub disk: bool,
    /// Clocks of their own.
    pub clock: bool,
    /// Backups of etcd.
    pub backup: bool,
    /// Changes of the synchronous mode are wanted.
    pub modes: bool,
}

impl Means {
    /// By the user and the programs at hand.
    pub fn here(networked: bool, modes: bool) -> Means {
        let root = rustix::process::geteuid().is_root();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let has = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
        let (disk, clock, backup) = (root && has("mkfs.ext4"), has("cc"), has("etcdctl"));
        Means { network: networked, loss: networked && has("nft"), disk, clock, backup, modes }
    }
}

/// One fault of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub word: Word,
    /// To whom.
    pub role: Role,
    /// How long.
    pub lasts: Duration,
    /// Chooses among several.
    pub choice: usize,
    /// After the first fault of the round.
    pub after: Duration,
}

/// One fault or two at a time.
pub fn round(random: &mut Random, means: Means) -> Vec<Fault> {
    let first = Fault { after: Duration::ZERO, ..draw(random, means) };
    let mut faults = vec![first];
    if random.percent(40) {
        let mut second = draw(random, means);
        if random.percent(30) {
            second.word = Word::Switchover;
        }
        second.after = random.lasting(Duration::from_millis(10), first.lasts.max(Duration::from_secs(2)));
        faults.push(second);
    }
    faults
}

fn draw(random: &mut Random, means: Means) -> Fault {
    use Part::{Arbiter, Backend, Checkpointer, LeaseWorker, Postmaster, Walreceiver, Walsender};
    use Word::{Freeze, Kill};
    const KILLS: [Word; 6] = [Kill(Postmaster), Kill(Arbiter), Kill(Walsender), Kill(Checkpointer), Kill(Backend), Kill(LeaseWorker)];
    const FREEZES: [Word; 7] = [
        Freeze(Postmaster),
        Freeze(Arbiter),
        Freeze(Walsender),
        Freeze(Walreceiver),
        Freeze(Checkpointer),
        Freeze(Backend),
        Freeze(LeaseWorker),
    ];
    const NODES: [Word; 5] = [Word::KillNode, Word::FreezeNode, Word::Stop, Word::Switchover, Word::Restart];
    const ETCD: [Word; 4] = [Word::KillEtcdLeader, Word::KillEtcd, Word::FreezeEtcd, Word::FreezeMajority];
    const CUTS: [Cut; 7] = [Cut::All, Cut::Cluster, Cut::Etcd, Cut::Nodes, Cut::Outgoing, Cut::Incoming, Cut::Minority];
    // Every draw is made, also those that are not used: a plan without a network keeps its other faults.
    let cut = random.one(&CUTS);
    let (slow, clock) = (random.one(&[Word::Slow, Word::Lose]), random.one(&[Word::ClockAhead, Word::ClockBack]));
    let (kill, freeze, node, etcd) = (random.one(&KILLS), random.one(&FREEZES), random.one(&NODES), random.one(&ETCD));
    let forgets = random.one(&[Word::RestoreEtcd, Word::EmptyEtcd]);
    let (mode, is_mode) = (Word::Mode(random.one(&Mode::ALL)), random.percent(15));
    let word = match random.below(100) {
        _ if is_mode && means.modes => mode,
        0..16 => kill,
        16..33 => freeze,
        33..52 => node,
        52..62 => etcd,
        62..70 if means.disk => Word::FillDisk,
        70..76 if means.clock => clock,
        76..82 if means.network && (slow == Word::Slow || means.loss) => slow,
        82..84 if means.network => Word::HangWithEtcdsLeader,
        84..86 if means.backup => forgets,
        86..100 if means.network => Word::Cut(cut),
        _ => kill,
    };
    let role = match random.below(100) {
        0..55 => Role::Leader,
        55..80 => Role::Synchronous,
        _ => Role::Standby,
    };
    let lasts = random.lasting(Duration::from_millis(100), Duration::from_secs(30));
    let choice = random.below(1000) as usize;
    Fault { word, role, lasts, choice, after: Duration::ZERO }
}

/// The cluster a storm passes over.
pub struct Ground {
    /// Nodes and etcd.
    pub cluster: Cluster,
    /// Where there is one.
    pub network: Option<Network>,
    /// Of each node, in their order; none where there can't be any.
    pub disks: Vec<Disk>,
    /// Of each node, in their order; none where there can't be any.
    pub clocks: Vec<Clock>,
    /// The synchronous mode, and when it was none.
    pub modes: Modes,
    /// etcd was restored or emptied since the cluster was whole: an operator may have to make the keys again.
    pub forgot: AtomicBool,
}

impl Ground {
    /// Strikes, lasts, undoes; says whom it struck.
    pub async fn strike(&self, fault: &Fault, view: &View, began: Instant) -> String {
        tokio::time::sleep(fault.after).await;
        let node = self.target(fault, view);
        let whom = format!("{} ({})", node.name(), self.role_of(node, view));
        let at = began.elapsed().as_millis();
        let outcome = self.act(fault, node).await;
        format!("{} of {whom} for {:.1} s, {at} ms in{outcome}", fault.word, fault.lasts.as_secs_f64())
    }

    async fn act(&self, fault: &Fault, node: &Node) -> String {
        let room = &self.cluster.room;
        let etcd = &self.cluster.etcd;
        match fault.word {
            Word::Kill(Part::Arbiter) => {
                node.kill_arbiter();
                tokio::time::sleep(fault.lasts).await;
                self.start(node);
            }
            Word::Kill(part) => {
                let Some(pid) = find(node, part, fault.choice) else {
                    return ": there is none".to_owned();
                };
                process::signal(pid, Signal::KILL);
            }
            Word::Freeze(part) => {
                let Some(pid) = find(node, part, fault.choice) else {
                    return ": there is none".to_owned();
                };
                process::signal(pid, Signal::STOP);
                tokio::time::sleep(fault.lasts).await;
                process::signal(pid, Signal::CONT);
            }
            Word::KillNode => {
                node.kill();
                tokio::time::sleep(fault.lasts).await;
                self.start(node);
            }
            Word::FreezeNode => {
                node.freeze();
                tokio::time::sleep(fault.lasts).await;
                node.thaw();
            }
            Word::Stop => return self.stop(fault, node).await,
            Word::KillEtcdLeader | Word::KillEtcd => {
                let chosen = &etcd.members()[fault.choice % etcd.members().len()];
                let leader = if fault.word == Word::KillEtcdLeader { etcd.leader().await } else { None };
                let member = leader.unwrap_or(chosen);
                member.kill();
                tokio::time::sleep(fault.lasts).await;
                etcd.spawn(room);
                return format!(" [{}]", member.name());
            }
            Word::FreezeEtcd => {
                let member = &etcd.members()[fault.choice % etcd.members().len()];
                member.freeze();
                tokio::time::sleep(fault.lasts).await;
                member.thaw();
                return format!(" [{}]", member.name());
            }
            Word::FreezeMajority => {
                let spared = fault.choice % etcd.members().len();
                let others = || etcd.members().iter().enumerate().filter(|(number, _)| *number != spared).map(|(_, member)| member);
                others().for_each(crate::etcd::Member::freeze);
                tokio::time::sleep(fault.lasts).await;
                others().for_each(crate::etcd::Member::thaw);
            }
            Word::HangWithEtcdsLeader => return self.hang_with_etcds_leader(fault, node).await,
            Word::RestoreEtcd => return self.restore_etcd(fault).await,
            Word::EmptyEtcd => return self.empty_etcd(fault).await,
            Word::Switchover => {
                // To anybody who may, asked of any node: the words are Patroni's.
                let asked = &self.cluster.nodes[fault.choice % self.cluster.nodes.len()];
                return answered(asked.post("/switchover", &json!({"leader": self.leader_now().await})).await);
            }
            Word::Restart => return answered(node.post("/restart", &json!({})).await),
            Word::Cut(cut) => {
                let Some(network) = &self.network else {
                    return ": no network".to_owned();
                };
                let pairs = self.pairs(cut, node.name(), fault.choice);
                if cut == Cut::All {
                    network.unplug(node.name());
                }
                pairs.iter().for_each(|(one, other)| network.cut(one, other));
                tokio::time::sleep(fault.lasts).await;
                pairs.iter().for_each(|(one, other)| network.heal(one, other));
                if cut == Cut::All {
                    network.plug(node.name());
                }
            }
            Word::Slow => {
                let Some(network) = &self.network else {
                    return ": no network".to_owned();
                };
                network.slow(node.name());
                tokio::time::sleep(fault.lasts).await;
                network.hasten(node.name());
            }
            Word::Lose => {
                let Some(network) = &self.network else {
                    return ": no network".to_owned();
                };
                let percent = 2 + fault.choice as u64 % 29;
                network.lose(node.name(), percent);
                tokio::time::sleep(fault.lasts).await;
                network.keep(node.name());
                return format!(", {percent} % of the packets");
            }
            Word::FillDisk => return self.fill_disk(fault, node).await,
            Word::ClockAhead => return self.step_clock(fault, node, 1).await,
            Word::ClockBack => return self.step_clock(fault, node, -1).await,
            Word::Mode(mode) => return self.modes.change(&self.cluster, mode, fault.lasts).await,
        }
        String::new()
    }

    /// Full, with WAL on its way, until it is freed; says what the server could not write.
    async fn fill_disk(&self, fault: &Fault, node: &Node) -> String {
        let Some(disk) = self.disk_of(node) else {
            return ": no disk".to_owned();
        };
        let log = server_log(node);
        let before = std::fs::read_to_string(&log).unwrap_or_default().len();
        // Sometimes there is a little left: for a row or a file of settings, not for a segment of WAL.
        let spare = [0, 64 << 10, 4 << 20][fault.choice % 3];
        if let Err(error) = disk.fill(spare) {
            return format!(": {error:#}");
        }
        let began = Instant::now();
        // Else tables are the first that want space.
        if !fault.choice.is_multiple_of(2) {
            self.switch_wal(fault.lasts).await;
        }
        tokio::time::sleep(fault.lasts.saturating_sub(began.elapsed())).await;
        disk.free();
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let full: Vec<&str> = said.get(before..).unwrap_or_default().lines().filter(|line| line.contains("No space left")).collect();
        let of_wal = full.iter().filter(|line| line.contains("pg_wal/")).count();
        format!(", {} KiB left, {of_wal} times no space for WAL, {} times for other files", spare >> 10, full.len() - of_wal)
    }

    /// Begins new segments of WAL at the leader until they can't all be recycled ones.
    async fn switch_wal(&self, lasts: Duration) {
        for _ in 0..12 {
            let leader = self.cluster.node(&self.leader_now().await);
            let sql = "SELECT pg_logical_emit_message(false, 'storm', 'more'), pg_switch_wal()";
            let _ = tokio::time::timeout(Duration::from_secs(1), leader.query(sql)).await;
            tokio::time::sleep(lasts / 40).await;
        }
    }

    /// From a second to four hours, each factor of ten alike.
    async fn step_clock(&self, fault: &Fault, node: &Node, sign: i64) -> String {
        let Some(clock) = self.cluster.nodes.iter().position(|one| one.name() == node.name()).and_then(|at| self.clocks.get(at)) else {
            return ": no clock".to_owned();
        };
        let seconds = sign * 14_400_f64.powf(fault.choice as f64 / 999.0).round() as i64;
        if let Err(error) = clock.set(seconds) {
            return format!(": {error:#}");
        }
        let machine = "SELECT extract(epoch FROM clock_timestamp())::bigint - ";
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let seen = tokio::time::timeout(Duration::from_secs(1), node.one(&format!("{machine}{}", now()))).await;
        tokio::time::sleep(fault.lasts).await;
        let _ = clock.set(0);
        let seen = seen.ok().and_then(Result::ok).unwrap_or_else(|| "nothing".to_owned());
        format!(", by {seconds} s; Postgres says {seen}")
    }

    fn disk_of(&self, node: &Node) -> Option<&Disk> {
        self.disks.get(self.cluster.nodes.iter().position(|one| one.name() == node.name())?)
    }

    /// As systemd stops a unit: SIGTERM, a minute and a half, SIGKILL to all of it.
    async fn stop(&self, fault: &Fault, node: &Node) -> String {
        let began = Instant::now();
        node.stop();
        while node.arbiter_runs() && began.elapsed() < STOP_BOUND {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut said = format!(", ended after {} ms", began.elapsed().as_millis());
        if node.arbiter_runs() {
            said = format!(", DID NOT END within {STOP_BOUND:?} and was killed");
            node.kill();
        }
        tokio::time::sleep(fault.lasts.saturating_sub(began.elapsed())).await;
        self.start(node);
        said
    }

    /// Starts a node's arbiter, unless another fault has done so already.
    pub fn start(&self, node: &Node) {
        if !node.arbiter_runs() {
            node.start(&self.cluster.room);
        }
    }

    /// Undoes whatever may be left.
    pub fn calm(&self) {
        self.cluster.etcd.thaw();
        self.cluster.etcd.spawn(&self.cluster.room);
        for node in &self.cluster.nodes {
            node.thaw();
        }
        self.disks.iter().for_each(Disk::free);
    }

    pub(super) async fn leader_now(&self) -> String {
        let view = self.cluster.view().await.unwrap_or_default();
        view.leader().unwrap_or("n1").to_owned()
    }

    fn target(&self, fault: &Fault, view: &View) -> &Node {
        let nodes = &self.cluster.nodes;
        let leader = view.leader().unwrap_or("n1");
        let synchronous = view.synchronous().map_or_else(Vec::new, |(_, standbys)| standbys);
        let fits = |node: &&Node| {
            let is_synchronous = synchronous.iter().any(|name| name == node.name());
            match fault.role {
                Role::Leader => node.name() == leader,
                Role::Synchronous => node.name() != leader && (is_synchronous || synchronous.is_empty()),
                Role::Standby => node.name() != leader && !is_synchronous,
            }
        };
        let fitting: Vec<&Node> = nodes.iter().filter(fits).collect();
        if fitting.is_empty() { &nodes[fault.choice % nodes.len()] } else { fitting[fault.choice % fitting.len()] }
    }

    fn role_of(&self, node: &Node, view: &View) -> &'static str {
        if view.leader() == Some(node.name()) {
            return "leader";
        }
        let synchronous = view.synchronous().is_some_and(|(_, standbys)| standbys.iter().any(|name| name == node.name()));
        if synchronous { "sync standby" } else { "standby" }
    }
}

pub(super) fn answered(answer: anyhow::Result<crate::http::Answer>) -> String {
    match answer {
        Ok(answer) => format!(": {} {}", answer.status, answer.body.trim().chars().take(140).collect::<String>()),
        Err(error) => format!(": {}", format!("{error:#}").chars().take(140).collect::<String>()),
    }
}

/// Of Postgres, on a disk that is never full.
pub fn server_log(node: &Node) -> PathBuf {
    node.dir().join("log/postgresql.log")
}

fn find(node: &Node, part: Part, choice: usize) -> Option<Pid> {
    let by_title = |wanted: &dyn Fn(&str) -> bool| {
        let mut found: Vec<Pid> = process::below(&node.data_dir())
            .into_iter()
            .filter(|pid| {
                let title = process::title(*pid);
                title.starts_with("postgres:") && wanted(&title)
            })
            .collect();
        found.sort_by_key(|pid| pid.as_raw_nonzero());
        (!found.is_empty()).then(|| found[choice % found.len()])
    };
    match part {
        Part::Postmaster => node.postmaster(),
        Part::Arbiter => node.arbiter_pid(),
        Part::LeaseWorker => node.lease_worker(),
        Part::Walsender => by_title(&|title| title.contains("walsender")),
        Part::Walreceiver => by_title(&|title| title.contains("walreceiver")),
        Part::Checkpointer => by_title(&|title| title.contains("checkpointer")),
        Part::Backend => by_title(&|title| title.contains(" postgres postgres ") && !title.contains("[local]")),
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = format!("{self:?}").replace(['(', ')'], " ");
        f.write_str(words.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Means = Means { network: true, loss: true, disk: true, clock: true, backup: true, modes: true };

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        let plan = |seed| {
            let mut random = Random::new(seed);
            (0..50).map(|_| round(&mut random, ALL)).collect::<Vec<_>>()
        };
        assert_eq!(plan(3), plan(3));
        assert_ne!(plan(3), plan(4));
    }

    #[test]
    fn what_cannot_be_done_is_left_out_and_the_rest_stays() {
        let plan = |means| {
            let mut random = Random::new(5);
            (0..500).flat_map(|_| round(&mut random, means)).collect::<Vec<_>>()
        };
        let (all, none) = (plan(ALL), plan(Means { network: false, loss: false, disk: false, clock: false, backup: false, modes: false }));
        assert_eq!(all.len(), none.len());
        let is_special = |word| {
            matches!(
                word,
                Word::Cut(_)
                    | Word::HangWithEtcdsLeader
                    | Word::RestoreEtcd
                    | Word::EmptyEtcd
                    | Word::Slow
                    | Word::Lose
                    | Word::FillDisk
                    | Word::ClockAhead
                    | Word::ClockBack
                    | Word::Mode(_)
            )
        };
        for (one, other) in all.iter().zip(&none) {
            assert!(!is_special(other.word));
            assert!(is_special(one.word) || one == other, "{one:?} became {other:?}");
        }
        for word in [
            Word::HangWithEtcdsLeader,
            Word::RestoreEtcd,
            Word::EmptyEtcd,
            Word::Lose,
            Word::FillDisk,
            Word::ClockAhead,
            Word::ClockBack,
            Word::Mode(Mode::Off),
        ] {
            assert!(all.iter().any(|fault| fault.word == word), "{word} is never drawn");
        }
    }
}
