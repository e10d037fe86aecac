//! The storm: a real cluster under faults drawn from a seed, which has to heal by itself after each, and a verdict.

pub mod clients;
pub mod clock;
mod cut;
pub mod delay;
pub mod disk;
pub mod etcds;
pub mod fault;
pub mod judge;
pub mod mode;
pub mod network;
pub mod prepared;
pub mod random;
pub mod shared;

use crate::cluster::Cluster;
use crate::etcd::Etcd;
use crate::node::{Config, Node};
use crate::place::Place;
use crate::room::{self, Room};
use crate::view::View;
use clients::{Clients, Kind};
use clock::Clock;
use disk::Disk;
use fault::{ETCDS, Fault, Ground, Means};
use judge::{Contents, Judgement};
use mode::{Base, Modes};
use network::Network;
use random::Random;
use shared::{Ledger, elements};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Acknowledged statements that make a cluster healthy, after it looks so.
const PROOF: u64 = 20;

/// How long an operator waits before looking.
const OPERATOR: Duration = Duration::from_secs(5);

/// The clients.
const KINDS: [Kind; 10] = [
    Kind::Insert,
    Kind::Insert,
    Kind::Insert,
    Kind::Append,
    Kind::Append,
    Kind::Append,
    Kind::Read,
    Kind::Prepare,
    Kind::Copy,
    Kind::Cancelled,
];

/// What a storm is.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Of the plan.
    pub seed: u64,
    /// How long faults go on.
    pub lasts: Duration,
    /// `synchronous_mode`.
    pub base: Base,
    /// In network namespaces, with cuts.
    pub networked: bool,
    /// With changes of the synchronous mode.
    pub modes: bool,
    /// Only rounds with a fault whose name has this in it.
    pub only: String,
    /// How long healing may take.
    pub heal: Duration,
    /// `ttl`.
    pub ttl: u64,
    /// `deposition: on`.
    pub deposition: bool,
}

/// What a round cost.
struct Round {
    faults: Vec<Fault>,
    pause: Duration,
    healed: Duration,
}

/// The first rounds of a seed, without running them.
pub fn print_plan(weather: &Weather, rounds: usize) {
    let mut random = Random::new(weather.seed);
    let means = Means::here(weather.networked, weather.modes);
    for number in 1..=rounds {
        let (faults, _rest) = next_round(&mut random, means, weather);
        let said = faults.iter().map(|fault| format!("{} of {:?} for {:.1} s", fault.word, fault.role, fault.lasts.as_secs_f64()));
        println!("#{number} {}", said.collect::<Vec<_>>().join(" and "));
    }
}

fn next_round(random: &mut Random, means: Means, weather: &Weather) -> (Vec<Fault>, Duration) {
    let wanted = |faults: &Vec<Fault>| faults.iter().any(|fault| fault.word.to_string().contains(&weather.only));
    // Every fault is drawn once in a hundred rounds or so.
    let rounds = (0..100_000).map(|_| (fault::round(random, means), random.lasting(Duration::from_millis(500), Duration::from_secs(5))));
    let mut rounds = rounds.filter(|(faults, _)| wanted(faults));
    rounds.next().unwrap_or_else(|| panic!("no fault here has {:?} in its name; hint: seed=1 plan=100 shows names", weather.only))
}

/// Runs it and prints as it goes; true where nothing was found.
pub async fn run(weather: &Weather) -> bool {
    let means = Means::here(weather.networked, weather.modes);
    let ground = settle(weather, means).await;
    let servers: Vec<(String, u16)> = ground.cluster.nodes.iter().map(|node| (node.host().to_owned(), node.port())).collect();
    let room = ground.cluster.room.path().display().to_string();
    println!(
        "storm: seed {}, {:.0} min, {}, ttl {} s{}, {}, in {room}",
        weather.seed,
        weather.lasts.as_secs_f64() / 60.0,
        weather.base,
        weather.ttl,
        if weather.deposition { ", deposition" } else { "" },
        if ground.network.is_some() { "a network namespace each" } else { "on loopback, no network faults" },
    );
    println!("storm: {means:?}");
    if let Err(error) = make_tables(&ground).await {
        println!("storm: no tables: {error}");
        ground.cluster.room.keep();
        return false;
    }
    let clients = Clients::start(&servers, &KINDS, &ground.cluster.room);
    let began = Instant::now();
    // Each writer has a first acknowledgement of the first leader.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut random = Random::new(weather.seed);
    let mut rounds: Vec<Round> = Vec::new();
    let mut broken: Vec<String> = Vec::new();
    while began.elapsed() < weather.lasts {
        let (faults, rest) = next_round(&mut random, means, weather);
        match one_round(&ground, &clients, &faults, rounds.len() + 1, began, weather).await {
            Ok(round) => rounds.push(round),
            Err(why) => {
                println!("NOT HEALED within {:?}: {why}", weather.heal);
                broken.push(format!("round {} did not heal within {:?}: {why}", rounds.len() + 1, weather.heal));
                break;
            }
        }
        tokio::time::sleep(rest).await;
    }
    let lasted = began.elapsed();
    let ledger = clients.finish();
    match verdict(&ground, ledger, weather).await {
        Ok((judged, ledger, unlike)) => {
            broken.extend(unlike);
            broken.extend(judged.violations(weather.base.is_synchronous()));
            print_table(&rounds, &judged, lasted);
            print_words(&ledger);
        }
        Err(error) => broken.push(format!("no verdict: {error}")),
    }
    if broken.is_empty() {
        println!("storm: seed {}: no violation", weather.seed);
        end(ground);
        return true;
    }
    for what in &broken {
        println!("VIOLATION: {what}");
    }
    print_state(&ground).await;
    ground.cluster.room.keep();
    println!("storm: seed {}: left for you to look at: {room}; the data is in n?.disk: mount -o loop", weather.seed);
    end(ground);
    false
}

/// Nothing is removed below a mounted disk, and no disk is unmounted below a server.
fn end(ground: Ground) {
    ground.cluster.nodes.iter().for_each(Node::kill);
    drop(ground.disks);
}

/// Ends what is prepared still, and compares what clients were told with what the leader has. The third says why the standbys could not be
/// compared with it.
async fn verdict(ground: &Ground, mut ledger: Ledger, weather: &Weather) -> Result<(Judgement, Ledger, Option<String>), String> {
    let view = ground.cluster.view().await.map_err(|error| format!("{error:#}"))?;
    let leader = ground.cluster.node(view.leader().ok_or("nobody leads")?);
    prepared::finish(leader, &mut ledger.transactions).await?;
    let unlike = all_alike(ground).await.err().map(|why| format!("the standbys can't be compared with {}: {why}", leader.name()));
    let contents = contents(leader).await.map_err(|error| format!("{error:#}"))?;
    let windows = if weather.base.is_synchronous() { ground.modes.windows() } else { Vec::new() };
    Ok((Judgement::on(&contents, &ledger, &windows), ledger, unlike))
}

async fn settle(weather: &Weather, means: Means) -> Ground {
    let names = ["n1", "n2", "n3"];
    let network = weather.networked.then(|| Network::new(&[&names[..], &ETCDS[..]].concat()).expect("make a network; hint: NET=false"));
    let place = |name: &str| network.as_ref().map_or_else(Place::loopback, |network| network.place(name));
    let room = Room::new();
    let etcd = Etcd::planned_at(&room, ETCDS.iter().map(|name| place(name)).collect());
    etcd.run(&room).await;
    let with = |wanted: bool| if wanted { &names[..] } else { &[] };
    let disks: Vec<Disk> = with(means.disk).iter().map(|name| Disk::new(&room, name).expect("make a disk; hint: DISK=false")).collect();
    let clocks: Vec<Clock> = with(means.clock).iter().map(|name| Clock::new(&room, name).expect("make a clock")).collect();
    let change = |config: &mut Config| {
        let dynamic = &mut config["bootstrap"]["dcs"];
        dynamic["ttl"] = weather.ttl.into();
        dynamic["loop_wait"] = 1.into();
        dynamic["retry_timeout"] = 1.into();
        dynamic["synchronous_mode"] = weather.base.value();
        dynamic["deposition"] = if weather.deposition { "on" } else { "off" }.into();
        dynamic["postgresql"]["parameters"]["max_prepared_transactions"] = 200.into();
        if let Some(lines) = config["postgresql"]["pg_hba"].as_array_mut() {
            lines.push("host all all 10.0.0.0/8 scram-sha-256".into());
            lines.push("host replication all 10.0.0.0/8 scram-sha-256".into());
        }
        let parameters = &mut config["postgresql"]["parameters"];
        parameters["log_line_prefix"] = "%m [%p] %b ".into();
        // Little WAL is kept to be used again, so that a full disk is felt within seconds.
        parameters["min_wal_size"] = "32MB".into();
        parameters["max_wal_size"] = "128MB".into();
    };
    let nodes = names
        .iter()
        .enumerate()
        .map(|(number, name)| {
            let mut node = Node::bare_at(&room, name, name, place(name));
            if let Some(disk) = disks.get(number) {
                node = node.with_data_in(disk.path());
            }
            if let Some(clock) = clocks.get(number) {
                node = node.with_environment(clock.environment());
            }
            let mut config = node.default_config(&etcd.hosts());
            change(&mut config);
            let log = fault::server_log(&node);
            let parameters = &mut config["postgresql"]["parameters"];
            parameters["logging_collector"] = "on".into();
            parameters["log_directory"] = log.parent().map(|dir| dir.display().to_string()).into();
            parameters["log_filename"] = log.file_name().map(|name| name.to_string_lossy()).into();
            // Else it is another file after ten megabytes.
            parameters["log_rotation_size"] = 0.into();
            parameters["log_rotation_age"] = 0.into();
            node.configure(&room, &config);
            node
        })
        .collect();
    let cluster = Cluster::assembled(nodes, etcd, room, weather.base.is_synchronous());
    for node in &cluster.nodes {
        cluster.start(node);
    }
    cluster.healthy().await;
    Ground { cluster, network, disks, clocks, modes: Modes::new(weather.base), forgot: AtomicBool::new(false) }
}

async fn make_tables(ground: &Ground) -> anyhow::Result<()> {
    let leader = ground.cluster.leader().await;
    leader.query(clients::TABLES).await.map(drop)
}

async fn one_round(
    ground: &Ground,
    clients: &Clients,
    faults: &[Fault],
    number: usize,
    began: Instant,
    weather: &Weather,
) -> Result<Round, String> {
    let view = ground.cluster.view().await.map_err(|error| format!("{error:#}"))?;
    let at = began.elapsed().as_secs_f64();
    let started = Instant::now();
    let said = match faults {
        [one] => vec![ground.strike(one, &view, started).await],
        [one, two] => {
            let (one, two) = tokio::join!(Box::pin(ground.strike(one, &view, started)), Box::pin(ground.strike(two, &view, started)));
            vec![one, two]
        }
        _ => Vec::new(),
    };
    ground.calm();
    let over = Instant::now();
    for line in &said {
        println!("{at:7.1} s  #{number:<3} {line}");
    }
    let looked = healed(ground, clients, weather).await;
    let now = Instant::now();
    let round = Round { faults: faults.to_vec(), pause: clients.longest_pause(started, now), healed: now - over };
    let leader = ground.cluster.view().await.ok().and_then(|view| view.leader().map(str::to_owned)).unwrap_or_default();
    println!(
        "            #{number:<3} pause {} ms, healed after {} ms, {leader} leads, {} acknowledged",
        round.pause.as_millis(),
        round.healed.as_millis(),
        clients.acknowledged(),
    );
    looked.map(|()| round)
}

/// Waits until the cluster is whole, and clients get on; starts arbiters that ended by themselves, as systemd does.
async fn healed(ground: &Ground, clients: &Clients, weather: &Weather) -> Result<(), String> {
    let began = Instant::now();
    let mut operated = began;
    let mut proven: Option<u64> = None;
    loop {
        for node in &ground.cluster.nodes {
            if !node.arbiter_runs() {
                println!("            NOTE: the arbiter of {} ended by itself; started again", node.name());
                ground.start(node);
            }
        }
        let fault = match ground.cluster.view().await {
            Ok(view) => match fault_of(ground, &view, weather).await {
                None => match proven {
                    Some(before) if clients.acknowledged() >= before + PROOF => {
                        ground.modes.whole();
                        ground.remembers();
                        return Ok(());
                    }
                    Some(_) => "clients do not get on".to_owned(),
                    None => {
                        proven = Some(clients.acknowledged());
                        continue;
                    }
                },
                Some(fault) => {
                    proven = None;
                    format!("{fault} ({view})")
                }
            },
            Err(error) => format!("{error:#}"),
        };
        if began.elapsed() > weather.heal {
            return Err(fault);
        }
        // An operator looks at it after some seconds, and again.
        if operated.elapsed() > OPERATOR {
            if let Some(said) = ground.make_keys_anew(began, weather.base.is_synchronous()).await {
                println!("            {said}");
            }
            for said in ground.make_copies_anew().await {
                println!("            {said}");
            }
            operated = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What is wrong by etcd, and by the primary's own view of its standbys.
async fn fault_of(ground: &Ground, view: &View, weather: &Weather) -> Option<String> {
    if let Some(fault) = ground.modes.restore(&ground.cluster, view).await {
        return Some(fault);
    }
    if let Some(fault) = view.fault(ground.cluster.nodes.len(), weather.base.is_synchronous()) {
        return Some(fault);
    }
    let leader = ground.cluster.node(view.leader()?);
    let rows = match leader.query("SELECT application_name, state, sync_state FROM pg_stat_replication ORDER BY 1").await {
        Ok(rows) => rows,
        Err(error) => return Some(format!("{}: {error:#}", leader.name())),
    };
    let streaming = rows.iter().filter(|row| row[1] == "streaming").count();
    let synchronous = rows.iter().filter(|row| matches!(row[2].as_str(), "sync" | "quorum")).count();
    if streaming + 1 != ground.cluster.nodes.len() || (weather.base.is_synchronous() && synchronous == 0) {
        return Some(format!("pg_stat_replication of {} has {rows:?}", leader.name()));
    }
    None
}

/// For so long the standbys may replay what the leader had when the clients ended: it may be gigabytes, on a busy disk.
const REPLAY: Duration = Duration::from_secs(300);

/// Waits until all three have the same, once the standbys have replayed everything.
async fn all_alike(ground: &Ground) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let Err(last) = alike(ground).await else {
            return Ok(());
        };
        if began.elapsed() > REPLAY {
            return Err(last);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn alike(ground: &Ground) -> Result<(), String> {
    let say = |error: anyhow::Error| format!("{error:#}");
    let view = ground.cluster.view().await.map_err(say)?;
    let leader = ground.cluster.node(view.leader().ok_or("nobody leads")?);
    let sums = "SELECT (SELECT md5(concat(count(*), sum(hashint8extended(id, 0)))) FROM written) || \
                (SELECT md5(concat(count(*), sum(id))) FROM heaps) || (SELECT coalesce(md5(string_agg(md5(k::text || v::text), '' ORDER BY k)), '') FROM lists)";
    // A look at many rows writes WAL of its own (hint bits), so it is made once there is something to compare.
    let end = leader.one("SELECT pg_current_wal_flush_lsn()").await.map_err(say)?;
    for node in ground.cluster.others(leader) {
        let there = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        if node.one(&there).await.map_err(|error| format!("{}: {error:#}", node.name()))? != "t" {
            return Err(format!("{} has not replayed what {} had flushed", node.name(), leader.name()));
        }
    }
    let of_leader = leader.one(sums).await.map_err(say)?;
    for node in ground.cluster.others(leader) {
        let own = node.one(sums).await.map_err(|error| format!("{}: {error:#}", node.name()))?;
        if own != of_leader {
            return Err(format!("{} has other rows than {}", node.name(), leader.name()));
        }
    }
    Ok(())
}

async fn contents(leader: &Node) -> anyhow::Result<Contents> {
    let mut contents = Contents::default();
    for row in leader.query("SELECT id, count(*) FROM written GROUP BY id").await? {
        contents.written.insert(row[0].parse().unwrap_or(0), row[1].parse().unwrap_or(0));
    }
    for row in leader.query("SELECT id, count(*) FROM heaps GROUP BY id").await? {
        contents.heaps.insert(row[0].parse().unwrap_or(0), row[1].parse().unwrap_or(0));
    }
    for row in leader.query("SELECT k, v FROM lists").await? {
        contents.lists.insert(row[0].parse().unwrap_or(0), elements(&row[1]));
    }
    Ok(contents)
}

fn print_table(rounds: &[Round], judged: &Judgement, lasted: Duration) {
    let mut by_word: BTreeMap<String, Vec<(u128, u128)>> = BTreeMap::new();
    for round in rounds {
        let both = round.faults.len() > 1;
        for fault in &round.faults {
            let what = if both { "two at a time".to_owned() } else { format!("{}, {:?}", fault.word, fault.role) };
            by_word.entry(what).or_default().push((round.pause.as_millis(), round.healed.as_millis()));
            if both {
                break;
            }
        }
    }
    let mut table = String::new();
    let _ = writeln!(table, "\n| fault | times | pause median, ms | pause most, ms | healed median, ms | healed most, ms |");
    let _ = writeln!(table, "|---|---|---|---|---|---|");
    for (what, mut costs) in by_word {
        costs.sort_unstable();
        let (pause, most) = (costs[costs.len() / 2].0, costs[costs.len() - 1].0);
        let mut healed: Vec<u128> = costs.iter().map(|cost| cost.1).collect();
        healed.sort_unstable();
        let (heal, slowest) = (healed[healed.len() / 2], healed[healed.len() - 1]);
        let _ = writeln!(table, "| {what} | {} | {pause} | {most} | {heal} | {slowest} |", costs.len());
    }
    println!("{table}");
    let faults: usize = rounds.iter().map(|round| round.faults.len()).sum();
    println!("| what | |\n|---|---|");
    println!("| minutes | {:.1} |\n| rounds | {} |\n| faults | {faults} |", lasted.as_secs_f64() / 60.0, rounds.len());
    println!("| acknowledged | {} |", judged.acknowledged);
    println!("| refused | {} |\n| unknown | {} |", judged.refused, judged.unknown);
    println!("| terms that acknowledged | {} |", judged.terms);
    println!(
        "| lost | {} {:?} |\n| lost before something that is there | {} |",
        judged.lost.len(),
        judged.lost_by_term,
        judged.holes.len()
    );
    println!("| lost while the mode was off | {} |", judged.lost_unprotected.len());
    println!("| two-phase commits | {} |", judged.transactions);
    println!(
        "| of these lost, otherwise ended, wrongly prepared | {}, {}, {} |",
        judged.lost_prepared.len(),
        judged.ended_otherwise.len(),
        judged.wrongly_prepared.len()
    );
    println!("| copied in part | {} |", judged.torn.len());
    println!("| doubled | {} |", judged.doubled.len());
    println!("| refused and there | {} |", judged.wrongly_refused.len());
    println!("| lists lost or reordered | {} |", judged.broken_lists.len());
    println!("| acknowledged by an earlier leader after a later one | {} |", judged.two_leaders.len());
    println!("| terms of two servers | {} |", judged.shared_terms.len());
    println!("| answers on their way while a later term began | {} (most {} ms) |", judged.overlaps, judged.longest_overlap.as_millis());
    println!("| acknowledged without a term | {} |", judged.without_term);
    println!("| dirty reads | {} of {} |", judged.dirty_reads, judged.reads);
}

/// What clients were told, most frequent first.
fn print_words(ledger: &Ledger) {
    use crate::workload::Outcome::{Refused, Unknown};
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for act in ledger.acts.iter().chain(ledger.transactions.iter().map(|one| &one.prepare)) {
        match &act.outcome {
            Refused(words) => *told.entry(format!("refused: {words}")).or_default() += 1,
            Unknown(words) => *told.entry(format!("unknown: {words}")).or_default() += 1,
            _ => {}
        }
    }
    let mut told: Vec<(usize, String)> = told.into_iter().map(|(words, count)| (count, words)).collect();
    told.sort_unstable_by(|one, other| other.cmp(one));
    for (count, words) in told.iter().take(12) {
        println!("clients were told {count} times: {words}");
    }
}

async fn print_state(ground: &Ground) {
    match ground.cluster.view().await {
        Ok(view) => println!("etcd: {view}"),
        Err(error) => println!("etcd: {error:#}"),
    }
    for node in &ground.cluster.nodes {
        let lease = node.query("SELECT * FROM tenure.lease()").await;
        println!("{}: lease {lease:?}", node.name());
        println!("--- the end of {}'s arbiter.log\n{}", node.name(), room::tail(&node.log_file(), 3000));
        println!("--- the end of {}'s server log\n{}", node.name(), room::tail(&node.server_log(), 1000));
        println!("--- the end of {}'s postgresql.log\n{}", node.name(), room::tail(&fault::server_log(node), 3000));
    }
}
