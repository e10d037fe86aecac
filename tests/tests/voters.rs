//! Who has what: standbys that restart, standbys that are made, and who is given the key.

use serde_json::{Value, json};
use stories::cluster::{Cluster, PATIENCE, Plan};
use stories::node::Node;
use stories::view::View;
use stories::wait::{self, seconds};

fn of(count: usize, mode: &str) -> Plan {
    Cluster::of(count).ttl(3).dynamic("synchronous_mode", json!(mode))
}

/// Waits until the key names so many with this quorum, and its leader leads.
async fn key_has(cluster: &Cluster, count: usize, quorum: u64) -> View {
    cluster
        .wait_until(&format!("a sync key with {count} names and quorum {quorum}"), |view| {
            let (holder, names) = view.synchronous().unwrap_or_default();
            names.len() == count && view.json("sync")["quorum"] == json!(quorum) && Some(holder.as_str()) == view.leader()
        })
        .await
}

async fn configure(cluster: &Cluster, change: Value) {
    let answer = cluster.nodes[0].patch("/config", &change).await.expect("change the configuration");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// Replay takes its time: after a restart most of what is on disk is not replayed.
async fn replay_late(cluster: &Cluster, standbys: &[&Node]) {
    configure(cluster, json!({"postgresql": {"recovery_conf": {"recovery_min_apply_delay": "10s"}}})).await;
    for node in standbys {
        wait::until("the delay", PATIENCE, async || match node.one("SHOW recovery_min_apply_delay").await {
            Ok(seen) if seen == "10s" => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
        .await;
    }
}

#[tokio::test]
async fn a_voter_that_restarts_speaks_only_when_it_knows_all_that_it_confirmed() {
    let cluster = of(3, "quorum").start().await;
    key_has(&cluster, 2, 1).await;
    let old = cluster.leader().await;
    let (behind, ahead) = (cluster.others(old)[0], cluster.others(old)[1]);
    replay_late(&cluster, &[behind, ahead]).await;
    let writer = cluster.writer().await;
    writer.goes_on(50, PATIENCE).await;
    // Commits go on with one of the two alone, which is the only one to have them; then its Postgres crashes.
    behind.freeze();
    writer.goes_on(100, PATIENCE).await;
    behind.end_receiver();
    let before = ahead.postmaster();
    ahead.kill_postmaster();
    wait::until("its arbiter to start it again", PATIENCE, async || match (ahead.postmaster() != before, ahead.one("SELECT 1").await) {
        (true, Ok(_)) => Ok(()),
        (_, answer) => Err(format!("{answer:?}")),
    })
    .await;
    old.kill();
    behind.thaw();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("a voter restarted, then the leader's host died: {}", ledger.summary());
    let view = cluster.healthy_members(2).await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    assert_eq!(view.leader(), Some(ahead.name()), "{view}");
}

#[tokio::test]
async fn a_copy_that_is_being_made_is_no_standby_that_commits_wait_for() {
    let cluster = of(2, "on").planned().await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    // Some 30 MB.
    cluster.reconfigure(second, |config| config["postgresql"]["basebackup"] = json!([{"max-rate": "2M"}]));
    cluster.start(first);
    cluster.wait_until("a leader", |view| view.leader() == Some("n1")).await;
    let writer = cluster.writer().await;
    writer.goes_on(20, PATIENCE).await;
    cluster.start(second);
    second.logged(&["cloning from n1"], PATIENCE).await;
    writer.goes_on(200, seconds(20)).await;
    cluster.wait_until("the copy to be a synchronous standby", |view| view.synchronous().is_some_and(|(_, names)| names == ["n2"])).await;
    writer.goes_on(20, PATIENCE).await;
    let ledger = writer.finish();
    println!("a standby was made in synchronous mode: {}", ledger.summary());
    assert!(ledger.longest_pause() < seconds(5), "{}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}
