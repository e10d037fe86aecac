//! A leader that its voters have lost: they end its power to acknowledge and do not wait for its lease. A voter that has spoken does not receive from it again.

use serde_json::json;
use std::os::unix::fs::MetadataExt;
use stories::cluster::{Cluster, PATIENCE};
use stories::isolation::{Fault, Outcome, Plan, deposed_somebody, lose_to_one, suffer};
use stories::node::Node;
use stories::wait::{self, seconds};
use stories::{process, process::Signal};

async fn voting(ttl: u64) -> Cluster {
    let cluster = Cluster::of(3).ttl(ttl).dynamic("synchronous_mode", json!("quorum")).dynamic("deposition", json!("on")).start().await;
    cluster
        .wait_until("a sync key that names both standbys", |view| {
            view.synchronous().is_some_and(|(holder, names)| names.len() == 2 && Some(holder.as_str()) == view.leader())
        })
        .await;
    cluster
}

fn is_root() -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root {
        println!("SKIPPED: cuts need root");
    }
    root
}

/// The leader set apart, or the cluster's network cut, for so many seconds; its lease is three.
async fn apart(fault: Fault, lasts: u64) -> Option<Outcome> {
    if fault != Fault::NodeFrozen && !is_root() {
        return None;
    }
    let outcome = suffer(&Plan::of(fault, seconds(lasts), 3).with_deposition()).await;
    assert_eq!(outcome.two_at_once, 0, "two servers acknowledged at once: {outcome:?}");
    assert_eq!(outcome.after_deadline, 0, "the old leader acknowledged after its deadline: {outcome:?}");
    outcome.verdict.nothing_lost_or_doubled();
    Some(outcome)
}

fn is_deposed(outcome: &Outcome) {
    assert!(outcome.deposed && outcome.old != outcome.last, "nobody was deposed: {outcome:?}");
}

#[tokio::test]
async fn a_node_that_dies_whole_costs_no_lease() {
    let cluster = voting(10).await;
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    // A leader that was not heard for a TTL yet is not lost to anybody.
    wait::lasting(seconds(11)).await;
    old.kill();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("whole node killed, ttl 10, deposition: {}", ledger.summary());
    let view = cluster.healthy_members(2).await;
    assert!(view.leads_other_than(old.name()), "{view}");
    assert!(cluster.others(old).iter().any(|node| deposed_somebody(node)), "nobody was deposed");
    assert!(ledger.longest_pause() < seconds(5), "its lease was waited for: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_frozen_leader_is_deposed_and_acknowledges_nothing_when_it_thaws() {
    if let Some(outcome) = apart(Fault::NodeFrozen, 5).await {
        is_deposed(&outcome);
    }
}

#[tokio::test]
async fn a_leader_that_reaches_etcd_and_no_voter_is_deposed() {
    // It renews its lease all the while: without a deposition it would lead on, however long. On a machine that is busy the voters take seconds.
    if let Some(outcome) = apart(Fault::CutFromMembers, 15).await {
        is_deposed(&outcome);
    }
}

#[tokio::test]
async fn one_voters_ears_depose_nobody_whom_another_voter_hears() {
    if !is_root() {
        return;
    }
    let seen = lose_to_one(3, seconds(4)).await;
    assert!(!seen.deposed && seen.leaders[0].is_some() && seen.leaders[0] == seen.leaders[1], "{seen:?}");
    assert_eq!(seen.write, Ok(()), "the other voter confirms: {seen:?}");
}

/// What the leader sees of this standby, for so long: it does not stream.
async fn does_not_stream(leader: &Node, standby: &Node, what: &str) {
    let ask = format!("SELECT count(*) FROM pg_stat_replication WHERE application_name = '{}' AND state = 'streaming'", standby.name());
    wait::throughout(&format!("{} streams from nobody {what}", standby.name()), seconds(1), async || match leader.one(&ask).await {
        Ok(count) if count != "0" => Err("it streams from the leader that it deposed"),
        _ => Ok(()),
    })
    .await;
}

#[tokio::test]
async fn a_voter_that_is_bound_does_not_receive_again_until_its_word_is_called_off() {
    let cluster = voting(10).await;
    let leader = cluster.leader().await;
    let bound = cluster.others(leader)[0];
    let term = leader.one("SELECT term FROM tenure.lease()").await.expect("the term");
    let postmaster = bound.postmaster();
    // Without etcd nobody can call it off.
    cluster.etcd.freeze();
    let bond = format!(r#"{{"term":{term},"leader":"{}","timeline":1}}"#, leader.name());
    let file = bound.data_dir().join("pg_tenure.bond");
    std::fs::write(&file, bond).expect("write a bond");
    bound.end_receiver();
    does_not_stream(leader, bound, "after its receiver ended").await;
    process::signal(bound.lease_worker().expect("a lease worker"), Signal::KILL);
    wait::until("its server to be back", PATIENCE, async || match bound.one("SELECT pg_is_in_recovery()").await {
        Ok(seen) if seen == "t" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    does_not_stream(leader, bound, "after its server was restarted").await;
    assert_eq!(bound.postmaster(), postmaster, "its postmaster restarted it");
    let soon = "SELECT tenure_internal.promise((SELECT extract(epoch FROM now())::bigint))";
    assert_eq!(bound.one(soon).await.expect("ask for a promise"), "f", "who is bound promises nothing");
    cluster.etcd.thaw();
    wait::until("the bond to be called off", PATIENCE, async || if file.exists() { Err("it lies with the data") } else { Ok(()) }).await;
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    assert!(!cluster.nodes.iter().any(deposed_somebody), "nobody was deposed");
}
