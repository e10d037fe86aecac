//! What may befall a cluster in a storm: drawn from the seed, struck, and undone.

use crate::cluster::Cluster;
use crate::node::Node;
use crate::process;
use crate::storm::network::Network;
use crate::storm::random::Random;
use crate::view::View;
use rustix::process::{Pid, Signal};
use serde_json::json;
use std::fmt;
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
    /// Asked by REST.
    Switchover,
    /// Asked by REST.
    Restart,
    /// The network.
    Cut(Cut),
    /// What it sends is slow and lossy.
    Slow,
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
pub fn round(random: &mut Random, networked: bool) -> Vec<Fault> {
    let first = Fault { after: Duration::ZERO, ..draw(random, networked) };
    let mut faults = vec![first];
    if random.percent(40) {
        let mut second = draw(random, networked);
        if random.percent(30) {
            second.word = Word::Switchover;
        }
        second.after = random.lasting(Duration::from_millis(10), first.lasts.max(Duration::from_secs(2)));
        faults.push(second);
    }
    faults
}

fn draw(random: &mut Random, networked: bool) -> Fault {
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
    let slow = random.percent(15);
    let (kill, freeze, node, etcd) = (random.one(&KILLS), random.one(&FREEZES), random.one(&NODES), random.one(&ETCD));
    let word = match random.below(100) {
        0..20 => kill,
        20..42 => freeze,
        42..65 => node,
        65..78 => etcd,
        _ if !networked => kill,
        _ if slow => Word::Slow,
        _ => Word::Cut(cut),
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
        }
        String::new()
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
    }

    async fn leader_now(&self) -> String {
        let view = self.cluster.view().await.unwrap_or_default();
        view.leader().unwrap_or("n1").to_owned()
    }

    /// Who no longer hears whom.
    fn pairs(&self, cut: Cut, name: &str, choice: usize) -> Vec<(String, String)> {
        let nodes: Vec<&str> = self.cluster.nodes.iter().map(Node::name).filter(|other| *other != name).collect();
        let (mut outgoing, mut incoming) = (true, true);
        let (one_side, other_side): (Vec<&str>, Vec<&str>) = match cut {
            Cut::All => return Vec::new(),
            Cut::Cluster => (vec![name], [nodes, ETCDS.to_vec()].concat()),
            Cut::Etcd => (vec![name], ETCDS.to_vec()),
            Cut::Nodes => (vec![name], nodes),
            Cut::Outgoing => {
                incoming = false;
                (vec![name], [nodes, ETCDS.to_vec()].concat())
            }
            Cut::Incoming => {
                outgoing = false;
                (vec![name], [nodes, ETCDS.to_vec()].concat())
            }
            Cut::Minority => {
                let alone = ETCDS[choice % ETCDS.len()];
                let rest = ETCDS.iter().copied().filter(|member| *member != alone).collect();
                (vec![name, alone], [nodes, rest].concat())
            }
        };
        let mut pairs = Vec::new();
        for one in &one_side {
            for other in &other_side {
                if outgoing {
                    pairs.push(((*one).to_owned(), (*other).to_owned()));
                }
                if incoming {
                    pairs.push(((*other).to_owned(), (*one).to_owned()));
                }
            }
        }
        pairs
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

fn answered(answer: anyhow::Result<crate::http::Answer>) -> String {
    match answer {
        Ok(answer) => format!(": {} {}", answer.status, answer.body.trim().chars().take(140).collect::<String>()),
        Err(error) => format!(": {}", format!("{error:#}").chars().take(140).collect::<String>()),
    }
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

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        let plan = |seed| {
            let mut random = Random::new(seed);
            (0..50).map(|_| round(&mut random, true)).collect::<Vec<_>>()
        };
        assert_eq!(plan(3), plan(3));
        assert_ne!(plan(3), plan(4));
    }
}
