//! A restart in place that somebody asked for: no duty of the node's own, but as careful of clients as one.

use crate::duties::done::Done;
use crate::duties::leave::leave;
use crate::node::Node;
use crate::node::recovery;
use crate::postgres::conf::Recovery;
use crate::postgres::postmaster::StopMode;
use anyhow::Result;
use cluster::member::{MemberRole, MemberState};
use cluster::upstream::Upstream;
use cluster::view::ClusterView;

/// Stops and starts the server in its present role, the lease kept by us meanwhile.
pub async fn restart(node: &Node, view: &ClusterView) -> Result<Done> {
    let facts = node.sql.facts().await?;
    let recovery = if facts.in_recovery {
        let dynamic = node.dynamic(view);
        let upstream = recovery::in_force(&node.config, &dynamic, view, &facts).unwrap_or(Upstream::Nobody);
        recovery::of(&node.config, &dynamic, view, &upstream)
    } else {
        Recovery::None
    };
    let role = if facts.in_recovery { node.standby_role(view) } else { MemberRole::Primary };
    leave(node).await;
    crate::citus::daemon::end(node).await?;
    // Before poolers are paused: what is under way through one of them could not end.
    crate::citus::ask(node, view, false).await?;
    let _held = if facts.in_recovery { None } else { crate::poolers::pause(node, view).await };
    node.speak(MemberState::Restarting, role);
    node.callbacks.restarting();
    node.stop_within(StopMode::Fast, steward::stop::patience(view)).await?;
    node.start_and_wait(view, &recovery).await?;
    tracing::info!("restarted");
    Ok(Done::LookAgain)
}
