//! Citus, every group highly available: three coordinators and two worker groups of two on this machine.

use serde_json::json;
use std::time::{Duration, Instant};
use stories::bank::{self, Bank};
use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::node::rows;
use stories::storm::random::Random;
use stories::wait::{self, lasting, seconds};
use stories::workload::Writer;

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
        let found = rows(&client, "SHOW citus.use_secondary_nodes").await.expect("a setting");
        assert_eq!(found, [[setting]], "{}", node.name());
    }
    let client = citus::session(standby).await.expect("a session");
    let count = rows(&client, "SELECT count(*) > 0 FROM written").await.expect("a read through a standby");
    assert_eq!(count, [["t"]]);
}

#[tokio::test]
async fn a_planned_switchover_of_a_worker_makes_writers_wait_and_none_fail() {
    if !citus::is_installed() {
        return;
    }
    let cluster = CitusCluster::planned(1, &[2, 2], |_, config| config["citus"]["lock_cooldown"] = json!(1)).await;
    cluster.start_all();
    cluster.healthy().await;
    let writer = cluster.writer().await;
    let old = cluster.leader(2).await;
    let said = cluster.cli_of(old, &["switchover", "--group", "2", "--force"]).await;
    assert!(said.status.success(), "{said:?}");
    cluster.leads_other_than(2, old).await;
    writer.goes_on(100, PATIENCE).await;
    let ledger = writer.finish();
    println!("switchover of worker group 2 under an insert every 10 ms through the coordinator: {}", ledger.summary());
    assert_eq!(ledger.refused().count() + ledger.unknown().count(), 0, "{}", ledger.summary());
    assert!(ledger.longest_pause() < seconds(5), "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    cluster.healthy().await;
    let listed = cluster.list().await;
    let groups: Vec<u64> = listed.iter().filter_map(|member| member["Group"].as_u64()).collect();
    assert_eq!(groups, [0, 1, 1, 2, 2], "{listed:?}");
    let one = cluster.cli_ok(&["list", "--group", "2", "--format", "tsv"]).await;
    assert_eq!(one.lines().count(), 3, "{one}");

    sums_beside_transfers(&cluster).await;

    // Where nobody answers, the switchover goes on, clients see errors, and the metadata is put right afterwards.
    let coordinator = cluster.leader(0).await;
    let again = Writer::start(cluster.targets());
    again.goes_on(50, PATIENCE).await;
    coordinator.freeze_arbiter();
    let new = cluster.leader(2).await;
    let said = cluster.cli_of(new, &["switchover", "--group", "2", "--force"]).await;
    assert!(said.status.success(), "{said:?}");
    new.logged(&["did not say within"], PATIENCE).await;
    cluster.leads_other_than(2, new).await;
    lasting(seconds(1)).await;
    coordinator.thaw_arbiter();
    again.goes_on(50, PATIENCE).await;
    let ledger = again.finish();
    println!("the same with the coordinator's arbiter frozen: {}", ledger.summary());
    assert!(ledger.refused().count() + ledger.unknown().count() > 0, "{}", ledger.summary());
    cluster.healthy().await;
}

/// How many sums that are read beside transfers see half of one: measured for docs/citus.md, and no more than printed, as it is Citus' way.
async fn sums_beside_transfers(cluster: &CitusCluster) {
    let bank = Bank::open(cluster, 4).await;
    bank.sums(cluster, "before a switchover", lasting(seconds(5))).await;
    let old = cluster.leader(2).await;
    let switchover = async {
        let said = cluster.cli_of(old, &["switchover", "--group", "2", "--force"]).await;
        assert!(said.status.success(), "{said:?}");
    };
    bank.sums(cluster, "during it", switchover).await;
    bank.sums(cluster, "after it", lasting(seconds(5))).await;
    bank::judge(cluster, &bank.close().await).await;
    cluster.healthy().await;
}

#[tokio::test]
async fn a_switchover_that_would_wait_for_a_frozen_worker_is_refused_before_clients_wait() {
    if !citus::is_installed() {
        return;
    }
    let cluster = CitusCluster::planned(1, &[1, 2], |_, config| {
        config["postgresql"]["parameters"]["citus.node_connection_timeout"] = json!("10min");
    })
    .await;
    cluster.start_all();
    cluster.healthy().await;
    let (frozen, old) = (cluster.leader(1).await, cluster.leader(2).await);
    frozen.freeze();
    // Every node's maintenance daemon asks all others every two seconds: after that it waits for the frozen one.
    lasting(seconds(4)).await;
    let said = cluster.cli_of(old, &["switchover", "--group", "2", "--force"]).await;
    assert!(!said.status.success(), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("maintenance daemon"), "{said:?}");
    let coordinator = cluster.leader(0).await;
    assert!(!coordinator.log().contains("writers of group 2 wait"), "{}", coordinator.log());
    assert_eq!(cluster.leader(2).await.name(), old.name());
    frozen.thaw();
    wait::until("the switchover to be made", PATIENCE, async || {
        let said = cluster.cli_of(old, &["switchover", "--group", "2", "--force"]).await;
        if said.status.success() { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    cluster.leads_other_than(2, old).await;
    cluster.healthy().await;
}

/// Two coordinators and two groups of two workers, synchronous, quick to fail over.
async fn two_of_each() -> CitusCluster {
    let cluster = CitusCluster::planned(2, &[2, 2], |_, config| {
        config["bootstrap"]["dcs"]["synchronous_mode"] = json!(true);
        citus::fail_over_quickly(config);
    })
    .await;
    cluster.start_all();
    cluster.healthy().await;
    cluster
}

#[tokio::test]
async fn a_bank_keeps_its_sum_and_every_acknowledged_transfer_when_primaries_are_killed() {
    if !citus::is_installed() {
        return;
    }
    let cluster = two_of_each().await;
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

/// Switchovers and kills, drawn, over all groups: `CITUS_ROUNDS=10 CITUS_SEED=7` repeats a longer one.
#[tokio::test]
async fn whatever_happens_to_a_group_in_whatever_order_the_bank_keeps_its_sum() {
    if !citus::is_installed() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = number("CITUS_ROUNDS").unwrap_or(3);
    let seed = number("CITUS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("CITUS_SEED={seed}");
    let mut random = Random::new(seed);
    let cluster = two_of_each().await;
    let bank = Bank::open(&cluster, 4).await;
    for round in 1..=rounds {
        let group = usize::try_from(random.below(3)).expect("a group");
        let old = cluster.leader(group).await;
        let kills = random.below(2) == 0;
        println!("round {round}: {} of group {group}, {} leads", if kills { "kill" } else { "switchover" }, old.name());
        if kills {
            old.kill();
        } else {
            let said = cluster.cli_of(old, &["switchover", "--group", &group.to_string(), "--force"]).await;
            assert!(said.status.success(), "{said:?}");
        }
        cluster.leads_other_than(group, old).await;
        bank.goes_on(20).await;
        if kills {
            old.start(&cluster.room);
        }
        cluster.healthy().await;
        cluster.metadata_is_right(PATIENCE).await;
    }
    let told = bank.close().await;
    bank::judge(&cluster, &told).await;
}

/// What a coordinator, frozen and thawed after its successor took over, did on a worker.
struct Deeds {
    /// It wrote a row into a shard.
    wrote: bool,
    /// It rolled back a transaction that its successor had prepared.
    rolled_back: bool,
}

/// Freezes the coordinator's primary, lets another take over and prepare a transaction, and thaws the old one's Postgres, its arbiter
/// and its lease worker still frozen: nobody there ends it.
async fn thawed_coordinator(say_term: &str) -> Deeds {
    let cluster = CitusCluster::planned(2, &[1], |group, config| {
        citus::fail_over_quickly(config);
        if group == 0 {
            config["postgresql"]["parameters"]["tenure.say_term"] = json!(say_term);
            // Its daemon looks for transactions in doubt every second.
            config["postgresql"]["parameters"]["citus.recover_2pc_interval"] = json!("1s");
        }
    })
    .await;
    cluster.start_all();
    cluster.healthy().await;
    cluster.query("CREATE TABLE t(id bigint); SELECT create_distributed_table('t', 'id')").await.expect("a distributed table");
    let (old, worker) = (cluster.leader(0).await, cluster.leader(1).await);
    // A session with a connection to the worker, as every client's has.
    let client = citus::session(old).await.expect("a session");
    rows(&client, "SET citus.max_cached_conns_per_worker = 4; INSERT INTO t VALUES (1)").await.expect("a row");
    old.freeze();
    let new = cluster.leads_other_than(0, old).await;
    cluster.metadata_names(new, 0).await;
    // A transaction under way at the successor, which therefore does not take its part on the worker for one in doubt. The old one knows
    // nothing of it.
    let promoted = Instant::now();
    let session =
        wait::until("a session of the successor", PATIENCE, async || citus::session(new).await.map_err(|error| format!("{error:#}")));
    let successor = session.await;
    println!("say_term {say_term}: a session of the successor after {} ms", promoted.elapsed().as_millis());
    rows(&successor, "BEGIN").await.expect("begin");
    rows(&successor, "INSERT INTO t VALUES (3)").await.expect("a row");
    let number = rows(&successor, "SELECT transaction_number FROM get_current_transaction_id()").await.expect("its number");
    let gid = format!("citus_0_4242_{}_1", number[0][0]);
    let prepare = format!("BEGIN; CREATE TABLE prepared(); PREPARE TRANSACTION '{gid}'");
    rows(&citus::session(worker).await.expect("a session"), &prepare).await.expect("prepare as the successor does");
    let prepared = async || {
        let client = citus::session(worker).await.expect("a session");
        !rows(&client, &format!("SELECT FROM pg_prepared_xacts WHERE gid = '{gid}'")).await.expect("prepared transactions").is_empty()
    };
    lasting(seconds(3)).await;
    assert!(prepared().await, "the successor leaves it alone");
    old.thaw_postgres_alone();
    let late = rows(&client, "INSERT INTO t VALUES (2)").await;
    println!("say_term {say_term}: the thawed coordinator's insert: {late:?}");
    lasting(seconds(5)).await;
    let found = rows(&citus::session(new).await.expect("a session"), "SELECT id FROM t ORDER BY id").await.expect("rows");
    let deeds = Deeds { wrote: found.len() > 1, rolled_back: !prepared().await };
    println!("say_term {say_term}: the thawed coordinator wrote: {}, rolled back: {}", deeds.wrote, deeds.rolled_back);
    if !deeds.rolled_back {
        let client = citus::session(worker).await.expect("a session");
        rows(&client, &format!("COMMIT PREPARED '{gid}'")).await.expect("the successor ends its transaction");
    }
    rows(&successor, "ROLLBACK").await.expect("roll back");
    old.thaw();
    cluster.healthy().await;
    deeds
}

#[tokio::test]
async fn a_coordinator_that_thaws_after_its_successor_took_over_has_no_effect_on_workers() {
    if !citus::is_installed() {
        return;
    }
    let deeds = thawed_coordinator("on").await;
    assert!(!deeds.wrote && !deeds.rolled_back);
}

#[tokio::test]
async fn without_the_coordinators_term_a_thawed_one_reaches_workers() {
    if !citus::is_installed() {
        return;
    }
    // What the story above is about: without the term, as with any other manager, both happen.
    let deeds = thawed_coordinator("off").await;
    assert!(deeds.wrote && deeds.rolled_back);
}
