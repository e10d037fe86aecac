//! A cluster of nodes with its etcd in one room: made, looked at, waited for, and spoken to by the CLI.

use crate::etcd::Etcd;
use crate::http;
use crate::node::{Config, Node};
use crate::room::Room;
use crate::verdict::Verdict;
use crate::view::{self, View};
use crate::wait::{self, seconds};
use crate::workload::{Ledger, Targets, Writer};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::process::Output;
use std::time::Duration;

/// How long anything may take that is no measurement: the machine may be busy with another story.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What kind of cluster a story wants.
#[derive(Debug, Clone)]
pub struct Plan {
    count: usize,
    dynamic: Value,
}

/// A running cluster, or one that the story starts itself.
pub struct Cluster {
    /// Its nodes, `n1` first.
    pub nodes: Vec<Node>,
    /// Its etcd.
    pub etcd: Etcd,
    /// The directory of it all; dropped last, it ends whatever still runs.
    pub room: Room,
    synchronous: bool,
}

impl Plan {
    /// `ttl`, in seconds; 3 is the least.
    pub fn ttl(self, seconds: u64) -> Plan {
        self.dynamic("ttl", json!(seconds)).dynamic("loop_wait", json!(1)).dynamic("retry_timeout", json!(1))
    }

    /// `synchronous_mode`.
    pub fn synchronous(self, on: bool) -> Plan {
        self.dynamic("synchronous_mode", json!(on))
    }

    /// Any key of the dynamic configuration.
    pub fn dynamic(mut self, key: &str, value: Value) -> Plan {
        self.dynamic[key] = value;
        self
    }

    /// Starts etcd and plans the nodes; none of them runs yet.
    pub async fn planned(self) -> Cluster {
        let room = Room::new();
        let etcd = Etcd::start(&room).await;
        self.planned_on(room, etcd, |_| ())
    }

    /// Plans the nodes on an etcd of the story's own making; `change` has the last word on their files.
    pub fn planned_on(self, room: Room, etcd: Etcd, change: impl Fn(&mut Config)) -> Cluster {
        let change = |config: &mut Config| {
            for (key, value) in self.dynamic.as_object().into_iter().flatten() {
                config["bootstrap"]["dcs"][key] = value.clone();
            }
            change(config);
        };
        let hosts = etcd.hosts();
        let nodes = (1..=self.count).map(|number| Node::planned(&room, &format!("n{number}"), &hosts, change)).collect();
        let mode = &self.dynamic["synchronous_mode"];
        let synchronous = (*mode == true || *mode == "on" || *mode == "quorum") && self.count > 1;
        Cluster { nodes, etcd, room, synchronous }
    }

    /// Starts everything and waits until it is healthy.
    pub async fn start(self) -> Cluster {
        let cluster = self.planned().await;
        cluster.start_all().await;
        cluster
    }
}

impl Cluster {
    /// A plan for so many nodes.
    pub fn of(count: usize) -> Plan {
        Plan { count, dynamic: json!({}) }
    }

    /// Of parts that were planned one by one.
    pub fn assembled(nodes: Vec<Node>, etcd: Etcd, room: Room, synchronous: bool) -> Cluster {
        Cluster { nodes, etcd, room, synchronous }
    }

    /// Starts every arbiter and waits until the cluster is healthy.
    pub async fn start_all(&self) {
        for node in &self.nodes {
            node.start(&self.room);
        }
        self.healthy().await;
    }

    /// What etcd has now.
    pub async fn view(&self) -> Result<View> {
        let keys = self.etcd.keys(&view::prefix()).await;
        keys.map(View::new).context("read the cluster from etcd")
    }

    /// Waits until etcd shows what the story wants.
    pub async fn wait_until(&self, what: &str, wanted: impl Fn(&View) -> bool) -> View {
        self.wait_within(PATIENCE, what, wanted).await
    }

    /// The same with a bound of the story's own.
    pub async fn wait_within(&self, bound: Duration, what: &str, wanted: impl Fn(&View) -> bool) -> View {
        wait::until(what, bound, async || {
            let view = self.view().await.map_err(|error| format!("{error:#}"))?;
            if wanted(&view) { Ok(view) } else { Err(view.to_string()) }
        })
        .await
    }

    /// Waits until all members are there, one leads as primary and the others stream from it.
    pub async fn healthy(&self) -> View {
        self.healthy_members(self.nodes.len()).await
    }

    /// The same for fewer members, while some are down.
    pub async fn healthy_members(&self, count: usize) -> View {
        let synchronous = self.synchronous && count > 1;
        wait::until("a healthy cluster", PATIENCE, async || {
            let view = self.view().await.map_err(|error| format!("{error:#}"))?;
            match view.fault(count, synchronous) {
                None => Ok(view),
                Some(fault) => Err(format!("{fault} ({view})")),
            }
        })
        .await
    }

    /// The node that leads, waited for.
    pub async fn leader(&self) -> &Node {
        let view = self.wait_until("a leader", |view| view.leader().is_some()).await;
        self.node(view.leader().expect("it was just seen"))
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name() == name).unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// Every node but this one.
    pub fn others(&self, one: &Node) -> Vec<&Node> {
        self.nodes.iter().filter(|node| node.name() != one.name()).collect()
    }

    /// Changes a node's configuration file.
    pub fn reconfigure(&self, node: &Node, change: impl FnOnce(&mut Config)) {
        node.reconfigure(&self.room, change);
    }

    /// Starts a node's arbiter.
    pub fn start(&self, node: &Node) {
        node.start(&self.room);
    }

    /// Runs `tenure -c <first node's file> ...`, at most a minute.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        let first = &self.nodes[0];
        let mut command = tokio::process::Command::from(first.command(&self.room));
        command.arg("-c").arg(first.config_file()).args(arguments).kill_on_drop(true);
        tokio::time::timeout(seconds(60), command.output())
            .await
            .unwrap_or_else(|_| panic!("`tenure {}` runs for a minute", arguments.join(" ")))
            .expect("run tenure")
    }

    /// Runs a command that has to succeed; gives what it prints.
    pub async fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "`tenure {}`: {}\n{text}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// `tenure list --format json`.
    pub async fn list(&self) -> Vec<Value> {
        let text = self.cli_ok(&["list", "--format", "json"]).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Changes the dynamic configuration: PATCH, so null takes a key away.
    pub async fn configure(&self, change: &Value) {
        let leader = self.leader().await;
        let answer = http::request_to(leader.host(), leader.rest_port(), "PATCH", "/config", Some(&change.to_string())).await;
        let answer = answer.expect("PATCH /config");
        assert_eq!(answer.status, 200, "{change}: {answer:?}");
    }

    /// Where a client writes: all nodes, in order.
    pub fn targets(&self) -> Targets {
        Targets::at(self.nodes.iter().map(|node| (node.host().to_owned(), node.port())).collect())
    }

    /// Makes the table and starts the writer; returns once it has some commits acknowledged.
    pub async fn writer(&self) -> Writer {
        self.writer_on(self.targets()).await
    }

    /// The same with a client of the story's own patience.
    pub async fn writer_on(&self, targets: Targets) -> Writer {
        let leader = self.leader().await;
        wait::until("the writer's table", PATIENCE, async || {
            let made = leader.query("CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())");
            made.await.map_err(|error| format!("{error:#}"))
        })
        .await;
        let writer = Writer::start(targets);
        writer.goes_on(20, PATIENCE).await;
        writer
    }

    /// What the present primary has of what the writer was told.
    pub async fn verdict(&self, ledger: &Ledger) -> Verdict {
        wait::until("the verdict", PATIENCE, async || {
            let leader = self.leader().await;
            let verdict = Verdict::of(leader, ledger).await;
            verdict.map_err(|error| format!("{error:#}"))
        })
        .await
    }
}
