//! A copy of a node is another instance: its file on an empty host, its disk on another. Neither touches the original's keys.

use serde_json::{Value, json};
use std::process::Command;
use stories::alone::Alone;
use stories::cluster::{Cluster, PATIENCE};
use stories::node::{Config, Node, SCOPE};
use stories::wait::{self, seconds};
use stories::workload::{Targets, Writer};

/// A node with the original's file: name and addresses are the same, and it listens where a host of its own would let it.
fn copy_of(cluster: &Cluster, original: &Node, directory: &str) -> Node {
    let copy = Node::bare_in(&cluster.room, original.name(), directory);
    let text = std::fs::read_to_string(original.config_file()).expect("read the original's file");
    let file: Config = serde_json::from_str(&text).expect("it is JSON");
    let mut config = copy.default_config(&cluster.etcd.hosts());
    config["bootstrap"] = file["bootstrap"].clone();
    for section in ["restapi", "postgresql"] {
        config[section]["connect_address"] = file[section]["connect_address"].clone();
    }
    copy.configure(&cluster.room, &config);
    copy
}

async fn leadership(cluster: &Cluster) -> Value {
    let view = cluster.view().await.expect("etcd answers");
    json!([view.leader(), view.key("tenure/term")])
}

#[tokio::test]
async fn a_copied_file_on_an_empty_host_leaves_the_leaders_key_alone() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let term = leader.one("SELECT term FROM tenure.lease()").await.expect("its term");
    let writer = cluster.writer().await;
    let before = leadership(&cluster).await;
    let copy = copy_of(&cluster, leader, "copy");
    cluster.start(&copy);
    // Longer than the lease: it is not renewed by the copy either.
    wait::lasting(seconds(12)).await;
    assert_eq!(leadership(&cluster).await, before);
    assert_eq!(leader.one("SELECT term FROM tenure.lease()").await.expect("its term"), term, "the same tenure");
    writer.goes_on(50, PATIENCE).await;
    copy.logged(&[leader.name(), "in use by another instance"], PATIENCE).await;
    // Told to end, it gives nothing back that isn't its own.
    copy.stop();
    copy.ended(PATIENCE).await;
    wait::lasting(seconds(2)).await;
    assert_eq!(leadership(&cluster).await, before);
    let ledger = writer.finish();
    assert_eq!(ledger.refused().count() + ledger.unknown().count(), 0, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_copied_disk_never_acknowledges_beside_its_original() {
    let cluster = Cluster::of(1).start().await;
    let original = &cluster.nodes[0];
    original.query("CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())").await.expect("the writers' table");
    original.stop();
    original.ended(PATIENCE).await;
    let copy = copy_of(&cluster, original, "copy");
    let copied = Command::new("cp").arg("-a").arg(original.data_dir()).arg(copy.data_dir()).status().expect("run cp");
    assert!(copied.success(), "{copied}");
    cluster.start(original);
    cluster.healthy().await;
    let writer = cluster.writer().await;
    let witness = Writer::start(Targets::at(vec![(copy.host().to_owned(), copy.port())]).witness(1_000_000_000));
    cluster.start(&copy);
    wait::lasting(seconds(12)).await;
    writer.goes_on(50, PATIENCE).await;
    let (ledger, of_copy) = (writer.finish(), witness.finish());
    assert_eq!(of_copy.acknowledged().count(), 0, "the copy acknowledged: {}", of_copy.summary());
    copy.logged(&[original.name(), "in use by another instance"], PATIENCE).await;
    assert_eq!(ledger.refused().count() + ledger.unknown().count(), 0, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_lease_worker_leaves_a_name_alone_that_another_instance_took() {
    let alone = Alone::start(&[]).await;
    alone.fence_is("open").await;
    let (prefix, key) = (format!("/service/{SCOPE}/members/"), format!("/service/{SCOPE}/members/fenced"));
    let entry = async || alone.etcd.keys(&prefix).await.expect("etcd answers").remove("fenced");
    let mut taken: Value = serde_json::from_str(&entry().await.expect("its member key")).expect("it is JSON");
    assert!(taken["tenure"]["instance"].is_string(), "{taken}");
    taken["tenure"]["instance"] = json!("another boot");
    // As a copy may that comes while the original hangs.
    alone.let_the_deadline_pass().await;
    wait::until("the lease to run out", PATIENCE, async || entry().await.is_none().then_some(()).ok_or("its key is there")).await;
    alone.etcd.put(&key, &taken.to_string()).await.expect("write the member key");
    alone.thaw_worker().await;
    wait::lasting(seconds(3)).await;
    assert_eq!(entry().await, Some(taken.to_string()), "the other's key was touched");
    assert_ne!(alone.fence().await, "open");
}
