//! Nothing is to change: what a node keeps in order meanwhile is looked after.

use crate::duties::done::Done;
use crate::node::Node;
use crate::postgres::facts::ServerFacts;
use crate::postgres::server_log;
use crate::upkeep;
use anyhow::Result;
use steward::Judged;

/// One round of upkeep.
pub async fn rest(node: &Node, judged: Judged<'_, ServerFacts>) -> Result<Done> {
    server_log::rotate(&node.config.postgres.server_log).await?;
    let Some(facts) = judged.seen else { return Ok(Done::Settled) };
    if let Err(why) = node.knowledge.learn(&node.sql, &node.programs, &node.config, facts).await {
        // What it said before counts until it can be asked.
        tracing::warn!("{why:#}");
    }
    // Maintenance or not: settings, the synchronous standbys and slots are kept, as commits and the disk depend on them. What drops a
    // slot, or starts, stops and promotes a server, knows of maintenance mode itself.
    let again = match judged.view.leader_if(&node.config.name) {
        _ if facts.in_recovery => upkeep::standby(node, judged.view, facts).await?,
        Some(leader) => upkeep::primary(node, judged.view, leader, facts).await?,
        None => upkeep::leaderless(node, judged.view, facts).await?,
    };
    Ok(if again { Done::LookAgain } else { Done::Settled })
}
