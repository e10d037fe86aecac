//! A primary that lives, renews its lease and is of little use gives way to a standby that is better off, and to no other.

use rustix::process::geteuid;
use serde_json::json;
use std::time::{Duration, Instant};
use stories::cluster::{Cluster, PATIENCE, Plan};
use stories::etcd::Etcd;
use stories::flush::Flush;
use stories::node::Node;
use stories::room::Room;
use stories::storm::disk::Disk;
use stories::wait::{self, seconds};

/// Shorter times than the defaults, so that a story is short.
fn plan(mode: &str) -> Plan {
    let plan = Cluster::of(2).ttl(3).dynamic("sick_primary", json!(mode)).dynamic("sick_primary_after", json!(3));
    plan.dynamic("sick_primary_slow", json!(1)).dynamic("sick_primary_pause", json!(5))
}

/// Two nodes of which the first founds the cluster.
async fn started(plan: Plan, room: Room, change: impl FnOnce(&Room, Node) -> Node) -> Cluster {
    let etcd = Etcd::start(&room).await;
    let mut cluster = plan.planned_on(room, etcd, |config| config["postgresql"]["parameters"]["max_connections"] = json!(20));
    let first = cluster.nodes.remove(0);
    let file = std::fs::read_to_string(first.config_file()).expect("read the configuration");
    let first = change(&cluster.room, first);
    let mut config: serde_json::Value = serde_json::from_str(&file).expect("the configuration is JSON");
    config["postgresql"]["data_dir"] = json!(first.data_dir());
    first.configure(&cluster.room, &config);
    cluster.nodes.insert(0, first);
    cluster.start(&cluster.nodes[0]);
    cluster.healthy_members(1).await;
    cluster.start(&cluster.nodes[1]);
    cluster.healthy().await;
    cluster
}

/// What n1 says of itself comes to say this.
async fn says(cluster: &Cluster, part: &str) {
    let said = |view: &stories::view::View| view.json("members/n1")["tenure"]["sick"].as_str().is_some_and(|text| text.contains(part));
    cluster.wait_within(PATIENCE, part, said).await;
}

/// Another leads; how long that took.
async fn gave_way(cluster: &Cluster, began: Instant) -> Duration {
    cluster.wait_within(seconds(60), "another leader", |view| view.leads_other_than("n1")).await;
    began.elapsed()
}

#[tokio::test]
async fn a_primary_whose_disk_hangs_gives_way_by_force_and_nothing_is_lost() {
    if !geteuid().is_root() {
        return;
    }
    let room = Room::new();
    let disk = Disk::new(&room, "n1").expect("make a disk");
    let cluster = started(plan("act"), room, |_, node| node.with_data_in(disk.path())).await;
    let writer = cluster.writer().await;
    tokio::time::sleep(seconds(6)).await;
    let began = Instant::now();
    disk.freeze().expect("freeze the disk");
    println!("the disk hung: another leads after {} ms", gave_way(&cluster, began).await.as_millis());
    writer.goes_on(30, PATIENCE).await;
    cluster.nodes[0].logged(&["is sick", "gives way to n2 by force"], seconds(5)).await;
    disk.thaw().expect("thaw the disk");
    let ledger = writer.finish();
    println!("the disk hung: {}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_primary_that_flushes_slowly_says_what_it_would_do_and_then_switches_over() {
    let mut flush = None;
    let cluster = started(plan("observe"), Room::new(), |room, node| {
        let made = Flush::in_room(room);
        let node = node.with_environment(made.environment());
        flush = Some(made);
        node
    })
    .await;
    let flush = flush.expect("it was made");
    let writer = cluster.writer().await;
    tokio::time::sleep(seconds(6)).await;
    let began = Instant::now();
    flush.says("2000");
    says(&cluster, "would give way to n2 by a switchover").await;
    println!("slow flushes: recognised after {} ms", began.elapsed().as_millis());
    assert!(cluster.cli_ok(&["check"]).await.contains("it is sick: a flush of WAL takes"));
    assert!(cluster.cli_ok(&["list"]).await.contains("n1 is sick: a flush of WAL takes"));
    assert_eq!(cluster.view().await.expect("a view").leader(), Some("n1"), "it only observes");
    cluster.configure(&json!({"sick_primary": "act"})).await;
    let began = Instant::now();
    println!("slow flushes: another leads after {} ms", gave_way(&cluster, began).await.as_millis());
    writer.goes_on(30, PATIENCE).await;
    flush.says("0");
    let ledger = writer.finish();
    println!("slow flushes: {}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// PostgreSQL panics, recovers in place and panics again at the checkpoint after that, with a postmaster that lives all the while.
#[tokio::test]
async fn a_failed_flush_beside_a_healthy_synchronous_standby_costs_no_ttl() {
    let mut flush = None;
    let cluster = started(Cluster::of(2).ttl(20).dynamic("synchronous_mode", json!(true)), Room::new(), |room, node| {
        let made = Flush::in_room(room);
        let node = node.with_environment(made.environment());
        flush = Some(made);
        node
    })
    .await;
    let flush = flush.expect("it was made");
    let trusted = |view: &stories::view::View| view.json("sync")["sync_standby"].as_str().is_some_and(|names| names.contains("n2"));
    cluster.wait_within(PATIENCE, "n2 in the sync key", trusted).await;
    let writer = cluster.writer().await;
    writer.goes_on(30, PATIENCE).await;
    let began = Instant::now();
    flush.says("EIO");
    let after = gave_way(&cluster, began).await;
    println!("flushes fail: another leads after {} ms", after.as_millis());
    writer.goes_on(30, PATIENCE).await;
    // While the disk fails the recovery before its rewind fails too, and is tried again; once the disk is well nobody has to help.
    let old = cluster.node("n1");
    old.logged(&["the rewind failed as a disk does", "Input/output error", "tried again in 2 s"], PATIENCE).await;
    flush.says("0");
    let ledger = writer.finish();
    println!("flushes fail: {}", ledger.summary());
    // Its lease runs for 15 s at the least.
    assert!(after < seconds(12), "{after:?}");
    cluster.healthy().await;
    assert!(!old.log().contains("clone from"), "{}", old.log());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_primary_switches_over_before_its_disk_is_full() {
    if !geteuid().is_root() {
        return;
    }
    let room = Room::new();
    let disk = Disk::new(&room, "n1").expect("make a disk");
    let cluster = started(plan("act"), room, |_, node| node.with_data_in(disk.path())).await;
    let writer = cluster.writer().await;
    tokio::time::sleep(seconds(6)).await;
    assert!(disk.path().join("data/pg_wal/pgsql_tmp.tenure_reserve").exists(), "space is kept for a clean stop");
    let began = Instant::now();
    disk.fill(200 << 20).expect("fill the disk");
    println!("a disk almost full: another leads after {} ms", gave_way(&cluster, began).await.as_millis());
    writer.goes_on(30, PATIENCE).await;
    let ledger = writer.finish();
    println!("a disk almost full: {}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    // As little room as there is, it is not given the key again.
    let view = cluster.view().await.expect("a view");
    assert_eq!(view.leader(), Some("n2"));
}

#[tokio::test]
async fn a_switchover_away_from_a_full_disk_works_both_times() {
    if !geteuid().is_root() {
        println!("SKIPPED: a disk of a node's own needs root");
        return;
    }
    let room = Room::new();
    let disk = Disk::new(&room, "n1").expect("make a disk");
    let plan = Cluster::of(2).ttl(5).dynamic("sick_primary", json!("off"));
    let cluster = started(plan, room, |_, node| node.with_data_in(disk.path())).await;
    let reserve = disk.path().join("data/pg_wal/pgsql_tmp.tenure_reserve");
    let writer = cluster.writer().await;
    for round in 1..=2 {
        wait::until("the space for a clean stop", PATIENCE, async || if reserve.exists() { Ok(()) } else { Err("none") }).await;
        disk.fill(0).expect("fill the disk");
        let began = Instant::now();
        cluster.cli_ok(&["switchover", "story", "--leader", "n1", "--candidate", "n2", "--force"]).await;
        println!("round {round}, away from a full disk: {} ms", began.elapsed().as_millis());
        writer.goes_on(30, PATIENCE).await;
        assert_eq!(cluster.view().await.expect("a view").leader(), Some("n2"));
        disk.free();
        cluster.healthy().await;
        if round == 1 {
            cluster.cli_ok(&["switchover", "story", "--leader", "n2", "--candidate", "n1", "--force"]).await;
            cluster.healthy().await;
        }
    }
    let ledger = writer.finish();
    println!("a full disk, twice: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// Clients take all 20 slots, and one more tries again and again, as a pool does. A change of leader would end the writer's connection and
/// bring the others to the next leader.
#[tokio::test]
async fn a_primary_without_a_free_slot_stays_for_those_who_work_and_gives_way_where_nobody_does() {
    let cluster = started(plan("act"), Room::new(), |_, node| node).await;
    let writer = cluster.writer().await;
    tokio::time::sleep(seconds(6)).await;
    let mut held = Vec::new();
    let began = Instant::now();
    let trying = async {
        loop {
            match cluster.nodes[0].connect().await {
                Ok(client) => held.push(client),
                Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
    };
    let old = cluster.node("n1");
    let story = async {
        says(&cluster, "since all slots are taken; it keeps the leader key: those who hold its connections get their work done").await;
        println!("no free slot, and a writer: recognised after {} ms", began.elapsed().as_millis());
        tokio::time::sleep(seconds(10)).await;
        assert_eq!(cluster.view().await.expect("a view").leader(), Some("n1"), "{}", old.log());
        writer.goes_on(30, PATIENCE).await;
        let ledger = writer.finish();
        println!("no free slot, and a writer: {}", ledger.summary());
        let began = Instant::now();
        let took = gave_way(&cluster, began).await;
        println!("no free slot, and nobody works: another leads after {} ms", took.as_millis());
        ledger
    };
    let ledger = tokio::select! {
        () = trying => unreachable!("it goes on for ever"),
        ledger = story => ledger,
    };
    drop(held);
    old.logged(&["gives way to n2 by a switchover", "leadership handed over to n2"], seconds(5)).await;
    let log = old.log();
    println!("{}", log.lines().filter(|line| line.contains("leadership handed over")).collect::<String>());
    assert!(!log.contains("by force"), "{log}");
    // They work; they do not; it gives way, and what comes after that.
    assert!(log.matches("this node is sick: ").count() <= 3, "it is said once for each cause: {log}");
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}
