//! An upgrade in place that does not come to its end: the old data is put back, or what is of no more use is given up.

use crate::ground::program;
use crate::node::Node;
use crate::postgres::marker::Incomplete;
use crate::postgres::postmaster::kill_orphans;
use crate::postgres::{empty_directory, sync_directory};
use crate::upgrade::{journal, trial};
use anyhow::{Context, Result};
use cluster::upgrade::step::{Journal, Step};

/// Puts the old data back as it was. No server of the new version has written to it.
pub async fn undo(node: &Node, noted: &Journal) -> Result<()> {
    let data_dir = &node.config.postgres.data_dir;
    end_programs(node, noted.step).await?;
    let global = data_dir.join("global");
    let (there, aside) = (global.join("pg_control"), global.join("pg_control.old"));
    // pg_upgrade moves it aside before it links the first file, so that nobody starts the old server by mistake.
    if !tokio::fs::try_exists(&there).await? && tokio::fs::try_exists(&aside).await? {
        tokio::fs::rename(&aside, &there).await.context("put pg_control back")?;
        sync_directory(&global).await?;
    }
    forget(node).await?;
    tracing::warn!("the upgrade to PostgreSQL {} is called off: the data of version {} is as it was", noted.to, noted.from);
    Ok(())
}

/// Another member leads with the old data, and here it is spoiled: it is marked, so that a copy replaces it.
pub async fn discard(node: &Node, noted: &Journal) -> Result<()> {
    end_programs(node, noted.step).await?;
    Incomplete::of(&node.config.postgres.data_dir).set(&format!("a major upgrade to PostgreSQL {} that was called off", noted.to)).await?;
    forget(node).await?;
    tracing::warn!("the upgrade to PostgreSQL {} is called off: another member leads, and this node's data is made again", noted.to);
    Ok(())
}

/// Programs that an earlier try left, with the servers that they started. A server of ours is none of these: it is started without the mark
/// in its environment.
pub async fn end_programs(node: &Node, step: Step) -> Result<()> {
    program::end_leftovers(&node.config.postgres.data_dir).await?;
    if step >= Step::Transfer {
        node.clear_orphans().await?;
        kill_orphans(&journal::place(&node.config).join("data")).await?;
    }
    Ok(())
}

async fn forget(node: &Node) -> Result<()> {
    let place = journal::place(&node.config);
    let data = place.join("data");
    if tokio::fs::try_exists(&data).await? {
        // With what pg_upgrade made in tablespaces.
        empty_directory(&data).await?;
    }
    trial::remove(&place).await?;
    journal::clear(&node.config).await?;
    node.note_upgrade(false);
    node.twin.tell(|told| {
        told.in_place = None;
        told.failed.get_or_insert_with(|| "the upgrade in place was interrupted, and is called off".to_owned());
    });
    Ok(())
}
