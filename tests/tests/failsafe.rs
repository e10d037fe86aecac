//! failsafe_mode: etcd is away, and the leader goes on exactly as long as every member promises not to race.

use serde_json::json;
use std::time::Duration;
use stories::cluster::{Cluster, PATIENCE};
use stories::wait::{self, seconds};

#[tokio::test]
async fn with_failsafe_mode_commits_go_on_without_etcd_and_the_leader_stays() {
    let cluster = Cluster::of(3).ttl(3).dynamic("failsafe_mode", json!(true)).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    cluster.etcd.freeze();
    wait::lasting(seconds(12)).await;
    let answer = leader.get("/primary").await.expect("GET /primary");
    assert_eq!(answer.status, 200, "load balancers stay: {answer:?}");
    cluster.etcd.thaw();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("etcd frozen for four TTLs, failsafe_mode: {}", ledger.summary());
    // Commits go on through the whole time away; the lease that etcd forgot is taken anew at its return.
    assert!(ledger.longest_pause() < Duration::from_secs(2), "{}", ledger.summary());
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    assert_eq!(view.leader_timeline(), Some(1), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn with_failsafe_mode_one_member_that_does_not_promise_closes_the_fence() {
    let cluster = Cluster::of(3).ttl(3).dynamic("failsafe_mode", json!(true)).start().await;
    let leader = cluster.leader().await;
    leader.query("CREATE TABLE kept(n int)").await.expect("make a table");
    let silent = cluster.others(leader)[0];
    silent.freeze_arbiter();
    cluster.etcd.freeze();
    wait::until("writes to be refused", seconds(30), async || match leader.query("INSERT INTO kept VALUES (0)").await {
        Ok(_) => Err("a write went through".to_owned()),
        Err(error) if stories::node::sqlstate(&error).as_deref() == Some("25006") => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    })
    .await;
    silent.thaw_arbiter();
    cluster.etcd.thaw();
    wait::until("writes to go on", seconds(20), async || leader.query("INSERT INTO kept VALUES (1)").await).await;
    cluster.healthy().await;
}
