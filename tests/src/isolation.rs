//! A leader that is set apart: its agent frozen, its node frozen, cut from etcd, cut from everything, left alone with an etcd that was deposed; and who acknowledged what meanwhile.
//!
//! Each server has a witness, a writer that asks this one server only and stays with it through the fault, as a
//! client with an old connection does. What a witness is told is the server's word: two servers that acknowledge
//! in the same instant can't hide from a client that talks to one of them.

use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::Etcd;
use crate::node::{Config, Node};
use crate::phases::{Phases, Struck};
use crate::place::Place;
use crate::room::Room;
use crate::storm::network::Network;
use crate::verdict::Verdict;
use crate::wait;
use crate::workload::{Ledger, Targets, Writer};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What befalls the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The agent beside Postgres is alive and silent.
    AgentFrozen,
    /// Everything on the host is.
    NodeFrozen,
    /// Every process there is killed; started again when it is over.
    NodeKilled,
    /// etcd is out of reach, clients and standbys are not.
    CutFromEtcd,
    /// Nothing is in reach.
    CutFromAll,
    /// The other members are out of reach; etcd and clients are not.
    CutFromMembers,
    /// One of the other members is, both ways.
    CutFromOne,
    /// The host of etcd's leader hangs together with ours, and both come back where they reach each other and nobody
    /// else: etcd's old leader does not know yet that it was deposed.
    HungWithEtcdsLeader,
}

/// One isolation.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What happens.
    pub fault: Fault,
    /// For how long.
    pub lasts: Duration,
    /// `ttl`, in seconds.
    pub ttl: u64,
    /// `synchronous_mode`.
    pub synchronous: bool,
    /// Keys of the dynamic configuration, over all others.
    pub dynamic: Value,
    /// How long the cluster is whole before that.
    pub calm: Duration,
    /// The same done to this Patroni instead of us.
    pub patroni: Option<PathBuf>,
    /// How many members etcd has.
    pub etcds: usize,
}

impl Plan {
    /// This fault for so long, without a synchronous standby and with nothing else that is special.
    pub fn of(fault: Fault, lasts: Duration, ttl: u64) -> Plan {
        let etcds = if fault == Fault::HungWithEtcdsLeader { ETCDS.len() } else { 1 };
        Plan { fault, lasts, ttl, synchronous: false, dynamic: json!({}), calm: Duration::ZERO, patroni: None, etcds }
    }

    /// In quorum mode with `deposition`, in a cluster that has been whole long enough for it.
    pub fn with_deposition(self) -> Plan {
        let dynamic = json!({"synchronous_mode": "quorum", "deposition": "on"});
        let calm = Duration::from_secs(self.ttl + 1);
        Plan { synchronous: true, dynamic, calm, ..self }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Who led before.
    pub old: String,
    /// Who led in the end.
    pub last: String,
    /// Sent to the old leader more than one TTL after the fault began, and acknowledged by it before it was over.
    pub after_deadline: usize,
    /// Sent to the old leader after another server had acknowledged something, and acknowledged all the same.
    pub two_at_once: usize,
    /// Of all that any server acknowledged.
    pub verdict: Verdict,
    /// Everything acknowledged, refused and unknown, of all witnesses.
    pub acknowledged: usize,
    /// The longest time in which no server acknowledged anything.
    pub pause: Duration,
    /// A voter took the key from a leader that still had it.
    pub deposed: bool,
    /// Where the time of the failover went; None where nobody else led, or where Patroni did.
    pub phases: Option<Phases>,
}

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
const ETCDS: [&str; 3] = ["e1", "e2", "e3"];
/// What is judged after hosts that hung have come back, cut off: longer than any lease that was renewed then.
const CUT_AFTER_HANGING: Duration = Duration::from_secs(14);
/// Between the first ids of two witnesses.
const APART: u64 = 1_000_000_000;

/// Makes a cluster of three, isolates its leader, heals, and counts.
pub async fn suffer(plan: &Plan) -> Outcome {
    let network = (!matches!(plan.fault, Fault::AgentFrozen | Fault::NodeFrozen | Fault::NodeKilled))
        .then(|| network().expect("make a network; hint: as root, with ip(8)"));
    let cluster = settle(plan, network.as_ref()).await;
    let leader = cluster.leader().await;
    let old = leader.name().to_owned();
    wait::until("the writers' table", PATIENCE, async || {
        leader.query("CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())").await
    })
    .await;
    let witnesses: Vec<(String, Writer)> = (0..)
        .zip(&cluster.nodes)
        .map(|(number, node)| {
            let targets = Targets::at(vec![(node.host().to_owned(), node.port())]).witness(number * APART + 1);
            (node.name().to_owned(), Writer::start(targets))
        })
        .collect();
    witness_of(&witnesses, &old).goes_on(100, PATIENCE).await;
    wait::lasting(plan.calm).await;

    let struck = Struck::now();
    // A cut takes some ten milliseconds to be made, and a renewal that is sent meanwhile counts: the deadline is judged from when it was whole.
    let (complete, healed) = match (plan.fault, &network) {
        (Fault::HungWithEtcdsLeader, Some(network)) => {
            let healed = hang_with_etcds_leader(&cluster, leader, network, plan.lasts).await;
            (struck.at(), healed)
        }
        _ => {
            strike(plan.fault, &cluster, leader, network.as_ref(), true);
            let complete = Instant::now();
            wait::lasting(plan.lasts).await;
            let healed = Instant::now();
            strike(plan.fault, &cluster, leader, network.as_ref(), false);
            (complete, healed)
        }
    };

    whole(&cluster, plan).await;
    let last = cluster.leader().await;
    witness_of(&witnesses, last.name()).goes_on(50, PATIENCE).await;
    let ledgers: Vec<(String, Ledger)> = witnesses.into_iter().map(|(name, writer)| (name, writer.finish())).collect();
    let last = cluster.leader().await;
    let deadline = complete + Duration::from_secs(plan.ttl);
    let first_elsewhere =
        ledgers.iter().filter(|(name, _)| *name != old).filter_map(|(_, ledger)| ledger.acknowledged().next()).map(|one| one.known).min();
    let by_old = || ledgers.iter().filter(|(name, _)| *name == old).flat_map(|(_, ledger)| ledger.acknowledged());
    // Neither a frozen agent nor members out of reach need keep a server from renewing its lease; a server that leads on has no deadline that passed.
    let reaches_etcd = matches!(plan.fault, Fault::AgentFrozen | Fault::CutFromOne | Fault::CutFromMembers);
    let keeps_its_lease = reaches_etcd && first_elsewhere.is_none();
    let all = merged(&ledgers);
    let verdict = wait::until("the verdict", PATIENCE, async || Verdict::of(last, &all).await.map_err(|error| format!("{error:#}"))).await;
    let led_on = plan.patroni.is_some() || last.name() == old;
    let phases =
        if led_on { None } else { Phases::of(&cluster, struck, &all).await.inspect_err(|why| println!("no phases: {why:#}")).ok() };
    let outcome = Outcome {
        phases,
        after_deadline: if keeps_its_lease {
            0
        } else {
            by_old().filter(|one| one.sent > deadline && one.known < healed + Duration::from_secs(plan.ttl)).count()
        },
        two_at_once: first_elsewhere.map_or(0, |first| by_old().filter(|one| one.sent > first).count()),
        old,
        last: last.name().to_owned(),
        acknowledged: all.acknowledged().count(),
        pause: all.longest_pause(),
        deposed: cluster.nodes.iter().any(deposed_somebody),
        verdict,
    };
    println!("{:?} for {:?}: {}; {} lost", plan.fault, plan.lasts, outcome.verdict.summary, outcome.verdict.lost.len());
    if let Some(phases) = outcome.phases {
        println!("{phases}");
    }
    outcome
}

/// What comes of a voter that alone has lost the leader, while another one hears it.
#[derive(Debug)]
pub struct LostToOne {
    /// Who led before, and after the voter had spoken and had had time.
    pub leaders: [Option<String>; 2],
    /// Somebody took the key.
    pub deposed: bool,
    /// What the leader said to a write meanwhile.
    pub write: Result<(), String>,
}

/// In quorum mode with `deposition` one voter is cut off from the leader, both ways. Nothing is written, so that voter lacks nothing that the other one
/// has: it may stand, and whatever keeps it from the key is that the other one hears the leader. It has spoken, and has so much time then; at last the cut heals.
pub async fn lose_to_one(ttl: u64, lasts: Duration) -> LostToOne {
    let plan = Plan::of(Fault::CutFromOne, lasts, ttl).with_deposition();
    let network = Network::new(&[&NAMES[..], &ETCDS].concat()).expect("make a network; hint: as root, with ip(8)");
    let cluster = settle(&plan, Some(&network)).await;
    let both = |names: &[String]| names.len() == NAMES.len() - 1;
    let before = cluster.wait_until("a sync key that names both", |view| view.synchronous().is_some_and(|(_, names)| both(&names))).await;
    let leader = cluster.leader().await;
    // The one that is cut off.
    let voter = cluster.others(leader)[0];
    wait::lasting(plan.calm).await;
    strike(plan.fault, &cluster, leader, Some(&network), true);
    let bond = voter.data_dir().join("pg_tenure.bond");
    wait::until("the voter to be bound by its word", PATIENCE, async || if bond.exists() { Ok(()) } else { Err("it says nothing") }).await;
    wait::lasting(plan.lasts).await;
    let view = wait::until("a look at the keys", PATIENCE, async || cluster.view().await.map_err(|error| format!("{error:#}"))).await;
    let deposed = cluster.nodes.iter().any(deposed_somebody);
    let write = leader.query("CREATE TABLE IF NOT EXISTS written_meanwhile()").await;
    strike(plan.fault, &cluster, leader, Some(&network), false);
    whole(&cluster, &plan).await;
    LostToOne {
        leaders: [&before, &view].map(|view| view.leader().map(str::to_owned)),
        deposed,
        write: write.map(|_| ()).map_err(|error| format!("{error:#}")),
    }
}

fn witness_of<'a>(witnesses: &'a [(String, Writer)], name: &str) -> &'a Writer {
    let found = witnesses.iter().find(|(one, _)| one == name);
    found.map(|(_, writer)| writer).unwrap_or_else(|| panic!("no witness at {name}"))
}

/// Its lease worker says that it took a key that was held.
pub fn deposed_somebody(node: &Node) -> bool {
    std::fs::read_to_string(node.server_log()).is_ok_and(|log| log.contains("take the leader key from the leader"))
}

/// All ledgers as one, by when each outcome was known.
fn merged(ledgers: &[(String, Ledger)]) -> Ledger {
    let mut attempts: Vec<_> = ledgers.iter().flat_map(|(_, ledger)| ledger.attempts.clone()).collect();
    attempts.sort_by_key(|attempt| attempt.known);
    let ended = ledgers.iter().map(|(_, ledger)| ledger.ended).min().unwrap_or_else(Instant::now);
    Ledger { attempts, ended }
}

async fn settle(plan: &Plan, network: Option<&Network>) -> Cluster {
    let cluster = planned(plan, network).await;
    for node in &cluster.nodes {
        cluster.start(node);
    }
    whole(&cluster, plan).await;
    cluster
}

/// A network in which the leader of three nodes can be cut off.
pub fn network() -> Result<Network> {
    Network::new(&[&NAMES[..], &ETCDS].concat())
}

/// Three nodes, of which none runs yet, on an etcd that does.
pub async fn planned(plan: &Plan, network: Option<&Network>) -> Cluster {
    let place = |name: &str| network.map_or_else(Place::loopback, |network| network.place(name));
    let room = Room::new();
    let etcd = Etcd::planned_at(&room, ETCDS[..plan.etcds].iter().map(|name| place(name)).collect());
    etcd.run(&room).await;
    // The endpoint that everybody asks first: who thaws finds it at once.
    if let Some(leader) = etcd.leader().await.filter(|leader| leader.name() != etcd.members()[0].name()) {
        etcd.move_leader(leader).await.expect("move etcd's leader");
    }
    let change = |config: &mut Config| {
        let dynamic = &mut config["bootstrap"]["dcs"];
        dynamic["ttl"] = json!(plan.ttl);
        dynamic["loop_wait"] = json!(1);
        dynamic["retry_timeout"] = json!(if plan.patroni.is_some() { 3 } else { 1 });
        dynamic["synchronous_mode"] = json!(plan.synchronous);
        for (key, value) in plan.dynamic.as_object().into_iter().flatten() {
            dynamic[key] = value.clone();
        }
        if let Some(lines) = config["postgresql"]["pg_hba"].as_array_mut() {
            lines.push(json!("host all all 10.0.0.0/8 scram-sha-256"));
            lines.push(json!("host replication all 10.0.0.0/8 scram-sha-256"));
        }
        if plan.patroni.is_some() {
            // Its section takes lists, and it is compared without a watchdog.
            config["etcd3"]["hosts"] = json!(etcd.hosts().split(',').collect::<Vec<_>>());
            config["watchdog"] = json!({"mode": "off"});
        }
    };
    let nodes = NAMES
        .into_iter()
        .map(|name| {
            let node = Node::bare_at(&room, name, name, place(name));
            let mut config = node.default_config(&etcd.hosts());
            change(&mut config);
            node.configure(&room, &config);
            match &plan.patroni {
                Some(patroni) => node.by_patroni(patroni),
                None => node,
            }
        })
        .collect();
    Cluster::assembled(nodes, etcd, room, plan.synchronous)
}

/// Waits until one leads as primary, and the other two stream from it.
pub async fn whole(cluster: &Cluster, plan: &Plan) {
    if plan.patroni.is_none() {
        cluster.healthy().await;
        return;
    }
    wait::until("Patroni's cluster", PATIENCE * 2, async || {
        let view = cluster.view().await.map_err(|error| format!("{error:#}"))?;
        let leader = cluster.node(view.leader().ok_or("nobody leads")?);
        let streaming = leader.one("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND NOT pg_is_in_recovery()").await;
        match streaming {
            Ok(count) if count == "2" => Ok(()),
            other => Err(format!("{}: {other:?} stream ({view})", leader.name())),
        }
    })
    .await;
}

/// Both hang, come back cut off from all others, and at last the cut heals: gives when.
async fn hang_with_etcds_leader(cluster: &Cluster, leader: &Node, network: &Network, lasts: Duration) -> Instant {
    let member = cluster.etcd.leader().await.expect("etcd has a leader");
    assert_eq!(member.name(), cluster.etcd.members()[0].name(), "it leads where it was moved to");
    let alone = [leader.name(), ETCDS[0]];
    let others: Vec<&str> = NAMES.into_iter().chain(ETCDS).filter(|name| !alone.contains(name)).collect();
    let pairs = || others.iter().flat_map(|other| alone.iter().flat_map(move |one| [(*one, *other), (*other, *one)]));
    // Together: a host that hangs takes nothing into its buffers either.
    member.freeze();
    leader.freeze();
    pairs().for_each(|(one, other)| network.cut(one, other));
    wait::lasting(lasts).await;
    member.thaw();
    leader.thaw();
    wait::lasting(CUT_AFTER_HANGING).await;
    let healed = Instant::now();
    pairs().for_each(|(one, other)| network.heal(one, other));
    healed
}

fn strike(fault: Fault, cluster: &Cluster, leader: &Node, network: Option<&Network>, begins: bool) {
    let name = leader.name();
    let others = cluster.others(leader).into_iter().map(Node::name);
    match (fault, network) {
        (Fault::AgentFrozen, _) if begins => leader.freeze_arbiter(),
        (Fault::AgentFrozen, _) => leader.thaw_arbiter(),
        (Fault::NodeFrozen, _) if begins => leader.freeze(),
        (Fault::NodeFrozen, _) => leader.thaw(),
        (Fault::NodeKilled, _) if begins => leader.kill(),
        (Fault::NodeKilled, _) => cluster.start(leader),
        (Fault::CutFromEtcd, Some(network)) if begins => {
            network.cut(name, "e1");
            network.cut("e1", name);
        }
        (Fault::CutFromEtcd, Some(network)) => {
            network.heal(name, "e1");
            network.heal("e1", name);
        }
        (Fault::CutFromAll, Some(network)) if begins => network.unplug(name),
        (Fault::CutFromAll, Some(network)) => network.plug(name),
        (Fault::CutFromMembers | Fault::CutFromOne, Some(network)) => {
            let others = others.take(if fault == Fault::CutFromOne { 1 } else { usize::MAX });
            let way = |one, other| if begins { network.cut(one, other) } else { network.heal(one, other) };
            others.for_each(|other| {
                way(name, other);
                way(other, name);
            });
        }
        (_, None) | (Fault::HungWithEtcdsLeader, _) => panic!("a cut needs a network"),
    }
}
