//! A running Patroni cluster is taken over node by node with `tenure adopt`, and given back with `tenure abandon`.

use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::node::{Config, Node};
use stories::programs;
use stories::room::Room;
use stories::takeover;
use stories::wait;
use stories::workload::Ledger;
use tokio::io::{AsyncBufReadExt, BufReader};

/// Three nodes of Patroni, and it.
struct Field {
    cluster: Cluster,
}

impl Field {
    async fn of_patroni(patroni: &Path, mode: Value, file: fn(&mut Config)) -> Field {
        let room = Room::new();
        let etcd = Etcd::start(&room).await;
        let hosts = etcd.hosts();
        let change = |config: &mut Config| {
            takeover::fit_for_patroni(config, &hosts);
            config["bootstrap"]["dcs"]["synchronous_mode"] = mode.clone();
            file(config);
        };
        let nodes: Vec<Node> = (1..=3).map(|number| Node::planned(&room, &format!("n{number}"), &hosts, change)).collect();
        let cluster = Cluster::assembled(nodes, etcd, room, mode != json!(false));
        for node in &cluster.nodes {
            node.start_patroni(&cluster.room, patroni);
        }
        cluster.healthy().await;
        Field { cluster }
    }

    /// `tenure VERB FILE` on this node, which has to succeed.
    async fn done(&self, node: &Node, verb: &[&str]) -> String {
        takeover::done(&self.cluster.room, node, verb).await
    }

    /// One that is killed as soon as it says this.
    async fn broken_off(&self, node: &Node, verb: &[&str], at: &str) {
        let mut command = tokio::process::Command::from(node.command(&self.cluster.room));
        let mut child = command.args(verb).arg(node.config_file()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("run tenure");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let said = async {
            while let Some(line) = lines.next_line().await.expect("read what it says") {
                if line.starts_with(at) {
                    return;
                }
            }
            panic!("{verb:?} on {} never said {at}", node.name());
        };
        tokio::time::timeout(Duration::from_secs(60), said).await.expect("it says so in time");
        child.kill().await.expect("kill it");
    }

    /// Nothing is lost, also in asynchronous mode: each change of leader was a planned one.
    async fn judged(&self, what: &str, ledger: &Ledger) {
        let verdict = self.cluster.verdict(ledger).await;
        println!("{what}: {}", verdict.summary);
        verdict.nothing_lost_or_doubled();
    }

    /// Standbys by name, then the leader.
    async fn in_order(&self) -> Vec<&Node> {
        let leader = self.cluster.leader().await;
        let mut order = self.cluster.others(leader);
        order.push(leader);
        order
    }

    /// Who runs each member, by name: `o` ours, `p` Patroni.
    async fn kinds(&self) -> String {
        let view = self.cluster.view().await.expect("read etcd");
        view.members().into_iter().map(|name| if view.member(name)["tenure"].is_object() { 'o' } else { 'p' }).collect()
    }
}

/// As an older published deployment has it: words that PostgreSQL and Patroni have left behind since, and everything by md5.
fn an_older_deployment(config: &mut Config) {
    let dynamic = &mut config["bootstrap"]["dcs"];
    dynamic["maximum_lag_on_failover"] = json!(1_048_576);
    dynamic["master_start_timeout"] = json!(300);
    dynamic["postgresql"]["parameters"] = json!({
        "wal_level": "hot_standby", "hot_standby": "on", "wal_keep_segments": 10, "checkpoint_segments": 32, "max_wal_senders": 5,
        "max_replication_slots": 5, "wal_log_hints": "on",
    });
    config["bootstrap"]["pg_hba"] = json!(["host replication replicator 127.0.0.1/32 md5", "host all all 0.0.0.0/0 md5"]);
    config["bootstrap"]["users"] = json!({"admin": {"password": "admin", "options": ["createrole", "createdb"]}});
    config["postgresql"]["pg_hba"] =
        json!(["local all all trust", "host replication replicator 127.0.0.1/32 md5", "host all all 0.0.0.0/0 md5"]);
    config["tags"] = json!({"nofailover": false, "noloadbalance": false, "clonefrom": false, "nosync": false});
}

/// What a file of today has is in every node of a story.
fn of_today(_: &mut Config) {}

/// `settings`: a question for each server once it is taken over, and what has to come.
async fn there_and_back(mode: Value, file: fn(&mut Config), settings: (&str, &str)) {
    let Some(patroni) = programs::patroni() else {
        println!("SKIPPED: no Patroni here; `make patroni` installs it");
        return;
    };
    let field = Field::of_patroni(&patroni, mode, file).await;
    let writer = field.cluster.writer().await;
    let order = field.in_order().await;
    let (first, leader) = (order[0], order[2]);

    // Nothing is changed by a look, and the leader is not the first.
    let looked = field.done(first, &["adopt", "--check"]).await;
    assert!(looked.contains("stop Patroni") && looked.contains("nothing was changed"), "{looked}");
    let words = takeover::refused(&field.cluster.room, leader, &["adopt"]).await;
    assert!(words.contains("the others come first"), "{words}");
    assert_eq!(field.kinds().await, "ppp");

    for (node, kinds) in order.iter().zip([1, 2, 3]) {
        field.done(node, &["adopt"]).await;
        assert_eq!(field.kinds().await.matches('o').count(), kinds);
        field.cluster.healthy().await;
    }
    let checked = field.cluster.cli_ok(&["check"]).await;
    println!("{checked}");
    for node in &order {
        assert_eq!(node.one(settings.0).await.expect("ask each server"), settings.1, "{}", node.name());
    }
    writer.goes_on(50, PATIENCE).await;
    field.judged("taken over", &writer.finish()).await;
    let writer = field.cluster.writer_on(field.cluster.targets().first_id(1_000_000)).await;

    for (node, kinds) in field.in_order().await.iter().zip([2, 1, 0]) {
        field.done(node, &["abandon"]).await;
        assert_eq!(field.kinds().await.matches('o').count(), kinds);
        wait::until("Patroni to have it", PATIENCE, async || {
            let view = field.cluster.view().await.map_err(|error| format!("{error:#}"))?;
            view.fault(3, false).map_or(Ok(()), Err)
        })
        .await;
    }
    writer.goes_on(50, PATIENCE).await;
    field.judged("given back", &writer.finish()).await;
}

#[tokio::test]
async fn a_takeover_that_breaks_off_anywhere_is_gone_on_with_or_undone() {
    let Some(patroni) = programs::patroni() else {
        println!("SKIPPED: no Patroni here; `make patroni` installs it");
        return;
    };
    let field = Field::of_patroni(&patroni, json!(false), of_today).await;
    let writer = field.cluster.writer().await;
    let order = field.in_order().await;
    let (first, second) = (order[0], order[1]);
    // Patroni is told to stop, and nobody waits for that; then it is gone and nothing is started; then nobody waits for what was started.
    field.broken_off(first, &["adopt"], "stopping").await;
    field.broken_off(first, &["adopt"], "starting").await;
    field.done(first, &["adopt"]).await;
    // The way back breaks off before Patroni is there, and is undone.
    field.broken_off(first, &["abandon"], "stopping").await;
    field.done(first, &["adopt"]).await;
    field.cluster.healthy().await;
    assert_eq!(field.kinds().await.matches('o').count(), 1);
    // The way there likewise.
    field.broken_off(second, &["adopt"], "stopping").await;
    field.done(second, &["abandon"]).await;
    assert_eq!(field.kinds().await.matches('o').count(), 1);
    field.cluster.healthy().await;
    writer.goes_on(50, PATIENCE).await;
    field.judged("broken off and gone on with", &writer.finish()).await;
}

#[tokio::test]
async fn an_asynchronous_patroni_cluster_of_an_older_deployment_is_taken_over_and_given_back() {
    let question =
        "SELECT concat_ws(' ', current_setting('wal_keep_size'), current_setting('max_wal_senders'), current_setting('wal_level'))";
    there_and_back(json!(false), an_older_deployment, (question, "160MB 5 replica")).await;
}

#[tokio::test]
async fn a_patroni_cluster_in_quorum_mode_is_taken_over_and_given_back() {
    there_and_back(json!("quorum"), of_today, ("SHOW wal_level", "replica")).await;
}

#[tokio::test]
async fn a_synchronous_patroni_cluster_is_taken_over_and_given_back() {
    there_and_back(json!(true), of_today, ("SHOW wal_level", "replica")).await;
}
