//! etcd in trouble short of being away: elections, compaction, watches and endpoints that go silent. Nobody loses a lease.

use serde_json::json;
use std::time::{Duration, Instant};
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::{Etcd, Member};
use stories::place::Place;
use stories::process::{self, Signal};
use stories::room::Room;
use stories::wait::{self, seconds};
use stories::workload::Writer;

/// A `loop_wait` so long that only a watch can make a node quick, in seconds.
const LONG: u64 = 50;

/// Two nodes on an etcd of three members.
async fn on_three_members(ttl: u64, loop_wait: u64) -> Cluster {
    let room = Room::new();
    let etcd = Etcd::planned_at(&room, vec![Place::loopback(); 3]);
    etcd.run(&room).await;
    let cluster = Cluster::of(2).ttl(ttl).dynamic("loop_wait", json!(loop_wait)).planned_on(room, etcd, |_| ());
    cluster.start_all().await;
    cluster
}

async fn leader_of(etcd: &Etcd) -> &Member {
    wait::until("etcd to have a leader", PATIENCE, async || etcd.leader().await.ok_or("none")).await
}

/// The same node leads on the same timeline, and no client was told no.
async fn nobody_noticed(cluster: &Cluster, leader: &str, writer: Writer) {
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("{}", ledger.summary());
    assert_eq!(ledger.refused().count() + ledger.unknown().count(), 0, "{}", ledger.summary());
    let view = cluster.healthy().await;
    assert_eq!((view.leader(), view.leader_timeline()), (Some(leader), Some(1)), "no failover took place: {view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn etcds_leader_moves_and_dies_and_the_lease_is_kept() {
    let cluster = on_three_members(10, 2).await;
    let leader = cluster.leader().await.name().to_owned();
    let writer = cluster.writer().await;
    for _ in 0..2 {
        let old = leader_of(&cluster.etcd).await;
        cluster.etcd.move_leader(old).await.expect("move etcd's leader");
        writer.goes_on(50, PATIENCE).await;
    }
    let killed = leader_of(&cluster.etcd).await;
    killed.kill();
    // Longer than the lease: it was renewed with the member that is no more.
    wait::lasting(seconds(12)).await;
    cluster.etcd.spawn(&cluster.room);
    nobody_noticed(&cluster, &leader, writer).await;
}

#[tokio::test]
async fn the_first_endpoint_is_dead_and_another_is_silent() {
    let room = Room::new();
    let etcd = Etcd::planned_at(&room, vec![Place::loopback(); 3]);
    etcd.run(&room).await;
    // Nobody ever listens there: a member that was removed and still stands in the files.
    let dead = stories::ports::Port::free();
    let hosts = format!("{},{}", dead.address(), etcd.hosts());
    let plan = Cluster::of(2).ttl(10).dynamic("loop_wait", json!(5));
    let cluster = plan.planned_on(room, etcd, |config| config["etcd3"]["hosts"] = json!(hosts));
    cluster.start_all().await;
    let leader = cluster.leader().await.name().to_owned();
    let writer = cluster.writer().await;
    // The one that answers everybody, as it is the first that does.
    let frozen = &cluster.etcd.members()[0];
    frozen.freeze();
    wait::lasting(seconds(12)).await;
    let began = Instant::now();
    let listed = cluster.list().await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    println!("tenure list with a dead and a silent endpoint took {} ms", began.elapsed().as_millis());
    // A try at the dead one is refused at once, at the silent one bounded by 3 s; the rest is the machine's.
    assert!(began.elapsed() < seconds(20), "it took {:?}", began.elapsed());
    frozen.thaw();
    nobody_noticed(&cluster, &leader, writer).await;
}

#[tokio::test]
async fn a_watch_lost_in_silence_is_opened_elsewhere() {
    let cluster = on_three_members(60, LONG).await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    // Every watch hangs on the first member. Frozen, it keeps its connections open and says nothing.
    cluster.etcd.members()[0].freeze();
    wait::lasting(seconds(12)).await;
    let took = seen_after(&cluster, leader.name()).await;
    println!("a request was seen after {} ms", took.as_millis());
    assert!(took < seconds(5), "nobody watches: seen after {took:?}");
    cluster.etcd.members()[0].thaw();
    nobody_noticed(&cluster, leader.name(), writer).await;
}

#[tokio::test]
async fn a_watch_behind_a_compaction_begins_anew() {
    let cluster = on_three_members(60, LONG).await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    let arbiter = leader.arbiter_pid().expect("an arbiter");
    let worker = leader.lease_worker().expect("a lease worker");
    for pid in [arbiter, worker] {
        process::signal(pid, Signal::STOP);
    }
    let filler = "x".repeat(8_000);
    // More than etcd and the sockets hold for a watch that is not read.
    for number in 0..1500 {
        cluster.etcd.put(&format!("/service/story/tenure/filler{}", number % 7), &filler).await.expect("write");
    }
    cluster.etcd.compact().await.expect("compact");
    for pid in [arbiter, worker] {
        process::signal(pid, Signal::CONT);
    }
    let took = seen_after(&cluster, leader.name()).await;
    println!("a request was seen after {} ms", took.as_millis());
    assert!(took < seconds(5), "nobody watches: seen after {took:?}");
    nobody_noticed(&cluster, leader.name(), writer).await;
}

/// How long a change in etcd takes until the leader's arbiter has acted on it: its server has the new setting.
async fn seen_after(cluster: &Cluster, leader: &str) -> Duration {
    let node = cluster.node(leader);
    let mut config = cluster.view().await.expect("look into etcd").json("config");
    config["postgresql"]["parameters"]["work_mem"] = json!("7MB");
    cluster.etcd.put("/service/story/config", &config.to_string()).await.expect("write the configuration");
    let began = Instant::now();
    wait::until("the new setting", PATIENCE, async || match node.one("SHOW work_mem").await {
        Ok(value) if value == "7MB" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    began.elapsed()
}
