//! A logical subscriber, a second Postgres with a real subscription, taken through failovers and switchovers of the cluster it
//! subscribes to; at the end its table is compared with the primary's, row by row.

use crate::alone::Server;
use crate::cluster::{Cluster, PATIENCE};
use crate::node::{Node, PASSWORD};
use crate::programs;
use crate::wait;
use crate::workload::Targets;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The permanent slot that it uses.
pub const SLOT: &str = "subscriber";

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// How often the leader changed.
    pub rounds: usize,
    /// Rows on the primary in the end.
    pub rows: usize,
    /// On the primary and not at the subscriber.
    pub missing: Vec<u64>,
    /// At the subscriber more often than on the primary.
    pub repeated: Vec<u64>,
    /// The longest time until a copy of the slot was shown to be safe after a change, on every standby.
    pub longest_until_safe: Duration,
    /// One line on what the writer saw.
    pub writer: String,
}

/// A cluster that keeps the subscriber's slot.
pub async fn cluster(synchronous: bool) -> Cluster {
    let postgresql = json!({"use_pg_rewind": true, "use_slots": true, "parameters": {"wal_level": "logical"}});
    Cluster::of(3).ttl(3).synchronous(synchronous).dynamic("postgresql", postgresql).start().await
}

/// Makes table, publication, permanent slot and subscription; gives the subscriber.
pub async fn subscribe(cluster: &Cluster) -> Server {
    let leader = cluster.leader().await;
    for statement in ["CREATE TABLE written(id bigint, at timestamptz DEFAULT now())", "CREATE PUBLICATION rows FOR TABLE written"] {
        wait::until(statement, PATIENCE, async || leader.query(statement).await.map_err(|error| format!("{error:#}"))).await;
    }
    let slots = json!({"slots": {SLOT: {"type": "logical", "database": "postgres", "plugin": "pgoutput"}}});
    cluster.configure(&slots).await;
    let there = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    wait::until("the permanent slot on the primary", PATIENCE, async || match leader.one(&there).await {
        Ok(count) if count == "1" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    let subscriber = Server::plain(&cluster.room, "subscriber", &[("wal_retrieve_retry_interval", "200ms")]).await;
    let session = subscriber.session().await;
    session.ok("CREATE TABLE written(id bigint, at timestamptz)").await;
    let ports: Vec<String> = cluster.nodes.iter().map(|node| node.port().to_string()).collect();
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    session
        .ok(&format!(
            "CREATE SUBSCRIPTION subscription CONNECTION 'host={hosts} port={} dbname=postgres user=postgres password={PASSWORD} \
             target_session_attrs=read-write connect_timeout=2' PUBLICATION rows WITH (create_slot = false, slot_name = '{SLOT}', copy_data = false)",
            ports.join(",")
        ))
        .await;
    subscriber
}

/// Waits until each of these standbys has a copy of the slot that is shown to be safe on this timeline.
pub async fn safe_on(nodes: &[&Node], timeline: u64) {
    for node in nodes {
        let what = format!("a copy of the slot on {} that is safe on timeline {timeline}", node.name());
        wait::until(&what, PATIENCE, async || {
            if programs::postgres_major() >= 17 {
                return kept_by_the_server(node).await;
            }
            let file = node.dir().join("data.tenure-slots");
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            let trusted: BTreeMap<String, u64> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            if trusted.get(SLOT) == Some(&timeline) { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

/// From PostgreSQL 17 on: it was made by the server's own synchronisation, and persists a promotion.
async fn kept_by_the_server(node: &Node) -> Result<(), String> {
    let state = format!("SELECT synced AND NOT temporary AND NOT conflicting FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    match node.one(&state).await {
        Ok(safe) if safe == "t" => Ok(()),
        seen => Err(format!("{seen:?}")),
    }
}

/// Takes the subscriber through so many changes of leader: by turns a switchover, the death of the whole node, and that of its postmaster.
pub async fn through(rounds: usize, synchronous: bool) -> Report {
    let cluster = cluster(synchronous).await;
    let subscriber = subscribe(&cluster).await;
    if !synchronous {
        cluster.configure(&json!({"hold_back_logical": true})).await;
    }
    let writer = cluster.writer_on(Targets::on_loopback(cluster.nodes.iter().map(Node::port).collect())).await;
    let mut longest_until_safe = Duration::ZERO;
    for round in 0..rounds {
        let began = Instant::now();
        let view = cluster.healthy().await;
        let old = cluster.leader().await;
        safe_on(&cluster.others(old), view.leader_timeline().expect("a timeline")).await;
        longest_until_safe = longest_until_safe.max(began.elapsed());
        let killed = round % 2 == 1;
        println!("round {round}: {} {} after {:?}", if killed { "kill" } else { "switch over from" }, old.name(), began.elapsed());
        if killed {
            old.kill();
        } else {
            cluster.cli_ok(&["switchover", "--force"]).await;
        }
        cluster.wait_until("another leader", |view| view.leads_other_than(old.name())).await;
        writer.goes_on(100, PATIENCE).await;
        if killed {
            cluster.start(old);
        }
    }
    cluster.healthy().await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    let leader = cluster.leader().await;
    let expected = counts(leader.query("SELECT id, count(*) FROM written GROUP BY id").await.expect("read the primary's rows"));
    let last = expected.keys().max().copied().unwrap_or_default();
    let session = subscriber.session().await;
    // The last row was written to the last primary: when it is there, so is all that will come.
    wait::until("the last row at the subscriber", PATIENCE, async || {
        let seen = session.ok("SELECT coalesce(max(id), 0) FROM written").await;
        if seen == last.to_string() { Ok(()) } else { Err(format!("{seen} of {last}; {}", tail(&subscriber.log()))) }
    })
    .await;
    let found = counts(session.tell("SELECT id, count(*) FROM written GROUP BY id").await.rows());
    if !synchronous {
        println!("acknowledged and not on the primary: {:?}", cluster.verdict(&ledger).await.lost);
    } else {
        cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    }
    Report {
        rounds,
        rows: expected.len(),
        missing: expected.keys().filter(|id| !found.contains_key(id)).copied().collect(),
        repeated: found.iter().filter(|(id, count)| expected.get(id).is_none_or(|wanted| *count > wanted)).map(|(id, _)| *id).collect(),
        longest_until_safe,
        writer: ledger.summary(),
    }
}

fn counts(rows: Vec<Vec<String>>) -> BTreeMap<u64, u64> {
    let number = |row: &Vec<String>, column: usize| row.get(column).and_then(|cell| cell.parse().ok());
    rows.iter().filter_map(|row| Some((number(row, 0)?, number(row, 1)?))).collect()
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

impl Report {
    /// Nothing is missing, nothing came twice.
    pub fn nothing_missing_or_repeated(&self) {
        assert!(self.missing.is_empty() && self.repeated.is_empty(), "{self:?}");
    }
}
