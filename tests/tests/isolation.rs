//! A leader set apart by each of four faults: one server acknowledges at a time, and none outside its lease.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;
use stories::cluster::PATIENCE;
use stories::isolation::{Fault, Outcome, Plan, network, planned, suffer};
use stories::wait::{self, seconds};

/// Eight seconds with a lease of three: long enough for another to lead and for the old one to come back to it.
async fn short(fault: Fault, synchronous: bool) -> Outcome {
    let outcome = suffer(&Plan { synchronous, ..Plan::of(fault, seconds(8), 3) }).await;
    assert_eq!(outcome.after_deadline, 0, "the old leader acknowledged after its deadline: {outcome:?}");
    assert_eq!(outcome.two_at_once, 0, "two servers acknowledged at once: {outcome:?}");
    outcome.verdict.nothing_doubled();
    if synchronous {
        outcome.verdict.nothing_lost_or_doubled();
    }
    outcome
}

/// Cuts need namespaces, and namespaces need root.
fn can_cut() -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root {
        println!("SKIPPED: cuts need root");
    }
    root
}

#[tokio::test]
async fn a_frozen_arbiter_changes_nothing() {
    let outcome = short(Fault::AgentFrozen, true).await;
    assert_eq!(outcome.old, outcome.last, "{outcome:?}");
}

#[tokio::test]
async fn a_frozen_node_without_synchronous_standbys_acknowledges_nothing_late() {
    let outcome = short(Fault::NodeFrozen, false).await;
    assert_ne!(outcome.old, outcome.last, "{outcome:?}");
}

#[tokio::test]
async fn a_leader_cut_from_etcd_stops_before_another_begins() {
    if can_cut() {
        let outcome = short(Fault::CutFromEtcd, false).await;
        assert_ne!(outcome.old, outcome.last, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_leader_cut_from_etcd_loses_nothing_with_a_synchronous_standby() {
    if can_cut() {
        short(Fault::CutFromEtcd, true).await;
    }
}

#[tokio::test]
async fn a_leader_cut_from_everything_stops_before_another_begins() {
    if can_cut() {
        let outcome = short(Fault::CutFromAll, false).await;
        assert_ne!(outcome.old, outcome.last, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_leader_cut_from_everything_loses_nothing_with_a_synchronous_standby() {
    if can_cut() {
        let outcome = short(Fault::CutFromAll, true).await;
        assert_ne!(outcome.old, outcome.last, "{outcome:?}");
    }
}

/// Both reach etcd. TCP's own next try comes up to 51 s after the cut began; until then the old walsender had the slot, and commits waited for it.
#[tokio::test]
async fn a_synchronous_standby_that_was_cut_from_the_leader_alone_holds_no_commit_up_for_as_long_again() {
    if !can_cut() {
        return;
    }
    let network = network().expect("make a network; hint: as root, with ip(8)");
    let plan = Plan { synchronous: true, ..Plan::of(Fault::CutFromOne, seconds(28), 20) };
    let cluster = planned(&plan, Some(&network)).await;
    cluster.start_all().await;
    let names = |view: &stories::view::View| view.synchronous().map(|(_, names)| names).unwrap_or_default();
    let view = cluster.wait_within(PATIENCE, "a synchronous standby", |view| !names(view).is_empty()).await;
    let (leader, standby) = (cluster.leader().await.name().to_owned(), names(&view)[0].clone());
    let writer = cluster.writer().await;
    writer.goes_on(30, PATIENCE).await;
    let way = [(&leader, &standby), (&standby, &leader)];
    way.iter().for_each(|(one, other)| network.cut(one, other));
    wait::lasting(plan.lasts).await;
    way.iter().for_each(|(one, other)| network.heal(one, other));
    let healed = Instant::now();
    writer.goes_on(1, seconds(90)).await;
    let after = healed.elapsed();
    writer.goes_on(30, PATIENCE).await;
    let ledger = writer.finish();
    println!(
        "the cut of {} s from {standby}: commits {} ms after it healed: {}",
        plan.lasts.as_secs(),
        after.as_millis(),
        ledger.summary()
    );
    assert_eq!(cluster.view().await.expect("a view").leader(), Some(leader.as_str()));
    assert!(after < seconds(12), "{after:?}");
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// The lease is not renewed by a member of etcd that led once: etcd 3.4.23 answers a keep-alive without asking anybody.
#[tokio::test]
async fn a_leader_alone_with_a_deposed_leader_of_etcd_is_not_renewed_by_it() {
    if can_cut() {
        let outcome = suffer(&Plan::of(Fault::HungWithEtcdsLeader, seconds(8), 10)).await;
        assert_ne!(outcome.old, outcome.last, "{outcome:?}");
        assert_eq!(outcome.two_at_once, 0, "two servers acknowledged at once: {outcome:?}");
        assert_eq!(outcome.after_deadline, 0, "the old leader acknowledged after its deadline: {outcome:?}");
        outcome.verdict.nothing_doubled();
    }
}
