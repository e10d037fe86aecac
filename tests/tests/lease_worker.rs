//! The lease worker ends, dies, or its server does: the lease is found again under the node's own name.

use stories::cluster::{Cluster, PATIENCE};
use stories::node::{self, Node};
use stories::process::{self, Signal};
use stories::wait::{self, seconds};

/// The term that this server's page is open for.
async fn term(node: &Node) -> String {
    wait::until("an open page", PATIENCE, async || {
        let lease = node.query("SELECT term, fence FROM tenure.lease()").await.map_err(|error| format!("{error:#}"))?;
        match lease.first().map(Vec::as_slice) {
            Some([term, fence]) if fence == "open" && !term.is_empty() => Ok(term.clone()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Another lease worker than this runs.
async fn another_worker(node: &Node, than: process::Pid) {
    wait::until("another lease worker", PATIENCE, async || match node.lease_worker() {
        Some(pid) if pid != than => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_lease_worker_that_ends_takes_its_lease_up_again_and_commits_go_on() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let before = term(leader).await;
    let writer = cluster.writer().await;
    let worker = leader.lease_worker().expect("a lease worker");
    process::signal(worker, Signal::TERM);
    another_worker(leader, worker).await;
    // Longer than the lease: it is renewed again.
    wait::lasting(seconds(11)).await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("lease worker ended: {}", ledger.summary());
    assert_eq!(ledger.refused().count() + ledger.unknown().count(), 0, "{}", ledger.summary());
    assert_eq!(term(leader).await, before, "the same tenure");
    let view = cluster.healthy().await;
    assert_eq!((view.leader(), view.leader_timeline()), (Some(leader.name()), Some(1)), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_killed_lease_worker_and_a_killed_backend_cost_a_restart_of_postgres_and_no_leadership() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let (before, postmaster) = (term(leader).await, leader.postmaster());
    let writer = cluster.writer().await;
    let worker = leader.lease_worker().expect("a lease worker");
    process::signal(worker, Signal::KILL);
    another_worker(leader, worker).await;
    assert_eq!(term(leader).await, before, "the same tenure");
    writer.goes_on(50, PATIENCE).await;

    let worker = leader.lease_worker().expect("a lease worker");
    let session = leader.connect().await.expect("a session");
    let backend = node::rows(&session, "SELECT pg_backend_pid()").await.expect("ask")[0][0].parse().expect("a pid");
    process::signal(process::Pid::from_raw(backend).expect("a pid"), Signal::KILL);
    another_worker(leader, worker).await;
    assert_eq!(term(leader).await, before, "the same tenure");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("lease worker and backend killed: {}", ledger.summary());
    assert_eq!(leader.postmaster(), postmaster, "Postgres restarted itself");
    let view = cluster.healthy().await;
    assert_eq!((view.leader(), view.leader_timeline()), (Some(leader.name()), Some(1)), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}
