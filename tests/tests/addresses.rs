//! Virtual addresses through switchover, kill, cut, a dead and a frozen arbiter, and etcd away, as a third host sees them by ARP.

use serde_json::json;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};
use stories::arp::{Claim, Watcher, two_at_once};
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::node::Node;
use stories::room::Room;
use stories::storm::network::Network;
use stories::wait::{self, seconds};
use stories::workload::{Ledger, Targets, Writer};

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
const TTL: u64 = 4;

struct Rack {
    cluster: Cluster,
    network: Network,
    watcher: Watcher,
    primary: Ipv4Addr,
    replica: Ipv4Addr,
}

impl Rack {
    /// Three nodes with addresses for writes and for reads; None where this machine can't, which is said.
    async fn new() -> Option<Rack> {
        if !std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            println!("SKIPPED: network namespaces need root");
            return None;
        }
        let network = Network::new(&[&NAMES[..], &["e1"]].concat()).expect("make a network; hint: as root, with ip(8)");
        let of = |last: u8| format!("{}.{last}", network.prefix()).parse::<Ipv4Addr>().expect("an address");
        let (primary, replica) = (of(101), of(102));
        let room = Room::new();
        let etcd = Etcd::planned_at(&room, vec![network.place("e1")]);
        etcd.run(&room).await;
        let nodes = NAMES.map(|name| {
            let node = Node::bare_at(&room, name, name, network.place(name));
            let mut config = node.default_config(&etcd.hosts());
            let dynamic = &mut config["bootstrap"]["dcs"];
            (dynamic["ttl"], dynamic["loop_wait"], dynamic["retry_timeout"]) = (json!(TTL), json!(1), json!(1));
            config["postgresql"]["listen"] = json!(format!("*:{}", node.port()));
            let lines = config["postgresql"]["pg_hba"].as_array_mut().expect("a list");
            lines
                .extend(["host all all 10.0.0.0/8 scram-sha-256", "host replication all 10.0.0.0/8 scram-sha-256"].map(|line| json!(line)));
            config["vip"] = json!({"primary": [primary, "fd00:7e::101"], "replica": [replica], "interface": "eth0"});
            node.configure(&room, &config);
            node
        });
        let cluster = Cluster::assembled(nodes.into(), etcd, room, false);
        for node in &cluster.nodes {
            cluster.start(node);
        }
        cluster.healthy().await;
        let watcher = Watcher::start(&network.own_interface(), of(1), vec![primary, replica]).expect("watch ARP");
        Some(Rack { cluster, network, watcher, primary, replica })
    }

    /// Who answers for an address.
    fn holder(&self, address: Ipv4Addr) -> Option<&str> {
        let mac = self.watcher.holder(address)?;
        NAMES.into_iter().find(|name| self.network.hardware(name) == mac)
    }

    async fn held_by(&self, address: Ipv4Addr, wanted: Option<&str>) {
        wait::until(&format!("{address} to be held by {wanted:?}"), PATIENCE, async || {
            let holder = self.holder(address);
            if holder == wanted { Ok(()) } else { Err(format!("{holder:?}")) }
        })
        .await;
    }

    /// The primary's address is with the leader, that for reads with one who follows, and only they have them.
    async fn in_order(&self) {
        self.cluster.healthy().await;
        let leader = self.cluster.leader().await;
        self.held_by(self.primary, Some(leader.name())).await;
        wait::until("the address for reads on a standby", PATIENCE, async || match self.holder(self.replica) {
            Some(name) if name != leader.name() => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        // The kernel's own list, of both families; what is for writes ends by itself.
        for name in NAMES {
            let wanted = if name == leader.name() { 2 } else { 0 };
            wait::until(&format!("{wanted} addresses for writes on {name}"), PATIENCE, async || {
                let mut on: Vec<(String, Option<u64>)> = self.network.addresses(name);
                on.retain(|(address, _)| address == "fd00:7e::101" || *address == self.primary.to_string());
                let ends = on.iter().all(|(_, seconds)| seconds.is_some_and(|seconds| seconds <= TTL));
                if on.len() == wanted && ends { Ok(()) } else { Err(format!("{on:?}")) }
            })
            .await;
        }
    }

    fn writer(&self, hosts: &[String], first: u64) -> Writer {
        let ports: Vec<u16> = self.cluster.nodes.iter().map(Node::port).collect();
        let servers = match hosts {
            [one] => ports.iter().map(|port| (one.clone(), *port)).collect(),
            many => many.iter().cloned().zip(ports).collect(),
        };
        Writer::start(Targets::at(servers).first_id(first).patience(seconds(3)))
    }
}

/// The longest time without an acknowledgement that touches the time between, and its end.
fn pause(ledger: &Ledger, from: Instant, to: Instant) -> (Duration, Instant) {
    let times: Vec<Instant> = ledger.acknowledged().map(|one| one.known).collect();
    let gaps = times.windows(2).filter(|pair| pair[1] > from && pair[0] < to);
    gaps.map(|pair| (pair[1] - pair[0], pair[1])).max().expect("writes went on")
}

/// When somebody else was heard to have the address, of those who were heard in that time.
fn moved(claims: &[Claim], from: Instant, to: Instant) -> Instant {
    let before = claims.iter().rev().find(|claim| claim.at < from).expect("somebody had it before");
    let after = claims.iter().find(|claim| claim.at > from && claim.at < to && claim.mac != before.mac);
    after.expect("somebody else has it").at
}

#[tokio::test]
async fn an_address_is_on_one_host_and_moves_with_the_writes() {
    let Some(rack) = Rack::new().await else { return };
    let (cluster, network) = (&rack.cluster, &rack.network);
    rack.in_order().await;
    let leader = cluster.leader().await;
    wait::until("the table", PATIENCE, async || {
        leader.query("CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())").await
    })
    .await;
    // Capabilities end with the arbiter: Postgres has none.
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", leader.postmaster().expect("a server").as_raw_nonzero())).expect("status");
    assert!(status.contains("CapEff:\t0000000000000000") && status.contains("CapAmb:\t0000000000000000"), "{status}");

    let direct = rack.writer(&cluster.nodes.iter().map(|node| node.host().to_owned()).collect::<Vec<_>>(), 1);
    let by_address = rack.writer(&[rack.primary.to_string()], 1_000_000_000);
    let both = async || {
        direct.goes_on(30, PATIENCE).await;
        by_address.goes_on(30, PATIENCE).await;
    };
    both().await;
    let mut steps: Vec<(&str, Instant, Instant)> = Vec::new();

    let began = Instant::now();
    cluster.cli_ok(&["switchover", "story", "--force"]).await;
    rack.in_order().await;
    both().await;
    steps.push(("switchover", began, Instant::now()));

    let (began, old) = (Instant::now(), cluster.leader().await);
    old.kill();
    cluster.wait_until("another leader", |view| view.leader().is_some_and(|name| name != old.name())).await;
    both().await;
    steps.push(("node killed", began, Instant::now()));
    // Its kernel lives on here, as a host's does not, and has taken the address away by itself.
    let left = network.addresses(old.name());
    assert!(left.iter().all(|(address, _)| *address != rack.primary.to_string() && *address != rack.replica.to_string()), "{left:?}");
    cluster.start(old);
    rack.in_order().await;

    // The third host, and who writes, reach it all the while.
    for (what, of_all) in [("node cut from etcd", false), ("node cut from etcd and the other nodes", true)] {
        let (began, old) = (Instant::now(), cluster.leader().await);
        let away: Vec<&str> = ["e1"].into_iter().chain(NAMES.into_iter().filter(|name| of_all && *name != old.name())).collect();
        for other in &away {
            network.cut(old.name(), other);
            network.cut(other, old.name());
        }
        cluster.wait_until("another leader", |view| view.leader().is_some_and(|name| name != old.name())).await;
        both().await;
        steps.push((what, began, Instant::now()));
        for other in &away {
            network.heal(old.name(), other);
            network.heal(other, old.name());
        }
        rack.in_order().await;
    }

    // The server goes on under its lease, and nobody vouches for its address: it goes by itself, and is back with the arbiter.
    let leader = cluster.leader().await;
    let dead = Instant::now();
    leader.kill_arbiter();
    rack.held_by(rack.primary, None).await;
    let arbiter_killed = dead.elapsed();
    assert!(arbiter_killed < seconds(TTL), "{arbiter_killed:?}");
    cluster.start(leader);
    rack.in_order().await;
    both().await;

    let frozen = Instant::now();
    leader.freeze_arbiter();
    rack.held_by(rack.primary, None).await;
    let arbiter_frozen = frozen.elapsed();
    assert!(arbiter_frozen < seconds(TTL), "{arbiter_frozen:?}");
    leader.thaw_arbiter();
    rack.in_order().await;
    both().await;

    let away = Instant::now();
    cluster.etcd.freeze();
    rack.held_by(rack.primary, None).await;
    let etcd_away = away.elapsed();
    assert!(etcd_away < seconds(TTL), "{etcd_away:?}");
    cluster.etcd.thaw();
    rack.in_order().await;
    both().await;

    let (direct, by_address) = (direct.finish(), by_address.finish());
    println!("gone after: arbiter killed {arbiter_killed:?}, arbiter frozen {arbiter_frozen:?}, etcd away {etcd_away:?}");
    for (step, from, to) in steps {
        let ((direct, written), (by_address, _)) = (pause(&direct, from, to), pause(&by_address, from, to));
        let moved = moved(&rack.watcher.claims()[&rack.primary], from, to);
        let (after, early) = (moved.saturating_duration_since(written), written.saturating_duration_since(moved));
        println!(
            "{step}: {direct:?} without an acknowledged write by the servers' own addresses, {by_address:?} by the virtual one; it moved {after:?} after or {early:?} before the first write at the new server"
        );
        // The address itself; a client's old connection waits besides until its TCP asks again, and before a deadline the address goes first.
        assert!(after < seconds(1), "{step}: {after:?} after the writes");
        assert!(by_address < direct + seconds(8), "{step}: {direct:?} and {by_address:?}");
    }
    assert_eq!(two_at_once(&rack.watcher.claims()), Vec::<String>::new());
    let verdict = cluster.verdict(&by_address).await;
    verdict.nothing_doubled();
}

#[tokio::test]
async fn an_address_that_somebody_else_has_is_not_taken_and_reads_go_where_they_may() {
    let Some(rack) = Rack::new().await else { return };
    let (cluster, network) = (&rack.cluster, &rack.network);
    rack.in_order().await;

    // No standby that reads may go to: they go to the primary, which says so.
    let leader = cluster.leader().await;
    for node in cluster.others(leader) {
        cluster.reconfigure(node, |config| config["tags"]["noloadbalance"] = json!(true));
        stories::process::signal(node.arbiter_pid().expect("an arbiter"), rustix::process::Signal::HUP);
    }
    rack.held_by(rack.replica, Some(leader.name())).await;
    leader.logged(&["no standby streams that reads may go to"], seconds(20)).await;
    for node in cluster.others(leader) {
        cluster.reconfigure(node, |config| config["tags"]["noloadbalance"] = json!(false));
        stories::process::signal(node.arbiter_pid().expect("an arbiter"), rustix::process::Signal::HUP);
    }
    rack.in_order().await;

    // Somebody configures the primary's address by hand, on the host of etcd: the new leader must not take it beside them.
    let claimed = rack.primary.to_string();
    leader.freeze_arbiter();
    rack.held_by(rack.primary, None).await;
    network.put("e1", &claimed);
    leader.thaw_arbiter();
    wait::until("the fault in the member key", PATIENCE, async || {
        let keys = cluster.etcd.keys("/service/story/members/").await.map_err(|why| format!("{why:#}"))?;
        let said = keys.values().any(|value| value.contains("is not taken") && value.contains(&network.hardware("e1")));
        if said { Ok(()) } else { Err(format!("{keys:?}")) }
    })
    .await;
    assert!(network.addresses(leader.name()).iter().all(|(address, _)| *address != claimed));
    let check = String::from_utf8_lossy(&cluster.cli(&["check"]).await.stdout).into_owned();
    assert!(check.contains("it does not hold a virtual address that it should"), "{check}");
    // For longer than the watcher takes for one and the same moment: it then comes back to whom it was taken from.
    wait::lasting(seconds(1)).await;
    network.take("e1", &claimed);
    rack.in_order().await;
    assert_eq!(two_at_once(&rack.watcher.claims()), Vec::<String>::new());
}

/// What an older deployment did by scripts: up where a server becomes primary, down where it stops being one. Its `ip` may do so by sudo;
/// this one by a capability of the file, as the arbiter hands none to scripts.
#[tokio::test]
async fn callbacks_that_move_an_address_go_on_working() {
    if !std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        println!("SKIPPED: network namespaces need root");
        return;
    }
    let names = ["n1", "n2"];
    let network = Network::new(&[&names[..], &["e1"]].concat()).expect("make a network; hint: as root, with ip(8)");
    let address = format!("{}.103", network.prefix());
    let room = Room::new();
    let ip = room.install(std::path::Path::new("/usr/sbin/ip"));
    let given = std::process::Command::new("setcap").arg("cap_net_admin+ep").arg(&ip).status().expect("run setcap");
    assert!(given.success(), "setcap; hint: apt-get install libcap2-bin");
    let scripts = room.directory("scripts");
    let script = |name: &str, text: String| {
        let path = scripts.join(name);
        room.file(&path, &text);
        format!("sh {}", path.display())
    };
    let up = script("up.sh", format!("exec {} addr replace {address}/32 dev eth0\n", ip.display()));
    let down = script("down.sh", format!("{} addr del {address}/32 dev eth0 || true\n", ip.display()));
    let role = script("role.sh", format!("case \"$2\" in primary) exec {up};; *) exec {down};; esac\n"));
    let etcd = Etcd::planned_at(&room, vec![network.place("e1")]);
    etcd.run(&room).await;
    let nodes = names.map(|name| {
        let node = Node::bare_at(&room, name, name, network.place(name));
        let mut config = node.default_config(&etcd.hosts());
        let lines = config["postgresql"]["pg_hba"].as_array_mut().expect("a list");
        lines.extend(["host all all 10.0.0.0/8 scram-sha-256", "host replication all 10.0.0.0/8 scram-sha-256"].map(|line| json!(line)));
        config["postgresql"]["callbacks"] = json!({"on_start": role, "on_role_change": role, "on_stop": down});
        node.configure(&room, &config);
        node
    });
    let cluster = Cluster::assembled(nodes.into(), etcd, room, false);
    for node in &cluster.nodes {
        cluster.start(node);
    }
    cluster.healthy().await;
    let on_leader_alone = async || {
        let leader = cluster.leader().await.name();
        wait::until("the address on the leader alone", PATIENCE, async || {
            let on: Vec<&str> =
                names.into_iter().filter(|name| network.addresses(name).iter().any(|(found, _)| *found == address)).collect();
            if on == [leader] { Ok(()) } else { Err(format!("{on:?}, {leader} leads")) }
        })
        .await;
    };
    on_leader_alone().await;
    cluster.cli_ok(&["switchover", "story", "--force"]).await;
    cluster.healthy().await;
    on_leader_alone().await;
    let leader = cluster.leader().await;
    leader.stop();
    leader.ended(PATIENCE).await;
    let left = network.addresses(leader.name());
    assert!(left.iter().all(|(found, _)| *found != address), "{left:?}");
}
