//! A standby dies, freezes, comes back: writes go on.

use stories::cluster::{Cluster, PATIENCE};
use stories::wait::{self, seconds};

#[tokio::test]
async fn a_killed_standby_costs_nothing_and_comes_back() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let writer = cluster.writer().await;
    standby.kill();
    cluster.wait_until("its member key to run out", |view| view.members().len() == 2).await;
    cluster.start(standby);
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    let ledger = writer.finish();
    println!("standby killed and back: {}", ledger.summary());
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_standbys_killed_postmaster_is_started_again() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let before = standby.postmaster();
    standby.kill_postmaster();
    wait::until("another postmaster", PATIENCE, async || match standby.postmaster() {
        now if now.is_some() && now != before => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
}

#[tokio::test]
async fn when_the_synchronous_standby_dies_another_takes_its_place() {
    let cluster = Cluster::of(3).ttl(3).synchronous(true).start().await;
    let leader = cluster.leader().await;
    let (_, standbys) = cluster.healthy().await.synchronous().expect("a synchronous standby");
    let first = cluster.node(&standbys[0]);
    let writer = cluster.writer().await;
    first.kill();
    cluster
        .wait_until("another synchronous standby", |view| {
            view.synchronous().is_some_and(|(_, now)| !now.is_empty() && !now.iter().any(|name| name == first.name()))
        })
        .await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("synchronous standby killed: {}", ledger.summary());
    assert_eq!(cluster.leader().await.name(), leader.name());
    assert!(ledger.longest_pause() < seconds(8), "{}", ledger.summary());
    cluster.start(first);
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}
