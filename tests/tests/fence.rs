//! No server acknowledges a commit outside its own grant, whatever is frozen or cut.

use std::time::Duration;
use stories::cluster::{Cluster, PATIENCE};
use stories::node::{self, Node, sqlstate};
use stories::wait::{self, seconds};
use tokio_postgres::Client;

/// Waits until a write here is refused as read-only, whether by the fence or because new sessions start so.
async fn refuses_writes(node: &Node, bound: Duration) {
    wait::until("writes to be refused", bound, async || match node.query("INSERT INTO kept VALUES (0)").await {
        Ok(_) => Err("a write went through".to_owned()),
        Err(error) if sqlstate(&error).as_deref() == Some("25006") => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    })
    .await;
}

/// A session that was there before the fault: it knows nothing of roles, and writes.
async fn old_session(node: &Node) -> Client {
    node.query("CREATE TABLE IF NOT EXISTS kept(n int)").await.expect("make a table");
    node.connect().await.expect("connect")
}

#[tokio::test]
async fn without_etcd_writes_are_refused_reads_go_on_and_afterwards_the_same_primary_goes_on() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let session = old_session(leader).await;
    cluster.etcd.freeze();
    refuses_writes(leader, seconds(30)).await;

    let read = node::rows(&session, "SELECT count(*) FROM kept").await;
    read.expect("reads go on in a session that was there before");
    leader.one("SELECT 1").await.expect("and in a new one");
    let refused = node::rows(&session, "INSERT INTO kept VALUES (1)").await;
    let refused = refused.expect_err("the old session writes past the deadline");
    assert_eq!(sqlstate(&refused).as_deref(), Some("25006"), "{refused:#}");
    assert!(format!("{refused:#}").contains(": etcd does not answer."), "who is refused is told why: {refused:#}");
    let refused = leader.query("INSERT INTO kept VALUES (1)").await.expect_err("a new session writes past the deadline");
    assert!(format!("{refused:#}").contains(": etcd does not answer."), "in a new session too: {refused:#}");
    let answer = leader.get("/primary").await.expect("GET /primary");
    assert_eq!(answer.status, 503, "{answer:?}");

    cluster.etcd.thaw();
    // Within a second on an idle machine; etcd itself needs an election's time after its freeze.
    wait::until("writes to go on", seconds(10), async || node::rows(&session, "INSERT INTO kept VALUES (2)").await).await;
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "no change of roles: {view}");
    assert_eq!(view.leader_timeline(), Some(1), "{view}");
}

#[tokio::test]
async fn etcd_killed_and_back_costs_only_the_time_it_was_away() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    cluster.etcd.kill();
    wait::lasting(seconds(6)).await;
    cluster.etcd.run(&cluster.room).await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("etcd killed for six seconds: {}", ledger.summary());
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    assert_eq!(view.leader_timeline(), Some(1), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_hiccup_of_etcd_shorter_than_the_lease_is_nobodys_error() {
    let cluster = Cluster::of(3).start().await;
    let writer = cluster.writer().await;
    cluster.etcd.freeze();
    wait::lasting(seconds(4)).await;
    cluster.etcd.thaw();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("etcd frozen for four of ten seconds: {}", ledger.summary());
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    assert!(ledger.longest_pause() < Duration::from_secs(1), "{}", ledger.summary());
}

#[tokio::test]
async fn a_node_frozen_past_its_lease_cannot_acknowledge_a_late_commit() {
    let cluster = Cluster::of(3).ttl(3).synchronous(true).start().await;
    let old = cluster.leader().await;
    let session = old_session(old).await;
    node::rows(&session, "BEGIN; INSERT INTO kept VALUES (7)").await.expect("begin a transaction");
    let writer = cluster.writer_on(cluster.targets().patience(seconds(2))).await;
    old.freeze();
    cluster.wait_until("another leader", |view| view.leads_other_than(old.name())).await;
    writer.goes_on(50, PATIENCE).await;
    old.thaw();
    let late = node::rows(&session, "COMMIT").await;
    let late = late.expect_err("a commit after the lease ran out was acknowledged");
    println!("the late commit was told: {late:#}");
    let view = cluster.healthy().await;
    assert!(view.leads_other_than(old.name()), "{view}");
    writer.goes_on(20, PATIENCE).await;
    let ledger = writer.finish();
    println!("node frozen past its lease: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    let kept = cluster.leader().await.one("SELECT count(*) FROM kept WHERE n = 7").await;
    assert_eq!(kept.expect("ask"), "0", "the late row is nowhere");
}

#[tokio::test]
async fn a_frozen_lease_worker_stops_commits_at_the_deadline() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let old = cluster.leader().await;
    let session = old_session(old).await;
    let writer = cluster.writer_on(cluster.targets().patience(seconds(2))).await;
    old.freeze_lease_worker();
    cluster.wait_until("another leader", |view| view.leads_other_than(old.name())).await;
    let late = node::rows(&session, "INSERT INTO kept VALUES (8)").await;
    late.expect_err("a commit after the lease ran out was acknowledged");
    writer.goes_on(50, PATIENCE).await;
    // The arbiter saw the change by itself; the server it stopped took the frozen worker along or waits for it.
    if old.lease_worker().is_some() {
        old.thaw_lease_worker();
    }
    cluster.healthy().await;
    let ledger = writer.finish();
    println!("lease worker frozen: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_doubled();
}
