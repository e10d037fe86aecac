//! `bench`: the numbers of DESIGN section 9 that travel, beside what a person achieves by hand in the same run.
//!
//!     bench [RUNS] [NAME ...]     RUNS is 5; names are those of the table's first column, all pauses where none is given
//!     bench [RUNS] agent-frozen node-frozen cut-from-etcd cut-from-all
//!                                 the second table: what is lost when the leader is set apart, beside Patroni without a watchdog
//!     bench [RUNS] citus          the third: planned switchovers of a Citus worker, beside Patroni's
//!     bench compare [RUNS] [long] [EVENT ...] [CONTENDER ...] [direct|haproxy] [into=DIRECTORY]
//!                                 the same faults by turns to pg_tenure, Patroni and pg_auto_failover, into docs/performance.md and .svg

mod citus;
mod compare;

use anyhow::{Context, Result};
use std::io::Write;
use std::time::{Duration, Instant};
use stories::by_hand::ByHand;
use stories::cluster::{Cluster, PATIENCE};
use stories::isolation::{self, Fault, suffer};
use stories::phases::{Phases, Struck};
use stories::programs;

const BY_HAND: &str = "by-hand";

/// What is measured and what DESIGN promises, in milliseconds.
const MEASURES: [(&str, &str, Option<u64>); 9] = [
    (BY_HAND, "pg_ctl stop -m fast, pg_ctl promote", None),
    ("switchover", "planned switchover", Some(350)),
    ("postmaster", "postmaster killed, synchronous standby", Some(800)),
    ("restart", "postmaster killed, restarted in place", None),
    ("node", "node killed, ttl 3", Some(4000)),
    ("deposed", "node killed, ttl 10, deposition", Some(800)),
    ("deposed-frozen", "node frozen, ttl 10, deposition", Some(2000)),
    ("deposed-cut", "node cut off, ttl 10, deposition", Some(2000)),
    ("start", "empty directories to three members", Some(5000)),
];

/// The leader set apart: for how many seconds.
const ISOLATIONS: [(&str, Fault, u64); 4] = [
    ("agent-frozen", Fault::AgentFrozen, 40),
    ("node-frozen", Fault::NodeFrozen, 60),
    ("cut-from-etcd", Fault::CutFromEtcd, 40),
    ("cut-from-all", Fault::CutFromAll, 40),
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).peekable();
    let compares = words.next_if(|word| word == compare::NAME).is_some();
    let runs = match words.peek().map(|word| word.parse::<usize>()) {
        Some(Ok(runs)) => {
            words.next();
            runs
        }
        _ => 5,
    };
    let wanted: Vec<String> = words.collect();
    if compares {
        return compare::compare(runs, &wanted).await;
    }
    if wanted.iter().any(|word| word == citus::NAME) {
        citus::compare(runs).await?;
    }
    for (name, fault, lasts) in ISOLATIONS {
        if wanted.iter().any(|word| word == name) {
            isolated(name, fault, Duration::from_secs(lasts), runs).await;
        }
    }
    let is_table = |word: &String| word == citus::NAME || ISOLATIONS.iter().any(|(name, ..)| word == name);
    if !wanted.is_empty() && wanted.iter().all(is_table) {
        return Ok(());
    }
    let mut rows = Vec::new();
    for (name, what, aim) in MEASURES {
        if !wanted.is_empty() && !wanted.iter().any(|word| word == name) {
            continue;
        }
        let mut seen = Vec::new();
        for run in 1..=runs {
            let (took, phases) = measure(name).await?;
            let phases = phases.map_or_else(String::new, |phases| format!(" ({phases})"));
            let _ = writeln!(std::io::stderr(), "{what}: run {run}: {} ms{phases}", took.as_millis());
            seen.push(took);
        }
        seen.sort();
        rows.push((name, what, aim, seen));
    }
    print(&rows);
    Ok(())
}

/// A pause, and where it went where the new leader can tell.
type Measured = (Duration, Option<Phases>);

async fn measure(name: &str) -> Result<Measured> {
    Ok(match name {
        BY_HAND => (ByHand::start().await.switchover().await.longest_pause(), None),
        "switchover" => (switchover().await, None),
        "postmaster" => (postmaster_killed(true).await, None),
        "restart" => (postmaster_killed(false).await, None),
        "node" => node_killed().await?,
        "deposed" => deposed(Fault::NodeKilled).await,
        "deposed-frozen" => deposed(Fault::NodeFrozen).await,
        "deposed-cut" => deposed(Fault::CutFromAll).await,
        "start" => (cold_start().await, None),
        _ => return Err(anyhow::anyhow!("{name} is no measure")).context("see bench's first lines"),
    })
}

/// One line for each run: ours with ttl 10, then the same done to Patroni in its fastest setting, without synchronous standbys.
async fn isolated(name: &str, fault: Fault, lasts: Duration, runs: usize) {
    let patroni = programs::patroni();
    if patroni.is_none() {
        println!("no Patroni to compare with; hint: `make patroni`, or PATRONI=/path/of/patroni");
    }
    let cells = ["isolation", "whose", "acknowledged", "lost", "late", "two at once", "pause, ms"];
    println!("| {} |\n|{}", cells.join(" | "), "---|".repeat(cells.len()));
    for _ in 0..runs {
        for (whose, patroni, ttl) in [("pg_tenure, ttl 10", None, 10), ("Patroni, ttl 20", patroni.clone(), 20)] {
            if patroni.is_none() && ttl == 20 {
                continue;
            }
            let seen = suffer(&isolation::Plan { patroni, ..isolation::Plan::of(fault, lasts, ttl) }).await;
            let lost = seen.verdict.lost.len();
            println!(
                "| {name} {} s | {whose} | {} | {lost} | {} | {} | {} |",
                lasts.as_secs(),
                seen.acknowledged,
                seen.after_deadline,
                seen.two_at_once,
                seen.pause.as_millis()
            );
        }
    }
}

async fn switchover() -> Duration {
    let cluster = Cluster::of(3).start().await;
    let writer = cluster.writer().await;
    writer.goes_on(100, PATIENCE).await;
    cluster.cli_ok(&["switchover", "--force"]).await;
    writer.goes_on(50, PATIENCE).await;
    writer.finish().longest_pause()
}

async fn postmaster_killed(synchronous: bool) -> Duration {
    let cluster = Cluster::of(3).synchronous(synchronous).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    writer.goes_on(100, PATIENCE).await;
    leader.kill_postmaster();
    writer.goes_on(50, PATIENCE).await;
    writer.finish().longest_pause()
}

async fn node_killed() -> Result<Measured> {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    writer.goes_on(100, PATIENCE).await;
    let struck = Struck::now();
    leader.kill();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    Ok((ledger.longest_pause(), Some(Phases::of(&cluster, struck, &ledger).await?)))
}

/// In quorum mode, a TTL after the cluster was made; clients of every server tell when another one acknowledged.
async fn deposed(fault: Fault) -> Measured {
    let seen = suffer(&isolation::Plan::of(fault, Duration::from_secs(8), 10).with_deposition()).await;
    seen.verdict.nothing_lost_or_doubled();
    assert!(seen.deposed && seen.two_at_once == 0, "{seen:?}");
    (seen.pause, seen.phases)
}

async fn cold_start() -> Duration {
    let cluster = Cluster::of(3).planned().await;
    let started = Instant::now();
    for node in &cluster.nodes {
        cluster.start(node);
    }
    cluster.healthy().await;
    started.elapsed()
}

fn print(rows: &[(&str, &str, Option<u64>, Vec<Duration>)]) {
    let median = |seen: &[Duration]| seen.get(seen.len() / 2).map_or(0, Duration::as_millis);
    let by_hand = rows.iter().find(|(name, ..)| *name == BY_HAND).map(|(.., seen)| median(seen).max(1));
    println!(
        "{:<10} {:<40} {:>8} {:>8} {:>8} {:>8} {:>9}",
        "", "write pause, ms (start: whole time)", "least", "median", "most", "aim", "by hand x"
    );
    for (name, what, aim, seen) in rows {
        let edge = |at: Option<&Duration>| at.map_or(0, Duration::as_millis);
        let ratio =
            by_hand.filter(|_| *name != "start").map_or_else(String::new, |base| format!("{:.1}", median(seen) as f64 / base as f64));
        println!(
            "{name:<10} {what:<40} {:>8} {:>8} {:>8} {:>8} {ratio:>9}",
            edge(seen.first()),
            median(seen),
            edge(seen.last()),
            aim.map_or_else(String::new, |aim| aim.to_string()),
        );
    }
}
