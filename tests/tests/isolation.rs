//! A leader set apart by each of four faults: one server acknowledges at a time, and none outside its lease.

use std::os::unix::fs::MetadataExt;
use stories::isolation::{Fault, Outcome, Plan, suffer};
use stories::wait::seconds;

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
