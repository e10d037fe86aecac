//! A leader that keeps its lease and is of no use, and requests that nobody can serve.

use rustix::process::Signal;
use serde_json::json;
use stories::cluster::{Cluster, PATIENCE};
use stories::process;
use stories::wait::{self, seconds};

#[tokio::test]
async fn a_request_that_cant_be_served_is_taken_back() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    standby.stop();
    standby.ended(PATIENCE).await;
    cluster.wait_until("its key to go", |view| view.members().len() == 1).await;
    let request = json!({"leader": leader.name(), "member": standby.name()});
    cluster.etcd.put(&format!("{}failover", stories::view::prefix()), &request.to_string()).await.expect("put the request");
    cluster.wait_within(seconds(30), "the request to be taken back", |view| view.json("failover")["member"].is_null()).await;
    leader.logged(&["the request for another leader was taken back", standby.name()], seconds(5)).await;
    // Nobody remembers it when it could be served.
    cluster.start(standby);
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
}

#[tokio::test]
async fn a_postmaster_that_is_frozen_alone_costs_the_leadership() {
    let cluster = Cluster::of(2).ttl(3).synchronous(true).start().await;
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    writer.goes_on(30, PATIENCE).await;
    process::signal(old.postmaster().expect("a postmaster"), Signal::STOP);
    cluster.wait_within(seconds(25), "another leader", |view| view.leads_other_than(old.name())).await;
    writer.goes_on(30, PATIENCE).await;
    let ledger = writer.finish();
    println!("the postmaster alone was frozen: {}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_leader_whose_server_does_not_start_leaves_the_key_to_another() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let old = cluster.leader().await;
    let base = old.data_dir().join("postgresql.base.conf");
    let before = std::fs::read_to_string(&base).expect("read");
    // As with a full disk: what ends a start is not there by itself to pass.
    std::fs::write(&base, format!("{before}\nnonsense = 1\n")).expect("write");
    let began = std::time::Instant::now();
    old.kill_postmaster();
    cluster.wait_within(seconds(40), "another leader", |view| view.leads_other_than(old.name())).await;
    println!("a server that does not start: another leads after {} ms", began.elapsed().as_millis());
    old.logged(&["does not start", "could lead"], seconds(5)).await;
    std::fs::write(&base, before).expect("write");
    cluster.healthy().await;
}

#[tokio::test]
async fn a_switchover_to_a_silent_standby_stops_nothing() {
    let cluster = Cluster::of(2).ttl(10).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let writer = cluster.writer().await;
    writer.goes_on(20, PATIENCE).await;
    let postmaster = leader.postmaster();
    standby.freeze();
    let request = json!({"leader": leader.name(), "member": standby.name()});
    cluster.etcd.put(&format!("{}failover", stories::view::prefix()), &request.to_string()).await.expect("put the request");
    cluster.wait_within(seconds(20), "the request to be taken back", |view| view.json("failover")["member"].is_null()).await;
    assert_eq!(leader.postmaster(), postmaster, "it was not stopped");
    writer.goes_on(20, PATIENCE).await;
    standby.thaw();
    let ledger = writer.finish();
    println!("a switchover to a silent standby: {}", ledger.summary());
    wait::until("what was said", seconds(5), async || {
        if leader.log().contains("none of the candidates answers") { Ok(()) } else { Err("nothing was said") }
    })
    .await;
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}
