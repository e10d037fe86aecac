//! A changed `ttl` moves a node's keys onto another lease; what becomes of it when the answer is lost.

use serde_json::json;
use std::time::Instant;
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::proxy::Proxy;
use stories::room::Room;
use stories::wait::{self, seconds};
use stories::workload::{Ledger, Targets, Writer};

#[tokio::test]
async fn a_changed_ttl_whose_answer_is_lost_never_makes_two_that_acknowledge() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let proxy = Proxy::before(etcd.hosts(), "moved to another lease");
    let through = proxy.address();
    let cluster = Cluster::of(3).ttl(10).planned_on(room, etcd, |config| {
        if config["name"] == "n1" {
            config["etcd3"]["hosts"] = json!(through);
        }
    });
    let first = &cluster.nodes[0];
    cluster.start(first);
    cluster.wait_until("n1 to lead", |view| view.leader() == Some("n1")).await;
    cluster.nodes[1..].iter().for_each(|node| cluster.start(node));
    cluster.healthy().await;
    first.query("CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())").await.expect("the writers' table");
    let witnesses: Vec<Writer> = (0..)
        .zip(&cluster.nodes)
        .map(|(number, node)| Writer::start(Targets::at(vec![(node.host().to_owned(), node.port())]).witness(number * 1_000_000_000 + 1)))
        .collect();
    witnesses[0].goes_on(100, PATIENCE).await;

    cluster.configure(&json!({"ttl": 5})).await;
    wait::until("the move to be sent", PATIENCE, async || proxy.swallows().then_some(()).ok_or("not yet")).await;
    let lost = Instant::now();
    wait::lasting(seconds(20)).await;
    proxy.heal();
    cluster.healthy().await;
    let last = cluster.leader().await;
    let at = cluster.nodes.iter().position(|node| node.name() == last.name()).expect("it is one of them");
    witnesses[at].goes_on(50, PATIENCE).await;
    let ledgers: Vec<Ledger> = witnesses.into_iter().map(Writer::finish).collect();
    let elsewhere = ledgers[1..].iter().filter_map(|ledger| ledger.acknowledged().next()).map(|one| one.known).min();
    let elsewhere = elsewhere.expect("another one led meanwhile");
    let both = ledgers[0].acknowledged().filter(|one| one.sent > elsewhere && one.known < lost + seconds(20)).count();
    println!("another acknowledged {:?} after the lost answer; after that n1 acknowledged {both}", elsewhere - lost);
    assert_eq!(both, 0, "n1 acknowledged {both} after another one had");
}
