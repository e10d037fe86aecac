//! The server is stopped: a deposed primary, one that is of no use, or on the arbiter's own end.

use crate::duties::done::Done;
use crate::duties::leave::leave;
use crate::node::Node;
use crate::postgres::postmaster::StopMode;
use anyhow::{Context, Result};
use cluster::member::{MemberRole, MemberState};
use cluster::view::ClusterView;
use dcs::Dcs;
use std::time::Duration;

/// A deposed primary may take this long over its fast stop: its walsenders may wait for standbys that
/// have left, and nobody waits for what it would still write.
const DEMOTION_PATIENCE: Duration = Duration::from_secs(5);

/// How long an immediate stop may take before SIGKILL follows: the postmaster itself kills its children after 5 s.
const RELEASE_PATIENCE: Duration = Duration::from_secs(6);

/// Another member leads, or nobody may: this server is primary no more.
pub async fn demote(node: &Node) -> Result<Done> {
    node.speak(MemberState::Stopping, MemberRole::Demoted);
    // Its fence is closed, so nothing can be acknowledged any more; a clean stop spares the crash recovery before a rewind.
    node.stop_within(StopMode::Fast, DEMOTION_PATIENCE).await?;
    node.speak(MemberState::Stopped, MemberRole::Demoted);
    Ok(Done::LookAgain)
}

/// The server can't serve: the leader key is given up for another member to take.
pub async fn release(node: &Node, view: &ClusterView) -> Result<Done> {
    node.speak(MemberState::Crashed, MemberRole::Demoted);
    // The server was given up for being useless, perhaps since it hangs: an immediate stop that works takes no longer.
    node.stop_within(StopMode::Immediate, RELEASE_PATIENCE).await?;
    node.clear_orphans().await?;
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    node.etcd.release_leader(leader).await?;
    node.callbacks.demoted(&node.config);
    Ok(Done::LookAgain)
}

/// A planned end: Postgres is stopped cleanly, and what was held is given back after that.
pub async fn stop(node: &Node, view: &ClusterView) -> Result<Done> {
    if view.config().paused() {
        tracing::info!("the cluster is in maintenance mode: leaving Postgres as it is");
        return Ok(Done::Stopped);
    }
    leave(node).await;
    node.speak(MemberState::Stopping, MemberRole::Replica);
    node.stop_within(StopMode::Fast, node.patience(view)).await?;
    node.speak(MemberState::Stopped, MemberRole::Replica);
    let bound = Duration::from_secs(5);
    let given_back = tokio::time::timeout(bound, async {
        let view = node.etcd.load_view().await?;
        if let Some(other) = node.lease.in_use(&view) {
            tracing::warn!("no key is released: {other}");
            return Ok(());
        }
        if let Some(leader) = view.leader_if(&node.config.name) {
            node.etcd.release_leader(leader).await?;
        }
        if let Some(lease) = view.lease_of(&node.config.name) {
            node.lease.speak(None);
            node.etcd.revoke(lease).await?;
        }
        Ok::<(), dcs::Error>(())
    });
    match given_back.await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tracing::warn!("this node's keys were not released, they expire by themselves: {why}"),
        Err(_) => tracing::warn!("this node's keys were not released within {} s, they expire by themselves", bound.as_secs()),
    }
    Ok(Done::Stopped)
}
