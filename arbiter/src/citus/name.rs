//! Does the name of a group's primary lead to its primary by now? A virtual address or a proxy follows a promotion in its own time, and
//! writers that are let go before would meet the old server, or nobody.

use super::session::SESSION;
use crate::node::Node;
use crate::postgres::query::QUIET;
use anyhow::Result;
use cluster::citus;
use cluster::host::Address;
use cluster::view::ClusterView;

/// A name that leads to a machine which is gone answers nothing.
const PATIENCE: &str = "-c citus.node_connection_timeout=1000 -c statement_timeout=3000";

/// True where the group has no name (`citus.primary_address`), or where the pooler beside the member is used instead of it.
pub async fn leads_there(node: &Node, view: &ClusterView) -> bool {
    let Some(at) = citus::primary_address(view).filter(|_| !citus::uses_poolers(view)) else { return true };
    match leads_to_primary(node, &at).await {
        Ok(there) => there,
        Err(why) => {
            tracing::debug!("Citus: ask {at} whether it is a primary: {why:#}");
            false
        }
    }
}

/// Asked by Citus itself, in a session of its own: the way, the credentials and TLS are those of its clients' statements.
async fn leads_to_primary(node: &Node, at: &Address) -> Result<bool> {
    const ASK: &str = "SELECT success AND result = 'f'
        FROM master_run_on_worker(ARRAY[$1::text], ARRAY[$2::int], ARRAY['SELECT pg_is_in_recovery()'], false)";
    let database = node.config.citus.as_ref().and_then(|citus| citus.databases.first());
    let session = node.sql.open_as(SESSION, database.map(String::as_str), &format!("{QUIET} {PATIENCE}")).await?;
    Ok(session.query_one(ASK, &[&at.host, &i32::from(at.port)]).await?.try_get::<_, Option<bool>>(0)?.unwrap_or(false))
}
