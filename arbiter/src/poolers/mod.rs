//! PgBouncer around a planned change: paused before the drain, resumed by whoever finds that the change is over.
//!
//! Whoever pauses may be killed right after, and a pooler stays paused when the session that paused it is gone. So what is about to be
//! paused is written to etcd first, and every arbiter with the pooler in its file lets it go on: the new primary's as soon as it writes
//! and the pooler leads to it, the old one's where the change was called off or was a restart, and any after a time that is in the
//! record. `cluster::poolers` judges; this room does it.

mod console;
mod keep;

pub use keep::keep;

use crate::config::{NodeConfig, PoolerConfig};
use crate::node::Node;
use crate::node::changes::UnderWay;
use crate::postgres::{read_if_there, remove_if_there, write_atomically};
use anyhow::{Context, Result, bail};
use cluster::leader::Leader;
use cluster::poolers::{self, Paused};
use cluster::view::ClusterView;
use console::Console;
use dcs::Dcs;
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// From the pause on: a change that takes longer is no short wait any more, and clients are better off with what the server says. Longer than
/// a failover takes, so that a host that dies midway costs them a wait and no errors.
fn at_most(view: &ClusterView) -> Duration {
    (view.config().timing().ttl + Duration::from_secs(5)).max(Duration::from_secs(15))
}

/// A server connection that is being made is waited for before the pause: see [`Console::logs_in`].
const LOGIN_WITHIN: Duration = Duration::from_secs(1);

/// The file beside the data that tells a restarted arbiter, also while etcd is away, what the one before it may have left paused.
const FILE: &str = "pg_tenure.poolers";

fn file(config: &NodeConfig) -> PathBuf {
    config.postgres.data_dir.join(FILE)
}

/// Pauses the poolers of the node's file, for as long as the answer lives. What can't be paused in time, or without a word to the other
/// arbiters first, is left as it is: the change goes on without, and its clients see what clients without a pooler see.
pub async fn hold(node: &Node, view: &ClusterView) -> Option<UnderWay> {
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
        for (database, paused) in pause(pooler, console, databases).await {
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

/// By what name every arbiter knows a pooler. One that is reached by a socket only its own machine reaches.
fn key(config: &NodeConfig, pooler: &PoolerConfig) -> String {
    if poolers::is_own_machine(&pooler.address.host) && pooler.address.host.starts_with('/') {
        format!("{}/{}", config.name, pooler.address)
    } else {
        pooler.address.to_string()
    }
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

/// Tells the other arbiters, and the one that may come after this one.
async fn say(node: &Node, paused: Paused, leader: &Leader) -> Result<()> {
    // Read again: the change before this one may have ended since.
    let view = node.etcd.load_view().await?;
    let before = view.poolers.as_ref();
    let paused = paused.and(before.map(|before| &before.value));
    let text = serde_json::to_string(&paused).context("write down what is paused")?;
    write_atomically(&file(&node.config), &text, 0o600).await?;
    node.etcd.write_poolers(&paused, before.map_or(0, |before| before.revision), leader).await.context("write tenure/poolers")?;
    Ok(())
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
async fn pause<'a>(pooler: &PoolerConfig, console: &Console, databases: &'a [String]) -> Vec<(&'a String, Result<()>)> {
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

/// What the arbiter before this one may have left paused.
async fn left_behind(node: &Node) -> Option<Paused> {
    let text = read_if_there(&file(&node.config)).await.ok()??;
    // A copy or a rewind brings another member's along.
    serde_json::from_str::<Paused>(&text).ok().filter(|paused| paused.by == node.config.name)
}

async fn forget(node: &Node) {
    if let Err(why) = remove_if_there(&file(&node.config)).await {
        tracing::debug!("{why:#}");
    }
}
