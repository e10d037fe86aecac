//! Citus: every kind of statement that reaches other nodes, run over and over through a planned change of a worker's primary: each waits, none fails.

use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::node::rows;
use stories::wait::{self, seconds};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Two shards per table, one on each worker group; `slow` has rows enough that a read which sleeps at each takes two seconds.
const TABLES: &str = "CREATE TABLE spread(id bigint PRIMARY KEY, v int DEFAULT 0); SELECT create_distributed_table('spread', 'id');
    CREATE TABLE other(id bigint, v int DEFAULT 0); SELECT create_distributed_table('other', 'id');
    CREATE TABLE slow(id bigint); SELECT create_distributed_table('slow', 'id');
    CREATE TABLE changed(id bigint); SELECT create_distributed_table('changed', 'id');
    CREATE TABLE everywhere(id bigint); SELECT create_reference_table('everywhere');
    CREATE EXTENSION citus_columnar; CREATE TABLE packed(id bigint, v int) USING columnar; SELECT create_distributed_table('packed', 'id');
    CREATE TABLE emptied(id bigint); SELECT create_distributed_table('emptied', 'id');
    CREATE TABLE here(id bigint, name text);
    CREATE FUNCTION adds(n bigint) RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO other VALUES (n); PERFORM count(*) FROM spread; END $$;
    CREATE PROCEDURE away(n bigint) LANGUAGE plpgsql AS $$ BEGIN UPDATE spread SET v = v + 1 WHERE id = n; END $$;
    SELECT create_distributed_function('away(bigint)', 'n', colocate_with := 'spread');
    INSERT INTO spread SELECT g, 0 FROM generate_series(1, 100) g; INSERT INTO slow SELECT g FROM generate_series(1, 100) g;
    INSERT INTO here SELECT g, g::text FROM generate_series(1, 100) g; INSERT INTO everywhere SELECT g FROM generate_series(1, 10) g";

/// A COPY of rows that a program of the server makes: through Citus they go as a client's do.
const SHORT_COPY: &str = "COPY other(id) FROM PROGRAM 'seq 1 100'";
const LONG_COPY: &str = "COPY other(id) FROM PROGRAM 'for i in 1 2 3 4 5 6 7 8 9 10; do seq 1 10; sleep 0.2; done'";

/// What is asked of the coordinator, unless the name says of a worker. `$` is a new number each time, `;;` stands between two that are sent one after another.
const KINDS: &[(&str, &str)] = &[
    ("insert", "INSERT INTO other VALUES ($)"),
    ("update of all", "UPDATE other SET v = v + 1 WHERE id % 100 = $ % 100"),
    ("two-phase transfer", "BEGIN; UPDATE spread SET v = v - 1 WHERE id = 1; UPDATE spread SET v = v + 1 WHERE id = 2; COMMIT"),
    ("read", "SELECT count(*) FROM spread"),
    ("read for update", "SELECT * FROM spread WHERE id = 1 + $ % 100 FOR UPDATE"),
    ("long read", "SELECT count(*) FROM slow WHERE pg_sleep(0.04) IS NOT NULL"),
    ("COPY FROM", SHORT_COPY),
    ("long COPY FROM", LONG_COPY),
    ("COPY TO", "COPY spread TO PROGRAM 'cat > /dev/null'"),
    ("COPY of a query", "COPY (SELECT * FROM spread JOIN everywhere USING (id)) TO PROGRAM 'cat > /dev/null'"),
    ("long COPY of a query", "COPY (SELECT id FROM slow WHERE pg_sleep(0.04) IS NOT NULL) TO PROGRAM 'cat > /dev/null'"),
    ("INSERT SELECT on the shards", "INSERT INTO changed SELECT id FROM slow"),
    ("INSERT SELECT through the coordinator", "INSERT INTO changed SELECT g FROM generate_series(1, 1000) g"),
    ("long INSERT SELECT", "INSERT INTO changed SELECT id FROM slow WHERE pg_sleep(0.04) IS NOT NULL"),
    ("columnar insert", "INSERT INTO packed SELECT g, g FROM generate_series(1, 1000) g"),
    ("columnar read", "SELECT count(*), sum(v) FROM packed"),
    ("join with a local table", "SELECT count(*) FROM spread JOIN here USING (id)"),
    ("reference table", "INSERT INTO everywhere VALUES ($)"),
    ("size", "SELECT citus_table_size('spread'), citus_total_relation_size('other')"),
    ("activity", "SELECT * FROM citus_stat_activity"),
    ("run_command_on_shards", "SELECT 1 / success::int FROM run_command_on_shards('spread', 'SELECT count(*) FROM %s')"),
    ("run_command_on_workers", "SELECT 1 / success::int FROM run_command_on_workers('SELECT count(*) FROM pg_class')"),
    ("function", "SELECT adds($)"),
    ("DO", "DO $$ BEGIN INSERT INTO other VALUES (1); PERFORM count(*) FROM spread; END $$"),
    ("procedure on the shards", "CALL away(1)"),
    ("cursor", "BEGIN; DECLARE c CURSOR FOR SELECT * FROM spread; FETCH 10 FROM c; FETCH 10 FROM c; COMMIT"),
    ("prepared", "PREPARE p AS SELECT count(*) FROM spread; EXECUTE p; DEALLOCATE p"),
    ("EXPLAIN", "EXPLAIN SELECT count(*) FROM spread"),
    ("EXPLAIN ANALYZE", "EXPLAIN ANALYZE SELECT count(*) FROM spread"),
    ("CREATE TABLE AS", "CREATE TEMP TABLE t AS SELECT * FROM spread; DROP TABLE t"),
    (
        "new table and views of Citus",
        "CREATE TABLE new(id bigint);; SELECT create_distributed_table('new', 'id');; CREATE INDEX ON new(id);; SELECT * FROM citus_tables, citus_shards;; DROP TABLE new",
    ),
    ("TRUNCATE", "TRUNCATE emptied"),
    ("VACUUM and ANALYZE", "VACUUM ANALYZE other"),
    ("called citus_report", "SET application_name = 'citus_report'; SELECT count(*) FROM spread; INSERT INTO other VALUES ($)"),
    ("insert on a worker", "INSERT INTO other VALUES ($)"),
    ("read on a worker", "SELECT count(*) FROM spread"),
    ("long read on a worker", "SELECT count(*) FROM slow WHERE pg_sleep(0.04) IS NOT NULL"),
    ("COPY FROM on a worker", SHORT_COPY),
    ("long COPY FROM on a worker", LONG_COPY),
    ("size on a worker", "SELECT citus_table_size('spread')"),
    ("run_command_on_shards on a worker", "SELECT 1 / success::int FROM run_command_on_shards('spread', 'SELECT count(*) FROM %s')"),
];

/// What a client saw.
struct Seen {
    kind: &'static str,
    done: u64,
    longest: Duration,
    errors: Vec<String>,
}

struct Clients {
    stop: Arc<AtomicBool>,
    clients: Vec<(Arc<AtomicU64>, JoinHandle<Seen>)>,
}

impl Clients {
    async fn start(cluster: &CitusCluster) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for (number, (kind, does)) in (1..).zip(KINDS) {
            let node = if kind.ends_with("on a worker") { cluster.leader(1).await } else { cluster.leader(0).await };
            let session = citus::session(node).await.expect("a session");
            rows(&session, "SET citus.max_adaptive_executor_pool_size = 1; SET client_min_messages = error").await.expect("set");
            let done = Arc::new(AtomicU64::new(0));
            clients.push((done.clone(), tokio::spawn(work(session, kind, does, number * 1_000_000, done, stop.clone()))));
        }
        Clients { stop, clients }
    }

    /// Waits until every client's statement has ended so many times more.
    async fn go_on(&self, more: u64) {
        let goals: Vec<u64> = self.clients.iter().map(|(done, _)| done.load(Relaxed) + more).collect();
        wait::until("every kind to go on", PATIENCE, async || {
            let ended = self.clients.iter().map(|(done, client)| (done.load(Relaxed), client.is_finished()));
            let late = ended.zip(&goals).zip(KINDS).find(|(((done, over), goal), _)| !over && done < *goal);
            late.map_or(Ok(()), |((seen, goal), (kind, _))| Err(format!("{kind}: {seen:?} of {goal}")))
        })
        .await;
    }

    async fn finish(self) -> Vec<Seen> {
        self.stop.store(true, Relaxed);
        let mut seen = Vec::new();
        for (_, client) in self.clients {
            seen.push(client.await.expect("a client does not panic"));
        }
        seen
    }
}

async fn work(session: Client, kind: &'static str, does: &'static str, first: u64, count: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen { kind, done: 0, longest: Duration::ZERO, errors: Vec::new() };
    while !stop.load(Relaxed) && seen.errors.len() < 3 {
        let began = Instant::now();
        match once(&session, does, first + seen.done).await {
            Ok(()) => {
                seen.done += 1;
                seen.longest = seen.longest.max(began.elapsed());
            }
            Err(error) => {
                seen.errors.push(format!("{error:#}"));
                let _ = rows(&session, "ROLLBACK").await;
            }
        }
        count.fetch_add(1, Relaxed);
        wait::lasting(Duration::from_millis(400)).await;
    }
    seen
}

async fn once(session: &Client, does: &str, number: u64) -> anyhow::Result<()> {
    // Not the dollars of a body.
    let text = if does.contains("$$") { does.to_owned() } else { does.replace('$', &number.to_string()) };
    for statement in text.split(";;") {
        rows(session, statement).await?;
    }
    Ok(())
}

/// A coordinator, a worker group of one, and one of two, whose primary is changed.
async fn cluster() -> CitusCluster {
    let cluster = CitusCluster::planned(1, &[1, 2], |_, config| {
        config["postgresql"]["parameters"]["max_connections"] = json!(150);
        config["postgresql"]["parameters"]["citus.shard_count"] = json!(2);
    })
    .await;
    cluster.start_all();
    cluster.healthy().await;
    cluster
}

#[tokio::test]
async fn no_kind_of_statement_fails_in_a_planned_change_of_a_worker() {
    if !citus::is_installed() {
        return;
    }
    let cluster = cluster().await;
    for line in TABLES.lines() {
        cluster.query(line).await.expect("the tables");
    }
    let clients = Clients::start(&cluster).await;
    clients.go_on(2).await;
    let old = cluster.leader(2).await;
    let said = cluster.cli_of(old, &["switchover", "--group", "2", "--force"]).await;
    assert!(said.status.success(), "{said:?}");
    cluster.leads_other_than(2, old).await;
    clients.go_on(2).await;
    let seen = clients.finish().await;
    for Seen { kind, done, longest, errors } in &seen {
        println!("{kind}: {done} times, the longest {} ms, {} errors {errors:?}", longest.as_millis(), errors.len());
    }
    for node in cluster.nodes() {
        node.log()
            .lines()
            .filter(|line| line.contains("Citus") || line.contains("handed over"))
            .for_each(|line| println!("{}: {line}", node.name()));
    }
    let failed: Vec<&str> = seen.iter().filter(|seen| !seen.errors.is_empty()).map(|seen| seen.kind).collect();
    assert!(failed.is_empty(), "these failed: {failed:?}");
    assert!(seen.iter().all(|seen| seen.longest < seconds(30)));
    cluster.healthy().await;
    a_statement_that_comes_first_is_let_end(&cluster).await;
}

/// With `citus.prefer: statements` the change is called off and the statement is not.
async fn a_statement_that_comes_first_is_let_end(cluster: &CitusCluster) {
    for setting in ["citus.prefer=statements", "citus.grace=1"] {
        cluster.cli_ok(&["edit-config", "--group", "0", "-s", setting, "--force"]).await;
    }
    let old = cluster.leader(2).await;
    let reader = citus::session(cluster.leader(0).await).await.expect("a session");
    let reads = tokio::spawn(async move { rows(&reader, "SELECT count(*) FROM slow WHERE pg_sleep(0.4) IS NOT NULL").await });
    wait::lasting(seconds(1)).await;
    let said = cluster.cli_of(old, &["switchover", "--group", "2", "--force"]).await;
    let text = String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
    assert!(!said.status.success() && text.contains("citus.prefer"), "{said:?}");
    assert!(!reads.is_finished(), "it was in the way for too short a time to show anything");
    assert_eq!(cluster.leader(2).await.name(), old.name());
    // Nobody waits for a change that is not made.
    cluster.query("SELECT count(*) FROM spread").await.expect("a read");
    assert_eq!(reads.await.expect("it does not panic").expect("the statement ends"), [["100"]]);
    let said = cluster.cli_of(old, &["switchover", "--group", "2", "--force"]).await;
    assert!(said.status.success(), "{said:?}");
    cluster.leads_other_than(2, old).await;
    cluster.healthy().await;
}
