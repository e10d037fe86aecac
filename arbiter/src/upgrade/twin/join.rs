//! Lets the twin follow from an exact position on, and keeps its server running.

use super::make::{conninfo, like, twin_sql, write_passwords};
use super::{data, programs, sides, start, write};
use crate::node::Node;
use anyhow::{Context, Result};
use cluster::lsn::Lsn;
use cluster::upgrade::twin::{Stage, Twin};
use cluster::view::ClusterView;

/// Starts its server, where it does not run.
pub async fn run(node: &Node, noted: &Twin) -> Result<()> {
    let data = data(&node.config);
    start(&node.config, &programs(&node.config, noted.waits())?, &data, &like(node).await?, &[]).await
}

/// Subscribes from this position on. Whatever of it was done before is done again, so it may be interrupted; but once the twin is noted to
/// follow, its subscriptions know how far they are, and are left alone.
pub async fn join(node: &Node, view: &ClusterView, noted: &Twin, from: Lsn) -> Result<Twin> {
    node.twin.tell(|told| told.doing = format!("PostgreSQL {} is subscribed from {from} on", noted.waits()));
    run(node, noted).await?;
    write_passwords(node).await?;
    let twin = twin_sql(node);
    // What it was read by when it was the leader's, its standbys' too: they would keep its WAL for nobody.
    sides::drop_slots(&sides::open(&twin, None).await?, sides::EVERY).await.context("drop the slots that are left")?;
    for one in &noted.databases {
        // And what the leader's server followed by before.
        let leader = sides::open(&node.sql, Some(&one.database)).await?;
        sides::drop_subscription(&leader).await?;
        let client = sides::open(&twin, Some(&one.database)).await?;
        let conninfo = conninfo(node, view, Some(&one.database))?;
        if has_begun(&client, from).await? {
            continue;
        }
        sides::subscribe(&client, &conninfo, &one.slot, from)
            .await
            .with_context(|| format!("subscribe in the database {}", one.database))?;
    }
    let joined = Twin { stage: Stage::Following, ..noted.clone() };
    write(&node.config, &joined).await?;
    tracing::info!("upgrade: PostgreSQL {} follows from {from} on", noted.waits());
    Ok(joined)
}

/// An interrupted joining may have begun this one: it has gone on from the position, and must not be set back to it.
async fn has_begun(client: &tokio_postgres::Client, from: Lsn) -> Result<bool> {
    let question = format!(
        "SELECT EXISTS (SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE subname = 'tenure_upgrade' AND datname = current_database()
            AND subenabled AND pg_replication_origin_progress('pg_' || s.oid, false) >= '{from}')"
    );
    Ok(client.query_one(&question, &[]).await.context("ask whether it follows")?.try_get(0)?)
}

/// Its subscriptions go on where the change of places, called off, has stopped them.
pub async fn go_on(node: &Node, noted: &Twin) -> Result<()> {
    run(node, noted).await?;
    let twin = twin_sql(node);
    for client in sides::open_all(&twin, &noted.databases).await? {
        client.batch_execute(&format!("ALTER SUBSCRIPTION {} ENABLE", sides::NAME)).await.context("let the subscription go on")?;
    }
    Ok(())
}
