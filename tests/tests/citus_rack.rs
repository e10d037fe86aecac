//! Citus in a rack with virtual addresses, as an older published deployment has it, with settings in place of its scripts: the coordinator's
//! address for writes and one for reads, a pair for each worker group that stands in `pg_dist_node`, and reads from standbys all the way down.

use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;
use stories::citus::{self, CitusCluster, DATABASE, DistNode};
use stories::cluster::PATIENCE;
use stories::etcd::Etcd;
use stories::node::{Node, PASSWORD, connect_in, rows};
use stories::room::Room;
use stories::storm::network::Network;
use stories::wait::{self, seconds};
use stories::workload::{Targets, Writer};

const NAMES: [[&str; 2]; 2] = [["c1", "c2"], ["w1a", "w1b"]];

struct Rack {
    cluster: CitusCluster,
    network: Network,
}

impl Rack {
    /// Two coordinators and a worker group of two; None where this machine can't, which is said.
    async fn start() -> Option<Rack> {
        if !citus::is_installed() {
            return None;
        }
        if !std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            println!("SKIPPED: network namespaces need root");
            return None;
        }
        let network = Network::new(&["c1", "c2", "w1a", "w1b", "e1"]).expect("make a network; hint: as root, with ip(8)");
        let room = Room::new();
        let etcd = Etcd::planned_at(&room, vec![network.place("e1")]);
        etcd.run(&room).await;
        let groups = (0..2).map(|group| {
            let first = Node::bare_at(&room, NAMES[group][0], NAMES[group][0], network.place(NAMES[group][0]));
            let second = Node::bare_at(&room, NAMES[group][1], NAMES[group][1], network.place(NAMES[group][1])).on_the_port_of(&first);
            let nodes = vec![first, second];
            for node in &nodes {
                let mut config = node.default_config(&etcd.hosts());
                citus::fail_over_quickly(&mut config);
                config["citus"] = json!({"group": group, "database": DATABASE});
                config["bootstrap"]["dcs"]["synchronous_mode"] = json!(false);
                config["bootstrap"]["dcs"]["citus"] =
                    json!({"primary_address": at(&network, group, 1, node), "standby_address": at(&network, group, 2, node)});
                config["postgresql"]["listen"] = json!(format!("*:{}", node.port()));
                config["postgresql"]["parameters"]["citus.node_conninfo"] = json!("sslmode=prefer");
                config["postgresql"]["parameters"]["max_connections"] = json!(60);
                let lines = config["postgresql"]["pg_hba"].as_array_mut().expect("a list");
                let more = ["host all all 10.0.0.0/8 scram-sha-256", "host replication all 10.0.0.0/8 scram-sha-256"];
                lines.extend(more.map(|line| json!(line)));
                let (primary, replica) = (host(&network, group, 1), host(&network, group, 2));
                config["vip"] = json!({"primary": [primary], "replica": [replica], "interface": "eth0"});
                node.configure(&room, &config);
            }
            nodes
        });
        let cluster = CitusCluster { groups: groups.collect(), etcd, room };
        cluster.start_all();
        let rack = Rack { cluster, network };
        rack.healthy().await;
        Some(rack)
    }

    async fn healthy(&self) {
        for group in 0..2 {
            self.cluster.healthy_group(group, 2).await;
        }
        for (group, names) in NAMES.iter().enumerate() {
            let leader = self.cluster.leader(group).await.name();
            for (which, leads) in [(1, true), (2, false)] {
                let address = host(&self.network, group, which);
                wait::until(&format!("{address} where it belongs"), PATIENCE, async || {
                    let on: Vec<&str> = NAMES.into_iter().flatten().filter(|name| self.has(name, &address)).collect();
                    let right = on.len() == 1 && names.contains(&on[0]) && (on[0] == leader) == leads;
                    if right { Ok(()) } else { Err(format!("on {on:?}, {leader} leads")) }
                })
                .await;
            }
        }
        self.rows_are_addresses().await;
    }

    fn has(&self, name: &str, address: &str) -> bool {
        self.network.addresses(name).iter().any(|(found, _)| found == address)
    }

    /// On every node the four rows, whichever node leads where.
    async fn rows_are_addresses(&self) {
        let row = |group: usize, which: u8, role: &str| -> DistNode {
            let address = at(&self.network, group, which, &self.cluster.groups[group][0]);
            (u32::try_from(group).expect("a group"), address, role.to_owned())
        };
        let mut wanted: Vec<DistNode> = (0..2).flat_map(|group| [row(group, 1, "primary"), row(group, 2, "secondary")]).collect();
        wanted.sort();
        for node in self.cluster.nodes() {
            wait::until("the addresses in pg_dist_node", PATIENCE, async || match self.cluster.metadata(node).await {
                Ok(found) if found == wanted => Ok(()),
                seen => Err(format!("{}: {seen:?}, wanted {wanted:?}", node.name())),
            })
            .await;
        }
    }

    /// A new session by a virtual address of the coordinators.
    async fn ask(&self, which: u8, sql: &str) -> Result<Vec<Vec<String>>, String> {
        let port = self.cluster.groups[0][0].port();
        let session = connect_in(DATABASE, &host(&self.network, 0, which), port, "postgres", PASSWORD, seconds(3)).await;
        let session = session.map_err(|error| format!("{error:#}"))?;
        rows(&session, sql).await.map_err(|error| format!("{error:#}"))
    }

    /// By the address for reads one meets a coordinator's standby, whose questions go to a worker's standby and not to its primary.
    async fn reads_go_to_standbys(&self) {
        const WHAT: &str = "SELECT pg_is_in_recovery(), current_setting('citus.use_secondary_nodes')";
        wait::until("reads by the address for reads", PATIENCE, async || {
            let found = self.ask(2, &format!("{WHAT}; SELECT count(*) > 0 FROM written")).await?;
            if found == [vec!["t", "always"], vec!["t"]] { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        assert_eq!(self.ask(1, WHAT).await.expect("a session by the address for writes"), [["f", "never"]]);
        let leader = self.cluster.leader(1).await;
        let standby = self.cluster.groups[1].iter().find(|node| node.name() != leader.name()).expect("a standby");
        // The question says how its own servers are called, and each shard says where it is answered.
        let asked = self.ask(2, "SELECT DISTINCT host(server) FROM (SELECT inet_server_addr() AS server, id FROM written) AS w").await;
        let asked = asked.expect("where the shards are read");
        let standbys = host(&self.network, 1, 2);
        assert!(asked == [[standbys.clone()]], "{asked:?} and not {standbys}; {} is the standby", standby.name());
    }
}

/// A group's virtual address: 1 for writes, 2 for reads.
fn host(network: &Network, group: usize, which: u8) -> String {
    format!("{}.{}{which}", network.prefix(), 10 + group)
}

fn at(network: &Network, group: usize, which: u8, node: &Node) -> String {
    format!("{}:{}", host(network, group, which), node.port())
}

#[tokio::test]
async fn addresses_of_every_group_stand_in_the_metadata_and_follow_through_switchover_and_death() {
    let Some(rack) = Rack::start().await else { return };
    let cluster = &rack.cluster;
    cluster.make_written().await;
    let by_address = vec![(host(&rack.network, 0, 1), cluster.groups[0][0].port())];
    // It waits for as long as a change may take on a busy machine.
    let writer = Writer::start(Targets::at(by_address).database(DATABASE).patience(seconds(30)));
    writer.goes_on(50, PATIENCE).await;
    rack.reads_go_to_standbys().await;

    // A worker, on purpose: who writes by the coordinator's address waits, and sees no error.
    let old = cluster.leader(1).await;
    let said = cluster.cli_of(old, &["switchover", "--group", "1", "--force"]).await;
    assert!(said.status.success(), "{said:?}");
    cluster.leads_other_than(1, old).await;
    writer.goes_on(50, PATIENCE).await;
    let planned = writer.finish();
    println!("switchover of the worker group: {}", planned.summary());
    assert_eq!(planned.refused().count() + planned.unknown().count(), 0, "{}", planned.summary());
    rack.healthy().await;
    rack.reads_go_to_standbys().await;

    // The coordinator, on purpose; then a worker dies.
    let by_address = vec![(host(&rack.network, 0, 1), cluster.groups[0][0].port())];
    let writer = Writer::start(Targets::at(by_address).database(DATABASE).first_id(1_000_000).patience(seconds(3)));
    writer.goes_on(50, PATIENCE).await;
    let old = cluster.leader(0).await;
    let said = cluster.cli_of(old, &["switchover", "--group", "0", "--force"]).await;
    assert!(said.status.success(), "{said:?}");
    cluster.leads_other_than(0, old).await;
    writer.goes_on(50, PATIENCE).await;
    rack.healthy().await;
    rack.reads_go_to_standbys().await;
    let dies = cluster.leader(1).await;
    let began = Instant::now();
    dies.kill();
    cluster.leads_other_than(1, dies).await;
    writer.goes_on(50, PATIENCE).await;
    println!("the worker's primary killed: 50 more rows after {} ms", began.elapsed().as_millis());
    dies.start(&cluster.room);
    rack.healthy().await;
    rack.reads_go_to_standbys().await;
    let ledger = writer.finish();
    println!("switchover of the coordinator, death of a worker: {}", ledger.summary());
    // The worker died without a synchronous standby.
    cluster.verdict(&ledger).await.nothing_doubled();
    cluster.verdict(&planned).await.nothing_lost_or_doubled();
}
