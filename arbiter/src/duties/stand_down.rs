//! A node that may not be promoted gives the leader key up.

use crate::duties::done::Done;
use crate::node::Node;
use anyhow::{Context, Result};
use cluster::leader::Term;
use dcs::Dcs;

/// The hook or the watchdog refused: the key goes back, for another to take, and this node leaves it alone for a TTL.
pub async fn stand_down(node: &Node, term: Term) -> Result<Done> {
    let view = node.etcd.load_view().await?;
    node.stand_down(view.config().timing().ttl).await;
    if let Some(leader) = view.leader_if(&node.config.name).filter(|leader| leader.term == term) {
        node.etcd.release_leader(leader).await.context("give the leader key up")?;
    }
    Ok(Done::LookAgain)
}
