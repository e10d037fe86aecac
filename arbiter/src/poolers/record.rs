//! What an arbiter writes down of the poolers that it pauses, beside its data: for the one that comes after it, also while etcd is away.

use crate::config::{NodeConfig, PoolerConfig};
use crate::node::Node;
use crate::postgres::{read_if_there, remove_if_there, write_atomically};
use anyhow::{Context, Result};
use cluster::leader::Leader;
use cluster::poolers::{self, Paused};
use dcs::Dcs;
use std::path::PathBuf;

/// The file beside the data that tells a restarted arbiter, also while etcd is away, what the one before it may have left paused.
const FILE: &str = "pg_tenure.poolers";

fn file(config: &NodeConfig) -> PathBuf {
    config.postgres.data_dir.join(FILE)
}

/// By what name every arbiter knows a pooler. One that is reached by a socket only its own machine reaches.
pub(super) fn key(config: &NodeConfig, pooler: &PoolerConfig) -> String {
    if poolers::is_own_machine(&pooler.address.host) && pooler.address.host.starts_with('/') {
        format!("{}/{}", config.name, pooler.address)
    } else {
        pooler.address.to_string()
    }
}

/// Tells the other arbiters, and the one that may come after this one.
pub(super) async fn say(node: &Node, paused: Paused, leader: &Leader) -> Result<()> {
    // Read again: the change before this one may have ended since.
    let view = node.etcd.load_view().await?;
    let before = view.poolers.as_ref();
    let paused = paused.and(before.map(|before| &before.value));
    let text = serde_json::to_string(&paused).context("write down what is paused")?;
    write_atomically(&file(&node.config), &text, 0o600).await?;
    node.etcd.write_poolers(&paused, before.map_or(0, |before| before.revision), leader).await.context("write tenure/poolers")?;
    Ok(())
}

/// What the arbiter before this one may have left paused.
pub(super) async fn left_behind(node: &Node) -> Option<Paused> {
    let text = read_if_there(&file(&node.config)).await.ok()??;
    // A copy or a rewind brings another member's along.
    serde_json::from_str::<Paused>(&text).ok().filter(|paused| paused.by == node.config.name)
}

/// Nothing is left paused.
pub(super) async fn forget(node: &Node) {
    if let Err(why) = remove_if_there(&file(&node.config)).await {
        tracing::debug!("{why:#}");
    }
}
