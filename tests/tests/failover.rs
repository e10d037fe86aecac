//! Something dies unasked.

use rustix::process::Signal;
use std::time::{Duration, Instant};
use stories::cluster::{Cluster, PATIENCE};
use stories::process;
use stories::wait::{self, seconds};

#[tokio::test]
async fn a_killed_postmaster_without_synchronous_standby_is_restarted_in_place() {
    let cluster = Cluster::of(3).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    leader.kill_postmaster();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("postmaster killed, asynchronous: {}", ledger.summary());
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "the same one leads: {view}");
    assert_eq!(view.leader_timeline(), Some(1), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    assert!(ledger.longest_pause() < seconds(8), "{}", ledger.summary());
}

#[tokio::test]
async fn a_killed_postmaster_with_a_synchronous_standby_gives_the_key_away_at_once() {
    let cluster = Cluster::of(3).synchronous(true).start().await;
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    old.kill_postmaster();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("postmaster killed, synchronous: {}", ledger.summary());
    let view = cluster.healthy().await;
    assert!(view.leads_other_than(old.name()), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    assert!(ledger.longest_pause() < seconds(4), "{}", ledger.summary());
}

#[tokio::test]
async fn a_killed_node_is_followed_by_another_within_the_ttl_and_comes_back() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    old.kill();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("node killed, asynchronous: {}", ledger.summary());
    // TTL + 1 s is the aim on an idle machine; here another story may run beside us.
    assert!(ledger.longest_pause() < seconds(7), "{}", ledger.summary());
    let view = cluster.healthy_members(2).await;
    assert!(view.leads_other_than(old.name()), "{view}");
    cluster.start(old);
    let view = cluster.healthy().await;
    assert!(view.leads_other_than(old.name()), "{view}");
    cluster.verdict(&ledger).await.nothing_doubled();
}

#[tokio::test]
async fn with_synchronous_mode_a_killed_node_loses_nothing_that_was_acknowledged() {
    let cluster = Cluster::of(3).ttl(3).synchronous(true).start().await;
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    old.kill();
    writer.goes_on(50, PATIENCE).await;
    cluster.start(old);
    let view = cluster.healthy().await;
    assert!(view.leads_other_than(old.name()), "{view}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("node killed, synchronous: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_node_with_writes_of_its_own_past_the_fork_is_rewound() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let old = cluster.leader().await;
    let other = cluster.others(old)[0];
    old.query("CREATE TABLE t(n int)").await.expect("write");
    // The standby stops receiving, then the primary writes what nobody else will have, within the lag allowed.
    other.freeze();
    for n in 0..20 {
        old.query(&format!("INSERT INTO t VALUES ({n})")).await.expect("write while the standby is silent");
    }
    old.kill();
    other.thaw();
    cluster.wait_until("the other to lead", |view| view.leader() == Some(other.name())).await;
    cluster.healthy_members(1).await;
    let logged = old.log();
    cluster.start(old);
    cluster.healthy().await;
    // What was rewound once has the new history: judging it by the old timeline would rewind it for ever.
    wait::throughout("a healthy cluster after the rewind", seconds(4), async || {
        let view = cluster.view().await.map_err(|error| format!("{error:#}"))?;
        view.fault(2, false).map_or(Ok(()), Err)
    })
    .await;
    let rewinds = old.log_since(&logged).matches("rewinding to").count();
    assert_eq!(rewinds, 1, "{}", old.log_since(&logged));
    assert_eq!(
        old.one("SELECT count(*) FROM t").await.expect("ask"),
        other.one("SELECT count(*) FROM t").await.expect("ask"),
        "both have the same rows again"
    );
}

/// A crash of one process, and a recovery that outlasts the lease: the startup process is stopped for twice the TTL.
#[tokio::test]
async fn a_crash_recovery_longer_than_the_lease_costs_an_asynchronous_leader_neither_its_key_nor_commits() {
    const TTL: u64 = 3;
    let cluster = Cluster::of(2).ttl(TTL).start().await;
    let leader = cluster.leader().await;
    let term = leader.one("SELECT term FROM tenure.lease()").await.expect("ask for the term");
    let writer = cluster.writer().await;
    let postmaster = leader.postmaster().expect("a postmaster");
    let of_title = |word: &str| process::below(&leader.data_dir()).into_iter().find(|pid| process::title(*pid).contains(word));
    let checkpointer = of_title("checkpointer").expect("a checkpointer");
    // Nothing begins before we look for it.
    process::signal(postmaster, Signal::STOP);
    process::signal(checkpointer, Signal::KILL);
    process::signal(postmaster, Signal::CONT);
    let began = Instant::now();
    let startup = loop {
        match of_title("startup") {
            Some(pid) => break pid,
            None => assert!(began.elapsed() < PATIENCE, "Postgres does not recover"),
        }
    };
    process::signal(startup, Signal::STOP);
    tokio::time::sleep(seconds(2 * TTL)).await;
    let view = cluster.view().await.expect("etcd answers");
    process::signal(startup, Signal::CONT);
    assert_eq!(view.leader(), Some(leader.name()), "after twice the TTL in recovery: {view}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("crash recovery of {} s: {}", 2 * TTL, ledger.summary());
    assert_eq!(leader.one("SELECT term FROM tenure.lease()").await.expect("ask for the term"), term);
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_backend_that_is_killed_takes_only_a_moment_of_writing() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    let pid: i32 =
        leader.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").await.expect("ask").parse().expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    stories::process::signal(pid, rustix::process::Signal::KILL);
    // Postgres restarts everything by itself; the fence is closed until the lease is adopted again.
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("a process of Postgres killed: {}", ledger.summary());
    assert_eq!(cluster.leader().await.name(), leader.name());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    assert!(ledger.longest_pause() < Duration::from_secs(8), "{}", ledger.summary());
}
