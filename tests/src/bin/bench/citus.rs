//! Planned switchovers of a Citus worker, ours and Patroni's by turns: what a client of the coordinator sees that inserts every 10 ms.

use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::programs;
use stories::wait;
use stories::workload::{Ledger, Writer};

/// The name on bench's command line.
pub const NAME: &str = "citus";

/// The worker group that is switched over.
const GROUP: usize = 2;

/// Prints one line for each switchover and then, for each side, the middle one. Both clusters live through the whole run, but only one works at a time.
pub async fn compare(runs: usize) -> Result<()> {
    if !citus::is_installed() {
        return Ok(());
    }
    let ours = CitusCluster::start(|_, _| ()).await;
    let theirs = match (programs::patroni(), programs::patronictl()) {
        (Some(patroni), Some(patronictl)) => Some((start_patroni(patroni).await, patronictl)),
        _ => {
            println!("no Patroni to compare with; hint: `make patroni`, or PATRONI=/path/of/patroni");
            None
        }
    };
    for cluster in [Some(&ours), theirs.as_ref().map(|(cluster, _)| cluster)].into_iter().flatten() {
        cluster.make_written().await;
    }
    let cells = ["switchover of worker group 2", "acknowledged", "errors", "pause, ms"];
    println!("| {} |\n|{}", cells.join(" | "), "---|".repeat(cells.len()));
    let mut pauses: [Vec<Duration>; 2] = Default::default();
    for _ in 0..runs {
        pauses[0].push(one("pg_tenure", &ours, None).await?);
        if let Some((cluster, patronictl)) = &theirs {
            pauses[1].push(one("Patroni", cluster, Some(patronictl)).await?);
        }
    }
    let [ours, theirs] = pauses.map(middle);
    match theirs {
        Some(theirs) => println!(
            "in the middle {} ms and Patroni {} ms: {:.1} times",
            ours.unwrap_or_default().as_millis(),
            theirs.as_millis(),
            theirs.as_secs_f64() / ours.unwrap_or_default().as_secs_f64()
        ),
        None => println!("in the middle {} ms", ours.unwrap_or_default().as_millis()),
    }
    Ok(())
}

fn middle(mut pauses: Vec<Duration>) -> Option<Duration> {
    pauses.sort();
    pauses.get(pauses.len() / 2).copied()
}

async fn one(whose: &str, cluster: &CitusCluster, patronictl: Option<&PathBuf>) -> Result<Duration> {
    let old = cluster.leader(GROUP).await;
    // Ids go on from one writer to the next: a table that already holds some is fine, nothing is judged but the ledger.
    let writer = Writer::start(cluster.targets());
    writer.goes_on(100, PATIENCE).await;
    let said = match patronictl {
        None => cluster.cli_of(old, &["switchover", "--group", &GROUP.to_string(), "--force"]).await,
        Some(patronictl) => {
            let mut command = tokio::process::Command::new(patronictl);
            command.arg("-c").arg(old.config_file()).args(["switchover", "--group", &GROUP.to_string(), "--force"]);
            command.output().await.context("run patronictl")?
        }
    };
    if !said.status.success() {
        bail!("{whose}: the switchover failed: {said:?}");
    }
    cluster.leads_other_than(GROUP, old).await;
    writer.goes_on(100, PATIENCE).await;
    let ledger = writer.finish();
    whole(cluster, patronictl.is_some()).await;
    println!("| {whose} | {} | {} | {} |", ledger.acknowledged().count(), errors(&ledger), ledger.longest_pause().as_millis());
    Ok(ledger.longest_pause())
}

fn errors(ledger: &Ledger) -> usize {
    ledger.refused().count() + ledger.unknown().count()
}

async fn start_patroni(patroni: PathBuf) -> CitusCluster {
    let cluster = CitusCluster::planned(3, &[2, 2], |_, config| {
        let dynamic = &mut config["bootstrap"]["dcs"];
        dynamic["ttl"] = json!(20);
        dynamic["loop_wait"] = json!(1);
        dynamic["retry_timeout"] = json!(3);
        // Its section takes lists.
        config["etcd3"]["hosts"] = json!([config["etcd3"]["hosts"]]);
        config["watchdog"] = json!({"mode": "off"});
    })
    .await
    .by_patroni(&patroni);
    cluster.start_all();
    whole(&cluster, true).await;
    cluster
}

/// Every group has a primary from which all others stream, and the coordinator's metadata names it.
async fn whole(cluster: &CitusCluster, patroni: bool) {
    if !patroni {
        cluster.healthy().await;
        return;
    }
    wait::until("Patroni's Citus cluster", PATIENCE * 3, async || {
        for (number, nodes) in (0..).zip(&cluster.groups) {
            let view = cluster.view(number).await.map_err(|error| format!("{error:#}"))?;
            let leader = cluster.node(view.leader().ok_or_else(|| format!("nobody leads group {number}"))?);
            let streaming = leader
                .one("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND NOT pg_is_in_recovery()")
                .await
                .map_err(|error| format!("{error:#}"))?;
            if streaming != (nodes.len() - 1).to_string() {
                return Err(format!("group {number}: {streaming} stream from {}", leader.name()));
            }
            let group = u32::try_from(number).map_err(|error| error.to_string())?;
            let named = cluster.primary_in_metadata(group).await.map_err(|error| format!("{error:#}"))?;
            if named != format!("{}:{}", leader.host(), leader.port()) {
                return Err(format!("the metadata has {named} for group {number}"));
            }
        }
        Ok(())
    })
    .await;
}
