//! A synchronous standby on its way out: the primary is told and takes it off its list before it goes, so that no commit waits for it.

use crate::hands::Hands;
use crate::recovery;
use anyhow::Result;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::time::{Duration, Instant};

/// How often etcd and the primary are asked while the change is under way.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Before a planned end of this standby's server. Takes at most twice `loop_wait`, as the field has it; whatever
/// fails or takes longer costs the primary's clients a wait, not this node its end.
pub async fn leave(hands: &Hands) {
    match try_to_leave(hands).await {
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

async fn try_to_leave(hands: &Hands) -> Result<Left> {
    if hands.postmaster().is_none() {
        return Ok(Left::NotNamed);
    }
    let view = tokio::time::timeout(Duration::from_secs(2), hands.etcd.load_view()).await??;
    let facts = hands.sql.facts().await?;
    if !facts.in_recovery || !is_named(hands, &view) {
        return Ok(Left::NotNamed);
    }
    let dynamic = hands.dynamic(&view);
    let upstream = recovery::in_force(&hands.config, &dynamic, &view, &facts).unwrap_or(Upstream::Nobody);
    let recovery = recovery::of(&hands.config, &dynamic, &view, &upstream);
    hands.note_leaving(true);
    hands.write_configuration(&view, &recovery).await?;
    hands.reload().await?;
    let bound = 2 * view.config().timing().loop_wait;
    let deadline = Instant::now() + bound;
    while Instant::now() < deadline {
        let view = tokio::time::timeout(Duration::from_secs(2), hands.etcd.load_view()).await??;
        if !is_named(hands, &view) && !is_awaited(hands, &view).await {
            return Ok(Left::Dropped);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(Left::StillNamed(bound))
}

fn is_named(hands: &Hands, view: &ClusterView) -> bool {
    view.leader.as_ref().is_some_and(|leader| leader.name != hands.config.name)
        && view.sync.as_ref().is_some_and(|sync| sync.value.has_standby(&hands.config.name))
}

/// Does the primary's list still name this node, as far as the primary says?
async fn is_awaited(hands: &Hands, view: &ClusterView) -> bool {
    let Some(entry) = view.leader.as_ref().and_then(|leader| view.members.get(&leader.name)) else { return false };
    let asked = hands.caller.ask(&entry.member.api_url, "GET", "patroni", None, Duration::from_secs(1)).await;
    let Some(answer) = asked.ok().and_then(|(_, text)| serde_json::from_str::<serde_json::Value>(&text).ok()) else { return false };
    let mine = |sender: &&serde_json::Value| sender["application_name"] == hands.config.name.as_str();
    let mut senders = answer["replication"].as_array().into_iter().flatten().filter(mine);
    senders.any(|sender| matches!(sender["sync_state"].as_str(), Some("sync" | "quorum" | "potential")))
}
