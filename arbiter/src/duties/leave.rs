//! A synchronous standby on its way out: the primary is told and takes it off its list before it goes, so that no commit waits for it.

use crate::node::Node;
use crate::node::recovery;
use anyhow::Result;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::time::{Duration, Instant};

/// How often etcd and the primary are asked while the change is under way.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Before a planned end of this standby's server. Takes at most twice `loop_wait`, as the field has it; whatever
/// fails or takes longer costs the primary's clients a wait, not this node its end.
pub async fn leave(node: &Node) {
    match try_to_leave(node).await {
        Ok(Left::NotNamed) => {}
        Ok(Left::Dropped) => tracing::info!("no commit waits for this node any more"),
        Ok(Left::StillNamed(bound)) => {
            tracing::warn!("the primary still waits for this synchronous standby after {} s; it stops anyway", bound.as_secs());
        }
        Err(why) => tracing::warn!("the primary was not told that this synchronous standby goes: {why:#}"),
    }
}

enum Left {
    /// Nobody waits for it anyway.
    NotNamed,
    /// The primary took it off its list.
    Dropped,
    /// It did not, for this long.
    StillNamed(Duration),
}

async fn try_to_leave(node: &Node) -> Result<Left> {
    if node.postmaster().is_none() {
        return Ok(Left::NotNamed);
    }
    let view = tokio::time::timeout(Duration::from_secs(2), node.etcd.load_view()).await??;
    let facts = node.sql.facts().await?;
    if !facts.in_recovery || !is_named(node, &view) {
        return Ok(Left::NotNamed);
    }
    let dynamic = node.dynamic(&view);
    let upstream = recovery::in_force(&node.config, &dynamic, &view, &facts).unwrap_or(Upstream::Nobody);
    let recovery = recovery::of(&node.config, &dynamic, &view, &upstream);
    node.note_leaving(true);
    node.write_configuration(&view, &recovery).await?;
    node.reload().await?;
    let bound = 2 * view.config().timing().loop_wait;
    let deadline = Instant::now() + bound;
    while Instant::now() < deadline {
        let view = tokio::time::timeout(Duration::from_secs(2), node.etcd.load_view()).await??;
        if !is_named(node, &view) && !is_awaited(node, &view).await {
            return Ok(Left::Dropped);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(Left::StillNamed(bound))
}

fn is_named(node: &Node, view: &ClusterView) -> bool {
    view.leader.as_ref().is_some_and(|leader| leader.name != node.config.name)
        && view.sync.as_ref().is_some_and(|sync| sync.value.has_standby(&node.config.name))
}

/// Does the primary's list still name this node, as far as the primary says?
async fn is_awaited(node: &Node, view: &ClusterView) -> bool {
    let Some(entry) = view.leader.as_ref().and_then(|leader| view.members.get(&leader.name)) else { return false };
    let asked = node.caller.ask(&entry.member.api_url, "GET", "patroni", None, Duration::from_secs(1)).await;
    let Some(answer) = asked.ok().and_then(|(_, text)| serde_json::from_str::<serde_json::Value>(&text).ok()) else { return false };
    let mine = |sender: &&serde_json::Value| sender["application_name"] == node.config.name.as_str();
    let mut senders = answer["replication"].as_array().into_iter().flatten().filter(mine);
    senders.any(|sender| matches!(sender["sync_state"].as_str(), Some("sync" | "quorum" | "potential")))
}
