//! A Citus cluster: a coordinator group and worker groups, each a cluster of its own below the scope, on one etcd in one room.

use crate::cluster::PATIENCE;
use crate::etcd::Etcd;
use crate::node::{Config, Node, PASSWORD, SCOPE, rows};
use crate::programs;
use crate::room::Room;
use crate::verdict::Verdict;
use crate::view::View;
use crate::wait::{self, seconds};
use crate::workload::{Ledger, Targets, Writer};
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use tokio_postgres::{Client, NoTls};

/// The distributed database of every story.
pub const DATABASE: &str = "spread";

/// True where the PostgreSQL under test has Citus. Where it has not, this says so: a story that is skipped must be seen.
pub fn is_installed() -> bool {
    let ask = |what: &str| {
        let said = Command::new(programs::postgres_bin().join("pg_config")).arg(what).output().ok()?;
        Some(std::path::PathBuf::from(String::from_utf8(said.stdout).ok()?.trim()))
    };
    let there = ask("--pkglibdir").is_some_and(|directory| directory.join("citus.so").exists());
    if !there {
        println!("SKIPPED: this PostgreSQL has no Citus (citus.so), so nothing of this story was run");
    }
    there
}

/// The groups of a running Citus cluster.
pub struct CitusCluster {
    /// Group 0 is the coordinator's; `c1`, `c2`, ... in it, `w1a`, `w1b`, ... in group 1.
    pub groups: Vec<Vec<Node>>,
    /// Its etcd.
    pub etcd: Etcd,
    /// The directory of it all; dropped last, it ends whatever still runs.
    pub room: Room,
}

/// One row of `pg_dist_node`, without its id.
pub type DistNode = (u32, String, String);

impl CitusCluster {
    /// Plans so many coordinators, and a worker group of each of these sizes; `change` has the last word on the nodes' files.
    pub async fn planned(coordinators: usize, workers: &[usize], change: impl Fn(u32, &mut Config)) -> CitusCluster {
        let room = Room::new();
        let etcd = Etcd::start(&room).await;
        let hosts = etcd.hosts();
        let mut groups = Vec::new();
        for (group, count) in (0..).zip(std::iter::once(coordinators).chain(workers.iter().copied())) {
            let name = |number: usize| match group {
                0 => format!("c{}", number + 1),
                _ => format!("w{group}{}", char::from(b'a' + u8::try_from(number).expect("few nodes"))),
            };
            let node = |number| {
                Node::planned(&room, &name(number), &hosts, |config| {
                    config["citus"] = json!({"group": group, "database": DATABASE});
                    config["bootstrap"]["dcs"]["synchronous_mode"] = json!(false);
                    // One session of a client is one on each worker, and SSL between processes of one machine shows nothing.
                    config["postgresql"]["parameters"]["citus.node_conninfo"] = json!("sslmode=prefer");
                    config["postgresql"]["parameters"]["max_connections"] = json!(60);
                    change(group, config);
                })
            };
            groups.push((0..count).map(node).collect());
        }
        CitusCluster { groups, etcd, room }
    }

    /// Three coordinators and two worker groups of two, started, with their metadata right.
    pub async fn start(change: impl Fn(u32, &mut Config)) -> CitusCluster {
        let cluster = CitusCluster::planned(3, &[2, 2], change).await;
        cluster.start_all();
        cluster.healthy().await;
        cluster
    }

    /// Run by Patroni instead of our arbiters, from the same files: for comparisons.
    pub fn by_patroni(mut self, patroni: &Path) -> CitusCluster {
        let by_patroni = |nodes: Vec<Node>| nodes.into_iter().map(|node| node.by_patroni(patroni)).collect();
        self.groups = self.groups.into_iter().map(by_patroni).collect();
        self
    }

    /// Starts every arbiter.
    pub fn start_all(&self) {
        self.nodes().for_each(|node| node.start(&self.room));
    }

    /// Every node of every group.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.groups.iter().flatten()
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes().find(|node| node.name() == name).unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// What etcd has of a group.
    pub async fn view(&self, group: usize) -> Result<View> {
        self.etcd.keys(&format!("/service/{SCOPE}/{group}/")).await.map(View::new).context("read the group from etcd")
    }

    /// The node that leads a group, waited for.
    pub async fn leader(&self, group: usize) -> &Node {
        let name = wait::until("a leader", PATIENCE, async || {
            let view = self.view(group).await.map_err(|error| format!("{error:#}"))?;
            view.leader().map(str::to_owned).ok_or_else(|| view.to_string())
        });
        self.node(&name.await)
    }

    /// Waits until another than this node leads its group.
    pub async fn leads_other_than(&self, group: usize, old: &Node) -> &Node {
        let name = wait::until("another leader", PATIENCE, async || {
            let view = self.view(group).await.map_err(|error| format!("{error:#}"))?;
            view.leader().filter(|name| *name != old.name()).map(str::to_owned).ok_or_else(|| view.to_string())
        });
        self.node(&name.await)
    }

    /// Waits until every group is healthy with all of its nodes, and the metadata of the coordinator is what it should be.
    pub async fn healthy(&self) {
        for (group, nodes) in self.groups.iter().enumerate() {
            self.healthy_group(group, nodes.len()).await;
        }
        self.metadata_is_right(PATIENCE).await;
    }

    /// Waits until a group is healthy with so many members.
    pub async fn healthy_group(&self, group: usize, count: usize) {
        wait::until(&format!("a healthy group {group}"), PATIENCE, async || {
            let view = self.view(group).await.map_err(|error| format!("{error:#}"))?;
            // One that is to be synchronous can't replace its leader before it is trusted again.
            let synchronous = count > 1 && view.json("config")["synchronous_mode"] == json!(true);
            view.fault(count, synchronous).map_or(Ok(()), |fault| Err(format!("{fault} ({view})")))
        })
        .await;
    }

    /// What `pg_dist_node` is to hold by etcd: each group's leader as primary, its streaming standbys as secondaries.
    async fn wanted(&self) -> Result<Vec<DistNode>> {
        let mut wanted = Vec::new();
        for (group, nodes) in (0_u32..).zip(&self.groups) {
            let view = self.view(group as usize).await?;
            for node in nodes {
                let member = view.member(node.name());
                let role = if view.leader() == Some(node.name()) { "primary" } else { "secondary" };
                if member["state"] == "running" {
                    wanted.push((group, format!("{}:{}", node.host(), node.port()), role.to_owned()));
                }
            }
        }
        wanted.sort();
        Ok(wanted)
    }

    /// What `pg_dist_node` holds on a node.
    pub async fn metadata(&self, node: &Node) -> Result<Vec<DistNode>> {
        let client = session(node).await?;
        let found = rows(&client, "SELECT groupid, nodename || ':' || nodeport, noderole FROM pg_dist_node").await?;
        let row = |row: Vec<String>| match <[String; 3]>::try_from(row) {
            Ok([group, at, role]) => Ok((group.parse::<u32>()?, at, role)),
            Err(row) => Err(anyhow!("an odd row: {row:?}")),
        };
        let mut found: Vec<DistNode> = found.into_iter().map(row).collect::<Result<_>>()?;
        found.sort();
        Ok(found)
    }

    /// Waits until the coordinator's metadata is what etcd says, and every worker's primary has the same.
    pub async fn metadata_is_right(&self, bound: Duration) {
        wait::until("pg_dist_node to be right on every primary", bound, async || {
            let wanted = self.wanted().await.map_err(|error| format!("{error:#}"))?;
            for group in 0..self.groups.len() {
                let view = self.view(group).await.map_err(|error| format!("{error:#}"))?;
                let leader = self.node(view.leader().ok_or_else(|| view.to_string())?);
                let found = self.metadata(leader).await.map_err(|error| format!("{}: {error:#}", leader.name()))?;
                if found != wanted {
                    return Err(format!("{} has {found:?}, wanted {wanted:?}", leader.name()));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Waits until a coordinator's metadata has this group's leader as its primary.
    pub async fn metadata_names(&self, coordinator: &Node, group: u32) {
        wait::until("the metadata to name the leader", PATIENCE, async || {
            let leader = self.leader(group as usize).await;
            let row = (group, format!("{}:{}", leader.host(), leader.port()), "primary".to_owned());
            let found = self.metadata(coordinator).await.map_err(|error| format!("{error:#}"))?;
            if found.contains(&row) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }

    /// Where a group's primary is in the metadata of the coordinator's primary.
    pub async fn primary_in_metadata(&self, group: u32) -> Result<String> {
        let coordinator = self.leader(0).await;
        let found = self.metadata(coordinator).await?;
        let row = found.into_iter().find(|(of, _, role)| *of == group && role == "primary");
        row.map(|(_, at, _)| at).with_context(|| format!("no primary of group {group}"))
    }

    /// Runs SQL in the distributed database through the coordinator's primary.
    pub async fn query(&self, sql: &str) -> Result<Vec<Vec<String>>> {
        let client = session(self.leader(0).await).await?;
        rows(&client, sql).await
    }

    /// Runs `tenure -c <a node's file> ...`, at most a minute.
    pub async fn cli_of(&self, node: &Node, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(node.command(&self.room));
        command.arg("-c").arg(node.config_file()).args(arguments).kill_on_drop(true);
        let output = tokio::time::timeout(seconds(60), command.output()).await;
        output.unwrap_or_else(|_| panic!("`tenure {}` runs for a minute", arguments.join(" "))).expect("run tenure")
    }

    /// Starts `tenure -c <a node's file> ...`; it ends with what it returns.
    pub fn start_cli_of(&self, node: &Node, arguments: &[&str]) -> tokio::process::Child {
        let mut command = tokio::process::Command::from(node.command(&self.room));
        command.arg("-c").arg(node.config_file()).args(arguments).kill_on_drop(true);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("run tenure")
    }

    /// Waits until a group's keys have this one, or have it no more.
    pub async fn key_is(&self, group: usize, key: &str, there: bool) {
        let what = format!("group {group} {} {key}", if there { "with" } else { "without" });
        wait::until(&what, PATIENCE, async || {
            let path = format!("/service/{SCOPE}/{group}/{key}");
            let keys = self.etcd.keys(&path).await.map_err(|error| format!("{error:#}"))?;
            if keys.is_empty() == there { Err(format!("{keys:?}")) } else { Ok(()) }
        })
        .await;
    }

    /// Runs a command that has to succeed with the first coordinator's file; gives what it prints.
    pub async fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli_of(&self.groups[0][0], arguments).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`tenure {}`: {}\n{text}{said}", arguments.join(" "), output.status);
        text
    }

    /// `tenure list --format json`.
    pub async fn list(&self) -> Vec<Value> {
        let text = self.cli_ok(&["list", "--format", "json"]).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Makes a distributed table for writers.
    pub async fn make_written(&self) {
        wait::until("the writer's table", PATIENCE, async || {
            let client = session(self.leader(0).await).await.map_err(|error| format!("{error:#}"))?;
            let table = "CREATE TABLE written(id bigint, at timestamptz DEFAULT now()); SELECT create_distributed_table('written', 'id')";
            rows(&client, table).await.map(drop).map_err(|error| format!("{error:#}"))
        })
        .await;
    }

    /// Makes a distributed table and starts a writer through the coordinator; its rows go to all shards.
    pub async fn writer(&self) -> Writer {
        self.make_written().await;
        let writer = Writer::start(self.targets());
        writer.goes_on(50, PATIENCE).await;
        writer
    }

    /// Where clients write: any coordinator.
    pub fn targets(&self) -> Targets {
        let coordinators = self.groups[0].iter().map(|node| (node.host().to_owned(), node.port())).collect();
        Targets::at(coordinators).database(DATABASE)
    }

    /// What the cluster has of what the writer was told.
    pub async fn verdict(&self, ledger: &Ledger) -> Verdict {
        wait::until("the verdict", PATIENCE, async || {
            let found = self.query("SELECT id, count(*) FROM written GROUP BY id").await.map_err(|error| format!("{error:#}"))?;
            Verdict::of_rows(found, ledger).map_err(|error| format!("{error:#}"))
        })
        .await
    }
}

/// In this node's file: its group has another leader three seconds after the last one died.
pub fn fail_over_quickly(config: &mut Config) {
    let dynamic = &mut config["bootstrap"]["dcs"];
    dynamic["ttl"] = json!(3);
    dynamic["loop_wait"] = json!(1);
    dynamic["retry_timeout"] = json!(1);
}

/// A session of the superuser in the distributed database of a node.
pub async fn session(node: &Node) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host(node.host()).port(node.port()).user("postgres").password(PASSWORD).dbname(DATABASE).application_name("story");
    let (client, connection) = tokio::time::timeout(seconds(3), config.connect(NoTls))
        .await
        .map_err(|_| anyhow!("{}: no session within 3 s", node.name()))?
        .with_context(|| format!("connect to {}", node.name()))?;
    // Its errors reach the caller through the client.
    tokio::spawn(connection);
    Ok(client)
}
