//! A coordinator that Patroni runs yet, while a cluster is taken over or given back: it reads none of our keys, so a worker tells it over REST
//! what Patroni's own workers tell it.

use super::session::cooldown;
use crate::node::Node;
use anyhow::{Result, bail};
use cluster::citus::takeover::patronis_coordinator;
use cluster::view::ClusterView;
use serde_json::json;
use std::time::Duration;

/// Nothing depends on it: a coordinator that was not told that a primary serves sees it at its next look.
const SERVES_PATIENCE: Duration = Duration::from_secs(2);

/// This node's server is about to stop as its group's primary: the coordinator at this URL answers once it has moved the row aside, in a transaction that it
/// keeps open for `ttl`. Whether it came to that only its log says.
pub(super) async fn stops(node: &Node, own: &ClusterView, api_url: &str, patience: Duration) -> Result<()> {
    tell(node, own, api_url, "before_demote", patience).await
}

/// This node's server serves as its group's primary, the new one or still the old one: where Patroni runs the coordinator, that one commits, and writers go on.
pub(super) async fn serves(node: &Node) {
    let scope = node.etcd.seen_as(node.config.scope_keys());
    // Without etcd nobody is known who could be told.
    let Ok(groups) = scope.load_groups().await else { return };
    let own = node.config.citus.as_ref().and_then(|citus| groups.get(&citus.group));
    let (Some(api_url), Some(own)) = (patronis_coordinator(&groups), own) else { return };
    match tell(node, own, api_url, "after_promote", SERVES_PATIENCE).await {
        Ok(()) => tracing::info!("Citus: the coordinator, which Patroni runs, was told that this node is its group's primary"),
        Err(why) => {
            tracing::info!("Citus: the coordinator, which Patroni runs, learns at its next look who is this group's primary: {why:#}")
        }
    }
}

async fn tell(node: &Node, own: &ClusterView, api_url: &str, event: &str, patience: Duration) -> Result<()> {
    // Whole numbers: Patroni hands the cooldown to `citus_update_node`, which takes no others.
    let event = json!({
        "type": event,
        "group": node.config.citus.as_ref().map(|citus| citus.group),
        "leader": node.config.name,
        "timeout": own.config().timing().ttl.as_secs(),
        "cooldown": cooldown(node, own).as_secs(),
    });
    match node.caller.ask(api_url, "POST", "citus", Some(&event), patience).await? {
        (200, _) => Ok(()),
        (status, said) => bail!("{api_url} answers {status} {said}"),
    }
}
