//! Citus: how soon every node's metadata names a worker's new primary after a switchover, standbys and other workers included.

use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::node::{Node, PASSWORD, connect_in, rows};
use stories::wait::{self, lasting, seconds};
use tokio::sync::watch;

/// One second is the aim, on a machine that does nothing else.
const BOUND: Duration = Duration::from_secs(5);

/// `METADATA_ROUNDS=10` where the distribution is asked for.
fn rounds() -> usize {
    std::env::var("METADATA_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// How long after the command's return this node names another primary of group 2 than `before`; zero where that was earlier.
async fn follows(host: String, port: u16, before: String, returned: watch::Receiver<Option<Instant>>) -> Duration {
    const WHERE: &str = "SELECT nodename || ':' || nodeport FROM pg_dist_node WHERE groupid = 2 AND noderole = 'primary'";
    let began = Instant::now();
    let mut session = None;
    while began.elapsed() < PATIENCE {
        if session.is_none() {
            // The old primary has none while it stops and starts.
            session = connect_in(citus::DATABASE, &host, port, "postgres", PASSWORD, seconds(3)).await.ok();
        }
        let found = match &session {
            Some(client) => rows(client, WHERE).await.ok(),
            None => None,
        };
        match found {
            Some(found) if found.first().is_some_and(|row| row[0] != before) => {
                let returned = *returned.borrow();
                return returned.map_or(Duration::ZERO, |returned| returned.elapsed());
            }
            Some(_) => {}
            None => session = None,
        }
        lasting(Duration::from_millis(10)).await;
    }
    panic!("{host}:{port} names {before} yet");
}

/// What this node is in a switchover of group 2.
async fn kind(cluster: &CitusCluster, node: &Node, old: &Node) -> &'static str {
    for group in 0..2 {
        if cluster.groups[group].iter().any(|one| one.name() == node.name()) {
            let leads = cluster.leader(group).await.name() == node.name();
            return match (group, leads) {
                (0, true) => "coordinator's primary",
                (0, false) => "coordinator's standby",
                (_, true) => "other worker's primary",
                (_, false) => "other worker's standby",
            };
        }
    }
    if node.name() == old.name() { "the old primary, back as a standby" } else { "the new primary" }
}

/// What the arbiters said of rows that were carried late.
fn late(cluster: &CitusCluster) -> Vec<String> {
    let words = ["learn of it from", "in step, after", "use old addresses", "was ended", "may fail until"];
    let of = |node: &Node| {
        let (name, log) = (node.name().to_owned(), node.log());
        let lines = log.lines().filter(|line| words.iter().any(|words| line.contains(words)));
        lines.map(|line| format!("{name}: {line}")).collect::<Vec<_>>()
    };
    cluster.nodes().flat_map(of).collect()
}

#[tokio::test]
async fn every_nodes_metadata_names_the_new_primary_soon_after_a_switchover() {
    if !citus::is_installed() {
        return;
    }
    // The product's own mode for Citus, `quorum`, unless another is named.
    let mode = std::env::var("METADATA_MODE").unwrap_or_else(|_| "quorum".to_owned());
    let cluster = CitusCluster::planned(2, &[2, 2], |_, config| {
        config["bootstrap"]["dcs"]["synchronous_mode"] = json!(mode);
    })
    .await;
    cluster.start_all();
    cluster.healthy().await;
    let mut by_kind: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for round in 1..=rounds() {
        if mode != "off" {
            wait::until("a voter in every group", PATIENCE, async || {
                for group in 0..3 {
                    let view = cluster.view(group).await.map_err(|error| format!("{error:#}"))?;
                    if view.json("sync")["sync_standby"].as_str().is_none_or(str::is_empty) {
                        return Err(view.to_string());
                    }
                }
                Ok(())
            })
            .await;
        }
        let old = cluster.leader(2).await;
        let before = format!("{}:{}", old.host(), old.port());
        let (returns, returned) = watch::channel(None);
        let mut looks = Vec::new();
        for node in cluster.nodes() {
            let look = follows(node.host().to_owned(), node.port(), before.clone(), returned.clone());
            looks.push((node.name(), kind(&cluster, node, old).await, tokio::spawn(look)));
        }
        lasting(Duration::from_millis(500)).await;
        let said = cluster.cli_of(old, &["switchover", "--group", "2", "--force"]).await;
        let ended = Instant::now();
        returns.send_replace(Some(ended));
        assert!(said.status.success(), "{said:?}");
        let mut told = String::new();
        for (name, kind, look) in looks {
            let after = look.await.expect("it follows");
            told += &format!(" {name} {} ms,", after.as_millis());
            by_kind.entry(kind).or_default().push(after);
        }
        println!("round {round}, {} handed over; its successor's name after the command's return:{told}", old.name());
        cluster.healthy().await;
        println!("round {round}: all rows on every primary, the old one's as a standby too, after {} ms", ended.elapsed().as_millis());
    }
    late(&cluster).iter().for_each(|line| println!("{line}"));
    for (kind, spans) in &mut by_kind {
        spans.sort();
        let (least, middle, most) = (spans[0], spans[spans.len() / 2], spans[spans.len() - 1]);
        println!("{kind}: {}, {} and {} ms (least, median, most)", least.as_millis(), middle.as_millis(), most.as_millis());
        let restarts = kind.starts_with("the old");
        assert!(restarts || most < BOUND, "{kind}: {most:?}");
    }
}
