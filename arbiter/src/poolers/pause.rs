//! The poolers of the node's file are paused before a planned change.

use super::console::Console;
use super::keep;
use super::record::{key, say};
use crate::config::PoolerConfig;
use crate::node::Node;
use crate::node::changes::UnderWay;
use anyhow::{Result, bail};
use cluster::poolers::{self, Paused};
use cluster::view::ClusterView;
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// From the pause on: a change that takes longer is no short wait any more, and clients are better off with what the server says. Longer than
/// a failover takes, so that a host that dies midway costs them a wait and no errors.
fn at_most(view: &ClusterView) -> Duration {
    (view.config().timing().ttl + Duration::from_secs(5)).max(Duration::from_secs(15))
}

/// A server connection that is being made is waited for before the pause: see [`Console::logs_in`].
const LOGIN_WITHIN: Duration = Duration::from_secs(1);

/// Pauses the poolers of the node's file, for as long as the answer lives. What can't be paused in time, or without a word to the other
/// arbiters first, is left as it is: the change goes on without, and its clients see what clients without a pooler see.
pub async fn pause(node: &Node, view: &ClusterView) -> Option<UnderWay> {
    let leader = view.leader_if(&node.config.name).filter(|_| !node.config.poolers.is_empty())?;
    let began = Instant::now();
    let found = join_all(node.config.poolers.iter().map(|pooler| async move {
        match ours(node, pooler, view).await {
            Ok((console, databases)) if !databases.is_empty() => Some((pooler, console, databases)),
        Ok(_) => {
            tracing::warn!(
                "PgBouncer at {} is not paused: none of its databases leads to a member or is paused by nobody yet; hint: name them in pgbouncer.databases",
                pooler.address
            );
            None
        }
        Err(why) => {
            tracing::warn!("PgBouncer at {} is not paused, its clients may see errors: {why:#}", pooler.address);
            None
        }
        }
    }))
    .await;
    let found: Vec<_> = found.into_iter().flatten().collect();
    if found.is_empty() {
        return None;
    }
    let held = UnderWay::begin(&node.poolers);
    let bound = at_most(view);
    let names = |databases: &[String]| databases.iter().cloned().collect::<BTreeSet<_>>();
    let paused = Paused {
        by: node.config.name.clone(),
        term: leader.term,
        at_most_s: bound.as_secs(),
        poolers: found.iter().map(|(pooler, _, databases)| (key(&node.config, pooler), names(databases))).collect::<BTreeMap<_, _>>(),
        other: Default::default(),
    };
    if let Err(why) = say(node, paused, leader).await {
        tracing::warn!("no pooler is paused, as nobody would know of it if this arbiter died: {why:#}");
        return None;
    }
    join_all(found.iter().map(|(pooler, console, databases)| async move {
        await_logins(console, databases).await;
        for (database, paused) in pause_each(pooler, console, databases).await {
            match paused {
                Ok(()) => {
                    tracing::info!("PgBouncer at {} keeps {database} waiting after {} ms", pooler.address, began.elapsed().as_millis());
                }
                Err(why) => {
                    tracing::warn!("PgBouncer at {} does not pause {database}, its clients may see errors: {why:#}", pooler.address);
                    if let Err(why) = keep::resume_all(pooler, &BTreeSet::from([database.clone()])).await {
                        tracing::error!("PgBouncer at {}, {database}: {why:#}; it is tried again when the change is over", pooler.address);
                    }
                }
            }
        }
    }))
    .await;
    // Frozen in between, this arbiter paused what the others have let go on already.
    if began.elapsed() >= bound {
        tracing::warn!("pausing took {} s: nothing is paused any more", began.elapsed().as_secs());
        for (pooler, _, databases) in &found {
            let _ = keep::resume_all(pooler, &names(databases)).await;
        }
        return None;
    }
    Some(held)
}

/// Its console, and those of its databases that are to be paused and are not.
async fn ours(node: &Node, pooler: &PoolerConfig, view: &ClusterView) -> Result<(Console, Vec<String>)> {
    let console = Console::open(pooler).await?;
    let all = console.databases().await?;
    let found = poolers::ours(&all, pooler.databases.as_deref(), view).into_iter().filter(|database| !database.paused);
    let names = found.map(|database| database.name.clone()).collect();
    tracing::debug!("PgBouncer at {}: {} databases, member {}", pooler.address, all.len(), node.config.name);
    Ok((console, names))
}

/// Waits a moment for connections to servers that are being made.
async fn await_logins(console: &Console, databases: &[String]) {
    let quiet = async {
        for database in databases {
            while console.logs_in(database).await? {
                // Nothing tells a client of PgBouncer's that a connection was made; milliseconds, before anybody waits.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        Ok::<(), anyhow::Error>(())
    };
    if let Ok(Err(why)) = tokio::time::timeout(LOGIN_WITHIN, quiet).await {
        tracing::debug!("{why:#}");
    }
}

/// Pauses each database, on a session of its own; what became of each. PgBouncer answers none of them before all that are paused are quiet, so
/// where that takes too long it is asked which are.
async fn pause_each<'a>(pooler: &PoolerConfig, console: &Console, databases: &'a [String]) -> Vec<(&'a String, Result<()>)> {
    let all = join_all(databases.iter().map(|database| async move { Console::open(pooler).await?.pause(database).await }));
    match tokio::time::timeout(pooler.pause_within, all).await {
        Ok(done) => databases.iter().zip(done).collect(),
        Err(_) => join_all(databases.iter().map(|database| async move { (database, is_quiet(pooler, console, database).await) })).await,
    }
}

async fn is_quiet(pooler: &PoolerConfig, console: &Console, database: &str) -> Result<()> {
    let paused = console.databases().await?.iter().any(|seen| seen.name == database && seen.paused);
    if !paused || console.is_busy(database).await? {
        bail!(
            "what runs there has not ended within {} s (pause_within); hint: with pool_mode = session PAUSE waits for clients to disconnect",
            pooler.pause_within.as_secs()
        );
    }
    Ok(())
}
