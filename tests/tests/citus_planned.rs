//! Citus: planned changes of a worker's primary as clients see them who write through the coordinator, start statements on another
//! worker, and read.

use serde_json::json;
use std::time::{Duration, Instant};
use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::node::{Node, SCOPE, rows};
use stories::wait::{self, lasting, seconds};
use stories::workload::{Ledger, Targets, Writer};

/// Clients that work while something is changed: inserts through the coordinator and through worker group 1, reads through both.
struct Clients(Vec<(&'static str, Writer)>);

impl Clients {
    /// Makes the table first, of few shards: a read of them all is to take milliseconds on a busy machine, too.
    async fn start(cluster: &CitusCluster) -> Clients {
        wait::until("the table", PATIENCE, async || {
            let table = "SET citus.shard_count = 4; CREATE TABLE written(id bigint, at timestamptz DEFAULT now());
                SELECT create_distributed_table('written', 'id')";
            cluster.query(table).await.map(drop).map_err(|error| format!("{error:#}"))
        })
        .await;
        Clients::begin(cluster, 1_000_000).await
    }

    /// Ids begin here.
    async fn begin(cluster: &CitusCluster, first_id: u64) -> Clients {
        let worker = cluster.leader(1).await;
        let on_worker = || Targets::at(vec![(worker.host().to_owned(), worker.port())]).database(citus::DATABASE);
        let count = "SELECT count(*) FROM written";
        let clients = Clients(vec![
            ("inserts through the coordinator", Writer::start(cluster.targets().first_id(first_id))),
            ("inserts through worker 1", Writer::start(on_worker().first_id(first_id + 500_000))),
            ("reads through the coordinator", Writer::start(cluster.targets().reads(count))),
            ("reads through worker 1", Writer::start(on_worker().reads(count))),
        ]);
        clients.go_on(30).await;
        clients
    }

    async fn go_on(&self, more: u64) {
        for (_, client) in &self.0 {
            client.goes_on(more, PATIENCE).await;
        }
    }

    /// Ends them; prints what each saw.
    fn finish(self, what: &str) -> Vec<(&'static str, Ledger)> {
        let ledgers: Vec<_> = self.0.into_iter().map(|(who, client)| (who, client.finish())).collect();
        for (who, ledger) in &ledgers {
            println!("{what}, {who}: {}", ledger.summary());
        }
        ledgers
    }
}

/// Prints what the arbiters said of holds and gates.
fn tell(cluster: &CitusCluster) {
    for node in cluster.nodes() {
        let log = node.log();
        let lines = log.lines().filter(|line| {
            ["waited for", "in step", "wait, after", "were held", "handed over", "promoted"].iter().any(|words| line.contains(words))
        });
        lines.for_each(|line| println!("{}: {line}", node.name()));
    }
}

/// Nobody saw an error, and nobody waited for longer than this.
fn only_a_pause(ledgers: &[(&str, Ledger)], bound: Duration) {
    for (who, ledger) in ledgers {
        assert_eq!(ledger.refused().count() + ledger.unknown().count(), 0, "{who}: {}", ledger.summary());
        assert!(ledger.longest_pause() < bound, "{who}: {}", ledger.summary());
    }
}

/// So many coordinators and worker groups, healthy.
async fn planned(coordinators: usize, workers: &[usize]) -> CitusCluster {
    let cluster = CitusCluster::planned(coordinators, workers, |_, config| {
        config["citus"]["lock_cooldown"] = json!(20);
        citus::fail_over_quickly(config);
    })
    .await;
    cluster.start_all();
    cluster.healthy().await;
    cluster
}

/// Makes a switchover of this group, whichever member leads it.
async fn switch_over(cluster: &CitusCluster, group: usize) {
    let old = cluster.leader(group).await;
    let said = cluster.cli_of(old, &["switchover", "--group", &group.to_string(), "--force"]).await;
    assert!(said.status.success(), "{said:?}");
    cluster.leads_other_than(group, old).await;
}

#[tokio::test]
async fn a_planned_change_of_a_worker_is_a_pause_for_readers_and_for_who_works_through_another_worker() {
    if !citus::is_installed() {
        return;
    }
    let cluster = planned(1, &[1, 2]).await;
    let clients = Clients::start(&cluster).await;
    switch_over(&cluster, 2).await;
    clients.go_on(50).await;
    let ledgers = clients.finish("switchover of worker group 2");
    tell(&cluster);
    only_a_pause(&ledgers, seconds(20));
    cluster.healthy().await;

    // A restart: the address stays, and connections that sessions keep to it are dead.
    let clients = Clients::begin(&cluster, 2_000_000).await;
    let restarted = cluster.leader(2).await;
    let began = started(restarted).await;
    let said = cluster.cli_of(restarted, &["restart", SCOPE, restarted.name(), "--force"]).await;
    assert!(said.status.success(), "{said:?}");
    assert_ne!(started(restarted).await, began, "it was not restarted");
    clients.go_on(50).await;
    let ledgers = clients.finish("restart of the primary of worker group 2");
    only_a_pause(&ledgers, seconds(20));
    assert_eq!(cluster.leader(2).await.name(), restarted.name());
    cluster.healthy().await;
}

async fn started(node: &Node) -> String {
    let client = citus::session(node).await.expect("a session");
    rows(&client, "SELECT pg_postmaster_start_time()").await.expect("when it started")[0][0].clone()
}

#[tokio::test]
async fn two_worker_groups_change_their_primaries_at_the_same_moment() {
    if !citus::is_installed() {
        return;
    }
    let cluster = planned(1, &[1, 2, 2]).await;
    let clients = Clients::start(&cluster).await;
    tokio::join!(switch_over(&cluster, 2), switch_over(&cluster, 3));
    clients.go_on(50).await;
    let ledgers = clients.finish("switchover of worker groups 2 and 3 at once");
    tell(&cluster);
    only_a_pause(&ledgers, seconds(20));
    cluster.healthy().await;
}

#[tokio::test]
async fn a_coordinator_is_switched_over_and_one_that_dies_with_its_clients_held_holds_them_no_longer() {
    if !citus::is_installed() {
        return;
    }
    let cluster = planned(2, &[1, 2]).await;
    let worker = cluster.leader(1).await;
    let writer = cluster.writer().await;
    let on_worker = Targets::at(vec![(worker.host().to_owned(), worker.port())]).database(citus::DATABASE).first_id(1_000_000);

    // Its own: as with any primary, the session of the old one ends, and what it had sent may be unknown.
    switch_over(&cluster, 0).await;
    writer.goes_on(100, PATIENCE).await;
    let ledger = writer.finish();
    println!("switchover of the coordinator: {}", ledger.summary());
    assert!(ledger.refused().count() + ledger.unknown().count() <= 2, "{}", ledger.summary());
    assert!(!ledger.summary().contains("not currently allowed"), "its session began as a standby's: {}", ledger.summary());
    cluster.healthy().await;

    // A transaction that uses group 2 and does not end: the coordinator waits for it, with everybody else held.
    for dies in [0, 2] {
        let coordinator = cluster.leader(0).await;
        let asks = cluster.leader(2).await;
        let blocker = citus::session(coordinator).await.expect("a session");
        rows(&blocker, "BEGIN; UPDATE written SET at = now()").await.expect("a transaction on every worker");
        let asking = cluster.start_cli_of(asks, &["switchover", "--group", "2", "--force"]);
        cluster.key_is(1, "tenure/gated", true).await;
        let through_worker = Writer::start(on_worker.clone().first_id(1_000_000 * (dies + 1)));
        lasting(Duration::from_millis(300)).await;
        assert_eq!(through_worker.acknowledged(), 0, "statements that begin on a worker wait");
        let killed = if dies == 0 { coordinator } else { asks };
        killed.kill();
        let died = Instant::now();
        through_worker.goes_on(1, PATIENCE).await;
        let waited = died.elapsed();
        println!("killed the primary of group {dies}: statements through worker 1 went on after {} ms", waited.as_millis());
        // Its lease lasts for 3 s; the statements in the way would get twice 5 s, and nobody asks for that any more.
        assert!(waited < seconds(8), "{waited:?}");
        cluster.leads_other_than(usize::try_from(dies).expect("a group"), killed).await;
        if dies == 2 {
            // Not only when the time for transactions in the way is over.
            coordinator.logged(&["writers of group 2 are not held"], PATIENCE).await;
        }
        drop(blocker);
        killed.start(&cluster.room);
        let through_coordinator = Writer::start(cluster.targets().first_id(10_000_000 * (dies + 1)));
        through_coordinator.goes_on(50, PATIENCE).await;
        through_worker.goes_on(50, PATIENCE).await;
        // The switchover that was asked for is made without a hold, or was given up.
        let said = tokio::time::timeout(PATIENCE, asking.wait_with_output()).await.expect("the command ends").expect("run tenure");
        println!("the switchover that was asked for: {}", said.status);
        for writer in [through_coordinator, through_worker] {
            println!("killed the primary of group {dies}: {}", writer.finish().summary());
        }
        tell(&cluster);
        cluster.healthy().await;
        cluster.key_is(1, "tenure/gate", false).await;
    }
}
