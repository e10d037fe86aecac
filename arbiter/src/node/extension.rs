//! The extension in this node's server: made where it is missing, and told that an arbiter is here.

use crate::node::Node;
use crate::postgres::query::{identifier, literal};
use anyhow::{Context, Result, bail};
use cluster::described::Described;

/// What the extension must be told once the server takes connections.
const ATTACH: &str = "SELECT tenure_internal.attach_arbiter() WHERE NOT (SELECT arbiter_attached FROM tenure.lease())";

/// Ties the extension's page to our session: the lease worker then knows that somebody could promote, and what the member key is to
/// say besides.
pub async fn attach(node: &Node, described: Option<&Described>, may_lead: bool) -> Result<()> {
    if node.stands_down() {
        return Ok(());
    }
    if !may_lead {
        return describe_only(node, described).await;
    }
    node.promise.renew(&node.sql).await?;
    let describe = described.map(serde_json::to_string).transpose()?;
    let describe = describe.map(|text| format!("; SELECT tenure_internal.describe({})", literal(&text))).unwrap_or_default();
    node.sql.execute(&format!("{ATTACH}{describe}")).await.context("attach to the lease worker")
}

/// The member key is kept up to date; the lease worker stands only while an arbiter is attached, and none is.
async fn describe_only(node: &Node, described: Option<&Described>) -> Result<()> {
    if node.sql.ask("SELECT arbiter_attached FROM tenure.lease()").await? {
        node.sql.hang_up().await;
    }
    let Some(described) = described else { return Ok(()) };
    let text = literal(&serde_json::to_string(described)?);
    node.sql.execute(&format!("SELECT tenure_internal.describe({text})")).await.context("tell the lease worker what it is to publish")
}

/// Brings the SQL objects to the release of the server's library, where a script leads there; the sentence for the log.
pub async fn update(node: &Node, from: &str, to: &str) -> Result<String> {
    let (from_text, to_text) = (literal(from), literal(to));
    let path = format!(
        "SELECT coalesce((SELECT path FROM pg_extension_update_paths('pg_tenure') WHERE source = {from_text} AND target = {to_text}), '')"
    );
    if node.sql.text(&path).await?.is_empty() {
        bail!("no script leads from {from} to {to} on this host; hint: install pg_tenure {to} as a whole");
    }
    node.sql.execute(&format!("ALTER EXTENSION pg_tenure UPDATE TO {}", identifier(to))).await?;
    Ok(format!("the SQL objects of pg_tenure were brought from release {from} to {to}, that of the server's library"))
}

/// Grants what an existing cluster (one taken over) may lack: the extension.
pub async fn ensure_extension(node: &Node) -> Result<()> {
    let database = identifier(&node.config.postgres.database);
    node.sql
        .execute("CREATE EXTENSION IF NOT EXISTS pg_tenure")
        .await
        .with_context(|| format!("create the extension pg_tenure in {database}"))
}
