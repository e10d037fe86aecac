//! Where the noise is made: three nodes and three members of etcd, each in a network namespace of its own.

use crate::Wanted;
use anyhow::{Result, bail};
use stories::cluster::Cluster;
use stories::etcd::Etcd;
use stories::node::Node;
use stories::room::Room;
use stories::storm::delay::Delay;
use stories::storm::fault::ETCDS;
use stories::storm::network::Network;

/// The names of the nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The cluster, what it is connected by, and the means to make packets late.
pub struct Ground {
    pub cluster: Cluster,
    pub delay: Delay,
    pub network: Network,
}

impl Ground {
    /// Starts it all and waits until it is healthy.
    pub async fn settle(wanted: &Wanted) -> Result<Ground> {
        let network = Network::new(&[&NODES[..], &ETCDS[..]].concat())?;
        if !network.can_lose() {
            bail!("packets can't be lost here; hint: nftables with numgen");
        }
        let room = Room::new();
        let delay = Delay::in_room(&room)?;
        let etcd = Etcd::planned_at(&room, ETCDS.iter().map(|name| network.place(name)).collect());
        etcd.run(&room).await;
        let nodes = NODES.iter().map(|name| {
            let node = Node::bare_at(&room, name, name, network.place(name));
            let mut config = node.default_config(&etcd.hosts());
            let dynamic = &mut config["bootstrap"]["dcs"];
            dynamic["ttl"] = wanted.ttl.into();
            dynamic["synchronous_mode"] = "quorum".into();
            dynamic["deposition"] = if wanted.deposition { "on" } else { "off" }.into();
            dynamic["sick_primary"] = "observe".into();
            // Dirty buffers by the hundred megabytes, written all at once every half minute.
            let settings = [
                ("shared_buffers", "256MB"),
                ("checkpoint_timeout", "30s"),
                ("checkpoint_completion_target", "0.1"),
                ("max_wal_size", "512MB"),
                ("log_checkpoints", "on"),
                ("log_line_prefix", "%m [%p] %b "),
            ];
            for (name, value) in settings {
                config["postgresql"]["parameters"][name] = value.into();
            }
            if let Some(lines) = config["postgresql"]["pg_hba"].as_array_mut() {
                lines.push("host all all 10.0.0.0/8 scram-sha-256".into());
                lines.push("host replication all 10.0.0.0/8 scram-sha-256".into());
            }
            node.configure(&room, &config);
            node
        });
        let cluster = Cluster::assembled(nodes.collect(), etcd, room, true);
        cluster.start_all().await;
        Ok(Ground { cluster, delay, network })
    }
}
