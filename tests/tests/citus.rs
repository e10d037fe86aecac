//! Citus, every group highly available: three coordinators and two worker groups of two on this machine.

use serde_json::json;
use std::time::{Duration, Instant};
use stories::bank::{self, Bank};
use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::wait::{self, seconds};

/// From a promotion until the coordinator's metadata says so; half a second is the aim, and this machine may be busy.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn one_start_brings_a_cluster_whose_metadata_is_right_and_follows_its_primaries() {
    if !citus::is_installed() {
        return;
    }
    let began = Instant::now();
    let cluster = CitusCluster::start(|_, _| ()).await;
    println!(
        "from seven empty directories to a Citus cluster with its metadata right on every primary: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let writer = cluster.writer().await;

    // A worker's primary dies as a process; its successor's address is in the metadata.
    let old = cluster.leader(1).await;
    old.kill();
    let new = cluster.leads_other_than(1, old).await;
    let address = format!("{}:{}", new.host(), new.port());
    wait::until("the new primary to serve", PATIENCE, async || {
        let view = cluster.view(1).await.map_err(|error| format!("{error:#}"))?;
        if view.member(new.name())["role"] == "primary" { Ok(()) } else { Err(view.to_string()) }
    })
    .await;
    let promoted = Instant::now();
    wait::until("the metadata to follow", FOLLOWS_WITHIN, async || match cluster.primary_in_metadata(1).await {
        Ok(at) if at == address => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    println!("the metadata followed a worker's promotion after {} ms", promoted.elapsed().as_millis());
    writer.goes_on(50, PATIENCE).await;
    old.start(&cluster.room);
    cluster.healthy().await;

    // The coordinator's primary dies; the next one goes on.
    let coordinator = cluster.leader(0).await;
    coordinator.kill();
    cluster.leads_other_than(0, coordinator).await;
    writer.goes_on(50, PATIENCE).await;
    coordinator.start(&cluster.room);
    cluster.healthy().await;
    let ledger = writer.finish();
    println!("a worker's and the coordinator's primary killed: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_doubled();
    assert!(
        !ledger.summary().contains("not currently allowed"),
        "a session of the new coordinator began as a standby's: {}",
        ledger.summary()
    );

    // Reads of a coordinator's standby go to standbys.
    let standby = cluster.groups[0].iter().find(|node| node.name() != coordinator.name());
    let standby = match standby {
        Some(node) if node.name() != cluster.leader(0).await.name() => node,
        _ => coordinator,
    };
    for (node, setting) in [(cluster.leader(0).await, "never"), (standby, "always")] {
        let client = citus::session(node).await.expect("a session");
        let found = stories::node::rows(&client, "SHOW citus.use_secondary_nodes").await.expect("a setting");
        assert_eq!(found, [[setting]], "{}", node.name());
    }
    let client = citus::session(standby).await.expect("a session");
    let count = stories::node::rows(&client, "SELECT count(*) > 0 FROM written").await.expect("a read through a standby");
    assert_eq!(count, [["t"]]);
}

#[tokio::test]
async fn a_planned_switchover_of_a_worker_makes_writers_wait_and_none_fail() {
    if !citus::is_installed() {
        return;
    }
    let cluster = CitusCluster::planned(1, &[2, 2], |_, _| ()).await;
    cluster.start_all();
    cluster.healthy().await;
    let writer = cluster.writer().await;
    let old = cluster.leader(2).await;
    let said = cluster.cli_of(old, &["switchover", "--force"]).await;
    assert!(said.status.success(), "{said:?}");
    cluster.leads_other_than(2, old).await;
    writer.goes_on(100, PATIENCE).await;
    let ledger = writer.finish();
    println!("switchover of worker group 2 under an insert every 10 ms through the coordinator: {}", ledger.summary());
    assert_eq!(ledger.refused().count() + ledger.unknown().count(), 0, "{}", ledger.summary());
    assert!(ledger.longest_pause() < seconds(5), "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    cluster.healthy().await;
}

#[tokio::test]
async fn a_bank_keeps_its_sum_and_every_acknowledged_transfer_when_primaries_are_killed() {
    if !citus::is_installed() {
        return;
    }
    let cluster = CitusCluster::planned(2, &[2, 2], |_, config| {
        config["bootstrap"]["dcs"]["synchronous_mode"] = json!(true);
        config["bootstrap"]["dcs"]["ttl"] = json!(3);
        config["bootstrap"]["dcs"]["loop_wait"] = json!(1);
        config["bootstrap"]["dcs"]["retry_timeout"] = json!(1);
    })
    .await;
    cluster.start_all();
    cluster.healthy().await;
    let bank = Bank::open(&cluster, 4).await;
    for groups in [&[1][..], &[0], &[0, 2]] {
        let mut killed = Vec::new();
        for group in groups {
            killed.push((*group, cluster.leader(*group).await));
        }
        killed.iter().for_each(|(_, node)| node.kill());
        for (group, node) in &killed {
            cluster.leads_other_than(*group, node).await;
        }
        bank.goes_on(20).await;
        killed.iter().for_each(|(_, node)| node.start(&cluster.room));
        cluster.healthy().await;
        bank.goes_on(20).await;
    }
    let told = bank.close().await;
    bank::judge(&cluster, &told).await;
}
